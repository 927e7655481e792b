// What a word of another kind than the token bucket's says: pure arithmetic, one switch. No state,
// no clock.
//
// Such a word is `0 | time:40 | payload:23`. As a number it is about its time in ns, so that
// "expired?" is asked of all kinds in one way (word + grace <= now), and so that fresh words can
// stand above all earlier ones (slot_table.h, I1).
#pragma once

#include <algorithm>
#include <cstdint>

#include "shm/gcra.h"
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

// The word of a tenancy that begins at `time_ns`: nothing used, and expired already.
inline constexpr uint64_t FreshWord(Kind kind, uint64_t time_ns) {
  return kind == Kind::kTokenBucket ? time_ns : payload::Make(time_ns, 0);
}

// The next word that is above `w` whatever the payload: spending a credit lowers a word.
inline constexpr uint64_t AboveNs(uint64_t w) { return (w | payload::kMask) + 1; }

// The hash under which a bucket of this kind stands in the table, from its name's. Token buckets
// alone stand under the name's own: the short ways of the client, which know no other kind, do not
// find the others and take the long way. And a rule that changes its kind begins with new buckets.
inline constexpr uint64_t HashOfKind(uint64_t name_hash, Kind kind) {
  return name_hash ^ (uint64_t{static_cast<uint8_t>(kind)} * 0x9e3779b97f4a7c15);
}

// What a check of `tokens` meets, and what it leaves behind.
struct Measured {
  bool allowed;
  bool is_wild;             // written by nobody in order: `new_word` is what it is to be healed to
  uint64_t new_word;        // stored when allowed
  uint64_t remaining;       // tokens; after this check, where it is allowed
  uint64_t retry_after_ns;  // 0 where allowed; kNever where the cost can never fit
  uint64_t reset_after_ns;
};

// `word` is live, `second` what stands beside it. `dearer_q16`: what a token costs this host, 16
// fraction bits; 0: one.
inline Measured Measure(Kind kind, [[maybe_unused]] uint64_t word, [[maybe_unused]] uint64_t second,
                        [[maybe_unused]] uint64_t now_ns, [[maybe_unused]] uint64_t tokens,
                        [[maybe_unused]] uint32_t dearer_q16, [[maybe_unused]] const Limit& limit) {
  switch (kind) {
    case Kind::kTokenBucket:
    case Kind::kFixedWindow:  // these two: window.h
    case Kind::kSlidingWindow:
    case Kind::kLease:
    case Kind::kSlidingLog:
      break;
  }
  return {};
}

// The word after a refund of `tokens` that a check spent when it left `spent_word`; `w` itself
// where nothing is given back: what the spend belonged to has ended.
inline constexpr uint64_t Refunded([[maybe_unused]] Kind kind, uint64_t w,
                                   [[maybe_unused]] uint64_t spent_word,
                                   [[maybe_unused]] uint64_t tokens,
                                   [[maybe_unused]] uint64_t now_ns) {
  return w;
}

}  // namespace sluice::shm
