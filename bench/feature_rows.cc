// What the rows of checks run whose rules have more than a limit: each beside a check without.
#include <benchmark/benchmark.h>

#include <string_view>

#include "bench/contenders.h"

namespace sluice::bench {
namespace {

// Each list of descriptors is one request; the key is the first one's value.
template <size_t kCount>
Contender ListCheck(const char* name, const sluice_descriptor_t (&request)[kCount]) {
  return {name, [client = Stage::Get().client(), &request](uint64_t n) {
            int allowed = 0;
            for (uint64_t i = 0; i < n; ++i) {
              allowed += sluice_check(client, request, kCount, 1, nullptr);
            }
            benchmark::DoNotOptimize(allowed);
          }};
}

constexpr sluice_descriptor_t kPlain[] = {{"classless", 9, kKey, kKeyBytes}};

// By a list of one descriptor, with its decision.
Contender DecisionCheck(const char* name, const sluice_descriptor_t& request) {
  return {name, [client = Stage::Get().client(), &request](uint64_t n) {
            sluice_decision_t decision;
            int allowed = 0;
            for (uint64_t i = 0; i < n; ++i) {
              allowed += sluice_check(client, &request, 1, 1, &decision);
            }
            benchmark::DoNotOptimize(allowed);
          }};
}

// What the rows with an answer stand beside.
Contender PlainDecision() { return DecisionCheck("beside_ns", kPlain[0]); }

// With its buckets and blocks made.
Contenders Made(const Contenders& contenders) {
  for (const Contender& contender : contenders) contender.run(1);
  return contenders;
}

Contenders CheckPriorityKeyed() {
  return Made({KeyedCheck("ns", "classed:sheddable"), KeyedCheck("beside_ns", "hot")});
}

// A request whose class is one of its descriptors, beside one with as many and no priority.
Contenders CheckPriorityList() {
  static constexpr sluice_descriptor_t kClassed[] = {{"classed", 7, kKey, kKeyBytes},
                                                     {"class", 5, "sheddable", 9}};
  static constexpr sluice_descriptor_t kClassless[] = {{"classless", 9, kKey, kKeyBytes},
                                                       {"class", 5, "sheddable", 9}};
  return Made({ListCheck("ns", kClassed), ListCheck("beside_ns", kClassless)});
}

// A list whose request brings its limit, beside one under the rule's own.
Contenders CheckGivenList() {
  static constexpr sluice_descriptor_t kGiven[] = {{"given", 5, kKey, kKeyBytes},
                                                   {"limit", 5, "900000000", 9}};
  static constexpr sluice_descriptor_t kOwn[] = {{"classless", 9, kKey, kKeyBytes},
                                                 {"limit", 5, "900000000", 9}};
  return Made({ListCheck("ns", kGiven), ListCheck("beside_ns", kOwn)});
}

Contenders CheckCandidate() {
  return Made({HandleCheck("ns", "tried"), HandleCheck("beside_ns", "id")});
}

Contenders CheckCalendarWindow() {
  return Made({HandleCheck("ns", "daily"), HandleCheck("beside_ns", "fixed")});
}

// A denial that costs a token, beside one that costs nothing.
Contenders CheckPenaltyDeny() {
  Contenders rows = {HandleCheck("ns", "punished"), HandleCheck("beside_ns", "spent")};
  for (const Contender& row : rows) row.run(100);
  return rows;
}

// A denial whose caller is told a time of his own, beside one without.
Contenders CheckSpreadDeny() {
  static constexpr sluice_descriptor_t kSpread = {"spread", 6, kKey, kKeyBytes};
  static constexpr sluice_descriptor_t kSpent = {"spent", 5, kKey, kKeyBytes};
  Contenders rows = {DecisionCheck("ns", kSpread), DecisionCheck("beside_ns", kSpent)};
  for (const Contender& row : rows) row.run(100);
  return rows;
}

// A rule that says more than yes and no: a soft level, and words about itself.
Contenders CheckLevels() {
  static constexpr sluice_descriptor_t kLevels = {"levels", 6, kKey, kKeyBytes};
  return Made({DecisionCheck("ns", kLevels), PlainDecision()});
}

// An estimate that is reserved and settled.
Contenders ReserveAndSettle() {
  const auto run = [client = Stage::Get().client()](uint64_t n) {
    int settled = 0;
    for (uint64_t i = 0; i < n; ++i) {
      sluice_reservation_t r;
      sluice_reserve(client, kPlain, 1, 10, 1'000'000'000, &r);
      settled += sluice_settle(client, &r, 5);
    }
    Require(settled > 0, "no reservation was settled");
  };
  return Made({{"ns", run}, PlainDecision()});
}

// A request that is checked and then reported to have failed, which gives its token back.
Contenders CheckAndReport() {
  static constexpr sluice_descriptor_t kRequest[] = {{"ended", 5, kKey, kKeyBytes}};
  const auto run = [client = Stage::Get().client()](uint64_t n) {
    uint64_t reported = 0;
    for (uint64_t i = 0; i < n; ++i) {
      sluice_decision_t decision;
      sluice_check(client, kRequest, 1, 1, &decision);
      reported += sluice_report(client, &decision, 503) == 1 ? 1 : 0;
    }
    Require(reported == n, "an outcome gave nothing back");
  };
  return Made({{"ns", run}, PlainDecision()});
}

// A caller that would wait and need not.
Contenders AcquireAtOnce() {
  const auto run = [client = Stage::Get().client()](uint64_t n) {
    sluice_decision_t decision;
    int allowed = 0;
    for (uint64_t i = 0; i < n; ++i) {
      allowed += sluice_acquire(client, kPlain, 1, 1, UINT64_MAX, /*cancel_fd=*/-1, &decision);
    }
    benchmark::DoNotOptimize(allowed);
  };
  return Made({{"ns", run}, PlainDecision()});
}

// The daemon's store beside the slot is a part of the row, once in kHotUnits places.
Contenders EnterAndLeave() {
  static constexpr sluice_descriptor_t kRequest[] = {{"at_once", 7, kKey, kKeyBytes}};
  sluice_t* const client = Stage::Get().client();
  sluice_place_t first;  // makes the bucket; had only where it has been lent to before
  if (sluice_enter(client, kRequest, 1, 1, &first) == 1) sluice_leave(client, &first);
  const auto run = [client](uint64_t n) {
    Stage::Get().Lend("at-once");
    uint64_t left = 0;
    for (uint64_t i = 0; i < n; ++i) {
      sluice_place_t place;
      sluice_enter(client, kRequest, 1, 1, &place);
      left += sluice_leave(client, &place) == 1 ? 1 : 0;
    }
    Require(left == n, "a place was not had or not left");
  };
  return Made({{"ns", run}, PlainDecision()});
}

constexpr CheckRow kRows[] = {
    {"check_priority_keyed", kHotUnits, 1, CheckPriorityKeyed},
    {"check_priority_list", kHotUnits, 1, CheckPriorityList},
    {"check_given_list", kHotUnits, 1, CheckGivenList},
    {"check_calendar_window", kHotUnits, 1, CheckCalendarWindow},
    {"check_candidate", kHotUnits, 1, CheckCandidate},
    {"check_penalty_deny", kHotUnits, 1, CheckPenaltyDeny},
    {"check_spread_deny", kHotUnits, 1, CheckSpreadDeny},
    {"check_levels", kHotUnits, 1, CheckLevels},
    {"check_and_report", kHotUnits, 1, CheckAndReport},
    {"reserve_and_settle", kHotUnits, 1, ReserveAndSettle},
    {"acquire_at_once", kHotUnits, 1, AcquireAtOnce},
    {"enter_and_leave", kHotUnits, 1, EnterAndLeave},
};

}  // namespace

std::span<const CheckRow> FeatureRows() { return kRows; }

}  // namespace sluice::bench
