// Checks by callers that may wait: for their turn under the limit, for a place of a request in
// flight, or only for what a strict bucket is lent within milliseconds.
#include <poll.h>
#include <time.h>

#include <algorithm>
#include <cstring>

#include "client/candidate.h"
#include "client/check.h"

namespace sluice::client {
namespace {

// How a caller looks for what it waits for: a look is counted nowhere, and what it sees may be
// taken by another caller first.
struct Pace {
  uint64_t part;  // of the time that it has waited, between two looks: the longer, the rarer
  uint64_t shortest_ns;
  uint64_t longest_ns;
  // It asks again so often, seen or not: what was asked for earlier may have been served to others,
  // and forgotten.
  uint64_t ask_again_ns;
};
constexpr Pace kLentPace = {16, 500'000, 10'000'000, 100'000'000};
// The daemon remembers for 1.5 s who was denied a place. One who waits is the first, and looks more
// often.
constexpr Pace kPlacePace = {4, 1'000'000, 50'000'000, 500'000'000};
constexpr uint64_t kLongestFirstNs = 10'000'000;
// What is tried again is tried after so long at least.
constexpr uint64_t kShortestPauseNs = 100'000;

timespec TimespecOf(uint64_t ns) {
  return {static_cast<time_t>(ns / 1'000'000'000), static_cast<long>(ns % 1'000'000'000)};
}

// Sleeps until `until_ns`; false where a signal came first, or `cancel_fd` has something to read.
bool SleepUntil(uint64_t until_ns, int cancel_fd) {
  if (cancel_fd < 0) {
    const timespec until = TimespecOf(until_ns);
    return clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, nullptr) == 0;
  }
  pollfd cancel = {.fd = cancel_fd, .events = POLLIN, .revents = 0};
  for (uint64_t now_ns = Clock::PreciseNs(); now_ns < until_ns; now_ns = Clock::PreciseNs()) {
    const timespec left = TimespecOf(until_ns - now_ns);
    if (ppoll(&cancel, 1, &left, nullptr) != 0) return false;
  }
  return true;
}

// Whether a rule of that kind denied the request, but may not for ever.
bool IsDeniedBy(const sluice_decision_t& d, shm::Kind kind) {
  if (d.allowed != 0 || d.retry_after_ns == SLUICE_NEVER) return false;
  for (size_t i = 0; i < std::min<size_t>(d.spend_count, kMaxItems); ++i) {
    if (d.spends[i].rule == d.rule) return KindOfFlags(d.spends[i].flags) == kind;
  }
  return false;
}

// Whether the request was denied for nothing but that too little is lent to this host.
bool IsForWantOfLent(const sluice_decision_t& d) {
  return d.source == SLUICE_SOURCE_RULES && IsDeniedBy(d, shm::Kind::kLease);
}

// The same of a free place; nobody knows when one is left.
bool IsForWantOfPlace(const sluice_decision_t& d) { return IsDeniedBy(d, shm::Kind::kInFlight); }

// Whether each of its strict buckets holds what it takes, as far as a look can tell.
// The loads are for a hint and order nothing.
bool IsLentEnough(const Attachment& a, const sluice_decision_t& d, uint64_t now_ns) {
  if (a.generation != d.generation) return true;
  for (size_t i = 0; i < std::min<size_t>(d.spend_count, kMaxItems); ++i) {
    const sluice_spend_t& spend = d.spends[i];
    if (KindOfFlags(spend.flags) != shm::Kind::kLease || spend.slot >= a.capacity) continue;
    const uint64_t w = a.slots[spend.slot].word.load(std::memory_order_acquire);
    if (shm::word::IsDead(w)) return true;
    if (shm::credits::Spendable(w, now_ns) < spend.tokens) return false;
    const uint64_t aux = a.slots[spend.slot].aux.load(std::memory_order_relaxed);
    if (spend.rule == d.rule &&
        shm::credits::RoomOf(aux, d.burst, spend.floor_q16) < spend.tokens) {
      return false;
    }
  }
  return true;
}

// How long the caller waits: for `max_wait_ns`, and no longer than the rule says where it does.
uint64_t BoundOf(const Attachment* a, const sluice_decision_t& d, uint64_t max_wait_ns) {
  uint64_t said_ms = 0;
  if (a != nullptr && a->generation == d.generation) {
    const uint64_t wait_ms = shm::WaitMsOf(ViewOf(*a, d.policy).rule(d.rule).numbers);
    if (IsInForce(*a, d.policy)) said_ms = wait_ms;
  }
  if (said_ms != 0) return std::min(max_wait_ns, said_ms * 1'000'000);
  return max_wait_ns >= SLUICE_WAIT_BY_RULE ? 0 : max_wait_ns;
}

// Until when what was denied may be expected in time. kRetryNs is what is said where nothing is
// known.
uint64_t InTimeUntilNs(const sluice_decision_t& d, uint64_t deadline_ns) {
  if (d.retry_after_ns <= shm::credits::kRetryNs) return deadline_ns;
  return deadline_ns - std::min(deadline_ns, d.retry_after_ns);
}

enum class Seen : uint8_t {
  kLikely,    // what is waited for is there, or it is time to ask again
  kTooLate,   // the time is over
  kCancelled  // see SleepUntil
};

// A part of `most_ns` by chance, lest those who began together come back together.
uint64_t AnyUpTo(uint64_t most_ns) {
  uint64_t seed = Clock::PreciseNs() ^ reinterpret_cast<uintptr_t>(&most_ns);
  return most_ns == 0 ? 0 : shm::SplitMix64(seed) % most_ns;
}

// Sleeps until `is_there` says so, which looks; at most until `until_ns`. `begin_ns`: since when
// the caller waits.
template <class Look>
Seen AwaitSight(sluice_t* client, const Pace& pace, uint64_t begin_ns, uint64_t until_ns,
                int cancel_fd, Look is_there) {
  const uint64_t asked_ns = Clock::PreciseNs();
  for (uint64_t now_ns = asked_ns;; now_ns = Clock::PreciseNs()) {
    if (now_ns >= until_ns) return Seen::kTooLate;
    if (IsTallying()) FlushTally(*client);  // else the daemon waits
    const uint64_t waited_ns = now_ns - std::min(now_ns, begin_ns);
    uint64_t look_ns = std::clamp(waited_ns / pace.part, pace.shortest_ns, pace.longest_ns);
    look_ns -= AnyUpTo(look_ns / 4);
    if (!SleepUntil(std::min(now_ns + look_ns, until_ns), cancel_fd)) return Seen::kCancelled;
    const uint64_t woken_ns = Clock::PreciseNs();
    if (woken_ns - asked_ns >= pace.ask_again_ns || is_there(woken_ns)) return Seen::kLikely;
  }
}

// Sleeps until what the denied decision asked for seems to be lent.
Seen AwaitLent(sluice_t* client, const sluice_decision_t& d, uint64_t deadline_ns, int cancel_fd) {
  return AwaitSight(client, kLentPace, /*begin_ns=*/Clock::PreciseNs(),
                    InTimeUntilNs(d, deadline_ns), cancel_fd, [client, &d](uint64_t now_ns) {
                      const Attachment* const a = AttachmentOf(client);
                      return a == nullptr || IsLentEnough(*a, d, now_ns);
                    });
}

// A request whose caller waits.
struct Waiting {
  sluice_t* client;
  const sluice_descriptor_t* descriptors;
  size_t count;
  uint64_t cost;
  uint64_t deadline_ns;
  int cancel_fd;
  bool enters;
  // See Context.
  uint64_t came_ns = 0;
  bool has_found_full = false;
  bool is_first = false;
};

// Of a denied request that may be tried again.
struct Later {
  uint64_t turn_ns = 0;    // from now, as far as is known
  uint64_t beyond_ns = 0;  // from now, until its turn is near enough to be told
};

// Asks once. `*later`: where it is denied. `*name`: what it entered by, where it did. `looking`:
// null, or it only looks.
int Ask(Waiting& w, Absent* looking, sluice_decision_t* d, Later* later, uint64_t* name) {
  sluice_t* const client = w.client;
  *name = 0;
  const Attachment* const a = AttachmentOf(client);
  if (a == nullptr) return AnswerDefault(client, 0, d);
  Plan plan;
  const int built =
      BuildPlan(*a, client->coarse_step_ns, w.descriptors, w.count, &client->shapes, &plan);
  if (built != 0) return AnswerDefault(client, built, d);
  if (plan.count == 0) return AnswerNoMatch(d);
  Context ctx(client, a, /*coarse_serves=*/false, looking);
  if (w.enters && !NameEntry(ctx)) return AnswerDefault(client, 0, d);
  const uint64_t now_ns = ctx.time.now_ns();
  ctx.has_deadline = true;
  ctx.patience_ns = w.deadline_ns > now_ns ? w.deadline_ns - now_ns : 0;
  if (w.came_ns == 0) w.came_ns = now_ns;
  ctx.came_ns = w.came_ns;
  ctx.has_found_full = w.has_found_full;
  const int answer = CheckPlan(ctx, plan, w.cost, d);
  w.has_found_full = ctx.has_found_full;
  w.is_first = ctx.is_first;
  if (answer > 0) *name = ctx.place_name;
  *later = {.turn_ns = d->retry_after_ns, .beyond_ns = d->retry_after_ns};
  if (d->source == SLUICE_SOURCE_EMERGENCY) return answer;  // no turn is to be had
  for (size_t i = 0; i < plan.count; ++i) {
    const Rule& rule = *plan.items[i].rule;
    if (rule.id != d->rule || !HasTurns(rule, CostNs(rule, w.cost))) continue;
    const uint64_t told_ns = TurnsNs(rule, ctx.patience_ns);
    // It is told when it fits, and fits before its turn by what the rule itself lets it wait.
    later->turn_ns += std::min(told_ns, OwnDelayNs(rule));
    later->beyond_ns = later->turn_ns - std::min(later->turn_ns, told_ns);
  }
  return answer;
}

// Sleeps until a place seems to be free, and the other rules seem to admit the request, or one of
// them is why it is denied now.
Seen AwaitPlace(Waiting& w) {
  Pace pace = kPlacePace;
  return AwaitSight(w.client, pace, w.came_ns, w.deadline_ns, w.cancel_fd, [&w, &pace](uint64_t) {
    Absent absent;
    sluice_decision_t d;
    Later later;
    uint64_t name = 0;
    const int answer = Ask(w, &absent, &d, &later, &name);
    pace.longest_ns = w.is_first ? kLongestFirstNs : kPlacePace.longest_ns;
    return answer != 0 || !IsForWantOfPlace(d);
  });
}

// When to try again what was denied. Those whose turns lie beyond what may be told in advance do
// not come back together: the turns that are told reach far enough for them to come later, so that
// no time is lost.
uint64_t AgainNs(const sluice_decision_t& d, const Later& later, uint64_t deadline_ns) {
  uint64_t spare_ns = (deadline_ns - d.now_ns - later.turn_ns) / 2;
  spare_ns = std::min(spare_ns, (later.turn_ns - later.beyond_ns) / 2);
  return d.now_ns + std::max(later.beyond_ns, kShortestPauseNs) + AnyUpTo(spare_ns);
}

int Cancelled(sluice_t* client, sluice_decision_t* d) {
  if (d->allowed != 0) {
    sluice_refund(client, d);
    d->allowed = 0;
    d->delay_ns = 0;
  }
  return SLUICE_E_CANCELLED;
}

// The answer, when it is final. `*name` as of Ask: what the caller holds then.
int AnswerInTime(Waiting& w, sluice_decision_t* d, uint64_t* name) {
  for (;;) {
    Later later;
    const int answer = Ask(w, /*looking=*/nullptr, d, &later, name);
    if (answer < 0 || d->source == SLUICE_SOURCE_DEFAULT) return answer;
    if (answer > 0) {
      if (d->delay_ns == 0) return answer;
      if (IsTallying()) FlushTally(*w.client);  // not after a long sleep
      // An emergency that admits everything may tell a delay beyond the deadline.
      const uint64_t until_ns = std::min(d->now_ns + d->delay_ns, w.deadline_ns);
      if (SleepUntil(until_ns, w.cancel_fd)) return answer;
      *name = 0;
      return Cancelled(w.client, d);
    }
    if (d->retry_after_ns == SLUICE_NEVER) return answer;
    if (IsForWantOfLent(*d) || IsForWantOfPlace(*d)) {
      const Seen seen = IsForWantOfPlace(*d) ? AwaitPlace(w)
                                             : AwaitLent(w.client, *d, w.deadline_ns, w.cancel_fd);
      if (seen == Seen::kTooLate) return answer;
      if (seen == Seen::kCancelled) return Cancelled(w.client, d);
      continue;
    }
    if (w.deadline_ns <= d->now_ns || later.turn_ns > w.deadline_ns - d->now_ns) return answer;
    if (IsTallying()) FlushTally(*w.client);
    if (!SleepUntil(AgainNs(*d, later, w.deadline_ns), w.cancel_fd)) {
      return Cancelled(w.client, d);
    }
  }
}

// Whether there is something to read already; an error where it is no descriptor of a file.
int IsCancelled(int cancel_fd) {
  if (cancel_fd < 0) return 0;
  pollfd cancel = {.fd = cancel_fd, .events = POLLIN, .revents = 0};
  if (poll(&cancel, 1, 0) <= 0) return 0;
  return (cancel.revents & POLLNVAL) != 0 ? SLUICE_E_ARGUMENT : SLUICE_E_CANCELLED;
}

// The whole of a call: what is wrong with it, whether it is cancelled already, and the answer.
int Serve(Waiting w, sluice_decision_t* d, uint64_t* name) {
  *name = 0;
  if (w.cost - 1 >= SLUICE_MAX_COST || (w.descriptors == nullptr && w.count != 0)) {
    return AnswerDefault(w.client, SLUICE_E_ARGUMENT, d);
  }
  if (const int cancelled = IsCancelled(w.cancel_fd); cancelled != 0) {
    AnswerDefault(w.client, cancelled, d);
    if (cancelled == SLUICE_E_CANCELLED) d->allowed = 0;
    return cancelled;
  }
  return AnswerInTime(w, d, name);
}

}  // namespace
}  // namespace sluice::client

