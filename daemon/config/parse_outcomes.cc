// `outcomes`: what a request costs by how it ended.
#include <algorithm>

#include "absl/strings/numbers.h"
#include "daemon/config/parse_rules.h"
#include "daemon/config/text.h"

namespace sluice::config {
namespace {

// "404", or "5xx" for a hundred.
bool ReadStatus(std::string_view text, OutcomeConfig* outcome) {
  if (text.size() != 3 || text[0] < '0' || text[0] > '9') return false;
  const bool is_hundred = text.substr(1) == "xx";
  const auto is_digit = [](char c) { return c >= '0' && c <= '9'; };
  if (!is_hundred && !(is_digit(text[1]) && is_digit(text[2]))) return false;
  const int rest = is_hundred ? 0 : (text[1] - '0') * 10 + (text[2] - '0');
  outcome->first_status = static_cast<uint16_t>((text[0] - '0') * 100 + rest);
  outcome->last_status = static_cast<uint16_t>(outcome->first_status + (is_hundred ? 99 : 0));
  return true;
}

// "refund", or tokens up to `most`.
bool ReadTokens(const YAML::Node& node, uint64_t most, OutcomeConfig* outcome) {
  if (!node.IsScalar()) return false;
  const std::string& text = node.Scalar();
  uint64_t tokens = 0;
  if (text != "refund" && (text.find_first_not_of("0123456789") != std::string::npos ||
                           !absl::SimpleAtoi(text, &tokens) || tokens > most)) {
    return false;
  }
  outcome->tokens = tokens;
  return true;
}

}  // namespace

void ParseOutcomes(Section* rule, RuleConfig* out, Findings* findings) {
  const YAML::Node node = rule->Value("outcomes");
  if (!node.IsDefined()) return;
  if (out->kind == shm::Kind::kInFlight) {
    rule->Problem("outcomes", "is not for requests in flight: their places come back in any case",
                  "remove the line");
    return;
  }
  const std::string path = rule->PathOf("outcomes");
  if (!node.IsMap() || node.size() == 0 || node.size() > shm::kMaxOutcomes) {
    rule->Problem("outcomes",
                  node.IsMap() ? Cat("holds ", node.size(), " outcomes")
                               : Cat("is ", KindOf(node), ", not a mapping"),
                  Cat("write 1 to ", shm::kMaxOutcomes, ", as in `{401: 5, 5xx: refund}`"));
    return;
  }
  for (const Entry& entry : ReadEntries(node, path, findings)) {
    const std::string at = Cat(path, ".", entry.name);
    OutcomeConfig outcome;
    if (!ReadStatus(entry.name, &outcome)) {
      findings->Problem(entry.mark, at, Cat(Shown(entry.name), " is no status"),
                        "write three digits, or one and xx, as in 404 and 5xx");
      continue;
    }
    if (!ReadTokens(entry.value, shm::kMaxTokens, &outcome)) {
      findings->Problem(entry.mark, at,
                        entry.value.IsScalar()
                            ? Cat(Shown(entry.value.Scalar()), " is no number of tokens")
                            : Cat("is ", KindOf(entry.value), ", not a number of tokens"),
                        Cat("write `refund`, or a number up to ", Grouped(shm::kMaxTokens)));
      continue;
    }
    const bool is_hidden =
        std::any_of(out->outcomes.begin(), out->outcomes.end(), [&](const OutcomeConfig& other) {
          return other.first_status <= outcome.first_status &&
                 outcome.last_status <= other.last_status;
        });
    if (is_hidden) {
      findings->Problem(entry.mark, at, "stands behind a line that holds it, and never counts",
                        "write it before that line");
      continue;
    }
    out->outcomes.push_back(outcome);
  }
}

}  // namespace sluice::config
