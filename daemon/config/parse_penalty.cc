// `penalty`: what follows denials.
#include "daemon/config/parse_rules.h"
#include "daemon/config/text.h"
#include "daemon/config/units.h"

namespace sluice::config {
namespace {

constexpr uint64_t kMinWithinNs = 1'000'000'000;
constexpr uint64_t kMaxWithinNs = 86'400'000'000'000;

constexpr std::string_view kClassed = "its classes end at different times";

// Why a rule cannot have one; empty: it can.
std::string_view WhyNot(const RuleConfig& rule) {
  if (rule.strict || rule.overdraft) return "hosts lend its tokens to each other";
  if (rule.kind == shm::Kind::kSlidingLog) return "it is a log";
  if (rule.kind == shm::Kind::kInFlight) return "it counts requests in flight";
  if (rule.kind != shm::Kind::kTokenBucket) return "it is a window";
  if (rule.limit && rule.limit->max_delay_ns != 0) return "it is a leaky bucket";
  for (const TierConfig& tier : rule.tiers) {
    if (tier.limit.max_delay_ns != 0) return "it is a leaky bucket";
  }
  return rule.priority ? kClassed : "";
}

void ReadBan(Section* section, PenaltyConfig* penalty) {
  Rate after;
  const bool has_after = section->ReadRate("after", &after);
  const bool has_for = section->ReadDuration("for", &penalty->for_ns);
  if (section->Has("after") != section->Has("for")) {
    const bool is_endless = section->Has("after");
    section->Problem(is_endless ? "after" : "for",
                     is_endless ? "says when a ban begins, but not how long it lasts"
                                : "says how long a ban lasts, but not when it begins",
                     is_endless ? "write `for`, for example `for: 1h`"
                                : "write `after`, for example `after: 20 per 10s`");
    return;
  }
  if (!has_after || !has_for) return;
  if (after.is_of_calendar || after.period_ns < kMinWithinNs || after.period_ns > kMaxWithinNs) {
    section->Problem("after", Cat("counts denials within ", FormatDuration(after.period_ns)),
                     "write a time from 1s to 1d, for example `after: 20 per 10s`");
    return;
  }
  penalty->after = after.tokens;
  penalty->within_ns = after.period_ns;
}

}  // namespace

void ParsePenalty(Section* rule, const Config& config, RuleConfig* out, Findings* findings) {
  const YAML::Node node = rule->Value("penalty");
  if (!node.IsDefined()) return;
  if (!node.IsMap()) {
    rule->Problem("penalty", Cat("is ", KindOf(node), ", not a mapping"),
                  "write for example `penalty: {after: 20 per 10s, for: 1h}`");
    return;
  }
  if (const std::string_view why = WhyNot(*out); !why.empty()) {
    const bool is_classed = out->priority && why == kClassed;
    rule->Problem("penalty", Cat("is for token buckets without `priority`, and of this rule ", why),
                  is_classed ? "remove `priority`, or the penalty" : MendOfKind(*out, "penalty"));
    return;
  }
  Section section(node, rule->MarkOf("penalty"), rule->PathOf("penalty"),
                  rule->SpecPathOf("penalty"), findings);
  const size_t problems_before = findings->problem_count();
  PenaltyConfig penalty;
  ReadBan(&section, &penalty);
  uint64_t costs = 0;
  section.Read("deny_costs", &costs);
  penalty.deny_costs = static_cast<uint32_t>(costs);
  if (findings->problem_count() != problems_before) return;
  if (!penalty.is_any()) {
    rule->Problem("penalty", "says nothing",
                  "write `after` and `for`, or `deny_costs`, or remove it");
    return;
  }
  if (config.redis && !config.redis->regions.empty()) {
    rule->Warning("penalty", "each region counts denials by itself, and bans for itself", "");
  }
  out->penalty = penalty;
}

}  // namespace sluice::config
