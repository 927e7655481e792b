#include "tests/torture/features_judge.h"

namespace sluice::torture {
namespace {

// As test_features.py says them.
constexpr uint64_t kNearPercent = 70;
constexpr uint64_t kSoftPercent = 90;
constexpr uint64_t kSpreadNs = 1'000'000'000;
constexpr uint64_t kBanNs = 1'000'000'000;
constexpr uint64_t kPlanLimits[kPlans] = {500, 250, 1000, 1500};
constexpr uint64_t kLoginNs = 2'000'000;  // each token
// Each client has one request on its way at most, of which a ban may be that much shorter until the
// daemon looks: what was charged before the ban and is given back during it.
constexpr uint64_t kBanSlackTokens = kClients * kMostCost;
// Redis is not asked here; what is rounded is less than this.
constexpr uint64_t kBanRoundingNs = 2'000'000;

}  // namespace

void Judge::Any(const Request& request, const Decision& d) {
  if (d.raw().source != SLUICE_SOURCE_RULES) return;
  if ((d.level() == Level::kHard) != !d.allowed()) {
    board_.denied_not_hard.Note("%zu rules: allowed %d, level %d", request.buckets.size(),
                                d.allowed(), static_cast<int>(d.level()));
  }
}

void Judge::Alone(const Request& request, uint64_t cost, const Decision& d) {
  if (d.raw().source != SLUICE_SOURCE_RULES) return;
  const Rule rule = request.buckets[0].rule;
  const sluice_decision_t& raw = d.raw();
  if (rule == kLevels && d) {
    const uint64_t used = (raw.burst - raw.remaining) * 100;
    const Level level = used >= raw.burst * kSoftPercent   ? Level::kSoft
                        : used >= raw.burst * kNearPercent ? Level::kNear
                                                           : Level::kOk;
    if (level == Level::kNear) ++board_.near;
    if (level == Level::kSoft) ++board_.soft;
    if (d.level() != level) {
      board_.bad_level.Note("%lu of %lu remain: level %d", raw.remaining, raw.burst,
                            static_cast<int>(d.level()));
    }
  }
  if (rule == kSpread && !d) {
    // What is missing to the cost, and a place in the queue behind that.
    const uint64_t needed_ns = raw.reset_after_ns + cost * PerTokenNs(d);
    const uint64_t plain_ns = needed_ns - std::min(needed_ns, raw.burst * PerTokenNs(d));
    if (raw.retry_after_ns < plain_ns || raw.retry_after_ns > plain_ns + kSpreadNs) {
      board_.bad_spread.Note("after %lu ns, plainly after %lu", raw.retry_after_ns, plain_ns);
    }
  }
  if (rule == kGiven) {
    const int trace = request.buckets[0].trace;
    const uint64_t limit = kPlanLimits[trace < 0 ? 0 : trace - kGivenTrace];
    if (raw.limit != limit || raw.burst != limit / 5) {
      board_.bad_given.Note("%lu with burst %lu, not %lu", raw.limit, raw.burst, limit);
    }
  }
}

double Judge::SinceBegin(uint64_t ns) const {
  return (static_cast<double>(ns) - static_cast<double>(board_.begin_ns)) * 1e-9;
}

uint64_t Judge::BannedUntil(const Request& request) const {
  for (const Request::Bucket& b : request.buckets) {
    if (b.rule == kLogin && b.key <= kLoose) return board_.banned_until_ns[b.key].load();
  }
  return 0;
}

void Judge::Ban(const Request& request, uint64_t banned_until_ns, const Decision& d) {
  const sluice_decision_t& raw = d.raw();
  const uint64_t slack_ns = kBanSlackTokens * kLoginNs + kBanRoundingNs;
  const bool is_in = raw.now_ns + slack_ns < banned_until_ns;
  if (d && !d.is_default() && is_in) {
    board_.in_ban.Note("key %d at %.6f s, until %.6f s, by %zu rules", request.buckets[0].key,
                       SinceBegin(raw.now_ns), SinceBegin(banned_until_ns), request.buckets.size());
  }
  // Of several rules another may have told when to come back.
  if (!d.is_banned() || !request.is_alone()) return;
  ++board_.banned;
  const uint64_t until_ns = raw.now_ns + raw.retry_after_ns;
  if (is_in && until_ns > banned_until_ns + slack_ns) {
    board_.longer_ban.Note("key %d at %.6f s, from %.6f s to %.6f s", request.buckets[0].key,
                           SinceBegin(raw.now_ns), SinceBegin(banned_until_ns),
                           SinceBegin(until_ns));
  }
  Cell& told = board_.banned_until_ns[request.buckets[0].key];
  uint64_t before_ns = told.load();
  while (before_ns < until_ns) {
    if (!told.compare_exchange_weak(before_ns, until_ns)) continue;
    if (until_ns > before_ns + kBanNs / 2) ++board_.bans;
    return;
  }
}

// A bucket begins as one that is full at that time: so who was not on a CPU between its look at the
// clock and at the bucket may see one that has begun meanwhile, which is full by now.
void Judge::Full(Rule rule, int key, const Decision& d) {
  if (d.is_default()) return;
  const uint64_t full = rule == kPlaces ? d.limit() : d.raw().burst;
  if (d && d.remaining() == full && d.level() == Level::kOk && !d.is_banned()) return;
  const uint64_t full_ns = d.raw().now_ns + d.raw().reset_after_ns;
  if (IsTokenBucket(rule) && !d.is_banned() && full_ns <= NowNs()) return;
  board_.not_full.Note("%s:%d: %lu of %lu remain, %lu ns to full, level %d", kNames[rule], key,
                       d.remaining(), full, d.raw().reset_after_ns, static_cast<int>(d.level()));
}

}  // namespace sluice::torture
