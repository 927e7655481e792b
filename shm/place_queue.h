// Who waits for a place (places.h), and since when, as a hint: in the half of a slot's aux that is
// a share where the key is no place's (layout.h).
//
//   until:12 | since:20, in steps of 2^23 ns; both wrap
//          who has waited for longest writes it with every look, and it ends by itself soon, so
//          that nobody stands behind who was killed
//
// Who waits and came after `since` stands back, so that those who have just left a place and come
// back at once do not overtake for ever. Nothing else is decided by it: a hint that is lost or
// wrong costs an order, or an eighth of a second.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "shm/layout.h"

namespace sluice::shm::places {

// So long the hint of one who waits stands: longer than between two of his looks.
inline constexpr uint64_t kWaitsNs = 125'000'000;
// So long after one was let in those who came after that stand back: others may be older, and look.
inline constexpr uint64_t kPassesNs = 60'000'000;

namespace queue {
inline constexpr int kStepBits = 23;
inline constexpr uint64_t kSinceMask = (1u << 20) - 1;
inline constexpr uint64_t kUntilMask = (1u << 12) - 1;
// Above that it wraps: who has waited for longer counts as that old.
inline constexpr uint64_t kOldestNs = 3600ull * 1'000'000'000;

inline constexpr uint64_t SinceOf(uint64_t since_ns, uint64_t now_ns) {
  return std::max(since_ns, now_ns - std::min(now_ns, kOldestNs)) >> kStepBits & kSinceMask;
}
// `a` with the hint.
inline constexpr uint64_t With(uint64_t a, uint64_t since, uint64_t until_ns) {
  const uint64_t until = until_ns >> kStepBits & kUntilMask;
  return aux::WithInvShare(a, static_cast<uint32_t>(until << 20 | since));
}
inline constexpr bool IsThere(uint64_t a, uint64_t now_ns) {
  const uint64_t until = aux::InvShare(a) >> 20;
  const uint64_t left = (until - (now_ns >> kStepBits)) & kUntilMask;
  return left != 0 && left <= (kWaitsNs >> kStepBits) + 1;
}
// Whether the hint is of somebody who came before `since`.
inline constexpr bool IsOlder(uint64_t a, uint64_t since) {
  const uint64_t later = (since - aux::InvShare(a)) & kSinceMask;
  return later != 0 && later <= kSinceMask / 2;
}
}  // namespace queue

// Whether somebody waits, by the slot's aux `a`, who came before `since_ns`.
inline constexpr bool IsBehind(uint64_t a, uint64_t since_ns, uint64_t now_ns) {
  return queue::IsThere(a, now_ns) && queue::IsOlder(a, queue::SinceOf(since_ns, now_ns));
}

// Where the slot is of the key word `k`, of a rule `rule` of places: writes that who came at
// `since_ns` waits, unless one who came before does. True where he is the first. A hint, which
// orders nothing; nor does the look at the key.
template <class Cell>
inline bool ShowWaiting(BasicSlot<Cell>& slot, uint64_t k, uint16_t rule, uint64_t since_ns,
                        uint64_t now_ns) {
  uint64_t a = slot.aux.load(std::memory_order_relaxed);
  // Of this rule, so that it is no share of whom the slot has passed to.
  if (aux::Rule(a) != rule || slot.key.load(std::memory_order_relaxed) != k) return false;
  if (IsBehind(a, since_ns, now_ns)) return false;
  const uint64_t next = queue::With(a, queue::SinceOf(since_ns, now_ns), now_ns + kWaitsNs);
  return next == a || slot.aux.compare_exchange_strong(a, next, std::memory_order_relaxed);
}

// The same of one who waited and is in now: who comes from now on lets those pass who wait already.
// It orders nothing either.
template <class Cell>
inline void ShowEntered(BasicSlot<Cell>& slot, uint64_t k, uint16_t rule, uint64_t now_ns) {
  uint64_t a = slot.aux.load(std::memory_order_relaxed);
  if (aux::Rule(a) != rule || slot.key.load(std::memory_order_relaxed) != k) return;
  const uint64_t next = queue::With(a, queue::SinceOf(now_ns, now_ns), now_ns + kPassesNs);
  slot.aux.compare_exchange_strong(a, next, std::memory_order_relaxed);
}

}  // namespace sluice::shm::places
