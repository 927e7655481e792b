// Durations and rates as people write them: "100ms", "1m30s", "100/s", "1 per 10s".
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace sluice::config {

// All functions are pure. Errors are InvalidArgument with a message that names the text and the
// mend, "... ; write ...".

inline constexpr uint64_t kMaxDurationNs = 400ull * 86'400'000'000'000;

// A sum of whole numbers with units from d, h, m, s, ms, largest first and each at most once.
// 1 ms..400 days.
absl::StatusOr<uint64_t> ParseDurationNs(std::string_view text);

// The shortest text that ParseDurationNs reads as this. Precondition: whole milliseconds.
std::string FormatDuration(uint64_t ns);

struct Rate {
  uint64_t tokens = 0;     // 0 is parsed; what may stand in a rule is the caller's to say
  uint64_t period_ns = 0;  // 1 ms..400 days
  // "N/month" or "N/year", which last 31 and 366 days at most: only a calendar says how long.
  bool is_of_calendar = false;
};
// "N/unit", "N/duration", "N per unit" or "N per duration".
absl::StatusOr<Rate> ParseRate(std::string_view text);
std::string FormatRate(const Rate& rate);  // "100/s", "1 per 10s"

// A whole number: digits, which '_' may group. InvalidArgument beyond 2^63.
absl::StatusOr<uint64_t> ParseWhole(std::string_view text);

}  // namespace sluice::config
