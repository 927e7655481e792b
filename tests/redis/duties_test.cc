// What a node may answer instead of a result, each from a real server that means it. The list of
// all such answers and of the tests that show them is in docs/redis.md.

#include <thread>

#include "tests/redis/client_fixture.h"

namespace sluice::redis {
namespace {

using test::RedisCluster;
using test::RedisProcess;

class DutiesTest : public ClientFixture {
 protected:
  void StartServer(std::vector<std::string> arguments = {}) {
    server_ =
        std::make_unique<RedisProcess>(RedisProcess::Options{.arguments = std::move(arguments)});
    ASSERT_TRUE(server_->running()) << server_->log();
  }
  void CreateSingle() { Create(Options({server_->address()}, Mode::kSingle)); }

  // Calls until one fails by `code`, which must ask for patience and be no alarm.
  void ExpectPatience(const std::string& code) {
    const Recorder::Outcome* outcome = nullptr;
    ASSERT_TRUE(Turn([&] {
      outcome = &Finish(Call(0, kCount));
      return outcome->failure.message.find(code) != std::string::npos;
    })) << code;
    EXPECT_EQ(FailureKind::kRetryLater, outcome->failure.kind) << outcome->failure.message;
    for (const Alarm& alarm : recorder_.alarms) {
      EXPECT_EQ(AlarmKind::kNoSeedReachable, alarm.kind) << alarm.text;
    }
  }
  void ExpectRecovery() {
    EXPECT_TRUE(Turn([&] { return Finish(Call(0, kCount)).ok; }));
  }

  std::unique_ptr<RedisProcess> server_;
};

TEST_P(DutiesTest, MovedToADeadNodeBacksOffAndNeverLoops) {
  RedisCluster cluster({"--cluster-require-full-coverage", "no"});
  ASSERT_TRUE(cluster.healthy());
  Create(Options(cluster.addresses(), Mode::kCluster));
  ASSERT_TRUE(BecomesReady());
  const uint32_t slot = KeySlot(client_->ShardKey(0));
  const size_t from = RedisCluster::FirstOwner(slot);
  const size_t to = (from + 1) % RedisCluster::kNodes;
  cluster.BeginMigration(slot, from, to);
  cluster.FinishMigration(slot, from, to);
  cluster.node(to).Kill();
  constexpr uint64_t kCalls = 300;
  for (uint64_t i = 0; i < kCalls; ++i) {
    const Recorder::Outcome& outcome = Finish(Call(0, kCount));
    ASSERT_FALSE(outcome.ok);
    ASSERT_EQ(FailureKind::kUnavailable, outcome.failure.kind) << outcome.failure.message;
  }
  EXPECT_GE(client_->Counters().moved, 1u);
  EXPECT_LE(client_->Counters().moved, kCalls) << "one redirect a call, and no second to the dead";
  ASSERT_TRUE(cluster.node(to).Restart());
  ExpectRecovery();
}

TEST_P(DutiesTest, LoadingAsksForPatience) {
  StartServer({"--enable-debug-command", "local", "--key-load-delay", "500",
               "--loading-process-events-interval-bytes", "1024"});
  ASSERT_EQ("OK", server_->Command({"DEBUG", "POPULATE", "5000"}).text);
  ASSERT_EQ("OK", server_->Command({"SAVE"}).text) << server_->log();
  CreateSingle();
  ASSERT_TRUE(BecomesReady());
  ASSERT_TRUE(server_->Restart());
  ExpectPatience("LOADING");
  ExpectRecovery();
}

TEST_P(DutiesTest, BusyAsksForPatienceUntilTheScriptIsKilled) {
  StartServer({"--busy-reply-threshold", "20"});
  CreateSingle();
  ASSERT_TRUE(BecomesReady());
  std::thread endless([&] { server_->Command({"EVAL", "while true do end", "0"}); });
  ExpectPatience("BUSY");
  EXPECT_EQ("OK", server_->Command({"SCRIPT", "KILL"}).text);
  endless.join();
  ExpectRecovery();
}

TEST_P(DutiesTest, ClusterdownAsksForPatience) {
  RedisCluster cluster;
  ASSERT_TRUE(cluster.healthy());
  Create(Options(cluster.addresses(), Mode::kCluster));
  ASSERT_TRUE(BecomesReady());
  const size_t owner = RedisCluster::FirstOwner(KeySlot(client_->ShardKey(0)));
  const size_t other = (owner + 1) % RedisCluster::kNodes;
  cluster.node(other).Kill();  // a third of the slots is served by nobody now
  ExpectPatience("CLUSTERDOWN");
  ASSERT_TRUE(cluster.node(other).Restart());
  ExpectRecovery();
}

TEST_P(DutiesTest, MasterdownAndReadonlyAskForPatience) {
  StartServer();
  CreateSingle();
  ASSERT_TRUE(BecomesReady());
  server_->Command({"REPLICAOF", "127.0.0.1", std::to_string(test::FreePort())});
  ExpectPatience("READONLY");
  server_->Command({"CONFIG", "SET", "replica-serve-stale-data", "no"});
  ExpectPatience("MASTERDOWN");
  server_->Command({"REPLICAOF", "NO", "ONE"});
  ExpectRecovery();
}

TEST_P(DutiesTest, NoreplicasAsksForPatience) {
  StartServer({"--min-replicas-to-write", "1"});
  CreateSingle();
  ASSERT_TRUE(BecomesReady());
  ExpectPatience("NOREPLICAS");
  server_->Command({"CONFIG", "SET", "min-replicas-to-write", "0"});
  ExpectRecovery();
}

TEST_P(DutiesTest, MisconfIsAnAlarmUntilTheServerCanSave) {
  StartServer({"--enable-protected-configs", "yes"});
  const std::string good = server_->Command({"CONFIG", "GET", "dir"}).elements.at(1).text;
  {
    const test::TempDir gone;
    ASSERT_EQ("OK", server_->Command({"CONFIG", "SET", "save", "3600 1", "dir", gone.path()}).text);
  }
  CreateSingle();
  ASSERT_TRUE(BecomesReady());
  const Recorder::Outcome* outcome = nullptr;
  ASSERT_TRUE(Turn([&] {
    server_->Command({"BGSAVE"});
    outcome = &Finish(Call(0, kCount));
    return !outcome->ok;
  }));
  EXPECT_EQ(FailureKind::kDenied, outcome->failure.kind) << outcome->failure.message;
  EXPECT_EQ(0u, outcome->failure.message.find(server_->address() + ": MISCONF"));
  ASSERT_TRUE(Turn([&] { return recorder_.Raised(AlarmKind::kRefusesWrites) == 1; }));
  EXPECT_NE(std::string::npos, recorder_.Last(AlarmKind::kRefusesWrites)->mend.find("disk"));
  ASSERT_EQ("OK", server_->Command({"CONFIG", "SET", "dir", good}).text);
  ASSERT_TRUE(Turn([&] {
    server_->Command({"BGSAVE"});
    return Finish(Call(0, kCount)).ok;
  }));
  ASSERT_TRUE(Turn([&] { return recorder_.Cleared(AlarmKind::kRefusesWrites) == 1; }));
}

INSTANTIATE_TEST_SUITE_P(BothBackEnds, DutiesTest,
                         testing::Values(ring::RingChoice::kUring, ring::RingChoice::kEpoll),
                         BackEndName);

}  // namespace
}  // namespace sluice::redis
