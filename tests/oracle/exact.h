// The token bucket without any rounding, and how far each implementation may be off it.
//
// A level is counted in 1/period of a token: then a token is `period_ns` units, a nanosecond brings
// `limit` units, and all is whole. 128 bits hold it: a full bucket has less than 2^85 units, the
// whole trace brings less than 2^92.
#pragma once

#include <algorithm>
#include <cstdint>

namespace sluice::oracle {

using Units = __int128;

struct Numbers {
  uint64_t limit;  // tokens per period
  uint64_t period_ns;
  uint64_t burst;  // tokens
};

inline Units TokensInUnits(const Numbers& numbers, uint64_t tokens) {
  return static_cast<Units>(tokens) * numbers.period_ns;
}
inline Units FullUnits(const Numbers& numbers) { return TokensInUnits(numbers, numbers.burst); }
inline Units NsInUnits(const Numbers& numbers, uint64_t ns) {
  return static_cast<Units>(ns) * numbers.limit;
}
inline Units CeilNs(const Numbers& numbers, Units units) {
  return (units + numbers.limit - 1) / numbers.limit;
}

struct Bucket {
  Units level;  // below 0 after a decision that took more than there was
  uint64_t at_ns;

  // Returns by how much the refill passed the full bucket.
  Units Advance(const Numbers& numbers, uint64_t now_ns) {
    const Units refilled = level + NsInUnits(numbers, now_ns - at_ns);
    level = std::min(refilled, FullUnits(numbers));
    at_ns = now_ns;
    return refilled - level;
  }
};

// Ours: a cost is rounded up to whole ns, so our bucket lies behind by what was rounded since it
// was last full. Never ahead.
struct Behind {
  Units units = 0;

  // Once the exact bucket is full, what it would have gained beyond that makes up for it.
  void Advance(Units overshoot) { units = std::max<Units>(0, units - overshoot); }
  void Spend(const Numbers& numbers, uint64_t tokens) { units += Rounding(numbers, tokens); }
  // By how much the cost of so many tokens is rounded up: less than 1 ns.
  static Units Rounding(const Numbers& numbers, uint64_t tokens) {
    const Units cost = TokensInUnits(numbers, tokens);
    return CeilNs(numbers, cost) * numbers.limit - cost;
  }
};

// Ours: tau is wider than the burst by the rounding of `burst` single costs, yet by less than one
// token. (Where a token takes less than 1 ns, by less than 1 ns: time has no smaller step.)
inline Units WidestTau(const Numbers& numbers) {
  const Units less_than = std::max<Units>(numbers.period_ns, numbers.limit);
  return std::min(static_cast<Units>(numbers.burst) * Behind::Rounding(numbers, 1), less_than - 1);
}

// Theirs: tokens are float64 numbers. With u = 2^-53, a rounding is at most u of its result. The
// rate takes 3 of them, a duration in seconds 2, the product 1, the sum and the difference 1 each,
// so a check is off by at most 8 u of what time brought and 2 u of the burst. A deny stores
// nothing: this adds up over what was allowed, since the bucket was last full.
class FloatError {
 public:
  FloatError(const Numbers& numbers, uint64_t now_ns)
      : bucket_{.level = FullUnits(numbers), .at_ns = now_ns} {}

  // For a check at this time: by how many units their level may be off.
  Units At(const Numbers& numbers, uint64_t now_ns) {
    const Units refill = NsInUnits(numbers, now_ns - bucket_.at_ns);
    now_scaled_ = scaled_ + 8 * refill + 2 * FullUnits(numbers);
    Bucket then = bucket_;
    const Units overshoot = then.Advance(numbers, now_ns);
    // Their bucket is full, which is a whole number, once ours is full by more than the error.
    now_scaled_ = overshoot > (now_scaled_ >> kBits) ? 0 : now_scaled_ - (overshoot << kBits);
    return now_scaled_ >> kBits;
  }
  // The check of the last At() was allowed and left this bucket.
  void Store(const Bucket& after) {
    scaled_ = now_scaled_;
    bucket_ = after;
  }

 private:
  static constexpr int kBits = 53;

  Bucket bucket_;         // as their last store left it
  Units scaled_ = 0;      // its error, in 2^-53 units
  Units now_scaled_ = 0;  // the same at the last At()
};

}  // namespace sluice::oracle
