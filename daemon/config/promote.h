// Puts a candidate in force: exchanges it, in the text of the configuration, with the limit that it
// stands beside. To do so again is the way back.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace sluice::config {

// One scalar of the text, replaced; everything else stays as its author wrote it.
struct TextEdit {
  size_t at = 0;  // byte of the text before any edit
  std::string from;
  std::string to;
};

struct Promotion {
  std::vector<TextEdit> edits;  // in the order of the text, apart from each other
  std::string now;              // what is in force, and after it: "limit 100/s, burst 200"
  std::string then;
};

// `label`: of the limit ("name", or "name@tier"). InvalidArgument where there is none, or it has no
// candidate; FailedPrecondition where the text does not let itself be edited so that exactly that
// changes (anchors, escapes): then it is to be exchanged by hand. Pure.
absl::StatusOr<Promotion> Promote(std::string_view text, std::string_view filename,
                                  std::string_view label);

// The text with the edits made. Precondition: they are of this text.
std::string Apply(std::string_view text, const std::vector<TextEdit>& edits);

}  // namespace sluice::config
