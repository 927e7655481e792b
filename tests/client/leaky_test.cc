// Leaky buckets: who comes too early is told when its turn is, over all processes and ways to
// check.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <string>
#include <vector>

#include "client/include/sluice.h"
#include "client/include/sluice.hpp"
#include "shm/clock.h"
#include "tests/client/served_client.h"
#include "tests/support/served_segments.h"

namespace sluice::test {
namespace {

using namespace std::chrono_literals;

constexpr uint64_t kMs = 1'000'000;

// Rates so low that no test is slow enough to see a token come back.
constexpr char kRules[] = R"(
rules:
  - {name: spaced, match: {route: /spaced}, key: [user], algorithm: leaky_bucket,
     limit: 1 per 10m, max_delay: 30m}
  - {name: roomy, match: {route: /roomy}, key: [user], algorithm: leaky_bucket,
     limit: 1 per 10m, burst: 3, max_delay: 20m}
  - {name: slower, match: {route: /both}, key: [user], algorithm: leaky_bucket,
     limit: 1 per 20m, max_delay: 1h}
  - {name: faster, match: {route: /both}, key: [tenant], algorithm: leaky_bucket,
     limit: 1 per 5m, max_delay: 1h}
  - {name: tried, match: {route: /tried}, key: [user], algorithm: leaky_bucket, shadow: true,
     limit: 1 per 10m, max_delay: 10m}
  - {name: quick, match: {route: /quick}, key: [user], algorithm: leaky_bucket,
     limit: 1000/s, max_delay: 1h}
)";

class LeakyTest : public ServedClient {
 protected:
  LeakyTest() : ServedClient(kRules) {}

