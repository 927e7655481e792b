// The keyed hash of bucket names. A client of the API chooses key texts freely but sees only allow
// and deny; it must not be able to aim many keys at one group of slots, nor two at one fingerprint.
// All multipliers are secret: they are expanded from the salt in the control segment, which is
// random per generation. See docs/decisions/ for why not SipHash.
//
// The form is the folded 64x64->128 multiplication known from wyhash (public domain), with every
// constant replaced by a secret.
#pragma once

#include <cstdint>
#include <cstring>
#include <string_view>

namespace sluice::shm {

struct HashKey {
  uint64_t k[4] = {1, 2, 3, 4};
};

// 64-bit FNV-1a (Fowler, Noll, Vo): unkeyed and the same everywhere, for what hosts must agree on.
// `h` heads a chain.
inline uint64_t Fnv1a(std::string_view bytes, uint64_t h = 0xcbf29ce484222325) {
  for (const char c : bytes) h = (h ^ static_cast<uint8_t>(c)) * 0x100000001b3;
  return h;
}

// SplitMix64 (Steele, Lea, Flood 2014): expands seeds; a bijection, so distinct stays distinct.
inline uint64_t SplitMix64(uint64_t& state) {
  uint64_t z = (state += 0x9e3779b97f4a7c15);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

inline HashKey ExpandSalt(const uint64_t salt[2]) {
  HashKey key;
  uint64_t a = salt[0];
  uint64_t b = salt[1];
  for (uint64_t& k : key.k) k = (SplitMix64(a) ^ (SplitMix64(b) << 1)) | 1;
  return key;
}

inline uint64_t MulFold(uint64_t a, uint64_t b) {
  const unsigned __int128 m = static_cast<unsigned __int128>(a) * b;
  return static_cast<uint64_t>(m) ^ static_cast<uint64_t>(m >> 64);
}

inline uint64_t Load64(const char* p) {
  uint64_t v;
  std::memcpy(&v, p, 8);
  return v;
}
inline uint64_t Load32(const char* p) {
  uint32_t v;
  std::memcpy(&v, p, 4);
  return v;
}

// One value of a bucket name, chained onto `seed`: the rule's seed first, then each key value in
// order. The length enters, so ("ab","c") and ("a","bc") differ.
inline uint64_t HashValue(const HashKey& key, std::string_view value, uint64_t seed) {
  const char* p = value.data();
  const size_t n = value.size();
  uint64_t a;
  uint64_t b;
  seed ^= key.k[0];
  if (n <= 16) {
    if (n >= 4) {
      const size_t mid = (n >> 3) << 2;
      a = (Load32(p) << 32) | Load32(p + mid);
      b = (Load32(p + n - 4) << 32) | Load32(p + n - 4 - mid);
    } else if (n > 0) {
      a = (uint64_t{static_cast<uint8_t>(p[0])} << 16) |
          (uint64_t{static_cast<uint8_t>(p[n >> 1])} << 8) | static_cast<uint8_t>(p[n - 1]);
      b = 0;
    } else {
      a = b = 0;
    }
  } else {
    const char* const last = p + n - 16;
    for (; p < last; p += 16) {
      seed = MulFold(Load64(p) ^ key.k[1], Load64(p + 8) ^ seed);
    }
    a = Load64(last);
    b = Load64(last + 8);
  }
  return MulFold(key.k[3] ^ n, MulFold(a ^ key.k[1], b ^ key.k[2] ^ seed) ^ seed);
}

}  // namespace sluice::shm
