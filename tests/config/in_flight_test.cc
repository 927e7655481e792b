// `in_flight` of a rule: what is read, what is refused, and what is compiled.
#include <gtest/gtest.h>

#include <string>

#include "daemon/config/compile.h"
#include "daemon/config/parse.h"
#include "shm/places.h"
#include "shm/policy_view.h"
#include "tests/config/parsed.h"

namespace sluice::config {
namespace {

constexpr char kRedis[] = "redis: {addresses: [\"127.0.0.1:6379\"], mode: single}\n";

TEST(InFlightConfigTest, IsReadInPlaceOfALimit) {
  const ParseResult result = OfRule(
      "in_flight: 100\n    cost: 3\n    tiers: {big: {in_flight: 4096, cost: 1}, usual: "
      "{in_flight: 7}}");
  ASSERT_TRUE(result.ok()) << Text(result.problems);
  EXPECT_TRUE(result.warnings.empty()) << Text(result.warnings);
  const RuleConfig& rule = result.config.rules.front();
  EXPECT_EQ(rule.kind, shm::Kind::kInFlight);
  EXPECT_EQ(rule.limit->limit, 100u);
  EXPECT_EQ(rule.limit->cost, 3u);
  ASSERT_EQ(rule.tiers.size(), 2u);
  EXPECT_EQ(rule.tiers[0].limit.limit, 4096u);
  EXPECT_EQ(rule.tiers[0].limit.cost, 1u);
  EXPECT_EQ(rule.tiers[1].limit.cost, 3u);
  EXPECT_EQ(LogsFor(result.config), (shm::LogShape{.rows = 1024, .entries = 4096}));
  EXPECT_EQ(AlgorithmName(rule.kind, 0), "in_flight");
}

TEST(InFlightConfigTest, MayBeOfTiersAlone) {
  const ParseResult result = OfRule("tiers: {free: {in_flight: 1}}");
  ASSERT_TRUE(result.ok()) << Text(result.problems);
  EXPECT_EQ(result.config.rules.front().kind, shm::Kind::kInFlight);
  EXPECT_FALSE(result.config.rules.front().limit);
  EXPECT_EQ(LogsFor(result.config), (shm::LogShape{.rows = 1024, .entries = 8}));
}

TEST(InFlightConfigTest, EachMistakeIsToldOnceWithItsMend) {
  const struct {
    const char* rule;
    const char* said;
  } kMistakes[] = {
      {"in_flight: 0", "0 is out of range"},
      {"in_flight: 4097", "out of range"},
      {"in_flight: 10/s", "is no whole number"},
      {"in_flight: 5\n    limit: 9/s", "the rule counts requests in flight"},
      {"in_flight: 5\n    burst: 9", "the rule counts requests in flight"},
      {"in_flight: 5\n    max_delay: 9s", "the rule counts requests in flight"},
      {"in_flight: 5\n    algorithm: sliding_log", "the rule counts requests in flight"},
      {"in_flight: 5\n    consistency: strict", "places are never more than the limit"},
      {"in_flight: 5\n    consistency: overdraft", "places are never more than the limit"},
      {"in_flight: 5\n    wait: 20ms", "is for rules that lend"},
      {"in_flight: 5\n    retry_spread: 9s", "is for token and leaky buckets"},
      {"in_flight: 5\n    priority: {classes: {a: 1}}", "of requests in flight"},
      {"in_flight: 5\n    calendar: {}", "is for fixed windows"},
      {"in_flight: 5\n    cost: 6", "never fits 5 places"},
      {"in_flight: 5\n    tiers: {a: {limit: 9/s, in_flight: 2}}", "counts requests in flight"},
      {"in_flight: 5\n    tiers: {a: {cost: 1}}", "is missing"},
      {"limit: 5/s\n    tiers: {a: {burst: 9}}", "has no limit beside it"},
      {"cost: 5", "or `in_flight: 10`"},
      {"limit: 5/s\n    algorithm: in_flight", "write `in_flight: 100` in place of"},
  };
  for (const auto& [rule, said] : kMistakes) {
    const ParseResult result = OfRule(rule);
    EXPECT_FALSE(result.problems.empty()) << rule;
    EXPECT_NE(Text(result.problems).find(said), std::string::npos) << rule << "\n"
                                                                   << Text(result.problems);
    for (const Finding& problem : result.problems) EXPECT_FALSE(problem.mend.empty()) << rule;
  }
}

TEST(InFlightConfigTest, HoldsOverAllHostsWithRedisAndAdmitsNobodyWithoutIt) {
  for (const bool has_redis : {true, false}) {
    const ParseResult result =
        OfRule("in_flight: 5\n    tiers: {big: {in_flight: 9}}", has_redis ? kRedis : "");
    ASSERT_TRUE(result.ok()) << Text(result.problems);
    EXPECT_TRUE(result.warnings.empty()) << Text(result.warnings);
    const auto bytes = Compile(result.config, shm::HashKey{1, 2}, 7);
    ASSERT_TRUE(bytes.ok()) << bytes.status();
    const auto rules = CompiledRules::Load(*bytes);
    ASSERT_TRUE(rules.ok()) << rules.status();
    for (const CompiledRule& rule : rules->rules()) {
      EXPECT_EQ(rule.strict, has_redis);
      EXPECT_EQ(rule.is_lent(), has_redis);
      EXPECT_EQ(rule.mode, shm::DegradedMode::kClosed);
      EXPECT_EQ(rule.then_mode, shm::DegradedMode::kClosed);
    }
  }
}

TEST(InFlightConfigTest, WhatNobodyListensToIsSaid) {
  const char kDegraded[] = "in_flight: 5\n    when_degraded: {mode: open}";
  const ParseResult alone = OfRule(kDegraded);
  ASSERT_TRUE(alone.ok()) << Text(alone.problems);
  EXPECT_NE(Text(alone.warnings).find("has no effect"), std::string::npos) << Text(alone.warnings);
  const ParseResult with_redis = OfRule(kDegraded, kRedis);
  ASSERT_TRUE(with_redis.ok()) << Text(with_redis.problems);
  EXPECT_TRUE(with_redis.warnings.empty()) << Text(with_redis.warnings);
  EXPECT_EQ(with_redis.config.rules.front().degraded.mode, shm::DegradedMode::kOpen);
}

TEST(InFlightConfigTest, IsCompiledSoThatPinnedWordsAreNotWild) {
  const ParseResult result = OfRule("in_flight: 9");
  ASSERT_TRUE(result.ok()) << Text(result.problems);
  const auto bytes = Compile(result.config, shm::HashKey{1, 2}, 7);
  ASSERT_TRUE(bytes.ok()) << bytes.status();
  EXPECT_TRUE(VerifyPolicy(*bytes).ok()) << VerifyPolicy(*bytes);
  const auto rules = CompiledRules::Load(*bytes);
  ASSERT_TRUE(rules.ok()) << rules.status();
  const shm::Limit& limit = rules->rules().front().limit;
  EXPECT_EQ(limit.limit, 9u);
  EXPECT_GT(limit.tau_ns + limit.debt_max_ns, shm::places::kPinNs + shm::payload::kStepNs);
}

}  // namespace
}  // namespace sluice::config
