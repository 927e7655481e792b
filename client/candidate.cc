#include "client/candidate.h"

#include <algorithm>

namespace sluice::client {
namespace {

// The candidate of `item`, as the policy has it. False where that has changed meanwhile.
bool ReadCandidate(const Attachment& a, const Item& item, uint64_t policy, Rule* rule,
                   Item* tried) {
  const shm::RuleView& view = ViewOf(a, policy).rule(item.candidate);
  *rule = shm::Floored(view.numbers, item.rule->floor_q16);
  const uint64_t hash_seed = view.hash_seed;
  const size_t label_bytes = view.label.length;
  if (!IsInForce(a, policy)) return false;
  *tried = item;
  tried->rule = rule;
  HashItem(a, hash_seed, label_bytes, tried);
  return true;
}

// What it spent is to be given back with the rest, where the answer has room to say so.
void Remember(const Rule& rule, const Attempt& attempt, sluice_decision_t* decision) {
  const size_t at = size_t{decision->spend_count} + decision->candidate_count;
  if (at >= kMaxItems) return;
  decision->spends[at] = SpendOf(rule, attempt, /*spent=*/true, /*denied=*/false, decision->now_ns);
  ++decision->candidate_count;
}

// In the place of its rule it spends where all the others admit, and else only says what it thinks.
// At the time of the answer, as far as its clock serves it.
void Try(const Context& answered, const Item& item, uint64_t policy, uint64_t cost, bool may_spend,
         sluice_decision_t* decision) {
  Rule rule;
  Item tried;
  if (!ReadCandidate(*answered.attachment, item, policy, &rule, &tried)) return;
  Context ctx = answered;
  if (ctx.time.lag_ns() != 0 && !shm::CoarseServes(rule, ctx.client->coarse_step_ns)) {
    ctx.time.ReadPrecise();
  }
  Attempt attempt;
  Locate(ctx, tried, policy, shm::kNoSlot, &attempt);
  attempt.brief = true;
  Run(ctx, tried, policy, cost, may_spend, &attempt);
  if (attempt.outcome == shm::Outcome::kGaveUp) SettleGaveUp(ctx, tried, &attempt);
  if (attempt.outcome == shm::Outcome::kAllowed) {
    if (!attempt.charge.commit) return;
    Account(ctx, tried, policy, attempt);
    if (decision != nullptr) Remember(rule, attempt, decision);
  } else if (!attempt.overflow) {
    NoteRefusal(ctx, tried, policy, attempt);
  }
}

}  // namespace

int CheckTrying(Context& ctx, const Item* items, size_t count, uint64_t policy, uint64_t cost,
                sluice_decision_t* decision) {
  ctx.denied_by = 0;
  const int answer = CheckItems(ctx, items, count, policy, cost, decision);
  if (answer < 0 || ctx.is_looking() || cost == 0) return answer;
  for (size_t i = 0; i < count; ++i) {
    if (items[i].candidate == shm::kNoRule) continue;
    const uint32_t denied_by_others = ctx.denied_by & ~(1u << i);
    Try(ctx, items[i], policy, cost, denied_by_others == 0, decision);
  }
  return answer;
}

}  // namespace sluice::client
