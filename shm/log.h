// Sliding logs as arithmetic: a bucket remembers when each of its tokens was taken, so that it is
// exact: of a limit's tokens none is taken twice within a period. No state, no clock.
//
//   word    0 | until:40 (steps of 2^23 ns) | hint:23
//             until: a token that was taken may count until then; the slot keeps its tenant so long
//             hint:  the entry at which to begin to look
//   entry   gen:16 | back:1 | time:47 (us)
//             of an earlier gen, or 0: nobody took it in this tenancy
//             back 0: taken then; free again a period later
//             back 1: taken then and given back: free for whoever comes at that time or later
//
// A limit of L has the first L entries of its slot's row. Who takes a token puts his time into an
// entry that is free by that time. So what follows each other in one entry is a period apart, and
// no more than L tokens have times within any period, whoever else does what, and whoever is killed
// when. A limit that is changed keeps its entries: windows that span the change hold at most the
// larger of both.
//
// Where hosts share a limit, a second word beside the slot says what the others took, as Redis
// tells the daemon: a sliding window's two counts, which weigh as there (window.h).
//
//   second  gen:16 | end:24 | current:12 | closed:12
//             end:     of the open window, in units that grow with the period, modulo 2^24
//             current: tokens that the others took in it; closed: in the one before
//
// Times are rounded to the strict side: a token comes back up to 2 us late. They are compared
// modulo 2^47 us, 4.4 years; an entry ahead of the time by more than kAheadUs was written by nobody
// in order, and is emptied.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

#include "shm/gcra.h"
#include "shm/kinds.h"
#include "shm/layout.h"
#include "shm/window.h"

