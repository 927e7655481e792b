// Windows by the calendar over whole hosts in virtual time, against the real script: hosts agree on
// the boundary by its instant, whatever their clocks say.
#include <gtest/gtest.h>

#include <functional>
#include <string>

#include "daemon/config/parse.h"
#include "tests/reconcile/fleet.h"

namespace sluice::test {
namespace {

constexpr uint64_t kTokens = 1000;
constexpr int64_t kSecondUs = 1'000'000;
constexpr int64_t kHourUs = 3600 * kSecondUs;
// 2023-11-15 00:00 UTC, at which the fleet's Redis is after so many seconds.
constexpr int64_t kMidnightUs = 1'700'006'400 * kSecondUs;
constexpr int64_t kBeforeS = 20;

config::Config PerDay() {
  const config::ParseResult parsed = config::ParseConfig(
      "redis: {addresses: \"h:1\"}\n"
      "rules: [{name: per-user, key: [user], algorithm: fixed_window, limit: 1000/day,\n"
      "         calendar: {}, when_degraded: {mode: closed}}]\n",
      "t.yaml");
  if (!parsed.ok()) abort();
  return parsed.config;
}

class CalendarTest : public testing::Test {
 protected:
  CalendarTest() {
    fleet_.redis.time_us = static_cast<uint64_t>(kMidnightUs - kBeforeS * kSecondUs);
    for (size_t i = 0; i < 2; ++i) SetClock(i, 0);
  }
  // By how much that host's wall clock is ahead of Redis'.
  void SetClock(size_t host, int64_t ahead_us) {
    fleet_.host(host).SetWallOffset(static_cast<int64_t>(fleet_.redis.time_us) -
                                    static_cast<int64_t>(VirtualClock::now_ns / 1000) + ahead_us);
  }
  // Both ask so often; how many they were admitted.
  uint64_t Run(
      uint64_t ns, int per_s, std::function<bool(size_t)> asks = [](size_t) { return true; }) {
    const uint64_t before = fleet_.Admitted();
    uint64_t steps = 0;
    fleet_.Run(ns, [&] {
      if (++steps % static_cast<uint64_t>(1000 / per_s) != 0) return;
      for (size_t i = 0; i < 2; ++i) {
        if (asks(i)) fleet_.host(i).Check("per-user", "u");
      }
    });
    return fleet_.Admitted() - before;
  }

  Fleet fleet_{2, PerDay()};
};

TEST_F(CalendarTest, TwoHostsShareADayAndBeginTheNextTogether) {
  EXPECT_NEAR(static_cast<double>(Run(15 * kSecond, 100)), kTokens, kTokens * 0.02);
  EXPECT_EQ(Run(4 * kSecond, 100), 0u);
  Run(2 * kSecond, 100);  // over the boundary
  EXPECT_LE(fleet_.Admitted(), kTokens * 102 / 100 + 250);
  EXPECT_GE(fleet_.Admitted(), kTokens + 150);
  Run(15 * kSecond, 100);
  EXPECT_NEAR(static_cast<double>(fleet_.Admitted()), 2 * kTokens, 2 * kTokens * 0.02);
  fleet_.Run(2 * kSecond);
  EXPECT_EQ(fleet_.Counted(), static_cast<int64_t>(fleet_.Admitted()));
}

TEST_F(CalendarTest, AHostWhoseClockIsAheadDoesNotGiveTheOthersTheirDayAnew) {
  EXPECT_NEAR(static_cast<double>(Run(10 * kSecond, 100)), kTokens, kTokens * 0.02);
  SetClock(1, kHourUs);
  // Host 1 is in the next day already, and counts its own; host 0 hears nothing good of it.
  const uint64_t by_1 = Run(3 * kSecond, 100, [](size_t i) { return i == 1; });
  EXPECT_GE(by_1, 200u);
  EXPECT_EQ(Run(3 * kSecond, 100, [](size_t i) { return i == 0; }), 0u);
}

TEST_F(CalendarTest, AClockThatIsSetByAnHourAndBackGivesNothingTwice) {
  // At noon, lest the day changes with it.
  fleet_.redis.time_us += static_cast<uint64_t>(12 * kHourUs);
  for (size_t i = 0; i < 2; ++i) SetClock(i, 0);
  EXPECT_NEAR(static_cast<double>(Run(10 * kSecond, 100)), kTokens, kTokens * 0.02);
  for (const int64_t ahead_us : {kHourUs, -kHourUs, int64_t{0}, 5 * kHourUs}) {
    for (size_t i = 0; i < 2; ++i) SetClock(i, ahead_us);
    EXPECT_EQ(Run(2 * kSecond, 100), 0u) << ahead_us;
  }
}

TEST_F(CalendarTest, AClockThatWasWrongByDaysFindsTheCountOfItsDayAgain) {
  fleet_.redis.time_us += static_cast<uint64_t>(12 * kHourUs);
  for (size_t i = 0; i < 2; ++i) SetClock(i, 0);
  EXPECT_NEAR(static_cast<double>(Run(10 * kSecond, 100)), kTokens, kTokens * 0.02);
  SetClock(1, 72 * kHourUs);
  Run(kSecond, 100, [](size_t) { return false; });
  SetClock(1, 0);
  EXPECT_LE(Run(3 * kSecond, 100), 60u);  // until Redis has told
}

TEST_F(CalendarTest, WhatWasLostOnTheWayIsCountedOnceInItsDay) {
  fleet_.network.lose_request = fleet_.network.lose_reply = 0.1;
  Run(15 * kSecond, 50);
  fleet_.network.lose_request = fleet_.network.lose_reply = 0;
  Run(15 * kSecond, 10);
  fleet_.Run(3 * kSecond);
  EXPECT_EQ(fleet_.Counted(), static_cast<int64_t>(fleet_.Admitted()));
}

}  // namespace
}  // namespace sluice::test
