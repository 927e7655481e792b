// Numbers, durations and tables as people read them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace sluice::ctl {

// "0 s", "850 ns", "12.3 ms", "4.0 s", "3 min", "2.5 h", "30 d"; SLUICE_NEVER: "never".
std::string FormatDuration(uint64_t ns);

// "100/s", "5000/h", "1 per 10 s"; of a period of 0 "100 in flight".
std::string FormatLimit(uint64_t limit, uint64_t period_ns);

// Bytes that are not printable ASCII or UTF-8 lead or continuation bytes as \xNN: a key's text
// comes from strangers and must not steer a terminal.
std::string SafeText(std::string_view text);

// Columns padded to their widest cell. A column whose cells are all numbers is set to the right.
class Table {
 public:
  explicit Table(std::vector<std::string> header) : rows_{std::move(header)} {}
  void Row(std::vector<std::string> cells) { rows_.push_back(std::move(cells)); }
  bool is_empty() const { return rows_.size() == 1; }
  std::string Format() const;

 private:
  std::vector<std::vector<std::string>> rows_;
};

}  // namespace sluice::ctl
