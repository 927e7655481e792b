// Faults that an operator injects on purpose, to see in staging what an outage does (sluicectl
// chaos). What may be asked for is bounded here, by the daemon's own configuration.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "daemon/config/config.h"

namespace sluice::chaos {

enum class Fault : uint8_t {
  kRedisDelay,   // a share of the replies comes `by_ns` later; as a time-out where that is too late
  kRedisError,   // a share of the calls is refused, as by a Redis out of memory; none is sent
  kRedisCut,     // a share of the calls fails as on a lost connection; none is sent
  kDaemonPause,  // the reconcile thread stands still, and the heartbeat with it
  kClockLag,     // the reconcile thread's clock is `by_ns` behind
  kEmergency,    // a share of the shards, or of some rules' buckets, is in emergency
};
// As sluicectl spells it: "redis-delay".
std::string_view FaultName(Fault fault);

// Checked. One is in force at a time.
struct Order {
  Fault fault = Fault::kEmergency;
  uint64_t by_ns = 0;              // kRedisDelay: 1 ms..10 s; kClockLag: 1 ms..1 s
  double share = 1;                // above 0, up to 1; 1 where the fault knows no share
  uint64_t for_ns = 0;             // 1 s up to the configuration's max_for
  std::vector<std::string> rules;  // kEmergency: names or labels; none: all

  // "redis-delay by 200ms on 10 % of calls".
  std::string ToString() const;
};

inline constexpr uint64_t kMaxPauseNs = 20'000'000'000;

// Reads an order as the admin socket brings it: `fault`, `by`, `for`, `share` (percent), `rules`
// (comma-separated). FailedPrecondition: the configuration does not allow it; InvalidArgument: one
// of them is wrong. Both say what to write instead.
absl::StatusOr<Order> ReadOrder(const std::map<std::string, std::string>& asked,
                                const config::Config& config);

}  // namespace sluice::chaos
