// What tests of the file's parser share.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "daemon/config/parse.h"

namespace sluice::config {

inline std::string Text(const std::vector<Finding>& findings) {
  std::string text;
  for (const Finding& finding : findings) text += finding.ToString() + "\n";
  return text;
}

inline Config Good(const std::string& yaml) {
  ParseResult result = ParseConfig(yaml, "t.yaml");
  EXPECT_TRUE(result.ok()) << Text(result.problems) << yaml;
  return std::move(result.config);
}

// A text that is a problem, and what is said of it.
struct BadFile {
  const char* yaml;
  const char* said;
};

inline void ExpectBad(const BadFile& file) {
  const ParseResult result = ParseConfig(file.yaml, "t.yaml");
  ASSERT_FALSE(result.ok());
  const std::string said = Text(result.problems);
  EXPECT_NE(said.find(file.said), std::string::npos) << said;
}

// The findings of a rule that has these lines besides a name and a key.
inline ParseResult OfRule(const std::string& lines, const std::string& head = "") {
  return ParseConfig(head + "rules:\n  - name: rr\n    key: [user]\n    " + lines + "\n", "t.yaml");
}

// A rule's lines that hold one mistake, and what is said of it.
struct Mistake {
  std::string rule;
  const char* said;
};

// Each is told once, with its mend.
inline void ExpectMistakes(const std::vector<Mistake>& mistakes) {
  for (const auto& [rule, said] : mistakes) {
    const ParseResult result = OfRule(rule);
    ASSERT_EQ(result.problems.size(), 1u) << rule << "\n" << Text(result.problems);
    EXPECT_NE(Text(result.problems).find(said), std::string::npos) << rule << "\n"
                                                                   << Text(result.problems);
    EXPECT_FALSE(result.problems.front().mend.empty()) << rule;
  }
}

}  // namespace sluice::config
