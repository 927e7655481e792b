#include "bench/floors.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <atomic>

#include "shm/clock.h"
#include "shm/layout.h"
#include "shm/slot_table.h"

namespace sluice::bench {
namespace {

using shm::MonotonicClock;
using shm::Slot;

// The first group, then the second, as SlotTable does; null when the key is in neither.
inline Slot* Probe(const FloorRule& rule, uint64_t hash) {
  const uint64_t fp = shm::FingerprintOf(hash);
  Slot* group = rule.slots + (hash & rule.group_mask) * shm::kGroupSlots;
  for (int groups = 0; groups < 2; ++groups) {
    for (uint32_t i = 0; i < shm::kGroupSlots; ++i) {
      if (shm::key::Fp(group[i].key.load(std::memory_order_acquire)) == fp) return group + i;
    }
    const uint64_t step = ((hash * 0x9e3779b97f4a7c15) >> 32) | 1;
    group = rule.slots + ((hash ^ step) & rule.group_mask) * shm::kGroupSlots;
  }
  return nullptr;
}

inline void PrefetchGroups(const FloorRule& rule, uint64_t hash) {
  const char* first =
      reinterpret_cast<const char*>(rule.slots + (hash & rule.group_mask) * shm::kGroupSlots);
  __builtin_prefetch(first);
  __builtin_prefetch(first + 64);
}

inline void Account(const FloorRule& rule, Slot& slot) {
  slot.used.fetch_add(1, std::memory_order_seq_cst);
  if ((slot.aux.load(std::memory_order_seq_cst) & shm::aux::kDirty) == 0) [[unlikely]] {
    const uint64_t index = static_cast<uint64_t>(&slot - rule.slots);
    slot.aux.fetch_or(shm::aux::kDirty, std::memory_order_seq_cst);
    rule.dirty[index / 64].fetch_or(1ull << (index % 64), std::memory_order_seq_cst);
  }
}

// The word after the cost, or 0 where it is not admitted; `*word` is what it was computed from.
inline uint64_t Decide(const FloorRule& rule, Slot& slot, uint64_t fp, uint64_t now_ns,
                       uint64_t* word) {
  *word = slot.word.load(std::memory_order_acquire);
  if (shm::key::Fp(slot.key.load(std::memory_order_acquire)) != fp) return 0;
  const uint64_t new_ns = std::max(*word, now_ns) + rule.cost_ns;
  return new_ns - now_ns <= rule.tau_ns ? new_ns : 0;
}

inline bool Check(const FloorRule& rule, Slot& slot, uint64_t fp, uint64_t now_ns) {
  uint64_t word;
  const uint64_t new_ns = Decide(rule, slot, fp, now_ns, &word);
  if (new_ns == 0) return false;
  if (!slot.word.compare_exchange_strong(word, new_ns, std::memory_order_acq_rel)) return false;
  Account(rule, slot);
  return true;
}

inline bool CheckFound(const FloorRule& rule, Slot* slot, uint64_t hash, uint64_t now_ns) {
  return slot != nullptr && Check(rule, *slot, shm::FingerprintOf(hash), now_ns);
}

// The next key may be another: the compiler must not carry a hash over to the next check.
inline void ForgetKeys() { std::atomic_signal_fence(std::memory_order_seq_cst); }

inline uint64_t Hash(const FloorRule& rule, std::string_view key) {
  return shm::HashValue(rule.hash_key, key, rule.seed);
}

#if defined(__x86_64__)
// For keys of 16 bytes and more.
[[gnu::target("aes")]] inline uint64_t AesHash(const FloorRule& rule, std::string_view key) {
  const auto load = [](const char* p) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  };
  const __m128i secret = load(reinterpret_cast<const char*>(rule.hash_key.k));
  __m128i state = _mm_xor_si128(
      load(reinterpret_cast<const char*>(rule.hash_key.k + 2)),
      _mm_set_epi64x(static_cast<int64_t>(rule.seed), static_cast<int64_t>(key.size())));
  const char* p = key.data();
  for (size_t left = key.size(); left > 16; left -= 16, p += 16) {
    state = _mm_aesenc_si128(_mm_xor_si128(state, load(p)), secret);
  }
  state = _mm_aesenc_si128(_mm_xor_si128(state, load(key.data() + key.size() - 16)), secret);
  state = _mm_aesenc_si128(_mm_aesenc_si128(state, secret), secret);
  return static_cast<uint64_t>(_mm_cvtsi128_si64(state));
}
#endif

}  // namespace

uint32_t FloorSlot(const FloorRule& rule, uint64_t hash) {
  const Slot* const slot = Probe(rule, hash);
  return slot == nullptr ? shm::kNoSlot : static_cast<uint32_t>(slot - rule.slots);
}

