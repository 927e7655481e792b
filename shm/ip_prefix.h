// The network that an address belongs to, in the one text that every process and host agrees on,
// so that one subscriber is one bucket: "203.0.113.7" kept to 24 bits is "203.0.113.0/24", and
// "2001:DB8:0::1" kept to 64 bits is "2001:db8::/64". On the check's way: no allocation, no locale,
// no system call. A whole IPv4 address is nearly always canonical as it stands and is not copied: a
// hash of bytes that were just stored one by one would wait for them.
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

namespace sluice::shm {

// Room for the longest result: eight groups of four digits, seven colons, "/127".
inline constexpr size_t kPrefixTextBytes = 64;
static_assert(kPrefixTextBytes >= 39 + 4);

namespace ip_prefix_internal {

// Longest IPv6 address text: INET6_ADDRSTRLEN with its NUL.
inline constexpr size_t kMaxV6Text = INET6_ADDRSTRLEN;

inline char* WriteDecimal(uint32_t value, char* out) {  // value < 1000
  if (value >= 100) *out++ = static_cast<char>('0' + value / 100);
  if (value >= 10) *out++ = static_cast<char>('0' + value / 10 % 10);
  *out++ = static_cast<char>('0' + value % 10);
  return out;
}

inline char* WriteHex(uint32_t value, char* out) {  // value < 2^16, no leading zeros
  static constexpr char kDigits[] = "0123456789abcdef";
  int shift = 12;
  while (shift > 0 && (value >> shift) == 0) shift -= 4;
  for (; shift >= 0; shift -= 4) *out++ = kDigits[(value >> shift) & 15];
  return out;
}

// One to five digits, as after the ':' of "203.0.113.7:8080".
inline bool IsPort(std::string_view text) {
  if (text.empty() || text.size() > 5) return false;
  for (const char c : text) {
    if (c < '0' || c > '9') return false;
  }
  return true;
}

inline bool HasColonIn(uint64_t bytes) {
  const uint64_t x = bytes ^ 0x3a3a3a3a3a3a3a3a;  // a zero byte where a ':' was
  return ((x - 0x0101010101010101) & ~x & 0x8080808080808080) != 0;
}
inline bool HasColon(std::string_view text) {
  const size_t n = text.size();
  if (n < 8 || n > 16) return text.find(':') != std::string_view::npos;
  uint64_t head;
  uint64_t tail;
  std::memcpy(&head, text.data(), 8);
  std::memcpy(&tail, text.data() + n - 8, 8);
  return HasColonIn(head) || HasColonIn(tail);
}

// memcpy without a call, for n below 16.
inline void CopyShort(const char* from, size_t n, char* to) {
  uint64_t head;
  uint64_t tail;
  if (n >= 8) {
    std::memcpy(&head, from, 8);
    std::memcpy(&tail, from + n - 8, 8);
    std::memcpy(to, &head, 8);
    std::memcpy(to + n - 8, &tail, 8);
    return;
  }
  for (size_t i = 0; i < n; ++i) to[i] = from[i];
}

// Four numbers below 256 without leading zeros, and an optional port behind them: their text is
// canonical already. Octets packed with the first one high; `ends` likewise: where the text of each
// ends.
inline bool ParseV4(std::string_view text, uint32_t* octets, uint32_t* ends) {
  if (text.size() < 7 || text.size() > 21) return false;  // "255.255.255.255:65535"
  const char* const p = text.data();
  const size_t n = text.size();
  size_t at = 0;
  uint32_t packed = 0;
  uint32_t packed_ends = 0;
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    if (i > 0) {
      if (at == n || p[at] != '.') return false;
      ++at;
    }
    if (at == n) return false;
    uint32_t value = static_cast<uint32_t>(static_cast<uint8_t>(p[at])) - '0';
    if (value > 9) return false;
    ++at;
    for (int more = 0; more < 2 && at < n; ++more) {
      const uint32_t digit = static_cast<uint32_t>(static_cast<uint8_t>(p[at])) - '0';
      if (digit > 9) break;
      if (value == 0) return false;
      value = value * 10 + digit;
      ++at;
    }
    if (value > 255) return false;
    packed = (packed << 8) | value;
    packed_ends = (packed_ends << 8) | static_cast<uint32_t>(at);
  }
  *octets = packed;
  *ends = packed_ends;
  return at == n || (p[at] == ':' && IsPort({p + at + 1, n - at - 1}));
}

// The network of the address that ParseV4 read in `text`: in place where all of it is kept, else in
// `out`.
inline std::string_view MaskV4(std::string_view text, uint32_t octets, uint32_t ends, uint32_t bits,
                               char* out) {
  if (bits >= 32) return text.substr(0, ends & 0xff);
  const uint32_t whole = bits / 8;  // octets that are kept as they stand, 0..3
  char* p = out;
  if (whole > 0) {
    const size_t kept = ((ends >> (32 - 8 * whole)) & 0xff) + 1;  // with the dot behind them
    CopyShort(text.data(), kept, out);
    p += kept;
  }
  p = WriteDecimal((octets >> (24 - 8 * whole)) & (0xff00u >> (bits % 8)) & 0xffu, p);
  for (uint32_t i = whole + 1; i < 4; ++i) {
    *p++ = '.';
    *p++ = '0';
  }
  *p++ = '/';
  p = WriteDecimal(bits, p);
  return {out, static_cast<size_t>(p - out)};
}

// Takes "2001:db8::1", "[2001:db8::1]", "[2001:db8::1]:443" and "fe80::1%eth0".
inline bool ParseV6(std::string_view text, uint8_t bytes[16]) {
  if (!text.empty() && text.front() == '[') {
    const size_t close = text.find(']');
    if (close == std::string_view::npos) return false;
    const std::string_view rest = text.substr(close + 1);
    if (!rest.empty() && (rest.front() != ':' || !IsPort(rest.substr(1)))) return false;
    text = text.substr(1, close - 1);
  }
  const size_t zone = text.find('%');
  if (zone != std::string_view::npos) {
    if (zone + 1 == text.size()) return false;
    text = text.substr(0, zone);
  }
  if (text.size() < 2 || text.size() >= kMaxV6Text) return false;
  char copy[kMaxV6Text];
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\0') return false;  // inet_pton would stop there and call it an address
    copy[i] = text[i];
  }
  copy[text.size()] = '\0';
  return inet_pton(AF_INET6, copy, bytes) == 1;
}

