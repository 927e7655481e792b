// The rights that ship (daemon/redis/user.acl), on real servers: they suffice, also for the scripts
// that ship, and each one less is an alarm that prints them. All tests of the client run under
// them.

#include "acl_lines.h"
#include "lua_scripts.h"
#include "tests/redis/client_fixture.h"

namespace sluice::redis {
namespace {

using test::RedisCluster;
using test::RedisProcess;

constexpr ScriptId kFold = 0;
constexpr ScriptId kRealProbe = 1;

class AclTest : public ClientFixture {
 protected:
  void StartServer() {
    server_ = std::make_unique<RedisProcess>(RedisProcess::Options{});
    ASSERT_TRUE(server_->running()) << server_->log();
  }
  // With the scripts of the daemon.
  ClientOptions RealOptions(std::vector<std::string> seeds, Mode mode) {
    ClientOptions options = Options(std::move(seeds), mode);
    options.scripts = {{"fold", lua::kFold}, {"probe", lua::kProbe}};
    options.probe_script = kRealProbe;
    return options;
  }

  // A batch of one bucket, as the daemon sends it.
  uint64_t Fold(const std::string& bucket, int seq) {
    std::string args;
    const std::vector<std::string> values = {"0", "-1", "0123456789abcdef0123456789abcdef",
                                             std::to_string(seq), "0", "2000000", "1",
                                             // one limit: tau, the most debt, rate
                                             "1000000", "1000000", "100",
                                             // one bucket
                                             bucket, "1", "10000", "1", "0", "0", "0", "-1"};
    for (const std::string& value : values) AppendBulk(&args, value);
    const uint64_t token = ++last_token_;
    client_->Call(0, kFold, args, static_cast<uint32_t>(values.size()), token);
    return token;
  }

  // A batch with a bucket that is new.
  bool FoldNext() {
    ++seq_;
    return Finish(Fold("r:" + std::to_string(seq_), seq_)).ok;
  }

  // Makes the next calls ask for a right that they else ask for at times only.
  void Need(const std::string& right) {
    if (right == "script|load") server_->Command({"CLIENT", "KILL", "USER", test::kUser});
    if (right == "eval") server_->Command({"SCRIPT", "FLUSH"});
    if (right != "hdel") return;
    // Written by nobody we know: the sweep deletes such fields.
    for (int i = 0; i < 200; ++i) {
      server_->Command({"HSET", client_->ShardKey(0), "junk:" + std::to_string(i), "junk"});
    }
  }

  void ExpectAlarmWithTheLine(const std::string& right) {
    ASSERT_TRUE(Turn([&] { return recorder_.Raised(AlarmKind::kMissingPermission) >= 1; }))
        << right;
    EXPECT_NE(std::string::npos, recorder_.Last(AlarmKind::kMissingPermission)
                                     ->mend.find("ACL SETUSER " + std::string(kUserAcl)))
        << right;
  }

