// The attach socket and the client's attaching, against each other and against garbage. Time is
// the test's own: the client is told that it passes.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "client/attach.h"
#include "daemon/admin/attach_server.h"
#include "daemon/admin/event_loop.h"
#include "shm/clock.h"
#include "shm/segment.h"

namespace sluice::admin {
namespace {

using client::Attacher;
using client::AttachProblem;

constexpr uint64_t kMs = 1'000'000;
constexpr int kMaxRounds = 20'000;

// What the clock says to daemon and client; the daemon's may be set off by `offset_ns`.
std::atomic<uint64_t> test_now_ns{0};
uint64_t daemon_offset_ns = 0;
uint64_t NowNs() { return test_now_ns + daemon_offset_ns; }

// A daemon's process side without the process: segments, and a server on a loop that the test
// turns by hand.
class FakeDaemon {
 public:
  FakeDaemon(const std::string& folder, const shm::ControlOptions& options) {
    EXPECT_TRUE(control.Create(options, NowNs()).ok());
    EXPECT_TRUE(buckets.Create(options.capacity).ok());
    control.Publish();
    Serve(folder);
  }
  void Serve(const std::string& folder) {
    read_only = control.DupReadOnly();
    loop = std::make_unique<EventLoop>();
    EXPECT_TRUE(loop->Init().ok());
    server = std::make_unique<AttachServer>(loop.get(), NowNs);
    EXPECT_TRUE(server
                    ->Start(folder + "/" + shm::kAttachSocketName, static_cast<gid_t>(-1), -1,
                            {read_only.get(), buckets.fd(), control.info().generation})
                    .ok());
  }
  // As a process that ends: the kernel closes all, and the path stays.
  void Die() {
    server.reset();
    loop.reset();
  }
  void Turn() {
    if (loop == nullptr) return;
    loop->After(0, [this](uint64_t) { loop->Stop(); });
    EXPECT_TRUE(loop->Run().ok());
  }

