// `near`, `soft` and `metadata`: what answers tell beside yes and no.
#include <gtest/gtest.h>

#include <string>

#include "daemon/config/parse.h"
#include "tests/config/parsed.h"

namespace sluice::config {
namespace {

std::string With(const std::string& lines) { return "limit: 100/s\n    " + lines; }

TEST(AnswersConfigTest, NearIsFourFifthsOfTheNextLevelUnlessTheRuleSaysOther) {
  const struct {
    const char* lines;
    int near_percent;
    int soft_percent;
  } kLevels[] = {{"cost: 1", 80, 0},
                 {"near: 0.5", 50, 0},
                 {"near: 1", 100, 0},
                 {"soft: {at: 0.9}", 72, 90},
                 {"soft: {at: 1}", 80, 100},
                 {"soft: {at: 0.01}", 1, 1},
                 {"near: 0.25\n    soft: {at: 0.755}", 25, 76}};
  for (const auto& [lines, near_percent, soft_percent] : kLevels) {
    const ParseResult result = OfRule(With(lines));
    ASSERT_TRUE(result.ok()) << lines << Text(result.problems);
    EXPECT_EQ(result.config.rules.front().near_percent, near_percent) << lines;
    EXPECT_EQ(result.config.rules.front().soft_percent, soft_percent) << lines;
  }
}

TEST(AnswersConfigTest, EachMistakeIsToldOnceWithItsMend) {
  std::string nine = "metadata: {";
  for (int i = 0; i < 9; ++i) nine += std::string(1, static_cast<char>('a' + i)) + ": x, ";
  const struct {
    std::string lines;
    const char* said;
  } kMistakes[] = {{"near: 0", "out of range"},
                   {"near: 1.1", "out of range"},
                   {"soft: {}", "at"},
                   {"soft: 0.9", "write `soft: {at: 0.9}`"},
                   {"near: 0.9\n    soft: {at: 0.9}", "is not below `soft.at`"},
                   {"metadata: text", "is a single value, not a mapping"},
                   {"metadata: {a: [1]}", "is a list, not a text"},
                   {"metadata: {a: " + std::string(256, 'x') + "}", "is too long"},
                   {"metadata: {" + std::string(32, 'x') + ": a}", "is too long"},
                   {nine + "}", "holds 9 texts"},
                   {"retry_spread: 1500ms", "whole seconds"},
                   {"retry_spread: 9m", "out of range"},
                   {"retry_spread: 30s\n    consistency: strict", "do not lend"}};
  for (const auto& [lines, said] : kMistakes) {
    const ParseResult result = OfRule(With(lines));
    ASSERT_EQ(result.problems.size(), 1u) << lines << "\n" << Text(result.problems);
    EXPECT_NE(Text(result.problems).find(said), std::string::npos) << lines << "\n"
                                                                   << Text(result.problems);
  }
}

}  // namespace
}  // namespace sluice::config
