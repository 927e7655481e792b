#include "daemon/redis/latency.h"

#include <gtest/gtest.h>

namespace sluice::redis {
namespace {

constexpr int64_t kMs = 1'000'000;

TEST(LatencyHistogramTest, PutsEachLatencyUnderItsBound) {
  LatencyHistogram histogram;
  histogram.Add(0);
  histogram.Add(-5);
  histogram.Add(100'000);      // exactly a bound: 100 us
  histogram.Add(101'000);      // just above it
  histogram.Add(3'000 * kMs);  // above all bounds
  const LatencySnapshot snapshot = histogram.Snapshot();
  EXPECT_EQ(3u, snapshot.counts[0]);
  EXPECT_EQ(1u, snapshot.counts[1]);
  EXPECT_EQ(1u, snapshot.counts.back());
  EXPECT_EQ(5u, snapshot.total);
  EXPECT_EQ(3'000'201u, snapshot.sum_us);
}

TEST(QuantileEstimatorTest, KnowsNothingOfAFewSamples) {
  QuantileEstimator estimator;
  for (int i = 0; i < 20; ++i) estimator.Add(kMs, 0);
  EXPECT_EQ(0, estimator.P99Ns());
}

TEST(QuantileEstimatorTest, IsAtMostAQuarterOctaveAboveTheTruth) {
  QuantileEstimator estimator;
  for (int i = 1; i <= 1000; ++i) estimator.Add(i * kMs / 100, 1);
  EXPECT_GE(estimator.P99Ns(), 990 * kMs / 100);
  EXPECT_LE(estimator.P99Ns(), 990 * kMs / 100 * 120 / 100);
  EXPECT_GE(estimator.QuantileNs(0.5), 500 * kMs / 100);
  EXPECT_LE(estimator.QuantileNs(0.5), 500 * kMs / 100 * 120 / 100);
}

TEST(QuantileEstimatorTest, ForgetsOldTrouble) {
  QuantileEstimator estimator;
  int64_t now = 0;
  for (int i = 0; i < 1000; ++i) estimator.Add(200 * kMs, now);
  EXPECT_GE(estimator.P99Ns(), 200 * kMs);
  for (int second = 0; second < 180; ++second) {
    now += 1000 * kMs;
    for (int i = 0; i < 20; ++i) estimator.Add(kMs, now);
  }
  EXPECT_LE(estimator.P99Ns(), 2 * kMs);
}

TEST(RequestTimeoutTest, IsFourTimesThePercentileBetweenItsBounds) {
  const int64_t min = 25 * kMs, max = 250 * kMs;
  EXPECT_EQ(max, RequestTimeoutNs(0, min, max));
  EXPECT_EQ(min, RequestTimeoutNs(kMs, min, max));
  EXPECT_EQ(40 * kMs, RequestTimeoutNs(10 * kMs, min, max));
  EXPECT_EQ(max, RequestTimeoutNs(100 * kMs, min, max));
  EXPECT_EQ(max, RequestTimeoutNs(INT64_MAX, min, max));
}

}  // namespace
}  // namespace sluice::redis
