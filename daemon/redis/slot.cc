#include "daemon/redis/slot.h"

#include <algorithm>
#include <array>
#include <cassert>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace sluice::redis {
namespace {

constexpr std::array<uint16_t, 256> MakeCrcTable() {
  std::array<uint16_t, 256> table{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t crc = byte << 8;
    for (int bit = 0; bit < 8; ++bit) crc = (crc & 0x8000) != 0 ? crc << 1 ^ 0x1021 : crc << 1;
    table[byte] = static_cast<uint16_t>(crc);
  }
  return table;
}
constexpr std::array<uint16_t, 256> kCrcTable = MakeCrcTable();

// Every range is hit long before: the free bits of five digits run through all 16-bit checksums.
constexpr uint32_t kMaxTries = 1'000'000;

uint32_t Crc16(std::string_view bytes) {
  uint32_t crc = 0;
  for (char c : bytes) {
    crc = (crc << 8 & 0xffff) ^ kCrcTable[(crc >> 8) ^ static_cast<unsigned char>(c)];
  }
  return crc;
}

}  // namespace

uint32_t KeySlot(std::string_view key) {
  const size_t open = key.find('{');
  if (open != std::string_view::npos) {
    const size_t close = key.find('}', open + 1);
    if (close != std::string_view::npos && close > open + 1) {
      key = key.substr(open + 1, close - open - 1);
    }
  }
  return Crc16(key) % kSlots;
}

std::vector<std::string> ShardKeys(std::string_view prefix, uint32_t shards) {
  const std::string head = absl::StrCat(std::string(prefix), ":", shards, ":{");
  std::vector<std::string> keys;
  keys.reserve(shards);
  for (uint32_t shard = 0; shard < shards; ++shard) {
    const uint32_t first = shard * kSlots / shards;
    const uint32_t end = (shard + 1) * kSlots / shards;
    const std::string number = absl::StrFormat("%03d.", shard);
    bool found = false;
    for (uint32_t k = 0; !found && k < kMaxTries; ++k) {
      const std::string tag = absl::StrCat(number, k);
      const uint32_t slot = Crc16(tag) % kSlots;
      if (slot >= first && slot < end) {
        keys.push_back(absl::StrCat(head, tag, "}"));
        found = true;
      }
    }
    assert(found);
  }
  return keys;
}

std::string FamilyKey(std::string_view shard_key, std::string_view family) {
  if (family.empty()) return std::string(shard_key);
  const size_t tag = std::min(shard_key.find('{'), shard_key.size());
  const std::string head(shard_key.substr(0, tag));
  return absl::StrCat(head, std::string(family), ":", std::string(shard_key.substr(tag)));
}

}  // namespace sluice::redis
