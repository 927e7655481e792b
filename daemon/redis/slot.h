#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace sluice::redis {

inline constexpr uint32_t kSlots = 16384;

// Most virtual shards. Finding their keys takes about shards^2 checksums at start.
inline constexpr uint32_t kMaxShards = 4096;

// The cluster slot of a key: CRC16 (polynomial 0x1021, start 0) mod 16384, of the part between the
// first '{' and the next '}' where that part is not empty.
uint32_t KeySlot(std::string_view key);

// The keys of `shards` (1 to kMaxShards) shards: shard i is `<prefix>:<shards>:{<iii>.<k>}`, k the
// smallest number for which the slot lies in [i*16384/shards, (i+1)*16384/shards). So equal ranges
// of slots, and with them primaries of equal size, carry equally many shards. The number of shards
// is part of the key: every host must agree on it, and another number is another set of keys.
// A prefix with a '{' would take the hash tag's place; the caller refuses it.
std::vector<std::string> ShardKeys(std::string_view prefix, uint32_t shards);
// The key of another script's hash of that shard, in the same slot: `family` stands before its tag.
// Empty: the shard's own.
std::string FamilyKey(std::string_view shard_key, std::string_view family);

}  // namespace sluice::redis
