// One check on a slot whose word holds tokens on loan (Kind::kLease, see credits.h), and its
// refund. As bucket.h for token buckets: nothing here blocks, allocates or calls the kernel.
#pragma once

#include <cstdint>

#include "shm/bucket.h"
#include "shm/credits.h"

namespace sluice::shm::credits {

// What a check of `tokens` meets, and what it leaves behind: spent while the lease lasts, whole or
// not at all.
struct Measured {
  bool allowed;
  uint64_t new_word;        // stored when allowed
  uint64_t remaining;       // tokens; after this check, where it is allowed
  uint64_t retry_after_ns;  // 0 where allowed; kNever where the cost can never fit
  uint64_t reset_after_ns;
};

// `second` is what stands beside the live word `w` of the tenancy `gen`. `trusted`: 0 under a
// strict rule, else what may be spent unsettled (credits.h). `room`: for the request's class, that
// leaves `floor_q16`.
inline Measured Measure(uint64_t w, uint64_t second, uint16_t gen, uint64_t now_ns, uint64_t tokens,
                        const Limit& limit, uint64_t trusted = 0, uint64_t room = kMax,
                        uint16_t floor_q16 = 0) {
  const uint64_t lent = trusted == 0 ? Spendable(w, now_ns) : SpendableLoose(w, trusted);
  const uint64_t spendable = std::min(lent, room);
  Measured m;
  m.allowed = tokens <= spendable;
  m.new_word = m.allowed ? Spent(w, tokens) : w;
  m.remaining = spendable - (m.allowed ? tokens : 0);
  // Until the limit has brought what the class misses.
  const uint64_t missing = tokens - std::min(tokens, room);
  const uint64_t not_before_ns =
      std::max(second::TimeNs(second, gen),
               now_ns + std::min(CostNs(missing, limit.period_ns, limit.limit), limit.tau_ns));
  m.retry_after_ns = m.allowed ? 0 : RetryAfterNs(not_before_ns, now_ns, tokens, limit, floor_q16);
  m.reset_after_ns = ResetAfterNs(m.remaining, limit);
  return m;
}

// CheckSlot for a lease. Precondition: `time` is precise under a strict rule, since nothing may be
// spent after a lease's end. Memory orders as in LookSlot: the word's load pairs with step 4's CAS;
// aux and the second word order nothing; the CAS pairs with nothing of its own.
template <class Cell, class Clock>
inline Outcome CheckLease(BasicSlot<Cell>& slot, const Cell& second, uint64_t fp,
                          const Charge& charge, RequestTime<Clock>& time, Seen* seen) {
  for (int attempt = 0; attempt < kMaxRestarts; ++attempt) {
    if (attempt != 0) time.ReadPrecise();
    const uint64_t w = slot.word.load(std::memory_order_acquire);
    if (word::IsDead(w)) return Outcome::kLost;
    const uint64_t k = slot.key.load(std::memory_order_acquire);  // after the word: I2
    if (key::Fp(k) != fp) return Outcome::kLost;
    seen->word_ns = w;
    seen->aux = slot.aux.load(std::memory_order_relaxed);
    seen->gen = key::Gen(k);
    const Measured m =
        Measure(w, second.load(std::memory_order_relaxed), seen->gen, time.now_ns(), charge.tokens,
                *charge.limit, charge.trusted,
                RoomOf(seen->aux, charge.limit->burst, charge.floor_q16), charge.floor_q16);
    seen->cost_ns = 0;
    seen->verdict = {m.allowed, w, m.new_word};
    seen->remaining = m.remaining;
    seen->retry_after_ns = m.retry_after_ns;
    seen->reset_after_ns = m.reset_after_ns;
    if (!m.allowed && !charge.admit_always) return Outcome::kDenied;
    seen->verdict.allowed = true;
    uint64_t expected = w;
    if (!charge.commit ||
        slot.word.compare_exchange_strong(expected, m.new_word, std::memory_order_acq_rel)) {
      return Outcome::kAllowed;
    }
  }
  return Outcome::kGaveUp;
}

// RefundSlot for a lease, see Refunded. Word before key, in acquire: pairs with step 4's CAS.
template <class Cell>
inline bool RefundLease(BasicSlot<Cell>& slot, uint64_t fp, uint16_t gen, uint64_t spent_word,
                        uint64_t tokens, uint64_t fresh_now_ns) {
  for (int attempt = 0; attempt < kMaxRestarts; ++attempt) {
    uint64_t w = slot.word.load(std::memory_order_acquire);
    if (word::IsDead(w)) return false;
    const uint64_t k = slot.key.load(std::memory_order_acquire);
    if ((fp != 0 && key::Fp(k) != fp) || key::Gen(k) != gen) return false;
    const uint64_t refunded = Refunded(w, spent_word, tokens, fresh_now_ns);
    if (refunded == w) return false;
    if (slot.word.compare_exchange_weak(w, refunded, std::memory_order_acq_rel)) return true;
  }
  return false;
}

}  // namespace sluice::shm::credits
