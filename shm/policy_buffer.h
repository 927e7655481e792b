// What a policy buffer holds beside the policy, and whether its bytes are whole.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <string_view>

#include "shm/layout.h"
#include "shm/policy_view.h"

namespace sluice::shm {

// The last bytes of each policy buffer hold the time at which it was superseded.
inline constexpr uint32_t kPolicyStampBytes = 64;
inline constexpr uint32_t kMaxPolicyBytes = kPolicyBufferBytes - kPolicyStampBytes;
// Superseded policies that are never overwritten, so that a rollback always finds one.
inline constexpr uint32_t kPinnedPolicies = 2;

static_assert(kMaxPolicyBytes == 262080 && kPolicyBuffers - 1 - kPinnedPolicies == 5,
              "segment_error.h states them");

namespace internal {
inline constexpr std::array<uint32_t, 256> MakeCrcTable() {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t c = i;
    for (int bit = 0; bit < 8; ++bit) c = (c & 1) != 0 ? 0xedb88320u ^ (c >> 1) : c >> 1;
    table[i] = c;
  }
  return table;
}
inline constexpr std::array<uint32_t, 256> kCrcTable = MakeCrcTable();

}  // namespace internal

// IEEE CRC-32 of PolicyHeader::crc32, over the bytes after the header.
inline uint32_t PolicyCrc(std::string_view policy) {
  uint32_t crc = ~0u;
  for (size_t i = std::min(sizeof(PolicyHeader), policy.size()); i < policy.size(); ++i) {
    crc = internal::kCrcTable[(crc ^ static_cast<uint8_t>(policy[i])) & 0xff] ^ (crc >> 8);
  }
  return ~crc;
}

// Whole, of this layout, and its check sum right. `policy` starts with the header.
inline bool IsValidPolicy(std::string_view policy) {
  if (policy.size() < sizeof(PolicyHeader) || policy.size() > kMaxPolicyBytes) return false;
  PolicyHeader header;  // a copy: a view need not be aligned
  std::memcpy(&header, policy.data(), sizeof header);
  return header.magic == kPolicyMagic && header.bytes == policy.size() &&
         header.group_count <= kMaxGroups && header.rule_count <= kMaxRules &&
         header.name_count <= kMaxNames && header.crc32 == PolicyCrc(policy);
}

}  // namespace sluice::shm