  std::unique_ptr<RedisProcess> server_;
  int seq_ = 0;
};

TEST_P(AclTest, TheRightsThatShipSufficeForTheScriptsThatShip) {
  StartServer();
  Create(RealOptions({server_->address()}, Mode::kSingle));
  ASSERT_TRUE(BecomesReady());
  // Fields enough that the sweep looks at some and deletes some.
  for (int i = 0; i < 40; ++i) {
    const Recorder::Outcome& outcome = Finish(Fold("r:" + std::to_string(i), i));
    ASSERT_TRUE(outcome.ok) << outcome.failure.message;
    EXPECT_EQ(1, outcome.reply.elements.at(0).integer);
  }
  server_->Command({"SCRIPT", "FLUSH"});
  EXPECT_TRUE(Finish(Fold("r:x", 100)).ok) << "EVAL, too";
  EXPECT_TRUE(FinishPing(Ping(0)).ok);
  EXPECT_TRUE(recorder_.alarms.empty()) << recorder_.alarms[0].text;
}

TEST_P(AclTest, TheyReachNoKeyBesideThePrefixAndNoCommandBesideTheirs) {
  StartServer();
  ClientOptions options = Options({server_->address()}, Mode::kSingle);
  options.prefix = "other";
  Create(std::move(options));
  EXPECT_EQ(FailureKind::kDenied, Finish(Call(0, kCount)).failure.kind);
  ExpectAlarmWithTheLine("another prefix");
  for (const std::string command : {"get", "del", "keys", "flushall", "shutdown"}) {
    const Reply reply = server_->Command({"ACL", "DRYRUN", test::kUser, command, "rl:x"});
    EXPECT_NE(std::string::npos, reply.text.find("permission")) << command << ": " << reply.text;
  }
}

TEST_P(AclTest, ARightLessIsAnAlarmThatPrintsThemAll) {
  StartServer();
  Create(RealOptions({server_->address()}, Mode::kSingle));
  ASSERT_TRUE(BecomesReady());
  for (const std::string right : {"evalsha", "hmget", "hset", "hrandfield", "pexpire", "time",
                                  "exists", "script|load", "eval", "hdel"}) {
    recorder_.alarms.clear();
    ASSERT_EQ("OK", server_->Command({"ACL", "SETUSER", test::kUser, "-" + right}).text);
    Need(right);
    ASSERT_TRUE(Turn([&] {
      const bool ok = right == "exists" ? FinishPing(Ping(0)).ok : FoldNext();
      return !ok && recorder_.Raised(AlarmKind::kMissingPermission) >= 1;
    })) << right;
    ExpectAlarmWithTheLine(right);
    ASSERT_EQ("OK", server_->Command({"ACL", "SETUSER", test::kUser, "+" + right}).text);
    ASSERT_TRUE(Turn([&] { return FoldNext() && FinishPing(Ping(0)).ok; })) << right;
    ASSERT_TRUE(Turn([&] { return recorder_.Cleared(AlarmKind::kMissingPermission) >= 1; }))
        << right;
  }
}

// Redis 7.0 lets every user greet and log in, and HELLO name the connection; a daemon probes by a
// script, not by PING. Other servers may be stricter, so these stand in the line all the same.
TEST_P(AclTest, WithoutTheRightsThatRedisDoesNotAskForAllGoesOn) {
  StartServer();
  Create(RealOptions({server_->address()}, Mode::kSingle));
  ASSERT_TRUE(BecomesReady());
  for (const std::string right : {"hello", "auth", "client|setname", "ping"}) {
    ASSERT_EQ("OK", server_->Command({"ACL", "SETUSER", test::kUser, "-" + right}).text);
    const uint64_t lost = client_->Counters().disconnects;
    server_->Command({"CLIENT", "KILL", "USER", test::kUser});
    ASSERT_TRUE(Turn([&] { return client_->Counters().disconnects > lost; })) << right;
    EXPECT_TRUE(Turn([&] { return FoldNext() && FinishPing(Ping(0)).ok; })) << right;
    EXPECT_EQ(0, recorder_.Raised(AlarmKind::kMissingPermission)) << right;
  }
}

TEST_P(AclTest, InAClusterTheMapAndMigrationsNeedTheirs) {
  RedisCluster cluster;
  ASSERT_TRUE(cluster.healthy()) << cluster.node(0).log();
  const auto everywhere = [&](const std::string& change) {
    for (size_t i = 0; i < RedisCluster::kNodes; ++i) {
      cluster.node(i).Command({"ACL", "SETUSER", test::kUser, change});
    }
  };
  everywhere("-cluster|slots");
  Create(RealOptions(cluster.addresses(), Mode::kCluster));
  EXPECT_EQ(FailureKind::kDenied, Finish(Fold("r:1", 1)).failure.kind);
  ExpectAlarmWithTheLine("cluster|slots");
  everywhere("+cluster|slots");
  ASSERT_TRUE(BecomesReady());
  EXPECT_TRUE(Finish(Fold("r:1", 1)).ok);
  // A slot on its way: its key is not there yet, so the other node is asked with ASKING.
  const uint32_t slot = KeySlot(client_->ShardKey(0));
  const size_t from = RedisCluster::FirstOwner(slot);
  cluster.node(from).Command({"DEL", client_->ShardKey(0)});
  cluster.BeginMigration(slot, from, (from + 1) % RedisCluster::kNodes);
  recorder_.alarms.clear();
  everywhere("-asking");
  EXPECT_FALSE(Finish(Fold("r:2", 2)).ok);
  everywhere("+asking");
  EXPECT_TRUE(Finish(Fold("r:2", 2)).ok);
}

INSTANTIATE_TEST_SUITE_P(BothBackEnds, AclTest,
                         testing::Values(ring::RingChoice::kUring, ring::RingChoice::kEpoll),
                         BackEndName);

}  // namespace
}  // namespace sluice::redis
