// Giving back what was spent, by the rule of refunds of each kind.
#pragma once

#include <algorithm>
#include <cstdint>

#include "client/check.h"

namespace sluice::client {

// The entries of a sliding log, or of places; none of an overflow bucket.
inline shm::logs::Row<std::atomic<uint64_t>> LogOf(const Attachment& a, uint32_t index,
                                                   bool overflow) {
  if (overflow || index >= a.logs.rows) return {};
  return {a.log_entries + uint64_t{index} * a.logs.entries, a.logs.entries};
}

// Takes back what was spent in a sliding log; false where it has no entries.
inline bool RefundLogged(const Attachment& a, shm::Slot& slot, uint64_t fp, uint32_t index,
                         bool overflow, uint16_t gen, uint64_t new_ns, uint32_t tokens,
                         uint64_t period_ns, uint64_t fresh_ns) {
  const auto row = LogOf(a, index, overflow);
  return row && shm::logs::RefundLog(slot, row, fp, gen, new_ns, tokens, period_ns, fresh_ns);
}

// Takes back what was spent in a slot, by the rule of refunds of its kind, but of a sliding log.
// `new_ns`: the word that the spend left; `cost_ns` is of a token bucket, `second` (null: none) and
// `scale`, the index of its scale, of a window.
// `at_once_ns`: see RefundSlot.
inline bool RefundKind(shm::Kind kind, shm::Slot& slot, std::atomic<uint64_t>* second, uint64_t fp,
                       uint16_t gen, uint64_t new_ns, uint64_t cost_ns, uint64_t tokens, int scale,
                       uint64_t fresh_ns, uint64_t at_once_ns) {
  if (kind == shm::Kind::kTokenBucket) {
    return shm::RefundSlot(slot, fp, gen, new_ns, cost_ns, fresh_ns, at_once_ns);
  }
  if (shm::IsWindow(kind)) {
    return shm::window::RefundWindow(slot, second, fp, gen, new_ns, tokens, scale, fresh_ns);
  }
  return shm::credits::RefundLease(slot, fp, gen, new_ns, tokens, fresh_ns);
}

// Gives back the places of one request; false where none of them is held any more.
inline bool LeavePlaces(const Attachment& a, uint32_t index, bool overflow, uint64_t entry,
                        uint32_t first, uint32_t places) {
  const auto row = LogOf(a, index, overflow);
  return row && shm::places::Leave(row, entry, first, places) != 0;
}

// The slot of a spend; null where there is none of that number.
inline shm::Slot* SlotOf(const Attachment& a, const sluice_spend_t& spend) {
  const bool overflow = (spend.flags & kOverflowSlot) != 0;
  if (spend.slot >= (overflow ? shm::kMaxRules : a.capacity)) return nullptr;
  return overflow ? &a.overflow[spend.slot] : &a.slots[spend.slot];
}

// For how long what was spent in a sliding log under the policy `policy` counts. Where the rules
// have changed since, for as long as its slot keeps its tenant. The load orders nothing: a wrong
// answer gives back what counts no more.
inline uint64_t LogPeriodNs(const Attachment& a, uint64_t policy, uint16_t rule) {
  const uint64_t period_ns = ViewOf(a, policy).rule(rule).numbers.limit.period_ns;
  const bool is_same = a.control->policy.load(std::memory_order_acquire) == policy;
  return is_same ? std::min(period_ns, shm::kMaxSpanNs) : shm::kMaxSpanNs;
}

// As RefundSlot has it. Where the rules have changed since, a spend that was told to wait is given
// back only where nothing came after it.
inline uint64_t AtOnceNsOf(const Attachment& a, uint64_t policy, const sluice_spend_t& spend) {
  if ((spend.flags & kToldToWait) == 0) return shm::kNever;
  const uint64_t at_once_ns =
      AtOnceNs(NumbersOf(ViewOf(a, policy), spend.rule, spend.given, spend.floor_q16));
  return IsInForce(a, policy) ? at_once_ns : 0;
}

// Gives back `tokens` of a spend under `policy`, which took `cost_ns` of its time. True where
// anything still stood.
inline bool GiveBack(const Attachment& a, uint64_t policy, const sluice_spend_t& spend,
                     uint64_t cost_ns, uint64_t tokens, uint64_t fresh_ns) {
  shm::Slot* const slot = SlotOf(a, spend);
  if (slot == nullptr) return false;
  const shm::Kind kind = KindOfFlags(spend.flags);
  const bool overflow = (spend.flags & kOverflowSlot) != 0;
  const auto few = static_cast<uint32_t>(std::min<uint64_t>(tokens, shm::kMaxLogEntries));
  const bool is_back =
      kind == shm::Kind::kInFlight
          ? LeavePlaces(a, spend.slot, overflow, spend.new_ns, spend.floor_q16, few)
      : kind == shm::Kind::kSlidingLog
          ? RefundLogged(a, *slot, 0, spend.slot, overflow, spend.gen, spend.new_ns, few,
                         LogPeriodNs(a, policy, spend.rule), fresh_ns)
          : RefundKind(kind, *slot, overflow ? nullptr : &a.second[spend.slot], 0, spend.gen,
                       spend.new_ns, cost_ns, tokens, ScaleIndexOfFlags(spend.flags), fresh_ns,
                       AtOnceNsOf(a, policy, spend));
  if (!is_back) return false;
  if (!overflow) {
    shm::TakeBackUse(*slot, a.dirty, spend.slot, spend.gen, tokens);
  }
  return true;
}

}  // namespace sluice::client
