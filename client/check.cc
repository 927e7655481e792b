#include "client/check.h"

#include <algorithm>

#include "shm/bucket_name.h"
#include "shm/key_text.h"

namespace sluice::client {
namespace {

using shm::DegradedMode;
using shm::Outcome;

// The name of an item's bucket; `values` are one folded value where it is too long.
struct Name {
  char label[shm::kMaxLabelBytes];
  size_t label_bytes;
  char folded[shm::kKeyTextBytes];
  std::string_view values[shm::kMaxKeyParts];
  size_t count;
};

bool MakeName(const Attachment& attachment, const Item& item, uint64_t policy, Name* name) {
  name->label_bytes = CopyLabel(attachment, policy, item.rule->id, name->label);
  if (name->label_bytes == 0) return false;
  if (item.rule->given != 0) {
    name->label_bytes = shm::AppendGiven(name->label, name->label_bytes, GivenOf(*item.rule));
  }
  name->count = std::min<size_t>(item.value_count, shm::kMaxKeyParts);
  for (size_t i = 0; i < name->count; ++i) name->values[i] = item.values[i].view();
  if (item.folded) {
    const size_t n = shm::FoldLong(name->label_bytes, name->values, name->count, name->folded);
    name->values[0] = {name->folded, n};
    name->count = 1;
  }
  return true;
}

// Three bytes for one at worst, and the separators.
constexpr size_t kMaxNameText = 3 * shm::kKeyTextBytes + shm::kMaxLabelBytes + 16;

uint32_t ShardOfName(const Name& name, uint32_t shard_count) {
  char text[kMaxNameText];
  const size_t n = shm::WriteNameText({name.label, name.label_bytes}, name.values, name.count, text,
                                      sizeof text);
  return shm::ShardOf({text, std::min(n, sizeof text)}, shard_count);
}

void StoreText(const Attachment& a, const Name& name, bool folded, uint32_t index) {
  char parts[shm::kKeyTextBytes];
  shm::WriteParts({name.label, name.label_bytes}, name.values, name.count, folded, parts);
  shm::StoreText(a.texts[index], parts, a.slots[index].key);
}

void UseOverflow(Context& ctx, const Item& item, Attempt* attempt) {
  attempt->index = item.rule->id % shm::kMaxRules;
  attempt->slot = &ctx.attachment->overflow[attempt->index];
  attempt->fp = 0;
  attempt->overflow = true;
  ctx.table.Count(shm::Counter::kOverflows);
}

// Full, and nobody's but the check's. Without a second word, as an overflow bucket.
void UseAbsent(Context& ctx, const Item& item, uint64_t policy, Attempt* attempt) {
  Name name;
  const uint32_t shard = MakeName(*ctx.attachment, item, policy, &name)
                             ? ShardOfName(name, ctx.attachment->shard_count)
                             : 0;
  shm::Slot& slot = ctx.absent->slots[ctx.absent->count++ % kMaxItems];
  // Orders nothing: no other thread sees it.
  slot.word.store(shm::FreshWord(item.rule->kind, ctx.time.now_ns()), std::memory_order_relaxed);
  slot.key.store(shm::key::Make(attempt->fp, item.rule->kind, 0), std::memory_order_relaxed);
  slot.aux.store(shm::aux::Make(0, shard, item.rule->id), std::memory_order_relaxed);
  attempt->slot = &slot;
  attempt->index = 0;
  attempt->overflow = attempt->absent = true;
}

}  // namespace

void Locate(Context& ctx, const Item& item, uint64_t policy, uint32_t hint, Attempt* attempt) {
  const Attachment& a = *ctx.attachment;
  const uint64_t hash = shm::HashOfKind(item.hash, item.rule->kind);
  attempt->fp = shm::FingerprintOf(hash);
  attempt->overflow = attempt->absent = false;
  attempt->hash = hash;
  attempt->brief = false;
  const bool has_row = shm::HasRow(item.rule->kind);
  if (has_row && a.logs.rows == 0) return UseOverflow(ctx, item, attempt);
  Table table = item.rule->kind == shm::Kind::kSlidingLog ? LogTableOf(a, *item.rule)
                : has_row                                 ? PlacesTableOf(a, *item.rule)
                                                          : ctx.table;
  uint32_t index = hint;
  uint64_t dead = 0;
  if (index == shm::kNoSlot) index = table.Find(hash);
  if (index != shm::kNoSlot) {
    // Pairs with the CASes of steps 2 and 4.
    const uint64_t w = a.slots[index].word.load(std::memory_order_acquire);
    if (!shm::word::IsDead(w) && (!has_row || ctx.is_looking() || table.IsAlone(hash, index)))
        [[likely]] {
      attempt->index = index;
      attempt->slot = &a.slots[index];
      return;
    }
    dead = shm::word::IsDead(w) ? w : 0;
  }
  if (ctx.is_looking()) {
    UseAbsent(ctx, item, policy, attempt);
    return;
  }
  ctx.time.ReadPrecise();  // a new tenancy's word must not start in the past of the old one
  const Table::Env env = EnvOf(ctx);
  if (dead != 0) table.SettleOf(hash, index, dead, env);
  if (has_row && dead == 0 && index != shm::kNoSlot) table.ResolveDuplicates(hash, env);
  Name name;
  const bool named = MakeName(a, item, policy, &name);
  const uint32_t shard = named ? ShardOfName(name, a.shard_count) : 0;
  bool claimed = false;
  index = table.FindOrClaim(hash, item.rule->kind, shm::aux::Make(0, shard, item.rule->id), env,
                            &claimed);
  if (index == shm::kNoSlot) {
    UseOverflow(ctx, item, attempt);
    return;
  }
  attempt->index = index;
  attempt->slot = &a.slots[index];
  if (claimed && named) StoreText(a, name, item.folded, index);
}

// Clearing the flag orders nothing: the text has its own tag.
void WriteText(const Attachment& attachment, const Item& item, uint64_t policy, uint32_t index) {
  Name name;
  if (!MakeName(attachment, item, policy, &name)) return;
  StoreText(attachment, name, item.folded, index);
  attachment.slots[index].aux.fetch_and(~shm::aux::kTextWanted, std::memory_order_relaxed);
}

bool Tidy(const sluice_t& client, const Attachment& attachment, shm::Slot& slot) {
  const uint64_t aux = slot.aux.load(std::memory_order_seq_cst);
  if ((aux & shm::aux::kDirty) == 0) {
    shm::MarkDirty(slot, attachment.dirty, IndexOf(attachment, slot));
  }
  if (IsTallyOfOther(slot)) FlushTally(client);
  return (aux & shm::aux::kTextWanted) != 0;
}

void FinishItem(const sluice_t& client, const Attachment& attachment, const Item& item,
                uint64_t policy, shm::Slot& slot) {
  if (Tidy(client, attachment, slot)) {
    WriteText(attachment, item, policy, IndexOf(attachment, slot));
  }
}

uint64_t CostOf(const Rule& rule, uint64_t cost) {
  return cost == 0 ? 0
                   : shm::CostNs(TokensOf(rule, cost), rule.limit.period_ns,
                                 std::max<uint64_t>(rule.limit.limit, 1));
}

// Where hosts overdraw, a host that is alone begins with an empty bucket: what it was lent is
// spent.
void GoAlone(const Attachment& a, const Item& item, const Degraded& degraded, Attempt* attempt) {
  if (!IsLoose(*item.rule)) return;
  shm::Charge& charge = attempt->charge;
  if (charge.dearer_q16 == 0) charge.dearer_q16 = shm::aux::kShareOne;
  // The whole bucket, whatever the class.
  charge.alone_full_ns = degraded.since_ns + charge.tau_ns +
                         shm::KeptNs(item.rule->limit, static_cast<uint16_t>(item.rule->floor_q16));
  const uint64_t hosts = std::min<uint64_t>(HostsOf(a), shm::aux::kShareOne - 1);
  charge.alone_inv_share = static_cast<uint32_t>(hosts) * shm::aux::kShareOne;
}

bool ApplyDegraded(const Attachment& attachment, const Item& item, const Degraded& degraded,
                   uint64_t now_ns, Attempt* attempt) {
  attempt->emergency = true;
  const bool late = IsLate(*item.rule, degraded, now_ns);
  const DegradedMode mode = late ? item.rule->then_mode : item.rule->mode;
  switch (mode) {
    case DegradedMode::kOpen:
      attempt->charge.admit_always = true;
      return true;
    case DegradedMode::kDegrade:
      attempt->charge.dearer_q16 = late ? item.rule->then_factor_q16 : item.rule->factor_q16;
      [[fallthrough]];
    case DegradedMode::kNormal:
      GoAlone(attachment, item, degraded, attempt);
      return true;
    case DegradedMode::kClosed:
      break;
  }
  // For the answer only: orders nothing.
  const uint64_t w = attempt->slot->word.load(std::memory_order_acquire);
  attempt->seen = {};
  attempt->seen.gen = shm::key::Gen(attempt->slot->key.load(std::memory_order_acquire));
  attempt->seen.verdict.base_ns = std::max(shm::word::IsDead(w) ? 0 : w, now_ns);
  attempt->seen.verdict.new_ns = now_ns + attempt->charge.tau_ns + kClosedRetryNs;
  attempt->seen.retry_after_ns = kClosedRetryNs;
  attempt->outcome = Outcome::kDenied;
  return false;
}

namespace {

// As a token bucket's: all keys of the rule that have no slot share one.
Outcome CheckOverflow(Context& ctx, const Rule& rule, Attempt* attempt) {
  shm::Seen& seen = attempt->seen;
  const Outcome outcome =
      shm::CheckSlot(*attempt->slot, attempt->fp, attempt->charge, ctx.time, ctx.table, &seen);
  if (outcome != Outcome::kAllowed && outcome != Outcome::kDenied) return outcome;
  const uint64_t now_ns = ctx.time.now_ns();
  const uint64_t tat_ns = outcome == Outcome::kAllowed ? seen.verdict.new_ns : seen.verdict.base_ns;
  seen.remaining = shm::Remaining(rule.limit, tat_ns, now_ns, /*dearer_q16=*/0);
  seen.retry_after_ns = shm::RetryAfterNs(seen.verdict, now_ns, seen.cost_ns, rule.limit.tau_ns);
  seen.reset_after_ns = shm::ResetAfterNs(tat_ns, now_ns);
  return outcome;
}

}  // namespace

shm::Outcome CheckUnlent(Context& ctx, const Rule& rule, Attempt* attempt) {
  if (!attempt->overflow) {
    return shm::CheckAlone(*attempt->slot, ctx.attachment->second[attempt->index], attempt->fp,
                           attempt->charge, ctx.time, &attempt->seen);
  }
  attempt->seen = {};
  if (IsLoose(rule)) return CheckOverflow(ctx, rule, attempt);
  // The daemon cannot lend to a key without a slot, and to go on without it would not be strict.
  attempt->seen.retry_after_ns =
      shm::credits::RetryAfterNs(0, ctx.time.now_ns(), attempt->charge.tokens, rule.limit);
  attempt->seen.reset_after_ns = shm::credits::ResetAfterNs(0, rule.limit);
  return attempt->charge.admit_always ? Outcome::kAllowed : Outcome::kDenied;
}

shm::Outcome CheckLogged(Context& ctx, const Rule& rule, Attempt* attempt) {
  if (attempt->overflow) {
    return shm::logs::CheckWithoutLog(*attempt->slot, attempt->charge, ctx.time, &attempt->seen);
  }
  const Attachment& a = *ctx.attachment;
  return shm::logs::CheckLog(LogTableOf(a, rule), attempt->index, attempt->hash,
                             &a.second[attempt->index], attempt->charge, attempt->brief, ctx.time,
                             &attempt->seen);
}

// The first cost that a slot misses is told at once, and each that is larger than a token; others
// are tallied, since the daemon is about to look anyway. Where denials lead to a ban each is told.
// aux is a hint here and orders nothing.
void NoteRefusal(Context& ctx, const Item& item, uint64_t policy, const Attempt& attempt) {
  const Attachment& a = *ctx.attachment;
  const Rule& rule = *item.rule;
  const uint64_t aux = attempt.slot->aux.load(std::memory_order_relaxed);
  const uint64_t tokens = attempt.charge.tokens;
  const bool is_told = (aux & shm::aux::kDirty) != 0;
  // No more credits would help its class; how full the bucket is may be news.
  const bool is_barred = tokens > RoomOf(rule, aux);
  if (rule.penal) {
    NoteAtOnce(a, *attempt.slot, attempt.seen.gen);
  } else if (!IsLent(rule) || (is_told && (tokens == 1 || is_barred))) {
    NoteDenied(a, *ctx.client, *attempt.slot, attempt.seen.gen, rule, policy, ctx.time.now_ns());
  } else if (tokens <= rule.limit.burst) {
    shm::AddWanted(*attempt.slot, a.denied[attempt.index], a.dirty, attempt.index, attempt.seen.gen,
                   is_barred ? 1 : tokens);
    if (rule.classed) {
      CountClass(a, policy, rule.group, static_cast<uint16_t>(rule.floor_q16), 1);
    }
  }
  const bool is_named_now = IsLent(rule) || rule.penal;
  if (is_named_now && (aux & shm::aux::kTextWanted) != 0) {
    WriteText(a, item, policy, attempt.index);
  }
}

void SettleGaveUp(Context& ctx, const Item& item, Attempt* attempt) {
  ctx.table.Count(shm::Counter::kGaveUp);
  attempt->seen = {};
  attempt->charge.commit = false;
  attempt->seen.verdict.base_ns = attempt->seen.verdict.new_ns = ctx.time.now_ns();
  const bool closed = item.rule->mode == DegradedMode::kClosed || shm::HasRow(item.rule->kind) ||
                      (item.rule->kind == shm::Kind::kLease && !IsLoose(*item.rule));
  attempt->outcome = closed ? Outcome::kDenied : Outcome::kAllowed;
}

// "When may I retry?" is answered by the precise clock; "how many are left?" need not be.
void BeginDecision(const Attachment& attachment, uint64_t policy, bool allowed, Time* time,
                   sluice_decision_t* decision) {
  if (!allowed && time->lag_ns() != 0) time->ReadPrecise();
  decision->banned = 0;
  decision->shadow = 0;
  decision->level = SLUICE_LEVEL_OK;
  decision->now_ns = time->now_ns();
  decision->policy = policy;
  decision->generation = attachment.generation;
  decision->spend_count = 0;
  decision->candidate_count = 0;
  decision->lag_ns = static_cast<uint32_t>(time->lag_ns());
}

void FillDecision(const Time& time, const Rule& rule, const Attempt& attempt,
                  sluice_decision_t* decision) {
  const uint64_t now_ns = time.now_ns();
  const bool allowed = attempt.outcome == Outcome::kAllowed;
  const shm::Seen& seen = attempt.seen;
  const uint64_t tat = allowed ? seen.verdict.new_ns : seen.verdict.base_ns;
  decision->allowed = allowed ? 1 : 0;
  decision->source = attempt.overflow && !attempt.absent ? SLUICE_SOURCE_OVERFLOW
                     : attempt.emergency                 ? SLUICE_SOURCE_EMERGENCY
                                                         : SLUICE_SOURCE_RULES;
  decision->limit = rule.limit.limit;
  decision->period_ns = rule.limit.period_ns;
  // Of what is counted in windows, a class's is a part of it.
  decision->burst = shm::IsCountedInWindows(rule.kind) ? rule.limit.limit : rule.limit.burst;
  decision->rule = rule.id;
  if (rule.kind == shm::Kind::kInFlight) decision->period_ns = 0;
  if (rule.kind != shm::Kind::kTokenBucket) {
    decision->remaining = seen.remaining;
    decision->retry_after_ns = allowed ? 0 : seen.retry_after_ns;
    decision->reset_after_ns = seen.reset_after_ns;
    decision->delay_ns = 0;
    return;
  }
  const uint32_t dearer_q16 = shm::Dearer(shm::aux::InvShare(seen.aux), attempt.charge.dearer_q16);
  const uint64_t interval =
      shm::SharedCostNs(rule.limit.interval_ns, dearer_q16, rule.limit.tau_ns);
  // A coarse now may lag: what is missing to a whole token only by that counts as there.
  const uint64_t per_token = std::max<uint64_t>(interval, 1);
  const uint64_t lag_ns = std::min(time.lag_ns(), per_token - 1);
  decision->remaining = rule.limit.limit <= shm::kFineTokens
                            ? shm::Remaining(tat, now_ns + lag_ns, per_token, rule.limit.tau_ns)
                            : shm::Remaining(rule.limit, tat, now_ns + lag_ns, dearer_q16);
  // Patience lets a share's cost grow beyond the whole bucket; it fits for all that.
  const uint64_t within_ns = FitsWithinNs(rule, attempt.charge);
  const uint64_t fitting_ns =
      attempt.charge.cost_ns > within_ns ? seen.cost_ns : std::min(seen.cost_ns, within_ns);
  decision->retry_after_ns = shm::RetryAfterNs(seen.verdict, now_ns, fitting_ns, within_ns);
  if (allowed) decision->retry_after_ns = 0;
  decision->reset_after_ns = shm::ResetAfterNs(tat, now_ns);
  decision->delay_ns = allowed ? DelayOf(rule, attempt, now_ns) : 0;
}

void RaiseLevel(const Time& time, const Rule& rule, const Attempt& attempt,
                sluice_decision_t* decision) {
  uint8_t level = SLUICE_LEVEL_HARD;
  if (attempt.outcome == Outcome::kAllowed) {
    // Of what the bucket holds at most, in time or in tokens; neither overflows. A token that has
    // come back in part is used, as in `remaining`.
    uint64_t most = rule.limit.tau_ns;
    uint64_t used = shm::ResetAfterNs(attempt.seen.verdict.new_ns, time.now_ns() + time.lag_ns());
    if (used != 0) used += rule.limit.interval_ns - 1;
    if (rule.kind != shm::Kind::kTokenBucket) {
      most = rule.limit.burst;
      used = most - std::min(attempt.seen.remaining, most);
    }
    const auto is_from = [&](uint64_t percent) { return used * 100 >= most * percent; };
    level = rule.soft_percent != 0 && is_from(rule.soft_percent) ? SLUICE_LEVEL_SOFT
            : is_from(rule.near_percent)                         ? SLUICE_LEVEL_NEAR
                                                                 : SLUICE_LEVEL_OK;
  }
  decision->level = std::max(decision->level, level);
}

sluice_spend_t SpendOf(const Rule& rule, const Attempt& attempt, bool spent, bool denied,
                       uint64_t now_ns) {
  sluice_spend_t spend;
  spend.new_ns = spent ? attempt.seen.verdict.new_ns : attempt.seen.verdict.base_ns;
  spend.cost_ns =
      rule.kind == shm::Kind::kTokenBucket ? attempt.seen.cost_ns : attempt.seen.remaining;
  spend.slot = attempt.index;
  spend.tokens = attempt.charge.tokens;
  spend.gen = attempt.seen.gen;
  spend.rule = rule.id;
  const bool waits = spent && DelayOf(rule, attempt, now_ns) != 0;
  spend.flags = static_cast<uint16_t>(
      (spent ? kSpent : 0) | (attempt.overflow ? kOverflowSlot : 0) | (denied ? kDeniedBy : 0) |
      (waits ? kToldToWait : 0) | KindFlags(rule.kind, rule.limit.limit));
  // Of places, where the first of them stands.
  spend.floor_q16 = rule.kind == shm::Kind::kInFlight ? static_cast<uint16_t>(attempt.seen.cost_ns)
                                                      : rule.floor_q16;
  spend.given = GivenOf(rule);
  spend.reserved[0] = spend.reserved[1] = 0;
  return spend;
}

void RecordSpend(const Rule& rule, const Attempt& attempt, bool spent,
                 sluice_decision_t* decision) {
  const bool denied = attempt.outcome != Outcome::kAllowed && !rule.shadow;
  if (decision->spend_count >= kMaxItems) return;
  decision->spends[decision->spend_count++] =
      SpendOf(rule, attempt, spent, denied, decision->now_ns);
}

// The queue's end stands in the second word as `gen:16 | time:48`, in steps of 2^10 ns: nothing
// else of a token bucket does. It is advice, so that all of this orders nothing; a queue that is
// lost with its tenancy, or a place that is given twice after a kill, costs a retry.
void SpreadRetry(const Attachment& attachment, const Rule& rule, const Attempt& attempt,
                 sluice_decision_t* decision) {
  constexpr int kStepBits = 10;
  constexpr uint64_t kTimeMask = (uint64_t{1} << 48) - 1;
  constexpr int kTries = 8;
  // Who has the patience to wait comes back in a way of its own.
  const bool waits = attempt.charge.tau_ns != rule.limit.tau_ns;
  if (attempt.overflow || waits || decision->retry_after_ns == SLUICE_NEVER) return;
  std::atomic<uint64_t>& cell = attachment.second[attempt.index];
  const uint64_t most_ns = uint64_t{rule.spread_s} * 1'000'000'000;
  const uint64_t first_ns = decision->now_ns + decision->retry_after_ns;
  uint64_t s = cell.load(std::memory_order_relaxed);
  for (int attempts = 0; attempts < kTries; ++attempts) {
    const uint64_t end_ns = s >> 48 == attempt.seen.gen ? (s & kTimeMask) << kStepBits : 0;
    uint64_t place_ns = std::max(first_ns, end_ns);
    if (place_ns - first_ns > most_ns) {
      // The queue is full: anywhere in it, so that the rest do not meet at its end.
      uint64_t seed = decision->now_ns ^ s;
      place_ns = first_ns + shm::SplitMix64(seed) % most_ns;
    } else {
      const uint64_t next = (place_ns + attempt.seen.cost_ns) >> kStepBits;
      if (!cell.compare_exchange_weak(s, uint64_t{attempt.seen.gen} << 48 | (next & kTimeMask),
                                      std::memory_order_relaxed)) {
        continue;
      }
    }
    decision->retry_after_ns = place_ns - decision->now_ns;
    return;
  }
}

int AnswerOne(const Attachment& attachment, Time time, const Rule& rule, uint64_t policy,
              const Attempt& attempt, sluice_decision_t* decision) {
  const bool allowed = attempt.outcome == Outcome::kAllowed;
  BeginDecision(attachment, policy, allowed, &time, decision);
  FillDecision(time, rule, attempt, decision);
  RecordSpend(rule, attempt, allowed && attempt.charge.commit, decision);
  RaiseLevel(time, rule, attempt, decision);
  decision->banned = IsBanned(rule, attempt) ? 1 : 0;
  if (!allowed && rule.spread_s != 0 && attempt.charge.commit) [[unlikely]] {
    SpreadRetry(attachment, rule, attempt, decision);
  }
  if (!allowed && rule.shadow) {
    decision->shadow = 1;
    decision->allowed = 1;
    decision->retry_after_ns = 0;
  }
  return decision->allowed;
}

}  // namespace sluice::client
