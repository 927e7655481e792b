// A schedule made to catch what busy buckets hide: each 4 s one host takes a lease and is cut off,
// spends it late or not at all, and then the others come, just behind the generation's end at which
// Redis forgets that lease. Generations end at whole seconds.
#pragma once

#include <array>
#include <cstdint>

#include "tests/simulation/random.h"

namespace sluice::accuracy {

inline constexpr uint64_t kTrapNs = 4'000'000'000;

struct Trap {
  struct Pulse {
    uint64_t from_ns, until_ns;
    bool first;   // host 0
    bool others;  // and these
  };
  std::array<Pulse, 3> pulses;
  // Host 0: replies wait from the first to the second, requests from the third to the last.
  uint64_t deaf_ns, heard_ns, cut_ns, joined_ns;

  // The one in force then.
  Trap(uint64_t seed, uint64_t at_ns) {
    const uint64_t begin_ns = at_ns / kTrapNs * kTrapNs;
    simulation::Random random(seed + begin_ns);
    const auto at = [&](uint64_t least_ms, uint64_t most_ms) {
      return begin_ns + random.Between(least_ms * 1'000'000, most_ms * 1'000'000);
    };
    const uint64_t first_ns = at(780, 940);
    pulses[0] = {first_ns, first_ns + random.Between(10, 60) * 1'000'000, true, false};
    const uint64_t second_ns = random.Chance(0.6) ? at(1'650, 1'900) : begin_ns;
    pulses[1] = {second_ns, second_ns == begin_ns ? begin_ns : second_ns + 100'000'000, true,
                 false};
    const uint64_t third_ns = random.Chance(0.5) ? at(2'001, 2'020) : at(2'001, 2'600);
    const bool both = random.Chance(0.5);
    pulses[2] = {third_ns, third_ns + 150'000'000, both, true};
    // In the pulse, so that a reply is caught, or soon behind it, so that a return is.
    deaf_ns = random.Chance(0.6) ? pulses[0].from_ns + random.Below(40'000'000)
                                 : pulses[0].until_ns + random.Below(300'000'000);
    cut_ns = deaf_ns + (random.Chance(0.3) ? 0 : random.Below(50'000'000));
    heard_ns = random.Chance(0.5) ? third_ns + random.Below(50'000'000) : at(2'005, 2'700);
    joined_ns = heard_ns + (random.Chance(0.5) ? 0 : random.Below(300'000'000));
  }

  const Pulse* At(uint64_t at_ns) const {
    for (const Pulse& pulse : pulses) {
      if (at_ns >= pulse.from_ns && at_ns < pulse.until_ns) return &pulse;
    }
    return nullptr;
  }
};

}  // namespace sluice::accuracy
