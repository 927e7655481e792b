// Penalties, on one host without Redis and over several with it: when a ban begins, that it ends on
// time on every host, and what does not move its end.
#include <gtest/gtest.h>

#include <string>

#include "tests/config/parsed.h"
#include "tests/reconcile/fleet.h"

namespace sluice::test {
namespace {

constexpr char kRules[] = R"(
redis: {addresses: "h:1", mode: single}
rules:
  - name: api
    key: [user]
    limit: 10/s
    burst: 10
    penalty: {after: 20 per 10s, for: 60s}
)";

std::string With(const std::string& penalty, const std::string& limit = "limit: 10/s") {
  return "redis: {addresses: \"h:1\", mode: single}\nrules:\n  - name: api\n    key: [user]\n    " +
         limit + "\n    burst: 10\n" + (penalty.empty() ? "" : "    penalty: " + penalty + "\n");
}

constexpr HostOptions kAlone{.has_redis = false};

// One host without Redis.
class Alone {
 public:
  explicit Alone(const std::string& rules)
      : host_(0, config::Good(rules), &redis_, &network_, kAlone) {}

  void Run(uint64_t ns) {
    for (const uint64_t end = VirtualClock::now_ns + ns; VirtualClock::now_ns < end;) {
      VirtualClock::now_ns += kMs;
      host_.Advance();
    }
  }
  // Checks until `count` were denied; how many were not.
  int Deny(int count) {
    int allowed = 0;
    for (int denied = 0; denied < count;) host_.Check("api", "u") ? ++allowed : ++denied;
    return allowed;
  }
  // How long from now on nothing is admitted, asked every 50 ms. `most_ns` where nothing is.
  uint64_t DeniedFor(uint64_t most_ns) {
    const uint64_t begin_ns = VirtualClock::now_ns;
    while (VirtualClock::now_ns < begin_ns + most_ns && !host_.Check("api", "u")) Run(50 * kMs);
    return VirtualClock::now_ns - begin_ns;
  }
  Host& host() { return host_; }
  uint64_t bans() { return host_.reconciler().totals().at("api").bans; }

