// Classes of requests in windows and logs, over all ways to check, and what is counted of each
// class. Token and leaky buckets: priority_test.cc.
#include <gtest/gtest.h>

#include <atomic>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "client/include/sluice.h"
#include "client/include/sluice.hpp"
#include "shm/purse.h"
#include "shm/take.h"
#include "tests/client/served_client.h"

namespace sluice::test {
namespace {

using namespace std::chrono_literals;

// Periods so long that no test is slow enough to see one end.
constexpr char kRules[] = R"(
daemon: {log_keys: 64}
rules:
  - name: fixed
    match: {route: /fixed}
    key: [tenant]
    algorithm: fixed_window
    limit: 10 per 10h
    priority: &classes {classes: {critical: 1, normal: 0.8, sheddable: 0.5}, otherwise: normal}
    tiers: {big: {limit: 100 per 10h}}
  - name: sliding
    match: {route: /sliding}
    key: [tenant]
    algorithm: sliding_window
    limit: 10 per 10h
    priority: *classes
    tiers: {big: {limit: 100 per 10h}}
  - name: log
    match: {route: /log}
    key: [tenant]
    algorithm: sliding_log
    limit: 10 per 10h
    priority: *classes
    tiers: {big: {limit: 100 per 10h}}
  - name: bucket
    match: {route: /bucket}
    key: [tenant]
    limit: 10 per 10h
    priority: *classes
    tiers: {big: {limit: 100 per 10h}}
  - name: beside
    match: {route: [/fixed, /sliding, /log]}
    key: [route]
    limit: 100000 per 10h
  - name: tried
    match: {route: /tried}
    key: [tenant]
    algorithm: fixed_window
    limit: 10 per 10h
    priority: *classes
    candidate: {limit: 4 per 10h}
  - name: far
    match: {route: /far}
    key: [tenant]
    algorithm: fixed_window
    limit: 10 per 10h
    priority: *classes
    when_degraded: {mode: degrade, factor: 0.5}
)";

class ClassesClientTest : public ServedClient {
 protected:
  ClassesClientTest() : ServedClient(kRules) {}