  shm::ControlWriter control;
  shm::BucketsOwner buckets;
  shm::OwnedFd read_only;
  std::unique_ptr<EventLoop> loop;
  std::unique_ptr<AttachServer> server;
};

class AttachTest : public testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/sluice-attach-XXXXXX";
    ASSERT_NE(mkdtemp(name), nullptr);
    folder_ = name;
    now_ns_ = shm::MonotonicClock::PreciseNs();
    daemon_offset_ns = 0;
  }
  void TearDown() override {
    daemon_.reset();
    unlink(socket_path().c_str());
    rmdir(folder_.c_str());
  }
  std::string socket_path() const { return folder_ + "/" + shm::kAttachSocketName; }
  void StartDaemon() {
    daemon_ = std::make_unique<FakeDaemon>(
        folder_, shm::ControlOptions{.capacity = 64, .shard_count = 4, .reconciling = true});
  }
  // Turns daemon and client until `done`; the client's time passes by `step_ns` a round.
  bool Until(Attacher& attacher, const std::function<bool()>& done, uint64_t step_ns = kMs) {
    for (int i = 0; i < kMaxRounds; ++i) {
      attacher.Step(now_ns_);
      if (daemon_) daemon_->Turn();
      if (done()) return true;
      now_ns_ += step_ns;
    }
    return false;
  }
  bool Attach(Attacher& attacher) {
    if (daemon_) daemon_->control.Beat(now_ns_);
    const uint64_t before = attacher.attach_count();
    return Until(attacher, [&] { return attacher.attach_count() > before; });
  }
  shm::OwnedFd Connect() {
    shm::OwnedFd fd(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    sockaddr_un address = {};
    address.sun_family = AF_UNIX;
    socket_path().copy(address.sun_path, sizeof address.sun_path - 1);
    EXPECT_EQ(connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    return fd;
  }
  // True when the daemon has closed the connection.
  bool IsClosed(const shm::OwnedFd& fd) {
    for (int i = 0; i < kMaxRounds; ++i) {
      daemon_->Turn();
      char bytes[512];
      const ssize_t n = recv(fd.get(), bytes, sizeof bytes, MSG_DONTWAIT);
      if (n == 0 || (n < 0 && errno != EAGAIN)) return true;
    }
    return false;
  }
  std::string MessageOf(const Attacher& attacher) const {
    char text[160];
    attacher.Message(now_ns_, text, sizeof text);
    return text;
  }

  std::string folder_;
  std::unique_ptr<FakeDaemon> daemon_;
  std::atomic<uint64_t>& now_ns_ = test_now_ns;
};

shm::Hello GoodHello() {
  shm::Hello hello = {};
  hello.magic = shm::kHelloMagic;
  hello.abi_major = shm::kAbiMajor;
  hello.layout_hash = shm::kLayoutHash;
  std::strcpy(hello.label, "test");
  return hello;
}

TEST_F(AttachTest, GivesAClientTheSegmentsAndCountsIt) {
  StartDaemon();
  Attacher attacher;
  ASSERT_TRUE(attacher.Open(folder_.c_str(), "web"));
  EXPECT_EQ(attacher.current(), nullptr);
  ASSERT_TRUE(Attach(attacher)) << MessageOf(attacher);
  const client::Attachment& a = *attacher.current();
  EXPECT_EQ(a.capacity, 64u);
  EXPECT_EQ(a.group_mask, 15u);
  EXPECT_EQ(a.shard_count, 4u);
  EXPECT_EQ(a.generation, daemon_->control.info().generation);
  EXPECT_TRUE(a.same_user_as_daemon);
  a.slots[1].word.store(99);
  EXPECT_EQ(daemon_->buckets.buckets().slots()[1].word.load(), 99u);
  const ClientsSnapshot clients = daemon_->server->Snapshot();
  ASSERT_EQ(clients.attached, 1u);
  EXPECT_EQ(clients.clients[0].label, "web");
  EXPECT_EQ(clients.clients[0].pid, getpid());
  EXPECT_EQ(clients.same_user, 1u);
  EXPECT_EQ(attacher.problem(), AttachProblem::kNone);
}

TEST_F(AttachTest, ForgetsAClientThatLeaves) {
  StartDaemon();
  {
    Attacher attacher;
    ASSERT_TRUE(attacher.Open(folder_.c_str(), nullptr));
    ASSERT_TRUE(Attach(attacher));
  }
  for (int i = 0; i < 10; ++i) daemon_->Turn();
  EXPECT_EQ(daemon_->server->Snapshot().attached, 0u);
  EXPECT_EQ(daemon_->server->Snapshot().attached_total, 1u);
}

TEST_F(AttachTest, ConnectsAtMostOncePerTenthOfASecondWithoutADaemon) {
  Attacher attacher;
  ASSERT_TRUE(attacher.Open(folder_.c_str(), nullptr));
  attacher.Step(now_ns_);
  EXPECT_EQ(attacher.problem(), AttachProblem::kNoSocket);
  StartDaemon();
  for (uint64_t ms = 0; ms < 99; ms += 3) {
    attacher.Step(now_ns_ + ms * kMs);
    daemon_->Turn();
  }
  EXPECT_EQ(attacher.current(), nullptr);
  now_ns_ += 100 * kMs;
  EXPECT_TRUE(Attach(attacher)) << MessageOf(attacher);
}

TEST_F(AttachTest, SaysWhyItIsNotAttached) {
  Attacher attacher;
  ASSERT_TRUE(attacher.Open(folder_.c_str(), nullptr));
  attacher.Step(now_ns_);
  EXPECT_NE(MessageOf(attacher).find(folder_), std::string::npos);
  EXPECT_NE(MessageOf(attacher).find("no sluiced"), std::string::npos);
  Attacher far;
  ASSERT_TRUE(far.Open(std::string(200, 'x').c_str(), nullptr));
  far.Step(now_ns_);
  EXPECT_EQ(far.problem(), AttachProblem::kPathTooLong);
}

TEST_F(AttachTest, KeepsItsMappingWhenTheSameSegmentsComeBack) {
  StartDaemon();
  Attacher attacher;
  ASSERT_TRUE(attacher.Open(folder_.c_str(), nullptr));
  ASSERT_TRUE(Attach(attacher));
  const client::Attachment* before = attacher.current();
  daemon_->Die();
  // Adopted within a heartbeat, as by a quick restart: the client still must make itself known.
  shm::ControlWriter next;
  ASSERT_TRUE(next.Adopt(shm::OwnedFd(dup(daemon_->control.fd())),
                         {.capacity = 64, .shard_count = 4, .reconciling = true}, now_ns_)
                  .ok());
  daemon_->Serve(folder_);
  ASSERT_TRUE(Attach(attacher)) << MessageOf(attacher);
  EXPECT_EQ(attacher.current(), before);
  EXPECT_EQ(daemon_->server->Snapshot().attached, 1u);
}

TEST_F(AttachTest, GoesOnWithTheLastRulesWhileNobodyIsThere) {
  StartDaemon();
  Attacher attacher;
  ASSERT_TRUE(attacher.Open(folder_.c_str(), nullptr));
  ASSERT_TRUE(Attach(attacher));
  daemon_->Die();
  ASSERT_TRUE(Until(
      attacher, [&] { return attacher.problem() != AttachProblem::kNone; }, 10 * kMs));
  EXPECT_NE(attacher.current(), nullptr);
  EXPECT_FALSE(attacher.IsDaemonAlive(now_ns_));
  EXPECT_EQ(attacher.current()->slots[0].key.load(), 0u);
}

TEST_F(AttachTest, FollowsANewGenerationAndGivesTheOldMemoryBack) {
  StartDaemon();
  Attacher attacher;
  ASSERT_TRUE(attacher.Open(folder_.c_str(), nullptr));
  ASSERT_TRUE(Attach(attacher));
  const client::Attachment* old = attacher.current();
  old->slots[0].word.store(5);
  daemon_->Die();
  now_ns_ += shm::kHeartbeatFreshNs;
  StartDaemon();
  ASSERT_TRUE(Attach(attacher)) << MessageOf(attacher);
  ASSERT_NE(attacher.current(), old);
  EXPECT_EQ(old->slots[0].word.load(), 5u) << "a check may still stand in the old one";
  now_ns_ += client::kRetireNs;
  daemon_->control.Beat(now_ns_);
  attacher.Step(now_ns_);
  EXPECT_EQ(old->slots[0].word.load(), 0u);
  old->slots[0].word.store(6);  // harmless
  EXPECT_EQ(attacher.current()->slots[0].word.load(), 0u);
}

// aeron: heartbeats of another clock read as death, or as life long after it.
TEST_F(AttachTest, RefusesADaemonWithAnotherClock) {
  StartDaemon();
  for (const uint64_t offset_ns : {3600'000'000'000ull, 0 - 3600'000'000'000ull, 60'000'000ull}) {
    daemon_offset_ns = offset_ns;
    Attacher attacher;
    ASSERT_TRUE(attacher.Open(folder_.c_str(), nullptr));
    ASSERT_TRUE(Until(
        attacher, [&] { return attacher.problem() == AttachProblem::kOtherClock; }, kMs / 100));
    EXPECT_EQ(attacher.current(), nullptr);
  }
}

TEST_F(AttachTest, GivesUpOnADaemonThatDoesNotAnswer) {
  StartDaemon();
  Attacher attacher;
  ASSERT_TRUE(attacher.Open(folder_.c_str(), nullptr));
  attacher.Step(now_ns_);  // accepted by the kernel, read by nobody
  attacher.Step(now_ns_ + shm::kHandshakeTimeoutNs - 1);
  EXPECT_NE(attacher.problem(), AttachProblem::kNoAnswer);
  attacher.Step(now_ns_ + shm::kHandshakeTimeoutNs + kMs);
  EXPECT_EQ(attacher.problem(), AttachProblem::kNoAnswer);
}

TEST_F(AttachTest, ClosesOnGarbageAndServesTheNext) {
  StartDaemon();
  std::vector<std::string> messages = {"x", std::string(63, 'a'), std::string(64, 'b'),
                                       std::string(65, 'c'), std::string(60'000, 'd')};
  uint64_t seed = 11;
  for (int i = 0; i < 200; ++i) {
    std::string noise(shm::SplitMix64(seed) % 200 + 1, '\0');
    for (char& c : noise) c = static_cast<char>(shm::SplitMix64(seed));
    messages.push_back(noise);
  }
  for (const std::string& message : messages) {
    const shm::OwnedFd fd = Connect();
    ASSERT_GT(send(fd.get(), message.data(), message.size(), MSG_NOSIGNAL), 0);
    EXPECT_TRUE(IsClosed(fd));
  }
  EXPECT_EQ(daemon_->server->Snapshot().refused_total, messages.size());
  Attacher attacher;
  ASSERT_TRUE(attacher.Open(folder_.c_str(), nullptr));
  EXPECT_TRUE(Attach(attacher)) << MessageOf(attacher);
}

TEST_F(AttachTest, ClosesAnAttachedClientThatSaysMore) {
  StartDaemon();
  const shm::OwnedFd fd = Connect();
  const shm::Hello hello = GoodHello();
  ASSERT_GT(send(fd.get(), &hello, sizeof hello, MSG_NOSIGNAL), 0);
  daemon_->Turn();
  daemon_->Turn();
  ASSERT_EQ(daemon_->server->Snapshot().attached, 1u);
  ASSERT_GT(send(fd.get(), &hello, sizeof hello, MSG_NOSIGNAL), 0);
  EXPECT_TRUE(IsClosed(fd));
}

// envoy#355, envoy#14224: a new process met the old one's shared memory in another layout.
TEST_F(AttachTest, TellsAClientOfAnotherVersionWhy) {
  StartDaemon();
  const shm::OwnedFd fd = Connect();
  shm::Hello hello = GoodHello();
  hello.layout_hash ^= 1;
  ASSERT_GT(send(fd.get(), &hello, sizeof hello, MSG_NOSIGNAL), 0);
  daemon_->Turn();
  daemon_->Turn();
  shm::Welcome welcome = {};
  ASSERT_EQ(recv(fd.get(), &welcome, sizeof welcome, MSG_DONTWAIT),
            static_cast<ssize_t>(sizeof welcome));
  EXPECT_EQ(welcome.status, shm::WelcomeStatus::kOtherVersion);
  EXPECT_NE(std::string(welcome.text).find("update"), std::string::npos);
}

TEST_F(AttachTest, DropsAConnectionThatSaysNothingForASecond) {
  StartDaemon();
  const shm::OwnedFd fd = Connect();
  daemon_->Turn();
  now_ns_ += shm::kHandshakeTimeoutNs + kMs;
  pollfd waiting = {fd.get(), POLLIN, 0};
  bool closed = false;
  for (int i = 0; i < 400 && !closed; ++i) {  // the server sweeps four times a second
    daemon_->Turn();
    closed = poll(&waiting, 1, 25) > 0;
  }
  EXPECT_TRUE(closed);
}

TEST_F(AttachTest, TakesABoundedNumberOfClientsAndTellsTheNextOne) {
  rlimit limit;
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &limit), 0);
  const rlim_t needed = 2 * (kMaxClients + kMaxRefusing) + 100;
  if (limit.rlim_max < needed) GTEST_SKIP() << "needs " << needed << " descriptors";
  limit.rlim_cur = std::max(limit.rlim_cur, needed);
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &limit), 0);
  StartDaemon();
  const shm::Hello hello = GoodHello();
  std::vector<shm::OwnedFd> fds;
  for (size_t i = 0; i < kMaxClients; ++i) {
    fds.push_back(Connect());
    ASSERT_GT(send(fds.back().get(), &hello, sizeof hello, MSG_NOSIGNAL), 0);
    if (i % 32 == 0) daemon_->Turn();
  }
  for (int i = 0; i < kMaxRounds && daemon_->server->Snapshot().attached < kMaxClients; ++i) {
    daemon_->Turn();
  }
  ASSERT_EQ(daemon_->server->Snapshot().attached, kMaxClients);
  Attacher late;
  ASSERT_TRUE(late.Open(folder_.c_str(), nullptr));
  ASSERT_TRUE(Until(late, [&] { return late.problem() == AttachProblem::kRefused; }));
  EXPECT_NE(MessageOf(late).find("4096 clients"), std::string::npos) << MessageOf(late);
  fds.pop_back();
  EXPECT_TRUE(Attach(late)) << MessageOf(late);
  EXPECT_EQ(daemon_->server->Snapshot().attached, kMaxClients);
}

