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

#include "daemon/lease/demand.h"
#include "shm/gcra.h"
#include "shm/layout.h"

namespace sluice::reconcile {

inline constexpr double kMilli = 1000;  // demand travels in thousandths of a token/s
inline constexpr double kKappaOfLimit = 0.25;
inline constexpr double kMinShare = 1.0 / 65535;  // 1/share fits 16 integer bits

using lease::Demand;
using lease::kJumpAttempts;

// Tokens per second of a limit.
inline double RateOf(const shm::Limit& limit) {
  return static_cast<double>(limit.limit) * 1e9 / static_cast<double>(limit.period_ns);
}

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
