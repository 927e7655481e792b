// The way of each host to Redis and back: how long a message takes, and whether it comes.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "tests/accuracy/scenario.h"
#include "tests/accuracy/trap.h"
#include "tests/simulation/random.h"

namespace sluice::accuracy {

enum class Way : uint8_t { kThere, kBack };

class Network {
 public:
  Network(const Scenario& scenario, simulation::Random random)
      : scenario_(scenario), random_(random), last_ns_(scenario.hosts) {}

  // When a message that is sent now arrives; none where it is lost.
  std::optional<uint64_t> ArrivesNs(uint32_t host, Way way, uint64_t now_ns) {
    if (random_.Chance(scenario_.loss)) return std::nullopt;
    const double half_ns = static_cast<double>(scenario_.rtt_ns) / 2;
    uint64_t at_ns =
        now_ns + static_cast<uint64_t>(0.8 * half_ns) + Exponential(&random_, 0.2 * half_ns);
    if (random_.Chance(scenario_.loss)) at_ns += Exponential(&random_, kLateMeanNs);
    if (scenario_.pattern == Pattern::kTrap && host == 0) {
      const Trap trap(scenario_.seed, at_ns);
      const uint64_t from_ns = way == Way::kBack ? trap.deaf_ns : trap.cut_ns;
      const uint64_t until_ns = way == Way::kBack ? trap.heard_ns : trap.joined_ns;
      if (at_ns >= from_ns && at_ns < until_ns) at_ns = until_ns;
    }
    if (scenario_.stall == 0) return at_ns;
    // As TCP has it: nothing is lost and nothing overtakes, but a segment that is sent again holds
    // up all behind it.
    if (random_.Chance(scenario_.stall)) {
      uint64_t wait_ns = kResentNs;
      while (wait_ns < kResentMaxNs && random_.Chance(scenario_.stall_again)) wait_ns *= 2;
      at_ns += wait_ns;
    }
    uint64_t& last_ns = last_ns_[host][static_cast<size_t>(way)];
    return last_ns = std::max(at_ns, last_ns + 1);
  }

 private:
  static constexpr double kLateMeanNs = 100.0 * kMilliNs;
  static constexpr uint64_t kResentNs = 200 * kMilliNs;
  static constexpr uint64_t kResentMaxNs = 3'200 * kMilliNs;

  const Scenario scenario_;
  simulation::Random random_;
  std::vector<std::array<uint64_t, 2>> last_ns_;  // the newest arrival, by host and way
};

}  // namespace sluice::accuracy
