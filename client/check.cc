#include "client/check.h"

#include <algorithm>
#include <cstring>

#include "shm/bucket_name.h"

namespace sluice::client {
namespace {

using shm::DegradedMode;
using shm::Outcome;

constexpr int kRequestRestarts = 4;

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
  shm::KeyText& text = a.texts[index];
  // Relaxed words, since another process may write the same text now; the tag is stored last.
  text.tag.store(0, std::memory_order_release);
  for (size_t i = 0; i < shm::kKeyTextBytes; i += 8) {
    uint64_t word;
    std::memcpy(&word, parts + i, 8);
    std::atomic_ref<uint64_t>(*reinterpret_cast<uint64_t*>(text.text + i))
        .store(word, std::memory_order_relaxed);
  }
  text.tag.store(a.slots[index].key.load(std::memory_order_acquire), std::memory_order_release);
}

void UseOverflow(Context& ctx, const Item& item, Attempt* attempt) {
  attempt->index = item.rule->id % shm::kMaxRules;
  attempt->slot = &ctx.attachment->overflow[attempt->index];
  attempt->fp = 0;
  attempt->overflow = true;
  ctx.table.Count(shm::Counter::kOverflows);
}

}  // namespace

void Locate(Context& ctx, const Item& item, uint64_t policy, uint32_t hint, Attempt* attempt) {
  const Attachment& a = *ctx.attachment;
  attempt->fp = shm::FingerprintOf(item.hash);
  attempt->overflow = false;
  uint32_t index = hint;
  if (index == shm::kNoSlot) index = ctx.table.Find(item.hash);
  if (index != shm::kNoSlot) {
    const uint64_t w = a.slots[index].word.load(std::memory_order_acquire);
    if (!shm::word::IsDead(w)) [[likely]] {
      attempt->index = index;
      attempt->slot = &a.slots[index];
      return;
    }
    ctx.table.Settle(index, w, ctx.time.now_ns());
  }
  ctx.time.ReadPrecise();  // a new tenancy's word must not start in the past of the old one
  const Table::Env env{.now_ns = ctx.time.now_ns(),
                       .grace_ns = a.control->grace_ns.load(std::memory_order_relaxed),
                       .max_debt_ns = a.control->max_debt_ns.load(std::memory_order_relaxed)};
  Name name;
  const bool named = MakeName(a, item, policy, &name);
  const uint32_t shard = named ? ShardOfName(name, a.shard_count) : 0;
  bool claimed = false;
  index = ctx.table.FindOrClaim(item.hash, shm::Kind::kTokenBucket,
                                shm::aux::Make(0, shard, item.rule->id), env, &claimed);
  if (index == shm::kNoSlot) {
    UseOverflow(ctx, item, attempt);
    return;
  }
  attempt->index = index;
  attempt->slot = &a.slots[index];
  if (claimed && named) StoreText(a, name, item.folded, index);
}

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

uint64_t CostOf(const Rule& rule, uint32_t cost) {
  return cost == 0 ? 0
                   : shm::CostNs(uint64_t{cost} * rule.cost, rule.limit.period_ns,
                                 std::max<uint64_t>(rule.limit.limit, 1));
}

bool ApplyDegraded(const Item& item, const Degraded& degraded, uint64_t now_ns, Attempt* attempt) {
  attempt->emergency = true;
  const bool late = item.rule->for_ns != 0 && now_ns > degraded.since_ns &&
                    now_ns - degraded.since_ns > item.rule->for_ns;
  const DegradedMode mode = late ? item.rule->then_mode : item.rule->mode;
  switch (mode) {
    case DegradedMode::kOpen:
      attempt->charge.admit_always = true;
      return true;
    case DegradedMode::kDegrade:
      attempt->charge.dearer_q16 = late ? item.rule->then_factor_q16 : item.rule->factor_q16;
      return true;
    case DegradedMode::kNormal:
      return true;
    case DegradedMode::kClosed:
      break;
  }
  const uint64_t w = attempt->slot->word.load(std::memory_order_acquire);
  attempt->seen = {};
  attempt->seen.gen = shm::key::Gen(attempt->slot->key.load(std::memory_order_acquire));
  attempt->seen.verdict.base_ns = std::max(shm::word::IsDead(w) ? 0 : w, now_ns);
  attempt->seen.verdict.new_ns = now_ns + attempt->charge.tau_ns + kClosedRetryNs;
  attempt->outcome = Outcome::kDenied;
  return false;
}

