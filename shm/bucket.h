// One check on one slot: look, decide, CAS, account. The heart of a check; nothing here blocks,
// allocates or calls the kernel. `Cell` is the memory, `Clock` the time: tests own both.
#pragma once

#include <atomic>
#include <cstdint>

#include "shm/clock.h"
#include "shm/gcra.h"
#include "shm/layout.h"
#include "shm/slot_table.h"

namespace sluice::shm {

enum class Outcome : uint8_t {
  kAllowed,
  kDenied,
  kLost,    // the slot no longer holds this key, or is being reused: find again
  kGaveUp,  // kMaxRestarts changes under our feet
};

// The reading of time for one request: coarse until a decision comes near its edge.
template <class Clock>
class RequestTime {
 public:
  RequestTime(bool coarse_serves, uint64_t coarse_step_ns)
      : lag_ns_(coarse_serves ? kCoarseLagSteps * coarse_step_ns : 0),
        now_ns_(coarse_serves ? Clock::CoarseNs() : Clock::PreciseNs()) {}

  uint64_t now_ns() const { return now_ns_; }
  // By how much `now_ns` may lag; 0 once the precise clock was read.
  uint64_t lag_ns() const { return lag_ns_; }
  void ReadPrecise() {
    now_ns_ = Clock::PreciseNs();
    lag_ns_ = 0;
  }

