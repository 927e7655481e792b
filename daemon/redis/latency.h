#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

namespace sluice::redis {

// Upper bounds of the exported buckets, in microseconds; one more bucket takes the rest. From a
// loopback call to a call that the longest request timeout has given up on long ago.
inline constexpr std::array<int64_t, 14> kLatencyBoundsUs = {
    100,    200,    500,     1'000,   2'000,   5'000,     10'000,
    25'000, 50'000, 100'000, 250'000, 500'000, 1'000'000, 2'500'000};

struct LatencySnapshot {
  // Not cumulative: counts[i] is what fell into bucket i, counts.back() what exceeded all bounds.
  std::array<uint64_t, kLatencyBoundsUs.size() + 1> counts{};
  uint64_t total = 0;
  uint64_t sum_us = 0;
};

// Counts call latencies of one primary for the metrics. One thread adds, any thread reads; a
// snapshot is not one instant of all counters, each counter in it is right.
class LatencyHistogram {
 public:
  void Add(int64_t latency_ns);
  LatencySnapshot Snapshot() const;

 private:
  std::array<std::atomic<uint64_t>, kLatencyBoundsUs.size() + 1> counts_{};
  std::atomic<uint64_t> sum_us_{0};
};

// Estimates quantiles of recent latencies, from buckets a quarter of an octave wide
// whose counts are halved every kDecayNs, so that a minute's old trouble is forgotten. One thread.
class QuantileEstimator {
 public:
  static constexpr int64_t kDecayNs = 10'000'000'000;
  // Below so many recent samples a 99th percentile means nothing.
  static constexpr double kMinSamples = 50;

  void Add(int64_t latency_ns, int64_t now_ns);
  // The upper edge of the bucket that holds the quantile, in ns; 0 while samples are too few.
  // `part`: 0 to 1.
  int64_t QuantileNs(double part) const;
  int64_t P99Ns() const { return QuantileNs(0.99); }

 private:
  static constexpr size_t kBuckets = 128;  // 2^(128/4) units of 1 us: over an hour
  std::array<double, kBuckets> counts_{};
  double total_ = 0;
  int64_t next_decay_ns_ = 0;
};

// clamp(4 x p99, min, max); max while the percentile is not known (0).
int64_t RequestTimeoutNs(int64_t p99_ns, int64_t min_ns, int64_t max_ns);

}  // namespace sluice::redis
