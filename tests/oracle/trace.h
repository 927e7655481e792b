// Limits and checks, drawn from a seed. The times are aimed: with plain random ones hardly a check
// of ten million would come within a nanosecond of an edge, where rounding decides.
#pragma once

#include <algorithm>
#include <cstdint>

#include "tests/oracle/exact.h"

namespace sluice::oracle {

inline constexpr uint64_t kSecondNs = 1'000'000'000;
inline constexpr uint64_t kDayNs = 86'400 * kSecondNs;
inline constexpr uint64_t kMostTokens = 1'000'000'000;
inline constexpr uint64_t kMostTauNs = 366 * kDayNs;  // what a configuration may ask for
inline constexpr uint64_t kEndNs = uint64_t{1} << 61;

// splitmix64.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t Next() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }
  uint64_t Below(uint64_t n) { return Next() % n; }
  uint64_t Between(uint64_t least, uint64_t most) { return least + Below(most - least + 1); }
  // Every order of magnitude is as likely as the others.
  uint64_t AnySize(uint64_t most) {
    const int bits = 64 - __builtin_clzll(most);
    const uint64_t top = uint64_t{1} << Below(static_cast<uint64_t>(bits));
    return std::min(most, Between(top, 2 * top - 1));
  }

 private:
  uint64_t state_;
};

inline uint64_t AnyPeriodNs(Random& random) {
  constexpr uint64_t kUsual[] = {kSecondNs,        kSecondNs, kSecondNs,        60 * kSecondNs,
                                 3600 * kSecondNs, kDayNs,    kSecondNs / 1000, 30 * kDayNs};
  constexpr uint64_t kOdd[] = {1'500'000'000, 7 * kSecondNs, 999'999'937, 1'000'003};
  return random.Below(4) == 0 ? kOdd[random.Below(4)] : kUsual[random.Below(8)];
}

inline Numbers AnyLimit(Random& random) {
  for (;;) {
    Numbers numbers{
        .limit = random.AnySize(kMostTokens), .period_ns = AnyPeriodNs(random), .burst = 0};
    if (random.Below(2) == 0) {  // as people write them
      constexpr uint64_t kRound[] = {1, 2, 5, 3, 7};
      numbers.limit = kRound[random.Below(5)];
      for (uint64_t zeros = random.Below(8); zeros > 0; --zeros) numbers.limit *= 10;
    }
    const Units most = NsInUnits(numbers, kMostTauNs) / numbers.period_ns;
    if (most == 0) continue;
    const uint64_t burst =
        random.Below(4) == 0 ? random.Between(1, 2) * numbers.limit : random.AnySize(kMostTokens);
    numbers.burst = static_cast<uint64_t>(std::min<Units>({burst, most, kMostTokens}));
    return numbers;
  }
}

struct Check {
  uint64_t now_ns;
  uint64_t cost;  // tokens
};

// The checks of one key, some tens in the same manner before the next.
class Traffic {
 public:
  explicit Traffic(Random& random) : now_ns_(random.Between(kSecondNs, 1000 * kDayNs)) {}

  uint64_t now_ns() const { return now_ns_; }
  // `bucket` is how the key stands after its last check.
  Check Next(Random& random, const Numbers& numbers, const Bucket& bucket) {
    if (left_-- == 0) {
      manner_ = static_cast<Manner>(random.Below(4));
      left_ = manner_ == Manner::kIdle ? random.Below(3) : random.Between(8, 63);
    }
    const uint64_t cost = Cost(random, numbers);
    // The trace ends in time, however long its periods are.
    now_ns_ += std::min(GapNs(random, numbers, bucket, cost), (kEndNs - now_ns_) / 64);
    return {now_ns_, cost};
  }

 private:
  enum class Manner { kBurst, kSteady, kEdge, kIdle };

  static uint64_t Cost(Random& random, const Numbers& numbers) {
    const uint64_t burst = numbers.burst;
    switch (random.Below(16)) {
      case 0:
        return burst + 1;
      case 1:
        return burst;
      case 2:
      case 3:
        return random.Between(1, burst + 1);
      case 4:
      case 5:
      case 6:
        return random.AnySize(burst);
      default:
        return 1;
    }
  }

  uint64_t GapNs(Random& random, const Numbers& numbers, const Bucket& bucket, uint64_t cost) {
    const auto cost_ns = static_cast<uint64_t>(CeilNs(numbers, TokensInUnits(numbers, cost)));
    switch (manner_) {
      case Manner::kBurst:
        return random.Below(2) == 0 ? 0 : random.Below(1 + cost_ns / 16);
      case Manner::kSteady:
        return cost_ns / 10 * 9 + random.Below(1 + cost_ns / 5);
      case Manner::kIdle:
        return random.Below(1 + 2 * static_cast<uint64_t>(CeilNs(numbers, FullUnits(numbers))));
      case Manner::kEdge:
        break;
    }
    // When just this cost fits, or the bucket is just full; a few ns before or after.
    const Units wanted = std::min(TokensInUnits(numbers, cost), FullUnits(numbers));
    const auto wait_ns =
        static_cast<uint64_t>(CeilNs(numbers, std::max<Units>(0, wanted - bucket.level)));
    const uint64_t late_ns = wait_ns + random.Below(7);
    return late_ns - std::min<uint64_t>(late_ns, 3);
  }

  uint64_t now_ns_;
  Manner manner_ = Manner::kBurst;
  uint64_t left_ = 0;
};

}  // namespace sluice::oracle