void SettleGaveUp(Context& ctx, const Item& item, Attempt* attempt) {
  ctx.table.Count(shm::Counter::kGaveUp);
  attempt->seen = {};
  attempt->charge.commit = false;
  attempt->seen.verdict.base_ns = attempt->seen.verdict.new_ns = ctx.time.now_ns();
  attempt->outcome =
      item.rule->mode == DegradedMode::kClosed ? Outcome::kDenied : Outcome::kAllowed;
}

// "When may I retry?" is answered by the precise clock; "how many are left?" need not be.
void BeginDecision(const Attachment& attachment, uint64_t policy, bool allowed, Time* time,
                   sluice_decision_t* decision) {
  if (!allowed && time->lag_ns() != 0) time->ReadPrecise();
  decision->shadow = 0;
  decision->delay_ns = 0;
  decision->now_ns = time->now_ns();
  decision->policy = policy;
  decision->generation = attachment.generation;
  decision->spend_count = 0;
  decision->lag_ns = static_cast<uint32_t>(time->lag_ns());
}

void FillDecision(const Time& time, const Rule& rule, const Attempt& attempt,
                  sluice_decision_t* decision) {
  const uint64_t now_ns = time.now_ns();
  const bool allowed = attempt.outcome == Outcome::kAllowed;
  const shm::Seen& seen = attempt.seen;
  const uint64_t tat = allowed ? seen.verdict.new_ns : seen.verdict.base_ns;
  decision->allowed = allowed ? 1 : 0;
  decision->source = attempt.overflow    ? SLUICE_SOURCE_OVERFLOW
                     : attempt.emergency ? SLUICE_SOURCE_EMERGENCY
                                         : SLUICE_SOURCE_RULES;
  decision->limit = rule.limit.limit;
  decision->period_ns = rule.limit.period_ns;
  decision->burst = rule.limit.burst;
  const uint64_t interval = shm::SharedCostNs(
      rule.limit.interval_ns, shm::Dearer(shm::aux::InvShare(seen.aux), attempt.charge.dearer_q16),
      rule.limit.tau_ns);
  // A coarse now may lag: what is missing to a whole token only by that counts as there.
  const uint64_t per_token = std::max<uint64_t>(interval, 1);
  const uint64_t lag_ns = std::min(time.lag_ns(), per_token - 1);
  decision->remaining = shm::Remaining(tat, now_ns + lag_ns, per_token, rule.limit.tau_ns);
  decision->retry_after_ns =
      shm::RetryAfterNs(seen.verdict, now_ns, seen.cost_ns, rule.limit.tau_ns);
  if (allowed) decision->retry_after_ns = 0;
  decision->reset_after_ns = shm::ResetAfterNs(tat, now_ns);
  decision->rule = rule.id;
}

void RecordSpend(const Rule& rule, const Attempt& attempt, bool spent,
                 sluice_decision_t* decision) {
  if (decision->spend_count >= kMaxItems) return;
  sluice_spend_t& spend = decision->spends[decision->spend_count++];
  spend.new_ns = spent ? attempt.seen.verdict.new_ns : attempt.seen.verdict.base_ns;
  spend.cost_ns = attempt.seen.cost_ns;
  spend.slot = attempt.index;
  spend.tokens = attempt.charge.tokens;
  spend.gen = attempt.seen.gen;
  spend.rule = rule.id;
  spend.flags =
      static_cast<uint16_t>((spent ? kSpent : 0) | (attempt.overflow ? kOverflowSlot : 0));
  spend.reserved = 0;
}

int AnswerOne(const Attachment& attachment, Time time, const Rule& rule, uint64_t policy,
              const Attempt& attempt, sluice_decision_t* decision) {
  const bool allowed = attempt.outcome == Outcome::kAllowed;
  BeginDecision(attachment, policy, allowed, &time, decision);
  FillDecision(time, rule, attempt, decision);
  RecordSpend(rule, attempt, allowed && attempt.charge.commit, decision);
  if (!allowed && rule.shadow) {
    decision->shadow = 1;
    decision->allowed = 1;
    decision->retry_after_ns = 0;
  }
  return decision->allowed;
}

