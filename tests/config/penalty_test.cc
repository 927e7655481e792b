// `penalty` of a rule: what is read, what is refused, and what is compiled.
#include <gtest/gtest.h>

#include <string>

#include "daemon/config/compile.h"
#include "daemon/config/parse.h"
#include "tests/config/parsed.h"

namespace sluice::config {
namespace {

constexpr uint64_t kSecondNs = 1'000'000'000;

std::string With(const std::string& penalty, const std::string& rest = "limit: 100/s") {
  return rest + "\n    penalty: " + penalty;
}

TEST(PenaltyConfigTest, ABanAndACostAreRead) {
  const ParseResult both = OfRule(With("{after: 20 per 10s, for: 1h, deny_costs: 3}"));
  ASSERT_TRUE(both.ok()) << Text(both.problems);
  const PenaltyConfig& penalty = both.config.rules.front().penalty;
  EXPECT_EQ(penalty.after, 20u);
  EXPECT_EQ(penalty.within_ns, 10 * kSecondNs);
  EXPECT_EQ(penalty.for_ns, 3600 * kSecondNs);
  EXPECT_EQ(penalty.deny_costs, 3u);
  const ParseResult cost = OfRule(With("{deny_costs: 1}"));
  ASSERT_TRUE(cost.ok()) << Text(cost.problems);
  EXPECT_EQ(cost.config.rules.front().penalty.after, 0u);
}

TEST(PenaltyConfigTest, EachMistakeIsToldOnceWithItsMend) {
  ExpectMistakes({
      {With("{}"), "says nothing"},
      {With("{deny_costs: 0}"), "says nothing"},
      {With("{after: 20 per 10s}"), "but not how long it lasts"},
      {With("{for: 1h}"), "but not when it begins"},
      {With("{after: 20 per 100ms, for: 1h}"), "counts denials within 100ms"},
      {With("{after: 20 per 2d, for: 1h}"), "write a time from 1s to 1d"},
      {With("{after: 20/month, for: 1h}"), "write a time from 1s to 1d"},
      {With("{after: 20 per 10s, for: 100d}"), "100d"},
      {With("{after: 20 per 10s, for: 1h}", "limit: 9/m\n    algorithm: fixed_window"), "a window"},
      {With("{after: 20 per 10s, for: 1h}", "limit: 9/m\n    algorithm: sliding_log"), "a log"},
      {With("{after: 20 per 10s, for: 1h}",
            "limit: 9/m\n    algorithm: leaky_bucket\n    max_delay: 1s"),
       "a leaky bucket"},
      {With("{after: 20 per 10s, for: 1h}", "limit: 9/s\n    consistency: strict"),
       "hosts lend its tokens"},
      {With("{after: 20 per 10s, for: 1h}", "limit: 9/s\n    priority: {classes: {a: 1, b: 0.5}}"),
       "its classes end at different times"},
  });
}

TEST(PenaltyConfigTest, TheBoundOfDebtHasRoomForTheBan) {
  const Config config = Good(
      "rules:\n  - name: rr\n    key: [user]\n    limit: 100/s\n    candidate: {limit: 50/s}\n"
      "    penalty: {after: 20 per 10s, for: 1h}\n    tiers: {big: {limit: 1 per 3h}}\n"
      "  - {name: other, key: [user], limit: 100/s}\n");
  const auto bytes = Compile(config, {}, 1);
  ASSERT_TRUE(bytes.ok()) << bytes.status();
  auto rules = CompiledRules::Load(*bytes);
  ASSERT_TRUE(rules.ok()) << rules.status();
  rules->AddPenalties(config);
  EXPECT_EQ(rules->Find("rr")->limit.debt_max_ns, 3600 * kSecondNs);
  EXPECT_EQ(rules->Find("rr@big")->limit.debt_max_ns, 3 * 3600 * kSecondNs) << "its own is longer";
  EXPECT_EQ(rules->Find("other")->limit.debt_max_ns, kSecondNs);
  EXPECT_EQ(rules->Find("rr?candidate")->limit.debt_max_ns, kSecondNs);
  EXPECT_GE(rules->max_debt_ns(), 3600 * kSecondNs);
  EXPECT_EQ(rules->Find("rr@big")->penalty.after, 20u);
  EXPECT_FALSE(rules->Find("rr?candidate")->penalty.is_any());
  EXPECT_FALSE(rules->Find("other")->penalty.is_any());
}

// Hosts that count to another number have other limits.
TEST(PenaltyConfigTest, AnotherPenaltyIsAnotherVersion) {
  const auto version = [](const std::string& penalty) {
    const ParseResult result = OfRule(With(penalty));
    EXPECT_TRUE(result.ok()) << Text(result.problems);
    auto rules = CompiledRules::Load(*Compile(result.config, {}, 1));
    return rules->version_hash();
  };
  const uint64_t twenty = version("{after: 20 per 10s, for: 1h}");
  EXPECT_EQ(twenty, version("{after: 20 per 10s, for: 1h}"));
  EXPECT_NE(twenty, version("{after: 21 per 10s, for: 1h}"));
  EXPECT_NE(twenty, version("{after: 20 per 10s, for: 1h, deny_costs: 1}"));
}

}  // namespace
}  // namespace sluice::config
