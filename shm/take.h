// The daemon's half of the slot protocol: take use, read denials, set the word from global state.
// Daemon only. Pairs in seq_cst with AddUse(): the dirty bit and flag are cleared before the take,
// and a check sets them after its add, so use is either taken now or its slot is dirty again.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "shm/bucket.h"
#include "shm/layout.h"

namespace sluice::shm {

// Takes one word of the dirty bitmap; each slot named by a bit is to be cleared and taken from.
// The first look orders nothing: a bit that it misses is found by the next harvest.
template <class Cell>
inline uint64_t TakeDirty(Cell& bits) {
  if (bits.load(std::memory_order_relaxed) == 0) return 0;
  return bits.exchange(0, std::memory_order_seq_cst);
}

// True where one of the `count` words holds a bit. Orders nothing: what it misses is found by the
// next harvest.
template <class Cell>
inline bool IsAnyDirty(const Cell* bits, uint64_t count) {
  uint64_t any = 0;
  for (uint64_t i = 0; i < count; ++i) any |= bits[i].load(std::memory_order_relaxed);
  return any != 0;
}

// Clears the slot's dirty flag. The bitmap's bit must have been cleared before.
template <class Cell>
inline void ClearDirty(BasicSlot<Cell>& slot) {
  slot.aux.fetch_and(~aux::kDirty, std::memory_order_seq_cst);
}

// Takes the tokens used by the tenant `k` (a key word), leaving 0. Nothing is charged unless `used`
// carries that tenant's gen and the key is still the same afterwards. May be negative (refunds).
template <class Cell>
inline int64_t TakeUse(BasicSlot<Cell>& slot, uint64_t k) {
  for (int attempt = 0; attempt < kMaxRestarts; ++attempt) {
    uint64_t u = slot.used.load(std::memory_order_seq_cst);
    if (used::Gen(u) != key::Gen(k) || slot.key.load(std::memory_order_acquire) != k) return 0;
    const int64_t count = used::Count(u);
    if (count == 0) return 0;
    if (slot.used.compare_exchange_strong(u, used::Make(key::Gen(k), 0),
                                          std::memory_order_seq_cst)) {
      return count;
    }
  }
  return 0;  // contended: the slot is dirty again and is taken next time
}

template <class Cell>
inline uint64_t TakeDenied(Cell& cell, uint64_t k) {
  uint64_t d = cell.load(std::memory_order_seq_cst);
  if (denied::Gen(d) != key::Gen(k) || denied::Count(d) == 0) return 0;
  return cell.compare_exchange_strong(d, denied::Make(key::Gen(k), 0), std::memory_order_seq_cst)
             ? denied::Count(d)
             : 0;
}

// Sets the word to the global state plus this host's unreported use, by CAS, computed anew when the
// word or the use changed meanwhile. `base_ns` is where unreported use begins to count: the global
// theoretical arrival time, which may be in the past. `unreported` are tokens taken but not in the
// reply; tokens_ns(n) is the private cost of n tokens. False when the slot has another tenant. Word
// before key, in acquire: pairs with the claimer's step 4.
template <class Cell, class TokensNs>
inline bool FoldWord(BasicSlot<Cell>& slot, uint64_t k, uint64_t now_ns, uint64_t base_ns,
                     int64_t unreported, uint64_t ceiling_ns, TokensNs tokens_ns) {
  for (int attempt = 0; attempt < kMaxRestarts; ++attempt) {
    uint64_t w = slot.word.load(std::memory_order_acquire);
    if (word::IsDead(w) || slot.key.load(std::memory_order_acquire) != k) return false;
    const uint64_t u = slot.used.load(std::memory_order_seq_cst);
    const int64_t own = (used::Gen(u) == key::Gen(k) ? used::Count(u) : 0) + unreported;
    const uint64_t own_ns = own > 0 ? tokens_ns(static_cast<uint64_t>(own)) : 0;
    const uint64_t target = std::clamp(base_ns + own_ns, now_ns, now_ns + ceiling_ns);
    if (w == target || (w <= now_ns && target == now_ns)) return true;
    if (slot.word.compare_exchange_strong(w, target, std::memory_order_acq_rel)) return true;
  }
  return true;  // contended: the next reply sets it
}

// Publishes this host's 1/share (16 fraction bits), shard and rule; keeps the flags. Clients take
// it as a hint: the CAS orders nothing but hands on what marked the slot. The key's load pairs with
// step 3. Of a key of places the share's half is what those who wait say (place_queue.h), and
// stays.
template <class Cell>
inline void SetAux(BasicSlot<Cell>& slot, uint64_t k, uint32_t inv_share, uint32_t shard,
                   uint16_t rule) {
  uint64_t a = slot.aux.load(std::memory_order_relaxed);
  for (int attempt = 0; attempt < kMaxRestarts; ++attempt) {
    if (slot.key.load(std::memory_order_acquire) != k) return;
    const bool has_share = key::KindOf(k) != Kind::kInFlight;
    const uint64_t next =
        aux::Make(has_share ? inv_share : aux::InvShare(a), shard, rule) | (a & aux::kFlagsMask);
    if (next == a) return;
    if (slot.aux.compare_exchange_weak(a, next, std::memory_order_acq_rel)) return;
  }
}

}  // namespace sluice::shm
