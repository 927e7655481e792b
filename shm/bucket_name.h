// A bucket's name: the rule's label and the values of its key, in the order of the key.
//
// Three forms, all made here so that every process agrees:
//   parts   in KeyText: for each part one byte (its length + 1) and its bytes; a 0 byte ends it.
//           Fits kKeyTextBytes, else the values are folded into one (see `FoldLong`).
//   hash    chained over the values, headed by the rule's seed: what finds the slot. Salted.
//   text    in Redis and for people: "label:value1:value2". '%' and NUL are percent-encoded, and
//           ':' too in every value but the last, so that texts of different keys differ.
#pragma once

#include <cstdint>
#include <cstring>
#include <string_view>

#include "shm/hash.h"
#include "shm/layout.h"
#include "shm/sha256.h"

namespace sluice::shm {

inline constexpr uint64_t kLongNameTag = 0x6c6f6e676e616d65;  // sets folded names apart
inline constexpr uint8_t kLongMark = 0xff;                    // parts: a folded value follows
inline constexpr size_t kFoldedHexBytes = 32;

// The rule's label in a bucket's text.
inline std::string_view LabelOf(std::string_view text) { return text.substr(0, text.find(':')); }

// Bytes that `parts` needs for a label and values of these lengths.
inline size_t PartsBytes(size_t label_bytes, const std::string_view* values, size_t count) {
  size_t bytes = 1 + label_bytes + 1;
  for (size_t i = 0; i < count; ++i) bytes += 1 + values[i].size();
  return bytes;
}
inline bool IsLongName(size_t label_bytes, const std::string_view* values, size_t count) {
  return PartsBytes(label_bytes, values, count) > kKeyTextBytes;
}

// Appends into a fixed buffer; counts on past its end, so that size() tells what was needed.
class NameWriter {
 public:
  NameWriter(char* out, size_t capacity) : out_(out), capacity_(capacity) {}
  void Put(char c) {
    if (size_ < capacity_) out_[size_] = c;
    ++size_;
  }
  void PutEscaped(std::string_view value, bool last) {
    static constexpr char kHex[] = "0123456789ABCDEF";
    for (const char c : value) {
      if (c == '%' || c == '\0' || (c == ':' && !last)) {
        Put('%');
        Put(kHex[(static_cast<uint8_t>(c) >> 4) & 15]);
        Put(kHex[static_cast<uint8_t>(c) & 15]);
      } else {
        Put(c);
      }
    }
  }
  size_t size() const { return size_; }

 private:
  char* out_;
  size_t capacity_;
  size_t size_ = 0;
};

// The name for people, without a bound but the caller's buffer; returns the bytes needed.
inline size_t WriteNameText(std::string_view label, const std::string_view* values, size_t count,
                            char* out, size_t capacity) {
  NameWriter writer(out, capacity);
  for (const char c : label) writer.Put(c);
  for (size_t i = 0; i < count; ++i) {
    writer.Put(':');
    writer.PutEscaped(values[i], i + 1 == count);
  }
  return writer.size();
}

// Values too long for KeyText become one value: as much of the first bytes as fits, '~' and the
// first 128 bits of SHA-256 over all values with their lengths, as hex. Unsalted, since every host
// must make the same name; SHA-256, since an attacker may choose the values.
// Returns the bytes written to `out` (capacity kKeyTextBytes).
inline size_t FoldLong(size_t label_bytes, const std::string_view* values, size_t count,
                       char* out) {
  Sha256 sha;
  for (size_t i = 0; i < count; ++i) {
    const uint64_t n = values[i].size();
    char length[8];
    std::memcpy(length, &n, 8);
    sha.Update({length, 8});
    sha.Update(values[i]);
  }
  uint8_t digest[32];
  sha.Finish(digest);
  // label + mark + length byte + end, and the '~' and hex of the fold
  const size_t overhead = 1 + label_bytes + 1 + 1 + 1 + 1 + kFoldedHexBytes;
  const size_t prefix_max = overhead < kKeyTextBytes ? kKeyTextBytes - overhead : 0;
  size_t n = 0;
  for (size_t i = 0; i < count && n < prefix_max; ++i) {
    for (size_t j = 0; j < values[i].size() && n < prefix_max; ++j) out[n++] = values[i][j];
  }
  out[n++] = '~';
  static constexpr char kHex[] = "0123456789abcdef";
  for (size_t i = 0; i < kFoldedHexBytes / 2; ++i) {
    out[n++] = kHex[digest[i] >> 4];
    out[n++] = kHex[digest[i] & 15];
  }
  return n;
}

// The salted hash of a name that fits KeyText.
inline uint64_t ShortNameHash(const HashKey& key, uint64_t rule_seed,
                              const std::string_view* values, size_t count) {
  uint64_t h = rule_seed;
  for (size_t i = 0; i < count; ++i) h = HashValue(key, values[i], h);
  return h;
}
inline uint64_t LongNameHash(const HashKey& key, uint64_t rule_seed, std::string_view folded) {
  return HashValue(key, folded, rule_seed ^ kLongNameTag);
}

// Writes the parts form, NUL-padded, into out[kKeyTextBytes]. `is_folded`: one folded value.
// Precondition: it fits (labels are <= kMaxLabelBytes, values as IsLongName tells).
inline void WriteParts(std::string_view label, const std::string_view* values, size_t count,
                       bool is_folded, char out[kKeyTextBytes]) {
  std::memset(out, 0, kKeyTextBytes);
  NameWriter writer(out, kKeyTextBytes - 1);
  writer.Put(static_cast<char>(label.size() + 1));
  for (const char c : label) writer.Put(c);
  if (is_folded) writer.Put(static_cast<char>(kLongMark));
  for (size_t i = 0; i < count; ++i) {
    writer.Put(static_cast<char>(values[i].size() + 1));
    for (const char c : values[i]) writer.Put(c);
  }
}

// The parts form, read back from memory that is not trusted. Views point into `parts`.
struct ParsedName {
  static constexpr size_t kMaxValues = 16;
  std::string_view label;
  std::string_view values[kMaxValues];
  size_t count = 0;
  bool is_folded = false;

  uint64_t Hash(const HashKey& key, uint64_t rule_seed) const {
    if (is_folded) return LongNameHash(key, rule_seed, count == 1 ? values[0] : "");
    return ShortNameHash(key, rule_seed, values, count);
  }
};

// False when `parts` (kKeyTextBytes, a private copy) is not a name.
inline bool ParseParts(const char* parts, ParsedName* name) {
  *name = ParsedName{};
  size_t at = 0;
  const auto next = [&](std::string_view* value) {
    if (at >= kKeyTextBytes) return false;
    const size_t n = static_cast<uint8_t>(parts[at]);
    if (n == 0 || at + n > kKeyTextBytes) return false;
    *value = {parts + at + 1, n - 1};
    at += n;
    return true;
  };
  if (!next(&name->label) || name->label.empty()) return false;
  if (at < kKeyTextBytes && static_cast<uint8_t>(parts[at]) == kLongMark) {
    name->is_folded = true;
    ++at;
  }
  while (at < kKeyTextBytes && parts[at] != 0) {
    if (name->count == ParsedName::kMaxValues || !next(&name->values[name->count])) return false;
    ++name->count;
  }
  return !name->is_folded || name->count == 1;
}

// The shard of a bucket: from its text alone and unsalted, since every host must agree.
inline uint32_t ShardOf(std::string_view text, uint32_t shard_count) {
  uint64_t h = Fnv1a(text);  // the finaliser is for the low bits
  return static_cast<uint32_t>(SplitMix64(h) % shard_count);
}

}  // namespace sluice::shm
