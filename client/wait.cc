// Checks by callers that may wait: for their turn under the limit, or only for what a strict bucket
// is lent within milliseconds.
#include <poll.h>
#include <time.h>

#include <algorithm>

#include "client/candidate.h"
#include "client/check.h"

namespace sluice::client {
namespace {

// Between two looks at the words of a strict bucket: the longer it takes, the rarer. What is lent
// may be taken by another caller first.
constexpr uint64_t kLookNs = 500'000;
constexpr uint64_t kLongestLookNs = 10'000'000;
// Who waits for what is lent asks again so often: what was asked for earlier may have been served
// to others, and forgotten.
constexpr uint64_t kAskAgainNs = 100'000'000;
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

// Whether the request was denied for nothing but that too little is lent to this host.
bool IsForWantOfLent(const sluice_decision_t& d) {
  if (d.allowed != 0 || d.source != SLUICE_SOURCE_RULES || d.retry_after_ns == SLUICE_NEVER) {
    return false;
  }
  for (size_t i = 0; i < std::min<size_t>(d.spend_count, kMaxItems); ++i) {
    if (d.spends[i].rule == d.rule) return KindOfFlags(d.spends[i].flags) == shm::Kind::kLease;
  }
  return false;
}

// Whether each of its strict buckets holds what it takes, as far as a look can tell.
// The load is for a hint and orders nothing.
bool IsLentEnough(const Attachment& a, const sluice_decision_t& d, uint64_t now_ns) {
  if (a.generation != d.generation) return true;
  for (size_t i = 0; i < std::min<size_t>(d.spend_count, kMaxItems); ++i) {
    const sluice_spend_t& spend = d.spends[i];
    if (KindOfFlags(spend.flags) != shm::Kind::kLease || spend.slot >= a.capacity) continue;
    const uint64_t w = a.slots[spend.slot].word.load(std::memory_order_acquire);
    if (shm::word::IsDead(w)) return true;
    if (shm::credits::Spendable(w, now_ns) < spend.tokens) return false;
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

// Whether more is expected in time. kRetryNs is what is said where nothing is known.
bool IsInTime(const sluice_decision_t& d, uint64_t left_ns) {
  return d.retry_after_ns <= std::max(left_ns, shm::credits::kRetryNs);
}

enum class Lent : uint8_t {
  kEnough,    // or it is time to ask again
  kTooLate,   // the time is over, or nothing is expected in time
  kCancelled  // see SleepUntil
};

// Sleeps until what the denied decision asked for seems to be lent.
Lent AwaitLent(sluice_t* client, const sluice_decision_t& d, uint64_t deadline_ns, int cancel_fd) {
  const uint64_t begin_ns = Clock::PreciseNs();
  for (uint64_t now_ns = begin_ns;; now_ns = Clock::PreciseNs()) {
    if (now_ns >= deadline_ns || !IsInTime(d, deadline_ns - now_ns)) return Lent::kTooLate;
    if (IsTallying()) FlushTally(*client);  // else the daemon waits
    const uint64_t look_ns = std::clamp((now_ns - begin_ns) / 16, kLookNs, kLongestLookNs);
    if (!SleepUntil(std::min(now_ns + look_ns, deadline_ns), cancel_fd)) return Lent::kCancelled;
    const Attachment* const a = AttachmentOf(client);
    const uint64_t woken_ns = Clock::PreciseNs();
    if (a == nullptr || woken_ns - begin_ns >= kAskAgainNs || IsLentEnough(*a, d, woken_ns)) {
      return Lent::kEnough;
    }
  }
}

// One request by a caller that waits until `deadline_ns`. `*beyond_ns`: what a denied request came
// too early by beyond all patience; it is tried again then.
int CheckWithPatience(sluice_t* client, const sluice_descriptor_t* descriptors, size_t count,
                      uint64_t cost, uint64_t deadline_ns, sluice_decision_t* d,
                      uint64_t* beyond_ns) {
  const Attachment* const a = AttachmentOf(client);
  if (a == nullptr) return AnswerDefault(client, 0, d);
  Plan plan;
  const int built =
      BuildPlan(*a, client->coarse_step_ns, descriptors, count, &client->shapes, &plan);
  if (built != 0) return AnswerDefault(client, built, d);
  if (plan.count == 0) return AnswerNoMatch(d);
  Context ctx(client, a, /*coarse_serves=*/false);
  const uint64_t now_ns = ctx.time.now_ns();
  ctx.patience_ns = deadline_ns > now_ns ? deadline_ns - now_ns : 0;
  const int answer = CheckPlan(ctx, plan, cost, d);
  *beyond_ns = d->retry_after_ns;
  if (d->source == SLUICE_SOURCE_EMERGENCY) return answer;  // no turn is to be had
  for (size_t i = 0; i < plan.count; ++i) {
    const Rule& rule = *plan.items[i].rule;
    if (rule.id != d->rule) continue;
    const uint64_t waits_ns = PatienceOf(rule, CostNs(rule, cost), ctx.patience_ns);
    *beyond_ns -= std::min(*beyond_ns, waits_ns);
  }
  return answer;
}

// When to try again what was denied with `beyond_ns` to go. Those whose turns lie beyond what may
// be told in advance do not come back together: the turns that are told reach far enough for them
// to come later, so that no time is lost.
uint64_t AgainNs(const sluice_decision_t& d, uint64_t beyond_ns, uint64_t deadline_ns) {
  uint64_t spare_ns = (deadline_ns - d.now_ns - d.retry_after_ns) / 2;
  spare_ns = std::min(spare_ns, (d.retry_after_ns - beyond_ns) / 2);
  uint64_t seed = Clock::PreciseNs() ^ reinterpret_cast<uintptr_t>(&spare_ns);
  const uint64_t later_ns = spare_ns == 0 ? 0 : shm::SplitMix64(seed) % spare_ns;
  return d.now_ns + std::max(beyond_ns, kShortestPauseNs) + later_ns;
}

int Cancelled(sluice_t* client, sluice_decision_t* d) {
  if (d->allowed != 0) {
    sluice_refund(client, d);
    d->allowed = 0;
    d->delay_ns = 0;
  }
  return SLUICE_E_CANCELLED;
}

int Acquire(sluice_t* client, const sluice_descriptor_t* descriptors, size_t count, uint64_t cost,
            uint64_t deadline_ns, int cancel_fd, sluice_decision_t* d) {
  for (;;) {
    uint64_t beyond_ns = 0;
    const int answer =
        CheckWithPatience(client, descriptors, count, cost, deadline_ns, d, &beyond_ns);
    if (answer < 0 || d->source == SLUICE_SOURCE_DEFAULT) return answer;
    if (answer > 0) {
      if (d->delay_ns == 0) return answer;
      if (IsTallying()) FlushTally(*client);  // not after a long sleep
      return SleepUntil(d->now_ns + d->delay_ns, cancel_fd) ? answer : Cancelled(client, d);
    }
    if (d->retry_after_ns == SLUICE_NEVER) return answer;
    if (IsForWantOfLent(*d)) {
      const Lent lent = AwaitLent(client, *d, deadline_ns, cancel_fd);
      if (lent == Lent::kTooLate) return answer;
      if (lent == Lent::kCancelled) return Cancelled(client, d);
      continue;
    }
    if (deadline_ns <= d->now_ns || d->retry_after_ns > deadline_ns - d->now_ns) return answer;
    if (IsTallying()) FlushTally(*client);
    if (!SleepUntil(AgainNs(*d, beyond_ns, deadline_ns), cancel_fd)) return Cancelled(client, d);
  }
}

// Whether there is something to read already; an error where it is no descriptor of a file.
int IsCancelled(int cancel_fd) {
  if (cancel_fd < 0) return 0;
  pollfd cancel = {.fd = cancel_fd, .events = POLLIN, .revents = 0};
  if (poll(&cancel, 1, 0) <= 0) return 0;
  return (cancel.revents & POLLNVAL) != 0 ? SLUICE_E_ARGUMENT : SLUICE_E_CANCELLED;
}

}  // namespace
}  // namespace sluice::client

using sluice::client::AnswerDefault;
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
             sluice::client::Lent::kEnough) {
    answer = sluice_check(client, descriptors, count, cost, d);
  }
  return answer;
}

int sluice_acquire(sluice_t* client, const sluice_descriptor_t* descriptors, size_t count,
                   uint64_t cost, uint64_t deadline_ns, int cancel_fd,
                   sluice_decision_t* decision) {
  if (client == nullptr) return SLUICE_E_ARGUMENT;
  sluice_decision_t own;
  sluice_decision_t* const d = decision != nullptr ? decision : &own;
  if (cost - 1 >= SLUICE_MAX_COST || (descriptors == nullptr && count != 0)) {
    return AnswerDefault(client, SLUICE_E_ARGUMENT, d);
  }
  if (const int cancelled = sluice::client::IsCancelled(cancel_fd); cancelled != 0) {
    AnswerDefault(client, cancelled, d);
    if (cancelled == SLUICE_E_CANCELLED) d->allowed = 0;
    return cancelled;
  }
  return sluice::client::Acquire(client, descriptors, count, cost, deadline_ns, cancel_fd, d);
}

}  // extern "C"
