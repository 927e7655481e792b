// Servers that are not Redis, or not well: the client stays up, says so, and allocates little.

#include <netinet/in.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "daemon/redis/sha1.h"
#include "tests/redis/client_fixture.h"
#include "tests/redis/listen.h"

namespace sluice::redis {
namespace {

// Answers every connection with `greeting` and, to whatever is said, with `answer`; `drip` sends
// one byte at a time. Its thread ends with the object.
class RogueServer {
 public:
  struct Manners {
    std::string greeting;   // on accept
    std::string answer;     // to each piece of input
    int answers = 1 << 30;  // so many answers, then silence
    bool hang_up = false;   // after the first answer
    bool drip = false;
  };

  explicit RogueServer(Manners manners) : manners_(std::move(manners)) {
    fd_ = ListenOnLoopback(&port_);
    thread_ = std::thread([this] { Run(); });
  }
  ~RogueServer() {
    stop_ = true;
    thread_.join();
    close(fd_);
  }
  std::string address() const { return "127.0.0.1:" + std::to_string(port_); }
  int accepted() const { return accepted_; }

 private:
  struct Peer {
    int fd;
    std::string out;
    int answers = 0;
  };

  void Run() {
    std::vector<Peer> peers;
    while (!stop_) {
      std::vector<pollfd> polls = {{fd_, POLLIN, 0}};
      for (const Peer& peer : peers) {
        polls.push_back(
            {peer.fd, static_cast<short>(POLLIN | (peer.out.empty() ? 0 : POLLOUT)), 0});
      }
      if (poll(polls.data(), polls.size(), 5) < 0) continue;
      for (size_t i = peers.size(); i-- > 0;) {
        if (polls[i + 1].revents != 0 && !Serve(&peers[i])) {
          close(peers[i].fd);
          peers.erase(peers.begin() + static_cast<ptrdiff_t>(i));
        }
      }
      if ((polls[0].revents & POLLIN) != 0) {
        peers.push_back({accept4(fd_, nullptr, nullptr, SOCK_CLOEXEC), manners_.greeting});
        ++accepted_;
      }
    }
    for (const Peer& peer : peers) close(peer.fd);
  }

  bool Serve(Peer* peer) {
    char buffer[65536];
    const ssize_t got = recv(peer->fd, buffer, sizeof buffer, MSG_DONTWAIT);
    if (got == 0) return false;
    if (got > 0 && peer->answers < manners_.answers) {
      ++peer->answers;
      peer->out += manners_.answer;
    }
    if (!peer->out.empty()) {
      const size_t length = manners_.drip ? 1 : peer->out.size();
      const ssize_t sent = send(peer->fd, peer->out.data(), length, MSG_NOSIGNAL | MSG_DONTWAIT);
      if (sent > 0) peer->out.erase(0, static_cast<size_t>(sent));
      if (manners_.drip) usleep(1000);
    }
    return !(manners_.hang_up && peer->answers > 0 && peer->out.empty());
  }

