// Classes of requests: who may use which part of a bucket, over all ways to check.
#include <gtest/gtest.h>

#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include "client/include/sluice.h"
#include "client/include/sluice.hpp"
#include "tests/client/served_client.h"

namespace sluice::test {
namespace {

using namespace std::chrono_literals;

// Rates so low that no test is slow enough to see a token come back.
constexpr char kRules[] = R"(
rules:
  - name: api
    match: {route: /api}
    key: [tenant]
    limit: 10 per 10h
    priority: {classes: {critical: 1, normal: 0.8, sheddable: 0.5}, otherwise: normal}
    tiers: {big: {limit: 100 per 10h}}
  - name: all
    match: {route: /two}
    key: [tenant]
    limit: 10 per 10h
  - name: some
    match: {route: /two}
    key: [route]
    limit: 10 per 10h
    priority: {by: importance, classes: {high: 1, low: 0.2}}
  - name: queue
    match: {route: /queue}
    key: [tenant]
    algorithm: leaky_bucket
    limit: 1 per 6m
    burst: 2
    max_delay: 48m
    priority: {classes: {high: 1, low: 0.5}}
  - name: plain
    key: [ip]
    limit: 10 per 10h
)";

class PriorityTest : public ServedClient {
 protected:
  PriorityTest() : ServedClient(kRules) {}

