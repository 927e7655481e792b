// GCRA, the generic cell rate algorithm (ITU-T I.371, virtual scheduling form), as pure arithmetic
// on one 64-bit word: the theoretical arrival time (TAT) in nanoseconds. No state, no clock.
//
// Two bounds, not one. Admission ends at now + tau; debt may stand up to now + tau + debt_max.
// With debt cut off at now + tau, what other hosts used is forgotten just when a key is at its
// limit, and two hosts admit nearly twice the limit.
//
// All times are CLOCK_MONOTONIC ns below 2^62; spans are below kMaxSpanNs, so no sum overflows.
#pragma once

#include <algorithm>
#include <cstdint>

#include "shm/kinds.h"
#include "shm/layout.h"

namespace sluice::shm {

inline constexpr uint64_t kNever = ~0ull;              // retry_after of a cost that can never fit
inline constexpr uint64_t kMinDebtNs = 1'000'000'000;  // debt_max = max(tau, 1 s)
inline constexpr uint64_t kMaxTokens = 1'000'000'000'000;  // of a limit, and of a burst
// Of larger limits a token may be less than a nanosecond, or hardly more: what is left is not told
// in single ones, which would be rounded up.
inline constexpr uint64_t kFineTokens = 1'000'000'000;
// The longest that a reservation is held. A slot that says so is not wild.
inline constexpr uint64_t kMaxHoldNs = 3'600'000'000'000;

// Longer than any tolerance, and short enough to be added to any time: a sum that overflowed would
// look like a time long past.
inline constexpr uint64_t kMaxCostNs = 1ull << 62;

// Round-up multiplication n * period / limit in 128 bits; kMaxCostNs where that is more.
inline uint64_t CostNs(uint64_t n, uint64_t period_ns, uint64_t limit) {
  const unsigned __int128 product = static_cast<unsigned __int128>(n) * period_ns;
  const unsigned __int128 cost = (product + limit - 1) / limit;
  return cost > kMaxCostNs ? kMaxCostNs : static_cast<uint64_t>(cost);
}

// A limit in the form that checks use. All fields in ns but `limit` and `burst` (tokens).
struct Limit {
  uint64_t limit = 0;        // tokens per period, 1..kMaxTokens
  uint64_t period_ns = 0;    // 1 ms..400 days
  uint64_t burst = 0;        // tokens, 1..kMaxTokens
  uint64_t interval_ns = 0;  // emission interval T, rounded up: the cost of one token
  uint64_t tau_ns = 0;       // burst tolerance, and with it max_delay for a leaky bucket
  uint64_t debt_max_ns = 0;  // how far beyond tau the TAT may stand
};

// tau = burst * T. Single tokens cost ceil(T) each, so tau is widened by the rounding of `burst`
// single costs, yet stays below the exact cost of burst + 1 tokens: a whole burst in one piece
// fits, and one token more never does, in one piece or in many.
//
// A leaky bucket that queues (I.371's leaky bucket with a place to wait) is the same TAT under a
// wider tolerance: what comes before its time by more than `burst` allows, but by no more than
// `max_delay_ns` beyond, is admitted and told to wait. See DelayNs.
inline Limit MakeLimit(uint64_t limit, uint64_t period_ns, uint64_t burst,
                       uint64_t max_delay_ns = 0) {
  Limit l{.limit = limit, .period_ns = period_ns, .burst = burst};
  l.interval_ns = CostNs(1, period_ns, limit);
  const uint64_t exact = CostNs(burst, period_ns, limit);
  const uint64_t below_next = CostNs(burst + 1, period_ns, limit) - 1;
  l.tau_ns = std::min(burst * l.interval_ns, std::max(exact, below_next)) + max_delay_ns;
  l.debt_max_ns = std::max(l.tau_ns, kMinDebtNs);
  return l;
}

// The limit of a caller who brings its own, `limit` tokens in the rule's period: the burst grows
// and shrinks with it, so that a bucket takes the same time to fill, but holds one request of
// `cost`.
inline Limit Given(const Limit& of, uint64_t limit, uint64_t cost) {
  const uint64_t per = std::max<uint64_t>(of.limit, 1);
  const auto burst =
      static_cast<uint64_t>((static_cast<unsigned __int128>(limit) * of.burst + per - 1) / per);
  const uint64_t least = std::clamp<uint64_t>(cost, 1, kMaxTokens);  // torn, it may be more
  return MakeLimit(std::max<uint64_t>(limit, 1), of.period_ns,
                   std::clamp(burst, least, kMaxTokens));
}

// What a class may use of so many tokens, whole ones, that leaves `floor_q16` of them with 16
// fraction bits.
inline uint64_t PartAbove(uint64_t tokens, uint16_t floor_q16) {
  return static_cast<uint64_t>(static_cast<unsigned __int128>(tokens) * (0x10000 - floor_q16) >>
                               16);
}

// The limit for requests of a class: the bucket is the same, but its lowest part, `floor_q16` of
// the whole with 16 fraction bits, is not for them. In terms of GCRA their tolerance ends earlier:
// a smaller tau, and nothing else. What healing takes for wild stays where it was, since other
// classes' words reach further. Of a kind that counts tokens, its burst is so many: no request of
// the class may find more used, its own cost included.
inline Limit Floored(const Limit& limit, uint16_t floor_q16, Kind kind = Kind::kTokenBucket) {
  Limit floored = limit;
  const auto kept_ns =
      static_cast<uint64_t>(static_cast<unsigned __int128>(limit.tau_ns) * floor_q16 >> 16);
  floored.tau_ns -= kept_ns;
  floored.debt_max_ns += kept_ns;
  if (IsCountedInWindows(kind)) floored.burst = PartAbove(limit.burst, floor_q16);
  return floored;
}

// What of a bucket's whole tolerance is not for the class of a floored limit.
inline uint64_t KeptNs(const Limit& floored, uint16_t floor_q16) {
  return static_cast<uint64_t>(static_cast<unsigned __int128>(floored.tau_ns) * floor_q16 /
                               (0x10000 - floor_q16));
}

struct Verdict {
  bool allowed;
  uint64_t base_ns;  // max(TAT, now)
  uint64_t new_ns;   // the TAT after this cost, stored when allowed
};

// The decision itself. `word_ns` is a live word; `cost_ns` <= kMaxCostNs.
inline Verdict Decide(uint64_t word_ns, uint64_t now_ns, uint64_t cost_ns, uint64_t tau_ns) {
  Verdict v;
  v.base_ns = std::max(word_ns, now_ns);
  v.new_ns = v.base_ns + cost_ns;
  v.allowed = v.new_ns - now_ns <= tau_ns;
  return v;
}

// Tokens left when the TAT stands at `tat_ns`; 0 in debt.
inline uint64_t Remaining(uint64_t tat_ns, uint64_t now_ns, uint64_t interval_ns, uint64_t tau_ns) {
  const uint64_t ahead = tat_ns > now_ns ? tat_ns - now_ns : 0;
  return ahead >= tau_ns ? 0 : (tau_ns - ahead) / interval_ns;
}

// How long until this very cost fits, if nothing else is admitted meanwhile.
inline uint64_t RetryAfterNs(const Verdict& v, uint64_t now_ns, uint64_t cost_ns, uint64_t tau_ns) {
  if (v.allowed) return 0;
  if (cost_ns > tau_ns) return kNever;
  return v.new_ns - tau_ns - now_ns;
}

// How long an admitted request waits for its turn, of a leaky bucket or of a caller that has the
// patience: what its TAT is ahead of what passes at once. Never more than max_delay_ns, also where
// a rule that fails open admits anyway.
inline uint64_t DelayNs(uint64_t new_ns, uint64_t now_ns, uint64_t tau_ns, uint64_t max_delay_ns) {
  const uint64_t ahead = new_ns > now_ns ? new_ns - now_ns : 0;
  const uint64_t at_once = tau_ns - std::min(tau_ns, max_delay_ns);
  return ahead > at_once ? std::min(ahead - at_once, max_delay_ns) : 0;
}

// How long until the bucket is full again.
inline uint64_t ResetAfterNs(uint64_t tat_ns, uint64_t now_ns) {
  return tat_ns > now_ns ? tat_ns - now_ns : 0;
}

// A word beyond now + tau + debt_max was written by nobody in order (or under an older, larger
// limit), and a deny writes nothing: it is healed to now + tau.
inline bool NeedsHeal(uint64_t word_ns, uint64_t now_ns, uint64_t tau_ns, uint64_t debt_max_ns) {
  return word_ns > now_ns + tau_ns + debt_max_ns;
}

// What a decision's cost may give back: nothing once its TAT has passed, and never more than is
// left of it. Giving back the whole cost late over-admits.
inline uint64_t RefundNs(uint64_t decision_new_ns, uint64_t decision_cost_ns,
                         uint64_t fresh_now_ns) {
  if (decision_new_ns <= fresh_now_ns) return 0;
  return std::min(decision_cost_ns, decision_new_ns - fresh_now_ns);
}

// A host's private cost: cost / share, as fixed point `inv_share` with 16 fraction bits, 0 = none.
// A cost that fits the whole bucket still fits a share of it: a share never rejects everything.
inline uint64_t SharedCostNs(uint64_t cost_ns, uint32_t inv_share, uint64_t tau_ns) {
  if (inv_share <= aux::kShareOne || cost_ns > tau_ns) return cost_ns;
  const unsigned __int128 scaled = (static_cast<unsigned __int128>(cost_ns) * inv_share) >> 16;
  return scaled > tau_ns ? tau_ns : static_cast<uint64_t>(scaled);
}

// Tokens left in a bucket of `limit`, each as dear as `dearer_q16` says (16 fraction bits; 0: one).
inline uint64_t Remaining(const Limit& limit, uint64_t tat_ns, uint64_t now_ns,
                          uint32_t dearer_q16) {
  constexpr uint64_t kMostFine = 1ull << 46;  // torn, it may be more
  if (limit.limit <= kFineTokens || limit.period_ns == 0) {
    const uint64_t one_ns = SharedCostNs(limit.interval_ns, dearer_q16, limit.tau_ns);
    return Remaining(tat_ns, now_ns, std::max<uint64_t>(one_ns, 1), limit.tau_ns);
  }
  const uint64_t ahead_ns = tat_ns > now_ns ? tat_ns - now_ns : 0;
  const uint64_t room_ns = limit.tau_ns - std::min(limit.tau_ns, ahead_ns);
  const unsigned __int128 tokens =
      static_cast<unsigned __int128>(room_ns) * limit.limit / limit.period_ns;
  auto whole = static_cast<uint64_t>(std::min<unsigned __int128>(tokens, kMostFine));
  // What only the rounding of tau to a nanosecond has room for.
  if (whole > limit.burst && whole - limit.burst <= limit.limit / limit.period_ns) {
    whole = limit.burst;
  }
  return dearer_q16 <= aux::kShareOne ? whole : (whole << 16) / dearer_q16;
}

}  // namespace sluice::shm
