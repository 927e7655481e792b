// One suite, run over both back ends: what the rest of the daemon may rely on in a ring.

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <functional>
#include <map>
#include <thread>

#include "daemon/ring/ring.h"

namespace sluice::ring {
namespace {

constexpr int64_t kTickNs = 10'000'000;
constexpr int kMaxTicks = 3000;

// Records what happens to its channels.
class Recorder : public Handler {
 public:
  struct State {
    int connects = 0, sends = 0, receives = 0;
    int connect_error = 0, send_error = 0, receive_error = 0;
    bool ended = false;
    std::string got;
  };
  void OnConnected(ChannelId id, int error) override {
    ++at(id).connects;
    at(id).connect_error = error;
    if (on_connected) on_connected(id);
  }
  void OnSent(ChannelId id, std::string buffer, int error) override {
    ++at(id).sends;
    at(id).send_error = error;
    last_buffer = std::move(buffer);
    if (on_sent) on_sent(id);
  }
  void OnReceived(ChannelId id, absl::Span<const char> bytes, int error) override {
    ++at(id).receives;
    at(id).receive_error = error;
    at(id).ended = error == 0 && bytes.empty();
    if (on_received) on_received(id);
    at(id).got.append(bytes.data(), bytes.size());
  }
  State& at(ChannelId id) { return states[id.value]; }
  int callbacks() const {
    int sum = 0;
    for (const auto& [id, state] : states) sum += state.connects + state.sends + state.receives;
    return sum;
  }

  std::map<uint64_t, State> states;
  std::string last_buffer;
  std::function<void(ChannelId)> on_connected, on_sent, on_received;
};

class Listening {
 public:
  explicit Listening(const Address& where) : address(where) {
    fd = socket(where.family(), SOCK_STREAM | SOCK_CLOEXEC, 0);
    EXPECT_GE(fd, 0);
    EXPECT_EQ(0, bind(fd, reinterpret_cast<const sockaddr*>(&address.storage), address.length))
        << std::strerror(errno);
    EXPECT_EQ(0, listen(fd, 64));
    if (where.family() != AF_UNIX) {
      address.length = sizeof address.storage;
      getsockname(fd, reinterpret_cast<sockaddr*>(&address.storage), &address.length);
    }
  }
  ~Listening() { close(fd); }
  int Accept() const { return accept4(fd, nullptr, nullptr, SOCK_CLOEXEC); }

  int fd = -1;
  Address address;
};

class RingConformanceTest : public testing::TestWithParam<RingChoice> {
 protected:
  void SetUp() override {
    absl::StatusOr<OpenedRing> opened = OpenRing(GetParam());
    ASSERT_TRUE(opened.ok()) << opened.status();
    EXPECT_EQ(GetParam(), opened->backend);
    ring_ = std::move(opened->ring);
  }

  // Turns the ring until `done`, with a bound; whether it came true.
  bool Turn(const std::function<bool()>& done) {
    for (int i = 0; i < kMaxTicks && !done(); ++i) {
      absl::StatusOr<size_t> ran = ring_->Wait(kTickNs);
      if (!ran.ok()) return false;
    }
    return done();
  }

  // A few turns in which nothing more is expected to happen.
  void TurnIdle() {
    for (int i = 0; i < 5; ++i) ASSERT_TRUE(ring_->Wait(kTickNs / 5).ok());
  }

  // Two adopted channels that are each other's peer.
  void MakePair(ChannelId* a, ChannelId* b) {
    int fds[2];
    ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds));
    absl::StatusOr<ChannelId> left = ring_->Adopt(fds[0], &recorder_);
    absl::StatusOr<ChannelId> right = ring_->Adopt(fds[1], &recorder_);
    ASSERT_TRUE(left.ok() && right.ok());
    *a = *left;
    *b = *right;
  }