uint64_t FloorHandle(const FloorRule& rule, uint32_t slot, uint64_t fingerprint, uint64_t n) {
  uint64_t admitted = 0;
  for (uint64_t i = 0; i < n; ++i) {
    admitted += Check(rule, rule.slots[slot], fingerprint, MonotonicClock::CoarseNs()) ? 1 : 0;
  }
  return admitted;
}

uint64_t FloorKeyed(const FloorRule& rule, std::string_view key, uint64_t n) {
  uint64_t admitted = 0;
  for (uint64_t i = 0; i < n; ++i) {
    ForgetKeys();
    const uint64_t hash = Hash(rule, key);
    const uint64_t now_ns = MonotonicClock::CoarseNs();
    admitted += CheckFound(rule, Probe(rule, hash), hash, now_ns) ? 1 : 0;
  }
  return admitted;
}

#if defined(__x86_64__)
bool HasAes() { return __builtin_cpu_supports("aes") != 0; }

// Where the bucket stands is decided by the product's hash: each check's hash is that one, changed
// by nothing but what the other hash gives beside what it gave before.
[[gnu::target("aes")]] uint64_t FloorKeyedAes(const FloorRule& rule, std::string_view key,
                                              uint64_t n) {
  const uint64_t place = Hash(rule, key);
  const uint64_t before = AesHash(rule, key);
  uint64_t admitted = 0;
  for (uint64_t i = 0; i < n; ++i) {
    ForgetKeys();
    const uint64_t hash = place ^ before ^ AesHash(rule, key);
    const uint64_t now_ns = MonotonicClock::CoarseNs();
    admitted += CheckFound(rule, Probe(rule, hash), hash, now_ns) ? 1 : 0;
  }
  return admitted;
}
#else
bool HasAes() { return false; }
uint64_t FloorKeyedAes(const FloorRule&, std::string_view, uint64_t) { return 0; }
#endif

uint64_t FloorThree(const FloorRule rules[3], const std::string_view keys[3], uint64_t n) {
  uint64_t admitted = 0;
  for (uint64_t i = 0; i < n; ++i) {
    uint64_t hashes[3];
    Slot* slots[3];
    uint64_t words[3];
    uint64_t news[3];
    ForgetKeys();
    for (int r = 0; r < 3; ++r) {
      hashes[r] = Hash(rules[r], keys[r]);
      PrefetchGroups(rules[r], hashes[r]);
    }
    const uint64_t now_ns = MonotonicClock::CoarseNs();
    bool all = true;
    for (int r = 0; r < 3; ++r) {
      slots[r] = Probe(rules[r], hashes[r]);
      if (slots[r] == nullptr) return admitted;
      news[r] = Decide(rules[r], *slots[r], shm::FingerprintOf(hashes[r]), now_ns, &words[r]);
      all = all && news[r] != 0;
    }
    if (!all) continue;
    for (int r = 0; r < 3; ++r) {
      all &= slots[r]->word.compare_exchange_strong(words[r], news[r], std::memory_order_acq_rel);
    }
    for (int r = 0; r < 3; ++r) Account(rules[r], *slots[r]);
    admitted += all ? 1 : 0;
  }
  return admitted;
}

uint64_t FloorCold(const FloorRule& rule, const char* keys, size_t key_bytes, uint64_t n) {
  uint64_t admitted = 0;
  for (uint64_t i = 0; i < n; ++i) {
    const uint64_t hash = Hash(rule, {keys + i * key_bytes, key_bytes});
    const uint64_t now_ns = MonotonicClock::CoarseNs();
    admitted += CheckFound(rule, Probe(rule, hash), hash, now_ns) ? 1 : 0;
  }
  return admitted;
}

uint64_t FloorBatch(const FloorRule& rule, const char* keys, size_t key_bytes, size_t batch,
                    uint64_t n) {
  uint64_t admitted = 0;
  for (uint64_t i = 0; i < n; i += batch) {
    uint64_t hashes[kMaxFloorBatch];
    for (size_t j = 0; j < batch; ++j) {
      hashes[j] = Hash(rule, {keys + (i + j) * key_bytes, key_bytes});
      PrefetchGroups(rule, hashes[j]);
    }
    const uint64_t now_ns = MonotonicClock::CoarseNs();
    for (size_t j = 0; j < batch; ++j) {
      admitted += CheckFound(rule, Probe(rule, hashes[j]), hashes[j], now_ns) ? 1 : 0;
    }
  }
  return admitted;
}

}  // namespace sluice::bench
