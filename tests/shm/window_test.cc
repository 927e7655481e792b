// Windows as arithmetic, against references that count in whole tokens and compare fractions: at
// windows' edges, with costs above 1, limits from 1 to 10^12, shares, and clocks that lag.
#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "shm/window.h"
#include "tests/shm/window_reference.h"

namespace sluice::shm {
namespace {

template <class Reference>
void Compare(Kind kind, uint64_t seed) {
  CompareWithReference<Reference>(
      kind, seed, /*rounds=*/1500, /*checks=*/500,
      [](std::mt19937_64& random, uint64_t limit, uint64_t costs) {
        return Asked{random() % 64 == 0 ? limit + random() % 2 : 1 + random() % costs, kNever};
      });
}

TEST(WindowTest, AFixedWindowCountsWhatItsReferenceCounts) {
  Compare<Fixed>(Kind::kFixedWindow, 11);
}

TEST(WindowTest, ASlidingWindowEstimatesWhatItsReferenceEstimates) {
  Compare<Sliding>(Kind::kSlidingWindow, 12);
}

// "When again?" is exact: that cost passes then, and did not a nanosecond before.
TEST(WindowTest, RetryAfterIsTheFirstInstantThatAdmits) {
  std::mt19937_64 random(13);
  int denied = 0;
  for (int round = 0; round < 3000; ++round) {
    const Kind kind = random() % 2 == 0 ? Kind::kFixedWindow : Kind::kSlidingWindow;
    const uint64_t limit = RandomLimit(random);
    const uint64_t period = RandomPeriod(random);
    Words words = WordsOf(kind, limit, period);
    const uint32_t dearer =
        random() % 2 == 0
            ? 0
            : static_cast<uint32_t>(aux::kShareOne + random() % (20 * aux::kShareOne));
    uint64_t now = kSecond + random() % (1ull << 50);
    words.word = window::FreshWord(now);
    for (int i = 0; i < 60; ++i) {
      now += random() % (period / 10);
      const uint64_t n = 1 + random() % std::max<uint64_t>(1, limit / (1 + random() % 8));
      const Measured m = words.Ask(n, now, dearer);
      if (m.allowed) {
        ASSERT_EQ(m.retry_after_ns, 0u);
        continue;
      }
      ++denied;
      ASSERT_NE(m.retry_after_ns, kNever);
      ASSERT_GT(m.retry_after_ns, 0u);
      ASSERT_TRUE(words.Look(n, now + m.retry_after_ns, dearer).allowed) << limit << " " << n;
      ASSERT_FALSE(words.Look(n, now + m.retry_after_ns - 1, dearer).allowed) << limit << " " << n;
    }
    EXPECT_EQ(words.Look(limit + 1, now).retry_after_ns, kNever);
  }
  EXPECT_GT(denied, 10'000);
}

// What is left passes in one piece, and one token more does not; after the reset all is there.
TEST(WindowTest, RemainingAndResetAreWhatPasses) {
  std::mt19937_64 random(14);
  for (int round = 0; round < 3000; ++round) {
    const Kind kind = random() % 2 == 0 ? Kind::kFixedWindow : Kind::kSlidingWindow;
    const uint64_t limit = RandomLimit(random);
    const uint64_t period = RandomPeriod(random);
    Words words = WordsOf(kind, limit, period);
    uint64_t now = kSecond + random() % (1ull << 50);
    words.word = window::FreshWord(now);
    for (int i = 0; i < 60; ++i) {
      now += random() % (period / 10);
      const Measured m = words.Ask(1 + random() % std::max<uint64_t>(1, limit / 8), now);
      if (m.remaining != 0) {
        ASSERT_TRUE(words.Look(m.remaining, now).allowed);
      }
      if (m.remaining < limit && (kind == Kind::kFixedWindow || UnitOf(limit) == 1)) {
        ASSERT_FALSE(words.Look(m.remaining + 1, now).allowed) << limit << " " << m.remaining;
      }
      if (m.reset_after_ns != 0) {
        const Measured then = words.Look(limit, now + m.reset_after_ns);
        ASSERT_TRUE(then.allowed);
        ASSERT_FALSE(words.Look(limit, now + m.reset_after_ns - 1).allowed);
      }
    }
  }
}

// No window of a fixed one's length that begins with a count admits more than the limit.
TEST(WindowTest, NoFixedWindowAdmitsMoreThanTheLimitWhateverTheCosts) {
  std::mt19937_64 random(15);
  for (const uint64_t limit :
       {1ull, 2ull, 16'383ull, 16'384ull, (1ull << 22) - 1, 1ull << 22, 123'456'789ull,
        1'000'000'000ull, (1ull << 30) - 1, 1ull << 30, (1ull << 38) - 1, 1ull << 38,
        kMaxTokens - 1ull, kMaxTokens + 0ull}) {
    Words words = WordsOf(Kind::kFixedWindow, limit, kSecond);
    uint64_t now = 5 * kSecond;
    words.word = window::FreshWord(now);
    for (int w = 0; w < 20; ++w) {
      const uint64_t begun = now;
      const uint64_t most = std::max<uint64_t>(1, limit / 3000);
      uint64_t admitted = 0;
      uint64_t denied = 0;
      while (denied < 50) {
        const uint64_t n = 1 + random() % most;
        if (words.Ask(n, now).allowed) {
          admitted += n;
        } else {
          ++denied;
        }
      }
      for (uint64_t n = most; n != 0; n /= 2) {
        while (words.Ask(n, now).allowed) admitted += n;
      }
      EXPECT_EQ(admitted, limit) << "to the token";
      EXPECT_FALSE(words.Look(1, begun + kSecond - 1).allowed);
      now = window::TimeNs(words.word);
    }
  }
}

// A share makes a token dearer by the share, not by the rounding to whole counts.
TEST(WindowTest, AShareAdmitsItsShareOfTheLimit) {
  for (const uint64_t limit : {30ull, 1000ull, 100'000ull, 3'000'000ull, 50'000'000ull,
                               5'000'000'000ull, 500'000'000'000ull}) {
    for (const double share : {0.9, 0.7, 0.5, 1.0 / 3, 0.02}) {
      Words words = WordsOf(Kind::kFixedWindow, limit, kSecond);
      words.word = window::FreshWord(kSecond);
      const auto dearer = static_cast<uint32_t>(65536 / share);
      const uint64_t n = std::max<uint64_t>(1, limit / 30'000);
      uint64_t admitted = 0;
      while (words.Ask(n, kSecond, dearer).allowed) admitted += n;
      const double due = share * static_cast<double>(limit);
      EXPECT_LE(static_cast<double>(admitted), due * 1.001 + 1);
      EXPECT_GE(static_cast<double>(admitted), due * 0.99 - static_cast<double>(n))
          << limit << " " << share;
    }
  }
  Words one = WordsOf(Kind::kSlidingWindow, 1, kSecond);
  one.word = window::FreshWord(kSecond);
  EXPECT_TRUE(one.Ask(1, kSecond, 1000 * aux::kShareOne).allowed) << "a share never rejects all";
  EXPECT_FALSE(one.Ask(1, kSecond, 1000 * aux::kShareOne).allowed);
}

// Who looks with a clock that lags sees the window that others have begun, or is told to look
// again.
TEST(WindowTest, AClockThatLagsForgetsNothing) {
  std::mt19937_64 random(16);
  for (const Kind kind : {Kind::kFixedWindow, Kind::kSlidingWindow}) {
    for (int round = 0; round < 2000; ++round) {
      Words words = WordsOf(kind, 1000, kSecond);
      uint64_t now = kSecond * (5 + random() % 100);
      words.word = window::FreshWord(now);
      for (int i = 0; i < 40; ++i) {
        now += random() % (kSecond / 5);
        words.Ask(1 + random() % 200, now);
        const uint64_t count = window::Count(words.word);
        const uint64_t time = window::TimeNs(words.word);
        const Measured m = words.Look(1, now - random() % (20 * kMs));
        if (m.is_wild || !m.allowed) continue;
        ASSERT_GE(m.new_word, words.word) << "neither an earlier window nor a smaller count";
        if (window::TimeNs(m.new_word) == time) {
          ASSERT_GE(window::Count(m.new_word), count);
        }
      }
    }
  }
}

// Killed between the second word and the word: the next to come goes on from there.
TEST(WindowTest, AHalfRolledWindowIsRolledByTheNext) {
  Words words = WordsOf(Kind::kSlidingWindow, 100, kSecond);
  words.word = window::FreshWord(10 * kSecond);
  for (int i = 0; i < 80; ++i) ASSERT_TRUE(words.Ask(1, 10 * kSecond).allowed);
  const uint64_t end = window::TimeNs(words.word) - words.terms.length_ns;
  const Measured rolls = words.Look(1, end);
  ASSERT_TRUE(rolls.allowed);
  words.second = rolls.second_first;
  EXPECT_EQ(window::Count(words.Look(1, end - kMs).new_word), 81u << 8) << "by a clock behind";
  for (const uint64_t now : {end, end + kMs, end + kSecond / 2}) {
    const Measured m = words.Look(1, now);
    EXPECT_EQ(window::TimeNs(m.new_word), end + 2 * words.terms.length_ns);
    EXPECT_EQ(window::second::Closed(m.second_first), window::Count(words.word));
    EXPECT_EQ(m.second_first, words.second) << "nothing is left to do there";
  }
  EXPECT_EQ(words.Look(20, end).allowed, true);
  EXPECT_EQ(words.Look(21, end).allowed, false);
}

TEST(WindowTest, AnotherTenancysSecondWordIsNotRead) {
  Words words = WordsOf(Kind::kSlidingWindow, 100, kSecond);
  words.word = window::FreshWord(10 * kSecond);
  words.second = window::second::Make(kGen - 1, window::Ceil(10 * kSecond), 25'600, 0);
  EXPECT_TRUE(words.Ask(50, 10 * kSecond).allowed);
  EXPECT_TRUE(words.Ask(50, 10 * kSecond).allowed) << "in the window that it has begun";
}

TEST(WindowTest, AWordBeyondOnePeriodIsHealedToAWindowThatBeginsNow) {
  for (const Kind kind : {Kind::kFixedWindow, Kind::kSlidingWindow}) {
    Words words = WordsOf(kind, 100, 60 * kSecond);
    words.word = window::Make(1000 * kSecond, window::kMaxCount);
    const Measured m = words.Look(1, 10 * kSecond);
    ASSERT_TRUE(m.is_wild);
    words.word = m.new_word;
    const Measured healed = words.Look(1, 10 * kSecond);
    EXPECT_FALSE(healed.is_wild);
    EXPECT_FALSE(healed.allowed);
    EXPECT_LE(healed.retry_after_ns, 2 * words.terms.length_ns);
  }
}

// Any two words: looked at, healed, and forgotten two lengths later. No answer is out of range.
TEST(WindowTest, AnyMemoryIsRightAgainAfterTwoLengths) {
  std::mt19937_64 random(17);
  for (int round = 0; round < 20'000; ++round) {
    const Kind kind = random() % 2 == 0 ? Kind::kFixedWindow : Kind::kSlidingWindow;
    const uint64_t limit = RandomLimit(random);
    const uint64_t period = RandomPeriod(random);
    Words words = WordsOf(kind, limit, period);
    uint64_t now = kSecond + random() % (1ull << 50);
    // Anything, or something near what could stand there.
    words.word = random() >> (1 + random() % 40);
    if (random() % 2 == 0) words.word = window::Make(now + random() % (4 * period), random());
    words.second = random();
    if (random() % 2 == 0) words.second = (words.second & ~(0xffffull << 48)) | kGen * (1ull << 48);
    for (int i = 0; i < 4; ++i) {
      const auto dearer = static_cast<uint32_t>(random() >> (32 + random() % 32));
      Measured m = words.Ask(1 + random() % limit, now, dearer);
      if (m.is_wild) {
        words.word = m.new_word;
        m = words.Look(1, now, dearer);
        ASSERT_FALSE(m.is_wild);
      }
      ASSERT_LE(m.remaining, limit);
      ASSERT_LE(m.reset_after_ns, 2 * words.terms.length_ns + window::kStepNs);
      if (m.retry_after_ns != kNever) {
        ASSERT_LE(m.retry_after_ns, 2 * words.terms.length_ns + window::kStepNs);
      }
      now += random() % period;
    }
    now += 2 * words.terms.length_ns + window::kStepNs;
    ASSERT_TRUE(words.Ask(limit, now).allowed);
    ASSERT_FALSE(words.Ask(1, now).allowed);
  }
}

TEST(WindowTest, ADuplicatesCountIsAddedAndNeverLowersTheOther) {
  const uint64_t now = 10 * kSecond;
  const uint64_t a = window::Make(now + kSecond, 5);
  const uint64_t b = window::Make(now + kSecond / 2, 7);
  EXPECT_EQ(window::Merged(a, b, now), window::Make(now + kSecond, 12));
  EXPECT_EQ(window::Merged(b, a, now), window::Make(now + kSecond, 12));
  EXPECT_EQ(window::Merged(a, window::FreshWord(now), now), a);
  EXPECT_EQ(window::Merged(window::FreshWord(now), b, now), b);
  EXPECT_EQ(window::Count(window::Merged(a, window::Make(now + kSecond, window::kMaxCount), now)),
            window::kMaxCount);
}

TEST(WindowTest, ARefundGivesBackWithinItsWindowOnly) {
  for (const Kind kind : {Kind::kFixedWindow, Kind::kSlidingWindow}) {
    Words words = WordsOf(kind, 100, kSecond);
    const uint64_t now = 10 * kSecond;
    words.word = window::FreshWord(now);
    const uint64_t spent = words.Ask(60, now).new_word;
    words.Ask(40, now);
    EXPECT_TRUE(window::IsOpenStill(words.word, spent, now + kMs));
    const Measured back = words.Refund(60);
    EXPECT_EQ(window::Count(words.word) - window::Count(back.new_word), 60u << 8);
    EXPECT_FALSE(window::IsOpenStill(words.word, spent, window::TimeNs(words.word)));
    EXPECT_FALSE(window::IsOpenStill(words.word + window::kStepNs, spent, now));
  }
}

// Costs and refunds of all sizes, in any order: what is left is exact to the token, and of a
// sliding window never more than that.
TEST(WindowTest, AFixedWindowIsExactToTheTokenWithRefunds) {
  std::mt19937_64 random(18);
  for (int round = 0; round < 2000; ++round) {
    const Kind kind = random() % 2 == 0 ? Kind::kFixedWindow : Kind::kSlidingWindow;
    const uint64_t limit = RandomLimit(random);
    Words words = WordsOf(kind, limit, 60 * kSecond);
    const uint64_t now = 10 * kSecond;
    words.word = window::FreshWord(now);
    std::vector<uint64_t> spent;
    uint64_t used = 0;
    for (int i = 0; i < 200; ++i) {
      if (!spent.empty() && random() % 2 == 0) {
        std::swap(spent[random() % spent.size()], spent.back());
        const uint64_t part = 1 + random() % spent.back();  // a settlement gives a part back
        const Measured back = words.Refund(part);
        words.word = back.new_word;
        words.second = back.second_after;
        used -= part;
        spent.back() -= part;
        if (spent.back() == 0) spent.pop_back();
      } else {
        const uint64_t n = 1 + random() % std::max<uint64_t>(1, limit >> random() % 30);
        const Measured m = words.Ask(n, now);
        if (kind == Kind::kFixedWindow) {
          ASSERT_EQ(m.allowed, n <= limit - used) << limit << " used " << used << " n " << n;
        } else if (m.allowed) {
          ASSERT_LE(n, limit - used);
        }
        if (!m.allowed) continue;
        used += n;
        spent.push_back(n);
      }
      const uint64_t left = words.Look(0, now).remaining;
      if (kind == Kind::kFixedWindow) {
        ASSERT_EQ(left, limit - used) << limit << " round " << round << "." << i;
      } else {
        ASSERT_LE(left, limit - used);
      }
    }
  }
}

}  // namespace
}  // namespace sluice::shm
