// Who asks when, and what goes wrong.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tests/simulation/random.h"

namespace sluice::accuracy {

inline constexpr uint64_t kSecondNs = 1'000'000'000;
inline constexpr uint64_t kMilliNs = 1'000'000;

enum class Pattern : uint8_t {
  kUni,
  kZipf,
  kHot,
  kMove,
  kHop,
  kOnOff,
  kRamp,
  kFlash,
  kPulse,
  kSpike,
  kTrap
};

// How Redis' clock is set, some times in a run.
enum class Jump : uint8_t { kNone, kBack, kForward };
inline constexpr uint64_t kForwardNs = 20 * kMilliNs;  // each time

struct Scenario {
  std::string name;
  Pattern pattern = Pattern::kUni;
  uint32_t hosts = 100;
  double load = 0.9;  // of the limit
  uint64_t limit_per_s = 10'000;
  uint64_t burst = 1'000;
  uint64_t max_cost = 1;  // costs are 1, 1, 1 and up to this
  uint64_t spike = 0;     // so many come together at one host, where the pattern is of such
  uint64_t wait_ns = 0;
  uint64_t duration_ns = 30 * kSecondNs;
  uint64_t warm_ns = 0;  // until then nothing is judged
  uint64_t rtt_ns = kMilliNs;
  double loss = 0;  // of messages each way; as many are late
  bool crash = false;
  bool pause = false;
  uint64_t late_ns = 0;  // hosts reach Redis again so long after a pause at most
  bool failover = false;
  bool adopt = false;       // what dies is the daemon alone, and the next one adopts its segments
  double stall = 0;         // of messages: the connection waits until they are sent again
  double stall_again = 0;   // of these, at each time: it waits twice as long
  uint64_t service_ns = 0;  // of Redis for a bucket of a call; 0: none
  Jump jump = Jump::kNone;
  uint64_t seed = 0;  // of what network and arrivals do together
  uint32_t keys = 1;  // each with the limit, and asked for alike
};

// All that are known, in the order of the table.
std::vector<Scenario> Scenarios();

struct Arrival {
  uint64_t at_ns = 0;
  uint32_t host = 0;
  uint32_t key = 0;
  uint64_t cost = 1;
};

// The arrivals of one run in order of time.
class Arrivals {
 public:
  Arrivals(const Scenario& scenario, simulation::Random random);
  // The next one; at_ns beyond the duration: it is over.
  Arrival Next();

 private:
  Arrival NextOfSpikes();
  double RateAt(uint64_t at_ns);
  bool Picks(uint64_t at_ns, uint32_t* host);
  void Shuffle();

  struct OnOff {
    bool on;
    uint64_t until_ns;
  };

  const Scenario scenario_;
  simulation::Random random_;
  uint64_t at_ns_ = 0;
  double peak_per_s_;
  std::vector<double> zipf_;      // cumulative weights by rank
  std::vector<uint32_t> ranked_;  // hosts by rank
  uint64_t moved_ns_ = 0;
  std::vector<OnOff> on_off_;
  uint64_t pulse_ns_ = 0;  // the present one, from
  uint64_t pulse_end_ns_ = 0;
  static constexpr uint32_t kAllHosts = UINT32_MAX;
  uint32_t pulse_host_ = kAllHosts;
  uint64_t spike_left_ = 0;
  uint32_t spike_host_ = 0;
};

// Exponential, of this mean.
uint64_t Exponential(simulation::Random* random, double mean_ns);

}  // namespace sluice::accuracy
