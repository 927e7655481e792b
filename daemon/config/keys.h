// The one list of configuration keys. The parser takes names, defaults, ranges and choices from
// it, and docs/configuration.md is made from it, so the three cannot differ.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/types/span.h"

namespace sluice::config {

enum class KeyType : uint8_t {
  kSection,   // a mapping with the keys listed under it
  kSections,  // a list of mappings ("rules"), or a mapping of free names to mappings ("tiers")
  kText,
  kTextList,  // one or more texts
  kInteger,
  kNumber,  // with a fraction
  kBool,
  kChoice,    // one of `choices`
  kDuration,  // "1m30s"; bounds in ns
  kRate,      // "100/s", "1 per 10s"
  kMatch,     // a mapping of descriptor names to patterns
  kKey,       // a list of descriptor names
  kParts,     // a mapping of free names to parts of a whole
  kTexts,     // a mapping of free names to texts
  kHome,      // "rendezvous", or a mapping of a descriptor's values to regions
};

// A path names a key by its sections: "redis.shards"; "[]" stands for any entry of a list and "*"
// for any name: "rules[].limit", "rules[].tiers.*.limit".
struct KeySpec {
  std::string_view path;
  KeyType type = KeyType::kText;
  bool required = false;
  std::string_view fallback;  // the default, as one would write it; empty: none
  int64_t min = 0;            // kInteger, kDuration (ns), kText (bytes); kNumber: in 1/10^6
  int64_t max = 0;
  std::string_view choices;  // kChoice: "a|b|c"
  std::string_view doc;      // what it is, in a sentence or two
  std::string_view example;  // a value, as one would write it
};

// All keys, each section before what it holds, in the order of the reference.
absl::Span<const KeySpec> AllKeys();

// Those of the section `redis` among them.
absl::Span<const KeySpec> RedisKeys();

// `candidate` and `penalty` of rules.
absl::Span<const KeySpec> DenialKeys();
absl::Span<const KeySpec> RequestKeys();

// nullptr when there is no such key. `path` in the form of KeySpec::path.
const KeySpec* FindKey(std::string_view path);

// Names of the keys directly within a section ("" for the top of the file).
std::vector<std::string_view> KeysWithin(std::string_view section);

// The one of `candidates` that `word` is probably a slip of; empty when none is near.
std::string_view Nearest(std::string_view word, absl::Span<const std::string_view> candidates);

// Insertions, deletions, substitutions and swaps of neighbours that make `a` into `b`, without
// regard to case. Both at most kMaxWordBytes; longer ones are infinitely far.
inline constexpr size_t kMaxWordBytes = 64;
size_t EditDistance(std::string_view a, std::string_view b);

// What a value must be, for people: "a whole number from 1 to 4096", "one of open, closed".
std::string DescribeType(const KeySpec& spec);

// docs/configuration.md, whole.
std::string RenderConfigReference();

}  // namespace sluice::config
