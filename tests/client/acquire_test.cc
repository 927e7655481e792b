// Callers that wait for their turn under the limit: told in order, slept for, given up and given
// back, by every algorithm.
#include <gtest/gtest.h>
#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/time.h>
#include <unistd.h>

#include <algorithm>
#include <mutex>
#include <thread>
#include <vector>

#include "client/include/sluice.h"
#include "client/include/sluice.hpp"
#include "shm/clock.h"
#include "tests/client/served_client.h"

namespace sluice::test {
namespace {

using namespace std::chrono_literals;

constexpr uint64_t kMs = 1'000'000;
constexpr uint64_t kMinute = 60'000 * kMs;

// But for `quick`, `wide` and the windows so slow that no test sees a token come back.
constexpr char kRules[] = R"(
rules:
  - {name: slow, match: {route: /slow}, key: [user], limit: 1 per 10m, burst: 4}
  - {name: single, match: {route: /single}, key: [user], limit: 1 per 10m, burst: 1}
  - {name: queue, match: {route: /queue}, key: [user], limit: 1 per 10m, burst: 1, max_delay: 10m,
     algorithm: leaky_bucket}
  - {name: both-user, match: {route: /both}, key: [user], limit: 1 per 10m, burst: 4}
  - {name: both-tenant, match: {route: /both}, key: [tenant], limit: 1 per 20m, burst: 2}
  - {name: seen, match: {route: /seen}, key: [user], limit: 1 per 10m, burst: 1, shadow: true}
  - {name: spread, match: {route: /spread}, key: [user], limit: 1 per 10m, retry_spread: 8m}
  - {name: classed, match: {route: /classed}, key: [user], limit: 4 per 40m, burst: 4,
     priority: {classes: {high: 1, low: 0.5}}}
  - {name: quick, match: {route: /quick}, key: [user], limit: 100/s, burst: 1}
  - {name: wide, match: {route: /wide}, key: [user], limit: 10/s, burst: 1}
  - {name: fixed, match: {route: /fixed}, key: [user], limit: 2 per 1s, algorithm: fixed_window}
  - {name: log, match: {route: /log}, key: [user], limit: 2 per 1s, algorithm: sliding_log}
  - {name: day, match: {route: /day}, key: [user], limit: 2 per 1d, algorithm: fixed_window}
)";

class AcquireTest : public ServedClient {
 protected:
  AcquireTest() : ServedClient(kRules) {}
  ~AcquireTest() override { close(cancel_); }

  Decision Acquire(const char* route, std::chrono::nanoseconds max_wait, uint32_t cost = 1,
                   const char* user = "u") {
    return client_.acquire({{"route", route}, {"user", user}, {"tenant", "t"}}, max_wait, cost,
                           cancel_);
  }
  Decision Peek(const char* route) {
    return client_.peek({{"route", route}, {"user", "u"}, {"tenant", "t"}});
  }
  void Cancel() const {
    const uint64_t one = 1;
    ASSERT_EQ(write(cancel_, &one, sizeof one), ssize_t{sizeof one});
  }
  // Waits, without an end, until the bucket of `route` is at least so far ahead.
  void AwaitAhead(const char* route, uint64_t ahead_ns) {
    while (Peek(route).raw().reset_after_ns < ahead_ns) std::this_thread::sleep_for(1ms);
  }

  const int cancel_ = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
};

// A waiter of its own thread, cancelled by its own word.
class Waiter {
 public:
  Waiter(Client& client, const char* route, std::chrono::nanoseconds max_wait)
      : thread_([this, &client, route, max_wait] {
          decision_ = client.acquire({{"route", route}, {"user", "u"}, {"tenant", "t"}}, max_wait,
                                     1, cancel_);
        }) {}
  Decision Cancel() {
    const uint64_t one = 1;
    EXPECT_EQ(write(cancel_, &one, sizeof one), ssize_t{sizeof one});
    thread_.join();
    close(cancel_);
    return decision_;
  }

