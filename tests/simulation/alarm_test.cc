// An alarm of a rule says that the rule is degraded, and no more than that.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "tests/simulation/one_host.h"

namespace sluice::simulation {
namespace {

bool Stands(OneHost* world, const std::string& id) {
  const std::vector<Alarm> alarms = world->Alarms();
  return std::any_of(alarms.begin(), alarms.end(),
                     [&id](const Alarm& alarm) { return alarm.id == id; });
}

std::vector<config::RuleConfig> Rules(OneHost* world, bool alert) {
  std::vector<config::RuleConfig> rules = world->host().first_rules();
  rules[0].degraded.alert = alert;
  return rules;
}

TEST(AlarmTest, ARuleThatNobodyAskedForIsNotDegraded) {
  OneHost world;
  world.host().StopClients();
  world.host().ChangeRules(Rules(&world, true));
  world.RunFor(3 * kSecond);
  world.cluster().Kill(0, /*silent=*/false);
  world.RunFor(5 * kSecond);
  EXPECT_TRUE(Stands(&world, "emergency"));
  EXPECT_FALSE(Stands(&world, "degraded:per-user"));
}

TEST(AlarmTest, ARuleIsDegradedUntilItsShardsAreBack) {
  OneHost world;
  world.host().ChangeRules(Rules(&world, true));
  world.RunFor(3 * kSecond);
  EXPECT_FALSE(Stands(&world, "degraded:per-user"));
  world.cluster().Kill(0, /*silent=*/false);
  world.RunFor(5 * kSecond);
  EXPECT_TRUE(Stands(&world, "degraded:per-user"));
  world.cluster().Restart(0, /*empty=*/false, 0);
  world.RunFor(15 * kSecond);
  EXPECT_FALSE(Stands(&world, "degraded:per-user"));
}

TEST(AlarmTest, ARuleThatIsToAlertNoMoreHasNoAlarmLeft) {
  OneHost world;
  world.host().ChangeRules(Rules(&world, true));
  world.RunFor(3 * kSecond);
  world.cluster().Kill(0, /*silent=*/false);
  world.RunFor(5 * kSecond);
  ASSERT_TRUE(Stands(&world, "degraded:per-user"));
  world.host().ChangeRules(Rules(&world, false));
  world.RunFor(2 * kSecond);
  EXPECT_TRUE(Stands(&world, "emergency"));
  EXPECT_FALSE(Stands(&world, "degraded:per-user"));
}

}  // namespace
}  // namespace sluice::simulation
