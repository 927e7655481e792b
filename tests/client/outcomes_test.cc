// Costs by outcome: what a request costs is known by how it ended.
#include <gtest/gtest.h>

#include <random>
#include <string>

#include "client/include/sluice.h"
#include "client/include/sluice.hpp"
#include "tests/client/served_client.h"

namespace sluice::test {
namespace {

// Rates so low that no test is slow enough to see a token come back.
constexpr char kRules[] = R"(
rules:
  - {name: bucket, match: {route: /bucket}, key: [user], limit: 20 per 20h,
     outcomes: {404: 1, 401: 5, 403: 40, 4xx: 2, 5xx: refund}}
  - {name: window, match: {route: /window}, key: [user], limit: 20 per 20h,
     algorithm: fixed_window, outcomes: {401: 5, 5xx: refund}}
  - {name: log, match: {route: /log}, key: [user], limit: 20 per 20h,
     algorithm: sliding_log, outcomes: {401: 5, 5xx: refund}}
  - {name: failures, match: {route: /login}, key: [user], limit: 3 per 3h, outcomes: {2xx: 0}}
  - {name: both-user, match: {route: /both}, key: [user], limit: 20 per 20h,
     outcomes: {5xx: refund}}
  - {name: both-tenant, match: {route: /both}, key: [tenant], limit: 20 per 20h}
  - {name: costly, match: {route: /costly}, key: [user], limit: 20 per 20h, cost: 3,
     outcomes: {500: 1}}
  - {name: money, match: {route: /money}, key: [user], limit: 10000000 per 366d}
  - {name: most, match: {route: /most}, key: [user], limit: 1000000000000 per 366d}
  - {name: dear, match: {route: /dear}, key: [user], limit: 40 per 366d, cost: 16}
  - {name: dear-window, match: {route: /dear-window}, key: [user], limit: 40 per 366d, cost: 16,
     algorithm: sliding_window}
  - {name: dear-log, match: {route: /dear-log}, key: [user], limit: 40 per 366d, cost: 16,
     algorithm: sliding_log}
)";

class OutcomesTest : public ServedClient {
 protected:
  OutcomesTest() : ServedClient(kRules) {}

