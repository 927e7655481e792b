// Keepers over shared words under a rule whose hosts may overdraw, in virtual time: the first check
// is answered at once, what was spent beyond a lease is paid back, and an outage is by shares.
#include <gtest/gtest.h>

#include "tests/lease/keeper_fleet.h"

namespace sluice::lease {
namespace {

TEST(OverdraftKeeperTest, HostsTogetherAdmitNearlyAllOfTheLimitAndHardlyMore) {
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    KeeperFleet fleet(2, 1000, 200, seed, /*wait_ns=*/0, /*strict=*/false);
    fleet.Run(10 * kSecond, 2000);
    EXPECT_LE(fleet.over(), 40u) << seed;
    EXPECT_GE(fleet.used_percent(), 99) << seed;
    EXPECT_LE(fleet.used_percent(), 100.5) << seed;
  }
}

TEST(OverdraftKeeperTest, DemandThatMovesFromHostToHostIsServedAtOnce) {
  KeeperFleet fleet(4, 1000, 200, 7, /*wait_ns=*/0, /*strict=*/false);
  for (size_t turn = 0; turn < 8; ++turn) {
    fleet.Run(kSecond, 900, [turn] { return turn % 4; });
  }
  EXPECT_LE(fleet.over(), 40u);
  EXPECT_GE(fleet.used_percent(), 99);
}

TEST(OverdraftKeeperTest, AFirstCheckIsAllowedAtOnceAndPaidFor) {
  KeeperFleet fleet(2, 1, 50, 1, /*wait_ns=*/0, /*strict=*/false);
  EXPECT_TRUE(fleet.host(1).Check(1)) << "before its daemon knows of the key";
  fleet.Run(100 * kMilli, 0);
  EXPECT_LE(fleet.StockNow(), 49u);
  fleet.Run(5 * kSecond, 0);
  for (int i = 0; i < 25; ++i) EXPECT_TRUE(fleet.host(0).Check(1)) << i << ", after a rest";
}

TEST(OverdraftKeeperTest, WhatWasSpentBeforeTheDaemonLookedIsTold) {
  KeeperFleet fleet(1, 10, 100, 1, /*wait_ns=*/0, /*strict=*/false);
  fleet.Run(70 * kSecond, 0);
  ASSERT_EQ(fleet.host(0).keeper().size(), 0u) << "forgotten";
  ASSERT_TRUE(shm::credits::IsUnsettled(fleet.host(0).word()));
  uint64_t spent = 0;
  while (fleet.host(0).Check(1)) ++spent;
  EXPECT_EQ(spent, 100u) << "the only host's part is the whole burst";
  fleet.Run(100 * kMilli, 0);
  EXPECT_LE(fleet.StockNow(), 2u);
}

TEST(OverdraftKeeperTest, WithoutRedisEachHostGoesOnByItsShare) {
  KeeperFleet fleet(4, 1000, 200, 3, /*wait_ns=*/0, /*strict=*/false);
  fleet.Run(4 * kSecond, 2000);
  fleet.world.redis_back_ns = fleet.world.events.now_ns + 4 * kSecond;
  const uint64_t before = fleet.admitted;
  fleet.Run(4 * kSecond, 2000);
  const uint64_t during = fleet.admitted - before;
  EXPECT_GE(during, 3'700u);
  EXPECT_LE(during, 4'200u);
  const uint64_t resumed = fleet.admitted;
  fleet.Run(2 * kSecond, 2000);
  EXPECT_GE(fleet.admitted - resumed, 1'900u) << "no debt is left to be paid";
  EXPECT_LE(fleet.admitted - resumed, 2'250u);
}

TEST(OverdraftKeeperTest, LostAndLateMessagesCostLittle) {
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    KeeperFleet fleet(3, 500, 100, seed, /*wait_ns=*/0, /*strict=*/false);
    fleet.world.loss = 0.05;
    fleet.Run(10 * kSecond, 450);
    EXPECT_LE(fleet.over(), 50u) << seed;
    EXPECT_GE(fleet.used_percent(), 97) << seed;
  }
}

}  // namespace
}  // namespace sluice::lease
