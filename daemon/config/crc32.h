// CRC-32 of IEEE 802.3 (reflected, polynomial 0xedb88320): guards policies against torn writes.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace sluice::config {

namespace crc32_internal {
inline constexpr std::array<uint32_t, 256> kTable = [] {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t c = i;
    for (int bit = 0; bit < 8; ++bit) c = (c >> 1) ^ ((c & 1) != 0 ? 0xedb88320u : 0u);
    table[i] = c;
  }
  return table;
}();
}  // namespace crc32_internal

inline uint32_t Crc32(std::string_view bytes) {
  uint32_t c = ~0u;
  for (const char byte : bytes) {
    c = crc32_internal::kTable[(c ^ static_cast<uint8_t>(byte)) & 0xff] ^ (c >> 8);
  }
  return ~c;
}

}  // namespace sluice::config