  void EchoOver(const Address& where) {
    Listening server(where);
    absl::StatusOr<ChannelId> client = ring_->Connect(server.address, &recorder_);
    ASSERT_TRUE(client.ok()) << client.status();
    ASSERT_TRUE(Turn([&] { return recorder_.at(*client).connects == 1; }));
    ASSERT_EQ(0, recorder_.at(*client).connect_error);
    absl::StatusOr<ChannelId> peer = ring_->Adopt(server.Accept(), &recorder_);
    ASSERT_TRUE(peer.ok());
    ASSERT_TRUE(ring_->Recv(*peer).ok());
    ASSERT_TRUE(ring_->Send(*client, "to the server").ok());
    ASSERT_TRUE(Turn([&] { return recorder_.at(*peer).receives == 1; }));
    EXPECT_EQ("to the server", recorder_.at(*peer).got);
    ASSERT_TRUE(ring_->Recv(*client).ok());
    ASSERT_TRUE(ring_->Send(*peer, "and back").ok());
    ASSERT_TRUE(Turn([&] { return recorder_.at(*client).receives == 1; }));
    EXPECT_EQ("and back", recorder_.at(*client).got);
  }

  Recorder recorder_;
  Recorder others_;
  std::unique_ptr<Ring> ring_;
};

TEST_P(RingConformanceTest, CarriesBytesBothWaysOverIPv4) {
  EchoOver(*NumericAddress("127.0.0.1", 0));
}

TEST_P(RingConformanceTest, CarriesBytesBothWaysOverIPv6) {
  const int probe = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const Address loopback = *NumericAddress("::1", 0);
  const bool usable =
      probe >= 0 &&
      bind(probe, reinterpret_cast<const sockaddr*>(&loopback.storage), loopback.length) == 0;
  if (probe >= 0) close(probe);
  if (!usable) GTEST_SKIP() << "this machine has no IPv6 loopback";
  EchoOver(loopback);
}

TEST_P(RingConformanceTest, CarriesBytesBothWaysOverAUnixSocket) {
  std::string dir = testing::TempDir() + "/sluice-ring-XXXXXX";
  ASSERT_NE(nullptr, mkdtemp(dir.data()));
  EchoOver(*UnixAddress(dir + "/socket"));
  std::filesystem::remove_all(dir);
}

TEST_P(RingConformanceTest, TellsThatAConnectWasRefused) {
  Address nobody;
  {
    Listening server(*NumericAddress("127.0.0.1", 0));
    nobody = server.address;
  }
  absl::StatusOr<ChannelId> client = ring_->Connect(nobody, &recorder_);
  ASSERT_TRUE(client.ok());
  ASSERT_TRUE(Turn([&] { return recorder_.at(*client).connects == 1; }));
  EXPECT_EQ(ECONNREFUSED, recorder_.at(*client).connect_error);
  ring_->Close(*client);
  EXPECT_EQ(0u, ring_->channel_count());
}

TEST_P(RingConformanceTest, TellsThatAUnixSocketIsMissingOutsideTheCall) {
  absl::StatusOr<ChannelId> client =
      ring_->Connect(*UnixAddress("/nonexistent/sluice-test"), &recorder_);
  ASSERT_TRUE(client.ok());
  EXPECT_EQ(0, recorder_.callbacks());
  ASSERT_TRUE(Turn([&] { return recorder_.at(*client).connects == 1; }));
  EXPECT_EQ(ENOENT, recorder_.at(*client).connect_error);
}

