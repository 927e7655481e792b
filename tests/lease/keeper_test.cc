// Keepers over shared words, in virtual time: nothing is ever over, whatever fails.
#include <gtest/gtest.h>

#include "tests/lease/keeper_fleet.h"

namespace sluice::lease {
namespace {

using shm::credits::Count;

TEST(KeeperTest, TwoHostsTogetherAdmitTheLimitAndNeverMore) {
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    KeeperFleet fleet(2, 1000, 200, seed);
    fleet.Run(10 * kSecond, 2000);
    EXPECT_EQ(fleet.over(), 0u) << seed;
    EXPECT_GE(fleet.used_percent(), 98) << seed;
  }
}

TEST(KeeperTest, DemandThatMovesFromHostToHostFindsTheTokens) {
  KeeperFleet fleet(4, 1000, 200, 7);
  for (size_t turn = 0; turn < 8; ++turn) {
    fleet.Run(kSecond, 1500, [turn] { return turn % 4; });
  }
  EXPECT_EQ(fleet.over(), 0u);
  EXPECT_GE(fleet.used_percent(), 95);
}

TEST(KeeperTest, AFirstCheckIsServedWithinMilliseconds) {
  KeeperFleet fleet(2, 100, 50, 1);
  EXPECT_FALSE(fleet.host(1).Check(1));
  fleet.Run(8 * kMilli, 0);
  EXPECT_TRUE(fleet.host(1).Check(1));
}

// 10/s: no host may keep a token that another needs. A token takes a call that fetches it, and one
// that reports it.
TEST(KeeperTest, ALowLimitOfManyHostsPassesThroughWhereCallersWait) {
  constexpr size_t kHosts = 20;
  constexpr uint64_t kSeconds = 100;
  for (uint64_t seed = 1; seed <= 2; ++seed) {
    for (const double load : {0.9, 5.0}) {
      KeeperFleet fleet(kHosts, 10, 10, seed, 20 * kMilli);
      const uint64_t calls = fleet.world.redis.calls;
      fleet.Run(kSeconds * kSecond, 10 * load);
      EXPECT_EQ(fleet.over(), 0u) << seed;
      EXPECT_GE(fleet.used_percent(), 99.5) << seed << " at " << load;
      EXPECT_LE(fleet.world.redis.calls - calls, 2 * kSeconds * kHosts) << seed << " at " << load;
    }
  }
}

TEST(KeeperTest, LostAndLateMessagesNeverAddTokens) {
  for (uint64_t seed = 1; seed <= 10; ++seed) {
    KeeperFleet fleet(3, 500, 100, seed);
    fleet.world.loss = 0.1;
    fleet.Run(10 * kSecond, 1000);
    EXPECT_EQ(fleet.over(), 0u) << seed;
    EXPECT_GE(fleet.used_percent(), 60) << seed;
  }
}

TEST(KeeperTest, DaemonsThatAreKilledLeaveNothingToBeSpentTwice) {
  for (uint64_t seed = 1; seed <= 10; ++seed) {
    KeeperFleet fleet(2, 500, 200, seed);
    for (size_t kill = 0; kill < 20; ++kill) {
      fleet.Run(fleet.world.Below(600 * kMilli), 1000);
      fleet.host(kill % 2).Kill();
      fleet.Run(fleet.world.Below(300 * kMilli), 1000);
      fleet.host(kill % 2).Boot();
    }
    EXPECT_EQ(fleet.over(), 0u) << seed;
    EXPECT_GE(fleet.used_percent(), 40) << seed;
  }
}

TEST(KeeperTest, WhileRedisIsAwayOnlyWhatIsLentIsSpent) {
  KeeperFleet fleet(2, 500, 100, 3);
  fleet.Run(3 * kSecond, 1000);
  fleet.world.redis_back_ns = fleet.world.events.now_ns + 3 * kSecond;
  fleet.Run(kSecond, 1000);
  const uint64_t before = fleet.admitted;
  fleet.Run(2 * kSecond, 1000);
  EXPECT_EQ(fleet.admitted, before);
  fleet.Run(5 * kSecond, 1000);
  EXPECT_GE(fleet.admitted, before + 4 * 500);
  EXPECT_EQ(fleet.over(), 0u);
}

TEST(KeeperTest, AFailoverThatForgetsLeasesLendsNothingTwice) {
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    KeeperFleet fleet(3, 500, 200, seed);
    for (int turn = 0; turn < 4; ++turn) {
      fleet.Run(3 * kSecond, 1000);
      const test::LuaRedis::Data copy = fleet.world.redis.data;
      fleet.Run(fleet.world.Below(500 * kMilli), 1000);
      fleet.FailOver(copy);
    }
    fleet.Run(3 * kSecond, 1000);
    EXPECT_EQ(fleet.over(), 0u) << seed;
  }
}

