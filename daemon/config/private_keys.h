// Names of buckets for the outside: where a part of the key is private, its value leaves the daemon
// as a keyed hash only, to Redis, into logs and onto pages. In the host's own memory it stands as
// it is, since clients find their buckets by it.
//
// The hash is the first 128 bits of HMAC-SHA-256 (RFC 2104, FIPS 180-4) over the descriptor's name,
// a NUL and the value: the same value of the same descriptor looks alike under all rules, and on
// all hosts that have the same key. Shown as "#ID.HEX", ID being that of the key.
//
// Keys change without a loss: the first of the file makes the names, and what Redis holds under a
// name by one of the others is taken over to the new name by the scripts, in one step. Whichever
// key stands first on a host, a bucket so has one name at a time, as long as each host knows both
// keys.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "shm/bucket_name.h"

namespace sluice::config {

inline constexpr size_t kMaxPrivateKeys = 4;
inline constexpr size_t kMaxPrivateKeyIdBytes = 8;
inline constexpr size_t kMinSecretBytes = 16;
inline constexpr size_t kMaxSecretBytes = 64;

// Immutable: safe to share between threads.
class PrivateKeys {
 public:
  // Lines "ID HEX": letters and digits, and 16 to 64 bytes as hexadecimal digits; the key in use
  // first. Blank lines and those that begin with '#' are skipped. InvalidArgument names the line
  // and the mend, and shows nothing of a secret.
  static absl::StatusOr<PrivateKeys> Parse(std::string_view text);

  size_t size() const { return keys_.size(); }  // 1..kMaxPrivateKeys
  // "#ID.HEX" by the key of that place.
  std::string Hash(size_t place, std::string_view descriptor, std::string_view value) const;

 private:
  struct Key {
    std::string id;
    std::string secret;
  };
  std::vector<Key> keys_;
};

// What of a rule's key is private, and how it is made so.
struct Privacy {
  std::shared_ptr<const PrivateKeys> keys;
  std::vector<std::string> descriptors;  // of the key, in its order; empty: that one is shown
};

// A bucket's name for the outside, as the key of that place makes it. A folded value begins with
// what it was folded from, so all of it is private.
std::string OuterName(const shm::ParsedName& name, const Privacy& privacy, size_t place);

// The same by the key in use, and behind a NUL each those by the others: as the scripts take it.
std::string WireName(const shm::ParsedName& name, const Privacy& privacy);

}  // namespace sluice::config
