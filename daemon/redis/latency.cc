#include "daemon/redis/latency.h"

#include <algorithm>
#include <cmath>

namespace sluice::redis {

// Counters, here and below: relaxed orders nothing.
void LatencyHistogram::Add(int64_t latency_ns) {
  const int64_t us = std::max<int64_t>(latency_ns, 0) / 1000;
  const auto bound = std::lower_bound(kLatencyBoundsUs.begin(), kLatencyBoundsUs.end(), us);
  const auto bucket = static_cast<size_t>(bound - kLatencyBoundsUs.begin());
  counts_[bucket].fetch_add(1, std::memory_order_relaxed);
  sum_us_.fetch_add(static_cast<uint64_t>(us), std::memory_order_relaxed);
}

LatencySnapshot LatencyHistogram::Snapshot() const {
  LatencySnapshot snapshot;
  for (size_t i = 0; i < counts_.size(); ++i) {
    snapshot.counts[i] = counts_[i].load(std::memory_order_relaxed);
    snapshot.total += snapshot.counts[i];
  }
  snapshot.sum_us = sum_us_.load(std::memory_order_relaxed);
  return snapshot;
}

void QuantileEstimator::Add(int64_t latency_ns, int64_t now_ns) {
  if (now_ns >= next_decay_ns_) {
    for (double& count : counts_) count /= 2;
    total_ /= 2;
    next_decay_ns_ = now_ns + kDecayNs;
  }
  const double us = std::max(1.0, static_cast<double>(latency_ns) / 1000);
  const auto bucket = static_cast<size_t>(4 * std::log2(us));
  counts_[std::min(bucket, kBuckets - 1)] += 1;
  total_ += 1;
}

int64_t QuantileEstimator::QuantileNs(double part) const {
  if (total_ < kMinSamples) return 0;
  double above = total_ * (1 - part);
  for (size_t i = kBuckets; i-- > 0;) {
    above -= counts_[i];
    if (above < 0) return static_cast<int64_t>(std::exp2(static_cast<double>(i + 1) / 4) * 1000);
  }
  return 0;
}

int64_t RequestTimeoutNs(int64_t p99_ns, int64_t min_ns, int64_t max_ns) {
  if (p99_ns <= 0 || p99_ns > max_ns) return max_ns;
  return std::clamp(4 * p99_ns, min_ns, max_ns);
}

}  // namespace sluice::redis
