// The client and three real sentinels: the primary is found, and followed over failovers.

#include "daemon/redis/sentinel.h"
#include "acl_lines.h"
#include "tests/redis/client_fixture.h"
#include "tests/support/certificates.h"
#include "tests/support/sentinels.h"

namespace sluice::redis {
namespace {

using test::RedisProcess;
using test::Sentinels;

class SentinelTest : public ClientFixture {
 protected:
  void StartSentinels(Sentinels::Options options = {}) {
    sentinels_ = std::make_unique<Sentinels>(std::move(options));
    ASSERT_TRUE(sentinels_->healthy()) << sentinels_->logs();
  }
  ClientOptions SentinelOptionsFor(std::vector<std::string> seeds) {
    ClientOptions options = Options(std::move(seeds), Mode::kSentinel);
    options.sentinel.master = Sentinels::kMaster;
    return options;
  }
  ClientOptions AllSentinels() { return SentinelOptionsFor(sentinels_->addresses()); }

  std::string Owner() const {
    return client_->PrimaryOf(0) == kNoPrimary ? ""
                                               : client_->Primary(client_->PrimaryOf(0)).address;
  }
  // Whom the sentinels name; on a machine that stands still they may change their minds once more.
  std::string Named() {
    const redis::Reply reply = sentinels_->sentinel(0).Command(
        {"SENTINEL", "GET-MASTER-ADDR-BY-NAME", Sentinels::kMaster});
    if (reply.elements.size() != 2) return "nobody";
    return reply.elements[0].text + ":" + reply.elements[1].text;
  }
  bool Follows(const RedisProcess& server) {
    const std::string address = server.client_address();
    return Turn([&] { return Owner() == address && Finish(Call(0, kEcho)).ok; });
  }

