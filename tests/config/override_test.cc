// `override` of a rule: what is read, what is refused, and what a daemon makes of buckets' names.
#include <gtest/gtest.h>

#include <string>

#include "daemon/config/compile.h"
#include "daemon/config/parse.h"
#include "tests/config/parsed.h"

namespace sluice::config {
namespace {

std::string With(const std::string& override, const std::string& rest = "limit: 100/s") {
  return rest + "\n    override: " + override;
}

TEST(OverrideConfigTest, IsReadWithItsDefault) {
  const ParseResult result = OfRule(With("{max: 1000}"));
  ASSERT_TRUE(result.ok()) << Text(result.problems);
  EXPECT_EQ(result.config.rules.front().override->descriptor, "limit");
  EXPECT_EQ(result.config.rules.front().override->max, 1000u);
  const ParseResult named = OfRule(With("{by: plan, max: 1}"));
  ASSERT_TRUE(named.ok()) << Text(named.problems);
  EXPECT_EQ(named.config.rules.front().override->descriptor, "plan");
}

TEST(OverrideConfigTest, EachMistakeIsToldOnceWithItsMend) {
  ExpectMistakes({
      {With("{by: plan}"), "max"},
      {With("{max: 0}"), "0"},
      {With("{max: 1000000000001}"), "1000000000001"},
      {With("{max: 100/s}"), "100/s"},
      {With("{max: 5, by: 1x}"), "1x"},
      {With("{max: 5}", "limit: 9/s\n    algorithm: fixed_window"), "this rule is a window"},
      {With("{max: 5}", "limit: 9/s\n    algorithm: sliding_log"), "this rule is a log"},
      {With("{max: 5}", "limit: 9/s\n    consistency: strict"), "this rule is strict"},
      {With("{max: 5}", "limit: 9/s\n    consistency: overdraft"), "is an overdraft"},
      {With("{max: 5}", "limit: 9/s\n    algorithm: leaky_bucket\n    max_delay: 1s"),
       "is a leaky bucket"},
      {With("{max: 5}", "in_flight: 9"), "this rule is of requests in flight"},
      {With("{max: 5}", "limit: 9/s\n    candidate: {limit: 5/s}"), "beside `candidate`"},
      {With("{max: 5}", "limit: 9/s\n    penalty: {after: 5 per 10s, for: 60s}"),
       "beside `penalty`"},
      {With("{max: 5}", "limit: 300 per 300d\n    cost: 2"), "a limit of 1"},
  });
}

TEST(OverrideConfigTest, ALabelNeedsRoomForTheLimit) {
  const std::string fits =
      "rules:\n  - {name: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa, key: [user], "
      "override: {max: 5}, tiers: {bbbbbbbbbbbbbbbbb: {limit: 9/s}}}\n";
  EXPECT_TRUE(ParseConfig(fits, "t.yaml").ok()) << Text(ParseConfig(fits, "t.yaml").problems);
  std::string longer = fits;
  longer.insert(longer.find("bbb"), "b");
  ExpectBad({longer.c_str(), "at most 49 bytes together"});
}

CompiledRules Compiled(const std::string& rule) {
  const ParseResult result = OfRule(rule);
  EXPECT_TRUE(result.ok()) << Text(result.problems);
  const auto bytes = Compile(result.config, shm::HashKey{1, 2}, 7);
  EXPECT_TRUE(bytes.ok()) << bytes.status();
  return *CompiledRules::Load(*bytes);
}

TEST(OverrideConfigTest, ABucketsNameSaysItsLimit) {
  const CompiledRules rules =
      Compiled(With("{max: 1000}", "limit: 100/s\n    burst: 50\n    tiers: {paid: {limit: 7/s}}"));
  const std::string own = rules.rules().back().label;
  const CompiledRule* const rule = rules.Find(own);
  ASSERT_NE(rule, nullptr);
  EXPECT_EQ(rules.Find(own + "=300"), rule);
  EXPECT_EQ(rule->LimitOf(own + "=300").limit, 300u);
  EXPECT_EQ(rule->LimitOf(own + "=300").burst, 150u);
  EXPECT_EQ(rule->LimitOf(own + "=3").burst, 2u) << "rounded up";
  EXPECT_EQ(rule->LimitOf(own).limit, 100u);
  const CompiledRule* const paid = rules.Find(own + "@paid=1000");
  ASSERT_NE(paid, nullptr);
  EXPECT_EQ(paid->LimitOf(own + "@paid=1000").burst, 1000u);
  for (const char* wrong : {"=", "=0", "=01", "=1001", "=x", "=99999999999999999999", "=3=3"}) {
    EXPECT_EQ(rules.Find(own + wrong), nullptr) << wrong;
  }
  EXPECT_EQ(Compiled(With("{max: 5}")).max_debt_ns() / 1'000'000'000, 2 * 2u)
      << "a limit of 1 fills a bucket of one token in a second; one more for rounding";
  EXPECT_EQ(Compiled("limit: 100/s").Find("rr=3"), nullptr) << "no request may bring one";
}

TEST(OverrideConfigTest, NoBucketReachesFurtherThanWasSaid) {
  const CompiledRules rules =
      Compiled(With("{max: 1000000000000}", "limit: 7 per 11s\n    burst: 9\n    cost: 3"));
  const CompiledRule& rule = rules.rules().front();
  for (uint64_t limit = 1; limit <= shm::kMaxTokens; limit += limit / 7 + 1) {
    const shm::Limit given = shm::Given(rule.limit, limit, rule.cost);
    EXPECT_LE(given.tau_ns, rule.most.tau_ns) << limit;
    EXPECT_LE(given.tau_ns + given.debt_max_ns, rules.max_debt_ns()) << limit;
    EXPECT_GE(given.interval_ns, rule.most.interval_ns) << limit;
    EXPECT_GE(given.burst, rule.cost) << limit;
  }
}

}  // namespace
}  // namespace sluice::config
