// Windows by the calendar over whole hosts in virtual time, against the real script: hosts agree on
// the boundary by its instant, whatever their clocks say.
#include <gtest/gtest.h>

#include <unistd.h>

#include <functional>
#include <sstream>
#include <string>
#include <utility>

#include "daemon/checkpoint/checkpoint_store.h"
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

  // The tokens that Redis has of u and of idle.
  std::pair<int64_t, int64_t> InRedis() const {
    std::pair<int64_t, int64_t> found{-1, -1};
    for (const auto& [key, hash] : fleet_.redis.data) {
      for (const auto& [name, value] : hash) {
        if (name != "per-user:u" && name != "per-user:idle") continue;
        std::istringstream words(value);
        int64_t word = 0;
        for (int i = 0; i < 9; ++i) words >> word;
        (name == "per-user:u" ? found.first : found.second) = word;
      }
    }
    return found;
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

// Of CLOCK_MONOTONIC, which stands still meanwhile: by it the day would end eight hours late.
TEST_F(CalendarTest, AHostThatWasSuspendedIsInTheDayOfItsWallClock) {
  fleet_.redis.time_us += static_cast<uint64_t>(20 * kHourUs);
  for (size_t i = 0; i < 2; ++i) SetClock(i, 0);
  EXPECT_NEAR(static_cast<double>(Run(10 * kSecond, 100)), kTokens, kTokens * 0.02);
  fleet_.redis.time_us += static_cast<uint64_t>(2 * kHourUs);
  for (size_t i = 0; i < 2; ++i) SetClock(i, 0);
  EXPECT_EQ(Run(2 * kSecond, 100), 0u) << "the same day";
  fleet_.redis.time_us += static_cast<uint64_t>(8 * kHourUs);
  for (size_t i = 0; i < 2; ++i) SetClock(i, 0);
  EXPECT_NEAR(static_cast<double>(Run(10 * kSecond, 100)), kTokens, kTokens * 0.02);
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

// Redis is empty of a sudden; both hosts tell it again what it told them.
TEST_F(CalendarTest, ADayGoesOnWhereRedisHasLostItsData) {
  fleet_.redis.time_us += static_cast<uint64_t>(12 * kHourUs);
  for (size_t i = 0; i < 2; ++i) SetClock(i, 0);
  uint64_t admitted = Run(8 * kSecond, 20);  // 320
  fleet_.host(0).Check("per-user", "idle", 700);
  fleet_.Run(kSecond);
  for (int loss = 0; loss < 3; ++loss) {
    fleet_.redis.data.clear();
    admitted += Run(3 * kSecond, 20);  // 120
    EXPECT_LE(admitted, kTokens);
    const auto [tokens, idle] = InRedis();
    // What is sent again of the last two seconds, or was counted from nothing meanwhile.
    EXPECT_NEAR(static_cast<double>(tokens), static_cast<double>(admitted), 80.0) << loss;
    EXPECT_EQ(idle, 700) << "nobody used it since";
  }
  admitted += Run(20 * kSecond, 50);
  EXPECT_NEAR(static_cast<double>(admitted), kTokens, 3 * 80.0);
}

// Until Redis has been told again what it lost, it answers with what is sent again of the last two
// seconds: hosts go on with what they knew. What was used until the loss showed may be missing.
TEST_F(CalendarTest, AHostStandsByWhatItWasToldWhileRedisKnowsLess) {
  fleet_.redis.time_us += static_cast<uint64_t>(12 * kHourUs);
  for (size_t i = 0; i < 2; ++i) SetClock(i, 0);
  ASSERT_TRUE(fleet_.host(0).Check("per-user", "u", 600));
  fleet_.Run(3 * kSecond);
  ASSERT_TRUE(fleet_.host(0).Check("per-user", "u", 390));
  fleet_.Run(500 * kMs);
  fleet_.redis.data.clear();
  fleet_.network.one_way_ns = 200 * kMs;
  fleet_.network.timeout_ns = kSecond;
  EXPECT_LE(Run(3 * kSecond, 100, [](size_t i) { return i == 0; }), 2 * 10u);
}

// What is kept in a file outlasts the host's memory too.
TEST_F(CalendarTest, ADayGoesOnWhereRedisAndTheHostHaveLostEverything) {
  fleet_.redis.time_us += static_cast<uint64_t>(12 * kHourUs);
  const std::string path = testing::TempDir() + "quotas-" + std::to_string(getpid()) + ".db";
  const auto now_us = static_cast<int64_t>(fleet_.redis.time_us);
  uint64_t admitted = 0;
  for (int life = 0; life < 3; ++life) {
    auto quotas = checkpoint::CheckpointStore::Open(path, now_us);
    ASSERT_TRUE(quotas.ok()) << quotas.status();
    Host host(life, PerDay(), &fleet_.redis, &fleet_.network, {.quotas = quotas->get()});
    host.SetWallOffset(static_cast<int64_t>(fleet_.redis.time_us) -
                       static_cast<int64_t>(VirtualClock::now_ns / 1000));
    uint64_t steps = 0;
    fleet_.Run(4 * kSecond, [&] {
      if (++steps % 10 == 0) host.Check("per-user", "u");  // 400
      host.Advance();
    });
    admitted += host.admitted;
    if (life == 2) {
      EXPECT_LE(host.admitted, kTokens - 800u + 10u) << "from its file at once, before Redis tells";
    }
    fleet_.redis.data.clear();
  }
  EXPECT_NEAR(static_cast<double>(admitted), kTokens, 20.0);
  for (const char* rest : {"", "-wal", "-shm"}) unlink((path + rest).c_str());
}

}  // namespace
}  // namespace sluice::test