 private:
  const int cancel_ = eventfd(0, EFD_CLOEXEC);
  Decision decision_;
  std::thread thread_;
};

uint64_t TurnNs(const Decision& d) { return d.raw().now_ns + d.raw().delay_ns; }

TEST_F(AcquireTest, EachIsToldTheNextTurnAndSleepsUntilThen) {
  uint64_t last_ns = 0;
  for (int i = 0; i < 6; ++i) {
    const Decision d = Acquire("/quick", 10s);
    ASSERT_TRUE(d);
    EXPECT_GE(shm::MonotonicClock::PreciseNs(), TurnNs(d));
    EXPECT_GE(TurnNs(d), last_ns + 10 * kMs);
    EXPECT_LE(d.raw().delay_ns, 10 * kMs) << "the one before it has gone";
    last_ns = TurnNs(d);
  }
  EXPECT_EQ(served_.TotalUse(), 6);
}

TEST_F(AcquireTest, ManyThreadsGetTurnsApartAndNoneIsLost) {
  // So many that the last come beyond what is told in advance: a second here.
  constexpr int kThreads = 16;
  std::vector<std::thread> threads;
  std::vector<uint64_t> turns;
  std::mutex mutex;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&] {
      const Decision d = client_.acquire({{"route", "/wide"}, {"user", "u"}}, 1h);
      const std::lock_guard lock(mutex);
      ASSERT_TRUE(d);
      EXPECT_LE(d.raw().delay_ns, 1'000 * kMs);
      turns.push_back(TurnNs(d));
    });
  }
  for (std::thread& thread : threads) thread.join();
  std::sort(turns.begin(), turns.end());
  for (size_t i = 1; i < turns.size(); ++i) EXPECT_GE(turns[i], turns[i - 1] + 100 * kMs) << i;
  EXPECT_EQ(served_.TotalUse(), kThreads);
}

TEST_F(AcquireTest, WhatCannotBeInTimeIsDeniedAtOnceAndSpendsNothing) {
  EXPECT_EQ(Allowed(4, [&] { return Acquire("/slow", 0ns); }), 4) << "a burst waits for nothing";
  const Decision d = Acquire("/slow", 9min);
  EXPECT_FALSE(d);
  EXPECT_EQ(d.error(), 0);
  ASSERT_TRUE(d.retry_after());
  EXPECT_NEAR(static_cast<double>(d.raw().retry_after_ns), 10.0 * kMinute, 1.0 * kMinute);
  EXPECT_FALSE(
      client_.acquire({{"route", "/slow"}, {"user", "u"}}, std::chrono::steady_clock::now() - 1h));
  EXPECT_FALSE(client_.acquire({{"route", "/slow"}, {"user", "u"}},
                               std::chrono::steady_clock::time_point::min()));
  EXPECT_FALSE(Acquire("/slow", 29min, 3));
  EXPECT_FALSE(Acquire("/slow", 24h, 5))
      << "more than the burst never fits, however long one waits";
  EXPECT_EQ(Acquire("/slow", 24h, 5).raw().retry_after_ns, SLUICE_NEVER);
  EXPECT_EQ(served_.TotalUse(), 4);
}

TEST_F(AcquireTest, WhoWaitsIsNotOvertakenByWhoDoesNot) {
  ASSERT_TRUE(Acquire("/single", 0ns));
  Waiter waiter(client_, "/single", 15min);
  AwaitAhead("/single", 15 * kMinute);
  const Decision d = client_.check({{"route", "/single"}, {"user", "u"}});
  EXPECT_FALSE(d);
  EXPECT_NEAR(static_cast<double>(d.raw().retry_after_ns), 20.0 * kMinute, 1.0 * kMinute);
  EXPECT_EQ(waiter.Cancel().error(), SLUICE_E_CANCELLED);
}

