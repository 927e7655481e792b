// Sliding logs over whole hosts in virtual time, against the real script: exact on each host, about
// the limit over all.
#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <vector>

#include "daemon/reconcile/windows.h"
#include "tests/reconcile/traffic.h"

namespace sluice::test {
namespace {

config::Config OneLog(uint64_t limit, uint64_t period_ns) {
  config::Config config = OneWindow(shm::Kind::kSlidingLog, limit, period_ns);
  config.daemon.log_keys = 64;
  return config;
}

// What was used of the limit over so many periods.
double UsedOf(Fleet& fleet, uint64_t limit, uint64_t period_ns, uint64_t periods,
              const std::function<void()>& step) {
  const uint64_t before = fleet.Admitted();
  fleet.Run(periods * period_ns, step);
  const double used =
      static_cast<double>(fleet.Admitted() - before) / static_cast<double>(periods * limit);
  printf("%lu per %lu ms: %.1f %% used\n", static_cast<unsigned long>(limit),
         static_cast<unsigned long>(period_ns / 1'000'000), used * 100);
  return used;
}

TEST(LogsTest, OneHostAloneAdmitsTheLimit) {
  Fleet fleet(1, OneLog(1000, kSecond));
  const auto step = DemandOf(fleet, {2000});
  fleet.Run(3 * kSecond, step);
  EXPECT_NEAR(UsedOf(fleet, 1000, kSecond, 20, step), 1, 0.01);
}

TEST(LogsTest, TwoHostsAtTwiceTheLimitAdmitAboutTheLimitTogether) {
  for (const uint64_t period : {kSecond, 5 * kSecond}) {
    const uint64_t limit = 800 * (period / kSecond);
    Fleet fleet(2, OneLog(limit, period));
    const auto step = DemandOf(fleet, {800, 800});
    fleet.Run(3 * period, step);
    const double used = UsedOf(fleet, limit, period, 20, step);
    EXPECT_GE(used, 0.9) << period;
    EXPECT_LE(used, 1.02) << period;
  }
}

TEST(LogsTest, UnevenHostsAdmitAboutTheLimitTogether) {
  Fleet fleet(4, OneLog(4000, 5 * kSecond));
  const auto step = DemandOf(fleet, {1200, 200, 40, 160});
  fleet.Run(15 * kSecond, step);
  const double used = UsedOf(fleet, 4000, 5 * kSecond, 10, step);
  EXPECT_GE(used, 0.85);
  EXPECT_LE(used, 1.03);
}

// It has all of its share, but what others took lately is not there.
TEST(LogsTest, AHostThatComesLateFindsWhatTheOthersLeft) {
  for (const uint64_t comes_s : {10, 20, 40, 55}) {
    Fleet fleet(2, OneLog(100, 60 * kSecond));
    fleet.Run(kSecond, DemandOf(fleet, {500}));
    ASSERT_EQ(fleet.Admitted(), 100u);
    fleet.Run((comes_s - 1) * kSecond);
    fleet.Run(4 * kSecond, DemandOf(fleet, {0, 20}));
    EXPECT_LE(fleet.Admitted() - 100, 5u) << "until it had heard, after " << comes_s;
  }
}

TEST(LogsTest, UnderTheLimitNobodyIsDenied) {
  Fleet fleet(2, OneLog(2000, kSecond));
  fleet.Run(10 * kSecond, DemandOf(fleet, {800, 800}));
  EXPECT_NEAR(static_cast<double>(fleet.Admitted()), 16'000, 200);
}

TEST(LogsTest, NothingIsLostOrDoubledWhenMessagesAre) {
  ExpectNothingIsLostOrDoubled(OneLog(3000, kSecond));
}

// Through an outage each host goes on with its share.
TEST(LogsTest, AnOutageNeitherOpensTheLogsNorBlocksThemAfterwards) {
  Fleet fleet(2, OneLog(1000, kSecond));
  const auto step = DemandOf(fleet, {1000, 1000});
  fleet.Run(5 * kSecond, step);
  fleet.network.cut = true;
  fleet.Run(3 * kSecond, step);
  const double cut = UsedOf(fleet, 1000, kSecond, 10, step);
  EXPECT_GE(cut, 0.9);
  EXPECT_LE(cut, 1.05);
  fleet.network.cut = false;
  fleet.Run(4 * kSecond, step);
  const double after = UsedOf(fleet, 1000, kSecond, 10, step);
  EXPECT_GE(after, 0.85);
  EXPECT_LE(after, 1.03);
  fleet.Run(5 * kSecond);
  EXPECT_EQ(fleet.Counted(), static_cast<int64_t>(fleet.Admitted()));
}

// Its clock an hour back or ahead, or all forgotten: the fleet is in step again within a period or
// two.
TEST(LogsTest, RedisClockMayJumpAndItsDataBeLost) {
  for (const int64_t by_s : {-3600, 3600, 0}) {
    Fleet fleet(2, OneLog(1000, kSecond));
    const auto step = DemandOf(fleet, {1000, 1000});
    fleet.Run(5 * kSecond, step);
    fleet.redis.time_us += static_cast<uint64_t>(by_s * 1'000'000);
    if (by_s == 0) fleet.redis.data.clear();
    const double jump = UsedOf(fleet, 1000, kSecond, 2, step);
    EXPECT_GE(jump, 0.5) << by_s;
    EXPECT_LE(jump, 1.5) << by_s;
    fleet.Run(2 * kSecond, step);
    const double used = UsedOf(fleet, 1000, kSecond, 10, step);
    EXPECT_GE(used, 0.85) << by_s;
    EXPECT_LE(used, 1.03) << by_s;
  }
}

}  // namespace
}  // namespace sluice::test
