#include "daemon/reconcile/breaker.h"

#include <gtest/gtest.h>

#include "daemon/reconcile/share.h"

namespace sluice::reconcile {
namespace {

constexpr uint64_t kMs = 1'000'000;
constexpr uint64_t kSecond = 1'000'000'000;

// envoyproxy/ratelimit#978: nothing kept requests from a Redis that was known to be down.
TEST(BreakerTest, OpensAfterThreeFailuresInARow) {
  Breaker b;
  b.OnFailure(kSecond, false, 0.5);
  b.OnFailure(kSecond, false, 0.5);
  EXPECT_EQ(b.state(), Breaker::State::kClosed);
  b.OnFailure(kSecond, false, 0.5);
  EXPECT_EQ(b.state(), Breaker::State::kOpen);
  EXPECT_FALSE(b.Allow(kSecond + kMs));
}

TEST(BreakerTest, OpensAtOnceOnAHardError) {
  Breaker b;
  b.OnFailure(kSecond, true, 0.5);
  EXPECT_EQ(b.state(), Breaker::State::kOpen);
}

TEST(BreakerTest, OpensWhenHalfOfTheCallsFail) {
  Breaker b;
  for (int i = 0; i < 10 && b.state() == Breaker::State::kClosed; ++i) {
    b.OnSuccess(kSecond, kMs);
    b.OnFailure(kSecond, false, 0.5);
  }
  EXPECT_EQ(b.state(), Breaker::State::kOpen);
}

TEST(BreakerTest, OpensWhenNearlyAllAreSlow) {
  Breaker b;
  for (int i = 0; i < 5; ++i) b.OnSuccess(kSecond, 2 * kSlowNs);
  EXPECT_EQ(b.state(), Breaker::State::kOpen);
}

TEST(BreakerTest, LetsOneTrialThroughWhenItsBackOffIsOver) {
  Breaker b;
  b.OnFailure(kSecond, true, 1.0);
  const uint64_t later = kSecond + kBackoffMinNs;
  EXPECT_TRUE(b.Allow(later));
  EXPECT_FALSE(b.Allow(later)) << "one trial, not two";
  b.OnSuccess(later, kMs);
  EXPECT_EQ(b.state(), Breaker::State::kClosed);
}

TEST(BreakerTest, BacksOffLongerEachTimeUpToItsBound) {
  Breaker b;
  uint64_t now = kSecond;
  uint64_t last = 0;
  for (int i = 0; i < 12; ++i) {
    b.OnFailure(now, true, 1.0);
    uint64_t waited = 0;
    while (!b.Allow(now)) {
      now += 10 * kMs;
      waited += 10 * kMs;
      ASSERT_LE(waited, kBackoffMaxNs);
    }
    EXPECT_GE(waited, last);
    last = waited;
  }
  EXPECT_EQ(last, kBackoffMaxNs);
}

TEST(BreakerTest, BacksOffForASecondAtMostWhereHostsAreFew) {
  EXPECT_EQ(LongestBackoffNs(0), kSecond);
  EXPECT_EQ(LongestBackoffNs(2), kSecond);
  EXPECT_EQ(LongestBackoffNs(5'000), 5 * kSecond) << "1,000 trials a second of all";
  EXPECT_EQ(LongestBackoffNs(UINT64_MAX), kBackoffMaxNs);
  Breaker b;
  b.set_longest_ns(LongestBackoffNs(2));
  uint64_t now = kSecond;
  for (int i = 0; i < 12; ++i) {
    b.OnFailure(now, true, 1.0);
    now += kSecond;
    EXPECT_TRUE(b.Allow(now)) << i;
  }
}

TEST(BreakerTest, TriesAtOnceWhereTheNodeIsReachedAnew) {
  Breaker b;
  b.OnFailure(kSecond, true, 1.0);
  EXPECT_FALSE(b.Allow(kSecond + kMs));
  b.OnReached(kSecond + kMs);
  EXPECT_EQ(b.state(), Breaker::State::kOpen) << "no verdict yet";
  EXPECT_TRUE(b.Allow(kSecond + kMs));
  EXPECT_FALSE(b.Allow(kSecond + kMs)) << "one trial";
  b.OnFailure(kSecond + 2 * kMs, false, 1.0);
  EXPECT_FALSE(b.Allow(kSecond + 3 * kMs));
}

TEST(BreakerTest, IsCalmOnlyAfterTwoSecondsAndThreeSuccesses) {
  Breaker b;
  b.OnFailure(kSecond, true, 0.0);
  ASSERT_TRUE(b.Allow(kSecond));
  b.OnSuccess(kSecond, kMs);
  b.OnSuccess(kSecond, kMs);
  EXPECT_FALSE(b.IsCalm(kSecond + 3 * kCalmNs)) << "two successes";
  b.OnSuccess(kSecond, kMs);
  EXPECT_FALSE(b.IsCalm(kSecond + kCalmNs - 1));
  EXPECT_TRUE(b.IsCalm(kSecond + kCalmNs));
}

TEST(ShareTest, SharesOfAllHostsAddUpToOne) {
  const double demands[] = {4000, 500, 0, 37};
  double all = 0;
  for (const double d : demands) all += d;
  double sum = 0;
  for (const double d : demands) sum += ShareOf(d, all - d, 4, 1000);
  EXPECT_NEAR(sum, 1.0, 1e-9);
}

TEST(ShareTest, AHostAloneHasTheWholeLimit) {
  EXPECT_EQ(ShareOf(12345, 0, 1, 10), 1.0);
  EXPECT_EQ(InverseShare(1.0), 0u);
}

// envoy#46702: a share that rounded to zero rejected everything.
TEST(ShareTest, NeverRoundsDownToNothing) {
  const double share = ShareOf(0, 1e12, 10'000, 1);
  EXPECT_GT(share, 0);
  EXPECT_LE(InverseShare(share), 65535u * 65536u);
}

TEST(DemandTest, FollowsAJumpAtOnceAndDecaysAfterwards) {
  Demand d;
  d.Update(100, kSecond, 100 * kMs);
  EXPECT_NEAR(d.rate(), 1000, 1);
  d.Update(0, kSecond + 200 * kMs, 100 * kMs);
  EXPECT_NEAR(d.rate(), 1000 / 2.718, 10);
}

}  // namespace
}  // namespace sluice::reconcile
