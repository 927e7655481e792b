// Candidates: limits that are tried beside those in force. Once a request is answered, each limit
// that has one is asked what it would have said in the place of its own: it spends and denies in
// buckets of its own, and the answer is not touched.
#pragma once

#include "client/check.h"

namespace sluice::client {

// CheckItems, and what the candidates of the items' rules would have said. A check that only looks
// tries none. Nor does one that meets a change of the rules.
int CheckTrying(Context& ctx, const Item* items, size_t count, uint64_t policy, uint64_t cost,
                sluice_decision_t* decision);

// Precondition: plan.count != 0.
inline int CheckPlan(Context& ctx, const Plan& plan, uint64_t cost, sluice_decision_t* decision) {
  if (plan.tries) [[unlikely]] {
    return CheckTrying(ctx, plan.items, plan.count, plan.policy, cost, decision);
  }
  return CheckItems(ctx, plan.items, plan.count, plan.policy, cost, decision);
}

}  // namespace sluice::client