namespace {

// The tokens that would be left: how far an attempt stays from its edge.
double HeadroomTokens(const Item& item, const Attempt& attempt, uint64_t now_ns) {
  const uint64_t ahead = attempt.seen.verdict.new_ns - now_ns;
  const uint64_t left = ahead >= item.rule->limit.tau_ns ? 0 : item.rule->limit.tau_ns - ahead;
  return static_cast<double>(left) /
         static_cast<double>(std::max<uint64_t>(item.rule->limit.interval_ns, 1));
}

uint64_t RetryNs(const Item& item, const Attempt& attempt, uint64_t now_ns) {
  return shm::RetryAfterNs(attempt.seen.verdict, now_ns, attempt.seen.cost_ns,
                           item.rule->limit.tau_ns);
}

// One request over several rules.
class RequestCheck {
 public:
  RequestCheck(Context& ctx, const Item* items, size_t count, uint64_t policy, uint32_t cost)
      : ctx_(ctx), items_(items), count_(count), policy_(policy), cost_(cost) {}

  int Check(sluice_decision_t* decision) {
    // All slots are on their way to the cache before the first is looked at.
    for (size_t i = 0; i < count_; ++i) ctx_.table.PrefetchFirst(items_[i].hash);
    if (cost_ != 0 && LookAll() && CommitAll()) {
      if (decision == nullptr) return 1;
      return Answer(Strictest(), decision);
    }
    for (int restart = 0; restart < kRequestRestarts; ++restart) {
      Peek();
      size_t decided = Strictest();
      if (denied_ == 0 && cost_ != 0) decided = Commit(decided);
      if (decided != kAgain) return Answer(decided, decision);
    }
    ctx_.table.Count(shm::Counter::kGaveUp);
    return AnswerDefault(ctx_.client, 0, decision);
  }

 private:
  static constexpr size_t kAgain = ~size_t{0};

  // A request as nearly all of them are: all buckets stand in the table, none is degraded, all say
  // yes at the first look. False: nothing was written, and the long way decides.
  bool LookAll() {
    const Attachment& a = *ctx_.attachment;
    const uint64_t now_ns = ctx_.time.now_ns();
    if (IsSilent(a, now_ns)) return false;
    for (size_t i = 0; i < count_; ++i) {
      Attempt& attempt = attempts_[i];
      const Rule& rule = *items_[i].rule;
      const uint32_t index = ctx_.table.Find(items_[i].hash);
      if (index == shm::kNoSlot || !IsShardHealthy(a, a.slots[index])) return false;
      attempt.index = index;
      attempt.slot = &a.slots[index];
      attempt.fp = shm::FingerprintOf(items_[i].hash);
      attempt.overflow = attempt.emergency = false;
      attempt.charge = ChargeOf(rule, cost_, CostNs(rule, cost_), /*commit=*/true);
      attempt.outcome = shm::LookSlot(*attempt.slot, attempt.fp, attempt.charge.cost_ns,
                                      rule.limit.tau_ns, /*dearer_q16=*/0, now_ns, &attempt.seen);
      if (attempt.outcome != Outcome::kAllowed) return false;
    }
    return true;
  }

  // Commits what LookAll saw. False where another thread changed a word meanwhile; then all is
  // given back.
  bool CommitAll() {
    for (size_t i = 0; i < count_; ++i) spent_[i] = false;
    for (size_t i = 0; i < count_; ++i) {
      if (!shm::CommitLook(*attempts_[i].slot, attempts_[i].seen)) {
        Refund();
        return false;
      }
      spent_[i] = true;
    }
    for (size_t i = 0; i < count_; ++i) Account(ctx_, items_[i], policy_, attempts_[i]);
    return true;
  }

  // Phase 1: looks at every rule, writes nothing.
  void Peek() {
    denied_ = shadow_ = 0;
    for (size_t i = 0; i < count_; ++i) {
      spent_[i] = false;
      Attempt& attempt = attempts_[i];
      Locate(ctx_, items_[i], policy_, shm::kNoSlot, &attempt);
      Run(ctx_, items_[i], policy_, cost_, /*commit=*/false, &attempt);
      if (attempt.outcome == Outcome::kGaveUp) SettleGaveUp(ctx_, items_[i], &attempt);
      if (attempt.outcome == Outcome::kDenied) CountDenial(i);
    }
  }

  void CountDenial(size_t i) { ++(items_[i].rule->shadow ? shadow_ : denied_); }

