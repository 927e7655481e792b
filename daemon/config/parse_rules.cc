#include "daemon/config/parse_rules.h"

#include <algorithm>
#include <array>
#include <numeric>
#include <utility>

#include "absl/strings/ascii.h"
#include "daemon/config/text.h"
#include "shm/credits.h"
#include "shm/gcra.h"
#include "shm/window.h"

namespace sluice::config {
namespace {

using shm::DegradedMode;

constexpr size_t kMaxTierBytes = 31;  // with the longest name and '@' it fills a label
static_assert(32 + 1 + kMaxTierBytes == shm::kMaxLabelBytes);

enum class Algorithm : uint8_t {
  kTokenBucket,
  kLeakyBucket,
  kFixedWindow,
  kSlidingWindow,
  kSlidingLog,
  kInFlight  // by `in_flight`, not by `algorithm`
};

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

// What a tier has of its rule where it says nothing.
struct OfRule {
  Algorithm algorithm = Algorithm::kTokenBucket;
  bool is_lent = false;  // by hosts to each other
  uint32_t cost = 1;
  uint64_t max_delay_ns = 0;  // 0: not said
  bool has_calendar = false;

  bool is_leaky() const { return algorithm == Algorithm::kLeakyBucket; }
  bool is_window() const {  // or a log
    return algorithm >= Algorithm::kFixedWindow && algorithm <= Algorithm::kSlidingLog;
  }
  bool is_in_flight() const { return algorithm == Algorithm::kInFlight; }
  bool is_log() const { return algorithm == Algorithm::kSlidingLog; }
};

// What windows cannot have.
void CheckWindow(Section* section, const OfRule& of_rule, const Rate& rate) {
  for (const std::string_view key : {"burst", "max_delay"}) {
    if (!section->Has(key)) continue;
    section->Problem(key,
                     "is not for windows: all of a window's limit may be used at once, and "
                     "nothing waits",
                     "remove the line, or write `algorithm: token_bucket` or `leaky_bucket`");
  }
  if (of_rule.is_log()) {
    if (rate.tokens <= shm::kMaxLogEntries) return;
    section->Problem("limit",
                     Cat("is a sliding log's of ", rate.tokens,
                         " tokens: it remembers each, and at most ", shm::kMaxLogEntries),
                     "write a lower limit, or `algorithm: sliding_window`");
    return;
  }
  if (rate.period_ns != 0 && rate.period_ns < shm::window::kMinPeriodNs) {
    section->Problem("limit",
                     Cat("is a window's of ", FormatDuration(rate.period_ns),
                         ": ends of windows stand on steps of 8.4 ms, too coarse below 1s"),
                     "write a period of at least 1s, or `algorithm: token_bucket`");
  }
}

// Whether the numbers of a limit fit each other; says which does not.
bool CheckLimit(Section* section, const OfRule& of_rule, const LimitConfig& limit) {
  const uint64_t tau_ns =
      shm::CostNs(limit.burst, limit.period_ns, limit.limit) + limit.max_delay_ns;
  const std::string rate = FormatRate({limit.limit, limit.period_ns});
  if (tau_ns > kMaxTauNs) {
    const auto largest = static_cast<uint64_t>(static_cast<unsigned __int128>(kMaxTauNs) *
                                               limit.limit / limit.period_ns);
    section->Problem(section->Has("burst") ? "burst" : "limit",
                     of_rule.is_window() ? Cat("a window of ", rate, " lasts more than 366 days")
                                         : Cat("a burst of ", limit.burst, " at ", rate,
                                               " takes more than 366 days to come back"),
                     largest == 0 || of_rule.is_window()
                         ? std::string("write a period of at most 366d")
                         : Cat("write a burst of at most ", largest, ", or a higher limit"));
    return false;
  }
  if (limit.cost > limit.burst) {
    const std::string_view what = of_rule.is_window() ? "limit" : "burst";
    section->Problem(section->Has("cost") ? "cost" : what,
                     Cat("a cost of ", limit.cost, " never fits a ", what, " of ", limit.burst,
                         ": nothing would ever be allowed"),
                     Cat("write a ", what, " of at least ", limit.cost, ", or a lower cost"));
    return false;
  }
  return true;
}

// What hosts lend to each other is counted in whole tokens, exactly.
bool CheckLent(Section* section, const LimitConfig& limit) {
  constexpr uint64_t kExact = 1ull << 53;  // as far as Redis counts without gaps
  const uint64_t period_us = limit.period_ns / 1000;
  const uint64_t unit_us = period_us / std::gcd(period_us, limit.limit);
  const char* const key = section->Has("burst") ? "burst" : "limit";
  if (limit.burst > shm::credits::kMax) {
    section->Problem(key, Cat("a burst of ", limit.burst, " is more than a host can be lent"),
                     Cat("write a burst of at most ", shm::credits::kMax));
    return false;
  }
  if (limit.period_ns % 1000 != 0 || unit_us > kExact / limit.burst) {
    section->Problem(key,
                     "a limit that is lent out is counted exactly, and this one has too fine parts",
                     "take a rounder limit or period, or a lower burst");
    return false;
  }
  return true;
}

void WarnOfLimit(Section* section, const OfRule& of_rule, const LimitConfig& limit,
                 const Config& config) {
  const std::string rate = FormatRate({limit.limit, limit.period_ns});
  // A cost is a whole number of ns, rounded up: at very high rates that costs some of them.
  const auto rounded = static_cast<double>(shm::CostNs(limit.cost, limit.period_ns, limit.limit));
  const double exact = static_cast<double>(limit.cost) * static_cast<double>(limit.period_ns) /
                       static_cast<double>(limit.limit);
  if (rounded > exact * 1.001 && !of_rule.is_window()) {
    section->Warning("limit",
                     Cat("at ", rate, " a request takes ", exact, " ns, counted as ",
                         static_cast<uint64_t>(rounded), " ns: the limit in force is ",
                         static_cast<int64_t>((1 - exact / rounded) * 1000) / 10.0, " % lower"),
                     "take a limit that divides its period in ns, or count in units of cost");
  }
  if (!config.redis) return;
  const double per_interval = static_cast<double>(limit.limit) *
                              static_cast<double>(config.redis->flush_interval_ns) /
                              static_cast<double>(limit.period_ns);
  // What may wait is room, too.
  const double room = static_cast<double>(limit.burst) +
                      static_cast<double>(limit.limit) * static_cast<double>(limit.max_delay_ns) /
                          static_cast<double>(limit.period_ns);
  if (of_rule.is_window()) {
    if (limit.period_ns < 2 * config.redis->flush_interval_ns) {
      section->Warning(
          "limit",
          Cat("a window of ", FormatDuration(limit.period_ns),
              " is over within two flush intervals: hosts hear too late of each other"),
          "write a longer period, or a shorter redis.flush_interval");
    }
    return;
  }
  if (room < 2 * per_interval) {
    section->Warning(section->Has("burst") ? "burst" : "limit",
                     Cat("a burst of ", limit.burst, " is spent within two flush intervals at ",
                         rate, ": over several hosts less than the limit may be used"),
                     Cat("write a burst of at least ", static_cast<uint64_t>(2 * per_interval) + 1,
                         ", or a shorter redis.flush_interval"));
  }
}

// max_delay, which only a leaky bucket may have.
void ReadMaxDelay(Section* section, const OfRule& of_rule, LimitConfig* limit) {
  limit->max_delay_ns = of_rule.max_delay_ns;
  uint64_t said_ns = 0;
  if (!section->ReadDuration("max_delay", &said_ns) || of_rule.is_window()) return;
  if (of_rule.is_leaky()) {
    limit->max_delay_ns = said_ns;
    return;
  }
  section->Problem("max_delay", "is for leaky buckets: with a token bucket nothing waits",
                   "write `algorithm: leaky_bucket` in the rule, or remove the line");
}

// The limit of a rule or of a tier; false when there is none, or a wrong one (then a problem).
bool ParseLimit(Section* section, const Config& config, const OfRule& of_rule, LimitConfig* limit) {
  if (of_rule.is_in_flight()) return ReadInFlight(section, of_rule.cost, limit);
  const size_t problems_before = section->problem_count();
  Rate rate;
  const bool has_rate = section->ReadRate("limit", &rate);
  uint64_t cost = of_rule.cost;
  section->Read("cost", &cost);
  ReadMaxDelay(section, of_rule, limit);
  // What a leaky bucket lets pass at once is one request, so that it spaces all others.
  uint64_t burst = of_rule.is_leaky() ? cost : rate.tokens;
  section->Read("burst", &burst);
  if (of_rule.is_window()) {
    CheckWindow(section, of_rule, has_rate ? rate : Rate{});
    burst = rate.tokens;
  }
  limit->cost = static_cast<uint32_t>(cost);
  if (has_rate && rate.is_of_calendar && !of_rule.has_calendar) {
    section->Problem("limit", "is of a month or a year, and no calendar says when one begins",
                     "write `calendar: {}` and `algorithm: fixed_window` in the rule, or a period "
                     "such as 30d");
  }
  if (!has_rate) {
    if (section->Has("burst") && !section->Has("limit")) {
      section->Problem("burst", "has no limit beside it", "write `limit`, for example 100/s");
    }
    return false;
  }
  if (of_rule.is_leaky() && limit->max_delay_ns == 0 && !section->Has("max_delay")) {
    section->Problem("limit", "is a leaky bucket's, and nothing says how long a request may wait",
                     "write `max_delay` beside it, for example `max_delay: 500ms`");
  }
  limit->limit = rate.tokens;
  limit->period_ns = rate.period_ns;
  limit->burst = burst;
  if (section->problem_count() != problems_before || !CheckLimit(section, of_rule, *limit) ||
      (of_rule.is_lent && config.redis && !CheckLent(section, *limit))) {
    return false;
  }
  WarnOfLimit(section, of_rule, *limit, config);
  return true;
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
    if (ParseLimit(&section, config, of_rule, &tier.limit)) out->tiers.push_back(tier);
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

// How long callers may wait, which only those of a strict rule do.
void ReadWait(Section* rule, bool is_strict, uint64_t* wait_ns) {
  uint64_t said_ns = 0;
  if (!rule->ReadDuration("wait", &said_ns)) return;
  if (is_strict) {
    *wait_ns = said_ns;
    return;
  }
  rule->Problem("wait", "is for strict rules: of any other a caller learns at once",
                "write `consistency: strict` beside it, or remove the line");
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
  ReadWait(&section, rule.strict, &rule.wait_ns);
  section.Read("shadow", &rule.shadow);
  ParseDegraded(&section, &rule.degraded, findings);

  const bool is_in_flight = HasInFlight(&section);
  OfRule of_rule{.algorithm = is_in_flight ? Algorithm::kInFlight : ReadAlgorithm(&section),
                 .is_lent = rule.strict || rule.overdraft};
  CalendarConfig calendar;
  of_rule.has_calendar = ParseCalendar(&section, &calendar, findings);
  rule.kind = KindOf(of_rule.algorithm);
  const bool has_regions = config.redis && !config.redis->regions.empty();
  if (rule.overdraft && has_regions) {
    section.Warning("consistency", "each region lends by itself, and hears of no other",
                    "write `consistency: strict` for one limit over all regions");
  }
  LimitConfig own;
  if (ParseLimit(&section, config, of_rule, &own)) rule.limit = own;
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
