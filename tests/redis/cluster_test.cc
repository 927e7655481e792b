// The client against a real cluster of three primaries: map, redirects, lost nodes.

#include "tests/redis/client_fixture.h"

namespace sluice::redis {
namespace {

using test::RedisCluster;

class ClusterClientTest : public ClientFixture {
 protected:
  void StartCluster(const std::vector<std::string>& arguments = {}) {
    cluster_ = std::make_unique<RedisCluster>(arguments);
    ASSERT_TRUE(cluster_->healthy()) << cluster_->node(0).log();
  }
  void CreateReady(ClientOptions options) {
    Create(std::move(options));
    ASSERT_TRUE(BecomesReady());
  }
  ClientOptions ClusterOptions() { return Options(cluster_->addresses(), Mode::kCluster); }

  uint32_t SlotOf(uint32_t shard) const { return KeySlot(client_->ShardKey(shard)); }
  std::string AddressOfShard(uint32_t shard) const {
    return client_->Primary(client_->PrimaryOf(shard)).address;
  }

  std::unique_ptr<RedisCluster> cluster_;
};

TEST_P(ClusterClientTest, EachShardGoesToTheNodeThatOwnsItsSlot) {
  StartCluster();
  CreateReady(ClusterOptions());
  EXPECT_EQ(3u, client_->primary_count());
  for (uint32_t shard = 0; shard < 12; ++shard) {
    const size_t node = RedisCluster::FirstOwner(SlotOf(shard));
    EXPECT_EQ(cluster_->node(node).address(), AddressOfShard(shard));
    EXPECT_EQ(cluster_->id(node), client_->Primary(client_->PrimaryOf(shard)).node_id);
    EXPECT_EQ(1, Finish(Call(shard, kCount)).reply.integer);
    EXPECT_EQ("1", cluster_->node(node).Command({"HGET", client_->ShardKey(shard), "n"}).text);
  }
  EXPECT_EQ(0u, client_->Counters().moved);
  EXPECT_GE(recorder_.topologies, 1);
  EXPECT_TRUE(recorder_.alarms.empty());
}

TEST_P(ClusterClientTest, CallsMadeBeforeTheMapIsKnownWaitForIt) {
  StartCluster();
  Create(ClusterOptions());
  std::vector<uint64_t> tokens;
  for (uint32_t shard = 0; shard < 12; ++shard) tokens.push_back(Call(shard, kEcho));
  for (uint64_t token : tokens) EXPECT_TRUE(Finish(token).ok);
}

TEST_P(ClusterClientTest, OneLivingSeedIsEnough) {
  StartCluster();
  Create(Options({"127.0.0.1:" + std::to_string(test::FreePort()), "no-such-host.invalid:1",
                  cluster_->node(2).address()},
                 Mode::kCluster));
  ASSERT_TRUE(BecomesReady());
  EXPECT_TRUE(Finish(Call(0, kEcho)).ok);
}

TEST_P(ClusterClientTest, MovedIsFollowedOnceAndTheMapPatchedAndRefreshed) {
  StartCluster();
  CreateReady(ClusterOptions());
  Finish(Call(0, kCount));
  const size_t from = RedisCluster::FirstOwner(SlotOf(0));
  const size_t to = (from + 1) % RedisCluster::kNodes;
  cluster_->BeginMigration(SlotOf(0), from, to);
  cluster_->FinishMigration(SlotOf(0), from, to);
  const uint64_t refreshes = client_->Counters().refreshes;
  const Recorder::Outcome& outcome = Finish(Call(0, kCount));
  EXPECT_EQ(2, outcome.reply.integer) << outcome.failure.message;
  EXPECT_EQ(cluster_->node(to).address(), client_->Primary(outcome.primary).address);
  EXPECT_EQ(cluster_->node(to).address(), AddressOfShard(0));
  EXPECT_EQ(3, Finish(Call(0, kCount)).reply.integer);
  EXPECT_EQ(1u, client_->Counters().moved) << "the patched map knows the way";
  ASSERT_TRUE(Turn([&] { return client_->Counters().refreshes > refreshes; }));
  EXPECT_EQ(3u, client_->primary_count());
}

TEST_P(ClusterClientTest, AskIsFollowedWithoutChangingTheMap) {
  StartCluster();
  CreateReady(ClusterOptions());
  const size_t from = RedisCluster::FirstOwner(SlotOf(4));
  const size_t to = (from + 2) % RedisCluster::kNodes;
  cluster_->BeginMigration(SlotOf(4), from, to);
  // The key does not exist at the old place: it is made at the new one.
  const Recorder::Outcome& outcome = Finish(Call(4, kCount));
  EXPECT_EQ(1, outcome.reply.integer) << outcome.failure.message;
  EXPECT_EQ(cluster_->node(to).address(), client_->Primary(outcome.primary).address);
  EXPECT_EQ(cluster_->node(from).address(), AddressOfShard(4));
  EXPECT_EQ(2, Finish(Call(4, kCount)).reply.integer);
  EXPECT_EQ(2u, client_->Counters().asked);
  EXPECT_EQ(0u, client_->Counters().moved);
}

TEST_P(ClusterClientTest, AfterAskANoscriptIsAnsweredWithAskingAgain) {
  StartCluster();
  CreateReady(ClusterOptions());
  const size_t from = RedisCluster::FirstOwner(SlotOf(4));
  const size_t to = (from + 1) % RedisCluster::kNodes;
  cluster_->BeginMigration(SlotOf(4), from, to);
  cluster_->node(to).Command({"SCRIPT", "FLUSH"});
  const Recorder::Outcome& outcome = Finish(Call(4, kCount));
  EXPECT_EQ(1, outcome.reply.integer) << outcome.failure.message;
  EXPECT_EQ(cluster_->node(to).address(), client_->Primary(outcome.primary).address);
  EXPECT_EQ(1u, client_->Counters().noscript);
}

TEST_P(ClusterClientTest, RedirectsThatGoInCirclesEnd) {
  StartCluster();
  CreateReady(ClusterOptions());
  const size_t from = RedisCluster::FirstOwner(SlotOf(0));
  const size_t other = (from + 1) % RedisCluster::kNodes;
  // Each of the two believes that the slot is the other's.
  const std::string slot = std::to_string(SlotOf(0));
  cluster_->node(from).Command({"CLUSTER", "SETSLOT", slot, "NODE", cluster_->id(other)});
  const Recorder::Outcome& outcome = Finish(Call(0, kCount));
  EXPECT_FALSE(outcome.ok);
  EXPECT_EQ(FailureKind::kRetryLater, outcome.failure.kind);
  EXPECT_LE(client_->Counters().moved, uint64_t{kMaxRedirects} + 1);
}

TEST_P(ClusterClientTest, AKilledPrimaryTakesOnlyItsOwnShardsDownAndIsFoundAgain) {
  StartCluster({"--cluster-require-full-coverage", "no"});
  CreateReady(ClusterOptions());
  const size_t victim = 1;
  const uint64_t refreshes = client_->Counters().refreshes;
  cluster_->node(victim).Kill();
  for (uint32_t shard = 0; shard < 12; ++shard) {
    const Recorder::Outcome& outcome = Finish(Call(shard, kEcho));
    if (RedisCluster::FirstOwner(SlotOf(shard)) == victim) {
      EXPECT_EQ(FailureKind::kUnavailable, outcome.failure.kind) << outcome.failure.message;
    } else {
      EXPECT_TRUE(outcome.ok) << outcome.failure.message;
    }
  }
  ASSERT_TRUE(Turn([&] { return client_->Counters().refreshes > refreshes; }));
  EXPECT_EQ(0, recorder_.Raised(AlarmKind::kNoSeedReachable)) << "two nodes still answer";
  ASSERT_TRUE(cluster_->node(victim).Restart());
  ASSERT_TRUE(Turn([&] {
    bool all = true;
    for (uint32_t shard = 0; shard < 12; ++shard) all = all && Finish(Call(shard, kEcho)).ok;
    return all;
  }));
  EXPECT_EQ(3u, client_->primary_count());
}

TEST_P(ClusterClientTest, AStoppedPrimaryTimesOutWhileTheOthersAnswer) {
  StartCluster();
  ClientOptions options = ClusterOptions();
  options.probe_script = kProbe;
  CreateReady(std::move(options));
  cluster_->node(0).Pause();
  const uint64_t stopped = Call(0, kEcho);
  const uint64_t living = Call(11, kEcho);
  ASSERT_NE(client_->PrimaryOf(0), client_->PrimaryOf(11));
  EXPECT_TRUE(Finish(living).ok);
  EXPECT_EQ(FailureKind::kTimeout, Finish(stopped).failure.kind);
  EXPECT_EQ(FailureKind::kTimeout, FinishPing(Ping(client_->PrimaryOf(0))).failure.kind);
  EXPECT_GE(client_->Counters().timeouts, 2u);
  cluster_->node(0).Resume();
  ASSERT_TRUE(Turn([&] { return Finish(Call(0, kEcho)).ok; }));
}

TEST_P(ClusterClientTest, ARefreshComesFromAnotherNodeThanTheOneThatFailed) {
  StartCluster({"--cluster-require-full-coverage", "no"});
  // The only seed is the node that will stop.
  Create(Options({cluster_->node(0).address()}, Mode::kCluster));
  ASSERT_TRUE(BecomesReady());
  cluster_->node(0).Pause();
  const uint64_t refreshes = client_->Counters().refreshes;
  Finish(Call(0, kEcho));
  ASSERT_TRUE(Turn([&] { return client_->Counters().refreshes >= refreshes + 2; }));
}

TEST_P(ClusterClientTest, RefreshesAreRareHoweverOftenTheyAreAskedFor) {
  StartCluster();
  CreateReady(ClusterOptions());
  const uint64_t before = client_->Counters().refreshes;
  const int64_t start = SteadyNs();
  ASSERT_TRUE(Turn([&] {
    client_->RequestRefresh();
    return client_->Counters().refreshes >= before + 3;
  }));
  // Three refreshes have at least two gaps of a second between them: a lower bound, so that a
  // slow machine cannot break it.
  EXPECT_GE(SteadyNs() - start, 2'000'000'000);
}

TEST_P(ClusterClientTest, ANodeWithoutASlotOfItsOwnDoesNotHoldUpReadiness) {
  StartCluster();
  CreateReady(ClusterOptions());
  const uint32_t empty = static_cast<uint32_t>(RedisCluster::FirstOwner(SlotOf(0)));
  // All its slots go to another node: it leaves the map and keeps its index.
  const PrimaryIndex index = client_->PrimaryOf(0);
  const size_t heir = (empty + 1) % RedisCluster::kNodes;
  const uint32_t first = 16384 * empty / 3, end = 16384 * (empty + 1) / 3;
  std::vector<std::string> drop = {"CLUSTER", "DELSLOTSRANGE", std::to_string(first),
                                   std::to_string(end - 1)};
  std::vector<std::string> take = {"CLUSTER", "ADDSLOTSRANGE", std::to_string(first),
                                   std::to_string(end - 1)};
  for (size_t i = 0; i < RedisCluster::kNodes; ++i) cluster_->node(i).Command(drop);
  cluster_->node(heir).Command(take);
  ASSERT_TRUE(Turn([&] {
    client_->RequestRefresh();
    return !client_->Primary(index).in_map && client_->Ready();
  }));
  EXPECT_EQ(cluster_->node(heir).address(), AddressOfShard(0));
  EXPECT_EQ(3u, client_->primary_count());
}

TEST_P(ClusterClientTest, NoSeedReachableIsRaisedOnceAndClearedOnReturn) {
  const uint16_t port = test::FreePort();
  Create(Options({"127.0.0.1:" + std::to_string(port)}, Mode::kCluster));
  EXPECT_EQ(FailureKind::kUnavailable, Finish(Call(0, kEcho)).failure.kind);
  ASSERT_TRUE(Turn([&] { return recorder_.Raised(AlarmKind::kNoSeedReachable) == 1; }));
  EXPECT_FALSE(recorder_.Last(AlarmKind::kNoSeedReachable)->mend.empty());
  ASSERT_TRUE(Turn([&] { return client_->Counters().refresh_failures >= 2; }));
  EXPECT_EQ(1, recorder_.Raised(AlarmKind::kNoSeedReachable));
  test::RedisProcess late({true, {}, port});
  ASSERT_TRUE(late.running());
  late.Command({"CLUSTER", "ADDSLOTSRANGE", "0", "16383"});
  ASSERT_TRUE(BecomesReady());
  ASSERT_TRUE(Turn([&] { return recorder_.Cleared(AlarmKind::kNoSeedReachable) == 1; }));
}

TEST_P(ClusterClientTest, ASingleModeClientOnAClusterRaisesTheWrongModeAlarm) {
  StartCluster();
  Create(Options({cluster_->node(0).address()}, Mode::kSingle));
  ASSERT_TRUE(BecomesReady());
  const Recorder::Outcome& outcome = Finish(Call(11, kEcho));
  EXPECT_EQ(FailureKind::kDenied, outcome.failure.kind) << outcome.failure.message;
  ASSERT_TRUE(Turn([&] { return recorder_.Raised(AlarmKind::kWrongMode) == 1; }));
  EXPECT_NE(std::string::npos,
            recorder_.Last(AlarmKind::kWrongMode)->mend.find("redis.mode: cluster"));
}

INSTANTIATE_TEST_SUITE_P(BothBackEnds, ClusterClientTest,
                         testing::Values(ring::RingChoice::kUring, ring::RingChoice::kEpoll),
                         BackEndName);

}  // namespace
}  // namespace sluice::redis
