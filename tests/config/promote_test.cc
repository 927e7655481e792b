// Promotion: which bytes of the file change, and when none do.
#include <gtest/gtest.h>

#include <string>

#include "absl/status/status.h"
#include "daemon/config/parse.h"
#include "daemon/config/promote.h"
#include "tests/config/parsed.h"

namespace sluice::config {
namespace {

constexpr char kFile[] = R"(# limits of the public API
rules:
  - name: "api"
    key: [user]      # one bucket a user
    limit: '100/s'   # since March
    burst: 200
    candidate: {burst: 50, limit: 1 per 100ms}
    tiers:
      paid:
        limit: 1000/s
        candidate:
          limit: "900/s" # tried
  - {name: other, key: [ip], limit: 7/s}
)";

TEST(PromoteTest, BothChangePlacesAndNothingElseDoes) {
  const auto once = Promote(kFile, "t.yaml", "api");
  ASSERT_TRUE(once.ok()) << once.status();
  EXPECT_EQ(once->now, "limit 100/s, burst 200");
  EXPECT_EQ(once->then, "limit 1 per 100ms, burst 50");
  const std::string after = Apply(kFile, once->edits);
  EXPECT_NE(after.find("limit: 1 per 100ms   # since March\n    burst: 50\n"), std::string::npos)
      << after;
  EXPECT_NE(after.find("candidate: {burst: 200, limit: '100/s'}"), std::string::npos) << after;
  EXPECT_EQ(after.size(), std::string(kFile).size());
  const auto back = Promote(after, "t.yaml", "api");
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ(Apply(after, back->edits), kFile);
}

TEST(PromoteTest, ATiersCandidateIsItsOwn) {
  const auto once = Promote(kFile, "t.yaml", "api@paid");
  ASSERT_TRUE(once.ok()) << once.status();
  const Config config = Good(Apply(kFile, once->edits));
  EXPECT_EQ(config.rules[0].limit->limit, 100u);
  EXPECT_EQ(config.rules[0].tiers[0].limit.limit, 900u);
  EXPECT_EQ(config.rules[0].tiers[0].candidate->limit, 1000u);
}

TEST(PromoteTest, WhatIsNotThereIsSaid) {
  const auto no_rule = Promote(kFile, "t.yaml", "nobody");
  EXPECT_TRUE(absl::IsInvalidArgument(no_rule.status()));
  const auto no_candidate = Promote(kFile, "t.yaml", "other");
  EXPECT_TRUE(absl::IsInvalidArgument(no_candidate.status()));
  EXPECT_NE(no_candidate.status().ToString().find("has no candidate"), std::string::npos);
  EXPECT_TRUE(absl::IsFailedPrecondition(Promote("rules: 1", "t.yaml", "api").status()));
}

// An anchor's number stands in more than one place: whoever wrote it must say what is meant.
TEST(PromoteTest, AFileThatDoesNotLetItselfBeEditedIsLeftAlone) {
  const struct {
    const char* name;
    const char* text;
  } kFiles[] = {
      {"an anchor of a number",
       "rules:\n  - {name: aa, key: [u], limit: &l 100/s, candidate: {limit: 50/s}}\n"
       "  - {name: bb, key: [u], limit: *l}\n"},
      {"an alias in the candidate",
       "rules:\n  - {name: bb, key: [u], limit: &l 100/s}\n"
       "  - {name: aa, key: [u], limit: 90/s, candidate: {limit: *l}}\n"},
      {"an escape",
       "rules:\n  - {name: aa, key: [u], limit: \"100\\x2fs\", "
       "candidate: {limit: 50/s}}\n"},
      {"a block",
       "rules:\n  - name: aa\n    key: [u]\n    limit: >-\n      100/s\n"
       "    candidate: {limit: 50/s}\n"},
  };
  for (const auto& file : kFiles) {
    ASSERT_TRUE(ParseConfig(file.text, "t.yaml").ok()) << file.name;
    const auto promotion = Promote(file.text, "t.yaml", "aa");
    if (promotion.ok()) {
      // Only where it is right all the same.
      const Config config = Good(Apply(file.text, promotion->edits));
      ADD_FAILURE() << file.name << "\n" << Apply(file.text, promotion->edits);
    } else {
      EXPECT_TRUE(absl::IsFailedPrecondition(promotion.status())) << promotion.status();
    }
  }
}

TEST(PromoteTest, TextBeforeItMayBeAnyUtf8AndLinesMayEndInCrLf) {
  const std::string text =
      "# \xc3\xa4\xe2\x82\xac\xf0\x9f\x98\x80\r\nrules:\r\n  - name: aa\r\n    key: [user]\r\n"
      "    limit: 9/s\r\n    candidate: {limit: 5/s}\r\n";
  const auto promotion = Promote(text, "t.yaml", "aa");
  ASSERT_TRUE(promotion.ok()) << promotion.status();
  EXPECT_EQ(Good(Apply(text, promotion->edits)).rules[0].limit->limit, 5u);
}

}  // namespace
}  // namespace sluice::config
