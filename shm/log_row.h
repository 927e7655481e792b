// The entries of one bucket's sliding log: looked at, taken, given back, moved. Lock-free; any
// process may be killed at any instruction. The arithmetic is in log.h, a check in log_slot.h.
//
// L1 An entry goes from one value to the next by CAS, and who takes it takes it from a value that
// is
//    free by his own time. So no two takes of one entry are less than a period apart, and none is
//    undone but by who made it.
// L2 Entries of one time are alike: who gives back n of them may give back another's, and the other
//    then his.
// L3 A token counts if after it was taken its slot was the only one with its key (IsAlone). Where
//    there are two, nobody's does until the entries of the higher have gone to the lower and that
//    slot is emptied; an entry is taken there before it is given back here, so that a kill in
//    between leaves one too many, never one too few.
//
// Memory orders: takes and what moves entries are seq_cst, as are the looks at keys that they pair
// with: who takes in one of two slots writes an entry and reads the keys, who names the other
// writes a key and reads the entries, and one of both must see the other. Looks at entries that
// only count are relaxed, which orders nothing: what is taken is compared again.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>

#include "shm/layout.h"
#include "shm/log.h"

namespace sluice::shm::logs {

template <class Cell>
struct Row {
  Cell* entries = nullptr;
  uint32_t size = 0;

  explicit operator bool() const { return entries != nullptr; }
};

// The rows of a table and the rule by whose terms they are looked at. A limit above a row's size is
// cut to it: on the strict side.
template <class Cell>
struct Rows {
  Cell* entries = nullptr;
  uint32_t row_size = 0;
  Terms terms{};

