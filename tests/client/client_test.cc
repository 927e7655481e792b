// The library through its public face, attached to real segments.
#include <dlfcn.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "client/include/sluice.h"
#include "client/include/sluice.hpp"
#include "tests/support/served_segments.h"

namespace sluice::test {
namespace {

using namespace std::chrono_literals;

constexpr char kRules[] = R"(
rules:
  - name: per-user
    match: {route: /v1/*}
    key: [user]
    limit: 1 per 1h
    burst: 10
  - name: per-tenant
    match: {route: /v1/*}
    key: [tenant]
    limit: 1 per 1h
    burst: 5
    tiers:
      paid: {limit: 1 per 1h, burst: 50}
  - name: per-ip
    match: {route: /ip}
    key: [ip/24]
    limit: 1 per 1h
    burst: 3
  - name: watched
    match: {route: /watched}
    key: [user]
    limit: 1 per 1h
    burst: 2
    shadow: true
  - name: heavy
    match: {route: /heavy}
    key: [user]
    limit: 1 per 1h
    burst: 100
    cost: 25
)";

class ClientTest : public testing::Test {
 protected:
  ClientTest() : served_(kRules), client_(OptionsFor(served_)) {}
  // Without rules nothing is ever denied, and tests that check until then would go on for ever.
  void SetUp() override { ASSERT_TRUE(client_.wait(5000ms)) << client_.info().message; }
  static Options OptionsFor(const ServedSegments& served, bool default_allowed = true) {
    return {.default_allowed = default_allowed,
            .runtime_dir = served.dir().c_str(),
            .label = "client-test"};
  }

  ServedSegments served_;
  Client client_;
};

TEST_F(ClientTest, AllRulesThatMatchApplyAndTheStrictestDecides) {
  for (int i = 0; i < 5; ++i) {
    const Decision d =
        client_.check({{"route", "/v1/x"}, {"user", "u" + std::to_string(i)}, {"tenant", "acme"}});
    ASSERT_TRUE(d) << i;
    EXPECT_EQ(client_.rule_of(d), "per-tenant");
    EXPECT_EQ(d.remaining(), 4u - static_cast<uint64_t>(i));
  }
  const Decision d = client_.check({{"route", "/v1/x"}, {"user", "u9"}, {"tenant", "acme"}});
  EXPECT_FALSE(d);
  EXPECT_EQ(client_.rule_of(d), "per-tenant");
  ASSERT_TRUE(d.retry_after().has_value());
  EXPECT_GT(d.retry_after()->count(), 3'500'000'000'000);
}

// envoy#24682, envoy#25139, envoy#22163: a rejected request spent the limits that came before the
// deciding one.
TEST_F(ClientTest, ARejectedRequestSpendsNothingAnywhere) {
  for (int i = 0; i < 5; ++i) {
    ASSERT_TRUE(client_.check({{"route", "/v1/x"}, {"user", "other"}, {"tenant", "acme"}}));
  }
  for (int i = 0; i < 50; ++i) {
    ASSERT_FALSE(client_.check({{"route", "/v1/x"}, {"user", "u"}, {"tenant", "acme"}}));
  }
  int admitted = 0;
  while (client_.check({{"route", "/v1/x"}, {"user", "u"}})) ++admitted;
  EXPECT_EQ(admitted, 10) << "the user's bucket is untouched";
  EXPECT_EQ(served_.TotalUse(), 5 * 2 + 10);
}

TEST_F(ClientTest, ATierHasItsOwnLimitAndBucket) {
  int free_tier = 0;
  int paid = 0;
  while (client_.check({{"route", "/v1/x"}, {"tenant", "t"}, {"tier", "free"}})) ++free_tier;
  while (client_.check({{"route", "/v1/x"}, {"tenant", "t"}, {"tier", "paid"}})) ++paid;
  EXPECT_EQ(free_tier, 5);
  EXPECT_EQ(paid, 50);
}

TEST_F(ClientTest, OneSubscriberIsOneBucketHoweverItsAddressIsWritten) {
  EXPECT_TRUE(client_.check({{"route", "/ip"}, {"ip", "203.0.113.7"}}));
  EXPECT_TRUE(client_.check({{"route", "/ip"}, {"ip", "203.0.113.200"}}));
  EXPECT_TRUE(client_.check({{"route", "/ip"}, {"ip", "::ffff:203.0.113.1"}}));
  EXPECT_FALSE(client_.check({{"route", "/ip"}, {"ip", "203.0.113.9"}}));
  EXPECT_TRUE(client_.check({{"route", "/ip"}, {"ip", "2001:DB8::1"}}));
  EXPECT_TRUE(client_.check({{"route", "/ip"}, {"ip", "2001:db8:0:0:ffff::2"}}));
  EXPECT_TRUE(client_.check({{"route", "/ip"}, {"ip", "2001:0db8::3"}}));
  EXPECT_FALSE(client_.check({{"route", "/ip"}, {"ip", "2001:db8::4"}}));
}

TEST_F(ClientTest, WhatNoRuleMatchesIsAllowed) {
  const Decision d = client_.check({{"route", "/other"}});
  EXPECT_TRUE(d);
  EXPECT_EQ(d.raw().source, SLUICE_SOURCE_NO_MATCH);
  EXPECT_EQ(client_.rule_of(d), "");
  EXPECT_TRUE(client_.check(std::initializer_list<Descriptor>{}));
}

TEST_F(ClientTest, AShadowRuleNeverDeniesButTells) {
  for (int i = 0; i < 2; ++i) {
    EXPECT_FALSE(client_.check({{"route", "/watched"}, {"user", "u"}}).shadow_denied());
  }
  const Decision d = client_.check({{"route", "/watched"}, {"user", "u"}});
  EXPECT_TRUE(d);
  EXPECT_TRUE(d.shadow_denied());
}

// redis#15113: what can never fit was told to try again.
TEST_F(ClientTest, ARulesCostMultipliesTheRequests) {
  EXPECT_TRUE(client_.check({{"route", "/heavy"}, {"user", "u"}}, 3));
  EXPECT_FALSE(client_.check({{"route", "/heavy"}, {"user", "u"}}, 2));
  EXPECT_TRUE(client_.check({{"route", "/heavy"}, {"user", "u"}}, 1));
  const Decision never = client_.check({{"route", "/heavy"}, {"user", "v"}}, 5);
  EXPECT_FALSE(never);
  EXPECT_EQ(never.retry_after(), std::nullopt) << "above the burst: it can never fit";
}

TEST_F(ClientTest, CostZeroLooksAndWritesNothing) {
  const auto peek = [&] { return client_.check({{"route", "/v1/x"}, {"user", "u"}}, 0); };
  EXPECT_EQ(peek().remaining(), 10u);
  EXPECT_EQ(peek().remaining(), 10u);
  EXPECT_EQ(served_.TotalUse(), 0);
}

TEST_F(ClientTest, AHandleAndABoundRuleShareTheBucketOfTheLongWay) {
  auto handle = client_.bind({{"route", "/v1/x"}, {"user", "u"}});
  auto rule = client_.bind_rule("per-user");
  ASSERT_TRUE(handle && rule);
  EXPECT_TRUE(handle->allow());
  EXPECT_EQ(rule->check("u").remaining(), 8u);
  EXPECT_EQ(client_.check({{"route", "/v1/x"}, {"user", "u"}}).remaining(), 7u);
  int admitted = 0;
  while (handle->allow()) ++admitted;
  EXPECT_EQ(admitted, 7);
  EXPECT_FALSE(rule->allow("u"));
  EXPECT_TRUE(rule->allow("v"));
}

TEST_F(ClientTest, AHandleOverSeveralRulesSpendsInAllOrNone) {
  auto handle = client_.bind({{"route", "/v1/x"}, {"user", "u"}, {"tenant", "acme"}});
  ASSERT_TRUE(handle);
  int admitted = 0;
  while (handle->allow()) ++admitted;
  EXPECT_EQ(admitted, 5);
  EXPECT_EQ(served_.TotalUse(), 10);
}

TEST_F(ClientTest, AHandleFollowsAChangeOfTheRules) {
  auto handle = client_.bind({{"route", "/v1/x"}, {"user", "u"}});
  ASSERT_TRUE(handle);
  while (handle->allow()) {
  }
  for (int i = 0; i < 3; ++i) {  // more often than a handle has blocks
    served_.Publish("rules:\n  - {name: per-user, key: [user], limit: 1 per 1h, burst: " +
                    std::to_string(20 + i) + "}\n");
    int admitted = 0;
    while (handle->allow()) ++admitted;
    EXPECT_GT(admitted, 0) << i;
  }
  served_.Publish("rules:\n  - {name: other, key: [tenant], limit: 1/s}\n");
  EXPECT_TRUE(handle->allow()) << "no rule matches any more";
}

// A thread remembers what it denied; whatever changes the bucket or the rule must end that.
TEST_F(ClientTest, ARememberedDenialEndsWhenItsBucketOrRuleChanges) {
  auto handle = client_.bind({{"route", "/v1/x"}, {"user", "u"}});
  auto rule = client_.bind_rule("per-user");
  ASSERT_TRUE(handle);
  ASSERT_TRUE(rule);
  for (int round = 0; round < 20; ++round) {
    Decision d = client_.check({{"route", "/v1/x"}, {"user", "u"}}, round == 0 ? 10 : 1);
    ASSERT_TRUE(d) << round;
    for (int i = 0; i < 200; ++i) {
      ASSERT_FALSE(handle->allow());
      ASSERT_FALSE(rule->allow("u"));
    }
    ASSERT_EQ(client_.refund(d), 1);
    if (round > 0) continue;
    ASSERT_TRUE(client_.check({{"route", "/v1/x"}, {"user", "u"}}, 9));
  }
  ASSERT_TRUE(handle->allow());
  ASSERT_FALSE(handle->allow());
  served_.Publish("rules:\n  - {name: per-user, key: [user], limit: 1 per 1h, burst: 1000}\n");
  EXPECT_TRUE(handle->allow());
  EXPECT_TRUE(rule->allow("u"));
}

TEST_F(ClientTest, RefundsGiveBackWhatStands) {
  Decision d = client_.check({{"route", "/v1/x"}, {"user", "u"}, {"tenant", "acme"}}, 4);
  ASSERT_TRUE(d);
  EXPECT_EQ(client_.refund(d), 2);
  EXPECT_EQ(client_.refund(d), 0) << "once";
  EXPECT_EQ(served_.TotalUse(), 0);
  EXPECT_EQ(client_.check({{"route", "/v1/x"}, {"tenant", "acme"}}, 0).remaining(), 5u);
}

TEST_F(ClientTest, ChecksManyAsIfOneByOne) {
  const Descriptor a[] = {{"route", "/v1/x"}, {"user", "a"}};
  const Descriptor b[] = {{"route", "/v1/x"}, {"user", "b"}};
  std::vector<sluice_request_t> requests;
  for (int i = 0; i < 24; ++i) requests.push_back({i % 2 != 0 ? a : b, 2, 1});
  std::vector<int> results(requests.size());
  EXPECT_EQ(
      sluice_check_many(client_.raw(), requests.data(), requests.size(), results.data(), nullptr),
      20);
  auto rule = client_.bind_rule("per-user");
  ASSERT_TRUE(rule);
}

TEST_F(ClientTest, BoundRuleChecksManyKeysAtOnce) {
  sluice_rule_t* rule = nullptr;
  ASSERT_EQ(sluice_rule_bind(client_.raw(), "per-user", &rule), 0);
  std::vector<std::string> names;
  for (int i = 0; i < 100; ++i) names.push_back("key" + std::to_string(i % 50));
  std::vector<sluice_key_t> keys;
  for (const std::string& name : names) keys.push_back({name.data(), name.size()});
  std::vector<int> results(keys.size());
  std::vector<sluice_decision_t> decisions(keys.size());
  EXPECT_EQ(
      sluice_rule_check_many(rule, keys.data(), keys.size(), 5, results.data(), decisions.data()),
      100);
  EXPECT_EQ(sluice_rule_check_many(rule, keys.data(), keys.size(), 1, results.data(), nullptr), 0);
  EXPECT_EQ(decisions[99].remaining, 0u);
  sluice_rule_free(rule);
}

TEST_F(ClientTest, BadInputIsAnErrorCodeAndTheDefaultNeverACrash) {
  sluice_decision_t d;
  const std::string huge(SLUICE_MAX_VALUE_BYTES + 1, 'x');
  const std::string big(SLUICE_MAX_VALUE_BYTES, 'x');
  const auto check = [&](std::vector<sluice_descriptor_t> list, uint64_t cost = 1) {
    return sluice_check(client_.raw(), list.data(), list.size(), cost, &d);
  };
  EXPECT_EQ(check({{"user", 4, huge.data(), huge.size()}}), SLUICE_E_DESCRIPTORS);
  EXPECT_EQ(d.allowed, 1);
  EXPECT_EQ(d.source, SLUICE_SOURCE_DEFAULT);
  EXPECT_EQ(check({{"", 0, "x", 1}}), SLUICE_E_DESCRIPTORS);
  EXPECT_EQ(check({{nullptr, 3, "x", 1}}), SLUICE_E_DESCRIPTORS);
  EXPECT_EQ(check({{"user", 4, nullptr, 3}}), SLUICE_E_DESCRIPTORS);
  EXPECT_EQ(check(std::vector<sluice_descriptor_t>(1000, {"user", 4, "x", 1})),
            SLUICE_E_DESCRIPTORS);
  EXPECT_EQ(check({{"user", 4, "x", 1}}, SLUICE_MAX_COST + 1), SLUICE_E_ARGUMENT);
  EXPECT_EQ(sluice_check(nullptr, nullptr, 0, 1, &d), SLUICE_E_ARGUMENT);
  EXPECT_EQ(sluice_check(client_.raw(), nullptr, 3, 1, &d), SLUICE_E_ARGUMENT);
  EXPECT_EQ(sluice_handle_check(nullptr, 1, &d), SLUICE_E_ARGUMENT);
  EXPECT_EQ(sluice_rule_check(nullptr, "x", 1, 1, &d), SLUICE_E_ARGUMENT);
  sluice_rule_t* rule = nullptr;
  EXPECT_EQ(sluice_rule_bind(client_.raw(), "no-such-rule", &rule), SLUICE_E_NO_RULE);
  EXPECT_EQ(rule, nullptr);
  for (const int code : {0, -1, -2, -3, -4, -5, -6, -7, -99})
    EXPECT_NE(sluice_strerror(code), nullptr);
  // 64 KiB, binary and NUL bytes are values like any other.
  for (const std::string& value :
       {big, std::string("a\0b", 3), std::string("\xff\xfe\n"), std::string()}) {
    int admitted = 0;
    while (check({{"route", 5, "/v1/x", 5}, {"user", 4, value.data(), value.size()}}) > 0) {
      ++admitted;
    }
    EXPECT_EQ(admitted, 10);
  }
}

TEST_F(ClientTest, MoreMatchingRulesThanTheBoundIsAnError) {
  std::string yaml = "rules:\n";
  for (uint32_t i = 0; i <= SLUICE_MAX_RULES_PER_REQUEST; ++i) {
    yaml += "  - {name: rule" + std::to_string(i) + ", key: [user], limit: 10/s}\n";
  }
  served_.Publish(yaml);
  EXPECT_EQ(client_.check({{"user", "u"}}).error(), SLUICE_E_RULES);
}

TEST_F(ClientTest, WritesTheHttpFieldsOfTheDraft) {
  Decision d = client_.check({{"route", "/v1/x"}, {"user", "u"}, {"tenant", "acme"}});
  EXPECT_EQ(client_.http_fields(d),
            "RateLimit-Policy: \"per-user\";q=10;w=36000, \"per-tenant\";q=5;w=18000\r\n"
            "RateLimit: \"per-user\";r=9;t=3600, \"per-tenant\";r=4;t=3600\r\n");
  while (d) d = client_.check({{"route", "/v1/x"}, {"user", "u"}, {"tenant", "acme"}});
  const std::string denied = client_.http_fields(d);
  EXPECT_EQ(denied.rfind("Retry-After: 3600\r\n", 0), 0u) << denied;
  EXPECT_NE(denied.find("\"per-tenant\";r=0;t=3600"), std::string::npos) << denied;
  char small[20];
  EXPECT_EQ(sluice_http_fields(client_.raw(), &d.raw(), small, sizeof small), SLUICE_E_BUFFER);
}

TEST_F(ClientTest, ThreadsShareOneBurst) {
  auto handle = client_.bind({{"route", "/v1/x"}, {"tenant", "big"}, {"tier", "paid"}});
  ASSERT_TRUE(handle);
  std::atomic<int> admitted{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 2000; ++i) admitted += handle->allow() ? 1 : 0;
    });
  }
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(admitted, 50);
}

TEST_F(ClientTest, AForkedChildGoesOnInTheSameBuckets) {
  auto handle = client_.bind({{"route", "/v1/x"}, {"user", "forked"}});
  ASSERT_TRUE(handle && handle->allow());
  const pid_t child = fork();
  if (child == 0) {
    int admitted = 0;
    for (int i = 0; i < 4; ++i) admitted += handle->allow() ? 1 : 0;
    _exit(admitted == 4 && client_.info().attached == 1 ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_EQ(handle->check().remaining(), 4u);
}

TEST_F(ClientTest, SignalMaskAndHandlersAreLeftAsTheyWere) {
  sigset_t before;
  sigset_t after;
  struct sigaction pipe_before;
  struct sigaction pipe_after;
  sigprocmask(SIG_SETMASK, nullptr, &before);
  sigaction(SIGPIPE, nullptr, &pipe_before);
  {
    Client other(OptionsFor(served_));
    other.wait(5000ms);
    other.check({{"route", "/v1/x"}, {"user", "u"}});
  }
  sigprocmask(SIG_SETMASK, nullptr, &after);
  sigaction(SIGPIPE, nullptr, &pipe_after);
  for (int s = 1; s < NSIG; ++s) EXPECT_EQ(sigismember(&before, s), sigismember(&after, s)) << s;
  EXPECT_EQ(pipe_before.sa_handler, pipe_after.sa_handler);
}

TEST_F(ClientTest, FollowsADaemonThatComesBackWithOtherSegments) {
  auto handle = client_.bind({{"route", "/v1/x"}, {"user", "u"}});
  auto rule = client_.bind_rule("per-user");
  ASSERT_TRUE(handle && rule);
  while (handle->allow()) {
  }
  const uint64_t old_generation = client_.info().generation;
  served_.NewGeneration(kRules);
  for (int i = 0; i < 500 && client_.info().generation == old_generation; ++i) {
    handle->allow();
    usleep(10'000);
  }
  EXPECT_NE(client_.info().generation, old_generation);
  EXPECT_TRUE(rule->allow("u")) << "a new generation starts with full buckets";
}

TEST(ClientWithoutDaemonTest, AnswersByItsDefaultAndAttachesByItself) {
  char name[] = "/tmp/sluice-test-XXXXXX";
  const std::string dir = mkdtemp(name);
  for (const bool allowed : {true, false}) {
    Client client({.default_allowed = allowed, .runtime_dir = dir.c_str()});
    auto handle = client.bind({{"route", "/v1/x"}, {"user", "u"}});
    const Decision d = client.check({{"route", "/v1/x"}, {"user", "u"}});
    EXPECT_EQ(d.allowed(), allowed);
    EXPECT_TRUE(d.is_default());
    EXPECT_EQ(handle->allow(), allowed);
    const sluice_info_t info = client.info();
    EXPECT_EQ(info.attached, 0);
    EXPECT_NE(std::string(info.message), "");
  }
  rmdir(dir.c_str());
  ServedSegments served(kRules);
  served.StopServing();
  Client client({.default_allowed = true, .runtime_dir = served.dir().c_str()});
  EXPECT_TRUE(client.check({{"route", "/v1/x"}, {"user", "u"}}).is_default());
  served.StartServing();
  bool attached = false;
  for (int i = 0; i < 500 && !attached; ++i) {  // by its checks alone
    attached = !client.check({{"route", "/v1/x"}, {"user", "u"}}).is_default();
    usleep(10'000);
  }
  EXPECT_TRUE(attached);
}

TEST(SmallTableTest, AFullTableAnswersFromTheOverflowBucketAndCounts) {
  ServedSegments served(kRules, {.capacity = 64});
  Client client({.runtime_dir = served.dir().c_str()});
  ASSERT_TRUE(client.wait(5000ms));
  int overflow = 0;
  int allowed = 0;
  for (int i = 0; i < 500; ++i) {
    const Decision d = client.check({{"route", "/v1/x"}, {"user", "user" + std::to_string(i)}});
    overflow += d.raw().source == SLUICE_SOURCE_OVERFLOW ? 1 : 0;
    allowed += d ? 1 : 0;
  }
  EXPECT_GT(overflow, 300);
  EXPECT_LE(allowed, 64 + 10) << "the slots' keys once each, and one overflow bucket's burst";
  const auto& counter =
      served.buckets().counters()[static_cast<uint32_t>(shm::Counter::kOverflows)];
  EXPECT_EQ(counter.load(), static_cast<uint64_t>(overflow));
}

}  // namespace
}  // namespace sluice::test
