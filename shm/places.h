// Places of requests in flight: how many of a key may be under way at once. Entries beside a slot,
// each held by a client until it leaves or dies. Lock-free; any process may be killed at any
// instruction.
//
//   word   0 | time:40 (steps of 2^23 ns) | reach:13 | turn:8 | state:2
//          pinned:    until long after now; the slot keeps its tenant
//          loosening: the same, while somebody looks whether any place is held
//          loose:     none is; the slot may pass to another key once the time is past
//          reach:     the largest limit that places of this tenancy were taken by
//          turn:      one more each time the word is pinned
//   entry  gen:16 | holder:13 | nonce:35, or 0
//          of an earlier gen, or 0: free
//
// A rule of limit N has the first N entries of its slot's row, as a sliding log (log.h). Who enters
// puts his name into free ones, by CAS; who leaves puts 0 there, by CAS from his name.
//
// F1 An entry is held by one at a time, and only the first N are taken. So no more than N places
//    are held, whoever is killed when; and each names who holds it.
// F2 A place counts if after it was taken its slot had the same key, was the only one with it (L3
//    in log_row.h), and its word was pinned. Who finds it otherwise gives back, and looks again.
// F3 A pinned word becomes loose only by way of loosening: the mark is stored, the row is looked
//    at, and where nothing is held the word goes from that mark to loose. Who takes a place looks
//    at the word afterwards, and takes the mark away. One writes the entry and reads the word, the
//    other writes the word and reads the entries, all seq_cst: one of both sees the other. So no
//    place that counts stands in a slot that passes on.
// F4 A nonce is used once by its holder, so a place is left once, and by who holds it; the daemon
//    gives a number to another client only when nothing in the table names it.
//
// Memory orders: seq_cst for entries and for the looks at word and key after them (F2, F3). Looks
// at entries that only count are relaxed, which orders nothing: what is taken is compared again.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "shm/gcra.h"
#include "shm/kinds.h"
#include "shm/layout.h"
#include "shm/log_row.h"

