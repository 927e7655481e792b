#include "daemon/config/config.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "daemon/config/text.h"
#include "shm/kinds.h"

namespace sluice::config {

std::string_view LogLevelName(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return "debug";
    case LogLevel::kInfo:
      return "info";
    case LogLevel::kWarning:
      return "warning";
    case LogLevel::kError:
      return "error";
  }
  return "info";
}

std::string_view RedisModeName(RedisMode mode) {
  switch (mode) {
    case RedisMode::kCluster:
      return "cluster";
    case RedisMode::kSingle:
      return "single";
    case RedisMode::kSentinel:
      return "sentinel";
  }
  return "cluster";
}

std::string_view TransportName(Transport transport) {
  switch (transport) {
    case Transport::kAuto:
      return "auto";
    case Transport::kIoUring:
      return "io_uring";
    case Transport::kEpoll:
      return "epoll";
  }
  return "auto";
}

std::string_view AlgorithmName(shm::Kind kind, uint64_t max_delay_ns) {
  if (kind == shm::Kind::kFixedWindow) return "fixed_window";
  if (kind == shm::Kind::kSlidingWindow) return "sliding_window";
  if (kind == shm::Kind::kSlidingLog) return "sliding_log";
  if (kind == shm::Kind::kInFlight) return "in_flight";
  return max_delay_ns != 0 ? "leaky_bucket" : "token_bucket";
}

shm::LogShape LogsFor(const Config& config) {
  uint64_t most = 0;
  for (const RuleConfig& rule : config.rules) {
    if (!shm::HasRow(rule.kind)) continue;
    ForEachLimit(rule, [&](const LimitConfig* limit) { most = std::max(most, limit->limit); });
  }
  if (most == 0) return {};
  most = std::clamp<uint64_t>(most, shm::kMinLogEntries, shm::kMaxLogEntries);
  return {.rows = static_cast<uint32_t>(config.daemon.log_keys),
          .entries = std::bit_ceil(static_cast<uint32_t>(most))};
}

std::string RuleLabel(const RuleConfig& rule, const TierConfig* tier) {
  return tier == nullptr ? rule.name : rule.name + "@" + tier->tier;
}

std::string PenaltyConfig::ToString() const {
  return Cat("penalty ", after, " ", within_ns, " ", for_ns, " ", deny_costs);
}

std::vector<std::string> RegionNames(const RedisConfig& redis) {
  std::vector<std::string> names;
  if (!redis.regions.empty()) names.push_back(redis.region);
  for (const RedisConfig& region : redis.regions) {
    if (region.region != redis.region) names.push_back(region.region);
  }
  return names;
}

void KeepCalendarPlaces(const std::vector<CalendarConfig>& former, Config* fresh) {
  std::vector<CalendarConfig> places = former;
  std::vector<bool> is_kept(shm::kMaxCalendars);
  std::vector<uint16_t> moved(fresh->calendars.size());
  const auto place = [&](size_t i, size_t at) {
    if (at == places.size()) places.emplace_back();
    places[at] = fresh->calendars[i];
    is_kept[at] = true;
    moved[i] = static_cast<uint16_t>(at + 1);
  };
  for (size_t i = 0; i < moved.size(); ++i) {
    const auto found = std::find(former.begin(), former.end(), fresh->calendars[i]);
    if (found != former.end()) place(i, static_cast<size_t>(found - former.begin()));
  }
  for (size_t i = 0; i < moved.size(); ++i) {
    if (moved[i] != 0) continue;
    size_t at = 0;
    while (at < places.size() && is_kept[at]) ++at;
    place(i, at);
  }
  fresh->calendars = std::move(places);
  const auto move = [&](LimitConfig* limit) {
    if (limit->calendar != 0) limit->calendar = moved[limit->calendar - 1];
  };
  for (RuleConfig& rule : fresh->rules) ForEachLimit(rule, move);
}

}  // namespace sluice::config
