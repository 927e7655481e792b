// The floor of each row: the least that its meaning needs, written by hand as one loop. A floor
// knows its rule's numbers and nothing of policies, emergencies, restarts or errors. What none can
// leave out: the clock, the product's own hash and probe, the look at the key that guards against
// reuse, the CAS on the word, the count of use, and the look at the dirty flag, so that the daemon
// learns of it. See docs/performance.md.
//
// Floors work on the very slots that the rows work on, so both meet the same cache lines and pages.
#pragma once

#include <cstdint>
#include <string_view>

#include "shm/hash.h"
#include "shm/segment.h"

namespace sluice::bench {

// The memory that floors work on, and one rule's numbers.
struct FloorRule {
  shm::Slot* slots;
  std::atomic<uint64_t>* dirty;
  uint64_t group_mask;
  shm::HashKey hash_key;
  uint64_t seed;  // the rule's
  uint64_t cost_ns;
  uint64_t tau_ns;
};

// The slot that holds `hash`, or kNoSlot.
uint32_t FloorSlot(const FloorRule& rule, uint64_t hash);

// Each returns how many of its `n` checks were admitted.

// One bucket, its slot known.
uint64_t FloorHandle(const FloorRule& rule, uint32_t slot, uint64_t fingerprint, uint64_t n);

// One bucket, found by its key.
uint64_t FloorKeyed(const FloorRule& rule, std::string_view key, uint64_t n);

// The same with the fastest keyed hash that this processor has, two rounds of AES a block, in place
// of the product's; false where it has none. It shows the price of the choice of hash.
bool HasAes();
uint64_t FloorKeyedAes(const FloorRule& rule, std::string_view key, uint64_t n);

// Three buckets per check, one clock read: prefetch, look at all, then commit all.
uint64_t FloorThree(const FloorRule rules[3], const std::string_view keys[3], uint64_t n);

// `n` keys of `key_bytes` each, one after another in memory; one check of each.
uint64_t FloorCold(const FloorRule& rule, const char* keys, size_t key_bytes, uint64_t n);

// The same with memory latency overlapped: `batch` keys (up to kMaxFloorBatch) are hashed and
// prefetched, then checked. `n` is a multiple of `batch`.
inline constexpr size_t kMaxFloorBatch = 16;
uint64_t FloorBatch(const FloorRule& rule, const char* keys, size_t key_bytes, size_t batch,
                    uint64_t n);

}  // namespace sluice::bench