  Row<Cell> of(uint32_t slot) const {
    return {entries == nullptr ? nullptr : entries + uint64_t{slot} * row_size, row_size};
  }
};

struct Tally {
  uint32_t free;
  int64_t oldest_us;  // the age of the one that counts and is free first; of none: -1
  int64_t newest_us;
  bool is_any_ahead;
};

// Counts from the entry `start` on, up to `enough` free ones. Its loads order nothing.
template <class Cell>
inline Tally Look(const Row<Cell>& row, const Terms& t, uint16_t gen, uint64_t now_ns,
                  uint32_t start, uint32_t enough) {
  Tally tally = {0, INT64_MIN, INT64_MAX, false};
  uint32_t i = start;
  for (uint32_t n = 0; n < t.limit && tally.free < enough; ++n) {
    const uint64_t e = row.entries[i].load(std::memory_order_relaxed);
    i = i + 1 == t.limit ? 0 : i + 1;
    if (IsFree(t, e, gen, now_ns)) {
      ++tally.free;
      continue;
    }
    tally.is_any_ahead |= IsAhead(e, now_ns);
    // What was given back by who has a later time counts as taken, so long as that is.
    const int64_t age_us = AgeUs(e, LookUs(now_ns)) + (IsGivenBack(e) ? t.period_us : 0);
    tally.oldest_us = std::max(tally.oldest_us, age_us);
    tally.newest_us = std::min(tally.newest_us, age_us);
  }
  return tally;
}

// How many entries count. Its loads pair with the CASes of Take(), in seq_cst: of two who take and
// then count, one sees what the other took.
template <class Cell>
inline uint32_t CountLive(const Row<Cell>& row, const Terms& t, uint16_t gen, uint64_t now_ns) {
  uint32_t live = 0;
  for (uint32_t i = 0; i < t.limit; ++i) {
    live += IsFree(t, row.entries[i].load(std::memory_order_seq_cst), gen, now_ns) ? 0 : 1;
  }
  return live;
}

// The age of the entry that is the `nth` (1: the first) to be free of those that count; all that
// count where they are fewer. Kept apart: it needs a large frame. Its loads order nothing.
template <class Cell>
[[gnu::noinline]] inline int64_t NthOldestUs(const Row<Cell>& row, const Terms& t, uint16_t gen,
                                             uint64_t now_ns, uint32_t nth) {
  int64_t ages[kMaxLogEntries];
  uint32_t count = 0;
  for (uint32_t i = 0; i < t.limit; ++i) {
    const uint64_t e = row.entries[i].load(std::memory_order_relaxed);  // as in Look()
    if (IsFree(t, e, gen, now_ns)) continue;
    ages[count++] = AgeUs(e, LookUs(now_ns)) + (IsGivenBack(e) ? t.period_us : 0);
  }
  if (count == 0) return t.period_us;
  nth = std::clamp<uint32_t>(nth, 1, count);
  std::nth_element(ages, ages + nth - 1, ages + count, std::greater<>());
  return ages[nth - 1];
}

struct Taken {
  uint32_t count;
  uint32_t next;  // behind the last
};

// Takes up to `tokens` entries at `now_ns`, from `start` on, all callers in the same direction. Its
// CAS pairs with the loads of MoveEntries() (L3); the first load orders nothing, the CAS compares.
template <class Cell>
inline Taken Take(const Row<Cell>& row, const Terms& t, uint16_t gen, uint64_t now_ns,
                  uint32_t start, uint32_t tokens) {
  const uint64_t stamp = Make(gen, StampUs(now_ns));
  Taken taken = {0, start};
  uint32_t i = start;
  for (uint32_t n = 0; n < t.limit && taken.count < tokens; ++n) {
    const uint32_t next = i + 1 == t.limit ? 0 : i + 1;
    uint64_t e = row.entries[i].load(std::memory_order_relaxed);
    if (IsFree(t, e, gen, now_ns) &&
        row.entries[i].compare_exchange_strong(e, stamp, std::memory_order_seq_cst)) {
      ++taken.count;
      taken.next = next;
    }
    i = next;
  }
  return taken;
}

// Gives back up to `tokens` entries of that time, looking from `start` on at the first `size`.
// Returns how many. seq_cst as what moves entries, whose CAS of the same entry it may race with.
template <class Cell>
inline uint32_t GiveBack(const Row<Cell>& row, uint32_t size, uint16_t gen, uint64_t stamp_us,
                         uint32_t start, uint32_t tokens) {
  const uint64_t stamp = Make(gen, stamp_us);
  uint32_t given = 0;
  uint32_t i = start;
  for (uint32_t n = 0; n < size && given < tokens; ++n) {
    uint64_t e = row.entries[i].load(std::memory_order_relaxed);  // orders nothing, as in Take()
    if (e == stamp &&
        row.entries[i].compare_exchange_strong(e, stamp | kGivenBack, std::memory_order_seq_cst)) {
      ++given;
    }
    i = i + 1 == size ? 0 : i + 1;
  }
  return given;
}

// Empties the entries that are ahead of a time that is read after them. Its CAS orders nothing.
template <class Clock, class Cell>
inline uint32_t Heal(const Row<Cell>& row, const Terms& t, uint64_t now_ns) {
  uint32_t healed = 0;
  for (uint32_t i = 0; i < t.limit; ++i) {
    uint64_t e = row.entries[i].load(std::memory_order_acquire);  // before the clock is read
    if (IsAhead(e, now_ns) && IsAhead(e, Clock::PreciseNs()) &&
        row.entries[i].compare_exchange_strong(e, 0, std::memory_order_relaxed)) {
      ++healed;
    }
  }
  return healed;
}

// Moves what counts in a row of the tenancy `from_gen` to that of `to_gen`, whose slot's word
// covers it. False where there was no room for all: of those who take there without being alone,
// who give it back; or where `is_winner` said no. Its loads pair with the CAS of Take() (L3).
template <class Cell, class IsWinner>
inline bool MoveEntries(const Row<Cell>& from, uint16_t from_gen, const Row<Cell>& to,
                        uint16_t to_gen, const Terms& t, uint64_t now_ns, IsWinner is_winner) {
  uint32_t j = 0;
  for (uint32_t i = 0; i < from.size; ++i) {
    uint64_t e = from.entries[i].load(std::memory_order_seq_cst);
    if (!IsOurs(e, from_gen) || IsGivenBack(e) || IsFree(t, e, from_gen, now_ns)) continue;
    const uint64_t moved = Make(to_gen, e);
    bool is_in = false;
    for (; j < t.limit && !is_in; ++j) {
      uint64_t there = to.entries[j].load(std::memory_order_seq_cst);
      is_in = IsFree(t, there, to_gen, now_ns) &&
              to.entries[j].compare_exchange_strong(there, moved, std::memory_order_seq_cst);
    }
    if (!is_in) return false;
    // A lower one may have come, to which somebody has moved what was here before.
    if (!is_winner()) {
      GiveBack(to, t.limit, to_gen, moved & kTimeMask, 0, 1);
      return false;
    }
    // Given back meanwhile, or moved by another.
    if (!from.entries[i].compare_exchange_strong(e, e | kGivenBack, std::memory_order_seq_cst)) {
      GiveBack(to, t.limit, to_gen, moved & kTimeMask, 0, 1);
    }
  }
  return true;
}

// The same for two slots of one key. A dead word has no entries that count, or they are moved. Word
// before key, in acquire: pairs with the CAS that begins a tenancy (slot_table.h, step 4).
template <class Cell, class IsWinner>
inline bool MoveLog(const BasicSlot<Cell>& from, const Row<Cell>& from_row, BasicSlot<Cell>& to,
                    const Row<Cell>& to_row, const Terms& t, uint64_t now_ns, IsWinner is_winner) {
  constexpr int kTries = 8;
  const uint64_t ours = from.word.load(std::memory_order_acquire);
  const uint64_t our_key = from.key.load(std::memory_order_acquire);
  if (word::IsDead(ours)) return true;
  for (int attempt = 0; attempt < kTries; ++attempt) {
    uint64_t w = to.word.load(std::memory_order_acquire);
    const uint64_t k = to.key.load(std::memory_order_acquire);
    if (word::IsDead(w) || key::Fp(k) != key::Fp(our_key)) return false;
    const uint64_t covers = payload::Make(payload::TimeNs(ours), payload::Value(w));
    if (w < covers && !to.word.compare_exchange_strong(w, covers, std::memory_order_acq_rel)) {
      continue;
    }
    return MoveEntries(from_row, key::Gen(our_key), to_row, key::Gen(k), t, now_ns, is_winner);
  }
  return false;
}

}  // namespace sluice::shm::logs
