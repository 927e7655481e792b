// The client under TLS against one real server: certificates good and bad, renewals, cuts.

#include <fstream>

#include "tests/redis/client_fixture.h"
#include "tests/redis/cutting_proxy.h"
#include "tests/support/certificates.h"

namespace sluice::redis {
namespace {

using test::Authority;
using test::RedisProcess;

const std::vector<std::string> kOurNames = {"DNS:localhost", "IP:127.0.0.1"};

class TlsTest : public ClientFixture {
 protected:
  void SetUp() override {
    ClientFixture::SetUp();
    ASSERT_TRUE(authority_.ok()) << "the openssl tool is needed";
  }

  // A server with a certificate; clients need none unless `more` says so.
  void StartServer(const Authority::Certificate& certificate,
                   const std::vector<std::string>& more = {"--tls-auth-clients", "no"}) {
    std::vector<std::string> arguments = {"--tls-cert-file",    certificate.certificate_file,
                                          "--tls-key-file",     certificate.key_file,
                                          "--tls-ca-cert-file", authority_.ca_file()};
    arguments.insert(arguments.end(), more.begin(), more.end());
    server_ = std::make_unique<RedisProcess>(RedisProcess::Options{false, arguments, 0, true});
    ASSERT_TRUE(server_->running()) << server_->log();
  }
  void StartServer() { StartServer(authority_.Issue("server", kOurNames)); }

  ClientOptions TlsOptionsFor(const std::string& address) {
    ClientOptions options = Options({address}, Mode::kSingle);
    options.tls = TlsOptions{.ca_file = authority_.ca_file()};
    return options;
  }
  ClientOptions ServerOptions() { return TlsOptionsFor(server_->tls_address()); }

  // The first call fails for good, with one alarm that says `what` and mends it by `mend`.
  void ExpectAlarm(AlarmKind kind, const std::string& what, const std::string& mend) {
    const Recorder::Outcome& outcome = Finish(Call(0, kEcho));
    EXPECT_EQ(FailureKind::kDenied, outcome.failure.kind) << outcome.failure.message;
    ASSERT_TRUE(Turn([&] { return recorder_.Raised(kind) == 1; })) << outcome.failure.message;
    const Alarm& alarm = *recorder_.Last(kind);
    EXPECT_NE(std::string::npos, alarm.text.find(what)) << alarm.text;
    EXPECT_NE(std::string::npos, alarm.mend.find(mend)) << alarm.mend;
    FinishPing(Ping(0));  // another attempt, not another alarm
    EXPECT_EQ(1, recorder_.Raised(kind));
    EXPECT_EQ(1u, recorder_.alarms.size());
  }
  // It has come well, and the alarm is over.
  void ExpectMended(AlarmKind kind) {
    ASSERT_TRUE(BecomesReady());
    EXPECT_TRUE(Finish(Call(0, kEcho)).ok);
    ASSERT_TRUE(Turn([&] { return recorder_.Cleared(kind) == 1; }));
  }

