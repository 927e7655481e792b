#include "ctl/text.h"

#include <algorithm>
#include <array>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "sluice.h"

namespace sluice::ctl {
namespace {

struct Unit {
  uint64_t ns;
  const char* name;
};
constexpr std::array<Unit, 7> kUnits = {{{86'400'000'000'000, "d"},
                                         {3'600'000'000'000, "h"},
                                         {60'000'000'000, "min"},
                                         {1'000'000'000, "s"},
                                         {1'000'000, "ms"},
                                         {1'000, "us"},
                                         {1, "ns"}}};

bool IsNumber(std::string_view text) {
  return !text.empty() && text.find_first_not_of("0123456789.-%") == std::string_view::npos;
}

// Columns a text takes on a terminal, as far as counting code points tells.
size_t Width(std::string_view text) {
  return static_cast<size_t>(std::count_if(
      text.begin(), text.end(), [](char c) { return (static_cast<uint8_t>(c) & 0xc0) != 0x80; }));
}

}  // namespace

std::string FormatDuration(uint64_t ns) {
  if (ns == 0) return "0 s";
  if (ns == SLUICE_NEVER) return "never";
  for (const Unit& unit : kUnits) {
    if (ns < unit.ns) continue;
    if (ns % unit.ns == 0) return absl::StrCat(ns / unit.ns, " ", unit.name);
    const double value = static_cast<double>(ns) / static_cast<double>(unit.ns);
    return absl::StrFormat("%.*f %s", value < 100 ? 1 : 0, value, unit.name);
  }
  return absl::StrCat(ns, " ns");
}

std::string FormatLimit(uint64_t limit, uint64_t period_ns) {
  if (period_ns == 0) return absl::StrCat(limit, " in flight");
  for (const Unit& unit : kUnits) {
    if (period_ns == unit.ns) return absl::StrCat(limit, "/", unit.name);
  }
  return absl::StrCat(limit, " per ", FormatDuration(period_ns));
}

std::string SafeText(std::string_view text) {
  std::string out;
  for (const char c : text) {
    const uint8_t byte = static_cast<uint8_t>(c);
    // 0x80..0x9f alone steer some terminals; inside UTF-8 they are continuation bytes.
    if (byte >= 0x20 && byte != 0x7f) {
      out.push_back(c);
    } else {
      absl::StrAppendFormat(&out, "\\x%02x", byte);
    }
  }
  return out;
}

std::string Table::Format() const {
  std::vector<size_t> widths;
  std::vector<bool> numeric(rows_[0].size(), true);
  for (const auto& row : rows_) {
    widths.resize(std::max(widths.size(), row.size()));
    for (size_t i = 0; i < row.size(); ++i) {
      widths[i] = std::max(widths[i], Width(row[i]));
      if (&row != &rows_[0] && i < numeric.size() && !IsNumber(row[i])) numeric[i] = false;
    }
  }
  std::string out;
  for (const auto& row : rows_) {
    std::string line;
    for (size_t i = 0; i < row.size(); ++i) {
      const std::string pad(widths[i] - Width(row[i]), ' ');
      if (i > 0) line += "  ";
      line += i < numeric.size() && numeric[i] ? pad + row[i] : row[i] + pad;
    }
    while (!line.empty() && line.back() == ' ') line.pop_back();
    out += line + "\n";
  }
  return out;
}

}  // namespace sluice::ctl
