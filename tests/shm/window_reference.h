// References for windows that count in whole tokens and compare fractions, and what tests of
// windows share. For requests of a class, a part of the limit is asked for.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <random>

#include "shm/window.h"

namespace sluice::shm {

using window::Measured;
using window::Terms;

inline constexpr uint64_t kSecond = 1'000'000'000;
inline constexpr uint64_t kMs = 1'000'000;
inline constexpr uint16_t kGen = 7;

// The two words as a check treats them.
struct Words {
  Kind kind;
  Terms terms;
  uint64_t word = 0;
  uint64_t second = 0;

  // `most`: what the request's class may use.
  Measured Look(uint64_t tokens, uint64_t now, uint32_t dearer = 0, uint64_t most = kNever) const {
    const Terms of_class = window::TermsOf(kind, terms.limit, terms.period_ns, most);
    return window::Measure(kind, of_class, word, second, true, kGen, now, tokens, dearer);
  }
  Measured Refund(uint64_t tokens) const {
    return window::MeasureRefund(kind, window::ScaleIndexOf(terms.limit), word, second, true, kGen,
                                 tokens);
  }
  Measured Ask(uint64_t tokens, uint64_t now, uint32_t dearer = 0, uint64_t most = kNever) {
    const Measured m = Look(tokens, now, dearer, most);
    if (m.allowed) {
      word = m.new_word;
      second = m.second_after;
    }
    return m;
  }
};

inline Words WordsOf(Kind kind, uint64_t limit, uint64_t period_ns) {
  return {kind, window::TermsOf(kind, limit, period_ns)};
}

// How many tokens a unit is, and how finely a sliding window counts costs.
inline uint64_t UnitOf(uint64_t limit) {
  if (limit < (1ull << 22)) return 1;
  return limit < (1ull << 30) ? 256 : limit < (1ull << 38) ? 1 << 16 : 1 << 18;
}
inline uint64_t GrainOf(uint64_t limit) { return std::max<uint64_t>(1, UnitOf(limit) / 256); }
inline uint64_t CeilTo(uint64_t n, uint64_t step) { return (n + step - 1) / step * step; }

// What tokens come to in whole units of a limit's scale.
inline uint64_t WholeUnits(uint64_t limit, uint64_t tokens) {
  return tokens / UnitOf(limit) * UnitOf(limit);
}

// A window begins with the first request that it counts.
struct Fixed {
  uint64_t limit, period_ns;
  uint64_t end = 0, count = 0;

  bool Ask(uint64_t n, uint64_t now, uint64_t most = kNever) {
    const bool over = end <= now;
    const uint64_t counted = over ? 0 : count;
    if (counted + n > std::min(most, limit)) return false;
    if (over) end = window::Ceil(now + period_ns);
    count = counted + n;
    return true;
  }
};

// Windows follow each other; the last one weighs by what of it the sliding window still covers.
struct Sliding {
  uint64_t limit, length_ns;
  uint64_t start = 0, end = 0, count = 0, closed = 0;

  void Roll(uint64_t now) {
    if (end > now) return;
    if (end != 0 && now < end + length_ns) {
      start = end;
      closed = CeilTo(count, UnitOf(limit));
    } else {
      start = window::Ceil(now);
      closed = 0;
    }
    count = 0;
    end = start + length_ns;
  }
  bool Fits(uint64_t n, uint64_t now, uint64_t most) {
    Roll(now);
    const uint64_t left = std::min(end - now, length_ns);
    const uint64_t units = WholeUnits(limit, most);
    const unsigned __int128 whole = static_cast<unsigned __int128>(units) * length_ns;
    // One request may take all of a limit that is no whole number of units.
    if (n <= most) n = std::min(CeilTo(n, GrainOf(limit)), units);
    // In whole units for the largest limits, as the closed window's weight is.
    unsigned __int128 weight = static_cast<unsigned __int128>(closed) * left;
    if (UnitOf(limit) != 1) {
      const unsigned __int128 unit = static_cast<unsigned __int128>(UnitOf(limit)) * length_ns;
      weight = (weight + unit - 1) / unit * unit;
    }
    return weight + (static_cast<unsigned __int128>(count) + n) * length_ns <= whole;
  }
  bool Ask(uint64_t n, uint64_t now, uint64_t most = kNever) {
    const Sliding before = *this;
    most = std::min(most, limit);
    if (!Fits(n, now, most)) {
      *this = before;
      return false;
    }
    count += std::min(CeilTo(n, GrainOf(limit)), WholeUnits(limit, most));
    return true;
  }
};

inline uint64_t RandomLimit(std::mt19937_64& random) {
  return 1 + random() % (1ull << (random() % 41)) % kMaxTokens;
}

inline uint64_t RandomPeriod(std::mt19937_64& random) {
  switch (random() % 4) {
    case 0:
      return kSecond;
    case 1:
      return window::kStepNs * (120 + random() % 1000);
    case 2:
      return kSecond + random() % (100 * kSecond);
    default:
      return kSecond * (1 + random() % 86'400);
  }
}

// Mostly small steps, some to a window's edge and a nanosecond to either side, some past all.
inline uint64_t NextNow(std::mt19937_64& random, uint64_t now, uint64_t edge, uint64_t period_ns) {
  switch (random() % 8) {
    case 0:
      return std::max(now, edge - 1 + random() % 3);
    case 1:
      return now + random() % (3 * period_ns);
    case 2:
      return now;
    default:
      return now + random() % (period_ns / 8);
  }
}

// A window beside its reference, at the same times: `pick(random, limit, costs)` says what is asked
// for, costs up to `costs` mostly, and what the class of the request may use.
struct Asked {
  uint64_t tokens;
  uint64_t most;
};
template <class Reference, class Pick>
inline void CompareWithReference(Kind kind, uint64_t seed, int rounds, int checks, Pick pick) {
  std::mt19937_64 random(seed);
  for (int round = 0; round < rounds; ++round) {
    const uint64_t limit = RandomLimit(random);
    const uint64_t period = RandomPeriod(random);
    Words words = WordsOf(kind, limit, period);
    Reference reference{limit, kind == Kind::kSlidingWindow ? words.terms.length_ns : period};
    uint64_t now = kSecond + random() % (1ull << 50);
    words.word = window::FreshWord(now);
    const uint64_t costs = std::max<uint64_t>(1, limit >> random() % 12);
    uint64_t edge = now;
    for (int i = 0; i < checks; ++i) {
      now = NextNow(random, now, edge, period);
      const auto [n, most] = pick(random, limit, costs);
      const Measured m = words.Ask(n, now, /*dearer=*/0, most);
      ASSERT_FALSE(m.is_wild);
      ASSERT_EQ(m.allowed, reference.Ask(n, now, most))
          << most << " of " << limit << " per " << period << " n " << n << " round " << round << "."
          << i;
      ASSERT_LE(m.remaining, std::min(most, limit));
      edge = m.reset_after_ns != 0 ? now + m.reset_after_ns : now;
      if (random() % 2 == 0 && m.retry_after_ns != kNever) edge = now + m.retry_after_ns;
    }
  }
}

}  // namespace sluice::shm
