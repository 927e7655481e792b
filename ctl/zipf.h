// Ranks 1..n drawn in proportion to 1/rank^skew, in constant time and memory: rejection-inversion
// (Hörmann and Derflinger, "Rejection-inversion to generate variates from monotone discrete
// distributions", 1996). The histogram of the distribution is covered by the hat 1/x^skew, whose
// integral is inverted; few draws fall outside the histogram and are drawn again.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace sluice::ctl {

class Zipf {
 public:
  // Precondition: n >= 1, 0 <= skew <= 4.
  Zipf(uint64_t n, double skew)
      : n_(static_cast<double>(n)),
        skew_(skew),
        low_(HatIntegral(1.5) - 1),
        high_(HatIntegral(n_ + 0.5)),
        squeeze_(2 - HatIntegralInverse(HatIntegral(2.5) - Hat(2))) {}

  // `uniform()` gives doubles in [0, 1).
  template <class Uniform>
  uint64_t Draw(Uniform uniform) const {
    for (int tries = 0; tries < kMaxTries; ++tries) {
      const double u = high_ + uniform() * (low_ - high_);
      const double x = HatIntegralInverse(u);
      const double k = std::clamp(std::floor(x + 0.5), 1.0, n_);
      if (k - x <= squeeze_ || u >= HatIntegral(k + 0.5) - Hat(k)) return static_cast<uint64_t>(k);
    }
    return 1;
  }

 private:
  // Less than half the draws are rejected for any skew: 2^-64 is never.
  static constexpr int kMaxTries = 64;

  double Hat(double x) const { return std::exp(-skew_ * std::log(x)); }
  double HatIntegral(double x) const {
    const double log_x = std::log(x);
    const double t = (1 - skew_) * log_x;
    return (std::abs(t) > 1e-8 ? std::expm1(t) / t : 1 + t / 2) * log_x;
  }
  double HatIntegralInverse(double x) const {
    const double t = std::max(x * (1 - skew_), -1.0);
    return std::exp((std::abs(t) > 1e-8 ? std::log1p(t) / t : 1 - t / 2) * x);
  }

  double n_;
  double skew_;
  double low_;
  double high_;
  double squeeze_;
};

}  // namespace sluice::ctl