namespace sluice::shm::places {

inline constexpr int kNonceBits = 35;
inline constexpr uint64_t kNonceMask = (uint64_t{1} << kNonceBits) - 1;
inline constexpr uint64_t kNameMask = (uint64_t{1} << 48) - 1;

// So far ahead a pinned word's time is set; it is set anew by who enters, and by the daemon, when
// half of it is over. So long at least a place is kept while no daemon runs and nobody enters.
inline constexpr uint64_t kPinNs = 7ull * 86'400'000'000'000;
// Nobody knows when a place is left. What a denial tells all the same.
inline constexpr uint64_t kRetryNs = 1'000'000'000;

// What a client signs with: who it is, and the how-manieth place of his this is. Never 0.
inline constexpr uint64_t NameOf(uint32_t holder, uint64_t nonce) {
  return uint64_t{holder & (kMaxHolders - 1)} << kNonceBits | (nonce & kNonceMask);
}
inline constexpr uint64_t Make(uint16_t gen, uint64_t name) {
  return uint64_t{gen} << 48 | (name & kNameMask);
}
inline constexpr uint16_t Gen(uint64_t e) { return static_cast<uint16_t>(e >> 48); }
inline constexpr uint32_t Holder(uint64_t e) {
  return static_cast<uint32_t>(e >> kNonceBits) & (kMaxHolders - 1);
}
// One of a later gen is not free for who has stood still since his slot passed on. Where gens have
// wrapped since, the daemon empties it.
inline constexpr bool IsFree(uint64_t e, uint16_t gen) {
  return e == 0 || static_cast<int16_t>(Gen(e) - gen) < 0;
}
// Where to begin: clients far from each other, so that they do not meet.
inline constexpr uint32_t StartOf(uint64_t name, uint32_t limit) {
  const auto holder = static_cast<uint32_t>(name >> kNonceBits);
  return ((holder * 0x9e3779b1u >> 16) * 8 + static_cast<uint32_t>(name & 7)) % limit;
}

enum class State : uint8_t { kLoose = 0, kPinned = 1, kLoosening = 2 };
inline constexpr State StateOf(uint64_t w) {
  const uint64_t state = w & 3;
  return state == 3 ? State::kPinned : static_cast<State>(state);
}
inline constexpr bool IsLoose(uint64_t w) { return StateOf(w) == State::kLoose; }
inline constexpr uint32_t ReachOf(uint64_t w) {
  return std::min(static_cast<uint32_t>(w >> 10) & 0x1fff, kMaxLogEntries);
}
// `w`, pinned from now on, for a rule of `limit` places.
inline constexpr uint64_t Pinned(uint64_t w, uint64_t now_ns, uint32_t limit) {
  const uint64_t reach = IsLoose(w) ? limit : std::max(ReachOf(w), limit);
  const uint64_t turn = ((w >> 2) + 1) & 0xff;
  return payload::Make(now_ns + kPinNs, reach << 10 | turn << 2 | 1);
}
inline constexpr uint64_t Loosening(uint64_t w) { return (w & ~uint64_t{3}) | 2; }
inline constexpr bool IsPinnedWell(uint64_t w, uint64_t now_ns, uint32_t limit) {
  const uint64_t until_ns = payload::TimeNs(w);
  return StateOf(w) == State::kPinned && ReachOf(w) >= limit && until_ns > now_ns + kPinNs / 2 &&
         until_ns <= now_ns + kPinNs + 2 * payload::kStepNs;
}

// As shm::MakeLimit. Places have no period; a second stands for it where one must be.
inline Limit MakeLimit(uint64_t limit) {
  Limit l = shm::MakeLimit(limit, 1'000'000'000, limit);
  l.debt_max_ns = kPinNs + 4 * payload::kStepNs;
  return l;
}

// How many of the first `size` entries are held. Its loads order nothing.
template <class Cell>
inline uint32_t CountHeld(const logs::Row<Cell>& row, uint32_t size, uint16_t gen) {
  uint32_t held = 0;
  for (uint32_t i = 0; i < std::min(size, row.size); ++i) {
    held += IsFree(row.entries[i].load(std::memory_order_relaxed), gen) ? 0u : 1u;
  }
  return held;
}

struct Taken {
  uint32_t count;
  uint32_t first;  // of them; the others stand behind it, in a ring
  uint32_t end;    // behind the last of the row among them
};

// Puts `entry` into up to `places` free ones of the first `limit`, from `start` on. F1, F3.
template <class Cell>
inline Taken Take(const logs::Row<Cell>& row, uint32_t limit, uint64_t entry, uint32_t start,
                  uint32_t places) {
  Taken taken = {0, start, 0};
  uint32_t i = start;
  for (uint32_t n = 0; n < limit && taken.count < places; ++n) {
    uint64_t e = row.entries[i].load(std::memory_order_relaxed);  // compared again: orders nothing
    if (IsFree(e, Gen(entry)) &&
        row.entries[i].compare_exchange_strong(e, entry, std::memory_order_seq_cst)) {
      if (taken.count++ == 0) taken.first = i;
      taken.end = std::max(taken.end, i + 1);
    }
    i = i + 1 == limit ? 0 : i + 1;
  }
  return taken;
}

// Gives back up to `places` of those that hold `entry`, looking from `first` on at all of the row.
// Returns how many. The first load orders nothing: the CAS compares.
template <class Cell>
inline uint32_t Leave(const logs::Row<Cell>& row, uint64_t entry, uint32_t first, uint32_t places) {
  uint32_t left = 0;
  uint32_t i = row.size == 0 ? 0 : first % row.size;
  for (uint32_t n = 0; n < row.size && left < places; ++n) {
    uint64_t e = row.entries[i].load(std::memory_order_relaxed);
    if (e == entry && row.entries[i].compare_exchange_strong(e, 0, std::memory_order_seq_cst)) {
      ++left;
    }
    i = i + 1 == row.size ? 0 : i + 1;
  }
  return left;
}

// Lets go of a slot in which no place is held (F3). True where it is loose. Key after word: I2.
template <class Cell>
inline bool Loosen(BasicSlot<Cell>& slot, const logs::Row<Cell>& row, uint64_t now_ns) {
  uint64_t w = slot.word.load(std::memory_order_seq_cst);
  if (word::IsDead(w)) return false;
  if (IsLoose(w)) return true;
  const uint16_t gen = key::Gen(slot.key.load(std::memory_order_seq_cst));
  uint64_t mark = Loosening(w);
  if (w != mark && !slot.word.compare_exchange_strong(w, mark, std::memory_order_seq_cst)) {
    return false;
  }
  for (uint32_t i = 0; i < row.size; ++i) {
    if (IsFree(row.entries[i].load(std::memory_order_seq_cst), gen)) continue;
    // Pinned again, at best effort: who enters does it else.
    slot.word.compare_exchange_strong(mark, Pinned(mark, now_ns, 0), std::memory_order_seq_cst);
    return false;
  }
  return slot.word.compare_exchange_strong(mark, payload::Make(now_ns, 0),
                                           std::memory_order_seq_cst);
}

// Keeps a slot pinned whose time comes nearer, while places are held there and nobody enters.
template <class Cell>
inline void KeepPinned(BasicSlot<Cell>& slot, uint64_t now_ns) {
  uint64_t w = slot.word.load(std::memory_order_seq_cst);
  if (word::IsDead(w) || IsLoose(w) || IsPinnedWell(w, now_ns, 0)) return;
  slot.word.compare_exchange_strong(w, Pinned(w, now_ns, 0), std::memory_order_seq_cst);
}

// Step 5 (slot_table.h) for a key of places, `lowest` the first of its slots: the one in which some
// are held remains, for only one can have any that count (F2), else the lowest. Where both have,
// one's are about to be given back, or of somebody killed: both stay until then, and nobody enters.
// Returns the one that remains. The key's load pairs with step 3's CAS.
template <class Table, class Empty>
inline uint32_t Resolve(const Table& table, uint64_t hash, uint32_t lowest, uint64_t now_ns,
                        Empty empty) {
  if (table.IsAlone(hash, lowest)) return lowest;
  const auto each = [&](auto act) {
    for (const uint32_t group : {table.FirstGroup(hash), table.SecondGroup(hash)}) {
      for (uint32_t i = group; i < group + kGroupSlots; ++i) {
        if (key::Fp(table.slot(i).key.load(std::memory_order_acquire)) == FingerprintOf(hash))
          act(i);
      }
    }
  };
  uint32_t held = ~0u;
  each([&](uint32_t i) {
    if (!Loosen(table.slot(i), table.log_rows().of(i), now_ns)) held = std::min(held, i);
  });
  const uint32_t remains = held != ~0u ? held : lowest;
  each([&](uint32_t i) {
    if (i != remains) empty(i);
  });
  return remains;
}

}  // namespace sluice::shm::places
