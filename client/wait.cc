// Checks by callers that may wait: a strict bucket that holds nothing here is lent some within
// milliseconds.
#include <time.h>

#include <algorithm>

#include "client/check.h"

namespace sluice::client {
namespace {

// Between two looks at the words. What is lent may be taken by another caller first.
constexpr uint64_t kLookNs = 500'000;

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

}  // namespace
}  // namespace sluice::client

using sluice::client::Attachment;
using sluice::client::Clock;

extern "C" int sluice_check_wait(sluice_t* client, const sluice_descriptor_t* descriptors,
                                 size_t count, uint32_t cost, uint64_t max_wait_ns,
                                 sluice_decision_t* decision) {
  sluice_decision_t own;
  sluice_decision_t* const d = decision != nullptr ? decision : &own;
  int answer = sluice_check(client, descriptors, count, cost, d);
  if (answer != 0 || !sluice::client::IsForWantOfLent(*d)) return answer;
  const uint64_t bound_ns =
      sluice::client::BoundOf(sluice::client::AttachmentOf(client), *d, max_wait_ns);
  const uint64_t begin_ns = Clock::PreciseNs();
  while (answer == 0 && sluice::client::IsForWantOfLent(*d)) {
    const uint64_t waited_ns = Clock::PreciseNs() - begin_ns;
    if (waited_ns >= bound_ns || !sluice::client::IsInTime(*d, bound_ns - waited_ns)) break;
    if (sluice::client::IsTallying()) sluice::client::FlushTally(*client);  // else the daemon waits
    const uint64_t pause_ns = std::min(sluice::client::kLookNs, bound_ns - waited_ns);
    const timespec pause = {0, static_cast<long>(pause_ns)};
    if (clock_nanosleep(CLOCK_MONOTONIC, 0, &pause, nullptr) != 0) break;  // a signal
    const Attachment* const a = sluice::client::AttachmentOf(client);
    if (a != nullptr && !sluice::client::IsLentEnough(*a, *d, Clock::PreciseNs())) continue;
    answer = sluice_check(client, descriptors, count, cost, d);
  }
  return answer;
}
