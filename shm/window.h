// Windows, fixed and sliding, as pure arithmetic on two 64-bit words. No state, no clock.
//
//   word    0 | time:40 (steps of 2^23 ns) | count:23
//             fixed window:   time is the window's end
//             sliding window: time is a length after the window's end, until when its count weighs
//   second  gen:16 | start:16 | closed:23 | purse:9
//           of a fixed window: gen:16 | end:16 | purse:32
//             start:  low bits of the step at which the open window began
//             end:    likewise, at which it ends
//             closed: what the window before it counted
//             purse:  what was paid in whole units and not yet used, in parts of a unit: 256ths, of
//                     a fixed window 2^24ths, so that it counts every limit to the token
//
// A count is in units, see Scale: private ones, that is a host with a share of 1/3 counts three for
// one, as a bucket's cost in time is dearer there. All rounding is to the strict side: a window's
// end up to a step (8.4 ms) late, a cost up to a part of a unit high.
//
// The second word is read and believed only under the gen of its tenancy. Who begins a window
// writes it first and the word after, so that a kill in between leaves a second word that says what
// the word still does, and the next to come goes on from there. See window_slot.h.
//
// All times are CLOCK_MONOTONIC ns below 2^62; lengths are at most kMaxSpanNs.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

#include "shm/gcra.h"
#include "shm/kinds.h"
#include "shm/layout.h"

namespace sluice::shm::window {

inline constexpr int kCountBits = 23;
inline constexpr uint64_t kMaxCount = (1ull << kCountBits) - 1;
inline constexpr uint64_t kStepNs = 1ull << kCountBits;  // 8.4 ms
inline constexpr uint64_t kMinPeriodNs = 1'000'000'000;  // a step is then less than 1 % of it
inline constexpr int kSlidingBits = 8;                   // a unit in 256ths
inline constexpr int kFixedBits = 24;

inline constexpr uint64_t Make(uint64_t time_ns, uint64_t count) {
  return (time_ns & ~kMaxCount) | std::min(count, kMaxCount);
}
inline constexpr uint64_t TimeNs(uint64_t w) { return w & ~kMaxCount; }
inline constexpr uint64_t Count(uint64_t w) { return w & kMaxCount; }
// The word of a tenancy that begins then: no window is open.
inline constexpr uint64_t FreshWord(uint64_t time_ns) { return time_ns & ~kMaxCount; }
inline constexpr uint64_t Ceil(uint64_t time_ns) { return (time_ns + kMaxCount) & ~kMaxCount; }

// How many units a token is, as a power of two: so that every limit up to 10^12 is at most 2^22
// units, and twice a limit still fits. Five scales, not one for each limit, so that most changes of
// a limit leave the count's meaning as it was; the scale is part of a bucket's hash, so that the
// others begin anew (daemon/config/compile.cc).
inline constexpr int kScales[] = {8, 0, -8, -16, -18};
inline constexpr int ScaleIndexOf(uint64_t limit) {
  if (limit < (1ull << 22)) return limit < (1ull << 14) ? 0 : 1;
  if (limit < (1ull << 30)) return 2;
  return limit < (1ull << 38) ? 3 : 4;
}
inline constexpr int ScaleOf(uint64_t limit) { return kScales[ScaleIndexOf(limit)]; }
static_assert(kMaxTokens < (1ull << 40));

// What `tokens` are in whole units of a scale.
inline constexpr uint64_t UnitsOfTokens(uint64_t tokens, int scale) {
  return scale >= 0 ? tokens << scale : tokens >> -scale;
}

// A token is 2^-10 parts at least.
inline constexpr int kSmallestBits = 10;

// `tokens` as parts of 1 / 2^`shift`, or of 2^-`shift` tokens; rounded up.
inline constexpr uint64_t Shifted(uint64_t tokens, int shift) {
  return shift >= 0 ? tokens << shift : (tokens + (1ull << -shift) - 1) >> -shift;
}

// The tokens that so many units are, rounded up.
inline constexpr uint64_t TokensOf(uint64_t units, int scale) {
  return scale >= 0 ? (units + (1ull << scale) - 1) >> scale : units << -scale;
}

// A window that follows a calendar ends where the daemon has published it. The word's time tells
// which window it counts in, to the nearest: when the wall clock is set, ends move, and words do
// not. Boundaries are at least 23 hours apart.
inline constexpr uint64_t kCalendarSlackNs = 11ull * 3600 * 1'000'000'000;

inline constexpr bool IsNear(uint64_t a, uint64_t b, uint64_t by_ns) {
  return (a > b ? a - b : b - a) <= by_ns;
}

// A window's rule as its arithmetic needs it.
struct Terms {
  uint64_t period_ns;                           // as configured
  uint64_t length_ns;                           // of a sliding window: whole steps
  uint64_t limit_fine;                          // in parts of a unit
  uint64_t limit;                               // tokens
  uint64_t most_fine;                           // what a request may find used with its own cost:
  uint64_t most;                                // all, or a class's part of it, parts and tokens
  int token_shift;                              // a token is 2^token_shift parts
  int part_bits;                                // a unit is 2^part_bits parts
  const std::atomic<uint64_t>* ends = nullptr;  // kCalendarEnds of the calendar; null: it has none