  Decision Check(const char* route, uint64_t cost = 1) {
    return client_.check({{"route", route}, {"user", "u"}, {"tenant", "t"}}, cost);
  }
  uint64_t Left(const char* route) {
    return client_.peek({{"route", route}, {"user", "u"}, {"tenant", "t"}}, 0).remaining();
  }
  // What one check of `cost` leaves of 20 when it has ended with `status`.
  uint64_t LeftAfter(const char* route, uint32_t status, uint64_t cost = 1) {
    const uint64_t before = Left(route);
    Decision d = Check(route, cost);
    EXPECT_TRUE(d);
    EXPECT_EQ(client_.report(d, status), 1) << status;
    EXPECT_EQ(client_.report(d, status), 0) << "once";
    EXPECT_EQ(client_.refund(d), 0) << "nor given back again";
    return 20 - (before - Left(route));
  }
};

TEST_F(OutcomesTest, EachAlgorithmGivesBackAndChargesWhatTheRuleSays) {
  for (const char* route : {"/bucket", "/window", "/log"}) {
    EXPECT_EQ(LeftAfter(route, 503), 20u) << route;
    EXPECT_EQ(LeftAfter(route, 401), 15u) << route;
    EXPECT_EQ(Left(route), 15u);
  }
  EXPECT_EQ(served_.TotalUse(), 15);
}

TEST_F(OutcomesTest, TheSingleStatusGoesBeforeItsHundred) {
  EXPECT_EQ(LeftAfter("/bucket", 404, 3), 19u);
  EXPECT_EQ(LeftAfter("/bucket", 418, 1), 18u);
  EXPECT_EQ(LeftAfter("/bucket", 499, 2), 18u) << "what is right already";
  EXPECT_EQ(served_.TotalUse(), 5);
}

TEST_F(OutcomesTest, WhatNoLineNamesStaysAndMayStillBeRefunded) {
  Decision d = Check("/bucket", 4);
  EXPECT_EQ(client_.report(d, 200), 0);
  EXPECT_EQ(client_.report(d, 1000), 0);
  EXPECT_EQ(client_.report(d, 0xffffffff), 0);
  EXPECT_EQ(Left("/bucket"), 16u);
  EXPECT_EQ(client_.refund(d), 1);
  EXPECT_EQ(Left("/bucket"), 20u);
  EXPECT_EQ(client_.report(d, 401), 0) << "what was refunded is no more to be corrected";
}

TEST_F(OutcomesTest, ADebtIsPaidByThoseThatCome) {
  Decision d = Check("/bucket");
  EXPECT_EQ(client_.report(d, 403), 1);
  const Decision next = Check("/bucket");
  EXPECT_FALSE(next);
  EXPECT_NEAR(static_cast<double>(next.raw().retry_after_ns), 21.0 * 3600e9, 60e9)
      << "as if the request had cost 40";
}

TEST_F(OutcomesTest, OnlyFailuresCount) {
  for (int i = 0; i < 10; ++i) {
    Decision d = Check("/login");
    ASSERT_TRUE(d) << i;
    EXPECT_EQ(client_.report(d, 200), 1);
  }
  const auto fail = [&] {
    Decision d = Check("/login");
    client_.report(d, 401);
    return d;
  };
  EXPECT_EQ(Allowed(10, fail), 3);
}

TEST_F(OutcomesTest, TokensAreTheRulesWhateverTheRequestsCost) {
  Decision d = Check("/costly", 4);
  EXPECT_EQ(Left("/costly"), 8u);
  EXPECT_EQ(client_.report(d, 500), 1);
  EXPECT_EQ(Left("/costly"), 19u);
}

TEST_F(OutcomesTest, EachRuleByItself) {
  Decision d = Check("/both");
  EXPECT_EQ(client_.report(d, 500), 1);
  EXPECT_EQ(served_.TotalUse(), 1) << "the tenant's stays";
  Decision denied = Check("/both", 21);
  EXPECT_FALSE(denied);
  EXPECT_EQ(client_.report(denied, 500), 0);
  EXPECT_EQ(served_.TotalUse(), 1);
}

TEST_F(OutcomesTest, UnderOtherRulesWhatWasChargedStands) {
  Decision d = Check("/bucket");
  std::string changed = kRules;
  changed.replace(changed.find("401: 5, 403"), 6, "401: 9");
  served_.Publish(changed);
  EXPECT_EQ(client_.report(d, 401), 0);
  EXPECT_EQ(Left("/bucket"), 19u);
  EXPECT_EQ(LeftAfter("/bucket", 401), 11u) << "the next by the new ones";
}

// A token for each millionth of a dollar; none comes back while a test runs.
TEST_F(OutcomesTest, SumsOfMoneyAreExact) {
  std::mt19937_64 random(1);
  uint64_t spent = 0;
  for (int i = 0; i < 2000; ++i) {
    const auto price = static_cast<uint32_t>(random() % 20'000 + 1);
    const Decision d = Check("/money", price);
    ASSERT_EQ(d.allowed(), spent + price <= 10'000'000) << i;
    if (d) spent += price;
    ASSERT_EQ(d.remaining(), 10'000'000 - spent) << i;
  }
  EXPECT_EQ(served_.TotalUse(), static_cast<int64_t>(spent));
  EXPECT_GT(spent, 9'980'000u);
}

TEST_F(OutcomesTest, ThePriceOfAllThereCanBeFitsAndMoreThanFitsInAWordIsDenied) {
  EXPECT_TRUE(Check("/most", SLUICE_MAX_COST));
  EXPECT_FALSE(Check("/most", 1'000'000)) << "of which one comes back in 32 us";
  for (const char* route : {"/dear", "/dear-window", "/dear-log"}) {
    // Times 16 tokens each: 2^32, which a word of 32 bits takes for nothing.
    for (const uint64_t cost : {1ul << 28, (1ul << 28) + 1, SLUICE_MAX_COST}) {
      EXPECT_FALSE(Check(route, cost)) << route << " " << cost;
    }
    EXPECT_TRUE(Check(route)) << route;
  }
}

TEST_F(OutcomesTest, WrongArgumentsAreSaid) {
  Decision d = Check("/bucket");
  EXPECT_EQ(sluice_report(nullptr, &d.raw(), 500), SLUICE_E_ARGUMENT);
  EXPECT_EQ(sluice_report(client_.raw(), nullptr, 500), SLUICE_E_ARGUMENT);
  d.raw().generation ^= 1;
  EXPECT_EQ(client_.report(d, 500), SLUICE_E_STALE);
  Client nobody({.runtime_dir = "/nonexistent"});
  Decision none = nobody.check({{"user", "u"}});
  EXPECT_EQ(nobody.report(none, 500), 0);
}

}  // namespace
}  // namespace sluice::test
