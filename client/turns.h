// Turns: a caller with a deadline is told one at once, as far ahead of the present as it would
// wait, and a leaky bucket tells one to every caller. There is no queue: GCRA's word is where the
// next turn is, and who may wait is admitted that much earlier. See docs/waiting.md.
#pragma once

#include <algorithm>
#include <cstdint>

#include "client/plan.h"
#include "shm/bucket.h"

namespace sluice::client {

// How long a rule itself lets any caller wait; 0 but for leaky buckets.
inline uint64_t OwnDelayNs(const Rule& rule) {
  return std::min<uint64_t>(rule.limit.tau_ns, rule.max_delay_ns);
}

// What passes at once under a rule: nobody waits while a bucket's word is no further ahead.
inline uint64_t AtOnceNs(const Rule& rule) { return rule.limit.tau_ns - OwnDelayNs(rule); }

// Whether a caller with a deadline may be told its turn under a rule; a cost that never fits would
// wait in vain.
inline bool HasTurns(const Rule& rule, uint64_t cost_ns) {
  return rule.kind == shm::Kind::kTokenBucket && rule.shadow == 0 && cost_ns <= rule.limit.tau_ns;
}

// How far ahead of the present the turn of such a caller may lie. What stands ahead is debt, so
// that it ends where debt does.
inline uint64_t TurnsNs(const Rule& rule, uint64_t patience_ns) {
  return std::min(patience_ns, OwnDelayNs(rule) + rule.limit.debt_max_ns);
}

// Lets a request come before its time by what its caller would wait: a bucket with a place to wait,
// for this request alone, which may be shorter than a leaky bucket's own. The order of the words is
// the order of the turns. In an emergency that admits everything nobody waits.
inline void ApplyPatience(const Rule& rule, uint64_t patience_ns, shm::Charge* charge) {
  if (charge->admit_always || !HasTurns(rule, charge->cost_ns)) return;
  charge->tau_ns = AtOnceNs(rule) + TurnsNs(rule, patience_ns);
  // What healing takes for wild stays where it was.
  charge->debt_max_ns = rule.limit.tau_ns + rule.limit.debt_max_ns - charge->tau_ns;
}

// A denied item is to be tried again once its word is no further ahead: by the rule, and where the
// deadline is nearer than a leaky bucket's max_delay, by that.
inline uint64_t FitsWithinNs(const Rule& rule, const shm::Charge& charge) {
  return std::min(rule.limit.tau_ns, charge.tau_ns);
}

}  // namespace sluice::client
