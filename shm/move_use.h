// Use of a duplicate slot that goes to the one that remains, see slot_table.h.
#pragma once

#include <atomic>
#include <cstdint>

#include "shm/layout.h"

namespace sluice::shm {

inline constexpr int kMaxRestarts = 32;  // changes under our feet before a check gives up

// Adds to the use of the tenancy `k`; less than nothing where refunds outweigh it. Taking back what
// was added needs as much to be there still: else somebody has taken it. False where nothing was
// changed.
template <class Cell>
inline bool MoveUse(BasicSlot<Cell>& s, uint64_t k, int64_t use, bool is_back) {
  for (int attempt = 0; attempt < kMaxRestarts; ++attempt) {
    uint64_t u = s.used.load(std::memory_order_seq_cst);
    if (used::Gen(u) != key::Gen(k)) return false;
    const int64_t count = used::Count(u);
    if (is_back && (use < 0 ? count < -use : count > -use)) return false;
    if (s.used.compare_exchange_strong(u, used::Make(key::Gen(k), count + use),
                                       std::memory_order_seq_cst)) {
      return true;
    }
  }
  return false;
}

}  // namespace sluice::shm
