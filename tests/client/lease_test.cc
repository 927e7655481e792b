// Keys that several threads check at once: what a thread leases is charged before it is spent.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "client/include/sluice.hpp"
#include "client/lease.h"
#include "tests/support/served_segments.h"

namespace sluice::test {
namespace {

using namespace std::chrono_literals;
using client::kLeaseTokens;

constexpr int kThreads = 4;
constexpr int kChecksPerThread = 2'000'000;

// A burst that leaves room for the largest lease, and a rate that the threads outrun by far.
constexpr uint64_t kRate = 50'000;
constexpr uint64_t kBurst = 20'000;
constexpr char kRules[] =
    "rules:\n"
    "  - {name: hot, key: [hot], limit: 50000/s, burst: 20000}\n"
    "  - {name: free, key: [free], limit: 1000000000/s}\n"
    "  - {name: small, key: [small], limit: 1 per 1h, burst: 20}\n";

uint64_t NowNs() {
  timespec ts;
  clock_gettime(CLOCK_MONOTONIC, &ts);
  return static_cast<uint64_t>(ts.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(ts.tv_nsec);
}

class LeaseTest : public testing::Test {
 protected:
  LeaseTest() : served_(kRules), client_({.runtime_dir = served_.dir().c_str(), .label = "test"}) {}
  void SetUp() override {
    if (std::thread::hardware_concurrency() < 2) GTEST_SKIP() << "needs two CPUs";
    ASSERT_TRUE(client_.wait(5000ms));
  }

  // How many checks all threads were admitted.
  template <class Check>
  int64_t Hammer(const Check& check) {
    std::atomic<int64_t> admitted{0};
    std::vector<std::thread> threads;
    for (int t = 0; t < kThreads; ++t) {
      threads.emplace_back([&] {
        int64_t mine = 0;
        for (int i = 0; i < kChecksPerThread; ++i) mine += check() ? 1 : 0;
        admitted += mine;
      });
    }
    for (std::thread& thread : threads) thread.join();
    return admitted;
  }
  uint64_t leases() const {
    return served_.buckets().counters()[static_cast<size_t>(shm::Counter::kLeases)].load();
  }

  ServedSegments served_;
  Client client_;
};

// The most that threads may have charged and never spent, in a run of this length: each drops a
// lease only when its time is over.
int64_t MostDropped(uint64_t took_ns) {
  return static_cast<int64_t>(kThreads * kLeaseTokens * (1 + took_ns / client::kLeaseNs));
}

// On a busy machine threads may run one after the other and never meet.
constexpr int kRounds = 100;

TEST_F(LeaseTest, WhatThreadsSpendWasChargedAndLittleMore) {
  auto handle = client_.bind({{"free", "k"}});
  auto rule = client_.bind_rule("free");
  ASSERT_TRUE(handle);
  ASSERT_TRUE(rule);
  enum Way { kHandle, kKey, kList };
  for (const Way way : {kHandle, kKey, kList}) {
    const uint64_t leases_before = leases();
    const int64_t used_before = served_.TotalUse();
    const uint64_t begin_ns = NowNs();
    int64_t admitted = 0;
    for (int round = 0; round < kRounds && leases() < leases_before + 100; ++round) {
      admitted += Hammer([&] {
        if (way == kList) return client_.allow({{"free", "k"}});
        return way == kKey ? rule->allow("k") : handle->allow();
      });
    }
    const uint64_t took_ns = NowNs() - begin_ns;
    EXPECT_GE(leases(), leases_before + 100) << "threads that meet at a key lease from it";
    EXPECT_EQ(admitted % (int64_t{kThreads} * kChecksPerThread), 0) << "none was denied";
    const int64_t used = served_.TotalUse() - used_before;
    EXPECT_GE(used, admitted) << "nothing is spent that was not charged";
    EXPECT_LE(used, admitted + MostDropped(took_ns));
  }
}

TEST_F(LeaseTest, ThreadsTogetherStayWithinRateAndBurst) {
  auto handle = client_.bind({{"hot", "k"}});
  ASSERT_TRUE(handle);
  const uint64_t begin_ns = NowNs();
  const int64_t admitted = Hammer([&] { return handle->allow(); });
  const uint64_t took_ns = NowNs() - begin_ns;
  const auto most = static_cast<int64_t>(kBurst + kRate * took_ns / 1'000'000'000 + 1);
  EXPECT_LE(admitted, most);
  EXPECT_GE(admitted, static_cast<int64_t>(kBurst));
  EXPECT_GE(served_.TotalUse(), admitted);
  EXPECT_LE(served_.TotalUse(), admitted + MostDropped(took_ns));
}

// Each thread has a bucket of its own beside the one that all share, and soon none of it is left.
TEST_F(LeaseTest, ARequestThatAnotherRuleRefusesSpendsNothingOfALease) {
  std::atomic<int> threads{0};
  const uint64_t begin_ns = NowNs();
  const int64_t admitted = Hammer([&] {
    thread_local const std::string own = "own-" + std::to_string(threads++);
    // Every other check is of the shared bucket alone, so that it is leased from all the time.
    thread_local uint64_t checks = 0;
    if (++checks % 2 == 0) return !client_.allow({{"free", "k"}});
    return client_.allow({{"free", "k"}, {"small", own}});
  });
  const uint64_t took_ns = NowNs() - begin_ns;
  EXPECT_EQ(admitted, kThreads * 20);
  const int64_t alone = int64_t{kThreads} * kChecksPerThread / 2;
  EXPECT_GE(served_.TotalUse(), alone + 2 * admitted);
  EXPECT_LE(served_.TotalUse(), alone + 2 * admitted + MostDropped(took_ns));
}

// One sixteenth of a burst of 20 is one check: no lease.
TEST_F(LeaseTest, ASmallBurstIsNeverLeased) {
  auto handle = client_.bind({{"small", "k"}});
  ASSERT_TRUE(handle);
  EXPECT_EQ(Hammer([&] { return handle->allow(); }), 20);
  EXPECT_EQ(leases(), 0u);
  EXPECT_EQ(served_.TotalUse(), 20);
}

TEST_F(LeaseTest, AChildDoesNotSpendItsParentsLease) {
  auto handle = client_.bind({{"free", "k"}});
  ASSERT_TRUE(handle);
  enum : int { kRun, kPause, kPaused, kEnd };
  std::atomic<int> state{kRun};
  std::thread other([&] {  // whom this thread meets
    while (state != kEnd) {
      if (state == kRun) (void)handle->allow();
      int paused = kPause;
      state.compare_exchange_strong(paused, kPaused);
    }
  });
  int forked_under_lease = 0;
  for (int round = 0; round < 200 && forked_under_lease < 10; ++round) {
    state = kRun;
    const uint64_t before = leases();
    for (int i = 0; i < 1'000'000 && leases() < before + 10; ++i) (void)handle->allow();
    state = kPause;
    while (state != kPaused) std::this_thread::yield();
    const int64_t used = served_.TotalUse();
    (void)handle->allow();
    if (served_.TotalUse() != used) continue;  // no lease is left here
    ++forked_under_lease;
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      for (int i = 0; i < 10; ++i) (void)handle->allow();
      _exit(static_cast<int>(served_.TotalUse() - used));
    }
    int status = 0;
    waitpid(child, &status, 0);
    EXPECT_EQ(WEXITSTATUS(status), 10) << "each check of the child is charged by itself";
  }
  state = kEnd;
  other.join();
  EXPECT_GT(forked_under_lease, 0);
}

TEST_F(LeaseTest, AChangeOfTheRulesEndsALeaseAtOnce) {
  auto handle = client_.bind({{"free", "k"}});
  ASSERT_TRUE(handle);
  std::atomic<bool> stop{false};
  std::thread other([&] {
    while (!stop) (void)handle->allow();
  });
  for (int i = 0; i < 10'000'000 && leases() < 100; ++i) (void)handle->allow();
  stop = true;
  other.join();
  served_.Publish("rules:\n  - {name: free, key: [free], limit: 1 per 1h}\n");
  int admitted = 0;
  for (int i = 0; i < 100; ++i) admitted += handle->allow() ? 1 : 0;
  EXPECT_LE(admitted, 1);
}

}  // namespace
}  // namespace sluice::test
