// Checks on items: find the slot, see whether its shard is degraded, decide, account. What handles,
// bound rules and lists of descriptors share.
#pragma once

#include <cstdint>

#include "client/client.h"
#include "client/denials.h"
#include "client/plan.h"
#include "shm/bucket.h"
#include "shm/clock.h"

namespace sluice::client {

using Clock = shm::MonotonicClock;
using Time = shm::RequestTime<Clock>;
using Table = shm::SlotTable<std::atomic<uint64_t>>;

// Retry-after under `when_degraded: closed`, where nobody knows how long: the daemon's breaker
// looks again at least this often.
inline constexpr uint64_t kClosedRetryNs = 1'000'000'000;

// Bits of sluice_spend_t.flags.
inline constexpr uint16_t kSpent = 1;
inline constexpr uint16_t kOverflowSlot = 2;

struct Context {
  sluice_t* client;
  const Attachment* attachment;
  Table table;
  uint64_t fork_epoch;
  Time time;

  Context(sluice_t* c, const Attachment* a, bool coarse_serves)
      : client(c),
        attachment(a),
        table(a->slots, a->capacity, a->counters),
        fork_epoch(c->attacher.fork_epoch()),
        time(coarse_serves, c->coarse_step_ns) {
    c->attacher.Step(time.now_ns());
  }
};

// The state of one item's check.
struct Attempt {
  shm::Slot* slot;
  uint32_t index;  // of the slot, or of the overflow bucket
  bool overflow;
  bool emergency;
  shm::Outcome outcome;
  shm::Charge charge;
  shm::Seen seen;
  uint64_t fp;
};

// What an emergency makes of a rule. `since_ns`: when it began.
struct Degraded {
  bool is = false;
  uint64_t since_ns = 0;
};

// True where the daemon reconciles but its heartbeat has stopped, or the slot's shard is in
// emergency. A daemon without Redis may die: local decisions are exact all the same.
inline Degraded DegradedNow(const Attachment& a, uint64_t aux, uint64_t now_ns) {
  const shm::ControlHeader& control = *a.control;
  if (control.reconciling.load(std::memory_order_relaxed) == 0) return {};
  const uint64_t beat = control.heartbeat_ns.load(std::memory_order_relaxed);
  if (now_ns > beat + shm::kHeartbeatFreshNs) [[unlikely]] {
    return {true, beat + shm::kHeartbeatFreshNs};
  }
  const uint32_t shard = shm::aux::Shard(aux);
  const uint64_t state =
      a.shard_states[shard < a.shard_count ? shard : 0].load(std::memory_order_relaxed);
  if (shm::shard_state::Mode(state) != shm::ShardMode::kEmergency) [[likely]] {
    return {};
  }
  return {true, shm::shard_state::SinceNs(state)};
}

// Finds or claims the item's slot, or the rule's overflow bucket where the neighbourhood is full.
// `hint`: a slot to look at first, or kNoSlot.
void Locate(Context& ctx, const Item& item, uint64_t policy, uint32_t hint, Attempt* attempt);

// Rare states: emergency (mode and factor), a wanted text.
bool ApplyDegraded(const Item& item, const Degraded& degraded, uint64_t now_ns, Attempt* attempt);
void WriteText(Context& ctx, const Item& item, uint64_t policy, uint32_t index);

// The charge of one item for `cost` units; false where it can never be computed (cost too large:
// then it can never fit either).
inline void SetCharge(const Item& item, uint32_t cost, bool commit, shm::Charge* charge) {
  charge->cost_ns = cost == 1   ? item.rule->unit_ns
                    : cost == 0 ? 0
                                : shm::CostNs(uint64_t{cost} * item.rule->cost,
                                              item.rule->period_ns, item.rule->limit);
  charge->tau_ns = item.rule->tau_ns;
  charge->debt_max_ns = item.rule->debt_max_ns;
  charge->tokens = cost * item.rule->cost;
  charge->dearer_q16 = 0;
  charge->admit_always = false;
  charge->commit = commit && cost != 0;
}

// One item, to its end: kAllowed (committed where asked) or kDenied. attempt->slot may be changed.
inline void Run(Context& ctx, const Item& item, uint64_t policy, uint32_t cost, bool commit,
                Attempt* attempt) {
  SetCharge(item, cost, commit, &attempt->charge);
  for (int restart = 0; restart < shm::kMaxRestarts; ++restart) {
    attempt->emergency = false;
    const Degraded degraded = DegradedNow(
        *ctx.attachment, attempt->slot->aux.load(std::memory_order_relaxed), ctx.time.now_ns());
    if (degraded.is) [[unlikely]] {
      if (!ApplyDegraded(item, degraded, ctx.time.now_ns(), attempt)) return;
    }
    attempt->outcome = shm::CheckSlot(*attempt->slot, attempt->fp, attempt->charge, ctx.time,
                                      ctx.table, &attempt->seen);
    if (attempt->outcome == shm::Outcome::kAllowed || attempt->outcome == shm::Outcome::kDenied)
        [[likely]] {
      return;
    }
    if (attempt->outcome == shm::Outcome::kGaveUp) break;
    Locate(ctx, item, policy, shm::kNoSlot, attempt);
  }
  attempt->outcome = shm::Outcome::kGaveUp;
}

// After a committed kAllowed: the tokens are to be seen by the daemon.
inline void Account(Context& ctx, const Item& item, uint64_t policy, const Attempt& attempt) {
  if (attempt.overflow) [[unlikely]] {
    attempt.slot->used.fetch_add(attempt.charge.tokens, std::memory_order_relaxed);
    return;  // local by nature: no key, nothing to reconcile
  }
  const uint64_t aux =
      shm::AddUse(*attempt.slot, ctx.attachment->dirty, attempt.index, attempt.charge.tokens);
  if ((aux & shm::aux::kTextWanted) != 0) [[unlikely]] {
    WriteText(ctx, item, policy, attempt.index);
  }
  NoteOther(ctx.client->id, ctx.fork_epoch, attempt.index);
}

// kGaveUp becomes an answer by the rule's fail mode; a shadow rule's denial is none.
void SettleGaveUp(Context& ctx, const Item& item, Attempt* attempt);

void FillDecision(const Context& ctx, const Item& item, uint64_t policy, const Attempt& attempt,
                  sluice_decision_t* decision);
void RecordSpend(const Item& item, const Attempt& attempt, bool spent, sluice_decision_t* decision);
// "When may I retry?" is answered by the precise clock; "how many are left?" need not be.
inline void BeginDecision(Context& ctx, uint64_t policy, bool allowed,
                          sluice_decision_t* decision) {
  if (!allowed && ctx.time.lag_ns() != 0) ctx.time.ReadPrecise();
  decision->shadow = 0;
  decision->delay_ns = 0;
  decision->now_ns = ctx.time.now_ns();
  decision->policy = policy;
  decision->generation = ctx.attachment->generation;
  decision->spend_count = 0;
  decision->lag_ns = static_cast<uint32_t>(ctx.time.lag_ns());
}

// One item alone: the path of handles and bound rules. `attempt` is located.
inline int CheckItem(Context& ctx, const Item& item, uint64_t policy, uint32_t cost,
                     Attempt* attempt, sluice_decision_t* decision) {
  Run(ctx, item, policy, cost, /*commit=*/true, attempt);
  if (attempt->outcome == shm::Outcome::kGaveUp) [[unlikely]] {
    SettleGaveUp(ctx, item, attempt);
  }
  const bool allowed = attempt->outcome == shm::Outcome::kAllowed;
  if (allowed) {
    if (attempt->charge.commit) Account(ctx, item, policy, *attempt);
  } else if (!attempt->overflow) {
    NoteDenied(*ctx.attachment, ctx.client->id, ctx.fork_epoch, attempt->index, attempt->seen.gen,
               ctx.time.now_ns());
  }
  if (decision != nullptr) {
    BeginDecision(ctx, policy, allowed, decision);
    FillDecision(ctx, item, policy, *attempt, decision);
    RecordSpend(item, *attempt, allowed && attempt->charge.commit, decision);
    if (item.rule->shadow && !allowed) {
      decision->shadow = 1;
      decision->allowed = 1;
      decision->retry_after_ns = 0;
    }
  }
  return allowed || item.rule->shadow ? 1 : 0;
}

// All items of a request: peek all, commit the strictest first, refund on a late denial.
// Precondition: 1 <= count <= kMaxItems.
int CheckItems(Context& ctx, const Item* items, size_t count, uint64_t policy, uint32_t cost,
               sluice_decision_t* decision);

}  // namespace sluice::client
