// Words of tokens on loan (Kind::kLease): pure arithmetic.
//
//   word    0 | expiry:40 (2^23 ns) | turn:3 | credits:20
//   second  gen:16 | time:48 (us)
//
// Whoever has the word spends its credits by CAS while the precise clock stands before the expiry;
// the daemon alone puts credits in and takes them out again. `turn` changes with each report to
// Redis: what was spent before it is reported as spent, so it cannot be given back after it. Seven
// reports take longer than a step of the expiry, so no word of a lease is ever there twice. A word
// of turn 0 is *unsettled*: the daemon has not seen it, and its count is of what was spent.
//
// Under a rule that is not strict, whose hosts may overdraw, the daemon sees to it that a lease
// ends, and reports what is spent late: nothing here asks for the expiry, so the coarse clock
// serves. Of an unsettled word a host may spend its part of the burst.
//
// The second word is the time before which nothing comes: where the lease is short, when the daemon
// expects more; in an emergency the theoretical arrival time by which the host goes on alone. Of
// another gen it is another tenant's, and says nothing.
#pragma once

#include <algorithm>
#include <cstdint>

#include "shm/gcra.h"

namespace sluice::shm::credits {

inline constexpr int kExpiryShift = 23;
inline constexpr uint64_t kStepNs = 1ull << kExpiryShift;  // 8.4 ms
inline constexpr uint64_t kMax = (1ull << 20) - 1;         // in one word
inline constexpr uint64_t kTurns = 7;                      // from 1 on
// The fewest ns between two reports of one bucket.
inline constexpr uint64_t kReportGapNs = 2'000'000;
static_assert((kTurns - 1) * kReportGapNs > kStepNs);

// `expiry_ns` is rounded down: never later than the lease's own. `turn`: 0 to kTurns.
inline constexpr uint64_t Make(uint64_t expiry_ns, uint64_t turn, uint64_t credits) {
  return (expiry_ns >> kExpiryShift << kExpiryShift) | (turn << 20) | std::min(credits, kMax);
}
inline constexpr uint64_t ExpiryNs(uint64_t w) { return w >> kExpiryShift << kExpiryShift; }
inline constexpr uint64_t Turn(uint64_t w) { return w >> 20 & 7; }
inline constexpr uint64_t NextTurn(uint64_t w) { return Turn(w) % kTurns + 1; }
inline constexpr bool IsUnsettled(uint64_t w) { return Turn(w) == 0; }
inline constexpr uint64_t Count(uint64_t w) { return w & kMax; }
inline constexpr uint64_t WithCount(uint64_t w, uint64_t credits) { return (w & ~kMax) | credits; }
// Of one lease, with the same reports behind it.
inline constexpr bool IsSameTurn(uint64_t a, uint64_t b) { return (a ^ b) <= kMax; }

// What may be spent of it now, by the precise clock.
inline constexpr uint64_t Spendable(uint64_t w, uint64_t now_ns) {
  return now_ns < ExpiryNs(w) ? Count(w) : 0;
}

// The same under a rule that is not strict. `trusted`: tokens that a host may spend unsettled.
inline constexpr uint64_t SpendableLoose(uint64_t w, uint64_t trusted) {
  if (!IsUnsettled(w)) return Count(w);
  return trusted - std::min(trusted, Count(w));
}

// How full a bucket was as Redis told last, level and what is lent together, in the low bits of its
// 1/share: 1 to kMask, 62 parts of the burst; 0: nobody knows. Rounded up, so that of a burst of up
// to 62 tokens it is exact.
namespace fill {
inline constexpr uint32_t kMask = 63;
inline constexpr uint64_t kParts = kMask - 1;
inline constexpr uint32_t Make(uint64_t tokens, uint64_t burst) {
  const uint64_t of = std::max<uint64_t>(burst, 1);
  return static_cast<uint32_t>(1 + (std::min(tokens, of) * kParts + of - 1) / of);
}
inline constexpr uint64_t Tokens(uint32_t fill, uint64_t burst) {
  return (fill - 1) * burst / kParts;
}
}  // namespace fill

// The tokens that requests of a class may take of what is lent, where they leave `floor_q16` of the
// burst in the bucket, over all hosts.
inline uint64_t RoomOf(uint64_t aux, uint64_t burst, uint16_t floor_q16) {
  const uint32_t told = aux::InvShare(aux) & fill::kMask;
  if (floor_q16 == 0 || told == 0) return kMax;
  const uint64_t tokens = fill::Tokens(told, burst);
  return tokens - std::min(tokens, burst - PartAbove(burst, floor_q16));
}

// The word after a spend that it allows.
inline constexpr uint64_t Spent(uint64_t w, uint64_t tokens) {
  return IsUnsettled(w) ? w + tokens : w - tokens;
}

// A host's part of a burst, where `hosts` were seen; 0: nobody knows how many there are.
inline constexpr uint64_t TrustedOf(uint64_t burst, uint64_t hosts) {
  return std::max<uint64_t>(1, std::min(burst, kMax) / (hosts == 0 ? 100 : hosts));
}

// The word after `tokens` are given back that were spent of it, leaving `spent_word`; `w` itself
// where the lease has ended, or they were reported.
inline constexpr uint64_t Refunded(uint64_t w, uint64_t spent_word, uint64_t tokens,
                                   uint64_t now_ns) {
  if (IsUnsettled(w)) return IsSameTurn(w, spent_word) && tokens <= Count(w) ? w - tokens : w;
  if (!IsSameTurn(w, spent_word) || now_ns >= ExpiryNs(w) || tokens > kMax - Count(w)) return w;
  return w + tokens;
}

namespace second {
inline constexpr uint64_t kTimeMask = (1ull << 48) - 1;
inline constexpr uint64_t Make(uint16_t gen, uint64_t time_ns) {
  return (uint64_t{gen} << 48) | (time_ns / 1000 & kTimeMask);
}
// 0 where it is another tenant's.
inline constexpr uint64_t TimeNs(uint64_t second, uint16_t gen) {
  return second >> 48 == gen ? (second & kTimeMask) * 1000 : 0;
}
}  // namespace second

// How long a check that was denied should wait at least: the daemon, told of the denial, has asked
// by then.
inline constexpr uint64_t kRetryNs = 10'000'000;

// `tokens` did not fit in word `w`. kNever where they are more than the bucket holds, or than the
// class of the request may use.
inline uint64_t RetryAfterNs(uint64_t not_before_ns, uint64_t now_ns, uint64_t tokens,
                             const Limit& limit, uint16_t floor_q16 = 0) {
  if (tokens > PartAbove(limit.burst, floor_q16)) return kNever;
  const uint64_t told_ns = not_before_ns > now_ns ? not_before_ns - now_ns : 0;
  return std::clamp(told_ns, kRetryNs, std::max(limit.tau_ns, kRetryNs));
}

// Until the bucket is full again, where nobody else holds any of it: never sooner.
inline constexpr uint64_t ResetAfterNs(uint64_t spendable, const Limit& limit) {
  return (limit.burst - std::min(spendable, limit.burst)) * limit.interval_ns;
}

}  // namespace sluice::shm::credits
