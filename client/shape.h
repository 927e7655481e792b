// What the names of a request's descriptors alone decide: which rules can match it and where their
// key values stand. Requests of one route bring the same names again and again, so this is worked
// out once per shape and policy, and then only values are looked at.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "client/blocks.h"
#include "client/include/sluice.h"
#include "client/plan.h"
#include "shm/hash.h"
#include "shm/policy_view.h"

namespace sluice::client {

inline constexpr size_t kShapeNames = 8;       // descriptors of a shape; more: worked out each time
inline constexpr size_t kShapeNameBytes = 16;  // of each name
inline constexpr size_t kShapes = 8;           // places per client

// Which descriptor brings each name of the policy; the first of a name counts.
struct Present {
  uint64_t mask = 0;                // a bit per name id
  uint8_t at[shm::kMaxNames] = {};  // index of its descriptor, where mask says so
};

// A rule of the configuration whose names are all present.
struct Candidate {
  const Rule* rule;  // at no tier; null: it has none
  uint64_t hash_seed;
  uint32_t label_bytes;
  uint32_t plain_bytes;  // a single value up to this needs no folding
  uint16_t group;
  uint8_t key_count;
  bool asks_values;  // conditions or tiers: which rule it is, if any, depends on them
  bool coarse_serves;
  uint16_t tried;  // the rule that is tried beside `rule`; kNoRule: none
  shm::KeyPartView key[shm::kMaxKeyParts];
  uint8_t key_at[shm::kMaxKeyParts];  // index of the descriptor
};

// The same of a direct shape, as its check reads it: one line of the cache.
struct alignas(64) DirectRule {
  uint64_t hash_seed;
  uint64_t cost_ns;
  uint64_t tau_ns;
  uint32_t tokens;
  uint32_t plain_bytes;
  shm::KeyPartView key;
  uint8_t key_at;
};
static_assert(sizeof(DirectRule) == 64);

// All of a short name in two words that differ where names of one length differ.
struct NameWords {
  uint64_t first;
  uint64_t last;
  static NameWords Of(const char* p, size_t n) {
    if (n >= 8) return {shm::Load64(p), shm::Load64(p + n - 8)};
    if (n >= 4) return {shm::Load32(p), shm::Load32(p + n - 4)};
    return {uint64_t{static_cast<uint8_t>(p[0])} | uint64_t{static_cast<uint8_t>(p[n / 2])} << 8,
            static_cast<uint8_t>(p[n - 1])};
  }
};

inline bool IsValue(const sluice_descriptor_t& d) {
  return d.value_len <= SLUICE_MAX_VALUE_BYTES && (d.value != nullptr || d.value_len == 0);
}

inline Text ValueAt(const sluice_descriptor_t* descriptors, size_t at) {
  const sluice_descriptor_t& d = descriptors[at];
  return {d.value_len != 0 ? d.value : "", d.value_len};
}

struct Shape {
  const Attachment* attachment;
  uint64_t policy;
  uint64_t structure;  // of that policy
  size_t name_count;
  size_t name_bytes[kShapeNames];
  NameWords names[kShapeNames];
  bool too_many;       // candidates: worked out each time
  bool is_direct;      // each candidate applies whatever the values, by a key of one value
  bool coarse_serves;  // all of them
  size_t candidate_count;
  DirectRule direct[kMaxItems];  // as many as candidates, where is_direct
  Present present;
  Candidate candidates[kMaxItems];
  Rule rules[kMaxItems];

  // Also false where one of them is no descriptor at all.
  bool IsOf(const Attachment& a, uint64_t policy_word, const sluice_descriptor_t* d,
            size_t count) const {
    if (attachment != &a || policy != policy_word || name_count != count) return false;
    for (size_t i = 0; i < count; ++i) {
      const size_t n = d[i].name_len;
      if (n != name_bytes[i] || d[i].name == nullptr || !IsValue(d[i])) return false;
      const NameWords words = NameWords::Of(d[i].name, n);
      if (words.first != names[i].first || words.last != names[i].last) return false;
    }
    return true;
  }
};

class Shapes {
 public:
  // By the number of descriptors and the lengths of the names at both ends.
  Blocks<Shape>& PlaceOf(const sluice_descriptor_t* d, size_t count) {
    return places_[(count * 5 + d[0].name_len * 3 + d[count - 1].name_len) % kShapes];
  }

 private:
  Blocks<Shape> places_[kShapes];
};

}  // namespace sluice::client
