// Homes that move between regions, in virtual time (region_fleet.h).
#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

#include "tests/lease/region_fleet.h"

namespace sluice::lease {
namespace {

constexpr uint64_t kLimit = 500;
constexpr uint64_t kBurst = 200;
// SEEDS of the environment: so many for each.
uint64_t Seeds() {
  const char* const seeds = getenv("SEEDS");
  return seeds == nullptr ? 8 : strtoull(seeds, nullptr, 10);
}

class RegionsTest : public testing::TestWithParam<uint64_t> {
 protected:
  RegionFleet fleet_{kLimit, kBurst, GetParam()};

  // All hosts hear of the new home, each when `in_ns` says.
  void Move(uint32_t home, uint64_t epoch, const std::function<uint64_t()>& in_ns) {
    for (uint32_t i = 0; i < kRegions; ++i) {
      fleet_.At(in_ns(),
                [this, i, rules = fleet_.Rules(home, epoch)] { fleet_.host(i).Reload(rules); });
    }
  }
  uint64_t AdmittedIn(uint64_t ns) {
    const uint64_t before = fleet_.admitted;
    fleet_.Run(ns, 3 * kLimit);
    return fleet_.admitted - before;
  }
  // The home's region loses its last half second of writes, and another primary serves.
  void FailOver(uint32_t region) {
    const test::LuaRedis::Data copy = fleet_.world.regions[region]->redis.data;
    fleet_.At(kSecond / 2, [this, region, copy] {
      fleet_.world.regions[region]->redis.data = copy;
      ++fleet_.world.regions[region]->primary;
    });
  }
};

TEST_P(RegionsTest, AFarHomeIsUsedInFull) {
  fleet_.Run(4 * kSecond, 3 * kLimit);
  EXPECT_GE(AdmittedIn(5 * kSecond), 5 * kLimit * 97 / 100);
  EXPECT_EQ(fleet_.over(), 0u);
}

TEST_P(RegionsTest, AHomeMovesWhileHostsLearnOfItAtDifferentTimes) {
  fleet_.Run(4 * kSecond, 3 * kLimit);
  for (uint64_t epoch = 1; epoch <= 6; ++epoch) {
    Move(epoch % kRegions, epoch, [this] { return fleet_.world.Below(3 * kSecond); });
    fleet_.Run(3 * kSecond + fleet_.world.Below(2 * kSecond), 3 * kLimit);
  }
  fleet_.Run(2 * kSecond, 3 * kLimit);
  EXPECT_GE(AdmittedIn(3 * kSecond), 3 * kLimit * 95 / 100);
  EXPECT_EQ(fleet_.over(), 0u);
}

TEST_P(RegionsTest, AFailoverThatForgetsAMoveOpensTheFormerHomeForNobody) {
  fleet_.Run(4 * kSecond, 3 * kLimit);
  // Host 0, in the former home, hears of nothing; writes of the move are lost there.
  FailOver(0);
  fleet_.At(kSecond / 4, [this] {
    for (uint32_t i = 1; i < kRegions; ++i) fleet_.host(i).Reload(fleet_.Rules(1, 1));
  });
  fleet_.Run(6 * kSecond, 3 * kLimit);
  EXPECT_EQ(fleet_.over(), 0u);
  EXPECT_EQ(fleet_.host(0).homes().refused().at("strict"), Away::kLaterMap);
  // And it does not keep the others from theirs.
  EXPECT_GE(AdmittedIn(3 * kSecond), 3 * kLimit * 90 / 100);
  EXPECT_EQ(fleet_.over(), 0u);
}

TEST_P(RegionsTest, AFailoverOfTheHomeCostsItsFence) {
  fleet_.Run(4 * kSecond, 3 * kLimit);
  FailOver(0);
  fleet_.Run(3 * kSecond, 3 * kLimit);
  EXPECT_GE(AdmittedIn(3 * kSecond), 3 * kLimit * 95 / 100);
  EXPECT_EQ(fleet_.over(), 0u);
}

TEST_P(RegionsTest, TwoMapsOfOneEpochLendNothingTwice) {
  fleet_.Run(4 * kSecond, 3 * kLimit);
  fleet_.host(1).Reload(fleet_.Rules(1, 1));
  fleet_.host(2).Reload(fleet_.Rules(2, 1));
  fleet_.Run(6 * kSecond, 3 * kLimit);
  EXPECT_EQ(fleet_.over(), 0u);
  EXPECT_FALSE(fleet_.host(1).homes().refused().empty() &&
               fleet_.host(2).homes().refused().empty());
  Move(2, 2, [] { return uint64_t{0}; });
  fleet_.Run(4 * kSecond, 3 * kLimit);
  EXPECT_GE(AdmittedIn(3 * kSecond), 3 * kLimit * 95 / 100);
  EXPECT_EQ(fleet_.over(), 0u);
}

TEST_P(RegionsTest, WhileARegionIsAwayNoHomeMovesAndThoseThatAreOpenLend) {
  fleet_.Run(4 * kSecond, 3 * kLimit);
  fleet_.world.regions[2]->back_ns = fleet_.world.events.now_ns + 12 * kSecond;
  EXPECT_GE(AdmittedIn(4 * kSecond), 4 * kLimit * 95 / 100);
  // The epoch closes what it reaches, and cannot open before the third has heard of it.
  Move(1, 1, [] { return uint64_t{0}; });
  fleet_.Run(2 * kSecond, 3 * kLimit);
  EXPECT_EQ(AdmittedIn(5 * kSecond), 0u);
  fleet_.Run(5 * kSecond, 3 * kLimit);
  EXPECT_GE(AdmittedIn(3 * kSecond), 3 * kLimit * 95 / 100);
  EXPECT_EQ(fleet_.over(), 0u);
}

TEST_P(RegionsTest, NothingIsEverOverWhateverHappens) {
  fleet_.world.loss = 0.05;
  uint64_t epoch = 0;
  uint32_t home = 0;
  for (int step = 0; step < 40; ++step) {
    const auto any = static_cast<uint32_t>(fleet_.world.Below(kRegions));
    switch (fleet_.world.Below(6)) {
      case 0:
        home = any;
        Move(home, ++epoch, [this] { return fleet_.world.Below(4 * kSecond); });
        break;
      case 1:
        FailOver(any);
        break;
      case 2:  // a restart, at times with the configuration of before the last move
        fleet_.host(any).Boot(fleet_.world.Chance(0.5) ? fleet_.Rules(home, epoch)
                                                       : fleet_.Rules(0, 0));
        break;
      case 3:
        fleet_.world.regions[any]->redis.data.clear();
        ++fleet_.world.regions[any]->primary;
        break;
      case 4:
        fleet_.world.regions[any]->back_ns =
            fleet_.world.events.now_ns + fleet_.world.Below(kSecond);
        break;
      default:
        break;
    }
    fleet_.Run(fleet_.world.Below(2 * kSecond), 3 * kLimit);
  }
  EXPECT_EQ(fleet_.over(), 0u);
  fleet_.world.loss = 0;
  fleet_.Run(5 * kSecond, 3 * kLimit);  // what is on its way has come
  Move(1, ++epoch, [] { return uint64_t{0}; });
  fleet_.Run(6 * kSecond, 3 * kLimit);
  EXPECT_GE(AdmittedIn(3 * kSecond), 3 * kLimit * 90 / 100);
  EXPECT_EQ(fleet_.over(), 0u);
}

// The script alone. A late call to open speaks of what was set before it was forgotten.
TEST(HomeScriptTest, OpensOnlyWhatWasSetThen) {
  test::LuaRedis redis;
  const std::string script = ScriptOr("HOME_SCRIPT", lua::kHome);
  const auto ask = [&](const std::string& epoch, const std::string& map, const std::string& open) {
    redis.time_us += 1000;
    const redis::Reply reply = redis.Eval(script, "k", {"0", "p", "rule", epoch, map, open});
    EXPECT_EQ(reply.elements.size(), 2u) << reply.text;
    return std::pair(reply.elements[0].integer, std::to_string(reply.elements[1].integer));
  };
  const auto [state, first] = ask("1", "a", "0");
  EXPECT_EQ(state, 1);
  redis.data.clear();
  const auto [again, second] = ask("1", "a", "0");
  EXPECT_EQ(again, 1);
  EXPECT_NE(first, second);
  EXPECT_EQ(ask("1", "a", first).first, 1) << "late";
  EXPECT_EQ(ask("1", "b", "0").first, 3);
  EXPECT_EQ(ask("0", "b", "0").first, 0);
  EXPECT_EQ(ask("1", "a", second).first, 2);
  EXPECT_EQ(ask("1", "a", "0").first, 2) << "stays open";
  EXPECT_EQ(ask("2", "b", second).first, 1) << "of another map";
  EXPECT_EQ(ask("1", "a", second).first, 0);
}

INSTANTIATE_TEST_SUITE_P(Seeds, RegionsTest, testing::Range<uint64_t>(1, 1 + Seeds()));

}  // namespace
}  // namespace sluice::lease