TEST(KeeperTest, LargeCostsAreSpentWhole) {
  KeeperFleet fleet(2, 1000, 500, 5);
  fleet.Run(10 * kSecond, 200, nullptr, [&] { return 1 + fleet.world.Below(20); });
  EXPECT_EQ(fleet.over(), 0u);
  EXPECT_GE(fleet.used_percent(), 70);
}

TEST(KeeperTest, ARefundCountsUntilTheNextReportAndNotAfterIt) {
  KeeperFleet fleet(1, 100, 50, 1);
  KeeperHost& host = fleet.host(0);
  fleet.Run(kSecond, 50);
  ASSERT_TRUE(host.Check(1));
  const uint64_t count = Count(host.word());
  EXPECT_TRUE(host.Refund(1));
  EXPECT_EQ(Count(host.word()), count + 1);
  ASSERT_TRUE(host.Check(1));
  const uint64_t turn = shm::credits::Turn(host.word());
  for (int i = 0; i < 100 && shm::credits::Turn(host.word()) == turn; ++i) {
    fleet.Run(10 * kMilli, 50);
  }
  ASSERT_NE(shm::credits::Turn(host.word()), turn);
  KeeperFleet other(1, 100, 50, 1);
  KeeperHost& late = other.host(0);
  other.Run(kSecond, 50);
  ASSERT_TRUE(late.Check(1));
  for (int i = 0; i < 20; ++i) other.Run(10 * kMilli, 0);
  EXPECT_FALSE(late.Refund(1)) << "reported as spent";
}

TEST(KeeperTest, RefundsAtAnyTimeNeverAddTokens) {
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    KeeperFleet fleet(2, 500, 100, seed);
    for (int i = 0; i < 2000; ++i) {
      fleet.Run(fleet.world.Below(10 * kMilli), 1000);
      // Undone at once: neither admitted nor spent.
      KeeperHost& host = fleet.host(fleet.world.Below(2));
      if (host.Check(3) && !host.Refund(3)) ADD_FAILURE() << "within one turn";
    }
    EXPECT_EQ(fleet.over(), 0u) << seed;
    EXPECT_GE(fleet.used_percent(), 90) << seed;
  }
}

TEST(KeeperTest, ClientsThatSpendWhileAReportIsMadeAreSeen) {
  int met = 0;
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    KeeperFleet fleet(2, 4000, 400, seed);
    KeeperHost& host = fleet.host(0);
    fleet.Run(2 * kSecond, 3600, [] { return 0; });
    // Idle, it gives back what it holds; a client takes all of it between the keeper's look and its
    // hand in the word, which is where chance is asked a second time.
    uint64_t asked_ns = 0;
    uint64_t spent = 0;
    host.in_between = [&] {
      const uint64_t held = Count(host.word());
      if (std::exchange(asked_ns, fleet.world.events.now_ns) != asked_ns || held < 100) return;
      fleet.Arrive(0, held);
      spent += held;
    };
    for (int i = 0; i < 200 && spent == 0; ++i) fleet.Run(kHarvestNs, 0);
    met += spent != 0 ? 1 : 0;
    // Both ask for all that there is: what stood in the word twice would be spent.
    size_t turn = 0;
    fleet.Run(300 * kMilli, 80'000, [&turn] { return turn++ % 2; });
    EXPECT_EQ(fleet.over(), 0u) << seed;
  }
  EXPECT_GE(met, 3);
}

