// Sliding logs against a reference that remembers every request: at windows' edges, with costs
// above 1, after refunds, over wraps of times and gens, from several threads, and from random
// memory.
#include <gtest/gtest.h>

#include <deque>
#include <random>
#include <thread>
#include <vector>

#include "shm/clock.h"
#include "shm/log_slot.h"
#include "shm/slot_table.h"
#include "tests/shm/log_reference.h"

namespace sluice::shm {
namespace {

TEST(LogTest, AdmitsWhatItsReferenceAdmitsAndTellsWhatIsLeft) {
  std::mt19937_64 random(21);
  for (int round = 0; round < 400; ++round) {
    const uint64_t limit = 1 + random() % (1u << random() % 9);
    const uint64_t period =
        random() % 3 == 0 ? 1 + random() % kSecond : kMs * (1 + random() % 9999);
    Logs logs(limit, period, {8, EntriesFor(limit)});
    Reference reference{limit, period, {}};
    uint64_t now = kSecond + random() % (1ull << 52);
    const uint64_t most = std::max<uint64_t>(1, limit >> random() % 6);
    uint64_t edge = now;
    for (int i = 0; i < 400; ++i) {
      switch (random() % 8) {
        case 0:
          now = std::max(now, edge - 1 + random() % 3);
          break;
        case 1:
          now += random() % (3 * period);
          break;
        case 2:
          break;
        default:
          now += random() % (period / 8 + 1);
      }
      TestClock::now_ns = now;
      const uint64_t n = random() % 64 == 0 ? limit + random() % 2 : 1 + random() % most;
      const bool brief = random() % 4 == 0;
      const bool allowed = logs.Ask(n, kHash, brief) == Outcome::kAllowed;
      ASSERT_EQ(allowed, reference.Ask(n, now))
          << limit << " per " << period << " n " << n << " round " << round << "." << i;
      if (brief) continue;
      ASSERT_EQ(logs.seen.remaining, limit - reference.Live(now));
      ASSERT_EQ(logs.seen.reset_after_ns,
                reference.taken.empty() ? 0 : reference.taken.back().first - now);
      edge = logs.seen.retry_after_ns == kNever || allowed ? now + logs.seen.reset_after_ns
                                                           : now + logs.seen.retry_after_ns;
    }
  }
}

// "When again?" is exact: that cost passes then, and did not a nanosecond before.
TEST(LogTest, RetryAfterIsTheFirstInstantThatAdmits) {
  std::mt19937_64 random(22);
  for (int round = 0; round < 3000; ++round) {
    const uint64_t limit = 1 + random() % 40;
    Logs logs(limit, 1 + random() % (5 * kSecond), {8, 64});
    TestClock::now_ns = kSecond * 1000 + random() % kSecond;
    for (int i = 0; i < 60; ++i) {
      logs.Ask(1 + random() % limit);
      TestClock::now_ns += random() % (logs.limit.period_ns / 8 + 1);
    }
    const uint64_t n = 1 + random() % limit;
    if (logs.Ask(n, kHash, false, /*commit=*/false) == Outcome::kAllowed) continue;
    const uint64_t retry_ns = logs.seen.retry_after_ns;
    ASSERT_GT(retry_ns, 0u);
    TestClock::now_ns += retry_ns - 1;
    ASSERT_EQ(logs.Ask(n, kHash, false, false), Outcome::kDenied);
    TestClock::now_ns += 1;
    ASSERT_EQ(logs.Ask(n, kHash, false, false), Outcome::kAllowed);
  }
}

TEST(LogTest, WhatNeverFitsIsToldSo) {
  Logs logs(5, kSecond, {8, 8});
  TestClock::now_ns = 100 * kSecond;
  EXPECT_EQ(logs.Ask(6), Outcome::kDenied);
  EXPECT_EQ(logs.seen.retry_after_ns, kNever);
  EXPECT_EQ(logs.seen.remaining, 5u);
  EXPECT_EQ(logs.seen.reset_after_ns, 0u);
  EXPECT_TRUE(logs.Allows(5));
}

TEST(LogTest, ACostIsTakenWholeOrNotAtAll) {
  Logs logs(8, kSecond, {8, 8});
  TestClock::now_ns = 100 * kSecond;
  EXPECT_TRUE(logs.Allows(5));
  EXPECT_FALSE(logs.Allows(4));
  EXPECT_TRUE(logs.Allows(3));
  EXPECT_FALSE(logs.Allows(1));
}

// The tokens of one moment are alike; given back are as many as were taken, and their time does not
// come early.
TEST(LogTest, ARefundGivesBackWhatItsRequestTook) {
  std::mt19937_64 random(23);
  for (int round = 0; round < 500; ++round) {
    const uint64_t limit = 1 + random() % 30;
    Logs logs(limit, kSecond, {8, 32});
    Reference reference{limit, kSecond, {}};
    TestClock::now_ns = kSecond * 5000 + random() % kSecond;
    struct Spend {
      uint64_t spent_ns, tokens, free_ns;
    };
    std::vector<Spend> spends;
    for (int i = 0; i < 200; ++i) {
      const uint64_t now = TestClock::now_ns += random() % 2 * random() % (kSecond / 4);
      if (random() % 3 == 0 && !spends.empty()) {
        const size_t at = random() % spends.size();
        const Spend s = spends[at];
        spends.erase(spends.begin() + static_cast<ptrdiff_t>(at));
        const bool refunded = logs.Refund(s.tokens, s.spent_ns);
        ASSERT_EQ(refunded, now < s.spent_ns + kSecond);
        for (auto it = reference.taken.begin(); refunded && it != reference.taken.end(); ++it) {
          if (it->first != s.free_ns || it->second != s.tokens) continue;
          reference.taken.erase(it);
          break;
        }
        continue;
      }
      const uint64_t n = 1 + random() % limit;
      ASSERT_EQ(logs.Allows(n), reference.Ask(n, now)) << "round " << round << "." << i;
      ASSERT_EQ(logs.seen.remaining, limit - reference.Live(now));
      if (logs.seen.verdict.allowed) {
        spends.push_back({logs.seen.verdict.new_ns, n, reference.FreeNs(now)});
      }
    }
  }
}

// 2^47 us are 4.4 years: a host that runs so long does not forget, nor remember for ever.
TEST(LogTest, TimesMayWrap) {
  const uint64_t wrap_ns = (1ull << 47) * 1000;
  Logs logs(3, 10 * kSecond, {8, 8});
  Reference reference{3, 10 * kSecond, {}};
  uint64_t admitted = 0;
  for (uint64_t now = wrap_ns - 25 * kSecond; now < wrap_ns + 25 * kSecond; now += kSecond) {
    TestClock::now_ns = now;
    const bool allowed = logs.Allows(1);
    ASSERT_EQ(allowed, reference.Ask(1, now));
    admitted += allowed ? 1 : 0;
  }
  EXPECT_EQ(admitted, 15u);
}

// 65,536 tenants later a slot has the gen of the first again: what that one took counts no more.
TEST(LogTest, GensMayWrap) {
  Logs logs(2, kSecond, {8, 8});
  TestClock::now_ns = 100 * kSecond;
  for (int i = 0; i < 65'536 * 8 + 100; ++i) {
    const uint64_t hash = (uint64_t(i) + 1) * 0x9e37'79b9'7f4a'7c15;
    ASSERT_EQ(logs.Ask(2, hash), Outcome::kAllowed) << i;
    ASSERT_EQ(logs.Ask(1, hash), Outcome::kDenied) << i;
    TestClock::now_ns += kSecond + kGraceNs + 2 * payload::kStepNs;
  }
}

TEST(LogTest, AHostThatHasJustStartedCountsNothingAgainstItsFirstTenants) {
  Logs logs(4, 3600 * kSecond, {8, 8});
  for (Slot& slot : logs.slots_) slot.key = key::Make(0, Kind::kTokenBucket, 0xffff);
  TestClock::now_ns = 10 * kSecond;
  EXPECT_TRUE(logs.Allows(4));
  EXPECT_EQ(key::Gen(logs.slots_[logs.index].key), 0);
}

TEST(LogTest, ASlotKeepsItsTenantAsLongAsATokenCounts) {
  Logs logs(2, kSecond, {8, 8});
  TestClock::now_ns = 100 * kSecond;
  ASSERT_TRUE(logs.Allows(1));
  const uint64_t w = logs.slots_[logs.index].word;
  EXPECT_GE(payload::TimeNs(w), TestClock::now_ns + kSecond);
  EXPECT_LE(payload::TimeNs(w), TestClock::now_ns + kSecond + 2 * payload::kStepNs);
  TestClock::now_ns += kSecond / 2;
  ASSERT_TRUE(logs.Allows(1));
  EXPECT_GE(payload::TimeNs(logs.slots_[logs.index].word), TestClock::now_ns + kSecond);
  const uint64_t before = logs.slots_[logs.index].word;
  EXPECT_FALSE(logs.Allows(1));
  EXPECT_EQ(logs.slots_[logs.index].word, before) << "a denial stores nothing";
}

// Windows that span a change of the limit hold the larger of both, all others their own.
TEST(LogTest, AChangedLimitKeepsWhatWasTaken) {
  Logs logs(8, kSecond, {8, 16});
  TestClock::now_ns = 100 * kSecond;
  ASSERT_TRUE(logs.Allows(6));
  logs.limit = logs::MakeLimit(16, kSecond);
  EXPECT_TRUE(logs.Allows(10));
  EXPECT_FALSE(logs.Allows(1));
  logs.limit = logs::MakeLimit(4, kSecond);
  EXPECT_FALSE(logs.Allows(1));
  TestClock::now_ns += kSecond + 1000;
  EXPECT_TRUE(logs.Allows(4));
  EXPECT_FALSE(logs.Allows(1));
}

TEST(LogTest, AShareIsAPartOfTheLimitAndNeverRejectsAll) {
  Logs logs(9, kSecond, {8, 16});
  TestClock::now_ns = 100 * kSecond;
  logs.dearer_q16 = 3 * aux::kShareOne;
  EXPECT_TRUE(logs.Allows(3));
  EXPECT_FALSE(logs.Allows(1));
  EXPECT_EQ(logs.seen.remaining, 0u);
  TestClock::now_ns += kSecond + 1000;
  EXPECT_TRUE(logs.Allows(9)) << "an empty log serves what fits the limit";
  EXPECT_FALSE(logs.Allows(1));
}

// What other hosts took weighs as a sliding window's counts do, and is over after two lengths.
TEST(LogTest, WhatOthersTookIsNotThereToBeTaken) {
  for (const uint64_t period : {kSecond, 100 * kSecond, 40'000'000 * kSecond / 2}) {
    Logs logs(100, period, {8, 128});
    const uint64_t length = window::LengthNs(period);
    const uint64_t now = TestClock::now_ns = 4 * length + 100 * kSecond;
    ASSERT_TRUE(logs.Allows(10));
    logs.second = logs::others::Make(logs.seen.gen, now + length / 2, length, 30, 40);
    EXPECT_FALSE(logs.Allows(41));
    EXPECT_NEAR(static_cast<double>(logs.seen.remaining), 40, 1);
    EXPECT_TRUE(logs.Allows(39));
    TestClock::now_ns = now + length + 1000;  // our own are over, theirs weigh by a half
    EXPECT_FALSE(logs.Allows(87));
    EXPECT_NEAR(static_cast<double>(logs.seen.remaining), 85, 1);
    EXPECT_EQ(logs.Ask(1, kHash, true), Outcome::kAllowed);
    TestClock::now_ns += logs.seen.reset_after_ns + length;
    EXPECT_TRUE(logs.Allows(100));
    logs.second = logs::others::Make(static_cast<uint16_t>(logs.seen.gen + 1),
                                     TestClock::now_ns + length, length, 90, 90);
    TestClock::now_ns += 2 * length;
    EXPECT_TRUE(logs.Allows(100)) << "of another tenancy";
  }
}

// Two claimers chose two slots, and both were spent from before either knew of the other.
TEST(LogTest, WhatADuplicateTookGoesToTheSlotThatRemains) {
  Logs logs(8, kSecond, {8, 8});
  TestClock::now_ns = 100 * kSecond;
  ASSERT_TRUE(logs.Allows(3));
  const uint32_t lower = logs.index == 0 ? 4 : 0;
  const uint32_t higher = logs.index == 0 ? 0 : logs.index;
  Slot& twin = logs.slots_[lower];
  twin.key = key::Make(FingerprintOf(kHash), Kind::kSlidingLog, 9);
  twin.used = used::Make(9, 0);
  twin.word = payload::Make(TestClock::now_ns, 0);
  ASSERT_TRUE(logs.Allows(4));
  EXPECT_EQ(logs.index, std::min(lower, higher));
  EXPECT_EQ(key::Fp(logs.slots_[std::max(lower, higher)].key), 0u);
  EXPECT_FALSE(logs.Allows(2)) << "three there and four here";
  EXPECT_TRUE(logs.Allows(1));
  TestClock::now_ns += kSecond + 1000;
  EXPECT_TRUE(logs.Allows(8));
}

TEST(LogTest, ATimeThatNobodyCanHaveWrittenIsEmptied) {
  Logs logs(2, kSecond, {8, 8});
  TestClock::now_ns = 100 * kSecond;
  ASSERT_TRUE(logs.Allows(2));
  const uint16_t gen = key::Gen(logs.slots_[logs.index].key);
  for (uint32_t i = 0; i < 2; ++i) {
    logs.entries_[logs.index * 8 + i] = logs::Make(gen, 5'000'000'000);
  }
  EXPECT_TRUE(logs.Allows(2));
  EXPECT_GT(logs.counters_[static_cast<uint32_t>(Counter::kHeals)], 0u);
}

// Whatever stands in it, each check ends, and soon the log counts right again.
TEST(LogTest, RandomMemoryDoesNoHarm) {
  std::mt19937_64 random(24);
  TestClock::now_ns = 1000 * kSecond;
  for (int round = 0; round < 2000; ++round) {
    Logs logs(5, kSecond, {8, 8});
    for (Slot& slot : logs.slots_) {
      for (Cell* cell : {&slot.word, &slot.key, &slot.used, &slot.aux}) {
        if (random() % 2 == 0) *cell = random();
      }
      if (random() % 2 == 0) slot.word = TestClock::now_ns + random() % (4 * kSecond);
    }
    for (Cell& e : logs.entries_) e = random() % 2 == 0 ? random() : logs::Make(1, random());
    for (int i = 0; i < 20; ++i) {
      logs.Ask(1 + random() % 6);
      TestClock::now_ns += random() % kSecond;
    }
    TestClock::now_ns += logs.limit.tau_ns + logs.limit.debt_max_ns + kGraceNs + kSecond;
    for (Slot& slot : logs.slots_) slot.aux = 0;
    logs.Ask(1);
    TestClock::now_ns += 2 * kSecond;
    ASSERT_TRUE(logs.Allows(5)) << round;
    ASSERT_FALSE(logs.Allows(1)) << round;
  }
}

TEST(LogTest, WithoutASlotNoPeriodHoldsMoreThanTheLimit) {
  const Limit limit = logs::MakeLimit(6, kSecond);
  Slot slot{};
  std::mt19937_64 random(25);
  std::deque<std::pair<uint64_t, uint64_t>> admitted;
  TestClock::now_ns = 100 * kSecond;
  uint64_t sum = 0;
  for (int i = 0; i < 20'000; ++i) {
    TestClock::now_ns += random() % (kSecond / 6);
    const uint32_t tokens = 1 + random() % 6;
    const Charge charge = LogCharge(limit, tokens);
    RequestTime<TestClock> time(false, 0);
    Seen seen{};
    if (logs::CheckWithoutLog(slot, charge, time, &seen) != Outcome::kAllowed) continue;
    sum += tokens;
    admitted.emplace_back(TestClock::now_ns, tokens);
    uint64_t within = 0;
    for (const auto& [at, n] : admitted) within += at + kSecond > TestClock::now_ns ? n : 0;
    ASSERT_LE(within, 6u);
    while (admitted.front().first + 2 * kSecond < TestClock::now_ns) admitted.pop_front();
  }
  EXPECT_GT(sum, 1000u);
}

// Threads that take, are denied, and give back: no period holds more than the limit, to the us, and
// what was left is used.
TEST(LogTest, ThreadsTogetherNeverHaveMoreThanTheLimitInAPeriod) {
  constexpr uint64_t kPeriodNs = 5 * kMs;
  constexpr uint64_t kLimit = 50;
  constexpr int kThreads = 4;
  Logs logs(kLimit, kPeriodNs, {8, 64});
  struct Took {
    uint64_t at_ns;
    uint32_t tokens;
  };
  std::vector<Took> took[kThreads];
  std::vector<std::thread> threads;
  TestClock::now_ns = 0;
  const uint64_t end_ns = MonotonicClock::PreciseNs() + 400 * kMs;
  for (int who = 0; who < kThreads; ++who) {
    threads.emplace_back([&, who] {
      std::mt19937_64 random(static_cast<uint64_t>(who));
      while (MonotonicClock::PreciseNs() < end_ns) {
        const auto tokens = static_cast<uint32_t>(1 + random() % (random() % 8 == 0 ? 50 : 4));
        const Charge charge = LogCharge(logs.limit, tokens);
        RequestTime<MonotonicClock> time(false, 0);
        bool claimed = false;
        const uint32_t slot = logs.table().FindOrClaim(kHash, Kind::kSlidingLog, 0,
                                                       logs.EnvAt(time.now_ns()), &claimed);
        if (slot == kNoSlot) continue;
        Seen seen;
        const Table table = logs.table();
        if (logs::CheckLog<Cell>(table, slot, kHash, nullptr, charge, random() % 2 == 0, time,
                                 &seen) != Outcome::kAllowed) {
          continue;
        }
        if (random() % 8 == 0) {
          logs::RefundLog(table.slot(slot), table.log_rows().of(slot), 0, seen.gen,
                          seen.verdict.new_ns, tokens, kPeriodNs, MonotonicClock::PreciseNs());
          continue;
        }
        took[who].push_back({seen.verdict.new_ns, tokens});
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  std::vector<Took> all;
  for (const auto& part : took) all.insert(all.end(), part.begin(), part.end());
  std::sort(all.begin(), all.end(), [](const Took& a, const Took& b) { return a.at_ns < b.at_ns; });
  uint64_t within = 0;
  uint64_t most = 0;
  size_t from = 0;
  for (const Took& t : all) {
    within += t.tokens;
    while (all[from].at_ns + kPeriodNs <= t.at_ns) within -= all[from++].tokens;
    most = std::max(most, within);
  }
  EXPECT_LE(most, kLimit);
  EXPECT_GT(most, kLimit / 2);
}

}  // namespace
}  // namespace sluice::shm
