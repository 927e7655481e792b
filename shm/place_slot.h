// Places on a slot: one entering. Lock-free; a process that is killed at any instruction leaves
// entries that name it, or nothing. Invariants F1 to F4 in places.h, F5 and F6 in lent_places.h.
#pragma once

#include <atomic>
#include <cstdint>

#include "shm/bucket.h"
#include "shm/layout.h"
#include "shm/lent_places.h"
#include "shm/places.h"
#include "shm/slot_table.h"
#include "shm/window_slot.h"

namespace sluice::shm::places {

// True where places that were just taken in the slot `index` under the key `k` count (F2). Takes
// the mark of who loosens the word away (F3).
template <class Cell>
inline bool Counts(const SlotTable<Cell>& table, uint32_t index, uint64_t hash, uint64_t k,
                   uint32_t limit, uint64_t now_ns) {
  BasicSlot<Cell>& slot = table.slot(index);
  uint64_t w = slot.word.load(std::memory_order_seq_cst);
  if (word::IsDead(w) || slot.key.load(std::memory_order_seq_cst) != k) return false;
  if (StateOf(w) != State::kPinned &&
      !slot.word.compare_exchange_strong(w, Pinned(w, now_ns, limit), std::memory_order_seq_cst)) {
    return false;
  }
  return table.IsAlone(hash, index);
}

// Takes charge.tokens places of the key `hash` in the slot `index` of `table`, which knows the rows
// and the rule's limit, under `name`; all of them or none, and of those that `lent` says. Without
// charge.commit it only looks. *seen is filled for kAllowed and kDenied; of an allowed one
// verdict.new_ns is the entry and cost_ns the first one's place in the row. kLost also where the
// key stands in two slots: resolve them first. Memory orders: word before key, in acquire, pairs
// with step 4's CAS (I2).
template <class Cell, class Clock>
inline Outcome Enter(const SlotTable<Cell>& table, uint32_t index, uint64_t hash,
                     const Charge& charge, const Lent<Cell>& lent, uint64_t name,
                     RequestTime<Clock>& time, Seen* seen) {
  BasicSlot<Cell>& slot = table.slot(index);
  const logs::Row<Cell> row = table.log_rows().of(index);
  const uint32_t limit = table.log_rows().terms.limit;
  for (int attempt = 0; attempt < kMaxRestarts; ++attempt) {
    if (attempt != 0) {
      window::StandBack(attempt, time.now_ns());
      time.ReadPrecise();
    }
    uint64_t w = slot.word.load(std::memory_order_acquire);
    if (word::IsDead(w)) return Outcome::kLost;
    const uint64_t k = slot.key.load(std::memory_order_acquire);
    if (key::Fp(k) != FingerprintOf(hash)) return Outcome::kLost;
    const uint64_t now_ns = time.now_ns();
    *seen = {};
    seen->word_ns = w;
    seen->aux = slot.aux.load(std::memory_order_relaxed);  // a hint: orders nothing
    seen->gen = key::Gen(k);
    // Those that were taken under a larger limit count until they are left.
    const uint32_t held =
        CountHeld(row, IsLoose(w) ? limit : std::max(ReachOf(w), limit), seen->gen);
    const uint32_t in_all = limit - std::min(held, limit);
    const uint32_t usable = lent.Usable(seen->gen, now_ns, limit);
    uint32_t free = in_all;
    if (usable < limit) free = std::min(free, usable - CountHeld(row, usable, seen->gen));
    const uint64_t entry = Make(seen->gen, name);
    const bool fits = free >= charge.tokens;
    seen->verdict = {fits, now_ns, entry};
    seen->remaining = fits && charge.commit ? free - charge.tokens : free;
    seen->retry_after_ns = charge.tokens > limit                       ? kNever
                           : fits                                      ? 0
                           : usable < limit && in_all >= charge.tokens ? kLentRetryNs
                                                                       : kRetryNs;
    if (!fits) return Outcome::kDenied;
    if (!charge.commit) return Outcome::kAllowed;
    if (!IsPinnedWell(w, now_ns, limit) &&
        !slot.word.compare_exchange_strong(w, Pinned(w, now_ns, limit),
                                           std::memory_order_seq_cst)) {
      continue;
    }
    const auto places = static_cast<uint32_t>(charge.tokens);  // as many as fit
    const Taken taken = Take(row, usable, entry, StartOf(name, usable), places);
    seen->cost_ns = taken.first;
    const bool counts = Counts(table, index, hash, k, limit, now_ns);
    const bool is_lent = lent.cap == nullptr ||
                         taken.end <= lent.Usable(seen->gen, Clock::PreciseNs(), limit);  // F5
    if (counts && is_lent && taken.count == places) return Outcome::kAllowed;
    Leave(row, entry, taken.first, taken.count);
    if (!counts) return Outcome::kLost;
  }
  return Outcome::kGaveUp;
}

}  // namespace sluice::shm::places
