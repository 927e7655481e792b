// Requests of a class in windows and logs, mixed with others in one bucket: against the references
// of window_test.cc and log_test.cc, by the part of the limit that the class may use.
#include <gtest/gtest.h>

#include <atomic>
#include <random>
#include <thread>
#include <vector>

#include "shm/policy_view.h"
#include "tests/shm/log_reference.h"
#include "tests/shm/window_reference.h"

namespace sluice::shm {
namespace {

// What a class may use, of a part that a file can give it.
uint64_t RandomPart(std::mt19937_64& random, uint64_t limit) {
  const uint64_t most = PartAbove(limit, static_cast<uint16_t>(random() % 65530));
  return random() % 4 == 0 ? limit : std::max<uint64_t>(most, 1);
}

template <class Reference>
void Compare(Kind kind, uint64_t seed) {
  CompareWithReference<Reference>(
      kind, seed, /*rounds=*/1000, /*checks=*/400,
      [](std::mt19937_64& random, uint64_t limit, uint64_t costs) {
        const uint64_t most = RandomPart(random, limit);
        return Asked{random() % 16 == 0 ? most + random() % 2 : 1 + random() % costs, most};
      });
}

TEST(ClassesTest, AFixedWindowAdmitsAClassUpToItsPart) { Compare<Fixed>(Kind::kFixedWindow, 31); }

TEST(ClassesTest, ASlidingWindowAdmitsAClassUpToItsPart) {
  Compare<Sliding>(Kind::kSlidingWindow, 32);
}

// "When again?" and "how many are left?" are the class's: exact, with shares and without.
TEST(ClassesTest, AWindowTellsAClassWhatIsThereForIt) {
  std::mt19937_64 random(33);
  int denied = 0;
  int early = 0;
  for (int round = 0; round < 3000; ++round) {
    const Kind kind = random() % 2 == 0 ? Kind::kFixedWindow : Kind::kSlidingWindow;
    const uint64_t limit = RandomLimit(random);
    const uint64_t period = RandomPeriod(random);
    Words words = WordsOf(kind, limit, period);
    const auto dearer =
        random() % 2 == 0
            ? 0u
            : static_cast<uint32_t>(aux::kShareOne + random() % (20 * aux::kShareOne));
    uint64_t now = kSecond + random() % (1ull << 50);
    words.word = window::FreshWord(now);
    for (int i = 0; i < 60; ++i) {
      now += random() % (period / 10);
      const uint64_t most = RandomPart(random, limit);
      const uint64_t n = 1 + random() % std::max<uint64_t>(1, most / (1 + random() % 8));
      const Measured m = words.Ask(n, now, dearer, most);
      EXPECT_EQ(words.Look(most + 1, now, dearer, most).retry_after_ns, kNever);
      if (m.allowed) {
        ASSERT_EQ(m.retry_after_ns, 0u);
        if (dearer != 0) continue;
        if (m.remaining != 0) {
          ASSERT_TRUE(words.Look(m.remaining, now, 0, most).allowed);
        }
        if (m.remaining < most && (kind == Kind::kFixedWindow || UnitOf(limit) == 1)) {
          ASSERT_FALSE(words.Look(m.remaining + 1, now, 0, most).allowed);
        }
        continue;
      }
      ++denied;
      ASSERT_NE(m.retry_after_ns, kNever);
      ASSERT_TRUE(words.Look(n, now + m.retry_after_ns, dearer, most).allowed) << limit << " " << n;
      ASSERT_FALSE(words.Look(n, now + m.retry_after_ns - 1, dearer, most).allowed);
      early += words.Look(n, now, dearer).allowed ? 1 : 0;
    }
  }
  EXPECT_GT(denied, 10'000);
  EXPECT_GT(early, 1000) << "what is kept is there for who may have it";
}

// A share of a third, and of that the class's half.
TEST(ClassesTest, AClassHasItsPartOfAShare) {
  for (const Kind kind : {Kind::kFixedWindow, Kind::kSlidingWindow}) {
    Words words = WordsOf(kind, 600, 60 * kSecond);
    const uint64_t now = 100 * kSecond;
    words.word = window::FreshWord(now);
    const uint32_t third = 3 * aux::kShareOne;
    uint64_t low = 0;
    while (words.Ask(1, now, third, 300).allowed) ++low;
    uint64_t all = low;
    while (words.Ask(1, now, third).allowed) ++all;
    EXPECT_EQ(low, 100u);
    EXPECT_EQ(all, 200u);
  }
  Logs logs(60, kSecond, {8, 64});
  TestClock::now_ns = 100 * kSecond;
  logs.dearer_q16 = 3 * aux::kShareOne;
  logs.most = 30;
  for (int i = 0; i < 10; ++i) EXPECT_TRUE(logs.Allows(1));
  EXPECT_FALSE(logs.Allows(1));
  logs.most = kNever;
  for (int i = 0; i < 10; ++i) EXPECT_TRUE(logs.Allows(1));
  EXPECT_FALSE(logs.Allows(1));
}

TEST(ClassesTest, ALogAdmitsAClassUpToItsPartAndTellsWhatIsThereForIt) {
  std::mt19937_64 random(34);
  int denied = 0;
  for (int round = 0; round < 400; ++round) {
    const uint64_t limit = 1 + random() % (1u << random() % 9);
    const uint64_t period =
        random() % 3 == 0 ? 1 + random() % kSecond : kMs * (1 + random() % 9999);
    Logs logs(limit, period, {8, EntriesFor(limit)});
    Reference reference{limit, period, {}};
    uint64_t now = kSecond + random() % (1ull << 52);
    const uint64_t costs = std::max<uint64_t>(1, limit >> random() % 6);
    for (int i = 0; i < 300; ++i) {
      TestClock::now_ns = now +=
          random() % 8 == 0 ? random() % (3 * period) : random() % (period / 8 + 1);
      logs.most = RandomPart(random, limit);
      const uint64_t n = random() % 16 == 0 ? logs.most + random() % 2 : 1 + random() % costs;
      const bool brief = random() % 4 == 0;
      const bool allowed = logs.Ask(n, kHash, brief) == Outcome::kAllowed;
      ASSERT_EQ(allowed, reference.Ask(n, now, logs.most))
          << logs.most << " of " << limit << " n " << n << " round " << round << "." << i;
      if (brief) continue;
      const uint64_t live = reference.Live(now);
      ASSERT_EQ(logs.seen.remaining, logs.most - std::min(live, logs.most));
      if (allowed || n > logs.most) {
        ASSERT_EQ(logs.seen.retry_after_ns, allowed ? 0 : kNever);
        continue;
      }
      ++denied;
      const uint64_t retry_ns = logs.seen.retry_after_ns;
      TestClock::now_ns = now + retry_ns - 1;
      ASSERT_EQ(logs.Ask(n, kHash, brief, /*commit=*/false), Outcome::kDenied);
      TestClock::now_ns = now + retry_ns;
      ASSERT_EQ(logs.Ask(n, kHash, brief, /*commit=*/false), Outcome::kAllowed);
      TestClock::now_ns = now;
    }
  }
  EXPECT_GT(denied, 10'000);
}

TEST(ClassesTest, WithoutASlotAClassHasItsPart) {
  Limit low = logs::MakeLimit(10, kSecond);
  const Limit whole = low;
  low.burst = 4;
  Slot slot{};
  TestClock::now_ns = 100 * kSecond;
  const auto allows = [&](const Limit& limit, uint64_t tokens, uint64_t* retry_ns) {
    const Charge charge = LogCharge(limit, tokens);
    RequestTime<TestClock> time(false, 0);
    Seen seen{};
    const Outcome outcome = logs::CheckWithoutLog(slot, charge, time, &seen);
    *retry_ns = seen.retry_after_ns;
    return outcome == Outcome::kAllowed;
  };
  uint64_t retry_ns = 0;
  EXPECT_FALSE(allows(low, 5, &retry_ns));
  EXPECT_EQ(retry_ns, kNever);
  EXPECT_TRUE(allows(low, 4, &retry_ns));
  EXPECT_FALSE(allows(low, 1, &retry_ns));
  EXPECT_NE(retry_ns, kNever);
  EXPECT_TRUE(allows(whole, 6, &retry_ns));
  EXPECT_FALSE(allows(whole, 1, &retry_ns));
}

// Threads of a low class and of the highest at one log: the low ones never find more used than they
// may, however they meet, and the rest is there for the others.
TEST(ClassesTest, ThreadsOfAClassTogetherNeverHaveMoreThanItsPart) {
  constexpr uint64_t kLimit = 48;
  constexpr uint64_t kLow = 24;
  constexpr int kThreads = 4;
  for (int round = 0; round < 30; ++round) {
    Logs logs(kLimit, 3600 * kSecond, {8, 64});
    Limit low = logs.limit;
    low.burst = kLow;
    bool claimed = false;
    const uint64_t now_ns = MonotonicClock::PreciseNs();
    const uint32_t slot =
        logs.table().FindOrClaim(kHash, Kind::kSlidingLog, 0, logs.EnvAt(now_ns), &claimed);
    ASSERT_NE(slot, kNoSlot);
    std::atomic<uint64_t> of_low{0};
    std::atomic<int> ready{0};
    std::vector<std::thread> threads;
    for (int who = 0; who < kThreads; ++who) {
      threads.emplace_back([&] {
        ready.fetch_add(1);
        while (ready.load() < kThreads) std::this_thread::yield();
        for (int i = 0; i < 40; ++i) {
          const Charge charge = LogCharge(low, 1);
          RequestTime<MonotonicClock> time(false, 0);
          Seen seen;
          const Table table = logs.table();
          of_low += logs::CheckLog<Cell>(table, slot, kHash, nullptr, charge, /*brief=*/true, time,
                                         &seen) == Outcome::kAllowed
                        ? 1
                        : 0;
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(of_low, kLow);
  }
}

}  // namespace
}  // namespace sluice::shm