  Decision Check(const std::string& rule, const char* tenant, const char* name, uint32_t cost = 1) {
    return client_.check({{"route", "/" + rule}, {"tenant", tenant}, {"class", name}}, cost);
  }
  // A thread's tally is flushed by an allowed check of another key.
  void Flush(int who) {
    const std::string tenant = "flush-" + std::to_string(who);
    const std::string_view of = tenant;
    EXPECT_TRUE(client_.check(
        {{"route", "/bucket"}, {"tenant", of}, {"tier", "big"}, {"class", "critical"}}));
  }
  // What a daemon would take of each class's denials, as "rule:class".
  std::map<std::string, uint64_t> TakeDenied() {
    Flush(99);
    std::map<std::string, uint64_t> denied;
    for (const config::CompiledClass& c : served_.rules().classes()) {
      const uint64_t n = shm::TakeDenied(served_.buckets().class_denied()[c.cell], c.tag);
      if (n != 0) denied[c.rule + ":" + c.value] = n;
    }
    return denied;
  }
};

const char* const kCounted[] = {"fixed", "sliding", "log"};

TEST_F(ClassesClientTest, EachClassLeavesWhatIsKeptForThoseAboveIt) {
  for (const std::string rule : kCounted) {
    EXPECT_EQ(Allowed(20, [&] { return Check(rule, "lists", "sheddable"); }), 5) << rule;
    EXPECT_EQ(Allowed(20, [&] { return Check(rule, "lists", "normal"); }), 3) << rule;
    EXPECT_EQ(Allowed(20, [&] { return Check(rule, "lists", "sheddable"); }), 0) << rule;
    EXPECT_EQ(Allowed(20, [&] { return Check(rule, "lists", "critical"); }), 2) << rule;
    EXPECT_EQ(Allowed(20, [&] { return Check(rule, "lists", "critical"); }), 0) << rule;
  }
  EXPECT_EQ(served_.TotalUse(), 3 * 2 * 10) << "what was denied spent nothing in the rule beside";
}

TEST_F(ClassesClientTest, HandlesAndBoundRulesHaveAClass) {
  for (const std::string name : {"fixed", "sliding", "log"}) {
    const auto handle = [&](const char* of_class) {
      return *client_.bind({{"route", "/" + name}, {"tenant", "bound"}, {"class", of_class}});
    };
    auto sheddable = handle("sheddable");
    auto critical = handle("critical");
    auto rule = client_.bind_rule((name + ":normal").c_str());
    ASSERT_TRUE(rule);
    EXPECT_EQ(Allowed(20, [&] { return sheddable.check(); }), 5) << name;
    EXPECT_EQ(Allowed(20, [&] { return rule->allow("bound"); }), 3) << name;
    EXPECT_EQ(Allowed(20, [&] { return sheddable.allow(); }), 0) << name;
    EXPECT_EQ(Allowed(1, [&] { return critical.allow(); }), 1) << name;
    EXPECT_FALSE(rule->check("bound"));
    EXPECT_TRUE(critical.check());
    EXPECT_FALSE(critical.allow());
    auto big = client_.bind_rule((name + "@big:sheddable").c_str());
    ASSERT_TRUE(big);
    EXPECT_EQ(Allowed(100, [&] { return big->check("t"); }), 50) << name;
  }
}

TEST_F(ClassesClientTest, AnAnswerIsOfTheClass) {
  for (const std::string rule : kCounted) {
    Decision d = Check(rule, "answers", "sheddable");
    EXPECT_EQ(d.remaining(), 4u) << rule;
    EXPECT_EQ(d.raw().limit, 10u);
    EXPECT_EQ(d.raw().burst, 10u) << rule;
    EXPECT_NE(client_.http_fields(d).find("\"" + rule + "\";r=4"), std::string::npos)
        << client_.http_fields(d);
    EXPECT_EQ(Check(rule, "answers", "critical").remaining(), 8u) << rule;
    EXPECT_EQ(Allowed(3, [&] { return Check(rule, "answers", "critical"); }), 3);
    const Decision denied = Check(rule, "answers", "sheddable");
    EXPECT_FALSE(denied);
    EXPECT_EQ(denied.remaining(), 0u);
    ASSERT_TRUE(denied.retry_after()) << rule;
    EXPECT_FALSE(Check(rule, "answers", "sheddable", 6).retry_after()) << "never: it may use five";
    EXPECT_TRUE(Check(rule, "answers", "critical", 6).retry_after());
    EXPECT_TRUE(Check(rule, "answers", "critical", 5));
  }
}

TEST_F(ClassesClientTest, RefundsAndReservationsAreOfTheClass) {
  for (const std::string rule : kCounted) {
    EXPECT_EQ(Allowed(4, [&] { return Check(rule, "refunds", "sheddable"); }), 4) << rule;
    Decision last = Check(rule, "refunds", "sheddable");
    ASSERT_TRUE(last);
    EXPECT_FALSE(Check(rule, "refunds", "sheddable"));
    client_.refund(last);
    EXPECT_TRUE(Check(rule, "refunds", "sheddable")) << rule;
    EXPECT_FALSE(Check(rule, "refunds", "sheddable"));
    // An estimate above what the class may use is cut to that.
    const std::string route = "/" + rule;
    const std::vector<Descriptor> low = {
        {"route", route}, {"tenant", "reserved"}, {"class", "sheddable"}};
    Reservation reservation = client_.reserve(low, 9, 1min);
    ASSERT_TRUE(reservation) << rule;
    EXPECT_EQ(reservation.estimate(), 5u) << rule;
    EXPECT_FALSE(Check(rule, "reserved", "sheddable"));
    EXPECT_TRUE(client_.settle(reservation, 2));
    EXPECT_EQ(Check(rule, "reserved", "sheddable").remaining(), 2u) << rule;
  }
}

TEST_F(ClassesClientTest, ACandidateIsTriedForTheSameClass) {
  EXPECT_EQ(Allowed(10, [&] { return Check("tried", "t", "sheddable"); }), 5);
  const config::CompiledRule* const tried = served_.rules().Find("tried?candidate");
  ASSERT_NE(tried, nullptr);
  int64_t used = 0;
  for (uint64_t i = 0; i < served_.buckets().capacity(); ++i) {
    const shm::Slot& slot = served_.buckets().slots()[i];
    if (shm::aux::Rule(slot.aux.load()) == tried->id) used += shm::used::Count(slot.used.load());
  }
  EXPECT_EQ(used, 2) << "half of four";
  EXPECT_EQ(TakeDenied(), (std::map<std::string, uint64_t>{{"tried:sheddable", 5}}));
}

TEST_F(ClassesClientTest, AnEmergencyLeavesAClassItsPartOfWhatIsLeft) {
  served_.control().SetReconciling(true);
  EXPECT_TRUE(Check("far", "t", "sheddable"));
  for (uint32_t shard = 0; shard < served_.control().info().shard_count; ++shard) {
    served_.control().SetShard(shard, shm::ShardMode::kEmergency, 1);
  }
  // A token costs two: of ten the low class may use five, and has used one.
  EXPECT_EQ(Allowed(10, [&] { return Check("far", "t", "sheddable"); }), 2);
  EXPECT_EQ(Allowed(10, [&] { return Check("far", "t", "critical"); }), 2);
}

TEST_F(ClassesClientTest, DenialsAreCountedByClass) {
  for (const std::string name : {"bucket", "fixed", "log"}) {
    const std::string route = "/" + name;
    auto critical = *client_.bind({{"route", route}, {"tenant", "t"}, {"class", "critical"}});
    auto low = *client_.bind({{"route", route}, {"tenant", "t"}, {"class", "sheddable"}});
    auto rule = client_.bind_rule((name + ":normal").c_str());
    ASSERT_EQ(Allowed(9, [&] { return critical.allow(); }), 9);
    // Mixed, one after the other at one bucket, as quickly as they come.
    for (int i = 0; i < 300; ++i) {
      EXPECT_FALSE(low.allow());
      if (i % 2 == 0) {
        EXPECT_FALSE(rule->allow("t"));
      }
      if (i % 3 == 0) {
        EXPECT_FALSE(Check(name, "t", "sheddable"));
      }
    }
    EXPECT_TRUE(critical.allow());
    EXPECT_FALSE(critical.allow());
    EXPECT_FALSE(client_.check({{"route", route}, {"tenant", "t"}, {"class", "unheard of"}}));
    EXPECT_EQ(TakeDenied(),
              (std::map<std::string, uint64_t>{
                  {name + ":critical", 1}, {name + ":normal", 151}, {name + ":sheddable", 400}}))
        << name;
  }
}

TEST_F(ClassesClientTest, DenialsOfAllThreadsAndTiersAreCounted) {
  auto low = *client_.bind_rule("bucket@big:sheddable");
  std::vector<std::thread> threads;
  std::atomic<uint64_t> denied{0};
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      uint64_t mine = 0;
      for (int i = 0; i < 5'000; ++i) mine += low.allow("hot") ? 0 : 1;
      denied += mine;
      Flush(t);
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_GE(denied, 19'950u);
  EXPECT_EQ(TakeDenied()["bucket:sheddable"], denied);
}

TEST_F(ClassesClientTest, WhatIsCountedIsNotAnotherPolicysClass) {
  for (int i = 0; i < 20; ++i) Check("bucket", "t", "sheddable");
  std::string rules = kRules;
  const auto renamed = rules.find("name: bucket");
  rules.replace(renamed, 12, "name: barrel");
  EXPECT_EQ(TakeDenied()["bucket:sheddable"], 15u);
  for (int i = 0; i < 20; ++i) Check("bucket", "t", "sheddable");
  served_.Publish(rules);
  EXPECT_EQ(TakeDenied().count("barrel:sheddable"), 0u);
  for (int i = 0; i < 20; ++i) Check("bucket", "t", "sheddable");
  EXPECT_EQ(TakeDenied()["barrel:sheddable"], 15u);
}

// Strict and overdrawn rules, with the daemon's hand in their words.
class LentClassesTest : public ServedClient {
 protected:
  LentClassesTest() : ServedClient(kLentRules, {.reconciling = true}) {}
  void SetUp() override {
    ServedClient::SetUp();
    for (uint32_t i = 0; i < 16; ++i) served_.control().SetShard(i, shm::ShardMode::kHealthy, 1);
  }
  static constexpr char kLentRules[] = R"(
redis: {addresses: "h:1"}
rules:
  - name: strict
    match: {route: /strict}
    key: [tenant]
    limit: 100 per 10h
    consistency: strict
    priority: &classes {classes: {critical: 1, low: 0.5}}
  - name: loose
    match: {route: /loose}
    key: [tenant]
    limit: 100 per 10h
    consistency: overdraft
    priority: *classes
)";
  // What a client is lent of the one bucket of a rule, and what there is of it over all hosts.
  void Lend(const std::string& rule, uint64_t credits, uint64_t left) {
    const uint16_t id = served_.rules().Find(rule)->id;
    for (uint32_t i = 0; i < served_.buckets().capacity(); ++i) {
      shm::Slot& slot = served_.buckets().slots()[i];
      const uint64_t key = slot.key.load();
      if (shm::key::KindOf(key) != shm::Kind::kLease || shm::aux::Rule(slot.aux.load()) != id) {
        continue;
      }
      shm::Purse purse;
      ASSERT_TRUE(purse.Open(&slot, key));
      (void)purse.Put(credits, shm::MonotonicClock::PreciseNs() + 10'000'000'000);
      shm::SetAux(slot, key, shm::credits::fill::Make(left, 100), 0, id);
    }
  }
};

TEST_F(LentClassesTest, AClassSpendsWhileTheBucketHoldsWhatItMustLeave) {
  for (const std::string rule : {"strict", "loose"}) {
    const std::string route = "/" + rule;
    const auto check = [&](const char* of_class, uint32_t cost) {
      return client_.check({{"route", route}, {"tenant", "t"}, {"class", of_class}}, cost);
    };
    (void)check("critical", 100);  // so that there is a bucket
    auto low = *client_.bind({{"route", route}, {"tenant", "t"}, {"class", "low"}});
    auto rule_low = client_.bind_rule((rule + ":low").c_str());
    auto critical = *client_.bind({{"route", route}, {"tenant", "t"}, {"class", "critical"}});
    Lend(rule, 20, 100);
    EXPECT_TRUE(check("low", 1)) << rule;
    EXPECT_TRUE(low.allow());
    EXPECT_TRUE(rule_low->allow("t"));
    EXPECT_EQ(low.check().remaining(), 16u) << rule;
    // Of a hundred half are kept: three are beyond that, whoever holds them.
    Lend(rule, 16, 53);
    EXPECT_EQ(low.check(4).remaining(), 3u) << rule;
    EXPECT_FALSE(low.check(4));
    EXPECT_FALSE(check("low", 4));
    EXPECT_FALSE(rule_low->check("t", 4));
    EXPECT_TRUE(low.check(3)) << rule;
    EXPECT_TRUE(critical.check(10)) << rule;
    Lend(rule, 4, 49);
    EXPECT_FALSE(low.allow()) << rule;
    EXPECT_FALSE(rule_low->allow("t"));
    const Decision denied = check("low", 1);
    EXPECT_FALSE(denied);
    EXPECT_EQ(denied.remaining(), 0u);
    ASSERT_TRUE(denied.retry_after());
    EXPECT_NEAR(static_cast<double>(denied.retry_after()->count()), 360e9, 1e9);
    EXPECT_FALSE(check("low", 51).retry_after()) << "never: it may use fifty";
    EXPECT_TRUE(critical.allow()) << rule;
    EXPECT_EQ(critical.check().remaining(), 2u);
    EXPECT_EQ(denied.raw().burst, 100u);
  }
}

// What the low class is denied is told to the daemon once, as a sign that it waits: not as so many
// tokens that would have to be lent.
TEST_F(LentClassesTest, WhatAClassMayNotHaveIsNotAskedFor) {
  const auto check = [&](const char* of_class, uint32_t cost) {
    return client_.check({{"route", "/strict"}, {"tenant", "t"}, {"class", of_class}}, cost);
  };
  EXPECT_FALSE(check("critical", 1));
  Lend("strict", 20, 40);
  uint64_t wanted = 0;
  for (uint32_t i = 0; i < served_.buckets().capacity(); ++i) {
    const uint64_t key = served_.buckets().slots()[i].key.load();
    if (shm::key::KindOf(key) != shm::Kind::kLease) continue;
    (void)shm::TakeDenied(served_.buckets().denied()[i], key);
    shm::ClearDirty(served_.buckets().slots()[i]);
    EXPECT_FALSE(check("low", 5));
    wanted = shm::denied::Count(served_.buckets().denied()[i].load());
  }
  EXPECT_EQ(shm::wanted::Tokens(wanted), 1u);
  EXPECT_EQ(shm::wanted::Largest(wanted), 1u);
}

TEST_F(ClassesClientTest, ManyThreadsTogetherStayBelowTheirPart) {
  for (const std::string name : {"fixed", "sliding", "log"}) {
    auto shed = client_.bind_rule((name + "@big:sheddable").c_str());
    auto normal = client_.bind_rule((name + "@big:normal").c_str());
    std::atomic<int> of_shed{0};
    std::atomic<int> of_normal{0};
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back([&, t] {
        for (int i = 0; i < 200; ++i) {
          (t % 2 == 0 ? of_shed : of_normal) += (t % 2 == 0 ? *shed : *normal).allow("hot") ? 1 : 0;
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_LE(of_shed, 50) << name;
    EXPECT_EQ(of_shed + of_normal, 80) << name;
  }
}

}  // namespace
}  // namespace sluice::test
