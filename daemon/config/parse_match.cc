// Conditions and keys of a rule.
#include <algorithm>
#include <optional>
#include <set>

#include "absl/strings/ascii.h"
#include "daemon/config/parse_rules.h"
#include "daemon/config/text.h"
#include "shm/policy_view.h"

namespace sluice::config {
namespace {

constexpr uint8_t kV4Bits = 32;
constexpr uint8_t kV6Bits = 64;  // what one subscriber gets: keying on more lets him have 2^64

bool IsNameByte(char c, bool first) {
  const auto byte = static_cast<unsigned char>(c);
  return absl::ascii_isalpha(byte) || c == '_' ||
         (!first && (absl::ascii_isdigit(byte) || c == '.' || c == '-'));
}

// Whether pattern values fit; says so otherwise.
bool CheckPattern(const std::string& value, const YAML::Mark& mark, std::string_view path,
                  Findings* findings) {
  if (value.size() <= shm::kMaxPatternBytes) return true;
  findings->Problem(mark, path, Cat("the pattern ", Shown(value), " has ", value.size(), " bytes"),
                    Cat("write at most ", shm::kMaxPatternBytes));
  return false;
}

void SetPattern(std::string value, MatchConfig* match) {
  const size_t special = value.find_first_of("*?");
  if (special == std::string::npos) {
    match->op = shm::MatchOp::kExact;
  } else if (special + 1 == value.size() && value.back() == '*') {
    match->op = shm::MatchOp::kPrefix;
    value.pop_back();
  } else {
    match->op = shm::MatchOp::kGlob;
  }
  match->values = {std::move(value)};
}

bool ParseOneOf(const Entry& entry, const std::string& path, MatchConfig* match,
                Findings* findings) {
  if (entry.value.size() == 0 || entry.value.size() > shm::kMaxOneOf) {
    findings->Problem(entry.mark, path, Cat("is a list of ", entry.value.size(), " values"),
                      Cat("write 1 to ", shm::kMaxOneOf, " of them"));
    return false;
  }
  match->op = shm::MatchOp::kOneOf;
  for (const auto& item : entry.value) {
    const YAML::Mark mark = item.Mark().is_null() ? entry.mark : item.Mark();
    if (!item.IsScalar()) {
      findings->Problem(mark, path, Cat("holds ", KindOf(item), " where a value belongs"),
                        "write texts, as in [GET, HEAD]");
      return false;
    }
    if (!CheckPattern(item.Scalar(), mark, path, findings)) return false;
    if (item.Scalar().find('*') != std::string::npos && entry.value.size() > 1) {
      findings->Warning(mark, path,
                        Cat("values of a list are compared exactly: the '*' in ",
                            Shown(item.Scalar()), " is a plain star"),
                        "for patterns write one rule each");
    }
    if (std::find(match->values.begin(), match->values.end(), item.Scalar()) ==
        match->values.end()) {
      match->values.push_back(item.Scalar());
    }
  }
  return true;
}

// "24" -> 24, when it is 0..max.
std::optional<uint8_t> Bits(std::string_view text, uint64_t max) {
  const auto value = ParseWhole(Trim(text));
  if (!value.ok() || *value > max) return std::nullopt;
  return static_cast<uint8_t>(*value);
}

// "ip", "user", "ip/24", "ip/48", "ip/24,64".
bool ParseKeyText(const std::string& text, KeyConfig* part) {
  const size_t slash = text.find('/');
  part->descriptor = text.substr(0, slash);
  if (slash == std::string::npos) {
    if (part->descriptor == "ip") part->form = shm::KeyForm::kIp;
    return true;
  }
  part->form = shm::KeyForm::kIp;
  const std::string_view bits = std::string_view(text).substr(slash + 1);
  const size_t comma = bits.find(',');
  if (comma != std::string_view::npos) {
    const auto v4 = Bits(bits.substr(0, comma), 32);
    const auto v6 = Bits(bits.substr(comma + 1), 128);
    if (!v4 || !v6) return false;
    part->v4_bits = *v4;
    part->v6_bits = *v6;
    return true;
  }
  const auto single = Bits(bits, 128);
  if (!single) return false;
  // Only IPv6 has more than 32 bits, so one number says which of the two is meant.
  (*single <= 32 ? part->v4_bits : part->v6_bits) = *single;
  return true;
}

// One of {v4: 24, v6: 64, private: true}: what is wrong with it; empty: nothing.
std::string_view ParseKeyForm(const std::string& name, const YAML::Node& value, KeyConfig* part) {
  if (name == "private") {
    return YAML::convert<bool>::decode(value, part->is_private) ? "" : "is neither true nor false";
  }
  const bool is_v4 = name == "v4";
  if (!is_v4 && name != "v6") return "is none of v4, v6 and private";
  const auto bits = Bits(value.Scalar(), is_v4 ? 32 : 128);
  if (!bits) return is_v4 ? "is no prefix of IPv4 (0 to 32)" : "is no prefix of IPv6 (0 to 128)";
  part->form = shm::KeyForm::kIp;
  (is_v4 ? part->v4_bits : part->v6_bits) = *bits;
  return "";
}

// {ip: {v4: 24, v6: 64}}, {user: {private: true}}. `wrong`: which entry is, where one is.
bool ParseKeyMap(const YAML::Node& node, KeyConfig* part, std::string* wrong) {
  if (node.size() != 1) return false;
  // Held here: what an iterator points to lives no longer than the expression.
  const YAML::Node name = node.begin()->first;
  const YAML::Node how = node.begin()->second;
  if (!name.IsScalar() || !how.IsMap()) return false;
  part->descriptor = name.Scalar();
  std::set<std::string> seen;
  for (const auto& pair : how) {
    if (!pair.first.IsScalar() || !pair.second.IsScalar()) return false;
    const std::string& key = pair.first.Scalar();
    const std::string_view why =
        seen.insert(key).second ? ParseKeyForm(key, pair.second, part) : "stands twice";
    if (why.empty()) continue;
    *wrong = Cat("`", key, ": ", pair.second.Scalar(), "` ", why);
    return false;
  }
  if (part->descriptor == "ip") part->form = shm::KeyForm::kIp;
  return !seen.empty();
}

void ParseKeyPart(const YAML::Node& node, const YAML::Mark& at, const std::string& path,
                  std::vector<KeyConfig>* key, Findings* findings) {
  const YAML::Mark mark = node.Mark().is_null() ? at : node.Mark();
  KeyConfig part{.v4_bits = kV4Bits, .v6_bits = kV6Bits};
  std::string wrong;
  const bool good = node.IsScalar() ? ParseKeyText(node.Scalar(), &part)
                    : node.IsMap()  ? ParseKeyMap(node, &part, &wrong)
                                    : false;
  if (!good) {
    findings->Problem(mark, path,
                      node.IsScalar()  ? Cat(Shown(node.Scalar()), " has no such prefix length")
                      : !wrong.empty() ? wrong
                                       : Cat(KindOf(node), " makes no key"),
                      "write a descriptor's name; for addresses ip/24 (IPv4, 0 to 32), ip/48 "
                      "(IPv6, 33 to 128), \"ip/24,64\" or {ip: {v4: 24, v6: 64}}; where values "
                      "are nobody's business {user: {private: true}}");
    return;
  }
  if (!CheckDescriptorName(part.descriptor, mark, path, findings)) return;
  for (const KeyConfig& other : *key) {
    if (other.descriptor != part.descriptor) continue;
    findings->Problem(mark, path, Cat("`", part.descriptor, "` stands twice"),
                      "name each descriptor once; for both kinds of address write \"ip/24,64\"");
    return;
  }
  key->push_back(std::move(part));
}

}  // namespace

bool CheckDescriptorName(std::string_view name, const YAML::Mark& mark, std::string_view path,
                         Findings* findings) {
  bool good = !name.empty() && name.size() <= kMaxDescriptorNameBytes;
  for (size_t i = 0; good && i < name.size(); ++i) good = IsNameByte(name[i], i == 0);
  if (good) return true;
  const bool is_number = name.find_first_not_of("0123456789") == std::string_view::npos;
  findings->Problem(mark, path, Cat(Shown(name), " is no descriptor name"),
                    !name.empty() && is_number
                        ? std::string("put an entry with a comma in quotes, as in [\"ip/24,64\"]")
                        : Cat("write a letter or _ first, then letters, digits and _ . -, at most ",
                              kMaxDescriptorNameBytes));
  return false;
}

void ParseMatch(Section* rule, std::vector<MatchConfig>* match, Findings* findings) {
  const YAML::Node node = rule->Value("match");
  if (!node.IsDefined() || node.IsNull()) return;
  const std::string path = rule->PathOf("match");
  if (!node.IsMap()) {
    rule->Problem("match", Cat("is ", KindOf(node), ", not a mapping"),
                  "write `match: {route: /v1/*, method: [GET, HEAD]}`");
    return;
  }
  for (const Entry& entry : ReadEntries(node, path, findings)) {
    const std::string entry_path = Cat(path, ".", entry.name);
    if (!CheckDescriptorName(entry.name, entry.mark, path, findings)) continue;
    MatchConfig condition{.descriptor = entry.name};
    if (entry.value.IsSequence()) {
      if (!ParseOneOf(entry, entry_path, &condition, findings)) continue;
    } else if (entry.value.IsScalar()) {
      const std::string& value = entry.value.Scalar();
      if (!CheckPattern(value, entry.value.Mark(), entry_path, findings)) continue;
      SetPattern(value, &condition);
    } else {
      findings->Problem(entry.mark, entry_path,
                        Cat("is ", KindOf(entry.value), ", not a value or a list of values"),
                        "write a value, a pattern as \"*\" for any, or a list as [GET, HEAD]");
      continue;
    }
    match->push_back(std::move(condition));
  }
  if (match->size() > shm::kMaxConditions) {
    rule->Problem("match", Cat("has ", match->size(), " conditions"),
                  Cat("write at most ", shm::kMaxConditions));
  }
}

void ParseKey(Section* rule, std::vector<KeyConfig>* key, Findings* findings) {
  const YAML::Node node = rule->Value("key");
  if (!node.IsDefined()) return;
  const std::string path = rule->PathOf("key");
  if (node.IsNull()) {
    rule->Problem("key", "has no value",
                  "write `key: []` for one bucket for all, or for example `key: [tenant, user]`");
    return;
  }
  if (node.IsSequence()) {
    if (node.size() > shm::kMaxKeyParts) {
      rule->Problem("key", Cat("has ", node.size(), " parts"),
                    Cat("write at most ", shm::kMaxKeyParts));
      return;
    }
    for (const auto& item : node) ParseKeyPart(item, rule->MarkOf("key"), path, key, findings);
  } else {
    ParseKeyPart(node, rule->MarkOf("key"), path, key, findings);
  }
}

}  // namespace sluice::config
