// Small texts. Debian 12 builds Abseil for C++14, where absl::string_view is a type of its own;
// these take std::string_view everywhere.
#pragma once

#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace sluice::config {

inline absl::string_view ToAbsl(std::string_view text) { return {text.data(), text.size()}; }

namespace text_internal {
template <class T>
decltype(auto) Part(const T& part) {
  if constexpr (std::is_same_v<T, std::string_view>) {
    return ToAbsl(part);
  } else {
    return (part);
  }
}
}  // namespace text_internal

// Concatenates texts and numbers.
template <class... Parts>
std::string Cat(const Parts&... parts) {
  return absl::StrCat(text_internal::Part(parts)...);
}

// Without blanks at both ends.
std::string_view Trim(std::string_view text);

// The parts between separators; "a||b" has an empty one.
std::vector<std::string_view> Split(std::string_view text, char separator);

std::string Join(const std::vector<std::string_view>& parts, std::string_view separator);

// Without control characters, and cut after `max_bytes`: a message is one line, whatever a file's
// escapes make of its texts, and does nothing to a terminal.
std::string Printable(std::string_view text, size_t max_bytes);

// Whether `text` has letters, digits and `punctuation` only.
bool HasOnly(std::string_view text, std::string_view punctuation);

// In quotes, for messages: printable, and cut where it is long.
std::string Shown(std::string_view text);

// "1,000,000"; numbers below 10,000 as they are.
std::string Grouped(int64_t value);

}  // namespace sluice::config
