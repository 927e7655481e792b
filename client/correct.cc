#include "client/correct.h"

#include <algorithm>

#include "client/refund.h"

namespace sluice::client {
namespace {

uint64_t PartOf(uint64_t cost_ns, uint64_t part, uint64_t whole) {
  const auto product = static_cast<unsigned __int128>(cost_ns) * part;
  const unsigned __int128 parts = (product + whole - 1) / whole;
  return static_cast<uint64_t>(std::min<unsigned __int128>(parts, shm::kMaxCostNs));
}

// The tokens that `units` are of which `charged` took `tokens`. Saturates.
uint64_t TokensPer(uint64_t tokens, uint64_t charged, uint64_t units) {
  uint64_t part;
  return __builtin_mul_overflow(tokens / charged, units, &part) ? ~uint64_t{0} : part;
}

// Charges a bucket for more than was spent in it, without asking.
class Extra {
 public:
  // `units` of `charged`, which the spend was for.
  Extra(Context& ctx, uint64_t policy, uint64_t units, uint64_t charged)
      : ctx_(ctx), policy_(policy), units_(units), charged_(charged) {}

  void Charge(const sluice_spend_t& spend) {
    shm::Slot* const slot = SlotOf(*ctx_.attachment, spend);
    if (slot == nullptr) return;
    // After the word: I2. Both pair with the CASes of a new tenancy.
    const uint64_t w = slot->word.load(std::memory_order_acquire);
    const uint64_t key = slot->key.load(std::memory_order_acquire);
    if (shm::word::IsDead(w) || shm::key::Gen(key) != spend.gen) return;  // it has expired: no debt
    Rule rule;
    if (!ReadRule(spend, &rule)) return;
    uint64_t tokens = TokensPer(spend.tokens, charged_, units_);
    const uint64_t cost_ns =
        rule.kind == shm::Kind::kTokenBucket ? PartOf(spend.cost_ns, units_, charged_) : 0;
    if (rule.kind == shm::Kind::kSlidingLog) {
      ChargeLog(spend, *slot, rule, tokens);
      return;
    }
    Attempt attempt;
    attempt.slot = slot;
    attempt.index = spend.slot;
    attempt.overflow = (spend.flags & kOverflowSlot) != 0;
    attempt.absent = attempt.emergency = false;
    attempt.fp = shm::key::Fp(key);
    for (int tries = 0; tries < 2; ++tries) {
      attempt.charge = {.cost_ns = cost_ns,
                        .tau_ns = rule.limit.tau_ns,
                        .debt_max_ns = rule.limit.debt_max_ns,
                        .tokens = tokens,
                        .dearer_q16 = 0,
                        .admit_always = rule.kind != shm::Kind::kLease,
                        .commit = true,
                        .kind = rule.kind,
                        .limit = &rule.limit};
      attempt.outcome = CheckAnyKind(ctx_, rule, &attempt);
      if (attempt.outcome != shm::Outcome::kDenied || attempt.seen.remaining == 0) break;
      tokens = std::min<uint64_t>(attempt.seen.remaining, tokens);
    }
    if (attempt.outcome != shm::Outcome::kAllowed) return;
    if (attempt.overflow) return;
    shm::AddUse(*slot, ctx_.attachment->dirty, spend.slot, tokens);
  }

 private:
  // A log holds what there is room for.
  void ChargeLog(const sluice_spend_t& spend, shm::Slot& slot, const Rule& rule, uint64_t tokens) {
    const Attachment& a = *ctx_.attachment;
    const auto row = LogOf(a, spend.slot, (spend.flags & kOverflowSlot) != 0);
    if (!row) return;
    shm::logs::Fill(slot, row, shm::logs::TermsOf(rule.limit), spend.gen, Clock::PreciseNs(),
                    static_cast<uint32_t>(std::min<uint64_t>(tokens, shm::kMaxLogEntries)));
    shm::AddUse(slot, a.dirty, spend.slot, tokens);
  }

  // The numbers in force. Where the rules have changed since, and with them what the spend's number
  // means, only a token bucket is charged: its time was written down with the spend. The bound is a
  // number that orders nothing.
  bool ReadRule(const sluice_spend_t& spend, Rule* rule) const {
    const Attachment& a = *ctx_.attachment;
    *rule = NumbersOf(ViewOf(a, policy_), spend.rule, spend.given, /*floor_q16=*/0);
    if (IsInForce(a, policy_)) return true;
    if (KindOfFlags(spend.flags) != shm::Kind::kTokenBucket) return false;
    *rule = {};
    rule->kind = shm::Kind::kTokenBucket;
    rule->limit.tau_ns = a.control->max_debt_ns.load(std::memory_order_relaxed);
    return true;
  }

  Context& ctx_;
  const uint64_t policy_;
  const uint64_t units_;
  const uint64_t charged_;
};

}  // namespace

void Correct(Context& ctx, uint64_t policy, const sluice_spend_t& spend, uint64_t actual,
             uint64_t charged, uint64_t fresh_ns) {
  if (charged == 0 || actual == charged) return;
  if (actual > charged) {
    Extra(ctx, policy, actual - charged, charged).Charge(spend);
    return;
  }
  const uint64_t kept_ns = PartOf(spend.cost_ns, actual, charged);
  GiveBack(*ctx.attachment, policy, spend, spend.cost_ns - kept_ns,
           TokensPer(spend.tokens, charged, charged - actual), fresh_ns);
}

}  // namespace sluice::client
