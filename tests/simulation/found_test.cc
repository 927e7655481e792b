// Bugs that the simulation has found, each as a run of its own: the seeds' runs change with every
// fault that is added.
#include <gtest/gtest.h>

#include "tests/simulation/one_host.h"

namespace sluice::simulation {
namespace {

void MoveAllShardsTo(Cluster* cluster, int node) {
  for (uint32_t shard = 0; shard < OneHost::kShards; ++shard)
    cluster->Migrate(shard, node, 10 * kMs);
}

// No call went to the node any more, so none could show that it was well.
TEST(FoundTest, AnAlarmAboutRefusedCallsEndsWithTheLastShardOfThatNode) {
  OneHost world;
  world.RunFor(3 * kSecond);
  ASSERT_TRUE(world.Alarms().empty());
  world.cluster().node(0).says_no =
      "NOPERM this user has no permissions to run the 'evalsha' command";
  world.RunFor(2 * kSecond);
  ASSERT_FALSE(world.Alarms().empty());
  MoveAllShardsTo(&world.cluster(), 1);
  world.RunFor(20 * kSecond);
  ASSERT_TRUE(world.cluster().IsWell());
  for (const Alarm& alarm : world.Alarms()) ADD_FAILURE() << alarm.text;
}

// The question after the map was in flight on a connection that had been idle long enough to be
// closed: until it was given up, the next turn was always one nanosecond away.
TEST(FoundTest, ADaemonDoesNotSpinWhileANodeOutsideTheMapOwesAnAnswer) {
  constexpr uint64_t kTurnsMost = 2000;  // in five seconds; ticks are 500
  OneHost world({.replicas = 1, .seed = 1});
  world.RunFor(3 * kSecond);
  MoveAllShardsTo(&world.cluster(), 1);
  world.RunFor(15 * kSecond);
  // Node 0 has slots, no shard of ours, and the only other connection: it is asked first.
  ASSERT_EQ(2u, world.host().ring()->channel_count());
  world.cluster().PlannedFailover(0);
  ASSERT_EQ(2, world.cluster().config().primary_of[0]) << "node 0 is a replica now";
  world.cluster().Pause(0);
  world.RunFor(2 * kSecond);  // until node 1 knows
  const uint64_t turns = world.host().all_turns();
  world.network().Reset(/*host=*/0, /*node=*/1);
  EXPECT_FALSE(
      world.RunUntil([&] { return world.host().all_turns() > turns + kTurnsMost; }, 5 * kSecond));
}

}  // namespace
}  // namespace sluice::simulation