TEST_F(AcquireTest, ACancelledTurnIsGivenBackToWhoComesNext) {
  ASSERT_TRUE(Acquire("/single", 0ns));
  Waiter waiter(client_, "/single", 15min);
  AwaitAhead("/single", 15 * kMinute);
  EXPECT_EQ(served_.TotalUse(), 2);
  const Decision d = waiter.Cancel();
  EXPECT_FALSE(d);
  EXPECT_EQ(d.error(), SLUICE_E_CANCELLED);
  EXPECT_EQ(served_.TotalUse(), 1);
  EXPECT_NEAR(static_cast<double>(Peek("/single").raw().retry_after_ns), 10.0 * kMinute,
              1.0 * kMinute);
}

TEST_F(AcquireTest, ATurnThatOthersStandBehindPassesUnused) {
  // A burst of 4 lets turns be told for 40 minutes.
  ASSERT_TRUE(Acquire("/slow", 0ns, 4));
  Waiter first(client_, "/slow", 15min);
  AwaitAhead("/slow", 45 * kMinute);
  Waiter second(client_, "/slow", 25min);
  AwaitAhead("/slow", 55 * kMinute);
  EXPECT_EQ(first.Cancel().error(), SLUICE_E_CANCELLED);
  EXPECT_EQ(served_.TotalUse(), 6) << "what is not given back stays used";
  EXPECT_NEAR(static_cast<double>(Peek("/slow").raw().retry_after_ns), 30.0 * kMinute,
              1.0 * kMinute)
      << "not the second's turn once more";
  EXPECT_EQ(second.Cancel().error(), SLUICE_E_CANCELLED);
  EXPECT_EQ(served_.TotalUse(), 5);
  EXPECT_NEAR(static_cast<double>(Peek("/slow").raw().retry_after_ns), 20.0 * kMinute,
              1.0 * kMinute);
}

TEST_F(AcquireTest, ACancelledCallerSpendsNothingFromTheStart) {
  Cancel();
  const Decision d = Acquire("/single", 0ns);
  EXPECT_FALSE(d);
  EXPECT_EQ(d.error(), SLUICE_E_CANCELLED);
  EXPECT_EQ(served_.TotalUse(), 0);
}

TEST_F(AcquireTest, ASignalEndsTheWait) {
  ASSERT_TRUE(Acquire("/single", 0ns));
  struct sigaction wake = {};
  wake.sa_handler = [](int) {};
  struct sigaction before;
  ASSERT_EQ(sigaction(SIGALRM, &wake, &before), 0);
  // Again and again: the first may come before the sleep begins.
  const itimerval soon = {.it_interval = {0, 20'000}, .it_value = {0, 20'000}};
  ASSERT_EQ(setitimer(ITIMER_REAL, &soon, nullptr), 0);
  for (const int fd : {-1, cancel_}) {
    const Decision d = client_.acquire({{"route", "/single"}, {"user", "u"}}, 15min, 1, fd);
    EXPECT_EQ(d.error(), SLUICE_E_CANCELLED);
    EXPECT_FALSE(d);
  }
  EXPECT_EQ(client_.acquire({{"route", "/day"}, {"user", "u"}}, 48h, 2).error(), 0);
  EXPECT_EQ(client_.acquire({{"route", "/day"}, {"user", "u"}}, 48h).error(), SLUICE_E_CANCELLED);
  const itimerval off = {};
  setitimer(ITIMER_REAL, &off, nullptr);
  sigaction(SIGALRM, &before, nullptr);
  EXPECT_EQ(served_.TotalUse(), 3) << "the one token that was there, and the window's two";
}

TEST_F(AcquireTest, SeveralRulesAdmitTogetherOrNotAtAll) {
  ASSERT_TRUE(Acquire("/both", 0ns, 2));
  EXPECT_EQ(Peek("/both").raw().retry_after_ns / kMinute, 19u) << "the tenant's";
  // The user's turn would be now, the tenant's comes too late.
  EXPECT_FALSE(Acquire("/both", 15min));
  EXPECT_EQ(served_.TotalUse(), 4);
  Waiter waiter(client_, "/both", 25min);
  while (served_.TotalUse() < 6) std::this_thread::sleep_for(1ms);
  EXPECT_EQ(waiter.Cancel().error(), SLUICE_E_CANCELLED);
  EXPECT_EQ(served_.TotalUse(), 4) << "given back in both";
}

