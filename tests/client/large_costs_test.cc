// Costs, limits and bursts up to 10^12: nothing wraps, nothing is admitted that does not fit, and
// what is told is exact.
#include <gtest/gtest.h>

#include <limits>

#include "client/include/sluice.h"
#include "client/include/sluice.hpp"
#include "shm/clock.h"
#include "tests/client/served_client.h"

namespace sluice::test {
namespace {

using namespace std::chrono_literals;

constexpr uint64_t kMost = SLUICE_MAX_COST;
constexpr uint64_t kWord = 1ull << 32;
constexpr uint64_t kTooMuch[] = {kMost + 1, 1ull << 40, (1ull << 63) + 1,
                                 std::numeric_limits<uint64_t>::max()};

// Rates so low that no test is slow enough to see much come back: of the buckets 32 tokens a ms.
constexpr char kRules[] = R"(
rules:
  - {name: bucket, match: {route: /bucket}, key: [user], limit: 1000000000000 per 365d}
  - {name: fixed, match: {route: /fixed}, key: [user], limit: 1000000000000 per 300d,
     algorithm: fixed_window}
  - {name: sliding, match: {route: /sliding}, key: [user], limit: 1000000000000 per 300d,
     algorithm: sliding_window}
  - {name: dear, match: {route: /dear}, key: [user], limit: 1000000000000 per 365d, cost: 1000000}
  - {name: dear-fixed, match: {route: /dear-fixed}, key: [user], limit: 1000000000000 per 300d,
     cost: 1000000, algorithm: fixed_window}
  - {name: log, match: {route: /log}, key: [user], limit: 4096 per 10h, algorithm: sliding_log}
  - {name: places, match: {route: /places}, key: [user], in_flight: 4096}
  - {name: both, match: {route: /both}, key: [user], limit: 1000000000000 per 365d}
  - {name: both-small, match: {route: /both}, key: [tenant], limit: 100 per 100h}
  - {name: priced, match: {route: /priced}, key: [user], limit: 1000000000000 per 300d,
     algorithm: fixed_window, outcomes: {200: 999999999999, 5xx: refund}}
  - {name: given, match: {route: /given}, key: [user], limit: 10 per 365d,
     override: {by: plan, max: 1000000000000}}
)";

class LargeCostsTest : public ServedClient {
 protected:
  LargeCostsTest() : ServedClient(kRules, {.capacity = 1 << 16}) {}

