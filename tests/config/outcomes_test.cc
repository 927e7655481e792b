// `outcomes` of a rule: what is read, what is refused, and what is compiled.
#include <gtest/gtest.h>

#include <string>

#include "daemon/config/compile.h"
#include "daemon/config/parse.h"
#include "shm/policy_view.h"
#include "tests/config/parsed.h"

namespace sluice::config {
namespace {

std::string With(const std::string& outcomes) { return "limit: 100/s\n    outcomes: " + outcomes; }

TEST(OutcomesConfigTest, StatusesAndHundredsAreReadInTheirOrder) {
  const ParseResult result = OfRule(With("{401: 5, 404: 0, 4xx: 2, 5xx: refund}"));
  ASSERT_TRUE(result.ok()) << Text(result.problems);
  const std::vector<OutcomeConfig>& outcomes = result.config.rules.front().outcomes;
  ASSERT_EQ(outcomes.size(), 4u);
  EXPECT_EQ(outcomes[0].first_status, 401);
  EXPECT_EQ(outcomes[0].last_status, 401);
  EXPECT_EQ(outcomes[0].tokens, 5u);
  EXPECT_EQ(outcomes[2].first_status, 400);
  EXPECT_EQ(outcomes[2].last_status, 499);
  EXPECT_EQ(outcomes[3].tokens, 0u);
}

TEST(OutcomesConfigTest, EachMistakeIsToldOnceWithItsMend) {
  ExpectMistakes({
      {With("refund"), "not a mapping"},
      {With("{}"), "holds 0 outcomes"},
      {With("{4x: 1}"), "\"4x\" is no status"},
      {With("{4x4: 1}"), "\"4x4\" is no status"},
      {With("{\"+12\": 1}"), "is no status"},
      {With("{4040: 1}"), "is no status"},
      {With("{404: -1}"), "\"-1\" is no number of tokens"},
      {With("{404: 1.5}"), "is no number of tokens"},
      {With("{404: 1000000000001}"), "is no number of tokens"},
      {With("{404: 99999999999999999999}"), "is no number of tokens"},
      {With("{404: [1]}"), "is a list, not a number of tokens"},
      {With("{4xx: 1, 404: 2}"), "never counts"},
      {"in_flight: 9\n    outcomes: {404: 2}", "not for requests in flight"},
  });
}

TEST(OutcomesConfigTest, AreCompiledAndVerified) {
  const ParseResult result = OfRule(With("{401: 5, 5xx: refund}"));
  ASSERT_TRUE(result.ok()) << Text(result.problems);
  const auto bytes = Compile(result.config, shm::HashKey{1, 2}, 7);
  ASSERT_TRUE(bytes.ok()) << bytes.status();
  std::vector<uint64_t> copy(bytes->size() / 8 + 1);
  std::memcpy(copy.data(), bytes->data(), bytes->size());
  const shm::PolicyView view(reinterpret_cast<const char*>(copy.data()));
  const shm::GroupView& group = view.group(0);
  ASSERT_EQ(group.outcome_count, 2);
  EXPECT_EQ(view.outcome(group, 0).first_status, 401);
  EXPECT_EQ(view.outcome(group, 0).tokens, 5u);
  EXPECT_EQ(view.outcome(group, 1).last_status, 599);
  // A policy of a keeper that was hit by a stray write is refused.
  const auto broken = [&](uint32_t offset, uint8_t value) {
    std::string bad = *bytes;
    bad[offset] = static_cast<char>(value);
    return VerifyPolicy(bad).ok();
  };
  const uint32_t at = view.header().groups_offset + offsetof(shm::GroupView, outcome_count);
  EXPECT_FALSE(broken(at, shm::kMaxOutcomes + 1));
  EXPECT_FALSE(broken(group.outcomes_offset + 1, 0xff)) << "a first status above the last";
}

}  // namespace
}  // namespace sluice::config
