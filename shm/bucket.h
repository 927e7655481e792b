// One check on one slot: look, decide, CAS, account. The heart of a check; nothing here blocks,
// allocates or calls the kernel. `Cell` is the memory, `Clock` the time: tests own both.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "shm/clock.h"
#include "shm/credits.h"
#include "shm/gcra.h"
#include "shm/kinds.h"
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
  // A reading that was taken already.
  static RequestTime Of(uint64_t now_ns, uint64_t lag_ns) { return {now_ns, lag_ns, Taken()}; }

  uint64_t now_ns() const { return now_ns_; }
  // By how much `now_ns` may lag; 0 once the precise clock was read.
  uint64_t lag_ns() const { return lag_ns_; }
  void ReadPrecise() {
    now_ns_ = Clock::PreciseNs();
    lag_ns_ = 0;
  }

 private:
  struct Taken {};
  RequestTime(uint64_t now_ns, uint64_t lag_ns, Taken) : lag_ns_(lag_ns), now_ns_(now_ns) {}

  uint64_t lag_ns_;
  uint64_t now_ns_;
};

// What to charge, and how. Here and in Seen nothing is initialised: both are made on each check.
struct Charge {
  uint64_t cost_ns;  // of the whole bucket; a share makes it dearer
  uint64_t tau_ns;
  uint64_t debt_max_ns;
  uint64_t tokens;
  uint32_t dearer_q16;  // emergency: 1/factor, 16 fraction bits; 0: none
  bool admit_always;    // emergency, fail open: count on, deny nothing
  bool commit;          // false: look only, write nothing (but a heal)
  Kind kind = Kind::kTokenBucket;
  uint16_t floor_q16 = 0;                       // of a lease, the class's: see credits::RoomOf
  const Limit* limit = nullptr;                 // where the kind is another
  const std::atomic<uint64_t>* ends = nullptr;  // of a window that follows a calendar
  uint64_t trusted = 0;  // of a lease that is not strict: as credits::Measure has it
  // Of such a one, in an emergency: when its host's own bucket is full, if nothing is spent, and
  // 1/share where none is known.
  uint64_t alone_full_ns = 0;
  uint32_t alone_inv_share = 0;
};

struct Seen {
  uint64_t word_ns;  // the verdict is from
  Verdict verdict;
  uint64_t cost_ns;  // after share and factor
  uint64_t aux;
  uint16_t gen;
  // Of other kinds than the token bucket: what is told; verdict.new_ns is the word to store.
  uint64_t remaining;
  uint64_t retry_after_ns;
  uint64_t reset_after_ns;
};

// How much a private cost grows: the host's share, times what an emergency leaves of it.
inline uint32_t Dearer(uint32_t inv_share, uint32_t dearer_q16) {
  if (dearer_q16 == 0) return inv_share;
  const uint64_t share = inv_share ? inv_share : aux::kShareOne;
  const uint64_t product = (share * dearer_q16) >> 16;
  return product > 0xffffffffu ? 0xffffffffu : static_cast<uint32_t>(product);
}

// One look at the slot: nothing is stored, nothing is tried again. kAllowed, kLost, or kDenied,
// which is final only if IsDenialClear. *seen is filled but for kLost. Inlined always, so that on
// the usual way all of *seen stays in registers.
// Memory orders: the acquire load of the word pairs with step 4's CAS of it: the key that is loaded
// next is at least as new (I2). aux is a hint here and orders nothing.
template <class Cell>
[[gnu::always_inline]] inline Outcome LookSlot(const BasicSlot<Cell>& slot, uint64_t fp,
                                               uint64_t cost_ns, uint64_t tau_ns,
                                               uint32_t dearer_q16, uint64_t now_ns, Seen* seen) {
  const uint64_t w = slot.word.load(std::memory_order_acquire);
  if (word::IsDead(w)) [[unlikely]] {
    return Outcome::kLost;
  }
  const uint64_t k = slot.key.load(std::memory_order_acquire);  // after the word: I2
  if (key::Fp(k) != fp) [[unlikely]] {
    return Outcome::kLost;
  }
  seen->word_ns = w;
  seen->aux = slot.aux.load(std::memory_order_relaxed);
  seen->gen = key::Gen(k);
  seen->cost_ns = SharedCostNs(cost_ns, Dearer(aux::InvShare(seen->aux), dearer_q16), tau_ns);
  seen->verdict = Decide(w, now_ns, seen->cost_ns, tau_ns);
  return seen->verdict.allowed ? Outcome::kAllowed : Outcome::kDenied;
}

// False where a coarse clock's lag may explain the denial, or the word is wild: CheckSlot looks
// closer then.
[[gnu::always_inline]] inline bool IsDenialClear(const Seen& seen, uint64_t tau_ns,
                                                 uint64_t debt_max_ns, uint64_t now_ns,
                                                 uint64_t lag_ns) {
  return seen.verdict.new_ns - now_ns > tau_ns + lag_ns &&
         !NeedsHeal(seen.word_ns, now_ns, tau_ns, debt_max_ns);
}

