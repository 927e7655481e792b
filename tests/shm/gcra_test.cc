#include "shm/gcra.h"

#include <gtest/gtest.h>

#include <random>

namespace sluice::shm {
namespace {

constexpr uint64_t kSecond = 1'000'000'000;

// A bucket driven by hand: the word and the clock are the test's.
struct Model {
  Limit limit;
  uint64_t word = 0;

  bool Spend(uint64_t n, uint64_t now) {
    const uint64_t cost = n == 1 ? limit.interval_ns : CostNs(n, limit.period_ns, limit.limit);
    const Verdict v = Decide(word, now, cost, limit.tau_ns);
    if (v.allowed) word = v.new_ns;
    return v.allowed;
  }
  uint64_t SpendAll(uint64_t now, uint64_t most = 1'000'000) {
    uint64_t n = 0;
    while (n < most && Spend(1, now)) ++n;
    return n;
  }
};

// governor#107, governor#249: one cell too many.
TEST(GcraTest, AdmitsExactlyTheBurstAtOnce) {
  for (const uint64_t limit : {1u, 3u, 7u, 100u, 999u, 12'345u}) {
    for (const uint64_t burst : {1u, 2u, 3u, 10u, 333u}) {
      Model m{MakeLimit(limit, kSecond, burst)};
      EXPECT_EQ(m.SpendAll(50 * kSecond), burst) << limit << "/s burst " << burst;
    }
  }
}

// 700,000/s is 1428.57 ns a token: tau widened by almost a whole interval let 10,001 in at once.
TEST(GcraTest, AWholeBurstInOnePieceFitsAndOneTokenMoreDoesNot) {
  for (const uint64_t limit : {7u, 333u, 700'000u, 999'999'937u}) {
    for (const uint64_t burst : {1u, 2u, 333u, 10'000u, 1'000'000u}) {
      Model whole{MakeLimit(limit, kSecond, burst)};
      EXPECT_TRUE(whole.Spend(burst, 50 * kSecond)) << limit << "/s burst " << burst;
      EXPECT_FALSE(whole.Spend(1, 50 * kSecond)) << limit << "/s burst " << burst;
      Model over{MakeLimit(limit, kSecond, burst)};
      EXPECT_FALSE(over.Spend(burst + 1, 50 * kSecond)) << limit << "/s burst " << burst;
    }
  }
}

// folly#2430: a zero time read as "since boot" tokens.
TEST(GcraTest, AFreshWordHoldsOneBurstWhateverTheUptime) {
  for (const uint64_t now : {uint64_t{0}, uint64_t{1}, kSecond, 10'000'000 * kSecond}) {
    Model m{MakeLimit(10, kSecond, 5)};
    EXPECT_EQ(m.SpendAll(now), 5u);
  }
}

// bucket4j#51: overflow after long idle; the bucket is full, not more.
TEST(GcraTest, LongIdleRefillsToTheBurstAndNoFurther) {
  Model m{MakeLimit(1000, kSecond, 7)};
  m.SpendAll(kSecond);
  EXPECT_EQ(m.SpendAll(kMaxSpanNs * 10), 7u);
}

// bucket4j#417: negative results.
TEST(GcraTest, RemainingIsZeroInDebtAndNeverNegative) {
  const Limit l = MakeLimit(10, kSecond, 10);
  EXPECT_EQ(Remaining(100 * kSecond, kSecond, l.interval_ns, l.tau_ns), 0u);
  EXPECT_EQ(Remaining(0, kSecond, l.interval_ns, l.tau_ns), 10u);
}

// redis#15113: cost > burst gave incoherent answers.
TEST(GcraTest, ACostAboveTheBurstIsDeniedWithNever) {
  Model m{MakeLimit(10, kSecond, 10)};
  const uint64_t cost = CostNs(11, kSecond, 10);
  const Verdict v = Decide(m.word, kSecond, cost, m.limit.tau_ns);
  EXPECT_FALSE(v.allowed);
  EXPECT_EQ(RetryAfterNs(v, kSecond, cost, m.limit.tau_ns), kNever);
  EXPECT_TRUE(m.Spend(10, kSecond)) << "the whole burst at once fits";
}

TEST(GcraTest, CostZeroIsAllowedUntilTheDebtPassesTheBurst) {
  Model m{MakeLimit(10, kSecond, 10)};
  EXPECT_TRUE(Decide(m.word, kSecond, 0, m.limit.tau_ns).allowed);
  m.SpendAll(kSecond);
  EXPECT_TRUE(Decide(m.word, kSecond, 0, m.limit.tau_ns).allowed);
  EXPECT_FALSE(Decide(m.word + 1, kSecond, 0, m.limit.tau_ns).allowed);
}

// redis-gcra#8: pre- against post-increment TAT.
TEST(GcraTest, RetryAfterIsTheFirstInstantAtWhichTheSameCostFits) {
  std::mt19937_64 random(7);
  for (int round = 0; round < 2000; ++round) {
    Model m{MakeLimit(1 + random() % 1000, kSecond, 1 + random() % 50)};
    const uint64_t now = kSecond + random() % kSecond;
    m.SpendAll(now);
    const uint64_t n = 1 + random() % m.limit.burst;
    const uint64_t cost = CostNs(n, m.limit.period_ns, m.limit.limit);
    const Verdict v = Decide(m.word, now, cost, m.limit.tau_ns);
    if (v.allowed) continue;
    const uint64_t retry = RetryAfterNs(v, now, cost, m.limit.tau_ns);
    EXPECT_FALSE(Decide(m.word, now + retry - 1, cost, m.limit.tau_ns).allowed);
    EXPECT_TRUE(Decide(m.word, now + retry, cost, m.limit.tau_ns).allowed);
  }
}

TEST(GcraTest, ResetAfterIsWhenTheBucketIsFullAgain) {
  Model m{MakeLimit(10, kSecond, 10)};
  m.SpendAll(kSecond);
  const uint64_t reset = ResetAfterNs(m.word, kSecond);
  EXPECT_EQ(Remaining(m.word, kSecond + reset, m.limit.interval_ns, m.limit.tau_ns), 10u);
  EXPECT_LT(Remaining(m.word, kSecond + reset - 1, m.limit.interval_ns, m.limit.tau_ns), 10u);
}

// governor#299: a clock that steps back must not deny what was never spent.
TEST(GcraTest, AClockThatLagsDoesNotDenyAFullBucket) {
  Model m{MakeLimit(10, kSecond, 10)};
  EXPECT_TRUE(m.Spend(1, 10 * kSecond));
  EXPECT_TRUE(m.Spend(1, 10 * kSecond - 4'000'000)) << "one coarse step behind";
}

// boulder#8785, redis-cell#54, redpanda#21357: words of an older limit.
TEST(GcraTest, AWordOfAnOlderLimitIsHealed) {
  const Limit slow = MakeLimit(1, 3600 * kSecond, 1);
  const Limit fast = MakeLimit(100, kSecond, 100);
  const uint64_t now = 5 * kSecond;
  const uint64_t word = now + slow.tau_ns;
  EXPECT_FALSE(NeedsHeal(word, now, slow.tau_ns, slow.debt_max_ns));
  EXPECT_TRUE(NeedsHeal(word, now, fast.tau_ns, fast.debt_max_ns));
  EXPECT_TRUE(NeedsHeal(uint64_t{1} << 62, now, slow.tau_ns, slow.debt_max_ns));
}

TEST(GcraTest, DebtBeyondTheBurstIsKeptWithinItsBound) {
  const Limit l = MakeLimit(1000, kSecond, 100);
  EXPECT_EQ(l.debt_max_ns, kMinDebtNs) << "at least a second";
  EXPECT_FALSE(NeedsHeal(kSecond + l.tau_ns + l.debt_max_ns, kSecond, l.tau_ns, l.debt_max_ns));
}

TEST(GcraTest, ALateRefundGivesBackOnlyWhatStillStands) {
  EXPECT_EQ(RefundNs(100, 40, 200), 0u) << "its time has passed";
  EXPECT_EQ(RefundNs(100, 40, 90), 10u);
  EXPECT_EQ(RefundNs(100, 40, 10), 40u);
}

// envoy#46702: a share that rounds to zero rejects everything.
TEST(GcraTest, AShareNeverRejectsACostThatTheWholeBucketAdmits) {
  const Limit l = MakeLimit(10, kSecond, 10);
  for (const uint32_t inv : {0u, 1u, 65'536u, 131'072u, 0xffffffffu}) {
    EXPECT_LE(SharedCostNs(l.interval_ns, inv, l.tau_ns), l.tau_ns);
    EXPECT_GE(SharedCostNs(l.interval_ns, inv, l.tau_ns), l.interval_ns);
  }
  EXPECT_EQ(SharedCostNs(l.interval_ns, 2 * aux::kShareOne, l.tau_ns), 2 * l.interval_ns);
}

TEST(GcraTest, HugeLimitsAndAPeriodOfAYearStayInRange) {
  const uint64_t year = 366ull * 86'400 * kSecond;
  const Limit l = MakeLimit(1'000'000'000, year, 1'000'000'000);
  EXPECT_GT(l.interval_ns, 0u);
  EXPECT_LT(l.tau_ns + l.debt_max_ns, uint64_t{1} << 62);
  Model m{MakeLimit(1, year, 1)};
  EXPECT_TRUE(m.Spend(1, kSecond));
  EXPECT_FALSE(m.Spend(1, kSecond + year - 1));
  EXPECT_TRUE(m.Spend(1, kSecond + year));
  EXPECT_EQ(CostNs(1ull << 40, year, 1), kMaxCostNs);
  // Such a cost is denied, also where the word is ahead of now: the sum does not overflow.
  const Limit limit = MakeLimit(40, year, 40);
  const uint64_t now = 5 * kSecond;
  for (const uint64_t word : {uint64_t{0}, now, now + 1, now + limit.tau_ns}) {
    const Verdict v =
        Decide(word, now, CostNs(1'000'000'000ull * 1'000'000, year, 40), limit.tau_ns);
    EXPECT_FALSE(v.allowed) << word;
    EXPECT_EQ(RetryAfterNs(v, now, CostNs(1ull << 50, year, 40), limit.tau_ns), kNever);
  }
}

// The reference keeps the level in 128-bit fractions of a token and refills exactly.
struct Reference {
  unsigned __int128 level;  // in units of 1 / period_ns token
  unsigned __int128 full;
  uint64_t limit;
  uint64_t at = 0;

  Reference(const Limit& l, uint64_t now)
      : level(static_cast<unsigned __int128>(l.burst) * l.period_ns),
        full(level),
        limit(l.limit),
        at(now) {}
  void Advance(uint64_t now) {
    level = std::min(full, level + static_cast<unsigned __int128>(now - at) * limit);
    at = now;
  }
};

TEST(GcraPropertyTest, NeverAdmitsMoreThanTheReferencePlusItsStatedRounding) {
  std::mt19937_64 random(42);
  for (int round = 0; round < 300; ++round) {
    const uint64_t limit = 1 + random() % 20'000;
    const uint64_t period = (1 + random() % 100) * kSecond / (1 + random() % 10);
    const Limit l = MakeLimit(limit, period, 1 + random() % 300);
    Model m{l};
    uint64_t now = kSecond;
    Reference reference(l, now);
    // Ahead by less than one token (tau's rounding), behind by ceil(T) per token.
    const __int128 ahead_bound = static_cast<__int128>(period);
    for (int i = 0; i < 2000; ++i) {
      now += random() % (3 * l.interval_ns);
      reference.Advance(now);
      const uint64_t n = 1 + random() % 3;
      if (!m.Spend(n, now)) continue;
      const unsigned __int128 cost = static_cast<unsigned __int128>(n) * period;
      ASSERT_GE(static_cast<__int128>(reference.level) - static_cast<__int128>(cost), -ahead_bound)
          << limit << " per " << period << " ns, burst " << l.burst;
      reference.level = reference.level > cost ? reference.level - cost : 0;
    }
  }
}

TEST(GcraPropertyTest, AdmitsAtLeastTheRateLessTheRoundingOfTheInterval) {
  std::mt19937_64 random(43);
  for (int round = 0; round < 200; ++round) {
    const uint64_t limit = 1 + random() % 10'000;
    Model m{MakeLimit(limit, kSecond, 1 + random() % 100)};
    uint64_t admitted = 0;
    uint64_t now = kSecond;
    const uint64_t end = now + 3 * kSecond;
    while (now < end) {
      admitted += m.SpendAll(now);
      now += m.limit.interval_ns;
    }
    const uint64_t least = 3 * kSecond / m.limit.interval_ns + m.limit.burst - 2;
    EXPECT_GE(admitted, least) << limit << "/s";
    EXPECT_LE(admitted, 3 * limit + m.limit.burst + 1);
  }
}

// Limits whose tokens are hardly a nanosecond, or less: what is told to be left fits in one piece,
// and one token more does not.
TEST(GcraTest, OfTheLargestLimitsAllThatIsLeftIsTold) {
  std::mt19937_64 random(21);
  for (int i = 0; i < 200'000; ++i) {
    const uint64_t limit = kFineTokens + 1 + random() % (kMaxTokens - kFineTokens);
    const uint64_t period =
        kSecond + random() % (366 * 86'400 * kSecond - kSecond) / (1 + i % 1000);
    const uint64_t most = std::min<unsigned __int128>(
        kMaxTokens, static_cast<unsigned __int128>(limit) * 366 * 86'400 * kSecond / period);
    const uint64_t burst = 1 + random() % most;
    const Limit l = MakeLimit(limit, period, burst);
    ASSERT_EQ(Remaining(l, 0, kSecond, 0), burst) << limit << " per " << period;
    const uint64_t now = 5 * kSecond;
    const uint64_t tat = now + random() % (l.tau_ns + 1);
    const uint64_t left = Remaining(l, tat, now, 0);
    ASSERT_TRUE(Decide(tat, now, CostNs(left, period, limit), l.tau_ns).allowed);
    // Of less than a nanosecond each some more than the burst fit into what is rounded up.
    if (left < burst) {
      ASSERT_FALSE(Decide(tat, now, CostNs(left + 1, period, limit), l.tau_ns).allowed);
    }
    ASSERT_EQ(Remaining(l, tat, now, 2 * aux::kShareOne), left / 2) << "to who has half";
  }
}

}  // namespace
}  // namespace sluice::shm
