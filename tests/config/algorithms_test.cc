// What a rule's algorithm and consistency ask of its other keys.

#include <gtest/gtest.h>

#include <string>

#include "daemon/config/parse.h"
#include "tests/config/parsed.h"

namespace sluice::config {
namespace {

constexpr uint64_t kMs = 1'000'000;
constexpr uint64_t kSecond = 1000 * kMs;

TEST(AlgorithmsTest, ALeakyBucketLetsOneRequestPassAtOnceUnlessToldOtherwise) {
  const ParseResult result = OfRule(
      "limit: 100/s\n    algorithm: leaky_bucket\n    max_delay: 2s\n    cost: 3\n"
      "    tiers: {a: {limit: 5/s}, b: {limit: 5/s, burst: 9, max_delay: 1s, cost: 1}}");
  ASSERT_TRUE(result.ok()) << Text(result.problems);
  const RuleConfig& rule = result.config.rules.front();
  ASSERT_TRUE(rule.limit.has_value());
  EXPECT_EQ(rule.limit->max_delay_ns, 2 * kSecond);
  EXPECT_EQ(rule.limit->burst, 3u);
  ASSERT_EQ(rule.tiers.size(), 2u);
  EXPECT_EQ(rule.tiers[0].limit.max_delay_ns, 2 * kSecond);
  EXPECT_EQ(rule.tiers[0].limit.burst, 3u);
  EXPECT_EQ(rule.tiers[1].limit.max_delay_ns, kSecond);
  EXPECT_EQ(rule.tiers[1].limit.burst, 9u);
}

TEST(AlgorithmsTest, TiersOfALeakyBucketHaveTheRulesDelay) {
  const ParseResult result =
      OfRule("algorithm: leaky_bucket\n    max_delay: 3s\n    tiers: {a: {limit: 5/s}}");
  ASSERT_TRUE(result.ok()) << Text(result.problems);
  EXPECT_EQ(result.config.rules.front().tiers.front().limit.max_delay_ns, 3 * kSecond);
}

TEST(AlgorithmsTest, AWindowIsOfItsLimitAndPeriod) {
  const ParseResult result = OfRule(
      "limit: 100 per 90s\n    algorithm: sliding_window\n    cost: 3\n"
      "    tiers: {a: {limit: 1000000000/d}}");
  ASSERT_TRUE(result.ok()) << Text(result.problems);
  const RuleConfig& rule = result.config.rules.front();
  EXPECT_EQ(rule.kind, shm::Kind::kSlidingWindow);
  EXPECT_EQ(rule.limit->burst, 100u);
  EXPECT_EQ(rule.tiers[0].limit.burst, 1'000'000'000u);
  EXPECT_EQ(OfRule("limit: 1/s\n    algorithm: fixed_window").config.rules.front().kind,
            shm::Kind::kFixedWindow);
}

TEST(AlgorithmsTest, ASlidingLogHasRoomForTheLargestOfItsLimits) {
  const ParseResult result = OfRule(
      "limit: 100 per 500ms\n    algorithm: sliding_log\n    tiers: {a: {limit: 4096 per 366d}}");
  ASSERT_TRUE(result.ok()) << Text(result.problems);
  EXPECT_EQ(result.config.rules.front().kind, shm::Kind::kSlidingLog);
  EXPECT_EQ(LogsFor(result.config), (shm::LogShape{.rows = 1024, .entries = 4096}));
  const ParseResult few =
      OfRule("limit: 100/s\n    algorithm: sliding_log", "daemon: {buckets: 256}\n");
  EXPECT_EQ(LogsFor(few.config), (shm::LogShape{.rows = 256, .entries = 128}));
  const ParseResult said =
      OfRule("limit: 3/s\n    algorithm: sliding_log", "daemon: {log_keys: 3000}\n");
  EXPECT_EQ(LogsFor(said.config), (shm::LogShape{.rows = 4096, .entries = 8}));
  EXPECT_EQ(LogsFor(OfRule("limit: 3/s").config), shm::LogShape{});
  const ParseResult more =
      OfRule("limit: 3/s\n    algorithm: sliding_log", "daemon: {buckets: 64, log_keys: 65}\n");
  EXPECT_NE(Text(more.problems).find("more than the 64 buckets"), std::string::npos)
      << Text(more.problems);
}

TEST(AlgorithmsTest, TakesStrictLimitsThatCanBeLentOut) {
  const std::string redis = "redis: {addresses: \"h:1\"}\n";
  const auto refused = [&](const char* lines, const char* said) {
    const ParseResult result = OfRule(std::string("consistency: strict\n    ") + lines, redis);
    ASSERT_EQ(result.problems.size(), 1u) << lines << Text(result.problems);
    EXPECT_NE(Text(result.problems).find(said), std::string::npos) << Text(result.problems);
  };
  for (const char* lines : {"limit: 100/s", "limit: 7/d", "limit: 1000000/s",
                            "limit: 1/s\n    algorithm: token_bucket"}) {
    const ParseResult result = OfRule(std::string("consistency: strict\n    ") + lines, redis);
    EXPECT_TRUE(result.ok()) << Text(result.problems);
    EXPECT_TRUE(result.config.rules.front().strict);
  }
  refused("limit: 1/s\n    algorithm: leaky_bucket\n    max_delay: 1s", "strict is for token");
  refused("limit: 2000000/s", "write a burst of at most 1048575");
  refused("limit: 10007 per 300d", "a rounder limit");
  refused("limit: 1/s\n    wait: 2s", "write a duration from 1ms to 1s");
  refused("limit: 1/s\n    wait: 20", "20ms");
  const ParseResult waits = OfRule("limit: 1/s\n    consistency: strict\n    wait: 20ms", redis);
  EXPECT_TRUE(waits.ok()) << Text(waits.problems);
  EXPECT_EQ(waits.config.rules.front().wait_ns, 20'000'000u);
  const ParseResult other = OfRule("limit: 1/s\n    wait: 20ms", redis);
  ASSERT_EQ(other.problems.size(), 1u);
  EXPECT_NE(Text(other.problems).find("is for rules that lend"), std::string::npos);
  // One host alone lends to nobody.
  EXPECT_TRUE(OfRule("limit: 2000000/s\n    consistency: strict").ok());
}

}  // namespace
}  // namespace sluice::config