// Stores the word of an allowing look. False when the slot's word has changed since; then nothing
// that the look saw may be used any more.
template <class Cell>
[[gnu::always_inline]] inline bool CommitLook(BasicSlot<Cell>& slot, const Seen& seen) {
  uint64_t w = seen.word_ns;
  return slot.word.compare_exchange_strong(w, seen.verdict.new_ns, std::memory_order_acq_rel);
}

// Decides on the slot's word and, with charge.commit, stores it. *seen is filled for kAllowed and
// kDenied. On the way a deny writes nothing, so an exhausted key's line stays shared between cores
// (but a wild word is healed, see NeedsHeal). Its CAS pairs with nothing of its own: it hands on
// what the word's earlier CASes have published.
template <class Cell, class Clock>
inline Outcome CheckSlot(BasicSlot<Cell>& slot, uint64_t fp, const Charge& charge,
                         RequestTime<Clock>& time, const SlotTable<Cell>& table, Seen* seen) {
  for (int attempt = 0; attempt < kMaxRestarts; ++attempt) {
    const Outcome outcome =
        LookSlot(slot, fp, charge.cost_ns, charge.tau_ns, charge.dearer_q16, time.now_ns(), seen);
    if (outcome == Outcome::kLost) return outcome;
    if (outcome == Outcome::kDenied) {
      if (!IsDenialClear(*seen, charge.tau_ns, charge.debt_max_ns, time.now_ns(), time.lag_ns())) {
        // A thread may have stood still since it read the time: only by a fresh one is a word wild.
        time.ReadPrecise();
        uint64_t w = seen->word_ns;
        if (NeedsHeal(w, time.now_ns(), charge.tau_ns, charge.debt_max_ns) &&
            slot.word.compare_exchange_strong(w, time.now_ns() + charge.tau_ns,
                                              std::memory_order_acq_rel)) {
          table.Count(Counter::kHeals);
        }
        continue;
      }
      if (!charge.admit_always) return outcome;
      seen->verdict.allowed = true;
      seen->verdict.new_ns = std::max(
          seen->word_ns,
          std::min(seen->verdict.new_ns, time.now_ns() + charge.tau_ns + charge.debt_max_ns));
    }
    if (!charge.commit || CommitLook(slot, *seen)) return Outcome::kAllowed;
  }
  return Outcome::kGaveUp;
}

// The two halves of AddUse, for callers that have something else to do in between.
template <class Cell>
inline uint64_t CountUse(BasicSlot<Cell>& slot, uint32_t tokens) {
  slot.used.fetch_add(tokens, std::memory_order_seq_cst);
  return slot.aux.load(std::memory_order_seq_cst);
}
// Beyond so much use that the daemon has not taken, no more is added: a count that overflowed would
// be another tenancy's. Only where a rule fails open, or by what is charged without asking.
inline constexpr int64_t kMostUse = int64_t{1} << 46;

// Adds `tokens`, of any number of either sign, as far as that. Orders as CountUse(): seq_cst.
template <class Cell>
inline uint64_t CountManyUses(BasicSlot<Cell>& slot, int64_t tokens) {
  uint64_t u = slot.used.load(std::memory_order_seq_cst);
  for (int attempt = 0; attempt < kMaxRestarts; ++attempt) {
    const int64_t sum = std::clamp(used::Count(u) + tokens, -kMostUse, kMostUse);
    if (slot.used.compare_exchange_strong(u, used::Make(used::Gen(u), sum),
                                          std::memory_order_seq_cst)) {
      break;
    }
  }
  return slot.aux.load(std::memory_order_seq_cst);
}

// CountUse() of any number of tokens: few at once are added, and cannot overflow.
inline constexpr uint64_t kFewTokens = 1ull << 24;
template <class Cell>
inline uint64_t CountUses(BasicSlot<Cell>& slot, uint64_t tokens) {
  if (tokens <= kFewTokens) [[likely]] {
    return CountUse(slot, static_cast<uint32_t>(tokens));
  }
  return CountManyUses(slot, static_cast<int64_t>(std::min<uint64_t>(tokens, kMostUse)));
}

template <class Cell>
inline void MarkDirty(BasicSlot<Cell>& slot, Cell* dirty, uint32_t index) {
  slot.aux.fetch_or(aux::kDirty, std::memory_order_seq_cst);
  dirty[index / 64].fetch_or(1ull << (index % 64), std::memory_order_seq_cst);
}

// Adds the tokens to the slot's use and makes sure the daemon will look at it. Returns the aux word
// as it was, so that the caller sees kTextWanted. All of it is seq_cst: it pairs with TakeUse().
// The thread may have stood still since its CAS for longer than the grace, and the slot may have a
// new tenant: then that one is charged these tokens. (Bound: one cost per such stop.)
template <class Cell>
inline uint64_t AddUse(BasicSlot<Cell>& slot, Cell* dirty, uint32_t index, uint64_t tokens) {
  const uint64_t a = CountUses(slot, tokens);
  if ((a & aux::kDirty) == 0) MarkDirty(slot, dirty, index);
  return a;
}

