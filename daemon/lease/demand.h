// What a host asks for, in tokens per second: pure arithmetic.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace sluice::lease {

inline constexpr uint64_t kJumpAttempts = 8;  // so many attempts are believed at once

// An exponentially decayed rate of attempts, tau = 2 * interval; a rise is followed at once.
class Demand {
 public:
  double rate() const { return rate_; }

  // `attempts` tokens were asked for since the last call, at most `largest` of them by one check.
  void Update(uint64_t attempts, uint64_t now_ns, uint64_t interval_ns, double largest = 1) {
    const uint64_t elapsed_ns =
        updated_ns_ == 0 || now_ns <= updated_ns_ ? interval_ns : now_ns - updated_ns_;
    updated_ns_ = now_ns;
    const double seconds = static_cast<double>(std::max<uint64_t>(elapsed_ns, 1'000'000)) / 1e9;
    const double seen = static_cast<double>(attempts) / seconds;
    if (IsJump(attempts, largest) && seen > rate_) {
      rate_ = seen;
      return;
    }
    const double tau = 2 * static_cast<double>(interval_ns) / 1e9;
    rate_ += (seen - rate_) * (1 - std::exp(-seconds / tau));
  }

  static bool IsJump(uint64_t attempts, double largest) {
    return static_cast<double>(attempts) >= static_cast<double>(kJumpAttempts) * largest;
  }

  // Nothing was asked for since some time.
  void End() { rate_ = 0; }

  // Seen over a time of the caller's own.
  void Raise(double rate) { rate_ = std::max(rate_, rate); }

 private:
  double rate_ = 0;
  uint64_t updated_ns_ = 0;
};

}  // namespace sluice::lease