TEST_P(RingConformanceTest, SendsAMebibyteWholeThoughThePeerReadsSlowly) {
  ChannelId a, b;
  MakePair(&a, &b);
  std::string sent(1 << 20, '\0');
  for (size_t i = 0; i < sent.size(); ++i) sent[i] = static_cast<char>(i * 2654435761u >> 24);
  ASSERT_TRUE(ring_->Send(a, sent).ok());
  TurnIdle();  // the socket is full now and nobody reads
  EXPECT_EQ(0, recorder_.at(a).sends);
  recorder_.on_received = [&](ChannelId id) { ASSERT_TRUE(ring_->Recv(id).ok()); };
  ASSERT_TRUE(ring_->Recv(b).ok());
  ASSERT_TRUE(Turn([&] { return recorder_.at(b).got.size() == sent.size(); }));
  EXPECT_TRUE(recorder_.at(b).got == sent);
  ASSERT_TRUE(Turn([&] { return recorder_.at(a).sends == 1; }));
  EXPECT_EQ(0, recorder_.at(a).send_error);
  EXPECT_EQ(sent.size(), recorder_.last_buffer.size());
}

TEST_P(RingConformanceTest, LentBytesStayWholeWhenTheCallbackAsksForMoreFirst) {
  ChannelId a, b;
  MakePair(&a, &b);
  ASSERT_TRUE(ring_->Send(a, std::string(kRecvBytes, 'x') + std::string(2 * kRecvBytes, 'y')).ok());
  recorder_.on_received = [&](ChannelId id) {
    ASSERT_TRUE(ring_->Recv(id).ok());
    // Fill the submission queue, so that the receive may really start inside the callback.
    for (uint32_t i = 0; i < kMaxChannels; ++i) {
      int fds[2];
      ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds));
      close(fds[1]);
      absl::StatusOr<ChannelId> extra = ring_->Adopt(fds[0], &others_);
      if (!extra.ok()) {
        close(fds[0]);
        break;
      }
      ASSERT_TRUE(ring_->Recv(*extra).ok());
      ASSERT_TRUE(ring_->Send(*extra, "e").ok());
    }
    recorder_.on_received = [&](ChannelId again) { ASSERT_TRUE(ring_->Recv(again).ok()); };
  };
  ASSERT_TRUE(ring_->Recv(b).ok());
  ASSERT_TRUE(Turn([&] { return recorder_.at(b).got.size() == 3 * kRecvBytes; }));
  EXPECT_EQ(std::string(kRecvBytes, 'x') + std::string(2 * kRecvBytes, 'y'), recorder_.at(b).got);
}

TEST_P(RingConformanceTest, HalfCloseEndsOneDirectionOnly) {
  ChannelId a, b;
  MakePair(&a, &b);
  ASSERT_TRUE(ring_->FinishSending(a).ok());
  ASSERT_TRUE(ring_->Recv(b).ok());
  ASSERT_TRUE(Turn([&] { return recorder_.at(b).ended; }));
  ASSERT_TRUE(ring_->Recv(a).ok());
  ASSERT_TRUE(ring_->Send(b, "still open").ok());
  ASSERT_TRUE(Turn([&] { return recorder_.at(a).receives == 1; }));
  EXPECT_EQ("still open", recorder_.at(a).got);
}

TEST_P(RingConformanceTest, SendToAVanishedPeerEndsWithAnErrorAndNoSignal) {
  ChannelId a, b;
  MakePair(&a, &b);
  ring_->Close(b);
  TurnIdle();
  ASSERT_TRUE(ring_->Send(a, "anybody?").ok());
  ASSERT_TRUE(Turn([&] { return recorder_.at(a).sends == 1; }));
  EXPECT_EQ(EPIPE, recorder_.at(a).send_error);
}

TEST_P(RingConformanceTest, CloseWithOperationsInFlightRunsNoMoreCallbacks) {
  ChannelId a, b;
  MakePair(&a, &b);
  ASSERT_TRUE(ring_->Recv(a).ok());
  ASSERT_TRUE(ring_->Send(a, std::string(4 << 20, 'z')).ok());  // more than the socket takes
  TurnIdle();
  ring_->Close(a);
  EXPECT_EQ(1u, ring_->channel_count());
  TurnIdle();
  EXPECT_EQ(0, recorder_.at(a).receives);
  EXPECT_EQ(0, recorder_.at(a).sends);
  EXPECT_EQ(absl::StatusCode::kNotFound, ring_->Send(a, "late").code());
  EXPECT_EQ(absl::StatusCode::kNotFound, ring_->Recv(a).code());
}

