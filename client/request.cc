// One request over its rules: all of them admit it, or nothing is spent in any.
#include <algorithm>

#include "client/admit.h"
#include "client/check.h"
#include "client/refund.h"

namespace sluice::client {
namespace {

using shm::Outcome;

constexpr int kRequestRestarts = 4;

// See AdmitAll.
struct PlannedRequest {
  const Context& ctx;
  const Item* items;
  uint64_t policy;
  uint64_t cost;
  bool is_plain;  // cost 1, and no decision is wanted

  uint64_t hash(size_t i) const { return items[i].hash; }
  uint64_t cost_ns(size_t i) const { return CostNs(*items[i].rule, cost); }
  uint64_t tau_ns(size_t i) const { return items[i].rule->limit.tau_ns; }
  uint64_t tokens(size_t i) const { return TokensOf(*items[i].rule, cost); }
  bool may_lease() const { return is_plain && !IsAnyShardDegraded(*ctx.attachment); }
  LeaseName lease_name(size_t i) const {
    return NameOfListed(*ctx.client, policy, hash(i), items[i].rule->floor_q16);
  }
  Leasable leasable(size_t i, shm::Slot& slot) const {
    return {*ctx.client,    *ctx.attachment,
            *items[i].rule, lease_name(i),
            slot,           shm::FingerprintOf(hash(i))};
  }
  void Finish(size_t i, shm::Slot& slot) const {
    FinishItem(*ctx.client, *ctx.attachment, items[i], policy, slot);
  }
};

[[gnu::noinline]] bool AdmitPlanned(const PlannedRequest& request, size_t count, Look* looks) {
  const Context& ctx = request.ctx;
  if (IsLeasing() && request.may_lease()) {
    return AdmitLeasing(request, *ctx.client, *ctx.attachment, count, ctx.time.now_ns(), looks);
  }
  return AdmitAll<true>(request, *ctx.client, *ctx.attachment, count, ctx.time.now_ns(), looks);
}

// How far an attempt stays from its edge.
uint64_t HeadroomNs(const Item& item, const Attempt& attempt, uint64_t now_ns) {
  if (item.rule->kind != shm::Kind::kTokenBucket) {
    return attempt.seen.remaining * item.rule->limit.interval_ns;
  }
  const uint64_t ahead = attempt.seen.verdict.new_ns - now_ns;
  return ahead >= item.rule->limit.tau_ns ? 0 : item.rule->limit.tau_ns - ahead;
}

uint64_t RetryNs(const Item& item, const Attempt& attempt, uint64_t now_ns) {
  if (item.rule->kind != shm::Kind::kTokenBucket) return attempt.seen.retry_after_ns;
  return shm::RetryAfterNs(attempt.seen.verdict, now_ns, attempt.seen.cost_ns,
                           FitsWithinNs(*item.rule, attempt.charge));
}

// One request over several rules.
class RequestCheck {
 public:
  RequestCheck(Context& ctx, const Item* items, size_t count, uint64_t policy, uint64_t cost)
      : ctx_(ctx), items_(items), count_(count), policy_(policy), cost_(cost) {}

  // The answer to what AdmitAll admitted.
  int Admitted(const Look* looks, sluice_decision_t* decision) {
    const uint64_t now_ns = ctx_.time.now_ns();
    for (size_t i = 0; i < count_; ++i) {
      const Look& look = looks[i];
      Attempt& attempt = attempts_[i];
      // aux is for the answer: orders nothing.
      attempt.slot = look.slot;
      attempt.index = IndexOf(*ctx_.attachment, *look.slot);
      attempt.overflow = attempt.emergency = attempt.absent = false;
      attempt.outcome = Outcome::kAllowed;
      attempt.charge = ChargeOf(*items_[i].rule, cost_, look.cost_ns(now_ns), /*commit=*/true);
      attempt.seen = {.word_ns = look.word_ns,
                      .verdict = {true, std::max(look.word_ns, now_ns), look.new_ns},
                      .cost_ns = look.cost_ns(now_ns),
                      .aux = look.slot->aux.load(std::memory_order_relaxed),
                      .gen = look.gen};
      spent_[i] = true;
    }
    return Answer(Strictest(), decision);
  }

  int Check(sluice_decision_t* decision) {
    for (int restart = 0; restart < kRequestRestarts; ++restart) {
      Peek();
      size_t decided = Strictest();
      if (denied_ == 0 && cost_ != 0 && !ctx_.is_looking()) decided = Commit(decided);
      if (decided != kAgain) return Answer(decided, decision);
    }
    ctx_.denied_by = ~0u;
    ctx_.table.Count(shm::Counter::kGaveUp);
    return AnswerDefault(ctx_.client, 0, decision);
  }

 private:
  static constexpr size_t kAgain = ~size_t{0};

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

  // Of a denied item. Nobody knows when a place is left: who waits goes by what others know.
  uint64_t RetryKnownNs(size_t i) const {
    const uint64_t retry_ns = RetryNs(items_[i], attempts_[i], ctx_.time.now_ns());
    const bool is_guess = items_[i].rule->kind == shm::Kind::kInFlight && retry_ns != shm::kNever;
    return is_guess && ctx_.patience_ns != 0 ? 0 : retry_ns;
  }

  // Whether `a` is stricter than `b`: of the denied the longer retry, else the fewer tokens left.
  bool IsStricter(size_t a, size_t b) const {
    const uint64_t now_ns = ctx_.time.now_ns();
    if (denied_ != 0) return RetryKnownNs(a) > RetryKnownNs(b);
    using Wide = unsigned __int128;
    return Wide{HeadroomNs(items_[a], attempts_[a], now_ns)} * items_[b].rule->limit.interval_ns <
           Wide{HeadroomNs(items_[b], attempts_[b], now_ns)} * items_[a].rule->limit.interval_ns;
  }

