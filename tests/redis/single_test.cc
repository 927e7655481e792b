// The client against one real server: calls, failures, alarms.

#include "tests/redis/client_fixture.h"

namespace sluice::redis {
namespace {

using test::RedisProcess;

class SingleNodeTest : public ClientFixture {
 protected:
  void StartServer(std::vector<std::string> arguments = {}) {
    server_ = std::make_unique<RedisProcess>(RedisProcess::Options{false, std::move(arguments), 0});
    ASSERT_TRUE(server_->running()) << server_->log();
  }
  ClientOptions ServerOptions() { return Options({server_->address()}, Mode::kSingle); }

  std::unique_ptr<RedisProcess> server_;
};

TEST_P(SingleNodeTest, ACallMadeBeforeTheConnectionStandsIsAnswered) {
  StartServer();
  Create(ServerOptions());
  EXPECT_FALSE(client_->Ready());
  const Recorder::Outcome& outcome = Finish(Call(3, kEcho, "hello"));
  EXPECT_TRUE(outcome.ok) << outcome.failure.message;
  EXPECT_EQ("hello", outcome.reply.text);
  EXPECT_EQ(0u, outcome.primary);
  EXPECT_EQ(server_->address(), client_->Primary(0).address);
  EXPECT_TRUE(client_->Ready());
}

TEST_P(SingleNodeTest, ManyPipelinedCallsAreEachAnsweredOnceWithTheirOwnReply) {
  StartServer();
  Create(ServerOptions());
  ASSERT_NO_FATAL_FAILURE(ExpectManyCallsEachAnsweredOnce());
  EXPECT_EQ(2000u, client_->Stats().at(0).latency.total);
  EXPECT_EQ(2000u, client_->Counters().replies);
}

TEST_P(SingleNodeTest, ALargeBatchGoesThroughWhole) {
  StartServer();
  Create(ServerOptions());
  const std::string big(900'000, 'b');
  EXPECT_TRUE(Finish(Call(0, kEcho, big)).reply.text == big);
}

TEST_P(SingleNodeTest, NoscriptIsAnsweredByTheWholeScriptOnce) {
  StartServer();
  Create(ServerOptions());
  EXPECT_EQ(1, Finish(Call(5, kCount)).reply.integer);
  server_->Command({"SCRIPT", "FLUSH"});
  EXPECT_EQ(2, Finish(Call(5, kCount)).reply.integer);
  EXPECT_EQ(1u, client_->Counters().noscript);
  EXPECT_EQ(3, Finish(Call(5, kCount)).reply.integer);
  EXPECT_EQ(1u, client_->Counters().noscript) << "EVAL has left the script on the server";
}

TEST_P(SingleNodeTest, AFailingScriptIsAScriptFailure) {
  StartServer();
  Create(ServerOptions());
  const Recorder::Outcome& outcome = Finish(Call(0, kBoom));
  EXPECT_FALSE(outcome.ok);
  EXPECT_EQ(FailureKind::kScript, outcome.failure.kind);
  EXPECT_NE(std::string::npos, outcome.failure.message.find("boom")) << outcome.failure.message;
  EXPECT_EQ(1u, client_->Counters().script_errors);
}

TEST_P(SingleNodeTest, AScriptIsToldWhichServerRunsIt) {
  StartServer();
  ClientOptions options = ServerOptions();
  options.identify = true;
  options.scripts.push_back({.name = "who",
                             .text = "return {KEYS[1], ARGV[1], ARGV[2], ARGV[3]}",
                             .family = "kin",
                             .run_id_before = 1});
  const auto who = static_cast<ScriptId>(options.scripts.size() - 1);
  Create(std::move(options));
  const auto told = [&] {
    std::string args;
    AppendBulk(&args, "first");
    AppendBulk(&args, "last");
    const uint64_t token = ++last_token_;
    client_->Call(3, who, args, 2, token);
    return Finish(token);
  };
  ASSERT_TRUE(Turn([&] { return !client_->RunId(0).empty(); }));
  const std::string first = client_->RunId(0);
  const Recorder::Outcome outcome = told();
  ASSERT_TRUE(outcome.ok) << outcome.failure.message;
  EXPECT_EQ(first.size(), 40u);
  EXPECT_EQ(outcome.reply.elements.at(1).text, "first");
  EXPECT_EQ(outcome.reply.elements.at(2).text, first);
  EXPECT_EQ(outcome.reply.elements.at(3).text, "last");
  const std::string key = outcome.reply.elements.at(0).text;
  EXPECT_EQ(key.find("rl:12:kin:{"), 0u) << key;
  EXPECT_EQ(KeySlot(key), KeySlot(client_->ShardKey(3)));
  server_->Kill();
  ASSERT_TRUE(server_->Restart());
  ASSERT_TRUE(Turn([&] { return !client_->RunId(0).empty() && client_->RunId(0) != first; }));
  EXPECT_EQ(told().reply.elements.at(2).text, client_->RunId(0));
}

TEST_P(SingleNodeTest, WithoutTheRightToAskAScriptThatNeedsTheServersNameWaits) {
  StartServer();
  ASSERT_EQ("OK", server_->Command({"ACL", "SETUSER", test::kUser, "-info"}).text);
  ClientOptions options = ServerOptions();
  options.identify = true;
  options.scripts.push_back({.name = "who", .text = "return 1", .run_id_before = 0});
  const auto who = static_cast<ScriptId>(options.scripts.size() - 1);
  Create(std::move(options));
  EXPECT_TRUE(Finish(Call(3, kEcho, "all else works")).ok);
  const Recorder::Outcome outcome = Finish(Call(3, who));
  EXPECT_FALSE(outcome.ok);
  EXPECT_EQ(FailureKind::kRetryLater, outcome.failure.kind);
  ASSERT_EQ("OK", server_->Command({"ACL", "SETUSER", test::kUser, "+info"}).text);
  EXPECT_TRUE(Turn([&] { return !client_->RunId(0).empty(); })) << "asked again";
}

TEST_P(SingleNodeTest, TheConnectionIsNamedForTheOperator) {
  StartServer();
  ClientOptions options = ServerOptions();
  options.client_name = "sluice-my host";
  Create(std::move(options));
  ASSERT_TRUE(BecomesReady());
  const std::string list = server_->Command({"CLIENT", "LIST"}).text;
  EXPECT_NE(std::string::npos, list.find("name=sluice-my-host ")) << list;
}

TEST_P(SingleNodeTest, AWrongPasswordIsDeniedWithOneAlarmAndClearedWhenMended) {
  StartServer({"--requirepass", "right"});
  ClientOptions options = ServerOptions();
  options.user = "";
  options.password = "wrong";
  Create(std::move(options));
  const Recorder::Outcome& outcome = Finish(Call(0, kEcho));
  EXPECT_EQ(FailureKind::kDenied, outcome.failure.kind);
  EXPECT_NE(std::string::npos, outcome.failure.mend.find("redis.password"));
  ASSERT_TRUE(Turn([&] { return recorder_.Raised(AlarmKind::kWrongPassword) == 1; }));
  EXPECT_FALSE(recorder_.Last(AlarmKind::kWrongPassword)->mend.empty());
  // Several attempts later it is still one alarm.
  ASSERT_TRUE(Turn([&] { return !FinishPing(Ping(0)).ok && last_token_ > 3; }));
  EXPECT_EQ(1, recorder_.Raised(AlarmKind::kWrongPassword));
  RedisProcess* server = server_.get();
  server->Kill();
  server_ = std::make_unique<RedisProcess>(
      RedisProcess::Options{false, {"--requirepass", "wrong"}, server->port()});
  ASSERT_TRUE(server_->running());
  ASSERT_TRUE(BecomesReady());
  ASSERT_TRUE(Turn([&] { return recorder_.Cleared(AlarmKind::kWrongPassword) == 1; }));
}

TEST_P(SingleNodeTest, AMissingPasswordSaysThatTheServerWantsOne) {
  StartServer({"--requirepass", "right"});
  ClientOptions options = ServerOptions();
  options.user = options.password = "";
  Create(std::move(options));
  EXPECT_EQ(FailureKind::kDenied, Finish(Call(0, kEcho)).failure.kind);
  ASSERT_TRUE(Turn([&] { return recorder_.Raised(AlarmKind::kWrongPassword) == 1; }));
  EXPECT_NE(std::string::npos,
            recorder_.Last(AlarmKind::kWrongPassword)->mend.find("wants a password"));
}

TEST_P(SingleNodeTest, AFullServerIsDeniedWithAnAlarm) {
  StartServer({"--maxmemory", "1", "--maxmemory-policy", "noeviction"});
  Create(ServerOptions());
  const Recorder::Outcome& outcome = Finish(Call(0, kCount));
  EXPECT_EQ(FailureKind::kDenied, outcome.failure.kind) << outcome.failure.message;
  ASSERT_TRUE(Turn([&] { return recorder_.Raised(AlarmKind::kRefusesWrites) == 1; }));
  server_->Command({"CONFIG", "SET", "maxmemory", "0"});
  EXPECT_TRUE(Finish(Call(0, kCount)).ok);
  ASSERT_TRUE(Turn([&] { return recorder_.Cleared(AlarmKind::kRefusesWrites) == 1; }));
}

TEST_P(SingleNodeTest, AskedForAClusterASingleServerRaisesTheWrongModeAlarm) {
  StartServer();
  Create(Options({server_->address()}, Mode::kCluster));
  const Recorder::Outcome& outcome = Finish(Call(0, kEcho));
  EXPECT_EQ(FailureKind::kDenied, outcome.failure.kind) << outcome.failure.message;
  ASSERT_TRUE(Turn([&] { return recorder_.Raised(AlarmKind::kWrongMode) == 1; }));
  EXPECT_NE(std::string::npos,
            recorder_.Last(AlarmKind::kWrongMode)->mend.find("redis.mode: single"));
  EXPECT_EQ(0, recorder_.Raised(AlarmKind::kNoSeedReachable));
  EXPECT_FALSE(client_->Ready());
}

TEST_P(SingleNodeTest, AStoppedServerTimesOutAndALateAnswerIsNotTakenForAnotherCalls) {
  StartServer();
  Create(ServerOptions());
  EXPECT_EQ(1, Finish(Call(0, kCount)).reply.integer);
  server_->Pause();
  const uint64_t late = Call(0, kCount);
  EXPECT_EQ(FailureKind::kTimeout, Finish(late).failure.kind);
  server_->Resume();
  // The client has not sent it again; whether the first one was applied is for the caller to know.
  const Recorder::Outcome& next = Finish(Call(0, kEcho, "after"));
  EXPECT_TRUE(!next.ok || next.reply.text == "after") << next.reply.text;
  EXPECT_EQ(1, recorder_.calls[late].times);
  ASSERT_TRUE(BecomesReady());
  EXPECT_EQ(3, Finish(Call(0, kCount)).reply.integer) << "applied once, not twice";
}

TEST_P(SingleNodeTest, AServerThatStaysStoppedLosesItsConnectionAndGetsANewOneLater) {
  StartServer();
  Create(ServerOptions());
  ASSERT_TRUE(BecomesReady());
  server_->Pause();
  Call(0, kEcho);
  ASSERT_TRUE(Turn([&] { return !client_->Primary(0).connected; }));
  EXPECT_EQ(1u, client_->Counters().disconnects);
  server_->Resume();
  ASSERT_TRUE(BecomesReady());
  EXPECT_TRUE(Finish(Call(0, kEcho)).ok);
}

TEST_P(SingleNodeTest, AKilledServerIsUnavailableWithOneAlarmUntilItReturns) {
  StartServer();
  Create(ServerOptions());
  ASSERT_TRUE(BecomesReady());
  server_->Kill();
  EXPECT_EQ(FailureKind::kUnavailable, Finish(Call(0, kEcho)).failure.kind);
  ASSERT_TRUE(Turn([&] { return recorder_.Raised(AlarmKind::kNoSeedReachable) == 1; }));
  EXPECT_EQ(FailureKind::kUnavailable, FinishPing(Ping(0)).failure.kind);
  EXPECT_EQ(FailureKind::kUnavailable, Finish(Call(0, kEcho)).failure.kind);
  ASSERT_TRUE(server_->Restart());
  ASSERT_TRUE(BecomesReady());
  EXPECT_TRUE(Finish(Call(0, kEcho)).ok) << "the scripts were loaded again";
  EXPECT_EQ(0u, client_->Counters().noscript);
  EXPECT_EQ(1, recorder_.Raised(AlarmKind::kNoSeedReachable));
  EXPECT_EQ(1, recorder_.Cleared(AlarmKind::kNoSeedReachable));
}

TEST_P(SingleNodeTest, AProbeInThePauseTriesAtOnce) {
  StartServer();
  Create(ServerOptions());
  ASSERT_TRUE(BecomesReady());
  server_->Kill();
  ASSERT_TRUE(Turn([&] { return !client_->Primary(0).connected; }));
  for (int i = 0; i < 6; ++i) FinishPing(Ping(0));  // the pause has grown
  ASSERT_TRUE(server_->Restart());
  EXPECT_TRUE(FinishPing(Ping(0)).ok);
  EXPECT_TRUE(client_->Ready());
}

TEST_P(SingleNodeTest, AReplicaAsksForThePrimary) {
  StartServer();
  server_->Command({"REPLICAOF", "127.0.0.1", std::to_string(test::FreePort())});
  Create(ServerOptions());
  const Recorder::Outcome& outcome = Finish(Call(0, kCount));
  EXPECT_EQ(FailureKind::kRetryLater, outcome.failure.kind) << outcome.failure.message;
}

TEST_P(SingleNodeTest, ANameIsResolvedApart) {
  StartServer();
  Create(Options({"localhost:" + std::to_string(server_->port())}, Mode::kSingle));
  ASSERT_TRUE(BecomesReady());  // whatever family the name gives first
  EXPECT_TRUE(Finish(Call(0, kEcho)).ok);
}

TEST_P(SingleNodeTest, AnUnknownNameRaisesTheWrongAddressAlarm) {
  Create(Options({"no-such-host.invalid:6379"}, Mode::kSingle));
  Finish(Call(0, kEcho));
  ASSERT_TRUE(Turn([&] { return recorder_.Raised(AlarmKind::kWrongAddress) == 1; }));
  EXPECT_NE(std::string::npos,
            recorder_.Last(AlarmKind::kWrongAddress)->text.find("no-such-host.invalid"));
}

TEST_P(SingleNodeTest, AListenerMayCallFromItsCallbacks) {
  StartServer();
  Create(ServerOptions());
  int calls = 0;
  recorder_.on_outcome = [&](uint64_t) {
    if (++calls < 200) Call(static_cast<uint32_t>(calls % 12), kEcho, std::string(1000, 'c'));
  };
  Call(0, kEcho);
  ASSERT_TRUE(Turn([&] { return calls == 200 && client_->outstanding() == 0; }));
  for (const auto& [token, outcome] : recorder_.calls) EXPECT_EQ(1, outcome.times);
}

TEST_P(SingleNodeTest, IsDestroyedSafelyWithCallsInFlight) {
  StartServer();
  Create(ServerOptions());
  ASSERT_TRUE(BecomesReady());
  for (int i = 0; i < 100; ++i) Call(0, kEcho, std::string(10'000, 'd'));
  const size_t told = recorder_.calls.size();
  client_.reset();
  ASSERT_TRUE(ring_->Wait(1'000'000).ok());
  EXPECT_EQ(told, recorder_.calls.size());
  EXPECT_EQ(0u, ring_->channel_count());
}

INSTANTIATE_TEST_SUITE_P(BothBackEnds, SingleNodeTest,
                         testing::Values(ring::RingChoice::kUring, ring::RingChoice::kEpoll),
                         BackEndName);

TEST(ClientOptionsTest, RefusesWhatCannotWorkAndNamesTheOption) {
  absl::StatusOr<ring::OpenedRing> opened = ring::OpenRing(ring::RingChoice::kEpoll);
  ASSERT_TRUE(opened.ok());
  Recorder recorder;
  const auto refused = [&](const std::string& option, auto change) {
    ClientOptions options;
    options.seeds = {"127.0.0.1:1"};
    options.scripts = TestScripts();
    change(options);
    ClusterClient::Environment environment{opened->ring.get(), &recorder, SteadyNs,
                                           [] { return uint64_t{4}; }};
    const absl::Status status =
        ClusterClient::Create(std::move(options), std::move(environment)).status();
    EXPECT_EQ(absl::StatusCode::kInvalidArgument, status.code());
    EXPECT_EQ(0u, std::string(status.message()).find(option)) << status;
  };
  refused("seeds", [](ClientOptions& o) { o.seeds.clear(); });
  refused("seeds", [](ClientOptions& o) { o.seeds = {"127.0.0.1"}; });
  refused("shards", [](ClientOptions& o) { o.shards = 0; });
  refused("shards", [](ClientOptions& o) { o.shards = 5000; });
  refused("prefix", [](ClientOptions& o) { o.prefix = "a{b}"; });
  refused("prefix", [](ClientOptions& o) { o.prefix = ""; });
  refused("user", [](ClientOptions& o) { o.user = "u"; });
  refused("probe_script", [](ClientOptions& o) { o.probe_script = 99; });
  refused("timeouts", [](ClientOptions& o) { o.request_timeout_max_ns = 1; });
}

}  // namespace
}  // namespace sluice::redis