TEST(KeeperTest, WhatIsNoLongerCountedIsTakenOutOfTheWord) {
  KeeperFleet fleet(1, 1000, 200, 1);
  fleet.Run(kSecond, 500);
  ASSERT_GT(Count(fleet.host(0).word()), 0u);
  fleet.FailOver({});
  fleet.Run(150 * kMilli, 0);
  EXPECT_EQ(Count(fleet.host(0).word()), 0u);
}

TEST(KeeperTest, AWordThatSomebodyElseWroteIsNotBelieved) {
  KeeperFleet fleet(1, 100, 50, 1);
  KeeperHost& host = fleet.host(0);
  fleet.Run(kSecond, 50);
  host.Write(shm::credits::WithCount(host.word(), shm::credits::kMax));
  fleet.Run(60 * kMilli, 20);
  EXPECT_LE(Count(host.word()), 50u);
}

TEST(KeeperTest, WhatStoodInAReusedSlotIsGivenUp) {
  KeeperFleet fleet(2, 200, 100, 2);
  for (int turn = 0; turn < 50; ++turn) {
    fleet.Run(100 * kMilli, 400);
    fleet.host(static_cast<size_t>(turn) % 2).Evict();
  }
  EXPECT_EQ(fleet.over(), 0u);
  EXPECT_GE(fleet.used_percent(), 50);
  EXPECT_GT(fleet.host(0).keeper().stats().lost_tokens, 0u);
}

// Under `degrade` an emergency outlasts the first replies: each of them gave the host its share
// anew.
TEST(KeeperTest, WhatClientsCountedByThemselvesOutlastsAReply) {
  for (const bool strict : {true, false}) {
    KeeperFleet fleet(1, 1000, 500, 1, /*wait_ns=*/0, strict);
    KeeperHost& host = fleet.host(0);
    fleet.Run(kSecond, 800);
    const uint64_t counted_ns = host.LocalNs() + 400 * kMilli;
    host.CountAlone(counted_ns);
    fleet.Run(200 * kMilli, 800);
    EXPECT_GE(host.second_ns() + 1000, counted_ns) << strict;
    // Nobody who writes there may bar the host for longer than its burst takes.
    host.CountAlone(host.LocalNs() + 60 * kSecond);
    fleet.Run(200 * kMilli, 800);
    EXPECT_LE(host.second_ns(), host.LocalNs() + 500 * kMilli) << strict;
  }
}

TEST(KeeperTest, AnIdleHostHoldsNothingAndAsksNothing) {
  KeeperFleet fleet(2, 1000, 100, 1);
  fleet.Run(2 * kSecond, 500);
  fleet.Run(4 * kSecond, 0);
  EXPECT_EQ(fleet.host(0).keeper().held_tokens() + fleet.host(1).keeper().held_tokens(), 0u);
  const uint64_t calls = fleet.world.redis.calls;
  fleet.Run(10 * kSecond, 0);
  EXPECT_EQ(fleet.world.redis.calls, calls);
}

TEST(KeeperTest, ForgetsABucketThatNobodyUses) {
  KeeperFleet fleet(1, 1000, 100, 1);
  fleet.Run(kSecond, 500);
  EXPECT_EQ(fleet.host(0).keeper().size(), 1u);
  fleet.Run(kForgetNs + 5 * kSecond, 0);
  EXPECT_EQ(fleet.host(0).keeper().size(), 0u);
  fleet.Run(3 * kSecond, 500);
  EXPECT_EQ(fleet.over(), 0u);
  EXPECT_GE(fleet.used_percent(), 90);
}

}  // namespace
}  // namespace sluice::lease