  // Whether a token may be less than a unit, or a share of one more than a little of one.
  constexpr bool has_purse() const { return token_shift - part_bits < 8; }
  constexpr uint64_t capacity() const { return units(limit_fine); }
  // Debt may stand up to there; see gcra.h for why not only to the limit.
  constexpr uint64_t ceiling() const { return std::min(2 * capacity(), kMaxCount); }
  constexpr uint64_t ceiling_fine() const { return ceiling() << part_bits; }
  // The whole units that so many parts take.
  constexpr uint64_t units(uint64_t fine) const {
    return (fine + (1ull << part_bits) - 1) >> part_bits;
  }
};

// The length of a sliding window: its windows follow each other on steps. Never a multiple of 2^16
// steps, by which the start of the open window and its end would look alike in the second word.
inline constexpr uint64_t LengthNs(uint64_t period_ns) {
  const uint64_t length_ns = Ceil(period_ns);
  return (length_ns >> kCountBits & 0xffff) == 0 ? length_ns + kStepNs : length_ns;
}

// A sliding window's limit is in whole units, as the closed window's weight is: the last part of a
// unit of the largest limits is never used, but all of one still fits. `most`: of the limit what a
// class of requests may use.
inline constexpr Terms TermsOf(Kind kind, uint64_t limit, uint64_t period_ns,
                               uint64_t most = kNever) {
  const bool slides = kind == Kind::kSlidingWindow;
  const int scale = ScaleOf(limit);
  const int bits = slides ? kSlidingBits : kFixedBits;
  const auto fine = [&](uint64_t tokens) {
    return slides ? UnitsOfTokens(tokens, scale) << bits : Shifted(tokens, scale + bits);
  };
  most = std::min(most, limit);
  return {.period_ns = period_ns,
          .length_ns = LengthNs(period_ns),
          .limit_fine = fine(limit),
          .limit = limit,
          // A class has a unit at least: only what is torn says less.
          .most_fine = slides ? std::max(fine(most), uint64_t{1} << bits) : fine(most),
          .most = most,
          .token_shift = scale + bits,
          .part_bits = bits};
}

// The end of the window that a word counts in.
inline constexpr uint64_t EndNs(const Terms& t, uint64_t w, bool slides) {
  return TimeNs(w) - (slides ? std::min(TimeNs(w), t.length_ns) : 0);
}

// What `tokens` cost, in parts of a unit, where a token costs `dearer_q16` (16 fraction bits; 0:
// one). A cost that fits all that its class may use still fits a share of it: a share never rejects
// all. Precondition: tokens <= limit.
inline constexpr uint64_t CostFine(const Terms& t, uint64_t tokens, uint32_t dearer_q16) {
  const uint64_t own = Shifted(tokens, t.token_shift);
  if (dearer_q16 <= aux::kShareOne) return std::min(own, t.most_fine);
  const unsigned __int128 dear = (static_cast<unsigned __int128>(own) * dearer_q16 + 0xffff) >> 16;
  return static_cast<uint64_t>(std::min<unsigned __int128>(dear, t.most_fine));
}

// Tokens that were used, in parts of a unit, each as dear as `inv_share` says. Saturates.
inline constexpr uint64_t FineOf(const Terms& t, int64_t tokens, uint32_t inv_share) {
  if (tokens <= 0) return 0;
  const uint64_t most = t.ceiling_fine();
  const auto count = static_cast<uint64_t>(tokens);
  const unsigned __int128 own = t.token_shift >= 0
                                    ? static_cast<unsigned __int128>(count) << t.token_shift
                                    : Shifted(count, t.token_shift);
  const unsigned __int128 dear =
      inv_share <= aux::kShareOne
          ? own
          : (std::min<unsigned __int128>(own, most) * inv_share + 0xffff) >> 16;
  return static_cast<uint64_t>(std::min<unsigned __int128>(dear, most));
}

// As MakeLimit, for a window: its word may stand two lengths ahead of the time.
inline Limit MakeLimit(uint64_t limit, uint64_t period_ns) {
  Limit l = shm::MakeLimit(limit, period_ns, limit);
  l.debt_max_ns = 2 * LengthNs(period_ns) + kStepNs;
  return l;
}

// What of a rule a bucket's hash depends on, beside its label: with another scale or length the
// word would mean something else.
inline constexpr uint64_t HashSeed(uint64_t limit, uint64_t period_ns) {
  return period_ns * 8 + static_cast<uint64_t>(ScaleIndexOf(limit));
}

namespace second {
inline constexpr uint64_t kPurseMask = 0x1ff;
inline constexpr uint64_t kFixedPurseMask = 0xffffffff;
inline constexpr uint64_t Make(uint16_t gen, uint64_t start_ns, uint64_t closed, uint64_t purse) {
  return uint64_t{gen} << 48 | (start_ns >> kCountBits & 0xffff) << 32 |
         std::min(closed, kMaxCount) << 9 | (purse & kPurseMask);
}
inline constexpr uint16_t Gen(uint64_t s) { return static_cast<uint16_t>(s >> 48); }
inline constexpr uint64_t Closed(uint64_t s) { return s >> 9 & kMaxCount; }
inline constexpr uint64_t Purse(uint64_t s) { return s & kPurseMask; }
// Of a fixed window, which has no closed one.
inline constexpr uint64_t MakeFixed(uint16_t gen, uint64_t end_ns, uint64_t purse) {
  return uint64_t{gen} << 48 | (end_ns >> kCountBits & 0xffff) << 32 | (purse & kFixedPurseMask);
}
inline constexpr uint64_t FixedPurse(uint64_t s) { return s & kFixedPurseMask; }
inline constexpr bool StartsAt(uint64_t s, uint64_t time_ns) {
  return (s >> 32 & 0xffff) == (time_ns >> kCountBits & 0xffff);
}
}  // namespace second

// The open window as two words tell it.
struct Open {
  uint64_t start_ns;  // of a sliding window
  uint64_t end_ns;
  uint64_t count;   // units
  uint64_t closed;  // units of the window before; 0 for a fixed one
  uint64_t purse;   // parts of a unit
  bool is_new;      // it begins with what is measured now
};

// The end of the calendar's window that is open. Where all that was published is over, windows are
// of nominal length. Each end is a word that tells all by itself: the load orders nothing.
inline uint64_t CalendarEndNs(const Terms& t, uint64_t now_ns) {
  uint64_t last_ns = 0;
  for (uint32_t i = 0; i < kCalendarEnds; ++i) {
    const uint64_t end_ns = t.ends[i].load(std::memory_order_relaxed);
    if (end_ns > now_ns) return end_ns;
    last_ns = std::max(last_ns, end_ns);
  }
  return last_ns + ((now_ns - last_ns) / t.period_ns + 1) * t.period_ns;
}

inline Open OpenCalendar(const Terms& t, uint64_t w, uint64_t s, uint16_t gen, uint64_t now_ns) {
  const uint64_t end_ns = CalendarEndNs(t, now_ns);
  if (!IsNear(TimeNs(w), end_ns, kCalendarSlackNs)) return {now_ns, end_ns, 0, 0, 0, true};
  const bool is_ours = second::Gen(s) == gen && second::StartsAt(s, TimeNs(w));
  return {0, end_ns, Count(w), 0, is_ours ? second::FixedPurse(s) : 0, false};
}

// `w` is live and `s` what stood beside it while it did, `gen` the tenancy's.
inline Open OpenFixed(const Terms& t, uint64_t w, uint64_t s, uint16_t gen, uint64_t now_ns) {
  if (t.ends != nullptr) return OpenCalendar(t, w, s, gen, now_ns);
  const uint64_t end_ns = TimeNs(w);
  if (end_ns <= now_ns) return {now_ns, Ceil(now_ns + t.period_ns), 0, 0, 0, true};
  const bool is_ours = second::Gen(s) == gen && second::StartsAt(s, end_ns);
  return {0, end_ns, Count(w), 0, is_ours ? second::FixedPurse(s) : 0, false};
}

// Sliding windows follow each other without a gap for as long as the count of the last one weighs.
inline Open OpenSliding(const Terms& t, uint64_t w, uint64_t s, uint16_t gen, uint64_t now_ns) {
  const uint64_t until_ns = TimeNs(w);
  // Also 0 for a fresh word: its time is the tenancy's beginning.
  if (until_ns <= now_ns) {
    const uint64_t start_ns = Ceil(now_ns);
    return {start_ns, start_ns + t.length_ns, 0, 0, 0, true};
  }
  const uint64_t end_ns = EndNs(t, w, /*slides=*/true);
  const bool is_ours = second::Gen(s) == gen;
  if (end_ns <= now_ns) {
    // Somebody may have begun the next window already, and been killed before the word.
    const bool is_half_begun = is_ours && second::StartsAt(s, end_ns);
    const uint64_t counted = std::max(Count(w), is_half_begun ? second::Closed(s) : 0);
    return {end_ns, until_ns, 0, counted, 0, true};
  }
  return {end_ns - std::min(end_ns, t.length_ns), end_ns, Count(w), is_ours ? second::Closed(s) : 0,
          is_ours ? second::Purse(s) : 0,         false};
}

// What the closed window still weighs at `now_ns`, units, rounded up.
inline uint64_t Weight(const Terms& t, const Open& o, uint64_t now_ns) {
  if (o.closed == 0 || now_ns >= o.end_ns) return 0;
  const uint64_t left_ns = std::min(o.end_ns - now_ns, t.length_ns);
  return static_cast<uint64_t>(
      (static_cast<unsigned __int128>(o.closed) * left_ns + t.length_ns - 1) / t.length_ns);
}

struct Measured {
  bool allowed;
  bool is_wild;  // written by nobody in order, or under an older, longer period
  // The second word that must stand before the word is stored, and what it is to become after.
  uint64_t second_first;
  uint64_t second_after;
  uint64_t purse_mask;  // of the purse in it
  uint64_t new_word;    // stored when allowed
  uint64_t remaining;   // tokens; after this cost, where it is allowed
  uint64_t retry_after_ns;
  uint64_t reset_after_ns;
};

// Tokens that fit into `fine` parts. `is_empty`: nothing is counted.
inline uint64_t Remaining(const Terms& t, uint64_t fine, bool is_empty, uint32_t dearer_q16) {
  const uint64_t one = std::max<uint64_t>(CostFine(t, 1, dearer_q16), 1);
  if (fine < one) return 0;
  if (dearer_q16 <= aux::kShareOne) {
    if (is_empty) return t.most;
    const uint64_t tokens = t.token_shift >= 0 ? fine >> t.token_shift : fine << -t.token_shift;
    return std::min(t.most, tokens);
  }
  // In units of 2^-10 parts, which the smallest token is.
  const unsigned __int128 per_token = static_cast<unsigned __int128>(dearer_q16)
                                      << (t.token_shift + kSmallestBits);
  const unsigned __int128 tokens =
      (static_cast<unsigned __int128>(fine) << (16 + kSmallestBits)) / per_token;
  return std::max<uint64_t>(1, static_cast<uint64_t>(std::min<unsigned __int128>(tokens, t.most)));
}

// How long until a sliding window admits what costs `units` in the open window and `whole` in the
// next, if nothing else is admitted meanwhile. Exact: never earlier than true, and not a nanosecond
// later. Precondition: whole fits the class's part.
inline uint64_t RetrySlidingNs(const Terms& t, const Open& o, uint64_t now_ns, uint64_t units,
                               uint64_t whole) {
  // The first instant at which weighs * (end - then) / length <= room.
  const auto fits_at = [&t](uint64_t end_ns, uint64_t weighs, uint64_t room) {
    const unsigned __int128 early_ns =
        static_cast<unsigned __int128>(room) * t.length_ns / std::max<uint64_t>(weighs, 1);
    return end_ns - static_cast<uint64_t>(std::min<unsigned __int128>(early_ns, t.length_ns));
  };
  const uint64_t most = t.units(t.most_fine);
  const uint64_t at_ns = o.count + units <= most
                             ? fits_at(o.end_ns, o.closed, most - units - o.count)
                             : fits_at(o.end_ns + t.length_ns, o.count, most - whole);
  return at_ns > now_ns ? at_ns - now_ns : 0;
}

// What a cost takes: whole units of the word, and what then stands in the purse.
struct Price {
  uint64_t units;
  uint64_t purse;
  bool is_from_purse;
};
inline constexpr Price PriceOf(const Terms& t, uint64_t fine, uint64_t purse) {
  const uint64_t unit = 1ull << t.part_bits;
  const uint64_t units = fine >> t.part_bits;
  const uint64_t part = fine & (unit - 1);
  if (part == 0) return {units, purse, false};
  return purse >= part ? Price{units, purse - part, true}
                       : Price{units + 1, purse + unit - part, false};
}

// A check of `tokens`, where a token costs `dearer_q16` (as in CostFine). `has_second`: false in an
// overflow bucket, which has no second word: no purse there, and a closed window weighs nothing.
inline Measured Measure(Kind kind, const Terms& t, uint64_t w, uint64_t s, bool has_second,
                        uint16_t gen, uint64_t now_ns, uint64_t tokens, uint32_t dearer_q16) {
  const bool slides = kind == Kind::kSlidingWindow;
  Open o = slides ? OpenSliding(t, w, s, gen, now_ns) : OpenFixed(t, w, s, gen, now_ns);
  const uint64_t tail_ns = slides ? t.length_ns : 0;  // from a window's end to the word's time
  const uint64_t latest_ns = slides ? Ceil(now_ns) + t.length_ns : Ceil(now_ns + t.period_ns);
  const uint64_t capacity = t.capacity();
  Measured m = {};
  if (o.end_ns > latest_ns && t.ends == nullptr) {
    m.is_wild = true;
    m.new_word = Make(latest_ns + tail_ns, std::min(o.count, capacity));
    return m;
  }
  if (!has_second) o.closed = o.purse = 0;
  if (o.count == 0) o.purse = 0;  // torn: nothing was paid into it
  const bool ever = tokens <= t.most;
  const uint64_t fine = CostFine(t, std::min(tokens, t.most), dearer_q16);
  const bool has_purse = has_second && t.has_purse();
  if (!has_purse) o.purse = 0;
  const Price price = PriceOf(t, fine, o.purse);
  const uint64_t used = Weight(t, o, now_ns) + o.count;
  const uint64_t used_fine = (used << t.part_bits) - std::min(used << t.part_bits, o.purse);
  m.allowed = ever && used_fine + fine <= t.most_fine;
  const uint64_t count = std::min(o.count + price.units, t.ceiling());
  m.new_word = Make(Ceil(o.end_ns + tail_ns), count);

  // A second word of another gen says nothing, and so does an empty one.
  const uint64_t tag_ns = slides ? o.start_ns : Ceil(o.end_ns);
  const auto beside = [&](uint64_t purse) {
    return slides ? second::Make(gen, tag_ns, o.closed, purse)
                  : second::MakeFixed(gen, tag_ns, purse);
  };
  const bool begins =
      o.is_new && has_second && (slides || has_purse) && (o.closed != 0 || second::Gen(s) == gen);
  const uint64_t begun = begins ? beside(0) : s;
  const uint64_t paid = has_purse && price.purse != o.purse ? beside(price.purse) : begun;
  m.second_first = price.is_from_purse ? paid : begun;
  m.second_after = paid;
  m.purse_mask = slides ? second::kPurseMask : second::kFixedPurseMask;

  const uint64_t after_fine = m.allowed ? used_fine + fine : used_fine;
  m.remaining =
      Remaining(t, t.most_fine - std::min(t.most_fine, after_fine), after_fine == 0, dearer_q16);
  if (!ever) {
    m.retry_after_ns = kNever;
  } else if (!m.allowed) {
    m.retry_after_ns =
        slides ? RetrySlidingNs(t, o, now_ns, price.units, t.units(fine)) : o.end_ns - now_ns;
  }
  if ((m.allowed ? count : o.count) != 0) {
    m.reset_after_ns = o.end_ns + tail_ns - now_ns;
  } else if (o.closed != 0) {
    m.reset_after_ns = o.end_ns - now_ns;
  }
  return m;
}

// Whether a refund of what a check spent when it left `spent_word` finds its window open.
inline constexpr bool IsOpenStill(uint64_t w, uint64_t spent_word, uint64_t now_ns) {
  return TimeNs(w) == TimeNs(spent_word) && TimeNs(w) > now_ns;
}

// A refund of `tokens` in the window that is open: whole units go from the word, the rest into the
// purse or, where that has a unit then, a unit more from the word and what is too much from the
// purse. To commit as a check's. Of the scale `index`.
inline Measured MeasureRefund(Kind kind, int index, uint64_t w, uint64_t s, bool has_second,
                              uint16_t gen, uint64_t tokens) {
  const bool slides = kind == Kind::kSlidingWindow;
  const int scale = kScales[index];
  const int bits = slides ? kSlidingBits : kFixedBits;
  const uint64_t units = UnitsOfTokens(std::min(tokens, kMaxTokens), scale);
  const uint64_t mask = slides ? second::kPurseMask : second::kFixedPurseMask;
  Measured m = {};
  m.purse_mask = mask;
  m.second_first = m.second_after = s;
  m.new_word = w - std::min(units, Count(w));
  if (scale >= 0 || !has_second || units >= Count(w)) return m;
  const uint64_t rest = tokens & ((1ull << -scale) - 1);
  const uint64_t part = bits + scale >= 0 ? rest << (bits + scale) : rest >> -(bits + scale);
  // A fixed window's is there for the tenancy's next in any case; a sliding one's tells more.
  const bool is_ours = second::Gen(s) == gen && (slides || second::StartsAt(s, TimeNs(w)));
  if (part == 0 || (slides && !is_ours)) return m;
  const uint64_t purse = (is_ours ? s & mask : 0) + part;
  const uint64_t unit = 1ull << bits;
  const uint64_t kept = purse >= unit ? purse - unit : purse;
  m.second_after = is_ours ? (s & ~mask) | kept : second::MakeFixed(gen, TimeNs(w), kept);
  if (purse >= unit) {
    m.new_word -= 1;
    m.second_first = m.second_after;
  }
  return m;
}

// The word of two slots that counted for one key at once: both were spent. Never below `winner`.
inline constexpr uint64_t Merged(uint64_t winner, uint64_t loser, uint64_t now_ns) {
  if (TimeNs(loser) <= now_ns) return winner;
  if (TimeNs(winner) <= now_ns) return std::max(winner, loser);
  return Make(std::max(TimeNs(winner), TimeNs(loser)), Count(winner) + Count(loser));
}

}  // namespace sluice::shm::window