  Decision Check(const char* route, uint64_t cost, const char* user = "u") {
    return client_.check({{"route", route}, {"user", user}, {"tenant", "t"}}, cost);
  }
  uint64_t Left(const char* route, const char* user = "u") {
    return client_.peek({{"route", route}, {"user", user}, {"tenant", "t"}}, 0).remaining();
  }
};

TEST_F(LargeCostsTest, ACostAboveTheMostIsAnErrorByEveryWayToAsk) {
  const sluice_descriptor_t d[] = {Descriptor("route", "/fixed"), Descriptor("user", "u")};
  sluice_t* raw = nullptr;
  const std::string dir = served_.dir();
  const sluice_options_t options = {sizeof(sluice_options_t), 0, dir.c_str(), nullptr};
  ASSERT_EQ(sluice_open(&options, &raw), 0);
  ASSERT_EQ(sluice_wait(raw, 5000), 1);
  sluice_handle_t* handle = nullptr;
  ASSERT_EQ(sluice_handle_bind(raw, d, 2, &handle), 0);
  sluice_rule_t* rule = nullptr;
  ASSERT_EQ(sluice_rule_bind(raw, "fixed", &rule), 0);
  for (const uint64_t cost : kTooMuch) {
    sluice_decision_t decision;
    EXPECT_EQ(sluice_check(raw, d, 2, cost, &decision), SLUICE_E_ARGUMENT) << cost;
    EXPECT_EQ(decision.allowed, 0) << "the client's default";
    EXPECT_EQ(sluice_check(raw, d, 2, cost, nullptr), SLUICE_E_ARGUMENT);
    EXPECT_EQ(sluice_peek(raw, d, 2, cost, &decision), SLUICE_E_ARGUMENT);
    EXPECT_EQ(sluice_check_wait(raw, d, 2, cost, 0, &decision), SLUICE_E_ARGUMENT);
    EXPECT_EQ(sluice_acquire(raw, d, 2, cost, 0, -1, &decision), SLUICE_E_ARGUMENT);
    EXPECT_EQ(sluice_handle_check(handle, cost, &decision), SLUICE_E_ARGUMENT);
    EXPECT_EQ(sluice_handle_check(handle, cost, nullptr), SLUICE_E_ARGUMENT);
    EXPECT_EQ(sluice_rule_check(rule, "u", 1, cost, &decision), SLUICE_E_ARGUMENT);
    EXPECT_EQ(sluice_rule_check(rule, "u", 1, cost, nullptr), SLUICE_E_ARGUMENT);
    sluice_place_t place;
    EXPECT_EQ(sluice_enter(raw, d, 2, cost, &place), SLUICE_E_ARGUMENT);
    sluice_reservation_t reservation;
    EXPECT_EQ(sluice_reserve(raw, d, 2, cost, 1'000'000'000, &reservation), SLUICE_E_ARGUMENT);
    const sluice_request_t request = {d, 2, cost};
    int result = 0;
    sluice_check_many(raw, &request, 1, &result, &decision);
    EXPECT_EQ(result, SLUICE_E_ARGUMENT);
    const sluice_key_t key = {"u", 1};
    EXPECT_LE(sluice_rule_check_many(rule, &key, 1, cost, &result, &decision), 0);
    EXPECT_LT(result, 1);
    ASSERT_EQ(sluice_reserve(raw, d, 2, 5, 1'000'000'000, &reservation), 1);
    EXPECT_EQ(sluice_settle(raw, &reservation, cost), SLUICE_E_ARGUMENT);
    EXPECT_EQ(sluice_settle(raw, &reservation, 0), 1);
  }
  EXPECT_EQ(Left("/fixed"), kMost) << "and none of them spends";
  sluice_rule_free(rule);
  sluice_handle_free(handle);
  sluice_close(raw);
}

TEST_F(LargeCostsTest, AFixedWindowIsExactToTheToken) {
  uint64_t left = kMost;
  for (const uint64_t cost :
       {uint64_t{1}, kWord - 1, kWord, kWord + 1, uint64_t{4200}, kMost / 2, uint64_t{262'145}}) {
    const Decision d = Check("/fixed", cost);
    ASSERT_TRUE(d) << cost;
    left -= cost;
    EXPECT_EQ(d.remaining(), left);
  }
  EXPECT_FALSE(Check("/fixed", left + 1));
  EXPECT_EQ(Left("/fixed"), left);
  Decision all = Check("/fixed", left);
  ASSERT_TRUE(all);
  EXPECT_EQ(all.remaining(), 0u);
  EXPECT_FALSE(Check("/fixed", 1));
  EXPECT_EQ(client_.refund(all), 1);
  EXPECT_EQ(Left("/fixed"), left);
}

TEST_F(LargeCostsTest, AllOfALimitFitsAtOnceAndOneMoreDoesNot) {
  for (const char* route : {"/bucket", "/fixed", "/sliding"}) {
    EXPECT_EQ(Left(route, "all"), kMost) << route;
    EXPECT_TRUE(Check(route, kMost - 1, "almost")) << route;
    EXPECT_TRUE(Check(route, kMost, "all")) << route;
    const Decision d = Check(route, kWord, "all");
    EXPECT_FALSE(d) << route;
    EXPECT_TRUE(d.retry_after().has_value()) << route;
  }
}

TEST_F(LargeCostsTest, ATokenBucketIsExactToWhatComesBack) {
  ASSERT_TRUE(Check("/bucket", kWord + 1));
  // A token is 31,536 ns. The coarse clock is some ms behind, which is some hundred of them.
  const uint64_t left = Left("/bucket");
  EXPECT_GE(left, kMost - kWord - 1 - 1000);
  EXPECT_LT(left, kMost - kWord - 1 + 5'000'000) << "in less than 150 s";
  auto handle = client_.bind({{"route", "/bucket"}, {"user", "u"}});
  ASSERT_TRUE(handle);
  EXPECT_FALSE(handle->check(kMost));
  EXPECT_TRUE(handle->check(kMost - kWord - 1));
}

// cost x the rule's cost is more than any bucket holds, and more than 2^32 and 2^59.
TEST_F(LargeCostsTest, ACostThatTheRuleMakesLargerThanAnyBucketNeverFits) {
  for (const char* route : {"/dear", "/dear-fixed"}) {
    for (const uint64_t cost : {uint64_t{1'000'001}, kWord, kWord + 1, kMost - 1, kMost}) {
      const Decision d = Check(route, cost);
      EXPECT_FALSE(d) << route << " " << cost;
      EXPECT_FALSE(d.retry_after().has_value()) << route << " " << cost;
    }
    EXPECT_TRUE(Check(route, 1'000'000)) << route;
  }
  for (const uint64_t cost : {uint64_t{4097}, kWord, kWord + 1, kMost}) {
    EXPECT_FALSE(Check("/log", cost)) << cost;
    EXPECT_FALSE(client_.enter({{"route", "/places"}, {"user", "u"}}, cost)) << cost;
  }
  EXPECT_EQ(Left("/log"), 4096u);
}

TEST_F(LargeCostsTest, OfSeveralRulesNothingIsSpentWhereOneSaysNo) {
  EXPECT_FALSE(Check("/both", kWord + 5));
  EXPECT_FALSE(Check("/both", kMost));
  EXPECT_EQ(Left("/both"), 100u);
  EXPECT_EQ(served_.TotalUse(), 0);
}

TEST_F(LargeCostsTest, AReservationIsSettledToTheToken) {
  for (const uint64_t actual : {uint64_t{0}, uint64_t{1}, kWord - 1, kWord, kWord + 1, kMost / 3}) {
    const std::string user = std::to_string(actual);
    for (const uint64_t estimate : {kWord - 1, kWord + 1, kMost}) {
      const Reservation r = client_.reserve({{"route", "/fixed"}, {"user", user}}, estimate, 1min);
      ASSERT_TRUE(r);
      EXPECT_EQ(r.estimate(), estimate);
      EXPECT_EQ(Left("/fixed", user.c_str()), kMost - estimate);
      EXPECT_TRUE(client_.settle(r, actual));
      EXPECT_EQ(Left("/fixed", user.c_str()), kMost - actual);
      const Reservation back = client_.reserve({{"route", "/fixed"}, {"user", user}}, 1, 1min);
      ASSERT_TRUE(back);
      EXPECT_TRUE(client_.settle(back, 0));
      // For the next estimate all is given back.
      if (actual == 0) continue;
      break;
    }
  }
}

TEST_F(LargeCostsTest, WhatAnOutcomeCostsIsExact) {
  Decision d = Check("/priced", 7);
  ASSERT_TRUE(d);
  EXPECT_EQ(client_.report(d, 200), 1);
  EXPECT_EQ(Left("/priced"), 1u);
  Decision failed = Check("/priced", 1);
  ASSERT_TRUE(failed);
  EXPECT_EQ(client_.report(failed, 503), 1);
  EXPECT_EQ(Left("/priced"), 1u);
}

TEST_F(LargeCostsTest, ALimitThatComesWithTheRequestMayBeAsLarge) {
  const auto check = [&](const char* plan, uint64_t cost) {
    return client_.check({{"route", "/given"}, {"user", "u"}, {"plan", plan}}, cost);
  };
  EXPECT_EQ(check("1000000000000", kMost - 1).limit(), kMost);
  EXPECT_EQ(check("18446744073709551615", 1).limit(), kMost) << "more counts as the most";
  EXPECT_EQ(check("4294967297", kWord + 1).limit(), kWord + 1);
  EXPECT_FALSE(check("4294967297", kWord));
}

// Settled for more than a word of use holds, over and over: the use neither wraps nor becomes
// another tenancy's.
TEST_F(LargeCostsTest, UseThatNobodyTakesDoesNotWrap) {
  for (int i = 0; i < 300; ++i) {
    const std::string user = "deep";
    const Reservation r = client_.reserve({{"route", "/given"}, {"user", user}}, 1, 1min);
    if (!r) break;
    EXPECT_TRUE(client_.settle(r, kMost));
  }
  EXPECT_GT(served_.TotalUse(), 0);
}

}  // namespace
}  // namespace sluice::test
