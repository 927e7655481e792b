#include "daemon/config/keys.h"

#include <algorithm>
#include <array>
#include <iterator>

#include "absl/strings/ascii.h"
#include "daemon/config/text.h"
#include "daemon/config/units.h"

namespace sluice::config {
namespace {

std::string Number(int64_t millionths) {
  std::string text = Cat(millionths / 1'000'000);
  if (const int64_t rest = millionths % 1'000'000; rest != 0) {
    std::string digits = Cat(rest);
    digits.insert(0, 6 - digits.size(), '0');
    digits.erase(digits.find_last_not_of('0') + 1);
    text += "." + digits;
  }
  return text;
}

// Sections that have the keys of another; a region some of them.
std::string_view Aliased(std::string_view section) {
  if (section == "rules[].tiers.*.when_degraded") return "rules[].when_degraded";
  if (section == "rules[].tiers.*.candidate") return "rules[].candidate";
  if (section == "redis.regions.*") return "redis";
  if (section == "redis.regions.*.sentinel") return "redis.sentinel";
  return section == "redis.regions.*.tls" ? "redis.tls" : section;
}
constexpr std::string_view kOfRegions[] = {
    "addresses", "mode", "username",        "password",       "password_file",
    "sentinel",  "tls",  "connect_timeout", "request_timeout"};

}  // namespace

const KeySpec* FindKey(std::string_view path) {
  std::string mapped;
  const size_t dot = path.rfind('.');
  if (dot != std::string_view::npos) {
    mapped = Aliased(path.substr(0, dot));
    mapped += path.substr(dot);
    path = mapped;
  }
  for (const KeySpec& spec : AllKeys()) {
    if (spec.path == path) return &spec;
  }
  return nullptr;
}

std::vector<std::string_view> KeysWithin(std::string_view section) {
  if (section == "redis.regions.*") return {std::begin(kOfRegions), std::end(kOfRegions)};
  section = Aliased(section);
  std::vector<std::string_view> names;
  for (const KeySpec& spec : AllKeys()) {
    const size_t dot = spec.path.rfind('.');
    const bool top = dot == std::string_view::npos;
    if ((top ? std::string_view() : spec.path.substr(0, dot)) != section) continue;
    names.push_back(top ? spec.path : spec.path.substr(dot + 1));
  }
  return names;
}

size_t EditDistance(std::string_view a, std::string_view b) {
  if (a.size() > kMaxWordBytes || b.size() > kMaxWordBytes) return SIZE_MAX;
  using Row = std::array<size_t, kMaxWordBytes + 1>;
  Row before_last{};
  Row last{};
  Row row{};
  for (size_t j = 0; j <= b.size(); ++j) last[j] = j;
  const auto same = [](char x, char y) {
    return absl::ascii_tolower(static_cast<unsigned char>(x)) ==
           absl::ascii_tolower(static_cast<unsigned char>(y));
  };
  for (size_t i = 1; i <= a.size(); ++i) {
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t change = last[j - 1] + (same(a[i - 1], b[j - 1]) ? 0 : 1);
      row[j] = std::min({last[j] + 1, row[j - 1] + 1, change});
      if (i > 1 && j > 1 && same(a[i - 1], b[j - 2]) && same(a[i - 2], b[j - 1])) {
        row[j] = std::min(row[j], before_last[j - 2] + 1);
      }
    }
    before_last = last;
    last = row;
  }
  return last[b.size()];
}

std::string_view Nearest(std::string_view word, absl::Span<const std::string_view> candidates) {
  std::string_view best;
  size_t best_distance = SIZE_MAX;
  for (const std::string_view candidate : candidates) {
    const size_t distance = EditDistance(word, candidate);
    // More than a third of the letters wrong is another word, not a slip.
    const size_t allowed = std::max<size_t>(1, std::max(word.size(), candidate.size()) / 3);
    if (distance <= allowed && distance < best_distance) {
      best = candidate;
      best_distance = distance;
    }
  }
  return best;
}

std::string DescribeType(const KeySpec& spec) {
  switch (spec.type) {
    case KeyType::kSection:
      return "a section";
    case KeyType::kSections:
      return "a list of sections";
    case KeyType::kText:
      return Cat("a text of ", spec.min, " to ", spec.max, " bytes");
    case KeyType::kTextList:
      return Cat("a list of ", spec.min, " to ", spec.max, " texts");
    case KeyType::kInteger:
      return Cat("a whole number from ", Grouped(spec.min), " to ", Grouped(spec.max));
    case KeyType::kNumber:
      return Cat("a number from ", Number(spec.min), " to ", Number(spec.max));
    case KeyType::kBool:
      return "true or false";
    case KeyType::kChoice: {
      const std::vector<std::string_view> choices = Split(spec.choices, '|');
      if (choices.size() == 1) return std::string(choices[0]);
      return Cat("one of ", Join(choices, ", "));
    }
    case KeyType::kDuration:
      return Cat("a duration from ", FormatDuration(static_cast<uint64_t>(spec.min)), " to ",
                 FormatDuration(static_cast<uint64_t>(spec.max)));
    case KeyType::kRate:
      return Cat("tokens per time, from ", spec.min, " to ", Grouped(spec.max), " tokens");
    case KeyType::kMatch:
      return Cat("a mapping of at most ", spec.max, " descriptor names to patterns");
    case KeyType::kKey:
      return Cat("a list of at most ", spec.max, " descriptor names");
    case KeyType::kParts:
      return Cat("a mapping of at most ", spec.max, " names to numbers from 0.0001 to 1");
    case KeyType::kTexts:
      return Cat("a mapping of at most ", spec.max, " names to texts");
    case KeyType::kHome:
      return "rendezvous, or regions by the values of a descriptor";
  }
  return "";
}

}  // namespace sluice::config