  // The item that decides: of the denied the longest retry, else the least headroom in tokens.
  // A shadow rule decides only where nothing else matched.
  size_t Strictest() const {
    const uint64_t now_ns = ctx_.time.now_ns();
    size_t best = 0;
    double best_rank = 0;
    bool found = false;
    for (size_t i = 0; i < count_; ++i) {
      const Attempt& attempt = attempts_[i];
      if (items_[i].rule->shadow) continue;
      if (denied_ != 0 && attempt.outcome != Outcome::kDenied) continue;
      const double rank = denied_ != 0 ? static_cast<double>(RetryNs(items_[i], attempt, now_ns))
                                       : -HeadroomTokens(items_[i], attempt, now_ns);
      if (!found || rank > best_rank) {
        best = i;
        best_rank = rank;
        found = true;
      }
    }
    return best;
  }

  // Phase 2: commits, the strictest first, since it is the likeliest to be lost to another thread.
  // Returns the deciding item: `first`, or the one that was denied late (then all is refunded).
  size_t Commit(size_t first) {
    for (size_t step = 0; step < count_; ++step) {
      const size_t i = step == 0 ? first : step <= first ? step - 1 : step;
      Attempt& attempt = attempts_[i];
      if (attempt.outcome == Outcome::kDenied) continue;  // a shadow rule's denial
      Run(ctx_, items_[i], policy_, cost_, /*commit=*/true, &attempt);
      if (attempt.outcome == Outcome::kAllowed) {
        spent_[i] = attempt.charge.commit;
        continue;
      }
      if (attempt.outcome == Outcome::kDenied) {
        CountDenial(i);
        if (items_[i].rule->shadow) continue;
      }
      Refund();
      return attempt.outcome == Outcome::kDenied ? i : kAgain;
    }
    // Only now is anything counted as used: a kill in between loses a cost, never doubles it.
    for (size_t i = 0; i < count_; ++i) {
      if (spent_[i]) Account(ctx_, items_[i], policy_, attempts_[i]);
    }
    return first;
  }

  void Refund() {
    const uint64_t fresh_ns = Clock::PreciseNs();
    for (size_t i = 0; i < count_; ++i) {
      if (!spent_[i]) continue;
      const Attempt& attempt = attempts_[i];
      shm::RefundSlot(*attempt.slot, attempt.fp, attempt.seen.gen, attempt.seen.verdict.new_ns,
                      attempt.seen.cost_ns, fresh_ns);
      spent_[i] = false;
    }
  }

  int Answer(size_t decided, sluice_decision_t* decision) {
    // Each rule that says no counts the attempt: operators see who blocks, shares see the demand.
    for (size_t i = 0; i < count_ && denied_ + shadow_ != 0; ++i) {
      const Attempt& attempt = attempts_[i];
      if (attempt.outcome != Outcome::kDenied || attempt.overflow) continue;
      NoteDenied(*ctx_.attachment, *ctx_.client, *attempt.slot, attempt.seen.gen,
                 ctx_.time.now_ns());
    }
    if (decision != nullptr) {
      BeginDecision(*ctx_.attachment, policy_, denied_ == 0, &ctx_.time, decision);
      FillDecision(ctx_.time, *items_[decided].rule, attempts_[decided], decision);
      decision->allowed = denied_ == 0 ? 1 : 0;
      if (denied_ == 0) decision->retry_after_ns = 0;
      decision->shadow = shadow_ != 0 ? 1 : 0;
      for (size_t i = 0; i < count_; ++i) {
        RecordSpend(*items_[i].rule, attempts_[i], spent_[i], decision);
      }
    }
    return denied_ == 0 ? 1 : 0;
  }

  Context& ctx_;
  const Item* const items_;
  const size_t count_;
  const uint64_t policy_;
  const uint32_t cost_;
  size_t denied_ = 0;
  size_t shadow_ = 0;
  Attempt attempts_[kMaxItems];
  bool spent_[kMaxItems];
};

}  // namespace

int CheckItems(Context& ctx, const Item* items, size_t count, uint64_t policy, uint32_t cost,
               sluice_decision_t* decision) {
  if (count == 1) {
    Attempt attempt;
    Locate(ctx, items[0], policy, shm::kNoSlot, &attempt);
    return CheckItem(ctx, items[0], policy, cost, &attempt, decision);
  }
  return RequestCheck(ctx, items, count, policy, cost).Check(decision);
}

}  // namespace sluice::client
