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
TEST(RulesTest, UseOfAHigherLimitIsCountedAfterItIsLowered) {
  OneHost world({.check_gap_ns = 20 * kUs});
  world.RunFor(8 * kMs);
  ASSERT_GT(world.host().UnreportedTokens(), 500) << "a lot in one turn";
  std::vector<config::RuleConfig> rules = world.host().first_rules();
  rules[0].limit = config::LimitConfig{.limit = 1, .period_ns = kSecond, .burst = 3};
  world.host().ChangeRules(rules);
  ASSERT_EQ(1u, world.host().rule_changes());
  world.RunFor(100 * kMs);
  world.host().StopClients();
  ASSERT_TRUE(world.RunUntil([&] { return world.host().IsSettled(); }, 15 * kSecond))
      << world.host().Unsettled();
  Books books(&world.cluster(), &world.hosts());
  for (const std::string& what : books.Check(/*closing=*/true)) ADD_FAILURE() << what;
  EXPECT_EQ(books.totals().admitted, books.totals().counted);
}

}  // namespace
}  // namespace sluice::simulation
