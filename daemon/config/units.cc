#include "daemon/config/units.h"

#include <limits>
#include <optional>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "daemon/config/text.h"

namespace sluice::config {
namespace {

struct Unit {
  std::string_view name;
  uint64_t ns;
};
constexpr Unit kUnits[] = {{"d", 86'400'000'000'000},
                           {"h", 3'600'000'000'000},
                           {"m", 60'000'000'000},
                           {"s", 1'000'000'000},
                           {"ms", 1'000'000}};
// After "/" or "per" people also write the word.
constexpr Unit kCalendarWords[] = {{"month", 31 * 86'400'000'000'000},
                                   {"year", 366 * 86'400'000'000'000}};
constexpr Unit kUnitWords[] = {{"week", 604'800'000'000'000}, {"day", 86'400'000'000'000},
                               {"hour", 3'600'000'000'000},   {"hr", 3'600'000'000'000},
                               {"minute", 60'000'000'000},    {"min", 60'000'000'000},
                               {"second", 1'000'000'000},     {"sec", 1'000'000'000}};

std::optional<uint64_t> UnitNs(std::string_view name) {
  for (const Unit& unit : kUnits) {
    if (unit.name == name) return unit.ns;
  }
  return std::nullopt;
}

std::optional<uint64_t> PeriodWordNs(std::string_view name) {
  if (const auto ns = UnitNs(name)) return ns;
  for (const Unit& unit : kUnitWords) {
    if (unit.name == name) return unit.ns;
  }
  return std::nullopt;
}

absl::Status BadDuration(std::string_view text, std::string_view mend) {
  return absl::InvalidArgumentError(Cat(Shown(text), " is no duration; ", mend));
}

// Takes the digits at the head of `*text`. False when there are none or they leave 2^63.
bool TakeDigits(std::string_view* text, uint64_t* value) {
  *value = 0;
  size_t n = 0;
  for (; n < text->size() && absl::ascii_isdigit(static_cast<unsigned char>((*text)[n])); ++n) {
    const uint64_t digit = static_cast<uint64_t>((*text)[n] - '0');
    if (*value > (static_cast<uint64_t>(std::numeric_limits<int64_t>::max()) - digit) / 10) {
      return false;
    }
    *value = *value * 10 + digit;
  }
  text->remove_prefix(n);
  return n > 0;
}

absl::Status BadRate(std::string_view text) {
  return absl::InvalidArgumentError(
      Cat(Shown(text),
          " is no limit; write tokens per time, as 100/s, 5000/h, 1 per 10s or "
          "100 per 1m30s"));
}

}  // namespace

absl::StatusOr<uint64_t> ParseWhole(std::string_view text) {
  std::string digits;
  for (size_t i = 0; i < text.size(); ++i) {
    const bool groups = text[i] == '_' && i > 0 && i + 1 < text.size() && text[i - 1] != '_';
    if (!groups) digits += text[i];
  }
  std::string_view rest = digits;
  uint64_t value = 0;
  if (!TakeDigits(&rest, &value) || !rest.empty()) {
    return absl::InvalidArgumentError(Cat(Shown(text), " is no whole number"));
  }
  return value;
}

absl::StatusOr<uint64_t> ParseDurationNs(std::string_view text) {
  constexpr std::string_view kMend = "write for example 100ms, 10s, 1m30s, 1h or 7d";
  std::string_view rest = text;
  uint64_t total = 0;
  uint64_t smallest = std::numeric_limits<uint64_t>::max();
  if (rest.empty()) return BadDuration(text, kMend);
  while (!rest.empty()) {
    uint64_t value = 0;
    if (!TakeDigits(&rest, &value)) return BadDuration(text, kMend);
    size_t n = 0;
    while (n < rest.size() && absl::ascii_islower(static_cast<unsigned char>(rest[n]))) ++n;
    const std::string_view name = rest.substr(0, n);
    if (n == 0 && rest.empty()) {
      return BadDuration(text, Cat("it lacks a unit: write ", value, "s or ", value, "ms"));
    }
    if (n == 0 && rest[0] == '.') {
      return BadDuration(text, "write whole numbers: 1500ms or 1s500ms instead of 1.5s");
    }
    const auto unit = UnitNs(name);
    if (!unit) return BadDuration(text, "its units are d, h, m, s and ms, as in 1m30s");
    if (*unit >= smallest) {
      return BadDuration(text, "write the largest unit first and each once, as in 1m30s");
    }
    smallest = *unit;
    if (value > kMaxDurationNs / *unit) return BadDuration(text, "the longest is 400d");
    total += value * *unit;
    rest.remove_prefix(n);
  }
  if (total > kMaxDurationNs) return BadDuration(text, "the longest is 400d");
  if (total == 0) return BadDuration(text, "the shortest is 1ms");
  return total;
}

std::string FormatDuration(uint64_t ns) {
  std::string text;
  for (const Unit& unit : kUnits) {
    if (ns >= unit.ns) text += Cat(ns / unit.ns, unit.name);
    ns %= unit.ns;
  }
  return text.empty() ? "0s" : text;
}

absl::StatusOr<Rate> ParseRate(std::string_view text) {
  std::string_view count = text;
  std::string_view period;
  if (const size_t slash = text.find('/'); slash != std::string_view::npos) {
    count = text.substr(0, slash);
    period = text.substr(slash + 1);
  } else if (const size_t per = text.find(" per "); per != std::string_view::npos) {
    count = text.substr(0, per);
    period = text.substr(per + 5);
  } else if (const auto bare = ParseWhole(Trim(text)); bare.ok()) {
    return absl::InvalidArgumentError(Cat(Shown(text), " lacks a period; write ", *bare, "/s, ",
                                          *bare, "/m, ", *bare, "/h or ", *bare, "/d"));
  }
  const auto tokens = ParseWhole(Trim(count));
  if (!tokens.ok()) return BadRate(text);
  period = Trim(period);
  if (const auto unit = PeriodWordNs(period)) return Rate{*tokens, *unit};
  for (const Unit& unit : kCalendarWords) {
    if (unit.name == period) return Rate{*tokens, unit.ns, /*is_of_calendar=*/true};
  }
  const auto duration = ParseDurationNs(period);
  if (!duration.ok()) return BadRate(text);
  return Rate{*tokens, *duration};
}

std::string FormatRate(const Rate& rate) {
  for (const Unit& unit : kUnits) {
    if (unit.ns == rate.period_ns) return Cat(rate.tokens, "/", unit.name);
  }
  return Cat(rate.tokens, " per ", FormatDuration(rate.period_ns));
}

}  // namespace sluice::config