 private:
  LuaRedis redis_;
  Network network_;
  Host host_;
};

void ExpectAbout(uint64_t ns, uint64_t wanted_ns) {
  EXPECT_GE(ns, wanted_ns - 100 * kMs);
  EXPECT_LE(ns, wanted_ns + 100 * kMs);
}

TEST(PenaltyTest, OneDenialLessBansNobody) {
  Alone alone(kRules);
  alone.Deny(19);
  alone.Run(20 * kMs);
  alone.Run(100 * kMs);
  EXPECT_TRUE(alone.host().Check("api", "u"));
  EXPECT_EQ(alone.bans(), 0u);
}

TEST(PenaltyTest, ABanBeginsWithTheNextHarvestAndEndsOnTime) {
  Alone alone(kRules);
  alone.Deny(20);
  alone.Run(20 * kMs);
  EXPECT_EQ(alone.bans(), 1u);
  EXPECT_NE(alone.host().SlotOf("api", "u")->aux.load() & shm::aux::kBanned, 0u);
  // Whoever goes on asking lengthens nothing.
  ExpectAbout(alone.DeniedFor(100 * kSecond), 60 * kSecond);
  alone.Run(20 * kMs);
  EXPECT_EQ(alone.host().SlotOf("api", "u")->aux.load() & shm::aux::kBanned, 0u);
  EXPECT_EQ(alone.bans(), 1u);
  // It comes back with one request, and then by its rate.
  EXPECT_FALSE(alone.host().Check("api", "u"));
}

TEST(PenaltyTest, DenialsOfAnotherWhileAreForgotten) {
  Alone alone(kRules);
  alone.Deny(19);
  alone.Run(10'100 * kMs);
  alone.Deny(19);
  alone.Run(20 * kMs);
  EXPECT_EQ(alone.bans(), 0u);
}

TEST(PenaltyTest, ARefundShortensNoBan) {
  Alone alone(kRules);
  alone.Deny(20);
  alone.Run(20 * kMs);
  shm::Slot* const slot = alone.host().SlotOf("api", "u");
  const uint64_t before = slot->word.load();
  // As a late refund of all that was spent does.
  slot->word.store(before - kSecond);
  const auto index = static_cast<uint32_t>(slot - alone.host().buckets().slots());
  shm::AddUse(*slot, alone.host().buckets().dirty(), index, 0);
  slot->used.fetch_sub(5);
  alone.Run(20 * kMs);
  EXPECT_EQ(slot->word.load(), before);
}

TEST(PenaltyTest, ADaemonThatIsStartedAnewKeepsIt) {
  Alone alone(kRules);
  alone.Deny(20);
  alone.Run(kSecond);
  alone.host().StartReconciler(7, VirtualClock::now_ns);
  alone.Run(kSecond);
  ExpectAbout(alone.DeniedFor(100 * kSecond), 58 * kSecond);
  alone.Run(20 * kMs);
  EXPECT_EQ(alone.host().SlotOf("api", "u")->aux.load() & shm::aux::kBanned, 0u);
}

TEST(PenaltyTest, OneThatEndedWhileNoDaemonRanIsNotShownAnyMore) {
  Alone alone(kRules);
  alone.Deny(20);
  alone.Run(20 * kMs);
  VirtualClock::now_ns += 61 * kSecond;
  alone.host().StartReconciler(7, VirtualClock::now_ns);
  EXPECT_TRUE(alone.host().Check("api", "u", 5)) << "it is over";
  EXPECT_FALSE(alone.host().Check("api", "u", 9)) << "so the daemon looks at it";
  alone.Run(20 * kMs);
  EXPECT_EQ(alone.host().SlotOf("api", "u")->aux.load() & shm::aux::kBanned, 0u);
  EXPECT_EQ(alone.bans(), 0u);
}

// A daemon that waits for a CPU goes on by a time at which the ban still stood.
TEST(PenaltyTest, WhatIsAdmittedAfterItsEndIsNotForgottenByALateLook) {
  for (const uint64_t late_ns : {1 * kMs, 100 * kMs, 200 * kMs}) {
    Alone alone(kRules);
    alone.Deny(20);
    alone.Run(20 * kMs);
    shm::Slot* const slot = alone.host().SlotOf("api", "u");
    // Of ten tokens one is there at the end.
    const uint64_t end_ns = slot->word.load() - 900 * kMs;
    const uint64_t looks_ns = end_ns - late_ns;
    alone.Run(looks_ns - VirtualClock::now_ns - kMs);
    VirtualClock::now_ns = end_ns + kMs;
    EXPECT_TRUE(alone.host().Check("api", "u"));
    EXPECT_FALSE(alone.host().Check("api", "u"));
    const uint64_t word_ns = slot->word.load();
    alone.host().reconciler().Tick(looks_ns);
    EXPECT_EQ(slot->word.load(), word_ns) << late_ns;
  }
}

TEST(PenaltyTest, AChangedLimitMovesNoEndAndComingBackNeither) {
  for (const char* limit : {"limit: 1000/s", "limit: 1/s", "limit: 1 per 100s"}) {
    Alone alone(kRules);
    alone.Deny(20);
    alone.Run(20 * kMs);
    alone.host().SetConfig(config::Good(With("{after: 20 per 10s, for: 60s}", limit)), 2);
    alone.Run(10 * kSecond);
    EXPECT_EQ(alone.DeniedFor(kSecond), kSecond) << limit;
    alone.host().SetConfig(config::Good(kRules), 3);
    ExpectAbout(alone.DeniedFor(100 * kSecond), 49 * kSecond);
  }
}

TEST(PenaltyTest, AShorterBanShortensThoseThatStandAndNoneLiftsThem) {
  Alone alone(kRules);
  alone.Deny(20);
  alone.Run(20 * kMs);
  alone.host().SetConfig(config::Good(With("{after: 20 per 10s, for: 5s}")), 2);
  ExpectAbout(alone.DeniedFor(100 * kSecond), 5 * kSecond);
  alone.Deny(20);
  alone.Run(20 * kMs);
  alone.host().SetConfig(config::Good(With("")), 3);
  EXPECT_LT(alone.DeniedFor(kSecond), 200 * kMs);
}

// Who is denied for longer by the limit gains nothing by a ban.
TEST(PenaltyTest, ABanShortensNothingThatTheLimitDenies) {
  const std::string rules = With("{after: 20 per 10s, for: 5s}", "limit: 1 per 10s");
  for (const bool has_redis : {false, true}) {
    Alone alone(rules);
    Fleet fleet(1, config::Good(rules));
    Host& host = has_redis ? fleet.host(0) : alone.host();
    for (int i = 0; i < 30; ++i) host.Check("api", "u");
    const uint64_t word_ns = host.SlotOf("api", "u")->word.load();
    has_redis ? fleet.Run(kSecond) : alone.Run(kSecond);
    ASSERT_EQ(host.reconciler().totals().at("api").bans, 1u);
    const uint64_t then_ns = host.SlotOf("api", "u")->word.load();
    EXPECT_GE(then_ns + 5 * kMs, word_ns) << has_redis;
    EXPECT_LE(then_ns, word_ns + 5 * kMs) << has_redis;
  }
}

TEST(PenaltyTest, AnOperatorEndsIt) {
  Alone alone(kRules);
  alone.Deny(25);
  alone.Run(20 * kMs);
  EXPECT_FALSE(alone.host().Check("api", "u"));
  alone.Run(20 * kMs);
  EXPECT_TRUE(alone.host().reconciler().Unban("api:u", VirtualClock::now_ns));
  EXPECT_EQ(alone.Deny(19), 10) << "the bucket is full, and 19 denials are too few again";
  alone.Run(20 * kMs);
  EXPECT_EQ(alone.bans(), 1u);
  EXPECT_FALSE(alone.host().reconciler().Unban("nobody:u", VirtualClock::now_ns));
  EXPECT_TRUE(alone.host().reconciler().Unban("api:unknown", VirtualClock::now_ns));
}

TEST(PenaltyTest, EachDenialCostsUpToTheBoundOfDebt) {
  Alone alone(With("{deny_costs: 2}"));
  alone.Deny(3);
  alone.Run(20 * kMs);
  // Six tokens more than the bucket held, and the one that it asks for, at 10/s.
  const uint64_t begin_ns = VirtualClock::now_ns;
  while (alone.host().SlotOf("api", "u")->word.load() > VirtualClock::now_ns + 900 * kMs) {
    alone.Run(10 * kMs);
  }
  EXPECT_GE(VirtualClock::now_ns - begin_ns, 600 * kMs);
  alone.Deny(1000);
  alone.Run(20 * kMs);
  const uint64_t ahead_ns = alone.host().SlotOf("api", "u")->word.load() - VirtualClock::now_ns;
  EXPECT_LE(ahead_ns, 2 * kSecond);
  EXPECT_GE(ahead_ns, 2 * kSecond - 100 * kMs);
}

// By a daemon that has not met the bucket yet.
TEST(PenaltyTest, AnOperatorEndsWhatAFormerDaemonLeft) {
  Alone alone(kRules);
  alone.Deny(20);
  alone.Run(kSecond);
  alone.host().StartReconciler(7, VirtualClock::now_ns);
  EXPECT_TRUE(alone.host().reconciler().Unban("api:u", VirtualClock::now_ns));
  EXPECT_TRUE(alone.host().Check("api", "u"));
  EXPECT_EQ(alone.host().SlotOf("api", "u")->aux.load() & shm::aux::kBanned, 0u);
}

// Each host has too few denials, all together have enough: the ban is on all within a beat of each
// host's next request, and ends at the same time.
TEST(PenaltyFleetTest, DenialsOfManyHostsAddUpAndTheBanIsEverywhere) {
  constexpr size_t kHosts = 5;
  Fleet fleet(kHosts, config::Good(kRules));
  uint64_t begin_ns = 0;
  std::vector<uint64_t> free_ns(kHosts, 0);
  int step = 0;
  uint64_t admitted_in_ban = 0;
  fleet.Run(90 * kSecond, [&] {
    ++step;
    for (size_t i = 0; i < kHosts; ++i) {
      Host& host = fleet.host(i);
      // 5 hosts ask 20 times a second each, until one is banned; then 10 times a second.
      if (step % (begin_ns == 0 ? 50 : 100) != static_cast<int>(i)) continue;
      const bool allowed = host.Check("api", "u");
      if (begin_ns != 0 && allowed && VirtualClock::now_ns > begin_ns + 300 * kMs) {
        if (VirtualClock::now_ns < begin_ns + 59 * kSecond) ++admitted_in_ban;
        if (free_ns[i] == 0) free_ns[i] = VirtualClock::now_ns;
      }
      const auto& totals = host.reconciler().totals();
      const auto at = totals.find("api");
      if (begin_ns == 0 && at != totals.end() && at->second.bans != 0) {
        begin_ns = VirtualClock::now_ns;
      }
    }
  });
  ASSERT_NE(begin_ns, 0u);
  EXPECT_EQ(admitted_in_ban, 0u);
  uint64_t bans = 0;
  for (size_t i = 0; i < kHosts; ++i) {
    bans += fleet.host(i).reconciler().totals().at("api").bans;
    ASSERT_NE(free_ns[i], 0u) << i;
    // One request's cost comes back at the end; with five that ask, the others wait a little more.
    EXPECT_GE(free_ns[i], begin_ns + 59'500 * kMs) << i;
    EXPECT_LE(free_ns[i], begin_ns + 63 * kSecond) << i;
  }
  EXPECT_GE(bans, 1u) << "each ban counts once in the fleet";
  EXPECT_LE(bans, 2u);
}

// A host that hears of the bucket for the first time denies after one exchange.
TEST(PenaltyFleetTest, AHostThatHasNotSeenTheKeyLearnsWithItsFirstReport) {
  Fleet fleet(2, config::Good(kRules));
  for (int i = 0; i < 40; ++i) fleet.host(0).Check("api", "u");
  fleet.Run(kSecond);
  ASSERT_EQ(fleet.host(0).reconciler().totals().at("api").bans, 1u);
  fleet.host(1).Check("api", "u");
  fleet.Run(150 * kMs);
  EXPECT_FALSE(fleet.host(1).Check("api", "u"));
  EXPECT_NE(fleet.host(1).SlotOf("api", "u")->aux.load() & shm::aux::kBanned, 0u);
  fleet.Run(50 * kSecond);
  EXPECT_FALSE(fleet.host(1).Check("api", "u"));
  EXPECT_FALSE(fleet.host(0).Check("api", "u"));
  fleet.Run(10 * kSecond);
  EXPECT_TRUE(fleet.host(1).Check("api", "u") || fleet.host(0).Check("api", "u"));
  EXPECT_EQ(fleet.host(1).reconciler().totals().at("api").bans, 0u);
}

TEST(PenaltyFleetTest, AnOperatorOnAnyHostEndsItEverywhere) {
  Fleet fleet(3, config::Good(kRules));
  for (int i = 0; i < 40; ++i) fleet.host(0).Check("api", "u");
  fleet.Run(kSecond);
  fleet.host(1).Check("api", "u");
  fleet.Run(kSecond);
  ASSERT_FALSE(fleet.host(0).Check("api", "u"));
  ASSERT_FALSE(fleet.host(1).Check("api", "u"));
  fleet.Run(kSecond);
  // By one that has never seen the key.
  EXPECT_TRUE(fleet.host(2).reconciler().Unban("api:u", VirtualClock::now_ns));
  fleet.Run(kSecond);
  for (size_t i = 0; i < 2; ++i) {
    fleet.host(i).Check("api", "u");  // may be denied: it has not heard yet
    fleet.Run(200 * kMs);
    EXPECT_TRUE(fleet.host(i).Check("api", "u")) << i;
  }
  fleet.Run(5 * kSecond);
  EXPECT_TRUE(fleet.host(0).Check("api", "u"));
}

TEST(PenaltyFleetTest, InAnOutageEachHostCountsItsOwnAndTellsRedisAfterwards) {
  Fleet fleet(2, config::Good(kRules));
  fleet.host(0).Check("api", "u");
  fleet.host(1).Check("api", "u");
  fleet.Run(kSecond);
  fleet.network.cut = true;
  fleet.Run(3 * kSecond, [&] { fleet.host(0).Check("api", "other"); });
  for (int i = 0; i < 40; ++i) fleet.host(0).Check("api", "u");
  fleet.Run(kSecond);
  ASSERT_EQ(fleet.host(0).reconciler().totals().at("api").bans, 2u) << "other, and u";
  EXPECT_FALSE(fleet.host(0).Check("api", "u"));
  EXPECT_TRUE(fleet.host(1).Check("api", "u")) << "nobody has told it";
  fleet.Run(2 * kSecond);
  fleet.network.cut = false;
  fleet.Run(5 * kSecond, [&] {
    if (VirtualClock::now_ns % (100 * kMs) < kMs) {
      fleet.host(0).Check("api", "u");
      fleet.host(1).Check("api", "u");
    }
  });
  EXPECT_FALSE(fleet.host(0).Check("api", "u"));
  EXPECT_FALSE(fleet.host(1).Check("api", "u")) << "now it knows";
  fleet.Run(55 * kSecond);
  EXPECT_TRUE(fleet.host(0).Check("api", "u"));
}

TEST(PenaltyFleetTest, LostMessagesCountNoDenialTwice) {
  Fleet fleet(2, config::Good(kRules));
  fleet.network.lose_reply = 0.5;
  for (int round = 0; round < 3; ++round) {
    // Six a host in a beat, and again for three beats: 18 denials of both, however often sent.
    for (size_t i = 0; i < 2; ++i) {
      Host& host = fleet.host(i);
      for (int denied = 0; denied < 3;) denied += host.Check("api", "u") ? 0 : 1;
    }
    fleet.Run(500 * kMs);
  }
  fleet.Run(2 * kSecond);
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_EQ(fleet.host(i).reconciler().totals().at("api").bans, 0u);
  }
}

TEST(PenaltyFleetTest, DenialsCostOverHostsUpToTheBound) {
  Fleet fleet(2, config::Good(With("{deny_costs: 5}")));
  fleet.Run(3 * kSecond, [&] {
    for (size_t i = 0; i < 2; ++i) fleet.host(i).Check("api", "u");
  });
  const uint64_t admitted = fleet.Admitted();
  // Who goes on asking is admitted nothing more: the debt stands at its bound.
  fleet.Run(10 * kSecond, [&] {
    for (size_t i = 0; i < 2; ++i) fleet.host(i).Check("api", "u");
  });
  EXPECT_LE(fleet.Admitted() - admitted, 2u);
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_LE(fleet.host(i).SlotOf("api", "u")->word.load() - VirtualClock::now_ns,
              2 * kSecond + 200 * kMs);
  }
  // And who waits is not kept for longer than that.
  fleet.Run(2200 * kMs);
  EXPECT_TRUE(fleet.host(0).Check("api", "u"));
}

}  // namespace
}  // namespace sluice::test