TEST_P(RingConformanceTest, CloseWhileConnectingRunsNoCallback) {
  Listening server(*NumericAddress("127.0.0.1", 0));
  absl::StatusOr<ChannelId> client = ring_->Connect(server.address, &recorder_);
  ASSERT_TRUE(client.ok());
  ring_->Close(*client);
  TurnIdle();
  EXPECT_EQ(0, recorder_.callbacks());
}

TEST_P(RingConformanceTest, ThePeerOfAClosedChannelSeesTheEnd) {
  ChannelId a, b;
  MakePair(&a, &b);
  ASSERT_TRUE(ring_->Recv(a).ok());
  ASSERT_TRUE(ring_->Recv(b).ok());
  TurnIdle();
  ring_->Close(a);
  ASSERT_TRUE(Turn([&] { return recorder_.at(b).ended; }));
}

TEST_P(RingConformanceTest, AChannelMayCloseItselfInEachCallback) {
  Listening server(*NumericAddress("127.0.0.1", 0));
  const auto close_it = [&](ChannelId id) { ring_->Close(id); };
  recorder_.on_connected = close_it;
  absl::StatusOr<ChannelId> client = ring_->Connect(server.address, &recorder_);
  ASSERT_TRUE(client.ok());
  ASSERT_TRUE(Turn([&] { return recorder_.at(*client).connects == 1; }));
  ChannelId a, b;
  MakePair(&a, &b);
  recorder_.on_sent = close_it;
  recorder_.on_received = close_it;
  ASSERT_TRUE(ring_->Recv(b).ok());
  ASSERT_TRUE(ring_->Send(a, "x").ok());
  ASSERT_TRUE(Turn([&] { return ring_->channel_count() == 0; }));
  EXPECT_EQ(1, recorder_.at(a).sends);
  EXPECT_EQ(1, recorder_.at(b).receives);
}

TEST_P(RingConformanceTest, AnIdNeverReachesTheNextChannelInItsSlot) {
  ChannelId a, b, c, d;
  MakePair(&a, &b);
  ring_->Close(a);
  ring_->Close(b);
  TurnIdle();
  MakePair(&c, &d);
  EXPECT_NE(a, c);
  EXPECT_NE(a, d);
  EXPECT_EQ(absl::StatusCode::kNotFound, ring_->Send(a, "stray").code());
  ring_->Close(a);
  EXPECT_EQ(2u, ring_->channel_count());
}

TEST_P(RingConformanceTest, OneSendAndOneReceiveAtATime) {
  ChannelId a, b;
  MakePair(&a, &b);
  ASSERT_TRUE(ring_->Recv(a).ok());
  EXPECT_EQ(absl::StatusCode::kFailedPrecondition, ring_->Recv(a).code());
  ASSERT_TRUE(ring_->Send(a, "one").ok());
  EXPECT_EQ(absl::StatusCode::kFailedPrecondition, ring_->Send(a, "two").code());
  EXPECT_EQ(absl::StatusCode::kInvalidArgument, ring_->Send(b, "").code());
}

TEST_P(RingConformanceTest, RefusesMoreChannelsThanItsBoundAndRecovers) {
  rlimit limit{};
  getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = std::min<rlim_t>(limit.rlim_max, 2 * kMaxChannels + 64);
  ASSERT_EQ(0, setrlimit(RLIMIT_NOFILE, &limit));
  std::vector<ChannelId> ids;
  std::vector<int> peers;
  absl::Status refusal;
  for (uint32_t i = 0; i <= kMaxChannels && refusal.ok(); ++i) {
    int fds[2];
    ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds)) << std::strerror(errno);
    peers.push_back(fds[1]);
    absl::StatusOr<ChannelId> id = ring_->Adopt(fds[0], &recorder_);
    if (id.ok()) {
      ids.push_back(*id);
      ASSERT_TRUE(ring_->Recv(*id).ok());
    } else {
      refusal = id.status();
      close(fds[0]);
    }
  }
  EXPECT_EQ(absl::StatusCode::kResourceExhausted, refusal.code());
  EXPECT_EQ(size_t{kMaxChannels}, ids.size());
  for (int peer : peers) close(peer);
  ASSERT_TRUE(Turn([&] { return recorder_.callbacks() == static_cast<int>(ids.size()); }));
  for (ChannelId id : ids) ring_->Close(id);
  TurnIdle();
  ChannelId a, b;
  MakePair(&a, &b);
}

