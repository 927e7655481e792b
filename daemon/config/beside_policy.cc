// What rules have that a policy's bytes do not say, since clients need none of it.
#include "daemon/config/compile.h"

namespace sluice::config {

void CompiledRules::AddCalendars(const std::vector<std::shared_ptr<const CalendarTable>>& tables) {
  for (CompiledRule& rule : rules_) {
    const uint32_t place = rule.calendar_place;
    rule.calendar = place != 0 && place <= tables.size() ? tables[place - 1] : nullptr;
  }
}

void CompiledRules::AddRegions(const Config& config) {
  if (!config.redis || config.redis->regions.empty()) return;
  const std::vector<std::string> names = RegionNames(*config.redis);
  for (CompiledRule& rule : rules_) {
    rule.exchanged =
        rule.kind == shm::Kind::kTokenBucket ||
        (shm::IsWindow(rule.kind) && IsWindowExchanged(*config.redis, rule.limit.period_ns));
    if (rule.kind != shm::Kind::kLease) continue;
    const std::string name = RuleName(rule.label);
    for (const RuleConfig& written : config.rules) {
      if (written.name != name || written.home.by == HomeBy::kNone) continue;
      rule.home = std::make_shared<const Home>(written, rule.label, names);
      break;
    }
  }
}

void CompiledRules::AddPenalties(const Config& config) {
  for (CompiledRule& rule : rules_) {
    const std::string name = RuleName(rule.label);
    for (const RuleConfig& written : config.rules) {
      if (written.name == name && !rule.is_candidate()) rule.penalty = written.penalty;
    }
  }
}

void CompiledRules::AddPrivacy(const Config& config) {
  for (const RuleConfig& written : config.rules) {
    if (!written.IsPrivate() || config.privacy.keys == nullptr) continue;
    auto privacy = std::make_shared<Privacy>();
    privacy->keys = config.privacy.keys;
    for (const KeyConfig& part : written.key) {
      privacy->descriptors.push_back(part.is_private ? part.descriptor : std::string());
    }
    for (CompiledRule& rule : rules_) {
      if (RuleName(rule.label) == written.name) rule.privacy = privacy;
    }
  }
}

}  // namespace sluice::config
