// `candidate` of a limit: what is read, what is refused, and what is compiled.
#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "daemon/config/compile.h"
#include "daemon/config/parse.h"
#include "shm/policy_view.h"
#include "tests/config/parsed.h"

namespace sluice::config {
namespace {

TEST(CandidateConfigTest, WhatItLeavesOutIsAsInTheLimitBesideIt) {
  const Config config = Good(R"(
rules:
  - name: rr
    key: [user]
    limit: 100/s
    burst: 300
    cost: 2
    candidate: {limit: 50/s}
    tiers:
      big: {limit: 1000/s, burst: 2000, candidate: {limit: 10/s, burst: 20}}
      plain: {limit: 500/s}
)");
  const RuleConfig& rule = config.rules.front();
  ASSERT_TRUE(rule.candidate);
  EXPECT_EQ(rule.candidate->limit, 50u);
  EXPECT_EQ(rule.candidate->burst, 300u);
  EXPECT_EQ(rule.candidate->cost, 2u);
  ASSERT_TRUE(rule.tiers[0].candidate);
  EXPECT_EQ(rule.tiers[0].candidate->burst, 20u);
  EXPECT_EQ(rule.tiers[0].candidate->cost, 2u);
  EXPECT_FALSE(rule.tiers[1].candidate) << "a rule's candidate is not its tiers'";
}

TEST(CandidateConfigTest, ABurstThatNobodySaysIsTheCandidatesOwnLimit) {
  const ParseResult result = OfRule("limit: 100/s\n    candidate: {limit: 40/s}");
  ASSERT_TRUE(result.ok()) << Text(result.problems);
  EXPECT_EQ(result.config.rules.front().candidate->burst, 40u);
}

TEST(CandidateConfigTest, EachMistakeIsToldOnceWithItsMend) {
  ExpectMistakes({
      {"limit: 9/s\n    candidate: 5/s", "candidate: is "},
      {"limit: 9/s\n    candidate: {}", "candidate.limit"},
      {"limit: 9/s\n    candidate: {limit: 5/s, shadow: true}", "shadow"},
      {"limit: 9/s\n    candidate: {limit: 5/s, burst: 3}",
       "write `burst` beside the candidate too"},
      {"limit: 9/s\n    candidate: {limit: 5/s, cost: 3}", "write `cost` beside the candidate"},
      {"limit: 9/s\n    cost: 6\n    candidate: {limit: 5/s}", "a cost of 6 never fits"},
      {"limit: 9/s\n    consistency: strict\n    candidate: {limit: 5/s}", "not for strict rules"},
      {"limit: 9/m\n    algorithm: fixed_window\n    candidate: {limit: 5 per 10ms}",
       "ends of windows stand on steps"},
  });
}

TEST(CandidateConfigTest, ALabelHasRoomForTheMark) {
  const std::string name(32, 'r');
  const auto rule = [&](size_t tier_bytes) {
    return ParseConfig("rules:\n  - name: " + name + "\n    key: [user]\n    tiers: {" +
                           std::string(tier_bytes, 't') +
                           ": {limit: 9/s, candidate: {limit: 5/s}}}\n",
                       "t.yaml");
  };
  const size_t most = shm::kMaxLabelBytes - kCandidateMark.size() - name.size() - 1;
  EXPECT_TRUE(rule(most).ok()) << Text(rule(most).problems);
  ASSERT_FALSE(rule(most + 1).ok());
  EXPECT_NE(Text(rule(most + 1).problems).find("write a shorter name"), std::string::npos);
}

constexpr char kTried[] = R"(
rules:
  - name: first
    match: {route: /v1}
    key: [user]
    limit: 100/s
    retry_spread: 10s
    when_degraded: {mode: closed, alert: true}
    candidate: {limit: 50/s}
    tiers: {big: {limit: 1000/s, candidate: {limit: 900/s}}}
  - name: second
    key: [tenant]
    limit: 10/s
)";

CompiledRules Compiled(const std::string& yaml) {
  const auto bytes = Compile(Good(yaml), {}, 1);
  EXPECT_TRUE(bytes.ok()) << bytes.status();
  auto rules = CompiledRules::Load(*bytes);
  EXPECT_TRUE(rules.ok()) << rules.status();
  return *std::move(rules);
}

TEST(CandidateConfigTest, CandidatesStandBehindAllRulesAndEachKnowsItsOwn) {
  const CompiledRules rules = Compiled(kTried);
  ASSERT_EQ(rules.rules().size(), 5u);
  EXPECT_EQ(rules.rules()[2].label, "second");
  const CompiledRule* const tried = rules.Find("first?candidate");
  const CompiledRule* const big = rules.Find("first@big?candidate");
  ASSERT_TRUE(tried != nullptr && big != nullptr);
  EXPECT_EQ(rules.Find("first")->candidate, tried->id);
  EXPECT_EQ(tried->beside, rules.Find("first")->id);
  EXPECT_EQ(rules.Find("first@big")->candidate, big->id);
  EXPECT_EQ(tried->limit.limit, 50u);
  EXPECT_EQ(big->limit.limit, 900u);
  EXPECT_TRUE(tried->shadow && big->shadow);
  EXPECT_FALSE(tried->alert) << "an alarm is of what is in force";
  EXPECT_EQ(tried->mode, shm::DegradedMode::kClosed);
  EXPECT_EQ(rules.Find("second")->candidate, shm::kNoRule);
}

std::string_view BytesOf(const shm::RuleNumbers& numbers) {
  return {reinterpret_cast<const char*>(&numbers), sizeof numbers};
}

// What is in force compiles to the same, but for the one word that names its candidate.
TEST(CandidateConfigTest, TheRulesInForceAreAsWithout) {
  std::string without = kTried;
  for (const std::string tried :
       {"    candidate: {limit: 50/s}\n", ", candidate: {limit: 900/s}"}) {
    without.erase(without.find(tried), tried.size());
  }
  const auto with_bytes = Compile(Good(kTried), {}, 1);
  const auto without_bytes = Compile(Good(without), {}, 1);
  ASSERT_TRUE(with_bytes.ok() && without_bytes.ok());
  std::vector<uint64_t> a((with_bytes->size() + 7) / 8);
  std::vector<uint64_t> b((without_bytes->size() + 7) / 8);
  std::memcpy(a.data(), with_bytes->data(), with_bytes->size());
  std::memcpy(b.data(), without_bytes->data(), without_bytes->size());
  const shm::PolicyView with(reinterpret_cast<const char*>(a.data()));
  const shm::PolicyView plain(reinterpret_cast<const char*>(b.data()));
  ASSERT_EQ(plain.rule_count(), 3u);
  EXPECT_NE(with.header().structure_hash, plain.header().structure_hash);
  for (uint32_t id = 0; id < plain.rule_count(); ++id) {
    EXPECT_TRUE(BytesOf(with.rule(id).numbers) == BytesOf(plain.rule(id).numbers)) << id;
    EXPECT_EQ(with.rule(id).hash_seed, plain.rule(id).hash_seed);
  }
}

}  // namespace
}  // namespace sluice::config