  // The delays of `checks`, in whole tenths of `of`; -1: denied.
  template <class Check>
  static std::vector<int> Delays(int checks, std::chrono::minutes of, const Check& check) {
    std::vector<int> delays;
    for (int i = 0; i < checks; ++i) {
      const Decision d = check();
      // What has passed since the first check is far below a tenth.
      const auto tenths = (d.delay() * 10 + of / 2) / of;
      delays.push_back(d ? static_cast<int>(tenths) : -1);
    }
    return delays;
  }
};

TEST_F(LeakyTest, EachWaitsAnIntervalLongerUntilTheWaitIsTooLong) {
  const std::vector<int> want = {0, 10, 20, 30, -1, -1};
  EXPECT_EQ(Delays(6, 10min,
                   [&] {
                     return client_.check({{"route", "/spaced"}, {"user", "list"}});
                   }),
            want);
  auto handle = client_.bind({{"route", "/spaced"}, {"user", "handle"}});
  ASSERT_TRUE(handle);
  EXPECT_EQ(Delays(6, 10min, [&] { return handle->check(); }), want);
  auto rule = client_.bind_rule("spaced");
  ASSERT_TRUE(rule);
  EXPECT_EQ(Delays(6, 10min, [&] { return rule->check("rule"); }), want);
}

TEST_F(LeakyTest, ABurstPassesAtOnce) {
  EXPECT_EQ(Delays(6, 10min,
                   [&] {
                     return client_.check({{"route", "/roomy"}, {"user", "u"}});
                   }),
            (std::vector<int>{0, 0, 0, 10, 20, -1}));
}

TEST_F(LeakyTest, ACostWaitsForAllOfIt) {
  auto handle = client_.bind({{"route", "/roomy"}, {"user", "costly"}});
  ASSERT_TRUE(handle);
  EXPECT_EQ(handle->check(3).delay(), 0ns);
  const Decision second = handle->check(2);
  ASSERT_TRUE(second);
  EXPECT_NEAR(static_cast<double>(second.delay().count()), 20.0 * 60e9, 60e9);
  EXPECT_EQ(second.remaining(), 0u);
  const Decision denied = handle->check(1);
  ASSERT_FALSE(denied);
  EXPECT_EQ(denied.delay(), 0ns);
  ASSERT_TRUE(denied.retry_after());
  EXPECT_NEAR(static_cast<double>(denied.retry_after()->count()), 10.0 * 60e9, 60e9);
}

TEST_F(LeakyTest, RemainingCountsThoseThatWouldWait) {
  EXPECT_EQ(client_.check({{"route", "/spaced"}, {"user", "room"}}).remaining(), 3u);
  const std::string fields =
      client_.http_fields(client_.check({{"route", "/spaced"}, {"user", "room"}}));
  EXPECT_NE(fields.find("\"spaced\";q=4;w=2400"), std::string::npos) << fields;
  EXPECT_NE(fields.find("\"spaced\";r=2;"), std::string::npos) << fields;
}

TEST_F(LeakyTest, OfSeveralRulesTheLongestDelayCounts) {
  const auto check = [&] {
    return client_.check({{"route", "/both"}, {"user", "u"}, {"tenant", "t"}});
  };
  EXPECT_EQ(Delays(5, 20min, check), (std::vector<int>{0, 10, 20, 30, -1}));
  // The denied one has taken no place in the faster queue.
  const Decision other = client_.check({{"route", "/both"}, {"user", "v"}, {"tenant", "t"}});
  EXPECT_NEAR(static_cast<double>(other.delay().count()), 20.0 * 60e9, 60e9);
}

TEST_F(LeakyTest, AShadowRuleDelaysNothing) {
  EXPECT_EQ(Delays(4, 10min,
                   [&] {
                     return client_.check({{"route", "/tried"}, {"user", "u"}});
                   }),
            (std::vector<int>{0, 0, 0, 0}));
}

TEST_F(LeakyTest, ARefundGivesThePlaceBack) {
  auto handle = client_.bind({{"route", "/spaced"}, {"user", "refund"}});
  ASSERT_TRUE(handle);
  handle->check();
  Decision second = handle->check();
  ASSERT_EQ(client_.refund(second), 1);
  EXPECT_EQ(Delays(1, 10min, [&] { return handle->check(); }), (std::vector<int>{10}));
}

TEST_F(LeakyTest, ProcessesTakeTurns) {
  constexpr int kProcesses = 4;
  constexpr size_t kChecks = 200;
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  std::vector<pid_t> children;
  for (int p = 0; p < kProcesses; ++p) {
    const pid_t pid = fork();
    ASSERT_GE(pid, 0);
    if (pid == 0) {
      Client client({.runtime_dir = served_.dir().c_str()});
      if (!client.wait(5000ms)) _exit(1);
      auto handle = client.bind({{"route", "/quick"}, {"user", "shared"}});
      uint64_t turns[kChecks];
      for (uint64_t& turn : turns) {
        const Decision d = handle->check();
        if (!d) _exit(2);
        turn = d.raw().now_ns + d.raw().delay_ns;
      }
      for (const uint64_t turn : turns) {
        if (write(ends[1], &turn, sizeof turn) != sizeof turn) _exit(3);
      }
      _exit(0);
    }
    children.push_back(pid);
  }
  close(ends[1]);
  std::vector<uint64_t> turns;
  uint64_t turn = 0;
  while (read(ends[0], &turn, sizeof turn) == sizeof turn) turns.push_back(turn);
  close(ends[0]);
  for (const pid_t pid : children) {
    int status = 0;
    ASSERT_EQ(waitpid(pid, &status, 0), pid);
    EXPECT_EQ(status, 0);
  }
  ASSERT_EQ(turns.size(), kProcesses * kChecks);
  std::sort(turns.begin(), turns.end());
  // Also where one reads the clock and stands still: its turn is the word's, not its own.
  for (size_t i = 1; i < turns.size(); ++i) ASSERT_GE(turns[i], turns[i - 1] + kMs) << i;
}

TEST_F(LeakyTest, WaitTurnSleepsUntilTheTurn) {
  auto handle = client_.bind({{"route", "/quick"}, {"user", "sleeper"}});
  ASSERT_TRUE(handle);
  for (int i = 0; i < 30; ++i) handle->check();
  const Decision d = handle->check();
  ASSERT_TRUE(d);
  ASSERT_GT(d.delay(), 0ns);
  EXPECT_TRUE(d.wait_turn());
  EXPECT_GE(shm::MonotonicClock::PreciseNs(), d.raw().now_ns + d.raw().delay_ns);
  EXPECT_TRUE(d.wait_turn()) << "the turn has come";
  EXPECT_EQ(sluice_wait_turn(nullptr), SLUICE_E_ARGUMENT);
}

TEST_F(LeakyTest, ASignalEndsTheWait) {
  auto handle = client_.bind({{"route", "/spaced"}, {"user", "interrupted"}});
  ASSERT_TRUE(handle);
  handle->check();
  const Decision d = handle->check();
  ASSERT_TRUE(d);
  struct sigaction wake = {};
  wake.sa_handler = [](int) {};
  struct sigaction before;
  ASSERT_EQ(sigaction(SIGALRM, &wake, &before), 0);
  // Again and again: the first may come before the sleep begins.
  const itimerval soon = {.it_interval = {0, 20'000}, .it_value = {0, 20'000}};
  ASSERT_EQ(setitimer(ITIMER_REAL, &soon, nullptr), 0);
  EXPECT_FALSE(d.wait_turn());
  const itimerval off = {};
  setitimer(ITIMER_REAL, &off, nullptr);
  sigaction(SIGALRM, &before, nullptr);
}

TEST_F(LeakyTest, ADeniedRequestHasNoTurnToWaitFor) {
  auto handle = client_.bind({{"route", "/spaced"}, {"user", "denied"}});
  ASSERT_TRUE(handle);
  for (int i = 0; i < 4; ++i) handle->check();
  const Decision d = handle->check();
  ASSERT_FALSE(d);
  EXPECT_TRUE(d.wait_turn());
}

}  // namespace
}  // namespace sluice::test