using sluice::client::Clock;

extern "C" {

int sluice_check_wait(sluice_t* client, const sluice_descriptor_t* descriptors, size_t count,
                      uint64_t cost, uint64_t max_wait_ns, sluice_decision_t* decision) {
  sluice_decision_t own;
  sluice_decision_t* const d = decision != nullptr ? decision : &own;
  int answer = sluice_check(client, descriptors, count, cost, d);
  if (answer != 0 || !sluice::client::IsForWantOfLent(*d)) return answer;
  const uint64_t bound_ns =
      sluice::client::BoundOf(sluice::client::AttachmentOf(client), *d, max_wait_ns);
  const uint64_t deadline_ns = Clock::PreciseNs() + bound_ns;
  while (answer == 0 && sluice::client::IsForWantOfLent(*d) &&
         sluice::client::AwaitLent(client, *d, deadline_ns, /*cancel_fd=*/-1) ==
             sluice::client::Seen::kLikely) {
    answer = sluice_check(client, descriptors, count, cost, d);
  }
  return answer;
}

int sluice_acquire(sluice_t* client, const sluice_descriptor_t* descriptors, size_t count,
                   uint64_t cost, uint64_t deadline_ns, int cancel_fd,
                   sluice_decision_t* decision) {
  if (client == nullptr) return SLUICE_E_ARGUMENT;
  sluice_decision_t own;
  uint64_t name = 0;
  return sluice::client::Serve(
      {client, descriptors, count, cost, deadline_ns, cancel_fd, /*enters=*/false},
      decision != nullptr ? decision : &own, &name);
}

int sluice_enter_until(sluice_t* client, const sluice_descriptor_t* descriptors, size_t count,
                       uint64_t cost, uint64_t deadline_ns, int cancel_fd, sluice_place_t* place) {
  if (client == nullptr || place == nullptr) return SLUICE_E_ARGUMENT;
  std::memset(place, 0, offsetof(sluice_place_t, decision) + offsetof(sluice_decision_t, spends));
  return sluice::client::Serve(
      {client, descriptors, count, cost, deadline_ns, cancel_fd, /*enters=*/true}, &place->decision,
      &place->name);
}

}  // extern "C"
