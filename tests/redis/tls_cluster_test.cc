// The client against a real cluster whose nodes talk TLS to each other and to clients.

#include "tests/redis/client_fixture.h"
#include "tests/support/certificates.h"

namespace sluice::redis {
namespace {

using test::Authority;
using test::RedisCluster;

class TlsClusterTest : public ClientFixture {
 protected:
  void StartCluster(const std::vector<std::string>& names,
                    const std::vector<std::string>& more = {}) {
    ASSERT_TRUE(authority_.ok()) << "the openssl tool is needed";
    certificate_ = authority_.Issue("node", names);
    std::vector<std::string> arguments = {"--tls-cert-file",    certificate_.certificate_file,
                                          "--tls-key-file",     certificate_.key_file,
                                          "--tls-ca-cert-file", authority_.ca_file()};
    arguments.insert(arguments.end(), more.begin(), more.end());
    cluster_ = std::make_unique<RedisCluster>(std::move(arguments), /*tls=*/true);
    ASSERT_TRUE(cluster_->healthy()) << cluster_->node(0).log();
  }

  // The nodes want to know who we are.
  ClientOptions ClusterOptions() {
    const Authority::Certificate ours = authority_.Issue("client", {"DNS:client"});
    ClientOptions options = Options(cluster_->addresses(), Mode::kCluster);
    options.tls = TlsOptions{authority_.ca_file(), ours.certificate_file, ours.key_file, ""};
    return options;
  }

  Authority authority_;
  Authority::Certificate certificate_;
  std::unique_ptr<RedisCluster> cluster_;
};

TEST_P(TlsClusterTest, EachShardGoesToTheNodeThatOwnsItsSlotUnderTls) {
  StartCluster({"IP:127.0.0.1"});
  Create(ClusterOptions());
  ASSERT_TRUE(BecomesReady());
  for (uint32_t shard = 0; shard < 12; ++shard) {
    const size_t node = RedisCluster::FirstOwner(KeySlot(client_->ShardKey(shard)));
    EXPECT_EQ(cluster_->node(node).tls_address(),
              client_->Primary(client_->PrimaryOf(shard)).address);
    EXPECT_EQ(1, Finish(Call(shard, kCount)).reply.integer);
  }
  EXPECT_TRUE(recorder_.alarms.empty());
}

TEST_P(TlsClusterTest, MovedIsFollowedToTheOthersTlsPort) {
  StartCluster({"IP:127.0.0.1"});
  Create(ClusterOptions());
  ASSERT_TRUE(BecomesReady());
  Finish(Call(0, kCount));
  const uint32_t slot = KeySlot(client_->ShardKey(0));
  const size_t from = RedisCluster::FirstOwner(slot);
  const size_t to = (from + 1) % RedisCluster::kNodes;
  cluster_->BeginMigration(slot, from, to);
  cluster_->FinishMigration(slot, from, to);
  const Recorder::Outcome& outcome = Finish(Call(0, kCount));
  EXPECT_EQ(2, outcome.reply.integer) << outcome.failure.message;
  EXPECT_EQ(cluster_->node(to).tls_address(), client_->Primary(outcome.primary).address);
  EXPECT_EQ(1u, client_->Counters().moved);
}

TEST_P(TlsClusterTest, TheAnnouncedHostnameIsWhatTheCertificateMustName) {
  // The certificate has no address, and the cluster's map has addresses and, beside them, names.
  StartCluster({"DNS:localhost"}, {"--cluster-announce-hostname", "localhost"});
  ClientOptions options = ClusterOptions();
  options.seeds = {"localhost:" + std::to_string(cluster_->node(0).tls_port())};
  Create(std::move(options));
  ASSERT_TRUE(BecomesReady());
  EXPECT_EQ(3u, client_->primary_count());
  for (uint32_t shard = 0; shard < 12; ++shard) EXPECT_TRUE(Finish(Call(shard, kEcho)).ok);
  EXPECT_TRUE(recorder_.alarms.empty());
}

TEST_P(TlsClusterTest, ANodeWhoseNameDoesNotMatchIsRefusedAndNamed) {
  StartCluster({"DNS:localhost"});
  ClientOptions options = ClusterOptions();
  options.seeds = {"localhost:" + std::to_string(cluster_->node(0).tls_port())};
  Create(std::move(options));
  const Recorder::Outcome& outcome = Finish(Call(0, kEcho));
  EXPECT_EQ(FailureKind::kDenied, outcome.failure.kind) << outcome.failure.message;
  ASSERT_TRUE(Turn([&] { return recorder_.Raised(AlarmKind::kTlsFailed) == 3; }));
  EXPECT_NE(std::string::npos,
            recorder_.Last(AlarmKind::kTlsFailed)->text.find("names localhost, not 127.0.0.1"));
}

TEST_P(TlsClusterTest, NoCallIsLostWhenTheCertificatesOfNodesAreRenewed) {
  StartCluster({"IP:127.0.0.1"});
  Create(ClusterOptions());
  ASSERT_TRUE(BecomesReady());
  authority_.Issue("node", {"IP:127.0.0.1"});
  for (size_t i = 0; i < RedisCluster::kNodes; ++i) {
    ASSERT_EQ("OK", cluster_->node(i)
                        .Command({"CONFIG", "SET", "tls-cert-file", certificate_.certificate_file,
                                  "tls-key-file", certificate_.key_file})
                        .text);
    for (uint32_t shard = 0; shard < 12; ++shard) {
      const Recorder::Outcome& outcome = Finish(Call(shard, kCount));
      EXPECT_TRUE(outcome.ok) << outcome.failure.message;
    }
  }
  EXPECT_EQ(0u, client_->Counters().disconnects);
  cluster_->node(1).Command({"CLIENT", "KILL", "TYPE", "normal"});
  ASSERT_TRUE(Turn([&] { return client_->Counters().disconnects > 0; }));
  ASSERT_TRUE(BecomesReady());
  EXPECT_TRUE(recorder_.alarms.empty());
}

INSTANTIATE_TEST_SUITE_P(BothBackEnds, TlsClusterTest,
                         testing::Values(ring::RingChoice::kUring, ring::RingChoice::kEpoll),
                         BackEndName);

}  // namespace
}  // namespace sluice::redis
