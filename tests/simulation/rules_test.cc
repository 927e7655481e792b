// Rules that change in the midst of traffic, where the seeds of the simulation are too quiet for
// it.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/simulation/one_host.h"

namespace sluice::simulation {
namespace {

// What the daemon believes of a bucket is capped by what its rule could have admitted: the rule of
// that time, not the new one.
class RulesTest : public testing::Test {
 protected:
  void Lower() {
    std::vector<config::RuleConfig> rules = world_.host().first_rules();
    rules[0].limit = config::LimitConfig{.limit = 1, .period_ns = kSecond, .burst = 3};
    world_.host().ChangeRules(rules);
  }
  void ExpectThatAllIsCounted() {
    EXPECT_EQ(1u, world_.host().rule_changes());
    world_.RunFor(100 * kMs);
    world_.host().StopClients();
    ASSERT_TRUE(world_.RunUntil([&] { return world_.host().IsSettled(); }, 15 * kSecond))
        << world_.host().Unsettled();
    Books books(&world_.cluster(), &world_.hosts());
    for (const std::string& what : books.Check(/*closing=*/true)) ADD_FAILURE() << what;
    EXPECT_EQ(books.totals().admitted, books.totals().counted);
  }

  OneHost world_{{.check_gap_ns = 20 * kUs}};
};

TEST_F(RulesTest, UseOfAHigherLimitIsCountedAfterItIsLowered) {
  world_.RunFor(8 * kMs);
  ASSERT_GT(world_.host().UnreportedTokens(), 500) << "a lot in one turn";
  Lower();
  ExpectThatAllIsCounted();
}

TEST_F(RulesTest, UseOfAHigherLimitIsCountedByADaemonThatStartsWithALowerOne) {
  world_.host().KillDaemon();
  world_.RunFor(100 * kMs);
  ASSERT_GT(world_.host().UnreportedTokens(), 1000) << "a lot while no daemon ran";
  Lower();
  world_.host().StartDaemon();
  ExpectThatAllIsCounted();
}

}  // namespace
}  // namespace sluice::simulation
