// One mapping of the file, read by the key table: unknown and repeated keys, wrong types and values
// out of range become findings, each with its place. Internal to the parser.
#pragma once

#include <yaml-cpp/yaml.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "daemon/config/keys.h"
#include "daemon/config/parse.h"
#include "daemon/config/units.h"

namespace sluice::config {

// Collects what is to be said about one file.
class Findings {
 public:
  Findings(std::string_view file, ParseResult* result) : file_(file), result_(result) {}

  // Each is made printable and cut where it is long.
  void Problem(const YAML::Mark& mark, std::string_view path, std::string_view what,
               std::string_view mend);
  void Warning(const YAML::Mark& mark, std::string_view path, std::string_view what,
               std::string_view mend);
  size_t problem_count() const { return result_->problems.size(); }

 private:
  Finding Make(const YAML::Mark& mark, std::string_view path, std::string_view what,
               std::string_view mend);

  std::string file_;
  ParseResult* result_;
};

// "a text", "a list", "a mapping", "nothing": for messages.
std::string_view KindOf(const YAML::Node& node);

// A mapping of free names (match, tiers) or of known keys. Names are texts and stand once; what is
// not so is a problem and left out.
struct Entry {
  std::string name;
  YAML::Mark mark;  // of the name
  YAML::Node value;
};
// As many as there can be tiers; it also bounds the search for repeated names.
inline constexpr size_t kMaxEntries = shm::kMaxRules;
std::vector<Entry> ReadEntries(const YAML::Node& node, std::string_view path, Findings* findings);

class Section {
 public:
  // `path` is for people ("rules[2]"), `spec_path` for the table ("rules[]"); both "" at the top.
  // `at` is where the section is named. An absent or empty node is an empty section.
  Section(const YAML::Node& node, const YAML::Mark& at, std::string path, std::string spec_path,
          Findings* findings);

  // Each Read takes the value of `name` into `*out`. False, and `*out` as it was, when the key is
  // absent or its value is a problem; absence of a required key is a problem too.
  bool Read(std::string_view name, std::string* out);
  // Where a secret or a certificate is: an absolute path, or one of systemd's credentials.
  void ReadPath(std::string_view name, std::string* path, std::string_view example);
  bool Read(std::string_view name, bool* out);
  bool Read(std::string_view name, uint64_t* out);  // kInteger
  bool ReadDuration(std::string_view name, uint64_t* ns);
  bool ReadNumber(std::string_view name, double* out);
  bool ReadRate(std::string_view name, Rate* out);
  // The index of the value among the choices of the table.
  bool ReadChoice(std::string_view name, size_t* index);
  // A list of texts, or a single one.
  bool ReadTexts(std::string_view name, std::vector<std::pair<std::string, YAML::Mark>>* out);

  bool Has(std::string_view name) const { return Find(name) != nullptr; }
  // The value as it stands; undefined when absent (a problem when the key is required).
  YAML::Node Value(std::string_view name);
  // Of the value, else of the key, else of the section.
  YAML::Mark MarkOf(std::string_view name) const;
  std::string PathOf(std::string_view name) const;
  std::string SpecPathOf(std::string_view name) const;
  size_t problem_count() const { return findings_->problem_count(); }

  void Problem(std::string_view name, std::string_view what, std::string_view mend);
  void Warning(std::string_view name, std::string_view what, std::string_view mend);

 private:
  const Entry* Find(std::string_view name) const;
  const KeySpec& SpecOf(std::string_view name) const;
  bool Scalar(std::string_view name, std::string* out);
  void CheckNames();

  std::vector<Entry> entries_;
  YAML::Mark at_;
  std::string path_;
  std::string spec_path_;
  Findings* findings_;
};

}  // namespace sluice::config