  Authority authority_;
  std::unique_ptr<RedisProcess> server_;
};

TEST_P(TlsTest, CallsGoThroughAndTheServerSeesThemUnderTls) {
  StartServer();
  Create(ServerOptions());
  const Recorder::Outcome& outcome = Finish(Call(3, kEcho, "hello"));
  EXPECT_EQ("hello", outcome.reply.text) << outcome.failure.message;
  const std::string list = server_->Command({"CLIENT", "LIST"}).text;
  const size_t us = list.find("name=sluice ");
  ASSERT_NE(std::string::npos, us) << list;
  const std::string local = "laddr=" + server_->tls_address();
  EXPECT_NE(std::string::npos, list.substr(list.rfind("id=", us)).find(local)) << list;
  EXPECT_TRUE(recorder_.alarms.empty());
}

TEST_P(TlsTest, ALargeBatchAndManySmallCallsGoThroughWhole) {
  StartServer();
  Create(ServerOptions());
  const std::string big(900'000, 'b');
  EXPECT_TRUE(Finish(Call(0, kEcho, big)).reply.text == big);
  ASSERT_NO_FATAL_FAILURE(ExpectManyCallsEachAnsweredOnce());
}

TEST_P(TlsTest, AServerThatStopsReadingHoldsUpWhatIsUnsentAndNoMore) {
  StartServer();
  Create(ServerOptions());
  ASSERT_TRUE(BecomesReady());
  server_->Pause();
  // Far more than the kernel's buffers take; beyond kMaxUnsentBytes calls are refused at once.
  const std::string big(3'000'000, 'b');
  std::vector<uint64_t> tokens;
  for (int i = 0; i < 24; ++i) tokens.push_back(Call(0, kEcho, big));
  ASSERT_TRUE(Turn([&] { return client_->outstanding() == 0; }));
  int refused = 0;
  for (uint64_t token : tokens) {
    EXPECT_EQ(1, recorder_.calls[token].times);
    EXPECT_FALSE(recorder_.calls[token].ok);
    refused += recorder_.calls[token].failure.kind == FailureKind::kRetryLater;
  }
  EXPECT_GE(refused, 10) << "24 x 3 MB against a bound of 32 MiB";
  server_->Resume();
  EXPECT_TRUE(Turn([&] { return Finish(Call(0, kEcho)).ok; })) << "the backlog is worked off";
}

TEST_P(TlsTest, ANameIsCheckedAsANameAndAnAddressAsAnAddress) {
  StartServer(authority_.Issue("server", {"DNS:localhost"}));
  Create(TlsOptionsFor("localhost:" + std::to_string(server_->tls_port())));
  ASSERT_TRUE(BecomesReady());
  client_.reset();
  recorder_.alarms.clear();
  Create(ServerOptions());
  ExpectAlarm(AlarmKind::kTlsFailed, "names localhost, not 127.0.0.1", "redis.tls.server_name");
}

TEST_P(TlsTest, AWrongNameIsRefusedAndTheServerNameOverridesIt) {
  StartServer(authority_.Issue("server", {"DNS:other.example", "DNS:*.example"}));
  Create(ServerOptions());
  ExpectAlarm(AlarmKind::kTlsFailed, "names other.example, *.example, not 127.0.0.1",
              "subjectAltName");
  client_.reset();
  recorder_.alarms.clear();
  ClientOptions options = ServerOptions();
  options.tls->server_name = "other.example";
  Create(std::move(options));
  ASSERT_TRUE(BecomesReady());
  EXPECT_TRUE(recorder_.alarms.empty());
}

TEST_P(TlsTest, AnAuthorityThatWeDoNotKnowIsRefused) {
  Authority stranger("a stranger");
  StartServer(stranger.Issue("server", kOurNames));
  Create(ServerOptions());
  ExpectAlarm(AlarmKind::kTlsFailed, "signed by CN = a stranger", "redis.tls.ca_file");
}

TEST_P(TlsTest, AnExpiredCertificateIsRefusedUntilItIsRenewed) {
  const Authority::Certificate certificate = authority_.Issue("server", kOurNames, -1);
  StartServer(certificate);
  Create(ServerOptions());
  ExpectAlarm(AlarmKind::kTlsFailed, "certificate has expired on 2", "renew it");
  authority_.Issue("server", kOurNames);
  ASSERT_EQ("OK", server_
                      ->Command({"CONFIG", "SET", "tls-cert-file", certificate.certificate_file,
                                 "tls-key-file", certificate.key_file})
                      .text);
  ExpectMended(AlarmKind::kTlsFailed);
}

TEST_P(TlsTest, AServerThatWantsACertificateGetsOurs) {
  StartServer(authority_.Issue("server", kOurNames), {});
  Create(ServerOptions());
  ExpectAlarm(AlarmKind::kTlsFailed, "refuses to talk without a certificate",
              "redis.tls.certificate_file");
  client_.reset();
  recorder_.alarms.clear();
  const Authority::Certificate ours = authority_.Issue("client", {"DNS:client"});
  ClientOptions options = ServerOptions();
  options.tls->certificate_file = ours.certificate_file;
  options.tls->key_file = ours.key_file;
  Create(std::move(options));
  ASSERT_TRUE(BecomesReady());
  EXPECT_TRUE(recorder_.alarms.empty());
}

TEST_P(TlsTest, OurOwnRenewedCertificateIsTakenAtTheNextConnect) {
  StartServer(authority_.Issue("server", kOurNames), {});
  const Authority::Certificate ours = authority_.Issue("client", {"DNS:client"}, -1);
  ClientOptions options = ServerOptions();
  options.tls->certificate_file = ours.certificate_file;
  options.tls->key_file = ours.key_file;
  Create(std::move(options));
  ExpectAlarm(AlarmKind::kTlsFailed, "refuses our certificate", "renew");
  authority_.Issue("client", {"DNS:client"});
  ExpectMended(AlarmKind::kTlsFailed);
}

TEST_P(TlsTest, AHalfWrittenRenewalLeavesTheFormerInForceWithOneAlarm) {
  StartServer(authority_.Issue("server", kOurNames), {});
  const Authority::Certificate ours = authority_.Issue("client", {"DNS:client"});
  ClientOptions options = ServerOptions();
  options.tls->certificate_file = ours.certificate_file;
  options.tls->key_file = ours.key_file;
  Create(std::move(options));
  ASSERT_TRUE(BecomesReady());
  // The new certificate is there, its key is not yet.
  const Authority::Certificate other = authority_.Issue("other", {"DNS:client"});
  ASSERT_EQ(0, rename(other.certificate_file.c_str(), ours.certificate_file.c_str()));
  server_->Command({"CLIENT", "KILL", "TYPE", "normal"});
  ASSERT_TRUE(Turn([&] { return client_->Counters().disconnects == 1; }));
  ASSERT_TRUE(BecomesReady());
  ASSERT_TRUE(Turn([&] { return recorder_.Raised(AlarmKind::kTlsFiles) == 1; }));
  const Alarm& alarm = *recorder_.Last(AlarmKind::kTlsFiles);
  EXPECT_NE(std::string::npos, alarm.text.find("redis.tls.key_file " + ours.key_file))
      << alarm.text;
  EXPECT_NE(std::string::npos, alarm.text.find("does not belong to the certificate"));
  EXPECT_FALSE(alarm.mend.empty());
  ASSERT_EQ(0, rename(other.key_file.c_str(), ours.key_file.c_str()));
  client_->ReadFilesAnew();  // as a reload of the configuration does
  ASSERT_TRUE(Turn([&] { return recorder_.Cleared(AlarmKind::kTlsFiles) == 1; }));
  ASSERT_TRUE(BecomesReady());
  EXPECT_EQ(0, recorder_.Raised(AlarmKind::kTlsFailed));
}

TEST_P(TlsTest, FilesThatCannotBeUsedAreNamedAndTakenWhenTheyCome) {
  StartServer();
  const std::string file = authority_.path("late-ca.pem");
  ClientOptions options = ServerOptions();
  options.tls->ca_file = file;
  Create(std::move(options));
  ExpectAlarm(AlarmKind::kTlsFiles, "redis.tls.ca_file " + file + " cannot be opened: No such file",
              "name a file");
  std::ofstream(file) << "nothing of use\n";
  FinishPing(Ping(0));
  const Recorder::Outcome& outcome = FinishPing(Ping(0));
  EXPECT_FALSE(outcome.ok);
  std::ofstream(file) << std::ifstream(authority_.ca_file()).rdbuf();
  ExpectMended(AlarmKind::kTlsFiles);
}

TEST_P(TlsTest, APlainServerUnderATlsConfigurationIsToldFromADeadOne) {
  StartServer();
  ClientOptions options = TlsOptionsFor(server_->address());
  options.connect_timeout_ns = 200'000'000;
  Create(std::move(options));
  EXPECT_FALSE(Finish(Call(0, kEcho)).ok);
  ASSERT_TRUE(Turn([&] { return recorder_.Raised(AlarmKind::kTlsFailed) == 1; }));
  EXPECT_NE(std::string::npos, recorder_.Last(AlarmKind::kTlsFailed)->mend.find("tls-port"));
}

TEST_P(TlsTest, ATlsServerUnderAPlainConfigurationIsToldFromADeadOne) {
  StartServer();
  for (Mode mode : {Mode::kSingle, Mode::kCluster}) {
    recorder_.alarms.clear();
    Create(Options({server_->tls_address()}, mode));
    EXPECT_FALSE(Finish(Call(0, kEcho)).ok);
    ASSERT_TRUE(Turn([&] { return !recorder_.alarms.empty(); }));
    EXPECT_NE(std::string::npos, recorder_.alarms.front().mend.find("redis.tls"))
        << recorder_.alarms.front().text << "; " << recorder_.alarms.front().mend;
    client_.reset();
  }
}

TEST_P(TlsTest, AHandshakeCutAtAnyByteIsALostConnectionAndNothingWorse) {
  StartServer();
  size_t whole = 0;
  {
    CuttingProxy proxy(server_->tls_port(), 1u << 20, CuttingProxy::Then::kCut);
    Create(TlsOptionsFor(proxy.address()));
    ASSERT_TRUE(BecomesReady());
    client_.reset();
    ASSERT_TRUE(ring_->Wait(0).ok());
    for (int i = 0; i < 1000 && proxy.seen() == 0; ++i) usleep(1000);
    whole = proxy.seen();
  }
  ASSERT_GT(whole, 500u);
  CuttingProxy proxy(server_->tls_port(), 0, CuttingProxy::Then::kCut);
  for (size_t bytes = 0; bytes < whole; ++bytes) {
    proxy.LetThrough(bytes);
    recorder_.alarms.clear();
    Create(TlsOptionsFor(proxy.address()));
    const Recorder::Outcome& outcome = Finish(Call(0, kEcho));
    // The last bytes are Redis' own greeting, whose cut is no matter of TLS.
    if (outcome.ok) break;
    ASSERT_EQ(FailureKind::kUnavailable, outcome.failure.kind)
        << bytes << " of " << whole << ": " << outcome.failure.message;
    ASSERT_EQ(0, recorder_.Raised(AlarmKind::kTlsFailed)) << bytes;
    client_.reset();
  }
  proxy.LetThrough(1u << 20);
  Create(TlsOptionsFor(proxy.address()));
  ASSERT_TRUE(BecomesReady());
}

TEST_P(TlsTest, AHandshakeThatFallsSilentEndsWithTheConnectTimeout) {
  StartServer();
  CuttingProxy proxy(server_->tls_port(), 300, CuttingProxy::Then::kSilence);
  ClientOptions options = TlsOptionsFor(proxy.address());
  options.connect_timeout_ns = 100'000'000;
  Create(std::move(options));
  const Recorder::Outcome& outcome = Finish(Call(0, kEcho));
  EXPECT_EQ(FailureKind::kUnavailable, outcome.failure.kind);
  EXPECT_NE(std::string::npos, outcome.failure.message.find("TLS handshake in time"))
      << outcome.failure.message;
  proxy.LetThrough(1u << 20);
  ExpectMended(AlarmKind::kTlsFailed);
}

TEST_P(TlsTest, AKilledServerIsUnavailableUntilItReturns) {
  StartServer();
  Create(ServerOptions());
  ASSERT_TRUE(BecomesReady());
  server_->Kill();
  EXPECT_EQ(FailureKind::kUnavailable, Finish(Call(0, kEcho)).failure.kind);
  ASSERT_TRUE(server_->Restart());
  ASSERT_TRUE(BecomesReady());
  EXPECT_TRUE(Finish(Call(0, kEcho)).ok);
  EXPECT_EQ(0, recorder_.Raised(AlarmKind::kTlsFailed));
}

TEST_P(TlsTest, IsDestroyedSafelyWithCallsInFlight) {
  StartServer();
  Create(ServerOptions());
  ASSERT_TRUE(BecomesReady());
  for (int i = 0; i < 100; ++i) Call(0, kEcho, std::string(10'000, 'd'));
  client_.reset();
  ASSERT_TRUE(ring_->Wait(1'000'000).ok());
  EXPECT_EQ(0u, ring_->channel_count());
}

INSTANTIATE_TEST_SUITE_P(BothBackEnds, TlsTest,
                         testing::Values(ring::RingChoice::kUring, ring::RingChoice::kEpoll),
                         BackEndName);

}  // namespace
}  // namespace sluice::redis
