// Random numbers that are the same on every machine: no distribution of the standard library, whose
// results differ between implementations.
#pragma once

#include <cstdint>

#include "shm/hash.h"

namespace sluice::simulation {

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t Next() { return shm::SplitMix64(state_); }
  // 0 to n - 1.
  uint64_t Below(uint64_t n) { return n == 0 ? 0 : Next() % n; }
  // Both ends included.
  uint64_t Between(uint64_t least, uint64_t most) { return least + Below(most - least + 1); }
  double Unit() { return static_cast<double>(Next() >> 11) * 0x1p-53; }
  bool Chance(double p) { return Unit() < p; }
  // A stream of its own, so that one part's draws do not move another's.
  Random Fork() { return Random(Next()); }

 private:
  uint64_t state_;
};

}  // namespace sluice::simulation
