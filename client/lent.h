// The check of a bucket that is lent out as nearly all of them are: its slot known, no emergency,
// credits in its word or none.
#pragma once

#include "client/admit.h"
#include "client/check.h"

namespace sluice::client {

// Decides as CheckItem does. `fp`: of the bucket's hash, its kind in it (HashOfKind). Path as in
// CheckUsual, but for Contended() and Deny(). Preconditions as there: `now_ns`, by the precise
// clock where the rule is strict, is below the last UsualUntil(), and the slot's shard is healthy.
// Memory orders as in LookSlot and CommitLook: the word's acquire load pairs with step 4's CAS; aux
// is a hint and orders nothing.
template <class Path>
inline int CheckLent(const Path& path, shm::Slot& slot, uint64_t fp, uint64_t now_ns, uint64_t cost,
                     sluice_decision_t* decision) {
  const Rule& rule = path.rule();
  const uint64_t tokens = TokensOf(rule, cost);
  for (int commit = 0; commit < kCommits && cost != 0; ++commit) {
    uint64_t w = slot.word.load(std::memory_order_acquire);
    const uint64_t k = slot.key.load(std::memory_order_acquire);  // after the word: I2
    if (shm::word::IsDead(w) || shm::key::Fp(k) != fp) break;
    if (shm::credits::IsUnsettled(w)) break;
    uint64_t spendable = rule.strict ? shm::credits::Spendable(w, now_ns) : shm::credits::Count(w);
    if (rule.floor_q16 != 0) {
      spendable = std::min(spendable, RoomOf(rule, slot.aux.load(std::memory_order_relaxed)));
    }
    if (tokens > spendable) {
      // Where the daemon is about to look anyway. A hint: orders nothing.
      const bool is_seen = IsTidy(slot.aux.load(std::memory_order_relaxed));
      if (tokens == 1 && decision == nullptr && is_seen &&
          TallyDenied(slot, shm::key::Gen(k), now_ns)) {
        return rule.shadow ? 1 : 0;
      }
      break;
    }
    if (!slot.word.compare_exchange_strong(w, w - tokens, std::memory_order_acq_rel)) continue;
    const uint64_t aux = shm::CountUse(slot, static_cast<uint32_t>(tokens));
    if (!IsTidy(aux) || IsTallyOfOther(slot)) path.Finish(slot);
    if (decision == nullptr) return 1;
    Attempt attempt = {.slot = &slot,
                       .index = IndexOf(path.attachment(), slot),
                       .overflow = false,
                       .emergency = false,
                       .outcome = shm::Outcome::kAllowed,
                       .charge = ChargeOf(rule, cost, /*cost_ns=*/0, /*commit=*/true),
                       .seen = {},
                       .fp = fp};
    const uint64_t left = shm::credits::Count(w) - tokens;
    attempt.seen.word_ns = w;
    attempt.seen.verdict = {true, w, w - tokens};
    attempt.seen.gen = shm::key::Gen(k);
    attempt.seen.remaining = left;
    attempt.seen.reset_after_ns = shm::credits::ResetAfterNs(left, rule.limit);
    return path.Tell(attempt, now_ns, decision);
  }
  return path.Long(cost, decision);
}

}  // namespace sluice::client