  std::unique_ptr<Sentinels> sentinels_;
};

TEST_P(SentinelTest, ThePrimaryIsAskedForAndEveryShardLivesThere) {
  StartSentinels();
  Create(AllSentinels());
  for (uint32_t shard = 0; shard < 12; ++shard) {
    const Recorder::Outcome& outcome = Finish(Call(shard, kCount));
    EXPECT_EQ(1, outcome.reply.integer) << outcome.failure.message;
  }
  EXPECT_EQ(sentinels_->primary().address(), Owner());
  EXPECT_EQ(1u, client_->primary_count());
  EXPECT_TRUE(client_->Ready());
  EXPECT_TRUE(recorder_.alarms.empty());
}

TEST_P(SentinelTest, AKilledPrimaryIsFollowedToTheOneThatTakesItsPlace) {
  StartSentinels();
  Create(AllSentinels());
  EXPECT_EQ(1, Finish(Call(0, kCount)).reply.integer);
  // WAIT would tell of what its own connection has written.
  ASSERT_TRUE(Turn([&] { return sentinels_->replica().Command({"DBSIZE"}).integer == 1; }));
  sentinels_->primary().Kill();
  EXPECT_TRUE(Follows(sentinels_->replica()));
  EXPECT_TRUE(recorder_.alarms.empty()) << recorder_.alarms[0].text;
  EXPECT_EQ(2, Finish(Call(0, kCount)).reply.integer);
  // The former one returns, and is made a replica; nobody goes back to it.
  ASSERT_TRUE(sentinels_->primary().Restart());
  const uint64_t refreshes = client_->Counters().refreshes;
  ASSERT_TRUE(Turn([&] { return client_->Counters().refreshes >= refreshes + 2; }));
  EXPECT_TRUE(Turn([&] { return Owner() == Named(); })) << Owner() << " is not " << Named();
}

TEST_P(SentinelTest, APrimaryThatIsDemotedAliveIsLeftAtReadonly) {
  StartSentinels();
  Create(AllSentinels());
  ASSERT_TRUE(BecomesReady());
  ASSERT_EQ("OK",
            sentinels_->sentinel(0).Command({"SENTINEL", "FAILOVER", Sentinels::kMaster}).text);
  const std::string next = sentinels_->replica().address();
  ASSERT_TRUE(Turn([&] { return Owner() == next && Finish(Call(1, kCount)).ok; }));
  for (const auto& [token, outcome] : recorder_.calls) {
    if (outcome.ok) continue;
    EXPECT_NE(FailureKind::kDenied, outcome.failure.kind) << outcome.failure.message;
  }
  EXPECT_TRUE(recorder_.alarms.empty());
}

TEST_P(SentinelTest, OneSentinelLessIsNoMatter) {
  StartSentinels();
  sentinels_->sentinel(1).Kill();
  Create(AllSentinels());
  ASSERT_TRUE(BecomesReady());
  sentinels_->primary().Kill();
  EXPECT_TRUE(Follows(sentinels_->replica()));
  EXPECT_TRUE(recorder_.alarms.empty()) << recorder_.alarms[0].text;
}

TEST_P(SentinelTest, WithoutSentinelsThePrimaryGoesOnAndOneAlarmSaysSo) {
  StartSentinels();
  Create(AllSentinels());
  ASSERT_TRUE(BecomesReady());
  for (size_t i = 0; i < Sentinels::kCount; ++i) sentinels_->sentinel(i).Kill();
  ASSERT_TRUE(Turn([&] { return recorder_.Raised(AlarmKind::kNoSeedReachable) == 1; }));
  EXPECT_NE(std::string::npos,
            recorder_.Last(AlarmKind::kNoSeedReachable)->text.find("no sentinel answers"));
  EXPECT_TRUE(Finish(Call(0, kEcho)).ok);
  ASSERT_TRUE(sentinels_->sentinel(2).Restart());
  ASSERT_TRUE(Turn([&] { return recorder_.Cleared(AlarmKind::kNoSeedReachable) == 1; }));
  EXPECT_EQ(2u, recorder_.alarms.size());
}

TEST_P(SentinelTest, ANameThatNoSentinelKnowsIsOneAlarmUntilTheyDo) {
  StartSentinels();
  ClientOptions options = AllSentinels();
  options.sentinel.master = "nobody";
  Create(std::move(options));
  const Recorder::Outcome& outcome = Finish(Call(0, kEcho));
  EXPECT_EQ(FailureKind::kDenied, outcome.failure.kind) << outcome.failure.message;
  ASSERT_TRUE(Turn([&] { return recorder_.Raised(AlarmKind::kNoMaster) == 1; }));
  const Alarm& alarm = *recorder_.Last(AlarmKind::kNoMaster);
  EXPECT_NE(std::string::npos, alarm.text.find("\"nobody\"")) << alarm.text;
  EXPECT_NE(std::string::npos, alarm.mend.find("redis.sentinel.master")) << alarm.mend;
  const uint64_t failures = client_->Counters().refresh_failures;
  ASSERT_TRUE(Turn([&] { return client_->Counters().refresh_failures >= failures + 3; }));
  EXPECT_EQ(1u, recorder_.alarms.size());
  sentinels_->sentinel(0).Command({"SENTINEL", "MONITOR", "nobody", "127.0.0.1",
                                   std::to_string(sentinels_->primary().port()), "2"});
  ASSERT_TRUE(BecomesReady());
  ASSERT_TRUE(Turn([&] { return recorder_.Cleared(AlarmKind::kNoMaster) == 1; }));
}

TEST_P(SentinelTest, ASentinelThatKnowsOfNoFailoverIsNotBelieved) {
  StartSentinels();
  const uint16_t late_port = test::FreePort();
  std::vector<std::string> seeds = sentinels_->addresses();
  seeds.push_back("127.0.0.1:" + std::to_string(late_port));
  Create(SentinelOptionsFor(std::move(seeds)));
  ASSERT_TRUE(BecomesReady());
  const std::string former = std::to_string(sentinels_->primary().port());
  sentinels_->primary().Kill();
  ASSERT_TRUE(Follows(sentinels_->replica()));
  for (size_t i = 0; i < Sentinels::kCount; ++i) sentinels_->sentinel(i).Kill();
  // It names the former primary, and nobody is left to tell it better; the one that answers is
  // kept.
  const RedisProcess late(
      RedisProcess::Options{.port = late_port,
                            .sentinel = {std::string("sentinel monitor ") + Sentinels::kMaster +
                                         " 127.0.0.1 " + former + " 1"}});
  ASSERT_TRUE(late.running()) << late.log();
  const uint64_t failures = client_->Counters().refresh_failures;
  ASSERT_TRUE(Turn([&] { return client_->Counters().refresh_failures >= failures + 12; }));
  EXPECT_EQ(sentinels_->replica().address(), Owner());
  EXPECT_TRUE(Finish(Call(0, kEcho)).ok);
}

TEST_P(SentinelTest, SentinelsHaveAUserOfTheirOwnWithFewRights) {
  StartSentinels();
  for (size_t i = 0; i < Sentinels::kCount; ++i) {
    std::vector<std::string> command = test::AclWords(kSentinelAcl);
    command.insert(command.begin(), {"ACL", "SETUSER"});
    ASSERT_EQ("OK", sentinels_->sentinel(i).Command(command).text);
    sentinels_->sentinel(i).Command({"ACL", "SETUSER", "sluice", "resetpass", ">watch"});
  }
  ClientOptions options = AllSentinels();
  options.sentinel.user = "sluice";
  options.sentinel.password = "watch";
  Create(options);
  EXPECT_TRUE(Finish(Call(0, kCount)).ok);
  EXPECT_TRUE(recorder_.alarms.empty());
  client_.reset();
  options.sentinel.password = "wrong";
  Create(options);
  EXPECT_EQ(FailureKind::kDenied, Finish(Call(0, kCount)).failure.kind);
  ASSERT_TRUE(Turn([&] { return recorder_.Raised(AlarmKind::kWrongPassword) == 3; }));
  EXPECT_NE(std::string::npos,
            recorder_.Last(AlarmKind::kWrongPassword)->mend.find("redis.sentinel.username"));
  client_.reset();
  recorder_.alarms.clear();
  for (size_t i = 0; i < Sentinels::kCount; ++i) {
    sentinels_->sentinel(i).Command({"ACL", "SETUSER", "sluice", "-sentinel|master"});
  }
  options.sentinel.password = "watch";
  Create(options);
  ASSERT_TRUE(Turn([&] { return recorder_.Raised(AlarmKind::kMissingPermission) == 3; }));
  EXPECT_NE(std::string::npos,
            recorder_.Last(AlarmKind::kMissingPermission)->mend.find("+sentinel|master"));
}

TEST_P(SentinelTest, AServerThatIsNoSentinelRaisesTheWrongModeAlarm) {
  RedisProcess server(RedisProcess::Options{});
  ASSERT_TRUE(server.running());
  Create(SentinelOptionsFor({server.address()}));
  EXPECT_EQ(FailureKind::kDenied, Finish(Call(0, kEcho)).failure.kind);
  ASSERT_TRUE(Turn([&] { return recorder_.Raised(AlarmKind::kWrongMode) == 1; }));
  EXPECT_NE(std::string::npos, recorder_.Last(AlarmKind::kWrongMode)->mend.find("no sentinel"));
}

TEST_P(SentinelTest, SentinelsAndServersUnderTls) {
  test::Authority authority;
  const auto certificate = authority.Issue("all", {"IP:127.0.0.1"});
  const std::vector<std::string> arguments = {"--tls-cert-file",    certificate.certificate_file,
                                              "--tls-key-file",     certificate.key_file,
                                              "--tls-ca-cert-file", authority.ca_file(),
                                              "--tls-auth-clients", "no"};
  StartSentinels({.server = arguments, .sentinel = arguments, .tls = true});
  ClientOptions options = AllSentinels();
  options.tls = TlsOptions{.ca_file = authority.ca_file()};
  Create(std::move(options));
  ASSERT_TRUE(BecomesReady());
  EXPECT_EQ(sentinels_->primary().tls_address(), Owner());
  sentinels_->primary().Kill();
  EXPECT_TRUE(Follows(sentinels_->replica()));
  EXPECT_TRUE(recorder_.alarms.empty()) << recorder_.alarms[0].text;
}

INSTANTIATE_TEST_SUITE_P(BothBackEnds, SentinelTest,
                         testing::Values(ring::RingChoice::kUring, ring::RingChoice::kEpoll),
                         BackEndName);

Reply Text(const std::string& text) {
  Reply reply;
  reply.kind = Reply::Kind::kString;
  reply.text = text;
  return reply;
}

Reply Fields(const std::vector<std::string>& texts) {
  Reply reply;
  reply.kind = Reply::Kind::kArray;
  for (const std::string& text : texts) reply.elements.push_back(Text(text));
  return reply;
}

TEST(ParseSentinelMasterTest, ReadsNamesAndAddressesOfBothFamilies) {
  for (const std::string host : {"10.0.0.1", "::1", "redis-1.example"}) {
    const auto reply = ParseSentinelMaster(
        Fields({"name", "m", "ip", host, "port", "6379", "flags", "master", "config-epoch", "7"}));
    ASSERT_TRUE(reply.ok()) << reply.status();
    EXPECT_EQ((Endpoint{host, 6379}), reply->primary);
    EXPECT_EQ(7, reply->epoch);
  }
}

TEST(ParseSentinelMasterTest, RefusesWhatNoSentinelSays) {
  const std::vector<std::vector<std::string>> wrong = {
      {},
      {"ip"},
      {"ip", "", "port", "1", "config-epoch", "1"},
      {"ip", "a b", "port", "1", "config-epoch", "1"},
      {"ip", std::string(300, 'a'), "port", "1", "config-epoch", "1"},
      {"ip", "h", "port", "0", "config-epoch", "1"},
      {"ip", "h", "port", "65536", "config-epoch", "1"},
      {"ip", "h", "port", "-1", "config-epoch", "1"},
      {"ip", "h", "port", "1x", "config-epoch", "1"},
      {"ip", "h", "port", "1", "config-epoch", "-1"},
      {"ip", "h", "port", "1", "config-epoch", "99999999999999999999"},
      {"ip", "h", "port", "1"},
      {"port", "1", "config-epoch", "1"}};
  for (const std::vector<std::string>& fields : wrong) {
    EXPECT_FALSE(ParseSentinelMaster(Fields(fields)).ok());
  }
  EXPECT_FALSE(ParseSentinelMaster(Text("OK")).ok());
}

}  // namespace
}  // namespace sluice::redis
