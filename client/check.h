// Checks on items: find the slot, see whether its shard is degraded, decide, account. What handles,
// bound rules and lists of descriptors share.
#pragma once

#include <cstdint>

#include "client/client.h"
#include "client/denials.h"
#include "client/plan.h"
#include "client/turns.h"
#include "shm/alone.h"
#include "shm/bucket.h"
#include "shm/clock.h"
#include "shm/lease_slot.h"
#include "shm/log_slot.h"
#include "shm/place_slot.h"
#include "shm/window_slot.h"

namespace sluice::client {

using Clock = shm::MonotonicClock;
using Time = shm::RequestTime<Clock>;
using Table = shm::SlotTable<std::atomic<uint64_t>>;

inline Table TableOf(const Attachment& a) {
  return Table::OfGroups(a.slots, a.group_mask, a.counters);
}

// The table of sliding logs, by the terms of one rule. Precondition: a.logs.rows is not 0.
inline Table LogTableOf(const Attachment& a, const Rule& rule) {
  return Table::OfLogs(a.slots, a.logs, a.counters, a.log_entries, shm::logs::TermsOf(rule.limit));
}

// The same of places of requests in flight.
inline Table PlacesTableOf(const Attachment& a, const Rule& rule) {
  return Table::OfPlaces(a.slots, a.logs, a.counters, a.log_entries, rule.limit.limit);
}

// Retry-after under `when_degraded: closed`, where nobody knows how long: the daemon's breaker
// looks again at least this often.
inline constexpr uint64_t kClosedRetryNs = 1'000'000'000;

// Bits of sluice_spend_t.flags.
inline constexpr uint16_t kSpent = 1;
inline constexpr uint16_t kOverflowSlot = 2;
inline constexpr uint16_t kDeniedBy = 4;
inline constexpr uint16_t kToldToWait = 8;
// The kind of word, and the index of a window's scale: what a refund must know.
inline uint16_t KindFlags(shm::Kind kind, uint64_t limit) {
  const int scale = shm::IsWindow(kind) ? shm::window::ScaleIndexOf(limit) : 0;
  return static_cast<uint16_t>(static_cast<int>(kind) << 8 | scale << 12);
}
inline int ScaleIndexOfFlags(uint16_t flags) {
  return std::min<int>(flags >> 12 & 7, std::size(shm::window::kScales) - 1);
}
inline shm::Kind KindOfFlags(uint16_t flags) { return static_cast<shm::Kind>((flags >> 8) & 7); }

// Buckets that are not there, for checks that only look.
struct Absent {
  shm::Slot slots[kMaxItems];
  size_t count = 0;
};

struct Context {
  sluice_t* client;
  const Attachment* attachment;
  Table table;
  Time time;
  // Not null: the check only looks. What it looks for and does not find is one of these.
  Absent* absent;
  bool has_deadline = false;  // the caller goes on by then or not at all
  uint64_t patience_ns = 0;   // until then; 0: it waits for nothing
  // Not 0: the request enters, and takes places under this name (see places.h), or looks whether it
  // could. Others only look whether there is one.
  uint64_t place_name = 0;
  // Of one that enters with patience: when it came, and whether it has found too few places free.
  uint64_t came_ns = 0;
  bool has_found_full = false;
  bool is_first = false;  // of those who wait, as far as this check has seen
  // Of a denied request, its items that denied it, a bit each; else not written.
  uint32_t denied_by;