// Takes back a spend of this slot: by CAS, at most what RefundNs allows, only while the tenancy and
// the kind of word are the same. Returns true when anything was given back. Word before key: the
// acquire load pairs with step 4's CAS (I2).
// `at_once_ns`: of a spend that was told to wait, the tolerance within which nobody waits. Those
// who stand behind it keep their turns, so whoever came next would be told the turn of the last of
// them once more: then it stays spent, and no time holds more than the limit.
template <class Cell>
inline bool RefundSlot(BasicSlot<Cell>& slot, uint64_t fp, uint16_t gen, uint64_t new_ns,
                       uint64_t cost_ns, uint64_t fresh_now_ns, uint64_t at_once_ns = kNever) {
  const uint64_t back = RefundNs(new_ns, cost_ns, fresh_now_ns);
  if (back == 0) return false;
  for (int attempt = 0; attempt < kMaxRestarts; ++attempt) {
    uint64_t w = slot.word.load(std::memory_order_acquire);
    if (word::IsDead(w)) return false;
    const uint64_t k = slot.key.load(std::memory_order_acquire);
    if ((fp != 0 && key::Fp(k) != fp) || key::Gen(k) != gen) return false;
    // Never below the present: time that has passed is not given back twice.
    if (w <= fresh_now_ns) return false;
    if (w != new_ns && w - fresh_now_ns > at_once_ns) return false;
    const uint64_t lowered = std::max(fresh_now_ns, w - std::min(back, w));
    if (slot.word.compare_exchange_weak(w, lowered, std::memory_order_acq_rel)) return true;
  }
  return false;
}

// Takes back use of the tenancy `gen`, as a refund does; false: it has ended, and its use with it.
// Marked dirty in any case, so that the daemon looks. Pairs with TakeUse() as AddUse() does.
template <class Cell>
inline bool TakeBackUse(BasicSlot<Cell>& slot, Cell* dirty, uint32_t index, uint16_t gen,
                        uint64_t tokens) {
  bool taken_back = false;
  uint64_t u = slot.used.load(std::memory_order_seq_cst);
  for (int attempt = 0; attempt < kMaxRestarts && !taken_back; ++attempt) {
    if (used::Gen(u) != gen) return false;
    const auto back = static_cast<int64_t>(std::min<uint64_t>(tokens, kMostUse));
    const uint64_t next = used::Make(gen, std::max(used::Count(u) - back, -kMostUse));
    taken_back = slot.used.compare_exchange_weak(u, next, std::memory_order_seq_cst);
  }
  AddUse(slot, dirty, index, 0);
  return taken_back;
}

// Puts what `next` makes of the cell's count into it, for the tenant `gen`, and marks the slot
// dirty: shares count attempts, and people want to see who is blocked. Pairs with TakeDenied() in
// seq_cst, as AddUse() with TakeUse(); the first load orders nothing, the CAS looks again.
template <class Cell, class Next>
inline void CountDenied(BasicSlot<Cell>& slot, Cell& cell, Cell* dirty, uint32_t index,
                        uint16_t gen, Next next) {
  uint64_t d = cell.load(std::memory_order_relaxed);
  for (int attempt = 0; attempt < kMaxRestarts; ++attempt) {
    const uint64_t count = denied::Gen(d) == gen ? denied::Count(d) : 0;
    if (cell.compare_exchange_weak(d, denied::Make(gen, next(count)), std::memory_order_seq_cst)) {
      break;
    }
  }
  if ((slot.aux.load(std::memory_order_seq_cst) & aux::kDirty) == 0) MarkDirty(slot, dirty, index);
}

// Adds n denials of a class of that tag; those of another, which nobody has taken, are gone. Pairs
// with TakeDenied() in seq_cst; the first load orders nothing, the CAS looks again.
template <class Cell>
inline void AddClassDenied(Cell& cell, uint16_t tag, uint64_t n) {
  uint64_t d = cell.load(std::memory_order_relaxed);
  for (int attempt = 0; attempt < kMaxRestarts; ++attempt) {
    const uint64_t count = denied::Gen(d) == tag ? denied::Count(d) : 0;
    if (cell.compare_exchange_weak(d, denied::Make(tag, count + n), std::memory_order_seq_cst)) {
      return;
    }
  }
}

// Adds n denials.
template <class Cell>
inline void AddDenied(BasicSlot<Cell>& slot, Cell& cell, Cell* dirty, uint32_t index, uint16_t gen,
                      uint64_t n) {
  CountDenied(slot, cell, dirty, index, gen, [n](uint64_t count) { return count + n; });
}

// The same for a lease: the cell keeps the tokens that were asked for in vain, and the largest cost
// among them (layout.h). Denials that are tallied add to the tokens alone.
template <class Cell>
inline void AddWanted(BasicSlot<Cell>& slot, Cell& cell, Cell* dirty, uint32_t index, uint16_t gen,
                      uint64_t tokens) {
  CountDenied(slot, cell, dirty, index, gen, [tokens](uint64_t count) {
    return wanted::Make(wanted::Tokens(count) + tokens, std::max(wanted::Largest(count), tokens));
  });
}

}  // namespace sluice::shm
