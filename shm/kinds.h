// What a word of another kind than the token bucket's says: pure arithmetic, one switch. No state,
// no clock.
//
// Such a word is `0 | time:40 | payload:23`. As a number it is about its time in ns, so that
// "expired?" is asked of all kinds in one way (word + grace <= now), and so that fresh words can
// stand above all earlier ones (slot_table.h, I1).
#pragma once

#include <algorithm>
#include <cstdint>

#include "shm/layout.h"

namespace sluice::shm {

namespace payload {
inline constexpr int kBits = 23;
inline constexpr uint64_t kMask = (1ull << kBits) - 1;
inline constexpr uint64_t kStepNs = 1ull << kBits;  // of the time: 8.4 ms
inline constexpr uint64_t Make(uint64_t time_ns, uint64_t value) {
  return (time_ns & ~kMask) | std::min(value, kMask);
}
inline constexpr uint64_t TimeNs(uint64_t w) { return w & ~kMask; }
inline constexpr uint64_t Value(uint64_t w) { return w & kMask; }
// To the next step, which is never earlier.
inline constexpr uint64_t Ceil(uint64_t time_ns) { return (time_ns + kMask) & ~kMask; }
}  // namespace payload

// Windows have two words, an arithmetic and a way to check of their own: window.h, window_slot.h.
inline constexpr bool IsWindow(Kind kind) {
  return kind == Kind::kFixedWindow || kind == Kind::kSlidingWindow;
}

// Kinds whose use Redis counts in windows: logs as sliding ones.
inline constexpr bool IsCountedInWindows(Kind kind) {
  return IsWindow(kind) || kind == Kind::kSlidingLog;
}

// Kinds with a row of entries beside the slot: their keys stand in the first slots of the table.
inline constexpr bool HasRow(Kind kind) {
  return kind == Kind::kSlidingLog || kind == Kind::kInFlight;
}

// The word of a tenancy that begins at `time_ns`: nothing used, and expired already.
inline constexpr uint64_t FreshWord(Kind kind, uint64_t time_ns) {
  return kind == Kind::kTokenBucket ? time_ns : payload::Make(time_ns, 0);
}

// The next word that is above `w` whatever the payload: spending a credit lowers a word.
inline constexpr uint64_t AboveNs(uint64_t w) { return (w | payload::kMask) + 1; }

inline constexpr uint64_t FingerprintOf(uint64_t hash) {
  const uint64_t fp = hash >> 19;
  return fp ? fp : 1;
}

// The hash under which a bucket of this kind stands in the table, from its name's. Token buckets
// alone stand under the name's own: the short ways of the client, which know no other kind, do not
// find the others and take the long way. And a rule that changes its kind begins with new buckets.
inline constexpr uint64_t HashOfKind(uint64_t name_hash, Kind kind) {
  return name_hash ^ (uint64_t{static_cast<uint8_t>(kind)} * 0x9e3779b97f4a7c15);
}

}  // namespace sluice::shm