  // The item that decides. A shadow rule does only where nothing else matched.
  size_t Strictest() const {
    size_t best = 0;
    bool found = false;
    for (size_t i = 0; i < count_; ++i) {
      if (items_[i].rule->shadow) continue;
      if (denied_ != 0 && attempts_[i].outcome != Outcome::kDenied) continue;
      if (!found || IsStricter(i, best)) best = i;
      found = true;
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
      const Rule& rule = *items_[i].rule;
      spent_[i] = false;
      if (rule.kind == shm::Kind::kInFlight) {
        LeavePlaces(*ctx_.attachment, attempt.index, attempt.overflow, attempt.seen.verdict.new_ns,
                    static_cast<uint32_t>(attempt.seen.cost_ns),
                    static_cast<uint32_t>(attempt.charge.tokens));
        continue;
      }
      if (rule.kind == shm::Kind::kSlidingLog) {
        RefundLogged(*ctx_.attachment, *attempt.slot, attempt.fp, attempt.index, attempt.overflow,
                     attempt.seen.gen, attempt.seen.verdict.new_ns,
                     static_cast<uint32_t>(attempt.charge.tokens), rule.limit.period_ns, fresh_ns);
        continue;
      }
      RefundKind(rule.kind, *attempt.slot, SecondOf(*ctx_.attachment, attempt), attempt.fp,
                 attempt.seen.gen, attempt.seen.verdict.new_ns, attempt.seen.cost_ns,
                 attempt.charge.tokens, shm::window::ScaleIndexOf(rule.limit.limit), fresh_ns,
                 DelayOf(rule, attempt, ctx_.time.now_ns()) == 0 ? shm::kNever : AtOnceNs(rule));
    }
  }

  // Each rule that says no counts the attempt: operators see who blocks, shares see the demand.
  void NoteRefusals() {
    ctx_.denied_by = 0;
    for (size_t i = 0; i < count_; ++i) {
      const Attempt& attempt = attempts_[i];
      if (attempt.outcome != Outcome::kDenied) continue;
      if (!items_[i].rule->shadow) ctx_.denied_by |= 1u << i;
      if (attempt.overflow || ctx_.is_looking()) continue;
      NoteRefusal(ctx_, items_[i], policy_, attempt);
    }
  }

  int Answer(size_t decided, sluice_decision_t* decision) {
    if (denied_ + shadow_ != 0) NoteRefusals();
    if (decision != nullptr) {
      BeginDecision(*ctx_.attachment, policy_, denied_ == 0, &ctx_.time, decision);
      FillDecision(ctx_.time, *items_[decided].rule, attempts_[decided], decision);
      if (denied_ != 0 && items_[decided].rule->spread_s != 0 && !ctx_.is_looking()) {
        SpreadRetry(*ctx_.attachment, *items_[decided].rule, attempts_[decided], decision);
      }
      decision->allowed = denied_ == 0 ? 1 : 0;
      if (denied_ == 0) decision->retry_after_ns = 0;
      decision->shadow = shadow_ != 0 ? 1 : 0;
      for (size_t i = 0; i < count_; ++i) {
        RecordSpend(*items_[i].rule, attempts_[i], spent_[i], decision);
        RaiseLevel(ctx_.time, *items_[i].rule, attempts_[i], decision);
        if (IsBanned(*items_[i].rule, attempts_[i])) decision->banned = 1;
        // A request of several queues goes on when the last of them lets it.
        if (denied_ != 0 || attempts_[i].outcome != Outcome::kAllowed) continue;
        decision->delay_ns = std::max(decision->delay_ns,
                                      DelayOf(*items_[i].rule, attempts_[i], ctx_.time.now_ns()));
      }
    }
    return denied_ == 0 ? 1 : 0;
  }

  Context& ctx_;
  const Item* const items_;
  const size_t count_;
  const uint64_t policy_;
  const uint64_t cost_;
  size_t denied_ = 0;
  size_t shadow_ = 0;
  Attempt attempts_[kMaxItems];
  bool spent_[kMaxItems];
};

[[gnu::noinline]] int AnswerAdmitted(Context& ctx, const Item* items, size_t count, uint64_t policy,
                                     uint64_t cost, const Look* looks,
                                     sluice_decision_t* decision) {
  return RequestCheck(ctx, items, count, policy, cost).Admitted(looks, decision);
}

// The long way. Of its own, so that its large frame is not the usual way's.
[[gnu::noinline]] int CheckAll(Context& ctx, const Item* items, size_t count, uint64_t policy,
                               uint64_t cost, sluice_decision_t* decision) {
  return RequestCheck(ctx, items, count, policy, cost).Check(decision);
}

}  // namespace

int CheckItems(Context& ctx, const Item* items, size_t count, uint64_t policy, uint64_t cost,
               sluice_decision_t* decision) {
  const bool is_plain = cost == 1 && decision == nullptr;
  Look looks[kMaxItems];
  if (!ctx.is_looking() && (count > 1 || is_plain) &&
      AdmitPlanned({ctx, items, policy, cost, is_plain}, count, looks)) {
    return decision == nullptr ? 1
                               : AnswerAdmitted(ctx, items, count, policy, cost, looks, decision);
  }
  if (count > 1) return CheckAll(ctx, items, count, policy, cost, decision);
  Attempt attempt;
  Locate(ctx, items[0], policy, shm::kNoSlot, &attempt);
  return CheckItem(ctx, items[0], policy, cost, &attempt, decision);
}

}  // namespace sluice::client
