// The same over IPv6: addresses in brackets, as people write them, and without, as clusters do.

#include "tests/redis/client_fixture.h"
#include "tests/support/certificates.h"
#include "tests/support/sentinels.h"

namespace sluice::redis {
namespace {

using test::RedisCluster;
using test::RedisProcess;
using test::Sentinels;

class Ipv6Test : public ClientFixture {
 protected:
  void SetUp() override {
    if (!test::HasIpv6Loopback()) GTEST_SKIP() << "this machine has no IPv6 loopback (::1)";
    ClientFixture::SetUp();
  }

  // Arguments of servers that show a certificate for ::1.
  std::vector<std::string> UnderTls() {
    const auto certificate = authority_.Issue("node", {"IP:::1"});
    return {"--tls-cert-file",    certificate.certificate_file,
            "--tls-key-file",     certificate.key_file,
            "--tls-ca-cert-file", authority_.ca_file(),
            "--tls-auth-clients", "no"};
  }
  ClientOptions WithTls(ClientOptions options) {
    options.tls = TlsOptions{.ca_file = authority_.ca_file()};
    return options;
  }
  void ExpectEveryShardOn(const std::string& head) {
    for (uint32_t shard = 0; shard < 12; ++shard) {
      const Recorder::Outcome& outcome = Finish(Call(shard, kCount));
      EXPECT_EQ(1, outcome.reply.integer) << outcome.failure.message;
      EXPECT_EQ(0u, client_->Primary(outcome.primary).address.find(head));
    }
    EXPECT_TRUE(recorder_.alarms.empty()) << recorder_.alarms[0].text;
  }

  test::Authority authority_;
};

TEST_P(Ipv6Test, OneServer) {
  const RedisProcess server(RedisProcess::Options{.ipv6 = true});
  ASSERT_TRUE(server.running()) << server.log();
  Create(Options({"[::1]:" + std::to_string(server.port())}, Mode::kSingle));
  ExpectEveryShardOn("[::1]:");
}

TEST_P(Ipv6Test, OneServerUnderTlsIsCheckedForItsAddress) {
  RedisProcess server(RedisProcess::Options{.arguments = UnderTls(), .tls = true, .ipv6 = true});
  ASSERT_TRUE(server.running()) << server.log();
  Create(WithTls(Options({server.tls_address()}, Mode::kSingle)));
  ExpectEveryShardOn("[::1]:");
  client_.reset();
  const std::string v4 = "127.0.0.1:" + std::to_string(server.tls_port());
  Create(WithTls(Options({v4}, Mode::kSingle)));
  EXPECT_EQ(FailureKind::kDenied, Finish(Call(0, kEcho)).failure.kind);
  ASSERT_TRUE(Turn([&] { return recorder_.Raised(AlarmKind::kTlsFailed) == 1; }));
  EXPECT_NE(std::string::npos,
            recorder_.Last(AlarmKind::kTlsFailed)->text.find("names ::1, not 127.0.0.1"));
}

TEST_P(Ipv6Test, AClusterAndItsRedirects) {
  for (const bool tls : {false, true}) {
    RedisCluster cluster(tls ? UnderTls() : std::vector<std::string>{}, tls, /*ipv6=*/true);
    ASSERT_TRUE(cluster.healthy()) << cluster.node(0).log();
    ClientOptions options = Options({cluster.addresses()[0]}, Mode::kCluster);
    Create(tls ? WithTls(std::move(options)) : std::move(options));
    ASSERT_TRUE(BecomesReady());
    EXPECT_EQ(3u, client_->primary_count());
    ExpectEveryShardOn("[::1]:");
    const uint32_t slot = KeySlot(client_->ShardKey(0));
    const size_t from = RedisCluster::FirstOwner(slot);
    const size_t to = (from + 1) % RedisCluster::kNodes;
    cluster.BeginMigration(slot, from, to);
    EXPECT_EQ(2, Finish(Call(0, kCount)).reply.integer);
    cluster.FinishMigration(slot, from, to);
    const Recorder::Outcome& outcome = Finish(Call(0, kCount));
    EXPECT_EQ(3, outcome.reply.integer) << outcome.failure.message;
    EXPECT_EQ(cluster.node(to).client_address(), client_->Primary(outcome.primary).address);
    EXPECT_EQ(1u, client_->Counters().moved);
    client_.reset();
  }
}

TEST_P(Ipv6Test, SentinelsAndWhomTheyName) {
  Sentinels sentinels(Sentinels::Options{.ipv6 = true});
  ASSERT_TRUE(sentinels.healthy()) << sentinels.logs();
  ClientOptions options = Options(sentinels.addresses(), Mode::kSentinel);
  options.sentinel.master = Sentinels::kMaster;
  Create(std::move(options));
  ExpectEveryShardOn(sentinels.primary().address());
  sentinels.primary().Kill();
  ASSERT_TRUE(Turn([&] {
    const Recorder::Outcome& outcome = Finish(Call(0, kCount));
    return outcome.ok && client_->Primary(outcome.primary).address == sentinels.replica().address();
  }));
}

INSTANTIATE_TEST_SUITE_P(BothBackEnds, Ipv6Test,
                         testing::Values(ring::RingChoice::kUring, ring::RingChoice::kEpoll),
                         BackEndName);

}  // namespace
}  // namespace sluice::redis