  Decision Api(const char* tenant, const char* name, uint32_t cost = 1) {
    return client_.check({{"route", "/api"}, {"tenant", tenant}, {"class", name}}, cost);
  }
};

TEST_F(PriorityTest, EachClassLeavesWhatIsKeptForThoseAboveIt) {
  EXPECT_EQ(Allowed(20, [&] { return Api("lists", "sheddable"); }), 5);
  EXPECT_EQ(Allowed(20, [&] { return Api("lists", "normal"); }), 3);
  EXPECT_EQ(Allowed(20, [&] { return Api("lists", "sheddable"); }), 0);
  EXPECT_EQ(Allowed(20, [&] { return Api("lists", "critical"); }), 2);
  EXPECT_EQ(Allowed(20, [&] { return Api("lists", "critical"); }), 0);
}

TEST_F(PriorityTest, HandlesAndBoundRulesHaveAClass) {
  const auto handle = [&](const char* name) {
    return *client_.bind({{"route", "/api"}, {"tenant", "bound"}, {"class", name}});
  };
  auto sheddable = handle("sheddable");
  auto critical = handle("critical");
  auto rule = client_.bind_rule("api:normal");
  ASSERT_TRUE(rule);
  EXPECT_EQ(Allowed(20, [&] { return sheddable.check(); }), 5);
  EXPECT_EQ(Allowed(20, [&] { return rule->check("bound"); }), 3);
  EXPECT_EQ(Allowed(20, [&] { return sheddable.allow(); }), 0);
  EXPECT_EQ(Allowed(1, [&] { return critical.allow(); }), 1);
  // A denial that a thread remembers is of its class alone.
  EXPECT_FALSE(rule->allow("bound"));
  EXPECT_FALSE(sheddable.allow());
  EXPECT_TRUE(critical.allow());
  EXPECT_FALSE(critical.allow());
}

TEST_F(PriorityTest, ALabelNamesAClassThatIsThere) {
  EXPECT_TRUE(client_.bind_rule("api"));
  EXPECT_TRUE(client_.bind_rule("api@big:critical"));
  EXPECT_FALSE(client_.bind_rule("api:urgent"));
  EXPECT_FALSE(client_.bind_rule("api:"));
  EXPECT_FALSE(client_.bind_rule("plain:critical"));
  EXPECT_FALSE(client_.bind_rule(("api:" + std::string(200, 'x')).c_str()));
  auto big = client_.bind_rule("api@big:sheddable");
  ASSERT_TRUE(big);
  EXPECT_EQ(Allowed(100, [&] { return big->check("t"); }), 50);
}

TEST_F(PriorityTest, WhoBringsNoneOrAnotherIsOfOtherwise) {
  EXPECT_EQ(Allowed(20, [&] { return Api("unknown", "urgent"); }), 8);
  EXPECT_EQ(Allowed(20, [&] { return client_.check({{"route", "/api"}, {"tenant", "none"}}); }), 8);
  auto rule = client_.bind_rule("api");
  EXPECT_EQ(Allowed(20, [&] { return rule->check("bare"); }), 8);
}

TEST_F(PriorityTest, AnAnswerIsOfTheClass) {
  Decision d = Api("answers", "sheddable");
  EXPECT_EQ(d.remaining(), 4u);
  EXPECT_EQ(d.raw().burst, 10u);
  EXPECT_NE(client_.http_fields(d).find("\"api\";r=4"), std::string::npos)
      << client_.http_fields(d);
  EXPECT_EQ(Api("answers", "critical").remaining(), 8u);
  // One token comes back in an hour: what is above the sheddables' part goes first.
  EXPECT_EQ(Allowed(20, [&] { return Api("answers", "critical"); }), 8);
  const Decision denied = Api("answers", "sheddable");
  ASSERT_TRUE(denied.retry_after());
  EXPECT_NEAR(static_cast<double>(denied.retry_after()->count()), 6.0 * 3600e9, 60e9);
  EXPECT_NEAR(static_cast<double>(Api("answers", "critical").retry_after()->count()), 3600e9, 60e9);
  EXPECT_FALSE(Api("answers", "sheddable", 6).retry_after());  // never: it may use five
  EXPECT_TRUE(Api("answers", "critical", 6).retry_after());
}

TEST_F(PriorityTest, AClassThatIsDeniedSpendsNothingInOtherRules) {
  const auto check = [&](const char* importance) {
    return client_.check({{"route", "/two"}, {"tenant", "t"}, {"importance", importance}});
  };
  EXPECT_EQ(Allowed(20, [&] { return check("low"); }), 2);
  EXPECT_EQ(check("high").remaining(), 7u);
  EXPECT_EQ(Allowed(20, [&] { return check("high"); }), 7);
}

TEST_F(PriorityTest, AQueueIsForAClassUpToItsFloor) {
  const auto check = [&](const char* name) {
    return client_.check({{"route", "/queue"}, {"tenant", "q"}, {"class", name}});
  };
  // Two pass at once and eight may wait; half of the ten places are for `low`.
  std::vector<int64_t> places;
  for (Decision d = check("low"); d; d = check("low")) {
    places.push_back((d.delay() + 3min) / 6min);
  }
  EXPECT_EQ(places, (std::vector<int64_t>{0, 0, 1, 2, 3}));
  const Decision next = check("high");
  ASSERT_TRUE(next);
  EXPECT_NEAR(static_cast<double>(next.delay().count()), 4.0 * 360e9, 60e9);
}

TEST_F(PriorityTest, RefundsGiveAClassBackWhatItSpent) {
  EXPECT_EQ(Allowed(4, [&] { return Api("refunds", "sheddable"); }), 4);
  Decision last = Api("refunds", "sheddable");
  ASSERT_TRUE(last);
  EXPECT_FALSE(Api("refunds", "sheddable"));
  client_.refund(last);
  EXPECT_TRUE(Api("refunds", "sheddable"));
}

TEST_F(PriorityTest, ManyThreadsTogetherStayAboveTheFloor) {
  auto shed = client_.bind_rule("api@big:sheddable");
  auto normal = client_.bind_rule("api@big:normal");
  std::atomic<int> of_shed{0};
  std::atomic<int> of_normal{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 200; ++i) {
        if (t % 2 == 0) {
          of_shed += shed->allow("hot") ? 1 : 0;
        } else {
          of_normal += normal->allow("hot") ? 1 : 0;
        }
        client_.check(
            {{"route", "/api"}, {"tenant", "hot"}, {"tier", "big"}, {"class", "sheddable"}}, 0);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_LE(of_shed, 50);
  EXPECT_EQ(of_shed + of_normal, 80);
  EXPECT_EQ(served_.TotalUse(), 80);
}

TEST_F(PriorityTest, ClassesFollowChangesOfTheRules) {
  auto handle = *client_.bind({{"route", "/api"}, {"tenant", "later"}, {"class", "sheddable"}});
  auto rule = client_.bind_rule("api:sheddable");
  EXPECT_TRUE(handle.check());
  EXPECT_TRUE(rule->check("other"));
  std::string rules = kRules;
  const auto replace = [&](const std::string& from, const std::string& to) {
    rules.replace(rules.find(from), from.size(), to);
  };
  replace("limit: 10 per 10h", "limit: 20 per 20h");  // numbers alone
  served_.Publish(rules);
  EXPECT_EQ(Allowed(30, [&] { return handle.check(); }), 9);
  EXPECT_EQ(Allowed(30, [&] { return rule->check("other"); }), 9);
  replace("sheddable: 0.5", "sheddable: 0.7");
  served_.Publish(rules);
  EXPECT_EQ(Allowed(30, [&] { return handle.check(); }), 4);
  EXPECT_EQ(Allowed(30, [&] { return rule->check("other"); }), 4);
}

}  // namespace
}  // namespace sluice::test
