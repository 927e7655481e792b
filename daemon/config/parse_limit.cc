// `limit` and what stands beside it: `burst`, `cost`, `max_delay`, `candidate`.
#include "daemon/config/parse_limit.h"

#include <numeric>
#include <string>

#include "daemon/config/parse_rules.h"
#include "daemon/config/text.h"
#include "shm/credits.h"
#include "shm/gcra.h"
#include "shm/window.h"

namespace sluice::config {
namespace {

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
  if (limit.limit > shm::kFineTokens && limit.period_ns < shm::window::kMinPeriodNs) {
    section->Problem(
        "limit", Cat("of ", rate, " is more than a host can count"),
        Cat("write a period of at least 1s, or a limit of at most ", Grouped(shm::kFineTokens)));
    return false;
  }
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

}  // namespace

bool ParseLimit(Section* section, const Config& config, const OfRule& of_rule, LimitConfig* limit) {
  if (of_rule.is_in_flight()) return ReadInFlight(section, of_rule.cost, limit);
  const size_t problems_before = section->problem_count();
  Rate rate;
  const bool has_rate = section->ReadRate("limit", &rate);
  uint64_t cost = of_rule.cost;
  section->Read("cost", &cost);
  ReadMaxDelay(section, of_rule, limit);
  // What a leaky bucket lets pass at once is one request, so that it spaces all others.
  uint64_t burst = of_rule.burst != 0 ? of_rule.burst : of_rule.is_leaky() ? cost : rate.tokens;
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

// What the candidate leaves out is as in the limit beside it. What it says that limit says too: to
// promote the candidate is to exchange what both say, and to do so again is the way back.
std::optional<LimitConfig> ParseCandidate(Section* section, const Config& config,
                                          const OfRule& of_rule, const LimitConfig& live,
                                          std::string_view label, Findings* findings) {
  const YAML::Node node = section->Value("candidate");
  if (!node.IsDefined()) return std::nullopt;
  if (!node.IsMap()) {
    section->Problem("candidate", Cat("is ", KindOf(node), ", not a mapping"),
                     "write for example `candidate: {limit: 50/s}`");
    return std::nullopt;
  }
  if (of_rule.is_in_flight()) {
    section->Problem("candidate", "is not for requests in flight, whose places are taken and left",
                     "write a rule of its own with `shadow: true`, or remove it");
    return std::nullopt;
  }
  if (of_rule.is_strict) {
    section->Problem("candidate",
                     "is not for strict rules: what is lent would be borrowed twice over",
                     "write a rule of its own with `shadow: true`, or remove it");
    return std::nullopt;
  }
  if (label.size() + kCandidateMark.size() > shm::kMaxLabelBytes) {
    section->Problem("candidate",
                     Cat("needs a label of at most ", shm::kMaxLabelBytes - kCandidateMark.size(),
                         " bytes, and `", label, "` has ", label.size()),
                     "write a shorter name of the rule or the tier");
    return std::nullopt;
  }
  Section candidate(node, section->MarkOf("candidate"), section->PathOf("candidate"),
                    section->SpecPathOf("candidate"), findings);
  for (const std::string_view key : {"burst", "cost", "max_delay"}) {
    if (!candidate.Has(key) || section->Has(key)) continue;
    candidate.Problem(key, "stands in the candidate alone, and what is promoted is exchanged",
                      Cat("write `", key, "` beside the candidate too"));
    return std::nullopt;
  }
  OfRule own = of_rule;
  own.cost = live.cost;
  own.max_delay_ns = live.max_delay_ns;
  if (section->Has("burst")) own.burst = live.burst;
  LimitConfig limit;
  if (!ParseLimit(&candidate, config, own, &limit)) return std::nullopt;
  return limit;
}

}  // namespace sluice::config