TEST_F(AcquireTest, TurnsAreToldNoFartherThanDebtMayStand) {
  // A burst of one: ten minutes of debt, whoever waits. The second sleeps until his can be told.
  ASSERT_TRUE(Acquire("/single", 0ns));
  Waiter first(client_, "/single", 24h);
  AwaitAhead("/single", 15 * kMinute);
  Waiter second(client_, "/single", 24h);
  std::this_thread::sleep_for(20ms);
  EXPECT_EQ(served_.TotalUse(), 2) << "the second has taken nothing";
  EXPECT_LE(Peek("/single").raw().reset_after_ns, 20 * kMinute);
  EXPECT_EQ(second.Cancel().error(), SLUICE_E_CANCELLED);
  EXPECT_EQ(first.Cancel().error(), SLUICE_E_CANCELLED);
  EXPECT_EQ(served_.TotalUse(), 1);
}

TEST_F(AcquireTest, AQueueOfTheRuleIsMadeLongerByThePatienceOfTheCaller) {
  ASSERT_TRUE(client_.check({{"route", "/queue"}, {"user", "u"}}));
  ASSERT_TRUE(client_.check({{"route", "/queue"}, {"user", "u"}}));
  ASSERT_FALSE(client_.check({{"route", "/queue"}, {"user", "u"}}));
  Waiter waiter(client_, "/queue", 25min);
  AwaitAhead("/queue", 25 * kMinute);
  EXPECT_EQ(waiter.Cancel().error(), SLUICE_E_CANCELLED);
}

TEST_F(AcquireTest, ADeadlineBeforeTheEndOfTheRulesQueueIsKept) {
  ASSERT_TRUE(client_.check({{"route", "/queue"}, {"user", "u"}}));
  const Decision late = Acquire("/queue", 9min);
  EXPECT_FALSE(late) << "its turn is in ten minutes";
  EXPECT_LE(late.raw().retry_after_ns, kMinute);
  EXPECT_GT(late.raw().retry_after_ns, kMinute / 2) << "when nine minutes are enough";
  EXPECT_FALSE(Acquire("/queue", 0ns));
  EXPECT_EQ(served_.TotalUse(), 1);
  Waiter waiter(client_, "/queue", 11min);
  AwaitAhead("/queue", 15 * kMinute);
  EXPECT_EQ(waiter.Cancel().error(), SLUICE_E_CANCELLED);
  const Decision told = client_.check({{"route", "/queue"}, {"user", "u"}});
  EXPECT_TRUE(told) << "who waits as the rule says may be told that turn";
  EXPECT_GT(told.raw().delay_ns, 9 * kMinute);
}

TEST_F(AcquireTest, AClassThatMayUseLessWaitsLonger) {
  const auto acquire = [&](const char* name, std::chrono::nanoseconds max_wait) {
    return client_.acquire({{"route", "/classed"}, {"user", "u"}, {"class", name}}, max_wait, 1);
  };
  EXPECT_EQ(Allowed(4, [&] { return acquire("low", 0ns); }), 2);
  EXPECT_FALSE(acquire("low", 9min));
  EXPECT_TRUE(acquire("high", 0ns));
}

TEST_F(AcquireTest, AShadowRuleMakesNobodyWait) {
  for (int i = 0; i < 3; ++i) {
    const Decision d = Acquire("/seen", 24h);
    EXPECT_TRUE(d);
    EXPECT_EQ(d.delay(), 0ns);
  }
}

TEST_F(AcquireTest, WhoWaitsTakesNoPlaceAmongThoseWhoAreToRetry) {
  ASSERT_TRUE(Acquire("/spread", 0ns));
  for (int i = 0; i < 3; ++i) {
    EXPECT_NEAR(static_cast<double>(Acquire("/spread", 1min).raw().retry_after_ns), 10.0 * kMinute,
                1.0 * kMinute);
  }
}