 private:
  uint64_t lag_ns_;
  uint64_t now_ns_;
};

// What to charge, and how.
struct Charge {
  uint64_t cost_ns = 0;  // of the whole bucket; a share makes it dearer
  uint64_t tau_ns = 0;
  uint64_t debt_max_ns = 0;
  uint32_t tokens = 0;
  uint32_t dearer_q16 = 0;    // emergency: 1/factor, 16 fraction bits; 0: none
  bool admit_always = false;  // emergency, fail open: count on, deny nothing
  bool commit = false;        // false: look only, write nothing (but a heal)
};

struct Seen {
  Verdict verdict;
  uint64_t cost_ns = 0;  // after share and factor
  uint64_t aux = 0;
  uint16_t gen = 0;
};

// How much a private cost grows: the host's share, times what an emergency leaves of it.
inline uint32_t Dearer(uint32_t inv_share, uint32_t dearer_q16) {
  if (dearer_q16 == 0) return inv_share;
  const uint64_t share = inv_share ? inv_share : aux::kShareOne;
  const uint64_t product = (share * dearer_q16) >> 16;
  return product > 0xffffffffu ? 0xffffffffu : static_cast<uint32_t>(product);
}

// Decides on the slot's word and, with charge.commit, stores it. *seen is filled for kAllowed and
// kDenied. On the way a deny writes nothing, so an exhausted key's line stays shared between cores
// (but a wild word is healed, see NeedsHeal).
template <class Cell, class Clock>
inline Outcome CheckSlot(BasicSlot<Cell>& slot, uint64_t fp, const Charge& charge,
                         RequestTime<Clock>& time, const SlotTable<Cell>& table, Seen* seen) {
  for (int attempt = 0; attempt < kMaxRestarts; ++attempt) {
    uint64_t w = slot.word.load(std::memory_order_acquire);
    if (word::IsDead(w)) [[unlikely]] {
      return Outcome::kLost;
    }
    const uint64_t k = slot.key.load(std::memory_order_acquire);  // after the word: I2
    if (key::Fp(k) != fp) [[unlikely]] {
      return Outcome::kLost;
    }
    const uint64_t a = slot.aux.load(std::memory_order_relaxed);
    const uint64_t cost =
        SharedCostNs(charge.cost_ns, Dearer(aux::InvShare(a), charge.dearer_q16), charge.tau_ns);
    Verdict v = Decide(w, time.now_ns(), cost, charge.tau_ns);
    seen->aux = a;
    seen->gen = key::Gen(k);
    seen->cost_ns = cost;
    if (!v.allowed) {
      // A coarse clock lags: before a deny that the lag could explain, read the precise one.
      if (time.lag_ns() != 0 && v.new_ns - time.now_ns() <= charge.tau_ns + time.lag_ns()) {
        time.ReadPrecise();
        continue;
      }
      if (NeedsHeal(w, time.now_ns(), charge.tau_ns, charge.debt_max_ns)) [[unlikely]] {
        time.ReadPrecise();
        if (NeedsHeal(w, time.now_ns(), charge.tau_ns, charge.debt_max_ns) &&
            slot.word.compare_exchange_strong(w, time.now_ns() + charge.tau_ns,
                                              std::memory_order_acq_rel)) {
          table.Count(Counter::kHeals);
        }
        continue;
      }
      if (!charge.admit_always) {
        seen->verdict = v;
        return Outcome::kDenied;
      }
      v.allowed = true;
      v.new_ns =
          std::max(w, std::min(v.new_ns, time.now_ns() + charge.tau_ns + charge.debt_max_ns));
    }
    seen->verdict = v;
    if (!charge.commit || slot.word.compare_exchange_weak(w, v.new_ns, std::memory_order_acq_rel)) {
      return Outcome::kAllowed;
    }
  }
  return Outcome::kGaveUp;
}

// Adds the tokens to the slot's use and makes sure the daemon will look at it. Returns the aux word
// as it was, so that the caller sees kTextWanted. All of it is seq_cst: it pairs with TakeUse().
// The thread may have stood still since its CAS for longer than the grace, and the slot may have a
// new tenant: then that one is charged these tokens. (Bound: one cost per such stop.)
template <class Cell>
inline uint64_t AddUse(BasicSlot<Cell>& slot, Cell* dirty, uint32_t index, uint32_t tokens) {
  slot.used.fetch_add(tokens, std::memory_order_seq_cst);
  const uint64_t a = slot.aux.load(std::memory_order_seq_cst);
  if ((a & aux::kDirty) == 0) {
    slot.aux.fetch_or(aux::kDirty, std::memory_order_seq_cst);
    dirty[index / 64].fetch_or(1ull << (index % 64), std::memory_order_seq_cst);
  }
  return a;
}

// Takes back a spend of this slot: by CAS, at most what RefundNs allows, only while the tenancy and
// the kind of word are the same. Returns true when anything was given back.
template <class Cell>
inline bool RefundSlot(BasicSlot<Cell>& slot, uint64_t fp, uint16_t gen, uint64_t new_ns,
                       uint64_t cost_ns, uint64_t fresh_now_ns) {
  const uint64_t back = RefundNs(new_ns, cost_ns, fresh_now_ns);
  if (back == 0) return false;
  for (int attempt = 0; attempt < kMaxRestarts; ++attempt) {
    uint64_t w = slot.word.load(std::memory_order_acquire);
    if (word::IsDead(w)) return false;
    const uint64_t k = slot.key.load(std::memory_order_acquire);
    if ((fp != 0 && key::Fp(k) != fp) || key::Gen(k) != gen) return false;
    // Never below the present: time that has passed is not given back twice.
    if (w <= fresh_now_ns) return false;
    const uint64_t lowered = std::max(fresh_now_ns, w - std::min(back, w));
    if (slot.word.compare_exchange_weak(w, lowered, std::memory_order_acq_rel)) return true;
  }
  return false;
}

// Adds n denials to the slot's cell, for the tenant `gen`, and marks the slot dirty: shares count
// attempts, and people want to see who is blocked.
template <class Cell>
inline void AddDenied(BasicSlot<Cell>& slot, Cell& cell, Cell* dirty, uint32_t index, uint16_t gen,
                      uint64_t n) {
  uint64_t d = cell.load(std::memory_order_relaxed);
  for (int attempt = 0; attempt < kMaxRestarts; ++attempt) {
    const uint64_t count = denied::Gen(d) == gen ? denied::Count(d) : 0;
    if (cell.compare_exchange_weak(d, denied::Make(gen, count + n), std::memory_order_seq_cst)) {
      break;
    }
  }
  if ((slot.aux.load(std::memory_order_seq_cst) & aux::kDirty) == 0) {
    slot.aux.fetch_or(aux::kDirty, std::memory_order_seq_cst);
    dirty[index / 64].fetch_or(1ull << (index % 64), std::memory_order_seq_cst);
  }
}

}  // namespace sluice::shm
