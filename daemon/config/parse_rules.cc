#include "daemon/config/parse_rules.h"

#include <algorithm>
#include <array>
#include <utility>

#include "absl/strings/ascii.h"
#include "daemon/config/parse_limit.h"
#include "daemon/config/text.h"

namespace sluice::config {
namespace {

using shm::DegradedMode;

constexpr size_t kMaxTierBytes = 31;  // with the longest name and '@' it fills a label
static_assert(32 + 1 + kMaxTierBytes == shm::kMaxLabelBytes);

bool IsRuleName(std::string_view name) {
  return std::all_of(name.begin(), name.end(), [](char c) {
    const auto byte = static_cast<unsigned char>(c);
    return absl::ascii_islower(byte) || absl::ascii_isdigit(byte) || c == '_' || c == '.' ||
           c == '-';
  });
}

bool IsTierName(std::string_view name) {
  return !name.empty() && name.size() <= kMaxTierBytes &&
         std::all_of(name.begin(), name.end(), [](char c) {
           const auto byte = static_cast<unsigned char>(c);
           return absl::ascii_isalnum(byte) || c == '_' || c == '.' || c == '-';
         });
}

bool ReadMode(Section* section, std::string_view name, DegradedMode* mode) {
  constexpr std::array kModes = {DegradedMode::kOpen, DegradedMode::kClosed,
                                 DegradedMode::kDegrade};  // in the order of the table
  size_t index = 0;
  if (!section->ReadChoice(name, &index)) return false;
  *mode = kModes[index];
  return true;
}

void ParseDegraded(Section* rule, DegradedConfig* degraded, Findings* findings) {
  *degraded = DegradedConfig{};
  const YAML::Node node = rule->Value("when_degraded");
  if (node.IsDefined() && node.IsScalar()) {
    rule->Problem(
        "when_degraded", Cat(Shown(node.Scalar()), " is a single value, not a mapping"),
        Cat("write `when_degraded: {mode: ", node.Scalar() == "open" ? "open" : "closed", "}`"));
    return;
  }
  Section section(node, rule->MarkOf("when_degraded"), rule->PathOf("when_degraded"),
                  rule->SpecPathOf("when_degraded"), findings);
  ReadMode(&section, "mode", &degraded->mode);
  section.ReadNumber("factor", &degraded->factor);
  section.ReadDuration("for", &degraded->for_ns);
  const bool has_then = ReadMode(&section, "then", &degraded->then);
  degraded->then_factor = degraded->factor;
  section.ReadNumber("then_factor", &degraded->then_factor);
  section.Read("alert", &degraded->alert);

  if (section.Has("for") && !section.Has("then")) {
    section.Problem("for", "says how long, but not what follows",
                    "write `then: open`, `then: closed` or `then: degrade`");
  }
  if (section.Has("then") && !section.Has("for")) {
    section.Problem("then", "says what follows, but not after how long",
                    "write `for`, for example `for: 60s`");
  }
  if (!has_then) degraded->then = degraded->mode;
  const bool degrades = degraded->mode == DegradedMode::kDegrade;
  const bool then_degrades = has_then && degraded->then == DegradedMode::kDegrade;
  if (section.Has("factor") && !degrades && !then_degrades) {
    section.Warning("factor", "has no effect without `degrade`", "write `mode: degrade`");
  }
  if (section.Has("then_factor") && !then_degrades) {
    section.Warning("then_factor", "has no effect without `then: degrade`", "");
  }
}

void ParseTiers(Section* rule, const OfRule& of_rule, const Config& config, RuleConfig* out,
                Findings* findings) {
  const YAML::Node node = rule->Value("tiers");
  if (!node.IsDefined()) return;
  const std::string path = rule->PathOf("tiers");
  if (!node.IsMap() || node.size() == 0) {
    rule->Problem("tiers", node.IsMap() ? "is empty" : Cat("is ", KindOf(node), ", not a mapping"),
                  "write `tiers: {free: {limit: 10/s}, paid: {limit: 1000/s}}`");
    return;
  }
  for (const Entry& entry : ReadEntries(node, path, findings)) {
    if (!IsTierName(entry.name)) {
      findings->Problem(entry.mark, path, Cat(Shown(entry.name), " is no name of a tier"),
                        Cat("write letters, digits and _ . -, at most ", kMaxTierBytes));
      continue;
    }
    Section section(entry.value, entry.mark, Cat(path, ".", entry.name), "rules[].tiers.*",
                    findings);
    TierConfig tier{.tier = entry.name, .degraded = out->degraded};
    if (section.Has("when_degraded")) ParseDegraded(&section, &tier.degraded, findings);
    const std::string_view wanted = of_rule.is_in_flight() ? "in_flight" : "limit";
    if (!section.Has(wanted)) {
      section.Problem(
          wanted, "is missing",
          Cat("write for example `", wanted, of_rule.is_in_flight() ? ": 10`" : ": 100/s`"));
    }
    if (!ParseLimit(&section, config, of_rule, &tier.limit)) continue;
    tier.candidate =
        ParseCandidate(&section, config, of_rule, tier.limit, RuleLabel(*out, &tier), findings);
    out->tiers.push_back(tier);
  }
}

Algorithm ReadAlgorithm(Section* rule) {
  constexpr std::array kAlgorithms = {Algorithm::kTokenBucket, Algorithm::kLeakyBucket,
                                      Algorithm::kFixedWindow, Algorithm::kSlidingWindow,
                                      Algorithm::kSlidingLog};  // in the order of the table
  const YAML::Node node = rule->Value("algorithm");
  if (!node.IsDefined()) return Algorithm::kTokenBucket;
  if (node.IsScalar() && (node.Scalar() == "concurrency" || node.Scalar() == "in_flight")) {
    rule->Problem("algorithm",
                  Cat(Shown(node.Scalar()), " is none: requests in flight are no limit per time"),
                  "write `in_flight: 100` in place of `algorithm` and `limit`");
    return Algorithm::kTokenBucket;
  }
  size_t index = 0;
  return rule->ReadChoice("algorithm", &index) ? kAlgorithms[index] : Algorithm::kTokenBucket;
}

shm::Kind KindOf(Algorithm algorithm) {
  if (algorithm == Algorithm::kFixedWindow) return shm::Kind::kFixedWindow;
  if (algorithm == Algorithm::kSlidingLog) return shm::Kind::kSlidingLog;
  if (algorithm == Algorithm::kInFlight) return shm::Kind::kInFlight;
  return algorithm == Algorithm::kSlidingWindow ? shm::Kind::kSlidingWindow
                                                : shm::Kind::kTokenBucket;
}

// How long callers may wait, which only those of a rule that lends do.
void ReadWait(Section* rule, bool is_lent, uint64_t* wait_ns) {
  uint64_t said_ns = 0;
  if (!rule->ReadDuration("wait", &said_ns)) return;
  if (is_lent) {
    *wait_ns = said_ns;
    return;
  }
  rule->Problem("wait", "is for rules that lend: of any other a caller learns at once",
                "write `consistency: strict` or `overdraft` beside it, or remove the line");
}

void WarnOfShortWindows(Section* section, const RedisConfig& redis, const RuleConfig& rule) {
  bool is_short = rule.limit && !IsWindowExchanged(redis, rule.limit->period_ns);
  for (const TierConfig& tier : rule.tiers) {
    is_short = is_short || !IsWindowExchanged(redis, tier.limit.period_ns);
  }
  if (!is_short) return;
  section->Warning("algorithm",
                   "each region counts windows so short by itself, and hears of no other",
                   "write a period of at least four times `redis.exchange` for one limit over all");
}

void ParseRuleName(Section* section, RuleConfig* rule, const std::vector<RuleConfig>& others) {
  if (!section->Read("name", &rule->name)) return;
  if (!IsRuleName(rule->name)) {
    section->Problem("name", Cat(Shown(rule->name), " is no name of a rule"),
                     "write lower-case letters, digits and _ . - only");
  }
  for (const RuleConfig& other : others) {
    if (other.name != rule->name) continue;
    section->Problem("name", Cat("`", rule->name, "` is already the rule of line ", other.line),
                     "give each rule a name of its own");
    break;
  }
}

RuleConfig ParseRule(const YAML::Node& node, const YAML::Mark& at, const std::string& path,
                     Config& config, Findings* findings) {
  Section section(node, at, path, "rules[]", findings);
  RuleConfig rule;
  rule.line = at.is_null() ? 0 : at.line + 1;
  if (!node.IsMap() && !node.IsNull()) return rule;  // said already
  ParseRuleName(&section, &rule, config.rules);
  ParseMatch(&section, &rule.match, findings);
  ParseKey(&section, &rule.key, findings);
  ParseConsistency(&section, config, &rule, findings);
  ReadWait(&section, rule.strict || rule.overdraft, &rule.wait_ns);
  section.Read("shadow", &rule.shadow);
  ParseDegraded(&section, &rule.degraded, findings);

  const bool is_in_flight = HasInFlight(&section);
  if (is_in_flight && !section.Has("when_degraded")) {
    // Never over: unless somebody says otherwise, nobody is let in whom Redis does not count.
    rule.degraded.mode = rule.degraded.then = DegradedMode::kClosed;
  }
  OfRule of_rule{.algorithm = is_in_flight ? Algorithm::kInFlight : ReadAlgorithm(&section),
                 .is_lent = rule.strict || rule.overdraft,
                 .is_strict = rule.strict};
  CalendarConfig calendar;
  of_rule.has_calendar = ParseCalendar(&section, &calendar, findings);
  rule.kind = KindOf(of_rule.algorithm);
  const bool has_regions = config.redis && !config.redis->regions.empty();
  if (rule.overdraft && has_regions) {
    section.Warning("consistency", "each region lends by itself, and hears of no other",
                    "write `consistency: strict` for one limit over all regions");
  }
  LimitConfig own;
  if (ParseLimit(&section, config, of_rule, &own)) {
    rule.limit = own;
    rule.candidate = ParseCandidate(&section, config, of_rule, own, rule.name, findings);
  }
  of_rule.cost = own.cost;
  of_rule.max_delay_ns = own.max_delay_ns;
  if (section.Read("tier_by", &rule.tier_by) &&
      CheckDescriptorName(rule.tier_by, section.MarkOf("tier_by"), section.PathOf("tier_by"),
                          findings) &&
      !section.Has("tiers")) {
    section.Warning("tier_by", "has no effect without `tiers`", "write `tiers`, or remove it");
  }
  ParseTiers(&section, of_rule, config, &rule, findings);
  ParsePriority(&section, &rule, findings);
  ParseAnswers(&section, &rule, findings);
  ParsePenalty(&section, config, &rule, findings);
  ParseOverride(&section, &rule, findings);
  ParseOutcomes(&section, &rule, findings);
  if (of_rule.is_log() && has_regions) {
    section.Warning("algorithm",
                    "each region counts a sliding log by itself, and hears of no other",
                    "write `algorithm: sliding_window` for one limit over all regions");
  } else if (of_rule.is_window() && has_regions) {
    WarnOfShortWindows(&section, *config.redis, rule);
  }
  if (of_rule.has_calendar) FollowCalendar(&section, calendar, &config, &rule);
  if (is_in_flight) CheckInFlight(&section, config, rule);
  if (!section.Has("limit") && !section.Has("in_flight") && !section.Has("tiers")) {
    section.Problem("limit", "is missing",
                    "write for example `limit: 100/s`, or `in_flight: 10`, or limits by `tiers`");
  }
  return rule;
}

}  // namespace

void ParseRules(Section* top, Config* config, Findings* findings) {
  const YAML::Node node = top->Value("rules");
  if (!node.IsDefined()) return;
  if (!node.IsSequence()) {
    top->Problem("rules", Cat("is ", KindOf(node), ", not a list"),
                 "write each rule as `- name: ...` with its keys below, or `rules: []` for none");
    return;
  }
  if (node.size() > shm::kMaxGroups) {
    top->Problem(
        "rules", Cat("holds ", node.size(), " rules"),
        Cat("write at most ", shm::kMaxGroups, "; one rule with a key serves any number of users"));
    return;
  }
  for (size_t i = 0; i < node.size(); ++i) {
    const YAML::Mark mark = node[i].Mark().is_null() ? top->MarkOf("rules") : node[i].Mark();
    config->rules.push_back(ParseRule(node[i], mark, Cat("rules[", i, "]"), *config, findings));
  }
  if (config->rules.empty()) {
    top->Warning("rules", "are empty: every request is allowed", "");
  }
}

}  // namespace sluice::config