TEST_F(AcquireTest, WindowsAndLogsAreTriedAgainWhenTokensComeBack) {
  for (const char* route : {"/fixed", "/log"}) {
    uint64_t third_ns = 0;
    uint64_t first_ns = 0;
    for (int i = 0; i < 3; ++i) {
      const Decision d = Acquire(route, 1h);
      ASSERT_TRUE(d) << route;
      EXPECT_EQ(d.delay(), 0ns);
      (i == 0 ? first_ns : third_ns) = d.raw().now_ns;
    }
    // A window ends where a step of its clock does.
    EXPECT_GE(third_ns - first_ns, 980 * kMs) << route;
    ASSERT_TRUE(Acquire(route, 1h));
    EXPECT_EQ(Acquire(route, 1h, 3).raw().retry_after_ns, SLUICE_NEVER) << route;
  }
  ASSERT_TRUE(Acquire("/day", 0ns, 2));
  EXPECT_FALSE(Acquire("/day", 1h)) << "at once";
}

TEST_F(AcquireTest, WrongArgumentsAreSaid) {
  const sluice_descriptor_t d = Descriptor("user", "u");
  EXPECT_EQ(sluice_acquire(nullptr, &d, 1, 1, 0, -1, nullptr), SLUICE_E_ARGUMENT);
  EXPECT_EQ(sluice_acquire(client_.raw(), nullptr, 1, 1, 0, -1, nullptr), SLUICE_E_ARGUMENT);
  EXPECT_EQ(sluice_acquire(client_.raw(), &d, 1, 0, 0, -1, nullptr), SLUICE_E_ARGUMENT);
  EXPECT_EQ(sluice_acquire(client_.raw(), &d, 1, SLUICE_MAX_COST + 1, 0, -1, nullptr),
            SLUICE_E_ARGUMENT);
  EXPECT_EQ(sluice_acquire(client_.raw(), &d, 1, 1, 0, 1'000'000, nullptr), SLUICE_E_ARGUMENT);
  EXPECT_EQ(sluice_acquire(client_.raw(), &d, 1, 1, 0, -1, nullptr), 1) << "no rule matches";
  Client nobody({.default_allowed = false, .runtime_dir = "/nonexistent"});
  EXPECT_EQ(nobody.acquire({{"user", "u"}}, 24h).raw().source, SLUICE_SOURCE_DEFAULT);
}

constexpr char kDegradedRules[] = R"(
redis: {addresses: "h:1"}
rules:
  - {name: open, match: {route: /open}, key: [user], limit: 1 per 10m, burst: 1,
     when_degraded: {mode: open}}
  - {name: closed, match: {route: /closed}, key: [user], limit: 1000/s,
     when_degraded: {mode: closed}}
)";

class AcquireDegradedTest : public ServedClient {
 protected:
  AcquireDegradedTest() : ServedClient(kDegradedRules, {.reconciling = true}) {}
  void SetAll(shm::ShardMode mode) {
    for (uint32_t i = 0; i < 16; ++i) served_.control().SetShard(i, mode, 1);
  }
};

TEST_F(AcquireDegradedTest, InAnEmergencyNobodyWaitsWhereAllIsOpenAndAllDoWhereAllIsClosed) {
  SetAll(shm::ShardMode::kEmergency);
  for (int i = 0; i < 3; ++i) {
    const Decision d = client_.acquire({{"route", "/open"}, {"user", "u"}}, 24h);
    EXPECT_TRUE(d);
    EXPECT_EQ(d.delay(), 0ns);
  }
  EXPECT_FALSE(client_.acquire({{"route", "/closed"}, {"user", "u"}}, 10ms));
  std::thread mend([this] {
    std::this_thread::sleep_for(50ms);
    SetAll(shm::ShardMode::kHealthy);
  });
  EXPECT_TRUE(client_.acquire({{"route", "/closed"}, {"user", "u"}}, 1h));
  mend.join();
}

}  // namespace
}  // namespace sluice::test
