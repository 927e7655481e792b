// What a request costs by how it ended, where its rules say so.
#include <algorithm>

#include "client/check.h"
#include "client/correct.h"

namespace sluice::client {
namespace {

// The tokens that a rule says for a request that ended so; false: it says nothing of it, or the
// rules have changed since.
bool ReadTokens(const Attachment& a, uint64_t policy, uint16_t rule, uint32_t status,
                uint64_t* tokens) {
  const shm::PolicyView view = ViewOf(a, policy);
  const shm::GroupView& group = view.group(view.rule(rule).numbers.group);
  const uint32_t count = std::min<uint32_t>(group.outcome_count, shm::kMaxOutcomes);
  for (uint32_t i = 0; i < count; ++i) {
    const shm::OutcomeView& outcome = view.outcome(group, i);
    if (status < outcome.first_status || status > outcome.last_status) continue;
    *tokens = std::min<uint64_t>(outcome.tokens, SLUICE_MAX_COST);
    return IsInForce(a, policy);
  }
  return false;
}

}  // namespace
}  // namespace sluice::client

using sluice::client::Attachment;
using sluice::client::Clock;

extern "C" int sluice_report(sluice_t* client, sluice_decision_t* decision, uint32_t status) {
  if (client == nullptr || decision == nullptr ||
      decision->spend_count + decision->candidate_count > int{SLUICE_MAX_RULES_PER_REQUEST}) {
    return SLUICE_E_ARGUMENT;
  }
  if (decision->spend_count == 0) return 0;
  const Attachment* const a = client->attacher.current();
  if (a == nullptr || a->generation != decision->generation) return SLUICE_E_STALE;
  sluice::client::Context ctx(client, a, /*coarse_serves=*/false);
  int corrected = 0;
  // Behind the rules their candidates, which are of the same outcomes and are not counted here.
  for (int i = 0; i < decision->spend_count + decision->candidate_count; ++i) {
    sluice_spend_t& spend = decision->spends[i];
    uint64_t tokens = 0;
    if ((spend.flags & sluice::client::kSpent) == 0 ||
        !sluice::client::ReadTokens(*a, decision->policy, spend.rule, status, &tokens)) {
      continue;
    }
    // In tokens, as the rule says them.
    sluice::client::Correct(ctx, decision->policy, spend, tokens, spend.tokens, Clock::PreciseNs());
    spend.flags = static_cast<uint16_t>(spend.flags & ~sluice::client::kSpent);
    corrected += i < decision->spend_count ? 1 : 0;
  }
  return corrected;
}
