// A bucket that is lent out while nobody lends (an emergency under `degrade`): the host goes on
// alone, by a theoretical arrival time in the bucket's second word, dearer by its share and the
// rule's factor.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "shm/bucket.h"
#include "shm/credits.h"

namespace sluice::shm {

// As CheckSlot, on `second`, the second word of `slot`. *seen is filled for kAllowed and kDenied;
// its verdict.new_ns is no word of the slot, so that nothing is given back.
// Memory orders: the word's load pairs with step 4's CAS (I2); the second word carries its gen, and
// the CAS hands it on.
template <class Cell, class Clock>
inline Outcome CheckAlone(BasicSlot<Cell>& slot, Cell& second, uint64_t fp, const Charge& charge,
                          RequestTime<Clock>& time, Seen* seen) {
  const Limit& limit = *charge.limit;
  for (int attempt = 0; attempt < kMaxRestarts; ++attempt) {
    const uint64_t now_ns = time.now_ns();
    const uint64_t w = slot.word.load(std::memory_order_acquire);
    const uint64_t k = slot.key.load(std::memory_order_acquire);
    if (word::IsDead(w) || key::Fp(k) != fp) return Outcome::kLost;
    seen->word_ns = w;
    seen->aux = slot.aux.load(std::memory_order_relaxed);
    seen->gen = key::Gen(k);
    const uint32_t told = aux::InvShare(seen->aux) & ~credits::fill::kMask;
    const uint32_t dearer = Dearer(told != 0 ? told : charge.alone_inv_share, charge.dearer_q16);
    seen->cost_ns =
        SharedCostNs(CostNs(charge.tokens, limit.period_ns, limit.limit), dearer, limit.tau_ns);
    uint64_t before = second.load(std::memory_order_acquire);
    // No further ahead than a whole burst, whoever wrote it.
    const uint64_t tat_ns =
        std::min(std::max(credits::second::TimeNs(before, seen->gen), charge.alone_full_ns),
                 now_ns + limit.tau_ns + KeptNs(limit, charge.floor_q16));
    const Verdict v = Decide(tat_ns, now_ns, seen->cost_ns, limit.tau_ns);
    const uint64_t after_ns = v.allowed ? v.new_ns : v.base_ns;
    const uint64_t per_token =
        std::max<uint64_t>(SharedCostNs(limit.interval_ns, dearer, limit.tau_ns), 1);
    seen->verdict = {v.allowed, 0, 0};
    seen->remaining = Remaining(after_ns, now_ns, per_token, limit.tau_ns);
    seen->retry_after_ns = RetryAfterNs(v, now_ns, seen->cost_ns, limit.tau_ns);
    seen->reset_after_ns = ResetAfterNs(after_ns, now_ns);
    if (!v.allowed) return Outcome::kDenied;
    // Kept in whole microseconds, rounded up.
    const uint64_t stored = credits::second::Make(seen->gen, v.new_ns + 999);
    if (!charge.commit ||
        second.compare_exchange_strong(before, stored, std::memory_order_acq_rel)) {
      return Outcome::kAllowed;
    }
  }
  return Outcome::kGaveUp;
}

}  // namespace sluice::shm
