// What a word of another kind than the token bucket's says: pure arithmetic, one switch. No state,
// no clock.
//
// Such a word is `0 | time:40 | payload:23`. As a number it is about its time in ns, so that
// "expired?" is asked of all kinds in one way (word + grace <= now), and so that fresh words can
// stand above all earlier ones (slot_table.h, I1).
#pragma once

#include <algorithm>
#include <cstdint>

#include "shm/credits.h"
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

// A fixed window begins with the first check that it counts, and ends a period later. The word:
// its end, and the tokens counted in it.
inline Measured MeasureFixedWindow(uint64_t w, uint64_t now_ns, uint64_t tokens,
                                   const Limit& limit) {
  const bool is_over = payload::TimeNs(w) <= now_ns;
  const uint64_t end_ns = is_over ? payload::Ceil(now_ns + limit.period_ns) : payload::TimeNs(w);
  const uint64_t counted = is_over ? 0 : payload::Value(w);
  Measured m;
  m.is_wild = end_ns > payload::Ceil(now_ns + limit.period_ns);
  if (m.is_wild) {
    m.allowed = false;
    m.new_word = payload::Make(payload::Ceil(now_ns + limit.period_ns), limit.limit);
    return m;
  }
  m.allowed = tokens <= limit.limit && counted + tokens <= limit.limit;
  const uint64_t after = counted + (m.allowed ? tokens : 0);
  m.new_word = payload::Make(end_ns, counted + tokens);
  m.remaining = limit.limit - std::min(limit.limit, after);
  m.retry_after_ns = m.allowed ? 0 : tokens > limit.limit ? kNever : end_ns - now_ns;
  m.reset_after_ns = after == 0 ? 0 : end_ns - now_ns;
  return m;
}

// Tokens on loan: spent while the lease lasts, whole or not at all. `not_before_ns`: see credits.h.
inline Measured MeasureLease(uint64_t w, uint64_t not_before_ns, uint64_t now_ns, uint64_t tokens,
                             const Limit& limit) {
  const uint64_t spendable = credits::Spendable(w, now_ns);
  Measured m;
  m.allowed = tokens <= spendable;
  m.is_wild = false;
  m.new_word = m.allowed ? w - tokens : w;
  m.remaining = spendable - (m.allowed ? tokens : 0);
  m.retry_after_ns = m.allowed ? 0 : credits::RetryAfterNs(not_before_ns, now_ns, tokens, limit);
  m.reset_after_ns = credits::ResetAfterNs(m.remaining, limit);
  return m;
}

// `word` is live, `second` what stands beside it; of a lease the time in it. `dearer_q16`: what a
// token costs this host, 16 fraction bits; 0: one.
inline Measured Measure(Kind kind, uint64_t word, uint64_t second, uint64_t now_ns, uint64_t tokens,
                        uint32_t dearer_q16, const Limit& limit) {
  const uint64_t cost =
      dearer_q16 == 0 ? tokens : (tokens * dearer_q16 + aux::kShareOne - 1) / aux::kShareOne;
  switch (kind) {
    case Kind::kFixedWindow:
      return MeasureFixedWindow(word, now_ns, cost, limit);
    case Kind::kLease:  // whose share was lent, as tokens of its own
      return MeasureLease(word, second, now_ns, tokens, limit);
    case Kind::kTokenBucket:
    case Kind::kSlidingWindow:
    case Kind::kSlidingLog:
      break;
  }
  return {};
}

// The word after a refund of `tokens` that a check spent when it left `spent_word`; `w` itself
// where nothing is given back: what the spend belonged to has ended.
inline constexpr uint64_t Refunded(Kind kind, uint64_t w, uint64_t spent_word, uint64_t tokens,
                                   uint64_t now_ns) {
  if (kind == Kind::kLease) return credits::Refunded(w, spent_word, tokens, now_ns);
  if (kind != Kind::kFixedWindow) return w;
  if (payload::TimeNs(w) != payload::TimeNs(spent_word) || payload::TimeNs(w) <= now_ns) return w;
  return w - std::min(tokens, payload::Value(w));
}

}  // namespace sluice::shm
