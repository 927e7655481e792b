// Demand and shares: pure arithmetic.
//
// A host's share of a bucket is s = (d + kappa/n) / (D + kappa): d its own decayed demand, D that
// of all hosts, n their number, kappa a quarter of the limit. Demand counts attempts, not
// admissions: a host that denies all would otherwise never get a share again. kappa keeps a share
// for hosts without demand, so that a share never rounds down to "reject all".
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "shm/gcra.h"
#include "shm/layout.h"

namespace sluice::reconcile {

inline constexpr double kMilli = 1000;  // demand travels in thousandths of a token/s
inline constexpr double kKappaOfLimit = 0.25;
inline constexpr double kMinShare = 1.0 / 65535;  // 1/share fits 16 integer bits
inline constexpr uint64_t kJumpAttempts = 8;      // so many attempts are believed at once

// Tokens per second of a limit.
inline double RateOf(const shm::Limit& limit) {
  return static_cast<double>(limit.limit) * 1e9 / static_cast<double>(limit.period_ns);
}

// An exponentially decayed rate of attempts, tau = 2 * interval; a rise is followed at once.
class Demand {
 public:
  double rate() const { return rate_; }

  // `attempts` tokens were asked for since the last call.
  void Update(uint64_t attempts, uint64_t now_ns, uint64_t interval_ns) {
    const uint64_t elapsed_ns =
        updated_ns_ == 0 || now_ns <= updated_ns_ ? interval_ns : now_ns - updated_ns_;
    updated_ns_ = now_ns;
    const double seconds = static_cast<double>(std::max<uint64_t>(elapsed_ns, 1'000'000)) / 1e9;
    const double seen = static_cast<double>(attempts) / seconds;
    if (attempts >= kJumpAttempts && seen > rate_) {
      rate_ = seen;
      return;
    }
    const double tau = 2 * static_cast<double>(interval_ns) / 1e9;
    rate_ += (seen - rate_) * (1 - std::exp(-seconds / tau));
  }

 private:
  double rate_ = 0;
  uint64_t updated_ns_ = 0;
};

// The share of a host with demand `own` when others ask for `others`, in tokens/s.
inline double ShareOf(double own, double others, int64_t hosts, double limit_rate) {
  if (hosts <= 1) return 1;
  const double kappa = kKappaOfLimit * limit_rate;
  const double share =
      (own + kappa / static_cast<double>(hosts)) / (own + std::max(0.0, others) + kappa);
  return std::clamp(share, kMinShare, 1.0);
}

// 1/share with 16 fraction bits, as slots keep it; 0 for a share of 1.
inline uint32_t InverseShare(double share) {
  return share >= 1 ? 0 : static_cast<uint32_t>(std::lround(65536.0 / share));
}

}  // namespace sluice::reconcile
