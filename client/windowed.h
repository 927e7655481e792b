// The check of a window as nearly all of them are: its slot known, no emergency.
#pragma once

#include "client/admit.h"
#include "client/check.h"
#include "shm/window_slot.h"

namespace sluice::client {

// Decides as CheckItem does; arguments and preconditions as of CheckLent.
// The look at aux is a hint: it orders nothing.
template <class Path>
inline int CheckWindowed(const Path& path, shm::Slot& slot, uint64_t fp, uint64_t now_ns,
                         uint64_t cost, sluice_decision_t* decision) {
  if (cost == 0) return path.Long(cost, decision);
  const Attachment& a = path.attachment();
  const Rule& rule = path.rule();
  const uint32_t index = IndexOf(a, slot);
  Attempt attempt = {.slot = &slot,
                     .index = index,
                     .overflow = false,
                     .emergency = false,
                     .outcome = shm::Outcome::kLost,
                     .charge = ChargeOf(rule, cost, /*cost_ns=*/0, /*commit=*/true),
                     .seen = {},
                     .fp = fp};
  attempt.charge.ends = shm::EndsOf(*a.control, rule);
  Time time = Time::Of(now_ns, /*lag_ns=*/0);
  attempt.outcome = shm::window::CheckWindow(slot, &a.second[index], fp, attempt.charge, time,
                                             TableOf(a), &attempt.seen);
  if (attempt.outcome == shm::Outcome::kAllowed) {
    const uint64_t aux = shm::CountUses(slot, attempt.charge.tokens);
    if (!IsTidy(aux) || IsTallyOfOther(slot)) path.Finish(slot);
    return decision == nullptr ? 1 : path.Tell(attempt, time.now_ns(), decision);
  }
  if (attempt.outcome == shm::Outcome::kDenied && decision == nullptr &&
      IsTidy(slot.aux.load(std::memory_order_relaxed)) &&
      TallyDenied(slot, attempt.seen.gen, now_ns)) {
    return rule.shadow ? 1 : 0;
  }
  return path.Long(cost, decision);
}

}  // namespace sluice::client
