// Places that a host is lent, where a limit of requests in flight holds over all hosts (places.h,
// lua/places.lua): how many of a key's entries may be taken here stands beside the slot, written by
// the daemon alone.
//
//   cap   gen:16 | until:35 (steps of 2^23 ns) | places:13
//
// F5 Who takes an entry looks at the cap afterwards, and gives back what is at or beyond it. Who
//    lowers the cap looks at the row afterwards, and counts what is held at or beyond it. One
//    writes the entry and reads the cap, the other writes the cap and reads the entries, all
//    seq_cst: one of both sees the other. So no more places are in use here than the cap and what
//    was seen held beyond it, and what the daemon gives back is used by nobody.
// F6 A cap ends by itself, so that a daemon that is dead lends nothing on; it is of one tenancy.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "shm/layout.h"
#include "shm/log_row.h"
#include "shm/places.h"

namespace sluice::shm::places {

// Where the host is lent too little, more comes within so long, if there is any.
inline constexpr uint64_t kLentRetryNs = 20'000'000;

namespace cap {
inline constexpr int kPlacesBits = 13;
inline constexpr uint64_t kPlacesMask = (uint64_t{1} << kPlacesBits) - 1;
inline constexpr uint64_t kUntilMask = (uint64_t{1} << 35) - 1;
// Down to a step: never longer than said.
inline constexpr uint64_t Make(uint16_t gen, uint64_t until_ns, uint32_t places) {
  return uint64_t{gen} << 48 | ((until_ns >> payload::kBits) & kUntilMask) << kPlacesBits |
         std::min<uint64_t>(places, kMaxLogEntries);
}
inline constexpr uint16_t Gen(uint64_t cap) { return static_cast<uint16_t>(cap >> 48); }
inline constexpr uint64_t UntilNs(uint64_t cap) {
  return (cap >> kPlacesBits & kUntilMask) << payload::kBits;
}
// What it lends the tenancy `gen` at `now_ns`.
inline constexpr uint32_t Places(uint64_t cap, uint16_t gen, uint64_t now_ns) {
  if (Gen(cap) != gen || now_ns >= UntilNs(cap)) return 0;
  return static_cast<uint32_t>(std::min<uint64_t>(cap & kPlacesMask, kMaxLogEntries));
}
}  // namespace cap

// What may be taken on this host beside the limit. The default: all of it.
template <class Cell>
struct Lent {
  Cell* cap = nullptr;  // null: nobody lends, and the limit is this host's
  uint32_t alone = 0;   // so many at least, lent or not: in an emergency that admits them

  // How many of the first entries may be taken at `now_ns` under a rule of `limit`.
  uint32_t Usable(uint16_t gen, uint64_t now_ns, uint32_t limit) const {
    if (cap == nullptr) return limit;
    const uint32_t lent = cap::Places(cap->load(std::memory_order_seq_cst), gen, now_ns);
    return std::min(limit, std::max(lent, alone));
  }
};

// What stands at a host.
struct Stock {
  uint32_t cap = 0;     // entries that may be taken
  uint32_t beyond = 0;  // held at or beyond it
  uint32_t held = 0;    // of all

  uint32_t counted() const { return cap + beyond; }
};

// As F5 has it: what is held, and what of it at or beyond `cap`.
template <class Cell>
inline Stock LookAt(const logs::Row<Cell>& row, uint16_t gen, uint32_t cap) {
  Stock stock{.cap = cap};
  for (uint32_t i = 0; i < row.size; ++i) {
    if (IsFree(row.entries[i].load(std::memory_order_seq_cst), gen)) continue;
    ++stock.held;
    stock.beyond += i >= cap ? 1 : 0;
  }
  return stock;
}

// The largest cap, of `limit` at most, under which no more than `counted` are counted; 0 where more
// are held. Each entry is looked at once, from above: what stands at or beyond the present cap only
// becomes less, so that a cap that is raised to this counts no more than that.
template <class Cell>
inline uint32_t CapFor(const logs::Row<Cell>& row, uint16_t gen, uint32_t limit, uint32_t counted) {
  uint32_t beyond = 0;
  for (uint32_t i = row.size; i > 0; --i) {
    if (i <= limit && i + beyond <= counted) return i;
    beyond += IsFree(row.entries[i - 1].load(std::memory_order_seq_cst), gen) ? 0u : 1u;
  }
  return 0;
}

// Sets the cap of the tenancy `k` (a key word) in `slot`, of `limit` at most, so that no more than
// `counted` are counted, until `until_ns`; then looks at what is. False where the slot is
// another's: then nobody holds a place of that tenancy. The daemon alone sets caps, so that the CAS
// fails only where the slot has passed on, to a tenant that uses the cell in its own way.
template <class Cell>
inline bool SetCap(Cell& cell, const BasicSlot<Cell>& slot, uint64_t k, const logs::Row<Cell>& row,
                   uint32_t limit, uint32_t counted, uint64_t until_ns, Stock* stock) {
  *stock = {};
  uint64_t before = cell.load(std::memory_order_seq_cst);
  if (slot.key.load(std::memory_order_seq_cst) != k) return false;
  const uint16_t gen = key::Gen(k);
  const uint32_t cap = CapFor(row, gen, std::min(limit, row.size), counted);
  const uint64_t after = cap::Make(gen, until_ns, cap);
  if (!cell.compare_exchange_strong(before, after, std::memory_order_seq_cst)) return false;
  const Stock seen = LookAt(row, gen, cap);
  if (slot.key.load(std::memory_order_seq_cst) != k) return false;
  *stock = seen;
  return true;
}

}  // namespace sluice::shm::places