// RFC 5952: lower case, no leading zeros, the first longest run of two or more zero groups as "::".
inline size_t WriteV6(uint8_t bytes[16], uint8_t bits, char* out) {
  uint32_t groups[8];
  for (int i = 0; i < 8; ++i) {
    const int kept = bits - 16 * i;
    const uint32_t mask = kept >= 16 ? 0xffffu : kept <= 0 ? 0u : (0xffff0000u >> kept) & 0xffffu;
    groups[i] = ((uint32_t{bytes[2 * i]} << 8) | bytes[2 * i + 1]) & mask;
  }
  int run_start = -1;
  int run_length = 1;
  for (int i = 0; i < 8; ++i) {
    int n = 0;
    while (i + n < 8 && groups[i + n] == 0) ++n;
    if (n > run_length) {
      run_start = i;
      run_length = n;
    }
    i += n;  // groups[i] is not zero, or the end
  }
  char* p = out;
  for (int i = 0; i < 8; ++i) {
    if (i == run_start) {
      *p++ = ':';
      *p++ = ':';
      i += run_length - 1;
      continue;
    }
    if (p != out && p[-1] != ':') *p++ = ':';
    p = WriteHex(groups[i], p);
  }
  if (bits < 128) {
    *p++ = '/';
    p = WriteDecimal(bits, p);
  }
  return static_cast<size_t>(p - out);
}

}  // namespace ip_prefix_internal

// True where `text` stands for itself: a whole IPv4 address, or no address at all.
inline bool IsCanonicalV4(std::string_view text, uint8_t v4_bits) {
  return v4_bits >= 32 && !ip_prefix_internal::HasColon(text);
}

// The canonical network of `text`, in `text` itself or in `out`. Bits above 32 and 128 count as 32
// and 128, and are then not written: a whole address has no suffix. An IPv4 address in IPv6 clothes
// (::ffff:203.0.113.7) is an IPv4 address. Brackets, ports and zones are dropped. A view without
// data when `text` is not an address (`out` is then scratch), or `text`: the caller keeps it as it
// is. `text` and `out` do not overlap.
inline std::string_view CanonicalPrefix(std::string_view text, uint8_t v4_bits, uint8_t v6_bits,
                                        char out[kPrefixTextBytes]) {
  namespace in = ip_prefix_internal;
  if (IsCanonicalV4(text, v4_bits)) return text;
  uint32_t octets = 0;
  uint32_t ends = 0;
  if (in::ParseV4(text, &octets, &ends)) return in::MaskV4(text, octets, ends, v4_bits, out);
  uint8_t bytes[16];
  if (!in::ParseV6(text, bytes)) return {};
  static constexpr uint8_t kMapped[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
  if (std::memcmp(bytes, kMapped, sizeof(kMapped)) != 0) {
    return {out, in::WriteV6(bytes, v6_bits > 128 ? uint8_t{128} : v6_bits, out)};
  }
  char dotted[16];
  char* p = dotted;
  for (int i = 0; i < 4; ++i) {
    if (i > 0) *p++ = '.';
    p = in::WriteDecimal(bytes[12 + i], p);
  }
  const std::string_view whole = {dotted, static_cast<size_t>(p - dotted)};
  in::ParseV4(whole, &octets, &ends);
  const std::string_view network = in::MaskV4(whole, octets, ends, v4_bits, out);
  if (network.data() == dotted) in::CopyShort(dotted, network.size(), out);
  return {out, network.size()};
}

}  // namespace sluice::shm