TEST_F(AttachTest, SocketIsForOwnerAndGroupOnly) {
  StartDaemon();
  struct stat st;
  ASSERT_EQ(stat(socket_path().c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 0777, 0660u);
}

TEST_F(AttachTest, AChildOfForkMakesItsOwnConnection) {
  StartDaemon();
  Attacher attacher;
  ASSERT_TRUE(attacher.Open(folder_.c_str(), nullptr));
  ASSERT_TRUE(Attach(attacher));
  const uint64_t epoch = attacher.fork_epoch();
  int ready[2];
  int leave[2];
  ASSERT_EQ(pipe(ready), 0);
  ASSERT_EQ(pipe(leave), 0);
  const pid_t child = fork();
  if (child == 0) {
    close(leave[1]);
    if (attacher.fork_epoch() != 0) _exit(1);
    uint64_t now_ns = now_ns_.load();
    attacher.Step(now_ns);
    for (int i = 0; i < 5000 && attacher.attach_count() == 0; ++i) {
      attacher.Step(now_ns += kMs / 200);
      usleep(1000);
    }
    const char word = attacher.attach_count() == 1 && attacher.fork_epoch() != epoch ? 'y' : 'n';
    if (write(ready[1], &word, 1) != 1) _exit(2);
    char byte;
    [[maybe_unused]] const ssize_t n = read(leave[0], &byte, 1);  // until the parent closes it
    _exit(0);
  }
  close(ready[1]);
  close(leave[0]);
  pollfd waiting = {ready[0], POLLIN, 0};
  for (int i = 0; i < 4000 && poll(&waiting, 1, 5) == 0; ++i) daemon_->Turn();
  char word = '?';
  EXPECT_EQ(read(ready[0], &word, 1), 1);
  EXPECT_EQ(word, 'y');
  EXPECT_EQ(daemon_->server->Snapshot().attached, 2u);
  close(leave[1]);
  int status = 0;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  for (int i = 0; i < 20; ++i) daemon_->Turn();
  EXPECT_EQ(daemon_->server->Snapshot().attached, 1u);
  EXPECT_EQ(attacher.fork_epoch(), epoch);
  close(ready[0]);
}

TEST_F(AttachTest, ServesManyThreadsWhileGenerationsComeAndGo) {
  Attacher attacher;
  ASSERT_TRUE(attacher.Open(folder_.c_str(), nullptr));
  std::atomic<bool> stop{false};
  std::vector<std::thread> threads;
  for (int i = 0; i < 3; ++i) {
    threads.emplace_back([&] {
      char text[160];
      while (!stop.load()) {
        attacher.Step(now_ns_);
        const client::Attachment* a = attacher.current();
        if (a != nullptr) a->slots[a->capacity - 1].word.fetch_add(1);
        attacher.Message(now_ns_, text, sizeof text);
        attacher.IsDaemonAlive(now_ns_);
      }
    });
  }
  for (uint64_t i = 1; i <= 8; ++i) {
    StartDaemon();
    // A thread may be put to sleep in the middle of its step: nobody waits for it, so neither does
    // anything happen meanwhile.
    EXPECT_TRUE(Until(attacher,
                      [&] {
                        usleep(200);
                        return attacher.attach_count() >= i;
                      }))
        << i << ": " << MessageOf(attacher);
    daemon_->Die();
    now_ns_ += i % 2 == 0 ? client::kRetireNs : 2 * shm::kHeartbeatFreshNs;
  }
  stop = true;
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(attacher.attach_count(), 8u);
}

TEST_F(AttachTest, BoundsTheGenerationsThatOneClientFollows) {
  Attacher attacher;
  ASSERT_TRUE(attacher.Open(folder_.c_str(), nullptr));
  for (uint32_t i = 0; i < client::kMaxAttachments; ++i) {
    StartDaemon();
    ASSERT_TRUE(Attach(attacher)) << i << ": " << MessageOf(attacher);
    daemon_->Die();
    now_ns_ += 2 * shm::kHeartbeatFreshNs;
  }
  const client::Attachment* last = attacher.current();
  StartDaemon();
  ASSERT_TRUE(
      Until(attacher, [&] { return attacher.problem() == AttachProblem::kTooManyGenerations; }));
  EXPECT_EQ(attacher.current(), last);
}

}  // namespace
}  // namespace sluice::admin
