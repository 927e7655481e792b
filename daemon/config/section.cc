#include "daemon/config/section.h"

#include <algorithm>
#include <cassert>
#include <cstdlib>

#include "absl/strings/numbers.h"
#include "daemon/config/text.h"

namespace sluice::config {
namespace {

// A path ends in names that the file chooses, and a mend may repeat a text of it.
constexpr size_t kMaxPathBytes = 160;
constexpr size_t kMaxWordsBytes = 1000;

std::string Under(std::string_view path, std::string_view name) {
  return path.empty() ? std::string(name) : Cat(path, ".", name);
}

// The message of a status of units.h is "what; mend".
std::pair<std::string, std::string> SplitMessage(const absl::Status& status) {
  const std::string message(status.message());
  const size_t at = message.rfind("; ");
  if (at == std::string::npos) return {message, ""};
  return {message.substr(0, at), message.substr(at + 2)};
}

// Other tools have other names for the same things; no edit distance finds them.
std::string_view KnownElsewhere(std::string_view name) {
  constexpr std::pair<std::string_view, std::string_view> kNames[] = {
      {"rate", "limit"},
      {"requests", "limit"},
      {"descriptors", "match"},
      {"where", "match"},
      {"keys", "key"},
      {"by", "key"},
      {"on_failure", "when_degraded"},
      {"fallback", "when_degraded"},
      {"dry_run", "shadow"},
      {"shadow_mode", "shadow"},
      {"nodes", "addresses"},
      {"hosts", "addresses"},
      {"servers", "addresses"},
      {"user", "username"},
      {"timeout", "request_timeout"},
      {"weight", "cost"},
      {"capacity", "burst"},
      {"duration", "for"},
      {"limits", "rules"},
      {"size", "buckets"},
      {"plans", "tiers"},
  };
  for (const auto& [elsewhere, here] : kNames) {
    if (elsewhere == name) return here;
  }
  return {};
}

}  // namespace

Finding Findings::Make(const YAML::Mark& mark, std::string_view path, std::string_view what,
                       std::string_view mend) {
  Finding finding{.file = file_,
                  .path = Printable(path, kMaxPathBytes),
                  .what = Printable(what, kMaxWordsBytes),
                  .mend = Printable(mend, kMaxWordsBytes)};
  if (!mark.is_null()) {
    finding.line = mark.line + 1;
    finding.column = mark.column + 1;
  }
  return finding;
}

void Findings::Problem(const YAML::Mark& mark, std::string_view path, std::string_view what,
                       std::string_view mend) {
  if (result_->problems.size() >= kMaxProblems) return;
  if (result_->problems.size() + 1 == kMaxProblems) {
    result_->problems.push_back(Make(mark, {},
                                     Cat("there are more than ", kMaxProblems - 1, " problems"),
                                     "mend those above first"));
    return;
  }
  result_->problems.push_back(Make(mark, path, what, mend));
}

void Findings::Warning(const YAML::Mark& mark, std::string_view path, std::string_view what,
                       std::string_view mend) {
  if (result_->warnings.size() >= kMaxProblems) return;
  result_->warnings.push_back(Make(mark, path, what, mend));
}

std::string_view KindOf(const YAML::Node& node) {
  switch (node.Type()) {
    case YAML::NodeType::Scalar:
      return "a single value";
    case YAML::NodeType::Sequence:
      return "a list";
    case YAML::NodeType::Map:
      return "a mapping";
    case YAML::NodeType::Null:
    case YAML::NodeType::Undefined:
      break;
  }
  return "nothing";
}

std::vector<Entry> ReadEntries(const YAML::Node& node, std::string_view path, Findings* findings) {
  std::vector<Entry> entries;
  for (const auto& pair : node) {
    const YAML::Mark mark = pair.first.Mark();
    if (!pair.first.IsScalar()) {
      findings->Problem(mark, path, Cat("a key is a text, not ", KindOf(pair.first)),
                        "write `name: value`");
      continue;
    }
    if (entries.size() == kMaxEntries) {
      findings->Problem(mark, path, Cat("has more than ", kMaxEntries, " keys"), "remove some");
      break;
    }
    Entry entry{pair.first.Scalar(), mark, pair.second};
    const auto same = std::find_if(entries.begin(), entries.end(),
                                   [&](const Entry& e) { return e.name == entry.name; });
    if (same != entries.end()) {
      findings->Problem(mark, Under(path, entry.name),
                        Cat("stands twice, first in line ", same->mark.line + 1),
                        "remove one of the two");
      continue;
    }
    entries.push_back(std::move(entry));
  }
  return entries;
}

Section::Section(const YAML::Node& node, const YAML::Mark& at, std::string path,
                 std::string spec_path, Findings* findings)
    : at_(at), path_(std::move(path)), spec_path_(std::move(spec_path)), findings_(findings) {
  if (!node.IsDefined() || node.IsNull()) return;
  if (!node.IsMap()) {
    std::vector<std::string_view> names = KeysWithin(spec_path_);
    if (names.size() > 4) names.resize(4);
    findings_->Problem(
        node.Mark(), path_, Cat("is ", KindOf(node), ", not a mapping"),
        Cat("write lines of `key: value`; keys here are ", Join(names, ", "), " and so on"));
    return;
  }
  entries_ = ReadEntries(node, path_, findings_);
  CheckNames();
}

void Section::CheckNames() {
  const std::vector<std::string_view> known = KeysWithin(spec_path_);
  const auto is_known = [&](const Entry& entry) {
    return std::find(known.begin(), known.end(), entry.name) != known.end();
  };
  for (const Entry& entry : entries_) {
    if (is_known(entry)) continue;
    std::string mend = Cat("keys here are ", Join(known, ", "));
    std::string_view nearest = Nearest(entry.name, known);
    const std::string_view synonym = KnownElsewhere(entry.name);
    if (nearest.empty() && std::find(known.begin(), known.end(), synonym) != known.end()) {
      nearest = synonym;
    }
    if (entry.name == "<<") {
      mend = "merge keys are not read: refer to a whole value with *name instead";
    } else if (!nearest.empty()) {
      mend = Cat("did you mean `", nearest, "`?");
    }
    findings_->Problem(entry.mark, Under(path_, Trim(entry.name)), "is no known key", mend);
  }
  entries_.erase(std::remove_if(entries_.begin(), entries_.end(),
                                [&](const Entry& e) { return !is_known(e); }),
                 entries_.end());
}

const Entry* Section::Find(std::string_view name) const {
  for (const Entry& entry : entries_) {
    if (entry.name == name) return &entry;
  }
  return nullptr;
}

const KeySpec& Section::SpecOf(std::string_view name) const {
  const KeySpec* spec = FindKey(SpecPathOf(name));
  assert(spec != nullptr && "the parser reads a key that the table lacks");
  return *spec;
}

std::string Section::PathOf(std::string_view name) const { return Under(path_, name); }
std::string Section::SpecPathOf(std::string_view name) const { return Under(spec_path_, name); }

YAML::Mark Section::MarkOf(std::string_view name) const {
  const Entry* entry = Find(name);
  if (entry == nullptr) return at_;
  const YAML::Mark mark = entry->value.Mark();
  return mark.is_null() || entry->value.IsNull() ? entry->mark : mark;
}

void Section::Problem(std::string_view name, std::string_view what, std::string_view mend) {
  findings_->Problem(MarkOf(name), PathOf(name), what, mend);
}
void Section::Warning(std::string_view name, std::string_view what, std::string_view mend) {
  findings_->Warning(MarkOf(name), PathOf(name), what, mend);
}

YAML::Node Section::Value(std::string_view name) {
  const KeySpec& spec = SpecOf(name);
  const Entry* entry = Find(name);
  if (entry != nullptr) return entry->value;
  if (spec.required) {
    Problem(name, "is missing",
            spec.example.empty() ? "" : Cat("write for example `", name, ": ", spec.example, "`"));
  }
  return YAML::Node(YAML::NodeType::Undefined);
}

bool Section::Scalar(std::string_view name, std::string* out) {
  const YAML::Node node = Value(name);
  if (!node.IsDefined()) return false;
  const KeySpec& spec = SpecOf(name);
  const std::string mend =
      Cat("write ", DescribeType(spec), ", for example `", name, ": ", spec.example, "`");
  if (node.IsNull()) {
    Problem(name, "has no value", Cat(mend, ", or remove the line"));
    return false;
  }
  if (!node.IsScalar()) {
    Problem(name, Cat("is ", KindOf(node), ", not a single value"), mend);
    return false;
  }
  *out = node.Scalar();
  return true;
}

bool Section::Read(std::string_view name, std::string* out) {
  std::string text;
  if (!Scalar(name, &text)) return false;
  const KeySpec& spec = SpecOf(name);
  if (static_cast<int64_t>(text.size()) < spec.min ||
      static_cast<int64_t>(text.size()) > spec.max) {
    Problem(name, Cat("has ", text.size(), " bytes"), Cat("write ", DescribeType(spec)));
    return false;
  }
  *out = std::move(text);
  return true;
}

void Section::ReadPath(std::string_view name, std::string* path, std::string_view example) {
  if (!Read(name, path) || path->front() == '/') return;
  if (path->starts_with(kCredentialPrefix)) {
    const std::string_view credential = std::string_view(*path).substr(kCredentialPrefix.size());
    if (!credential.empty() && HasOnly(credential, "_-.") && credential.front() != '.') return;
    Problem(name, Cat(Shown(*path), " is no name of a credential"),
            "write credential:NAME as LoadCredential= names it");
    return;
  }
  Problem(name, Cat(Shown(*path), " is no absolute path"),
          Cat("write it from the root, as in ", example, ", or credential:NAME"));
}

bool Section::Read(std::string_view name, bool* out) {
  std::string text;
  if (!Scalar(name, &text)) return false;
  if (text != "true" && text != "false") {
    const bool positive = text == "yes" || text == "on" || text == "True" || text == "1";
    const bool negative = text == "no" || text == "off" || text == "False" || text == "0";
    Problem(
        name, Cat(Shown(text), " is neither true nor false"),
        positive || negative ? Cat("write ", positive ? "true" : "false") : "write true or false");
    return false;
  }
  *out = text == "true";
  return true;
}

bool Section::Read(std::string_view name, uint64_t* out) {
  std::string text;
  if (!Scalar(name, &text)) return false;
  const KeySpec& spec = SpecOf(name);
  const auto value = ParseWhole(text);
  if (!value.ok()) {
    Problem(name, std::string(value.status().message()), Cat("write ", DescribeType(spec)));
    return false;
  }
  if (*value < static_cast<uint64_t>(spec.min) || *value > static_cast<uint64_t>(spec.max)) {
    Problem(name, Cat(*value, " is out of range"), Cat("write ", DescribeType(spec)));
    return false;
  }
  *out = *value;
  return true;
}

bool Section::ReadDuration(std::string_view name, uint64_t* ns) {
  std::string text;
  if (!Scalar(name, &text)) return false;
  const KeySpec& spec = SpecOf(name);
  const auto value = ParseDurationNs(text);
  if (!value.ok()) {
    auto [what, mend] = SplitMessage(value.status());
    Problem(name, std::move(what), std::move(mend));
    return false;
  }
  if (*value < static_cast<uint64_t>(spec.min) || *value > static_cast<uint64_t>(spec.max)) {
    Problem(name, Cat(text, " is out of range"), Cat("write ", DescribeType(spec)));
    return false;
  }
  *ns = *value;
  return true;
}

bool Section::ReadNumber(std::string_view name, double* out) {
  std::string text;
  if (!Scalar(name, &text)) return false;
  const KeySpec& spec = SpecOf(name);
  double value = 0;
  // SimpleAtod would also take blanks, "inf" and hexadecimal.
  const bool plain = text.find_first_not_of("0123456789.") == std::string::npos;
  if (!plain || !absl::SimpleAtod(text, &value)) {
    Problem(name, Cat(Shown(text), " is no number"), Cat("write ", DescribeType(spec)));
    return false;
  }
  if (!(value * 1e6 >= static_cast<double>(spec.min)) ||
      !(value * 1e6 <= static_cast<double>(spec.max))) {
    Problem(name, Cat(text, " is out of range"), Cat("write ", DescribeType(spec)));
    return false;
  }
  *out = value;
  return true;
}

bool Section::ReadRate(std::string_view name, Rate* out) {
  std::string text;
  if (!Scalar(name, &text)) return false;
  const KeySpec& spec = SpecOf(name);
  const auto rate = ParseRate(text);
  if (!rate.ok()) {
    auto [what, mend] = SplitMessage(rate.status());
    Problem(name, std::move(what), std::move(mend));
    return false;
  }
  if (rate->tokens == 0) {
    Problem(name, "limits start at 1",
            "to all but block write `1 per 366d` with `burst: 1`; to block, refuse the request "
            "before it is checked");
    return false;
  }
  if (rate->tokens > static_cast<uint64_t>(spec.max)) {
    Problem(name, Cat(text, " is more than ", Grouped(spec.max), " tokens in a period"),
            "take a shorter period, or count in larger units of cost");
    return false;
  }
  *out = *rate;
  return true;
}

bool Section::ReadChoice(std::string_view name, size_t* index) {
  std::string text;
  if (!Scalar(name, &text)) return false;
  const KeySpec& spec = SpecOf(name);
  const std::vector<std::string_view> choices = Split(spec.choices, '|');
  const auto at = std::find(choices.begin(), choices.end(), text);
  if (at == choices.end()) {
    const std::string_view nearest = Nearest(text, choices);
    Problem(name, Cat(Shown(text), " is not ", DescribeType(spec)),
            Cat("write ", nearest.empty() ? DescribeType(spec) : std::string(nearest)));
    return false;
  }
  *index = static_cast<size_t>(at - choices.begin());
  return true;
}

bool Section::ReadTexts(std::string_view name,
                        std::vector<std::pair<std::string, YAML::Mark>>* out) {
  const YAML::Node node = Value(name);
  if (!node.IsDefined()) return false;
  const KeySpec& spec = SpecOf(name);
  std::vector<std::pair<std::string, YAML::Mark>> texts;
  if (node.IsScalar()) {
    texts.emplace_back(node.Scalar(), node.Mark());
  } else if (node.IsSequence()) {
    for (const auto& item : node) {
      if (item.IsScalar()) {
        texts.emplace_back(item.Scalar(), item.Mark());
        continue;
      }
      findings_->Problem(item.Mark().is_null() ? MarkOf(name) : item.Mark(), PathOf(name),
                         Cat("holds ", KindOf(item), " where a text belongs"),
                         Cat("put texts with ':', '[' or '*' in quotes, as in ", spec.example));
      return false;
    }
  }
  if (static_cast<int64_t>(texts.size()) < spec.min ||
      static_cast<int64_t>(texts.size()) > spec.max) {
    const std::string found =
        node.IsSequence() ? Cat("is a list of ", texts.size()) : Cat("is ", KindOf(node));
    Problem(name, found, Cat("write ", DescribeType(spec), ", as in ", spec.example));
    return false;
  }
  *out = std::move(texts);
  return true;
}

}  // namespace sluice::config
