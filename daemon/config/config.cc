#include "daemon/config/config.h"

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
  return max_delay_ns != 0 ? "leaky_bucket" : "token_bucket";
}

std::string RuleLabel(const RuleConfig& rule, const TierConfig* tier) {
  return tier == nullptr ? rule.name : rule.name + "@" + tier->tier;
}

std::vector<std::string> RegionNames(const RedisConfig& redis) {
  std::vector<std::string> names;
  if (!redis.regions.empty()) names.push_back(redis.region);
  for (const RedisConfig& region : redis.regions) {
    if (region.region != redis.region) names.push_back(region.region);
  }
  return names;
}

}  // namespace sluice::config