TEST_P(RingConformanceTest, WakeFromAnotherThreadEndsAnEndlessWait) {
  for (int i = 0; i < 20; ++i) {
    std::thread waker([&] { ring_->Wake(); });
    absl::StatusOr<size_t> ran = ring_->Wait(-1);
    waker.join();
    ASSERT_TRUE(ran.ok());
    EXPECT_EQ(0u, *ran);
  }
}

TEST_P(RingConformanceTest, AWakeBeforeTheWaitIsNotLost) {
  ring_->Wake();
  ASSERT_TRUE(ring_->Wait(-1).ok());
  ring_->Wake();
  ring_->Wake();
  ASSERT_TRUE(ring_->Wait(-1).ok());
}

TEST_P(RingConformanceTest, APollWithoutWaitingStillSeesWhatHasCompleted) {
  ChannelId a, b;
  MakePair(&a, &b);
  ASSERT_TRUE(ring_->Recv(b).ok());
  ASSERT_TRUE(ring_->Send(a, "now").ok());
  for (int i = 0; i < kMaxTicks && recorder_.at(b).receives == 0; ++i) {
    ASSERT_TRUE(ring_->Wait(0).ok());
  }
  EXPECT_EQ("now", recorder_.at(b).got);
}

TEST_P(RingConformanceTest, IsDestroyedSafelyWithOperationsInFlight) {
  for (int i = 0; i < 20; ++i) {
    ChannelId a, b;
    MakePair(&a, &b);
    ASSERT_TRUE(ring_->Recv(a).ok());
    ASSERT_TRUE(ring_->Send(b, std::string(1 << 20, 'q')).ok());
  }
  ASSERT_TRUE(ring_->Wait(0).ok());
  recorder_.states.clear();
  ring_.reset();
  EXPECT_EQ(0, recorder_.callbacks());
}

INSTANTIATE_TEST_SUITE_P(BothBackEnds, RingConformanceTest,
                         testing::Values(RingChoice::kUring, RingChoice::kEpoll),
                         [](const testing::TestParamInfo<RingChoice>& which) {
                           return which.param == RingChoice::kUring ? "IoUring" : "Epoll";
                         });

TEST(OpenRingTest, SaysWhatItChose) {
  absl::StatusOr<OpenedRing> opened = OpenRing(RingChoice::kAuto);
  ASSERT_TRUE(opened.ok());
  EXPECT_NE(RingChoice::kAuto, opened->backend);
  EXPECT_NE(std::string::npos, opened->why.find(RingName(opened->backend))) << opened->why;
}

TEST(AddressTest, RefusesWhatIsNotNumericAndWhatDoesNotFit) {
  EXPECT_EQ("127.0.0.1:80", ToString(*NumericAddress("127.0.0.1", 80)));
  EXPECT_EQ("[::1]:81", ToString(*NumericAddress("::1", 81)));
  EXPECT_EQ("unix:/run/x", ToString(*UnixAddress("/run/x")));
  EXPECT_FALSE(NumericAddress("localhost", 1).ok());
  EXPECT_FALSE(NumericAddress("", 1).ok());
  EXPECT_FALSE(UnixAddress("").ok());
  EXPECT_FALSE(UnixAddress(std::string(200, 'p')).ok());
}

}  // namespace
}  // namespace sluice::ring
