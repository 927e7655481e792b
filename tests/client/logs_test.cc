// Sliding logs through every way to check, over processes, and with processes killed in the middle.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "client/include/sluice.h"
#include "client/include/sluice.hpp"
#include "shm/clock.h"
#include "shm/layout.h"
#include "tests/client/served_client.h"
#include "tests/support/served_segments.h"

namespace sluice::test {
namespace {

using namespace std::chrono_literals;

// Periods so long that no test is slow enough to see one end, but for `short`.
constexpr char kRules[] = R"(
rules:
  - {name: log, match: {route: /log}, key: [user], algorithm: sliding_log, limit: 5 per 10m}
  - {name: costly, match: {route: /costly}, key: [user], algorithm: sliding_log, cost: 2,
     limit: 9 per 10m}
  - {name: crowd, match: {route: /crowd}, key: [user], algorithm: sliding_log, limit: 4000 per 10m}
  - {name: short, match: {route: /short}, key: [user], algorithm: sliding_log, limit: 20 per 20ms}
  - {name: one, match: {route: /both}, key: [user], algorithm: sliding_log, limit: 2 per 10m}
  - {name: two, match: {route: /both}, key: [tenant], algorithm: sliding_log, limit: 3 per 20m}
  - {name: three, match: {route: /both}, key: [tenant], limit: 100 per 10m}
  - {name: tried, match: {route: /tried}, key: [user], algorithm: sliding_log, shadow: true,
     limit: 1 per 10m}
  - name: tiered
    match: {route: /tiered}
    key: [user]
    algorithm: sliding_log
    limit: 2 per 10m
    tiers: {paid: {limit: 7 per 10m}}
)";

class ClientLogsTest : public ServedClient {
 protected:
  ClientLogsTest() : ServedClient(kRules) {}
};

TEST_F(ClientLogsTest, EveryWayToCheckCountsInOneLog) {
  auto handle = client_.bind({{"route", "/log"}, {"user", "u"}});
  auto rule = client_.bind_rule("log");
  ASSERT_TRUE(handle && rule);
  EXPECT_TRUE(client_.check({{"route", "/log"}, {"user", "u"}}));
  EXPECT_TRUE(handle->check());
  EXPECT_TRUE(rule->check("u"));
  EXPECT_TRUE(handle->allow());
  EXPECT_TRUE(client_.allow({{"route", "/log"}, {"user", "u"}}));
  EXPECT_FALSE(handle->allow());
  EXPECT_FALSE(rule->check("u"));
  EXPECT_FALSE(client_.check({{"route", "/log"}, {"user", "u"}}));
  EXPECT_TRUE(client_.check({{"route", "/log"}, {"user", "v"}}));
  const sluice_key_t keys[] = {{"u", 1}, {"v", 1}, {"w", 1}};
  int results[3];
  sluice_rule_t* bound = nullptr;
  sluice_t* plain = nullptr;
  const sluice_options_t options = {sizeof options, 1, served_.dir().c_str(), nullptr};
  ASSERT_EQ(sluice_open(&options, &plain), 0);
  ASSERT_EQ(sluice_wait(plain, 5000), 1);
  ASSERT_EQ(sluice_rule_bind(plain, "log", &bound), 0);
  EXPECT_EQ(sluice_rule_check_many(bound, keys, 3, 1, results, nullptr), 2);
  EXPECT_EQ(results[0], 0);
  sluice_rule_free(bound);
  sluice_close(plain);
  EXPECT_EQ(served_.TotalUse(), 8);
}

TEST_F(ClientLogsTest, TheAnswerTellsWhatIsLeftAndWhenThereIsMore) {
  const Decision first = client_.check({{"route", "/log"}, {"user", "told"}}, 3);
  EXPECT_EQ(first.remaining(), 2u);
  EXPECT_EQ(first.limit(), 5u);
  EXPECT_NEAR(static_cast<double>(first.raw().reset_after_ns), 600e9, 1e4);
  const Decision denied = client_.check({{"route", "/log"}, {"user", "told"}}, 3);
  ASSERT_FALSE(denied);
  EXPECT_EQ(denied.remaining(), 2u);
  const uint64_t free_ns = denied.raw().now_ns + denied.raw().retry_after_ns;
  EXPECT_GE(free_ns, first.raw().now_ns + 600'000'000'000);
  EXPECT_LE(free_ns, first.raw().now_ns + 600'000'002'000);
  EXPECT_FALSE(client_.check({{"route", "/log"}, {"user", "told"}}, 6).retry_after());
  const std::string fields =
      client_.http_fields(client_.check({{"route", "/log"}, {"user", "fields"}}));
  EXPECT_NE(fields.find("\"log\";q=5;w=600"), std::string::npos) << fields;
  EXPECT_NE(fields.find("\"log\";r=4;t=60"), std::string::npos) << fields;
}

TEST_F(ClientLogsTest, CostsCountWholeOrNotAtAll) { ExpectCostsCountWholeOrNotAtAll(); }

TEST_F(ClientLogsTest, ARequestOverSeveralRulesSpendsNothingWhereOneSaysNo) {
  ExpectNothingSpentWhereOneSaysNo();
}

TEST_F(ClientLogsTest, ARefundIsThereToBeSpentAgain) {
  auto handle = client_.bind({{"route", "/log"}, {"user", "refund"}});
  ASSERT_TRUE(handle);
  Decision d = handle->check(4);
  ASSERT_TRUE(d);
  EXPECT_FALSE(handle->check(2));
  EXPECT_EQ(client_.refund(d), 1);
  EXPECT_EQ(client_.refund(d), 0);
  EXPECT_TRUE(handle->check(5));
  EXPECT_EQ(served_.TotalUse(), 5);
}

TEST_F(ClientLogsTest, AReservationIsSettledToTheToken) {
  sluice_t* plain = nullptr;
  const sluice_options_t options = {sizeof options, 1, served_.dir().c_str(), nullptr};
  ASSERT_EQ(sluice_open(&options, &plain), 0);
  ASSERT_EQ(sluice_wait(plain, 5000), 1);
  for (const auto& [user, estimate, actual] : {std::tuple("less", 4u, 1u), {"more", 1u, 3u}}) {
    const sluice_descriptor_t request[] = {{"route", 5, "/log", 4}, {"user", 4, user, 4}};
    sluice_reservation_t r;
    ASSERT_EQ(sluice_reserve(plain, request, 2, estimate, 1'000'000'000, &r), 1);
    EXPECT_EQ(sluice_settle(plain, &r, actual), 1);
    EXPECT_EQ(sluice_check(plain, request, 2, 5 - actual, nullptr), 1) << user;
    EXPECT_EQ(sluice_check(plain, request, 2, 1, nullptr), 0) << user;
  }
  sluice_close(plain);
}

TEST_F(ClientLogsTest, AShadowRuleCountsAndDeniesNothing) {
  EXPECT_EQ(Allowed(4, [&] { return client_.check({{"route", "/tried"}, {"user", "u"}}); }), 4);
  EXPECT_EQ(served_.TotalUse(), 1);
}

TEST_F(ClientLogsTest, EachTierHasALogOfItsOwn) {
  const auto check = [&](const char* tier) {
    return client_.check({{"route", "/tiered"}, {"user", "u"}, {"tier", tier}});
  };
  EXPECT_EQ(Allowed(10, [&] { return check("paid"); }), 7);
  EXPECT_EQ(Allowed(10, [&] { return check("none"); }), 2);
}

TEST_F(ClientLogsTest, ATokenComesBackAPeriodAfterItWasTaken) {
  auto handle = client_.bind({{"route", "/short"}, {"user", "u"}});
  ASSERT_TRUE(handle);
  ASSERT_TRUE(handle->check(20));
  const Decision denied = handle->check(20);
  if (denied) return;  // so slow a machine that the period is over
  while (shm::MonotonicClock::PreciseNs() < denied.raw().now_ns + denied.raw().retry_after_ns) {
    usleep(1000);
  }
  EXPECT_TRUE(handle->check(20)) << "then, and not later";
}

// More keys than rows: those without share one bucket, which keeps to the limit.
TEST_F(ClientLogsTest, KeysWithoutALogShareABucketThatKeepsToTheLimit) {
  auto rule = client_.bind_rule("log");
  ASSERT_TRUE(rule);
  int allowed = 0;
  int overflown = 0;
  for (int key = 0; key < 400; ++key) {
    for (int i = 0; i < 6; ++i) {
      const Decision d = rule->check("key " + std::to_string(key));
      allowed += d ? 1 : 0;
      overflown += d && d.raw().source == SLUICE_SOURCE_OVERFLOW ? 1 : 0;
    }
  }
  EXPECT_EQ(overflown, 5);
  EXPECT_EQ((allowed - overflown) % 5, 0);
  EXPECT_LE(allowed, 64 * 5 + 5);
  EXPECT_GT(allowed, 40 * 5);
}

TEST(DegradedLogsTest, EachLogFollowsItsOwnWordInAnEmergency) {
  std::string rules = "rules:\n";
  for (const auto& [name, mode] :
       {std::pair("open", "{mode: open}"), std::pair("closed", "{mode: closed}"),
        std::pair("quarter", "{mode: degrade, factor: 0.25}")}) {
    rules.append("  - {name: ").append(name).append(", match: {route: ").append(name);
    rules.append("}, key: [user], limit: 40 per 10m, algorithm: sliding_log");
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
  EXPECT_EQ(admitted("quarter"), 30);
}

// What each process was admitted and when, in memory that outlives them.
constexpr size_t kMostTaken = 1 << 17;
struct Shared {
  std::atomic<uint64_t> count{0};
  std::atomic<uint64_t> sum{0};
  struct Took {
    std::atomic<uint64_t> at_ns;
    std::atomic<uint64_t> tokens;
  } took[kMostTaken];
};

// Processes that check one bucket until they are denied so often, with costs of 1 to 3; with
// `kills`, some are killed at any instruction and others take their place.
void Crowd(const std::string& dir, const char* route, int denials, int kills, Shared* shared) {
  const auto start = [&] {
    const pid_t pid = fork();
    if (pid != 0) return pid;
    Client client({.runtime_dir = dir.c_str()});
    if (!client.wait(5000ms)) _exit(1);
    auto handle = client.bind({{"route", route}, {"user", "shared"}});
    for (int denied = 0, i = 0; denied < denials; ++i) {
      const uint32_t cost = 1 + static_cast<uint32_t>(i) % 3;
      const Decision d = handle->check(cost);
      if (!d) {
        ++denied;
        continue;
      }
      // A kill in between counts one less, never one more.
      shared->sum.fetch_add(cost);
      const uint64_t at = shared->count.fetch_add(1);
      if (at >= kMostTaken) break;
      shared->took[at].at_ns = d.raw().now_ns;
      shared->took[at].tokens = cost;
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
}

Shared* MapShared() {
  void* const at =
      mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  return new (at) Shared;
}

TEST_F(ClientLogsTest, ProcessesShareOneLog) {
  Shared* const shared = MapShared();
  Crowd(served_.dir(), "/crowd", 300, 0, shared);
  EXPECT_EQ(shared->sum, 4000u);
  munmap(shared, sizeof(Shared));
}

TEST_F(ClientLogsTest, KilledProcessesLeaveNoTokenTwice) {
  Shared* const shared = MapShared();
  Crowd(served_.dir(), "/crowd", 300, 60, shared);
  EXPECT_LE(shared->sum, 4000u);
  EXPECT_GE(shared->sum + 60 * 3, 4000u) << "a kill loses what it was about to tell";
  munmap(shared, sizeof(Shared));
}

// In any 20 ms, wherever it begins: exactly, whoever is killed.
TEST_F(ClientLogsTest, NoPeriodHoldsMoreThanTheLimit) {
  for (const int kills : {0, 40}) {
    Shared* const shared = MapShared();
    Crowd(served_.dir(), "/short", 3000, kills, shared);
    std::vector<std::pair<uint64_t, uint64_t>> all;
    for (size_t i = 0; i < std::min<size_t>(shared->count, kMostTaken); ++i) {
      all.emplace_back(shared->took[i].at_ns, shared->took[i].tokens);
    }
    std::sort(all.begin(), all.end());
    uint64_t within = 0;
    uint64_t most = 0;
    size_t from = 0;
    for (const auto& [at_ns, tokens] : all) {
      within += tokens;
      while (all[from].first + 20'000'000 <= at_ns) within -= all[from++].second;
      most = std::max(most, within);
    }
    EXPECT_LE(most, 20u) << kills;
    EXPECT_GT(most, 10u) << kills;
    munmap(shared, sizeof(Shared));
  }
}

}  // namespace
}  // namespace sluice::test