  const Manners manners_;
  int fd_ = -1;
  uint16_t port_ = 0;
  std::atomic<bool> stop_{false};
  std::atomic<int> accepted_{0};
  std::thread thread_;
};

// What a good server says to the handshake of TestScripts().
std::string GoodGreeting() {
  std::string out = "*2\r\n$6\r\nserver\r\n$5\r\nredis\r\n";
  for (const Script& script : TestScripts()) AppendBulk(&out, Sha1Hex(script.text));
  return out;
}

class HostileServerTest : public ClientFixture {
 protected:
  // A call to that server alone fails as `kind`, and (unless it is kTimeout or kUnavailable) the
  // garbage alarm is raised once, however often it is tried.
  void ExpectGarbage(const RogueServer::Manners& manners) {
    for (Mode mode : {Mode::kSingle, Mode::kCluster}) {
      recorder_.alarms.clear();
      RogueServer rogue(manners);
      Create(Options({rogue.address()}, mode));
      EXPECT_EQ(FailureKind::kProtocol, Finish(Call(0, kEcho)).failure.kind);
      ASSERT_TRUE(Turn([&] { return recorder_.Raised(AlarmKind::kGarbage) == 1; }));
      EXPECT_FALSE(recorder_.Last(AlarmKind::kGarbage)->mend.empty());
      ASSERT_TRUE(Turn([&] { return rogue.accepted() >= 2; }));
      EXPECT_EQ(1, recorder_.Raised(AlarmKind::kGarbage));
      client_.reset();
    }
  }
};

TEST_P(HostileServerTest, AWebServerIsNotRedis) {
  ExpectGarbage({"", "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n"});
}

TEST_P(HostileServerTest, ABannerBeforeTheFirstQuestionIsNotRedis) {
  ExpectGarbage({"SSH-2.0-OpenSSH_9.2\r\n", ""});
}

TEST_P(HostileServerTest, NoiseIsNotRedis) {
  std::mt19937_64 random(1);
  std::string noise;
  for (int i = 0; i < 100'000; ++i) noise.push_back(static_cast<char>(random() | 0x80));
  ExpectGarbage({"", noise});
}

TEST_P(HostileServerTest, AHugeArrayIsRefusedWithoutTheMemory) {
  rusage before{}, after{};
  getrusage(RUSAGE_SELF, &before);
  ExpectGarbage({"", "*100000000\r\n"});
  getrusage(RUSAGE_SELF, &after);
  EXPECT_LT(after.ru_maxrss - before.ru_maxrss, 64 * 1024) << "KiB";
}

TEST_P(HostileServerTest, AnswersThatAreNotThoseOfAHandshakeAreRefused) {
  ExpectGarbage({"", "+OK\r\n+OK\r\n+OK\r\n+OK\r\n+OK\r\n"});
}

TEST_P(HostileServerTest, AnAnswerThatNobodyAskedForEndsTheConnection) {
  RogueServer rogue({"", GoodGreeting() + ":1\r\n"});
  Create(Options({rogue.address()}, Mode::kSingle));
  ASSERT_TRUE(Turn([&] { return recorder_.Raised(AlarmKind::kGarbage) == 1; }));
}

TEST_P(HostileServerTest, ASilentServerTimesOutInTheHandshake) {
  RogueServer rogue({"", ""});
  ClientOptions options = Options({rogue.address()}, Mode::kSingle);
  options.connect_timeout_ns = 50'000'000;
  Create(std::move(options));
  EXPECT_EQ(FailureKind::kUnavailable, Finish(Call(0, kEcho)).failure.kind);
}

TEST_P(HostileServerTest, ASlowDripDoesNotKeepACallAlive) {
  RogueServer rogue(
      {"", GoodGreeting() + "$100000\r\n" + std::string(100000, 'd'), 1 << 30, false, true});
  ClientOptions options = Options({rogue.address()}, Mode::kSingle);
  options.connect_timeout_ns = 10'000'000'000;
  Create(std::move(options));
  EXPECT_EQ(FailureKind::kTimeout, Finish(Call(0, kEcho)).failure.kind);
  ASSERT_TRUE(Turn([&] { return client_->Counters().disconnects == 1; }));
}

TEST_P(HostileServerTest, AServerThatHangsUpInTheHandshakeIsUnavailable) {
  RogueServer rogue({"", "*2\r\n", 1 << 30, true});
  Create(Options({rogue.address()}, Mode::kSingle));
  EXPECT_EQ(FailureKind::kUnavailable, Finish(Call(0, kEcho)).failure.kind);
  ASSERT_TRUE(Turn([&] { return rogue.accepted() >= 3; }));
}

TEST_P(HostileServerTest, AMapOfNonsenseIsNotTaken) {
  // A good HELLO, then a CLUSTER SLOTS with a slot beyond the last.
  RogueServer rogue({"", "*2\r\n$6\r\nserver\r\n$5\r\nredis\r\n", 1});
  RogueServer liar({"*2\r\n$6\r\nserver\r\n$5\r\nredis\r\n",
                    "*1\r\n*3\r\n:0\r\n:99999\r\n*3\r\n$1\r\nh\r\n:1\r\n$1\r\na\r\n"});
  Create(Options({rogue.address(), liar.address()}, Mode::kCluster));
  EXPECT_FALSE(Finish(Call(0, kEcho)).ok);
  ASSERT_TRUE(Turn([&] { return client_->Counters().refresh_failures >= 4; }));
  EXPECT_FALSE(client_->Ready());
  EXPECT_EQ(0u, client_->primary_count());
}

TEST_P(HostileServerTest, ARedirectToNowhereFailsTheCallAndNotTheClient) {
  for (const char* redirect :
       {"-MOVED 99999 127.0.0.1:1\r\n", "-MOVED 1\r\n", "-ASK x y\r\n", "-MOVED 1 ?:0\r\n"}) {
    // One node that claims all slots, and redirects every call.
    RogueServer node({"", GoodGreeting() + redirect, 1});
    const std::string number = node.address().substr(node.address().find(':') + 1);
    RogueServer seed(
        {"*2\r\n$6\r\nserver\r\n$5\r\nredis\r\n",
         "*1\r\n*3\r\n:0\r\n:16383\r\n*3\r\n$9\r\n127.0.0.1\r\n:" + number + "\r\n$1\r\na\r\n"});
    Create(Options({seed.address()}, Mode::kCluster));
    const Recorder::Outcome& outcome = Finish(Call(0, kEcho));
    EXPECT_FALSE(outcome.ok);
    client_.reset();
  }
}

INSTANTIATE_TEST_SUITE_P(BothBackEnds, HostileServerTest,
                         testing::Values(ring::RingChoice::kUring, ring::RingChoice::kEpoll),
                         BackEndName);

}  // namespace
}  // namespace sluice::redis
