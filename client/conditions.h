// Whether the values of a request meet a condition of a rule. Pure functions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "shm/policy_view.h"

namespace sluice::client {

// '*' any run, '?' any byte. Iterative with one point of return: linear in the common case, and
// bounded by pattern * text.
inline bool GlobMatches(std::string_view pattern, std::string_view text) {
  size_t p = 0;
  size_t t = 0;
  size_t star = std::string_view::npos;
  size_t resume = 0;
  while (t < text.size()) {
    if (p < pattern.size() && (pattern[p] == '?' || pattern[p] == text[t]) && pattern[p] != '*') {
      ++p;
      ++t;
    } else if (p < pattern.size() && pattern[p] == '*') {
      star = p++;
      resume = t;
    } else if (star != std::string_view::npos) {
      p = star + 1;
      t = ++resume;
    } else {
      return false;
    }
  }
  while (p < pattern.size() && pattern[p] == '*') ++p;
  return p == pattern.size();
}

inline bool Matches(const shm::PolicyView& view, const shm::ConditionView& condition,
                    std::string_view value) {
  switch (condition.op) {
    case shm::MatchOp::kExact:
      return value == view.text(condition.value);
    case shm::MatchOp::kPrefix:
      return value.starts_with(view.text(condition.value));
    case shm::MatchOp::kGlob:
      return GlobMatches(view.text(condition.value), value);
    case shm::MatchOp::kOneOf:
      for (uint32_t i = 0; i < condition.count && i < shm::kMaxOneOf; ++i) {
        if (value == view.one_of(condition, i)) return true;
      }
      return false;
  }
  return false;
}

}  // namespace sluice::client
