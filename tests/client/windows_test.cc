// Windows through every way to check, over processes, and with processes killed in the middle.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "client/include/sluice.h"
#include "client/include/sluice.hpp"
#include "shm/window.h"
#include "tests/client/served_client.h"
#include "tests/support/served_segments.h"

namespace sluice::test {
namespace {

using namespace std::chrono_literals;

// Periods so long that no test is slow enough to see one end.
constexpr char kRules[] = R"(
rules:
  - {name: fixed, match: {route: /fixed}, key: [user], algorithm: fixed_window, limit: 5 per 10m}
  - {name: sliding, match: {route: /sliding}, key: [user], algorithm: sliding_window,
     limit: 5 per 10m}
  - {name: costly, match: {route: /costly}, key: [user], algorithm: sliding_window, cost: 2,
     limit: 9 per 10m}
  - {name: large, match: {route: /large}, key: [user], algorithm: fixed_window,
     limit: 1000000000 per 10m}
  - {name: crowd, match: {route: /crowd}, key: [user], algorithm: fixed_window,
     limit: 20000 per 10m}
  - {name: flow, match: {route: /crowd-slides}, key: [user], algorithm: sliding_window,
     limit: 5000000 per 10m}
  - {name: second, match: {route: /second}, key: [user], algorithm: sliding_window,
     limit: 1000/s}
  - {name: one, match: {route: /both}, key: [user], algorithm: fixed_window, limit: 2 per 10m}
  - {name: two, match: {route: /both}, key: [tenant], algorithm: sliding_window,
     limit: 3 per 20m}
  - {name: three, match: {route: /both}, key: [tenant], limit: 100 per 10m}
  - {name: tried, match: {route: /tried}, key: [user], algorithm: fixed_window, shadow: true,
     limit: 1 per 10m}
)";

class ClientWindowsTest : public ServedClient {
 protected:
  ClientWindowsTest() : ServedClient(kRules) {}