  Context(sluice_t* c, const Attachment* a, bool coarse_serves, Absent* looking = nullptr)
      : client(c),
        attachment(a),
        table(TableOf(*a)),
        time(coarse_serves, c->coarse_step_ns),
        absent(looking) {
    c->attacher.Step(time.now_ns());
  }
  bool is_looking() const { return absent != nullptr; }
};

// What the table needs to know of the time. Memory orders: relaxed, but behind the load of the
// policy word, whose acquire pairs with the daemon's release: max_debt covers every rule of that
// policy.
inline Table::Env EnvOf(const Context& ctx) {
  const shm::ControlHeader& control = *ctx.attachment->control;
  return {.now_ns = ctx.time.now_ns(),
          .grace_ns = control.grace_ns.load(std::memory_order_relaxed),
          .max_debt_ns = control.max_debt_ns.load(std::memory_order_relaxed)};
}

// The state of one item's check.
struct Attempt {
  shm::Slot* slot;
  uint32_t index;  // of the slot, or of the overflow bucket
  bool overflow;   // nobody reconciles it: the rule's overflow bucket, or an absent one
  bool emergency;
  bool absent;  // the check only looks, and the bucket is not there
  shm::Outcome outcome;
  shm::Charge charge;
  shm::Seen seen;
  uint64_t fp;
  // Of a sliding log.
  uint64_t hash;
  bool brief;  // nobody asks what is left
};

// What an emergency makes of a rule. `since_ns`: when it began.
struct Degraded {
  bool is = false;
  uint64_t since_ns = 0;
};
// Whether the rule's first mode has held for its time, so that `then` holds.
inline bool IsLate(const Rule& rule, const Degraded& degraded, uint64_t now_ns) {
  return rule.for_ns != 0 && now_ns > degraded.since_ns && now_ns - degraded.since_ns > rule.for_ns;
}

// The state word of the shard that a slot's aux names; never out of bounds.
inline const std::atomic<uint64_t>* ShardWordOf(const Attachment& a, uint64_t aux) {
  static_assert(shm::aux::Shard(~uint64_t{0}) < shm::kMaxShards);
  return &a.shard_states[shm::aux::Shard(aux)];
}

// A hint: orders nothing.
inline bool IsAnyShardDegraded(const Attachment& a) {
  return a.control->emergency_shards.load(std::memory_order_relaxed) != 0;
}

// Hints: orders nothing.
inline bool IsShardHealthy(const Attachment& a, const shm::Slot& slot) {
  if (!IsAnyShardDegraded(a)) [[likely]] {
    return true;
  }
  const uint64_t aux = slot.aux.load(std::memory_order_relaxed);
  return !shm::shard_state::IsEmergency(ShardWordOf(a, aux)->load(std::memory_order_relaxed));
}

inline uint32_t IndexOf(const Attachment& a, const shm::Slot& slot) {
  return static_cast<uint32_t>(&slot - a.slots);
}

// Memory orders, here and below: heartbeat, reconciling and shard states are each a word that tells
// all by itself. Nothing else is read because of them, so relaxed loads, which order nothing, do.

// True where the daemon reconciles but its heartbeat has stopped: all its shards are degraded.
inline bool IsSilent(const Attachment& a, uint64_t now_ns) {
  const shm::ControlHeader& control = *a.control;
  return now_ns > control.heartbeat_ns.load(std::memory_order_relaxed) + shm::kHeartbeatFreshNs &&
         control.reconciling.load(std::memory_order_relaxed) != 0;
}

// True where the daemon reconciles but its heartbeat has stopped, or the slot's shard is in
// emergency. A daemon without Redis may die: local decisions are exact all the same.
inline Degraded DegradedNow(const Attachment& a, uint64_t aux, uint64_t now_ns) {
  const shm::ControlHeader& control = *a.control;
  if (IsSilent(a, now_ns)) [[unlikely]] {
    return {true, control.heartbeat_ns.load(std::memory_order_relaxed) + shm::kHeartbeatFreshNs};
  }
  if (control.reconciling.load(std::memory_order_relaxed) == 0) return {};
  const uint64_t state = ShardWordOf(a, aux)->load(std::memory_order_relaxed);
  if (shm::shard_state::Mode(state) != shm::ShardMode::kEmergency) [[likely]] {
    return {};
  }
  return {true, shm::shard_state::SinceNs(state)};
}

// Finds or claims the item's slot, or the rule's overflow bucket where the neighbourhood is full. A
// check that only looks claims none.
// `hint`: a slot to look at first, or kNoSlot.
void Locate(Context& ctx, const Item& item, uint64_t policy, uint32_t hint, Attempt* attempt);

// Rare states: emergency (mode and factor), a wanted text.
bool ApplyDegraded(const Attachment& attachment, const Item& item, const Degraded& degraded,
                   uint64_t now_ns, Attempt* attempt);
void WriteText(const Attachment& attachment, const Item& item, uint64_t policy, uint32_t index);

// The time that `cost` units stand for, where cost is not 1: a division.
uint64_t CostOf(const Rule& rule, uint64_t cost);

inline uint64_t CostNs(const Rule& rule, uint64_t cost) {
  return cost == 1 ? rule.unit_ns : CostOf(rule, cost);
}

// More than any bucket holds, and small enough to be added to any count.
inline constexpr uint64_t kTooManyTokens = uint64_t{1} << 62;

inline uint64_t TokensOf(const Rule& rule, uint64_t cost) {
  uint64_t tokens;
  const bool wraps = __builtin_mul_overflow(cost, uint64_t{rule.cost}, &tokens);
  return wraps || tokens > kTooManyTokens ? kTooManyTokens : tokens;
}

inline shm::Charge ChargeOf(const Rule& rule, uint64_t cost, uint64_t cost_ns, bool commit) {
  return {.cost_ns = cost_ns,
          .tau_ns = rule.limit.tau_ns,
          .debt_max_ns = rule.limit.debt_max_ns,
          .tokens = TokensOf(rule, cost),
          .dearer_q16 = 0,
          .admit_always = false,
          .commit = commit && cost != 0,
          .kind = rule.kind,
          .limit = &rule.limit};
}

inline bool IsLoose(const Rule& rule) { return rule.kind == shm::Kind::kLease && !rule.strict; }

// What there is for the class of a rule of leases, see credits::RoomOf; of others all.
inline uint64_t RoomOf(const Rule& rule, uint64_t aux) {
  return rule.kind == shm::Kind::kLease && rule.floor_q16 != 0
             ? shm::credits::RoomOf(aux, rule.limit.burst, static_cast<uint16_t>(rule.floor_q16))
             : kTooManyTokens;
}

// Whether the daemon is to ask for what a denied request was short of.
inline bool IsLent(const Rule& rule) {
  return rule.kind == shm::Kind::kLease || (rule.kind == shm::Kind::kInFlight && rule.strict);
}

// A hint: orders nothing.
inline uint64_t HostsOf(const Attachment& a) {
  return a.control->hosts.load(std::memory_order_relaxed);
}

// The slot's second word; an overflow bucket has none.
inline std::atomic<uint64_t>* SecondOf(const Attachment& a, const Attempt& attempt) {
  return attempt.overflow ? nullptr : &a.second[attempt.index];
}

// A bucket to which nobody lends: in the overflow bucket, or in an emergency.
shm::Outcome CheckUnlent(Context& ctx, const Rule& rule, Attempt* attempt);

shm::Outcome CheckLogged(Context& ctx, const Rule& rule, Attempt* attempt);

inline shm::Outcome CheckAnyKind(Context& ctx, const Rule& rule, Attempt* attempt) {
  if (rule.kind == shm::Kind::kTokenBucket) [[likely]] {
    return shm::CheckSlot(*attempt->slot, attempt->fp, attempt->charge, ctx.time, ctx.table,
                          &attempt->seen);
  }
  if (shm::IsWindow(rule.kind)) {
    attempt->charge.ends = shm::EndsOf(*ctx.attachment->control, rule);
    return shm::window::CheckWindow(*attempt->slot, SecondOf(*ctx.attachment, *attempt),
                                    attempt->fp, attempt->charge, ctx.time, ctx.table,
                                    &attempt->seen);
  }
  if (rule.kind == shm::Kind::kSlidingLog) return CheckLogged(ctx, rule, attempt);
  attempt->charge.floor_q16 = static_cast<uint16_t>(rule.floor_q16);
  if (attempt->overflow || attempt->charge.dearer_q16 != 0) return CheckUnlent(ctx, rule, attempt);
  return shm::credits::CheckLease(*attempt->slot, ctx.attachment->second[attempt->index],
                                  attempt->fp, attempt->charge, ctx.time, &attempt->seen);
}

// Makes the request one that enters. False: the client has no number (yet) to hold places by.
bool NameEntry(Context& ctx);

// Run() for a rule of requests in flight.
void RunPlaces(Context& ctx, const Item& item, uint64_t policy, uint64_t cost, bool commit,
               Attempt* attempt);

// One item, to its end: kAllowed (committed where asked) or kDenied. attempt->slot may be changed.
// aux here is for the shard only: its load orders nothing.
inline void Run(Context& ctx, const Item& item, uint64_t policy, uint64_t cost, bool commit,
                Attempt* attempt) {
  if (item.rule->kind == shm::Kind::kInFlight) [[unlikely]] {
    return RunPlaces(ctx, item, policy, cost, commit, attempt);
  }
  attempt->charge =
      ChargeOf(*item.rule, cost, CostNs(*item.rule, cost), commit && !ctx.is_looking());
  if (IsLoose(*item.rule)) {
    attempt->charge.trusted =
        shm::credits::TrustedOf(item.rule->limit.burst, HostsOf(*ctx.attachment));
  }
  for (int restart = 0; restart < shm::kMaxRestarts; ++restart) {
    attempt->emergency = false;
    const Degraded degraded = DegradedNow(
        *ctx.attachment, attempt->slot->aux.load(std::memory_order_relaxed), ctx.time.now_ns());
    if (degraded.is) [[unlikely]] {
      if (!ApplyDegraded(*ctx.attachment, item, degraded, ctx.time.now_ns(), attempt)) return;
    }
    if (ctx.has_deadline) [[unlikely]] {
      ApplyPatience(*item.rule, ctx.patience_ns, &attempt->charge);
    }
    attempt->outcome = CheckAnyKind(ctx, *item.rule, attempt);
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
    shm::CountUses(*attempt.slot, attempt.charge.tokens);
    return;  // local by nature: no key, nothing to reconcile
  }
  const uint64_t aux =
      shm::AddUse(*attempt.slot, ctx.attachment->dirty, attempt.index, attempt.charge.tokens);
  if ((aux & shm::aux::kTextWanted) != 0) [[unlikely]] {
    WriteText(*ctx.attachment, item, policy, attempt.index);
  }
  if (IsTallyOfOther(*attempt.slot)) [[unlikely]] {
    FlushTally(*ctx.client);
  }
}

// Whether a rule's ban is why the item was denied: a hint, as far as the daemon has said so.
inline bool IsBanned(const Rule& rule, const Attempt& attempt) {
  return rule.penal && !rule.shadow && attempt.outcome == shm::Outcome::kDenied &&
         !attempt.emergency && (attempt.seen.aux & shm::aux::kBanned) != 0;
}

// Counts a denial, so that the daemon sees it: at once where it is to ask for tokens.
void NoteRefusal(Context& ctx, const Item& item, uint64_t policy, const Attempt& attempt);

// kGaveUp becomes an answer by the rule's fail mode; a shadow rule's denial is none.
void SettleGaveUp(Context& ctx, const Item& item, Attempt* attempt);

// How long an admitted item waits for its turn; 0 but for leaky buckets that are in force, and for
// callers with patience.
inline uint64_t DelayOf(const Rule& rule, const Attempt& attempt, uint64_t now_ns) {
  const uint64_t most_ns = attempt.charge.tau_ns - AtOnceNs(rule);
  return most_ns == 0 || rule.shadow
             ? 0
             : shm::DelayNs(attempt.seen.verdict.new_ns, now_ns, attempt.charge.tau_ns, most_ns);
}

// How near an item came to its limit, and whether that is above what the decision says already.
void RaiseLevel(const Time& time, const Rule& rule, const Attempt& attempt,
                sluice_decision_t* decision);

// The parts of a decision: what heads it, the deciding rule's numbers, one line per rule.
void BeginDecision(const Attachment& attachment, uint64_t policy, bool allowed, Time* time,
                   sluice_decision_t* decision);
void FillDecision(const Time& time, const Rule& rule, const Attempt& attempt,
                  sluice_decision_t* decision);
sluice_spend_t SpendOf(const Rule& rule, const Attempt& attempt, bool spent, bool denied,
                       uint64_t now_ns);
void RecordSpend(const Rule& rule, const Attempt& attempt, bool spent, sluice_decision_t* decision);

// Puts a denied request behind those that were denied before it, where the rule says so: its retry
// is told for when the ones before it have passed. By CAS on the bucket's second word.
void SpreadRetry(const Attachment& attachment, const Rule& rule, const Attempt& attempt,
                 sluice_decision_t* decision);

// A decision over one item, whole. Returns the answer.
int AnswerOne(const Attachment& attachment, Time time, const Rule& rule, uint64_t policy,
              const Attempt& attempt, sluice_decision_t* decision);

// One item alone: the path of handles and bound rules. `attempt` is located.
inline int CheckItem(Context& ctx, const Item& item, uint64_t policy, uint64_t cost,
                     Attempt* attempt, sluice_decision_t* decision) {
  attempt->brief = decision == nullptr;
  Run(ctx, item, policy, cost, /*commit=*/true, attempt);
  if (attempt->outcome == shm::Outcome::kGaveUp) [[unlikely]] {
    SettleGaveUp(ctx, item, attempt);
  }
  const bool allowed = attempt->outcome == shm::Outcome::kAllowed;
  if (allowed) {
    if (attempt->charge.commit) Account(ctx, item, policy, *attempt);
  } else {
    ctx.denied_by = item.rule->shadow ? 0 : 1;
    if (!attempt->overflow && !ctx.is_looking()) NoteRefusal(ctx, item, policy, *attempt);
  }
  if (decision == nullptr) return allowed || item.rule->shadow ? 1 : 0;
  return AnswerOne(*ctx.attachment, ctx.time, *item.rule, policy, *attempt, decision);
}

// So long a usual check goes by what the long way found: where a handle's slot is (a duplicate's
// loser is left behind this soon) and that its shard is healthy, that the daemon is alive, that no
// connecting is due.
inline constexpr uint64_t kUsualNs = 100'000'000;

// Words that tell all by themselves: orders nothing.
inline uint64_t UsualUntil(const Attachment& a, uint64_t now_ns) {
  const shm::ControlHeader& control = *a.control;
  const uint64_t until_ns = now_ns + kUsualNs;
  if (control.reconciling.load(std::memory_order_relaxed) == 0) return until_ns;
  const uint64_t beat_ns = control.heartbeat_ns.load(std::memory_order_relaxed);
  return until_ns < beat_ns + shm::kHeartbeatFreshNs ? until_ns : beat_ns + shm::kHeartbeatFreshNs;
}

// True where use counted in a slot of this aux leaves nothing to do: it was dirty, and no text of
// its name is wanted.
inline bool IsTidy(uint64_t aux) {
  return (aux & (shm::aux::kDirty | shm::aux::kTextWanted)) == shm::aux::kDirty;
}

// What is left to do after a usual check that was allowed, where the slot was not dirty or another
// key's denials are tallied. True when the text of the bucket's name is wanted.
bool Tidy(const sluice_t& client, const Attachment& attachment, shm::Slot& slot);
// The same, with the text written where it is wanted.
void FinishItem(const sluice_t& client, const Attachment& attachment, const Item& item,
                uint64_t policy, shm::Slot& slot);

// The check of one item as nearly all of them are: its slot known, no emergency, no contention, a
// clear answer. It decides as CheckItem does, but keeps all of its state in registers: it is
// inlined whole, nothing's address leaves it, and what is out of the ordinary is a last call to
// Path:
//   rule(), lag_ns(), attachment()
//   Long(cost, decision)            nothing was written; the answer of the long way
//   Contended(now_ns)               the same, and it was another thread's doing: see lease.h
//   Finish(slot)                    see Tidy; writes the name's text where the daemon wants it
//   Deny(slot, gen, now_ns)         begins a tally, and remembers the denial
//   Tell(attempt, now_ns, decision) the answer, with the decision filled
// kPlain: for cost 1 and without a decision, known at compile time. kUntallied: this thread tallies
// no denials now, so that none are of another key.
// Preconditions: now_ns is below the last UsualUntil(), and the slot's shard is healthy.
//
// Callers read the clock in one function and call this one last, from another: a register that is
// saved on the stack must be restored before the locked operations. A load waits for them, and with
// it all that the caller computes from that register: its next check, at worst.
template <bool kPlain, bool kUntallied, class Path>
[[gnu::always_inline]] inline int CheckUsual(const Path& path, shm::Slot& slot, uint64_t fp,
                                             uint64_t now_ns, uint64_t cost,
                                             sluice_decision_t* decision) {
  const Rule& rule = path.rule();
  const uint64_t cost_ns = kPlain ? rule.unit_ns : CostNs(rule, cost);
  shm::Seen seen;
  const shm::Outcome outcome =
      shm::LookSlot(slot, fp, cost_ns, rule.limit.tau_ns, /*dearer_q16=*/0, now_ns, &seen);
  if (outcome == shm::Outcome::kAllowed) [[likely]] {
    if (kPlain || cost != 0) {
      if (!shm::CommitLook(slot, seen)) [[unlikely]] {
        if (kPlain) return path.Contended(now_ns);
        return path.Long(cost, decision);
      }
      const uint64_t aux =
          kPlain ? shm::CountUse(slot, rule.cost) : shm::CountUses(slot, TokensOf(rule, cost));
      if (!IsTidy(aux) || (!kUntallied && IsTallyOfOther(slot))) [[unlikely]] {
        if (kPlain) return path.Finish(slot);
        path.Finish(slot);
      }
    }
    if (kPlain || decision == nullptr) return 1;
  } else if (outcome == shm::Outcome::kDenied &&
             shm::IsDenialClear(seen, rule.limit.tau_ns, rule.limit.debt_max_ns, now_ns,
                                path.lag_ns())) {
    if (kUntallied || !TallyDenied(slot, seen.gen, now_ns)) [[unlikely]] {
      if (kPlain) return path.Deny(slot, seen.gen, now_ns);
      path.Deny(slot, seen.gen, now_ns);
    }
    if (kPlain || decision == nullptr) return rule.shadow ? 1 : 0;
  } else {
    return path.Long(cost, decision);
  }
  const Attempt attempt = {.slot = &slot,
                           .index = IndexOf(path.attachment(), slot),
                           .overflow = false,
                           .emergency = false,
                           .absent = false,
                           .outcome = outcome,
                           .charge = ChargeOf(rule, cost, cost_ns, /*commit=*/true),
                           .seen = seen,
                           .fp = fp};
  return path.Tell(attempt, now_ns, decision);
}

// All items of a request: peek all, commit the strictest first, refund on a late denial.
// Precondition: 1 <= count <= kMaxItems.
int CheckItems(Context& ctx, const Item* items, size_t count, uint64_t policy, uint64_t cost,
               sluice_decision_t* decision);

}  // namespace sluice::client