namespace sluice::shm::logs {

inline constexpr uint64_t kGivenBack = 1ull << 47;
inline constexpr uint64_t kTimeMask = kGivenBack - 1;
// Clocks of one machine agree, and who takes a token has read the time before; so a time that lies
// further ahead than this of one that was read after it is nobody's.
inline constexpr int64_t kAheadUs = 1'000'000;

inline constexpr uint64_t Make(uint16_t gen, uint64_t time_us) {
  return uint64_t{gen} << 48 | (time_us & kTimeMask);
}
inline constexpr uint16_t Gen(uint64_t e) { return static_cast<uint16_t>(e >> 48); }
inline constexpr bool IsGivenBack(uint64_t e) { return (e & kGivenBack) != 0; }

// How long before `now_us` an entry's time was; less than 0: after it.
inline constexpr int64_t AgeUs(uint64_t e, uint64_t now_us) {
  return static_cast<int64_t>(((now_us - e) & kTimeMask) << 17) >> 17;
}

// A rule as its arithmetic needs it.
struct Terms {
  uint32_t limit;     // tokens, 1..kMaxLogEntries
  int64_t period_us;  // rounded up
};
inline constexpr Terms TermsOf(const Limit& l) {
  return {.limit = static_cast<uint32_t>(std::min<uint64_t>(l.limit, kMaxLogEntries)),
          .period_us = static_cast<int64_t>((l.period_ns + 999) / 1000)};
}

// As MakeLimit, for a log: its word stands a period ahead of the time, rounded to a step.
inline Limit MakeLimit(uint64_t limit, uint64_t period_ns) {
  Limit l = shm::MakeLimit(limit, period_ns, limit);
  l.debt_max_ns = period_ns + 4 * payload::kStepNs;
  return l;
}

// A time in ns as who takes a token writes it, and as who looks for a free one compares it.
inline constexpr uint64_t StampUs(uint64_t now_ns) { return (now_ns + 999) / 1000; }
inline constexpr uint64_t LookUs(uint64_t now_ns) { return now_ns / 1000; }

inline constexpr bool IsOurs(uint64_t e, uint16_t gen) { return e != 0 && Gen(e) == gen; }

// True where the entry may be taken at `now_ns` by the tenancy `gen`. One of a later gen may not by
// who has stood still since his slot passed on: its time is after his. Where gens have wrapped
// since, it is one of an earlier tenancy, over by its time.
inline constexpr bool IsFree(const Terms& t, uint64_t e, uint16_t gen, uint64_t now_ns) {
  if (e == 0 || static_cast<int16_t>(Gen(e) - gen) < 0) return true;
  return IsGivenBack(e) ? AgeUs(e, StampUs(now_ns)) >= 0 : AgeUs(e, LookUs(now_ns)) >= t.period_us;
}

// The entry's time is further ahead than anybody's can be, where the time was read after it.
inline constexpr bool IsAhead(uint64_t e, uint64_t now_ns) {
  return e != 0 && AgeUs(e, LookUs(now_ns)) < -kAheadUs;
}

// How long until an entry of this age is free.
inline constexpr uint64_t FreeAfterNs(const Terms& t, int64_t age_us, uint64_t now_ns) {
  return static_cast<uint64_t>(t.period_us - age_us) * 1000 - now_ns % 1000;
}

// Of `limit` tokens those that a host may use that has a share, and in an emergency a part of that.
inline constexpr uint32_t QuotaOf(uint32_t limit, uint32_t dearer_q16) {
  return dearer_q16 <= aux::kShareOne ? limit
                                      : static_cast<uint32_t>((uint64_t{limit} << 16) / dearer_q16);
}

namespace others {
inline constexpr int kEndBits = 24;
inline constexpr uint64_t kMostTokens = (1ull << 12) - 1;

// A unit of the end: 1 ms, and of longer windows a 2,048th or less. Ends come again after 4,096
// windows or more.
inline constexpr int UnitShift(uint64_t length_ns) {
  return std::max(20, static_cast<int>(std::bit_width(length_ns)) - 12);
}

inline constexpr uint64_t Make(uint16_t gen, uint64_t end_ns, uint64_t length_ns, uint64_t current,
                               uint64_t closed) {
  const uint64_t end = (end_ns >> UnitShift(length_ns)) + 1;
  return uint64_t{gen} << 48 | (end & ((1ull << kEndBits) - 1)) << 24 |
         std::min(current, kMostTokens) << 12 | std::min(closed, kMostTokens);
}

struct Weight {
  uint32_t tokens;   // rounded up
  uint64_t gone_ns;  // how long until nothing of it weighs
  bool is_known;     // false: of another tenancy, or over long since
};
inline constexpr Weight Weigh(uint64_t s, uint16_t gen, uint64_t period_ns, uint64_t now_ns) {
  const uint64_t length_ns = window::LengthNs(period_ns);
  const int shift = UnitShift(length_ns);
  if (s == 0 || static_cast<uint16_t>(s >> 48) != gen) return {0, 0, false};
  const uint64_t ahead = ((s >> 24) - (now_ns >> shift)) << (64 - kEndBits);
  const int64_t left_ns = ((static_cast<int64_t>(ahead) >> (64 - kEndBits)) << shift) -
                          static_cast<int64_t>(now_ns & ((1ull << shift) - 1));
  const auto length = static_cast<int64_t>(length_ns);
  if (left_ns > length + 2 * (int64_t{1} << shift) || left_ns <= -length) return {0, 0, false};
  const uint64_t current = s >> 12 & kMostTokens;
  const bool is_open = left_ns > 0;
  const uint64_t weighs = is_open ? s & kMostTokens : current;
  const auto part_ns =
      static_cast<uint64_t>(std::min(is_open ? left_ns : left_ns + length, length));
  const uint64_t weight = static_cast<uint64_t>(
      (static_cast<unsigned __int128>(weighs) * part_ns + length_ns - 1) / length_ns);
  return {static_cast<uint32_t>((is_open ? current : 0) + weight),
          static_cast<uint64_t>(left_ns + length), true};
}
}  // namespace others

// The word of a tenancy whose tokens count until `until_ns` at most.
inline constexpr uint64_t WordOf(uint64_t until_ns, uint32_t hint) {
  return payload::Make(payload::Ceil(until_ns), hint);
}
inline constexpr uint32_t HintOf(uint64_t w, const Terms& t) {
  return static_cast<uint32_t>(payload::Value(w)) % t.limit;
}

}  // namespace sluice::shm::logs