  // As a daemon would take them.
  uint64_t Denials() {
    uint64_t denials = 0;
    for (uint32_t i = 0; i < served_.buckets().capacity(); ++i) {
      denials += shm::denied::Count(served_.buckets().denied()[i].load());
    }
    return denials;
  }
};

TEST_F(ClientWindowsTest, EveryWayToCheckCountsInOneWindow) {
  for (const char* route : {"/fixed", "/sliding"}) {
    const std::string name = std::string(route).substr(1);
    auto handle = client_.bind({{"route", route}, {"user", "u"}});
    auto rule = client_.bind_rule(name.c_str());
    ASSERT_TRUE(handle && rule);
    EXPECT_TRUE(client_.check({{"route", route}, {"user", "u"}}));
    EXPECT_TRUE(handle->check());
    EXPECT_TRUE(rule->check("u"));
    EXPECT_TRUE(handle->allow());
    EXPECT_TRUE(client_.check({{"route", route}, {"user", "u"}}));
    EXPECT_FALSE(handle->allow());
    EXPECT_FALSE(rule->check("u"));
    EXPECT_FALSE(client_.check({{"route", route}, {"user", "u"}}));
    EXPECT_TRUE(client_.check({{"route", route}, {"user", "v"}}));
  }
  EXPECT_EQ(served_.TotalUse(), 12);
}

TEST_F(ClientWindowsTest, UseAndDenialsAreCountedOnceEach) {
  int64_t used = 0;
  uint64_t denied = 0;
  for (const auto& [name, route] :
       {std::pair{std::string("fixed"), "/fixed"}, {"sliding", "/sliding"}}) {
    Handle handle = *client_.bind({{"route", route}, {"user", "by handle"}});
    Rule rule = *client_.bind_rule(name.c_str());
    EXPECT_EQ(Allowed(9, [&] { return handle.allow(); }), 5);
    EXPECT_EQ(Allowed(9, [&] { return rule.allow("by key"); }), 5);
    used += 10;
    denied += 8;
    std::this_thread::sleep_for(5ms);
    EXPECT_TRUE(rule.allow("another, at which tallies of others are handed over"));
    EXPECT_EQ(served_.TotalUse(), ++used) << name;
    EXPECT_EQ(Denials(), denied) << name;
  }
}

TEST_F(ClientWindowsTest, TheAnswerTellsWhatIsLeftAndWhenThereIsMore) {
  const Decision fixed = client_.check({{"route", "/fixed"}, {"user", "told"}}, 3);
  EXPECT_EQ(fixed.remaining(), 2u);
  EXPECT_EQ(fixed.limit(), 5u);
  const Decision denied = client_.check({{"route", "/fixed"}, {"user", "told"}}, 3);
  ASSERT_FALSE(denied);
  ASSERT_TRUE(denied.retry_after());
  EXPECT_NEAR(static_cast<double>(denied.retry_after()->count()), 600e9, 5e9);
  const Decision never = client_.check({{"route", "/fixed"}, {"user", "told"}}, 6);
  EXPECT_FALSE(never.retry_after());
  // Two of 5 more, when 3 / 5 of the window before have passed out of sight.
  client_.check({{"route", "/sliding"}, {"user", "told"}}, 5);
  const Decision slides = client_.check({{"route", "/sliding"}, {"user", "told"}}, 2);
  ASSERT_FALSE(slides);
  EXPECT_NEAR(static_cast<double>(slides.retry_after()->count()), 600e9 + 240e9, 5e9);
  const std::string fields =
      client_.http_fields(client_.check({{"route", "/sliding"}, {"user", "fields"}}));
  EXPECT_NE(fields.find("\"sliding\";q=5;w=600"), std::string::npos) << fields;
  EXPECT_NE(fields.find("\"sliding\";r=4;"), std::string::npos) << fields;
}

TEST_F(ClientWindowsTest, CostsCountWholeOrNotAtAll) { ExpectCostsCountWholeOrNotAtAll(); }

TEST_F(ClientWindowsTest, ARequestOverSeveralRulesSpendsNothingWhereOneSaysNo) {
  ExpectNothingSpentWhereOneSaysNo();
}

TEST_F(ClientWindowsTest, ARefundIsThereToBeSpentAgain) {
  for (const char* route : {"/fixed", "/sliding", "/large"}) {
    auto handle = client_.bind({{"route", route}, {"user", "refund"}});
    ASSERT_TRUE(handle);
    const uint32_t whole = std::string(route) == "/large" ? 1'000'000'000 : 5;
    Decision d = handle->check(whole);
    ASSERT_TRUE(d);
    EXPECT_FALSE(handle->check(1));
    EXPECT_EQ(client_.refund(d), 1);
    EXPECT_EQ(client_.refund(d), 0);
    EXPECT_TRUE(handle->check(whole / 256 * 255 + 1));
  }
}

TEST_F(ClientWindowsTest, AShadowRuleCountsAndDeniesNothing) {
  EXPECT_EQ(Allowed(4, [&] { return client_.check({{"route", "/tried"}, {"user", "u"}}); }), 4);
  EXPECT_EQ(served_.TotalUse(), 1);
}

TEST_F(ClientWindowsTest, AWindowEndsAndTheNextBegins) {
  auto handle = client_.bind({{"route", "/second"}, {"user", "u"}});
  ASSERT_TRUE(handle);
  EXPECT_TRUE(handle->check(1000));
  const Decision denied = handle->check(500);
  ASSERT_FALSE(denied);
  while (shm::MonotonicClock::PreciseNs() < denied.raw().now_ns + denied.raw().retry_after_ns) {
    usleep(1000);
  }
  EXPECT_TRUE(handle->check(500)) << "then, and not later";
}

TEST(DegradedWindowsTest, EachWindowFollowsItsOwnWordInAnEmergency) {
  for (const char* const algorithm : {"fixed_window", "sliding_window"}) {
    std::string rules = "rules:\n";
    for (const auto& [name, mode] :
         {std::pair("open", "{mode: open}"), std::pair("closed", "{mode: closed}"),
          std::pair("quarter", "{mode: degrade, factor: 0.25}")}) {
      rules.append("  - {name: ").append(name).append(", match: {route: ").append(name);
      rules.append("}, key: [user], limit: 40 per 10m, algorithm: ").append(algorithm);
      rules.append(", when_degraded: ").append(mode).append("}\n");
    }
    ServedSegments served(rules, {.reconciling = true});
    Client client({.runtime_dir = served.dir().c_str()});
    ASSERT_TRUE(client.wait(5000ms));
    const auto set_all = [&served](shm::ShardMode mode) {
      for (uint32_t i = 0; i < 16; ++i) served.control().SetShard(i, mode, 1);
    };
    const auto admitted = [&client](const char* route) {
      int n = 0;
      for (int i = 0; i < 100; ++i) n += client.allow({{"route", route}, {"user", "u"}}) ? 1 : 0;
      return n;
    };
    set_all(shm::ShardMode::kEmergency);
    EXPECT_EQ(admitted("open"), 100);
    EXPECT_EQ(admitted("closed"), 0);
    EXPECT_EQ(admitted("quarter"), 10);
    EXPECT_EQ(served.TotalUse(), 110);
    set_all(shm::ShardMode::kHealthy);
    EXPECT_EQ(admitted("open"), 0) << "what was let through is held against the key afterwards";
    EXPECT_EQ(admitted("closed"), 40);
  }
}

// Counts what each process was admitted, in memory that outlives them.
struct Shared {
  std::atomic<uint64_t> admitted{0};
};

// Processes that check one bucket until they are denied often; with `kills`, some are killed at any
// instruction and others take their place.
uint64_t Crowd(const std::string& dir, const char* route, uint32_t cost, int kills) {
  auto* const shared = static_cast<Shared*>(
      mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  new (shared) Shared;
  const auto start = [&] {
    const pid_t pid = fork();
    if (pid != 0) return pid;
    Client client({.runtime_dir = dir.c_str()});
    if (!client.wait(5000ms)) _exit(1);
    auto handle = client.bind({{"route", route}, {"user", "shared"}});
    for (int denied = 0; denied < 200;) {
      // A kill between the two counts one less, never one more.
      if (handle->check(cost)) {
        shared->admitted.fetch_add(cost);
      } else {
        ++denied;
      }
    }
    _exit(0);
  };
  std::vector<pid_t> children;
  for (int i = 0; i < 4; ++i) children.push_back(start());
  std::mt19937_64 random(5);
  for (int i = 0; i < kills; ++i) {
    usleep(static_cast<useconds_t>(random() % 3000));
    pid_t& victim = children[random() % children.size()];
    kill(victim, SIGKILL);
    waitpid(victim, nullptr, 0);
    victim = start();
  }
  for (const pid_t pid : children) waitpid(pid, nullptr, 0);
  const uint64_t admitted = shared->admitted;
  munmap(shared, sizeof(Shared));
  return admitted;
}

TEST_F(ClientWindowsTest, ProcessesShareOneWindow) {
  EXPECT_EQ(Crowd(served_.dir(), "/crowd", 1, 0), 20'000u);
  const uint64_t slides = Crowd(served_.dir(), "/crowd-slides", 100, 0);
  EXPECT_LE(slides, 5'000'000u);
  EXPECT_GE(slides, 4'995'000u) << "a part of a unit is lost where two pay from a purse at once";
}

TEST_F(ClientWindowsTest, KilledProcessesLeaveNoTokenTwice) {
  const uint64_t admitted = Crowd(served_.dir(), "/crowd-slides", 100, 60);
  EXPECT_LE(admitted, 5'000'000u);
  EXPECT_GE(admitted + 60 * 100, 4'995'000u) << "a kill loses what it was about to tell";
}

// 256 tokens to a unit: what is paid in whole units is used by the token, by all processes.
TEST_F(ClientWindowsTest, TheLargestLimitsAreUsedUpByOddCosts) {
  const uint64_t admitted = Crowd(served_.dir(), "/large", 99'999, 0);
  EXPECT_LE(admitted, 1'000'000'000u);
  EXPECT_GE(admitted, 1'000'000'000u - 99'999 - 4 * 256);
}

}  // namespace
}  // namespace sluice::test
