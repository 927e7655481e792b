// `in_flight`: how many requests of a key may be under way at once, in place of a limit per time.
#include "daemon/config/parse_rules.h"
#include "daemon/config/text.h"

namespace sluice::config {

bool HasInFlight(Section* rule) {
  if (rule->Has("in_flight")) return true;
  if (!rule->Has("tiers")) return false;
  const YAML::Node tiers = rule->Value("tiers");
  if (!tiers.IsDefined() || !tiers.IsMap()) return false;
  for (const auto& tier : tiers) {
    if (tier.second.IsMap() && tier.second["in_flight"].IsDefined()) return true;
  }
  return false;
}

bool ReadInFlight(Section* section, uint32_t rule_cost, LimitConfig* limit) {
  const size_t problems_before = section->problem_count();
  for (const std::string_view key : {"limit", "burst", "max_delay"}) {
    if (!section->Has(key)) continue;
    section->Problem(key, "is of a limit per time, and the rule counts requests in flight",
                     "remove the line, or `in_flight` for a rule of its own");
  }
  uint64_t places = 0;
  uint64_t cost = rule_cost;
  section->Read("cost", &cost);
  if (!section->Read("in_flight", &places)) return false;
  if (cost > places) {
    section->Problem(
        section->Has("cost") ? "cost" : "in_flight",
        Cat("a cost of ", cost, " never fits ", places, " places: nothing would ever be allowed"),
        Cat("write `in_flight` of at least ", cost, ", or a lower cost"));
  }
  if (section->problem_count() != problems_before) return false;
  // A second stands for the period that there is not.
  *limit = {.limit = places,
            .period_ns = 1'000'000'000,
            .burst = places,
            .cost = static_cast<uint32_t>(cost)};
  return true;
}

std::string MendOfKind(const RuleConfig& rule, std::string_view key) {
  if (rule.kind == shm::Kind::kInFlight) {
    return Cat("remove `", key, "`, or write `limit: 100/s` in place of `in_flight`");
  }
  return Cat("write `algorithm: token_bucket` and `consistency: approximate`, or remove `", key,
             "`");
}

void CheckInFlight(Section* rule, const Config& config, const RuleConfig& out) {
  if (out.strict || out.overdraft) {
    rule->Problem("consistency", "is of a limit per time: places are never more than the limit",
                  "remove the line");
  }
  if (rule->Has("algorithm")) {
    rule->Problem("algorithm", "is of a limit per time, and the rule counts requests in flight",
                  "remove the line, or `in_flight` for a rule of its own");
  }
  if (rule->Has("when_degraded") && !config.redis) {
    rule->Warning("when_degraded", "has no effect: without Redis the places are this host's",
                  "remove it");
  }
  if (config.redis && !config.redis->regions.empty()) {
    rule->Warning(rule->Has("in_flight") ? "in_flight" : "tiers",
                  "each region counts requests in flight by itself, and hears of no other",
                  "write what one region may have");
  }
}

}  // namespace sluice::config
