#include "shm/slot_table.h"

#include <gtest/gtest.h>

#include <memory>
#include <random>
#include <set>
#include <thread>
#include <vector>

#include "shm/bucket.h"
#include "shm/take.h"

namespace sluice::shm {
namespace {

constexpr uint64_t kSecond = 1'000'000'000;
using Cell = std::atomic<uint64_t>;
using Table = SlotTable<Cell>;

struct TestClock {
  static inline uint64_t now_ns = 100 * kSecond;
  static inline uint64_t coarse_lag_ns = 0;
  static uint64_t PreciseNs() { return now_ns; }
  static uint64_t CoarseNs() { return now_ns - coarse_lag_ns; }
};

class SlotTableTest : public testing::Test {
 protected:
  explicit SlotTableTest(uint64_t capacity = 1024)
      : slots_(new Slot[capacity]()),
        dirty_(new Cell[capacity / 64]()),
        counters_(new Cell[kCounters]()),
        denied_(new Cell[capacity]()),
        table_(slots_.get(), capacity, counters_.get()) {
    for (uint64_t i = 0; i < capacity; ++i) slots_[i].used = used::Make(0, 0);
    TestClock::now_ns = 100 * kSecond;
    TestClock::coarse_lag_ns = 0;
  }

  Table::Env Env() const { return {TestClock::now_ns, kSecond, 10 * kSecond}; }
  uint64_t Counted(Counter c) const { return counters_[static_cast<uint32_t>(c)]; }

  uint32_t Claim(uint64_t hash, bool* claimed = nullptr) {
    bool ignored;
    return table_.FindOrClaim(hash, Kind::kTokenBucket, 0, Env(), claimed ? claimed : &ignored);
  }

  Outcome Spend(uint64_t hash, const Limit& limit, uint64_t tokens = 1, Seen* seen = nullptr) {
    const uint32_t slot = Claim(hash);
    if (slot == kNoSlot) return Outcome::kGaveUp;
    Charge charge{.cost_ns = CostNs(tokens, limit.period_ns, limit.limit),
                  .tau_ns = limit.tau_ns,
                  .debt_max_ns = limit.debt_max_ns,
                  .tokens = static_cast<uint32_t>(tokens),
                  .commit = true};
    Seen own;
    RequestTime<TestClock> time(TestClock::coarse_lag_ns != 0, 4'000'000);
    const Outcome outcome = CheckSlot(slots_[slot], FingerprintOf(hash), charge, time, table_,
                                      seen != nullptr ? seen : &own);
    if (outcome == Outcome::kAllowed) {
      AddUse(slots_[slot], dirty_.get(), slot, static_cast<uint32_t>(tokens));
    }
    return outcome;
  }

  // Spend, after settling what stands dead in the key's slot, and again where it was lost.
  Outcome SpendAsClientsDo(uint64_t hash, const Limit& limit) {
    Outcome outcome = Outcome::kLost;
    for (int restart = 0; restart < kMaxRestarts && outcome == Outcome::kLost; ++restart) {
      const uint32_t slot = table_.Find(hash);
      const uint64_t w = slot == kNoSlot ? 0 : slots_[slot].word.load();
      if (word::IsDead(w)) table_.Settle(slot, w, TestClock::now_ns);
      outcome = Spend(hash, limit);
    }
    return outcome;
  }

  std::unique_ptr<Slot[]> slots_;
  std::unique_ptr<Cell[]> dirty_;
  std::unique_ptr<Cell[]> counters_;
  std::unique_ptr<Cell[]> denied_;
  Table table_;
};

const Limit kTen = MakeLimit(10, kSecond, 10);

TEST_F(SlotTableTest, AKeyIsFoundWhereItWasClaimed) {
  bool claimed = false;
  const uint32_t slot = Claim(0x1234'5678'9abc'def0, &claimed);
  ASSERT_NE(slot, kNoSlot);
  EXPECT_TRUE(claimed);
  EXPECT_EQ(Claim(0x1234'5678'9abc'def0, &claimed), slot);
  EXPECT_FALSE(claimed);
  EXPECT_EQ(table_.Find(0x1234'5678'9abc'def0), slot);
}

TEST_F(SlotTableTest, HalfOfTheSlotsCanBeFilledAlmostWithoutLoss) {
  std::mt19937_64 random(5);
  int lost = 0;
  for (int i = 0; i < 512; ++i) lost += Spend(random(), kTen) == Outcome::kGaveUp ? 1 : 0;
  EXPECT_LE(lost, 2) << "the expected loss at half load is 0.0008 %";
}

TEST_F(SlotTableTest, AFullNeighbourhoodIsToldAndNotOverwritten) {
  // Keys that share both groups: the same low bits and the same second group.
  std::vector<uint64_t> keys;
  std::mt19937_64 random(6);
  const uint64_t base = random();
  const uint32_t first = table_.FirstGroup(base);
  const uint32_t second = table_.SecondGroup(base);
  while (keys.size() < 9) {
    const uint64_t h = (random() & ~uint64_t{255}) | (base & 255);
    if (table_.FirstGroup(h) == first && table_.SecondGroup(h) == second) keys.push_back(h);
  }
  for (int i = 0; i < 8; ++i) EXPECT_EQ(Spend(keys[i], kTen), Outcome::kAllowed);
  EXPECT_EQ(Claim(keys[8]), kNoSlot);
  TestClock::now_ns += 3 * kSecond;  // all expired, the grace over
  EXPECT_NE(Claim(keys[8]), kNoSlot);
  EXPECT_EQ(Counted(Counter::kEvictions), 1u);
}

TEST_F(SlotTableTest, AnEvictedKeysUseIsNotChargedToTheNextTenant) {
  const uint64_t a = 0xaaaa'aaaa'aaaa'aa00;
  ASSERT_EQ(Spend(a, kTen, 7), Outcome::kAllowed);
  const uint32_t slot = table_.Find(a);
  TestClock::now_ns += 10 * kSecond;
  // The other seven slots stay busy, so the next key must take this one.
  std::mt19937_64 random(9);
  uint64_t b = 0;
  while (table_.Find(b) != slot || b == 0) {
    const uint64_t h = (random() & ~uint64_t{255}) | (a & 255);
    const uint32_t got = Claim(h);
    if (got == slot) b = h;
    if (got != kNoSlot && got != slot) slots_[got].word = TestClock::now_ns + kSecond;
  }
  const uint64_t key = slots_[slot].key;
  EXPECT_EQ(key::Fp(key), FingerprintOf(b));
  EXPECT_EQ(TakeUse(slots_[slot], key), 0);
  EXPECT_EQ(Counted(Counter::kAbandonedUse), 7u);
}

TEST_F(SlotTableTest, WordsGrowOverTenures) {
  const uint64_t a = 0x77;
  ASSERT_EQ(Spend(a, kTen, 10), Outcome::kAllowed);
  const uint32_t slot = table_.Find(a);
  const uint64_t before = slots_[slot].word;
  TestClock::now_ns += 5 * kSecond;
  slots_[slot].key = key::Make(0, Kind::kTokenBucket, 0);  // as if emptied
  while (Claim(a) != slot) {
  }
  EXPECT_GT(slots_[slot].word, before);
}

// A claimer killed after each of its steps: whoever comes next finishes or takes back.
TEST_F(SlotTableTest, AClaimerKilledAfterStep2BlocksNobody) {
  const uint64_t a = 0x4242'0000'0000'0042;
  const uint32_t slot = Claim(a);
  TestClock::now_ns += 10 * kSecond;
  slots_[slot].word = word::Dead(key::Gen(slots_[slot].key), TestClock::now_ns / 1000);
  table_.Settle(slot, slots_[slot].word, TestClock::now_ns);
  EXPECT_EQ(Spend(a, kTen), Outcome::kAllowed);
}

TEST_F(SlotTableTest, AClaimerKilledAfterStep3IsFinishedByTheNextReader) {
  const uint64_t a = 0x4242'0000'0000'0042;
  const uint32_t slot = Claim(a);
  const uint64_t k = slots_[slot].key;
  slots_[slot].word = word::Dead(static_cast<uint16_t>(key::Gen(k) - 1), TestClock::now_ns / 1000);
  slots_[slot].used = used::Make(static_cast<uint16_t>(key::Gen(k) - 1), 3);
  table_.Settle(slot, slots_[slot].word, TestClock::now_ns);
  EXPECT_FALSE(word::IsDead(slots_[slot].word));
  EXPECT_EQ(used::Count(slots_[slot].used), 0);
  EXPECT_EQ(used::Gen(slots_[slot].used), key::Gen(k));
  EXPECT_EQ(Counted(Counter::kAbandonedUse), 3u);
  EXPECT_EQ(Spend(a, kTen), Outcome::kAllowed);
}

TEST_F(SlotTableTest, ADeadWordOfNoKnownGenIsRepaired) {
  const uint64_t a = 0x99;
  const uint32_t slot = Claim(a);
  slots_[slot].word = word::Dead(static_cast<uint16_t>(key::Gen(slots_[slot].key) + 77), 1);
  for (int i = 0; i < 4 && word::IsDead(slots_[slot].word); ++i) {
    table_.Settle(slot, slots_[slot].word, TestClock::now_ns);
  }
  EXPECT_FALSE(word::IsDead(slots_[slot].word));
  EXPECT_EQ(Counted(Counter::kRepairs), 1u);
}

TEST_F(SlotTableTest, OfTwoSlotsWithOneKeyTheLowestRemainsAndKeepsBothDebts) {
  const uint64_t a = 0x1000'0000'0000'0001;
  const uint32_t winner = table_.FirstGroup(a);
  const uint32_t loser = winner + 2;
  const uint64_t now = TestClock::now_ns;
  for (const uint32_t i : {winner, loser}) {
    slots_[i].key = key::Make(FingerprintOf(a), Kind::kTokenBucket, 1);
    slots_[i].used = used::Make(1, 0);
  }
  slots_[winner].word = now + 300;
  slots_[loser].word = now + 500;
  slots_[loser].used = used::Make(1, 4);
  EXPECT_EQ(table_.ResolveDuplicates(a, Env()), winner);
  EXPECT_EQ(slots_[winner].word, now + 800);
  EXPECT_EQ(key::Fp(slots_[loser].key), 0u);
  EXPECT_EQ(TakeUse(slots_[winner], slots_[winner].key), 4);
  EXPECT_EQ(Counted(Counter::kDuplicates), 1u);
}

TEST_F(SlotTableTest, FoldingADuplicateWithAStaleClockNeverLowersTheWinner) {
  const uint64_t a = 0x1000'0000'0000'0001;
  const uint32_t winner = table_.FirstGroup(a);
  for (const uint32_t i : {winner, winner + 1}) {
    slots_[i].key = key::Make(FingerprintOf(a), Kind::kTokenBucket, 1);
    slots_[i].used = used::Make(1, 0);
    slots_[i].word = TestClock::now_ns + kSecond;
  }
  Table::Env stale = Env();
  stale.now_ns -= 5 * kSecond;
  table_.ResolveDuplicates(a, stale);
  EXPECT_GE(slots_[winner].word, TestClock::now_ns + kSecond);
}

// Refunds may have come after the daemon took the use that they give back.
TEST_F(SlotTableTest, ADuplicateWhoseRefundsOutweighItsUseKeepsItsDebt) {
  const uint64_t a = 0x1000'0000'0000'0001;
  const uint32_t winner = table_.FirstGroup(a);
  for (const uint32_t i : {winner, winner + 1}) {
    slots_[i].key = key::Make(FingerprintOf(a), Kind::kTokenBucket, 1);
    slots_[i].used = used::Make(1, i == winner ? 0 : -1);
    slots_[i].word = TestClock::now_ns + kSecond;
  }
  ASSERT_EQ(table_.ResolveDuplicates(a, Env()), winner);
  EXPECT_EQ(slots_[winner].word, TestClock::now_ns + 2 * kSecond);
  EXPECT_EQ(used::Count(slots_[winner].used), -1);
}

TEST_F(SlotTableTest, ADenyWritesNothing) {
  const uint64_t a = 0x31;
  ASSERT_EQ(Spend(a, kTen, 10), Outcome::kAllowed);
  const Slot& s = slots_[table_.Find(a)];
  const uint64_t word = s.word;
  const uint64_t used = s.used;
  const uint64_t aux = s.aux;
  for (int i = 0; i < 100; ++i) ASSERT_EQ(Spend(a, kTen), Outcome::kDenied);
  EXPECT_EQ(s.word, word);
  EXPECT_EQ(s.used, used);
  EXPECT_EQ(s.aux, aux);
}

TEST_F(SlotTableTest, AWildWordIsHealedOnDenyAndAdmitsAgainWithinABurstTime) {
  const uint64_t a = 0x55;
  const uint32_t slot = Claim(a);
  for (const uint64_t wild :
       {uint64_t{1} << 62, (uint64_t{1} << 63) - 1, TestClock::now_ns + 3600 * kSecond}) {
    slots_[slot].word = wild;
    Spend(a, kTen);
    EXPECT_LE(slots_[slot].word, TestClock::now_ns + kTen.tau_ns);
    TestClock::now_ns += kTen.tau_ns;
    EXPECT_EQ(Spend(a, kTen), Outcome::kAllowed);
  }
}

// governor#299: a clock that stood behind another thread's denied what was there.
TEST_F(SlotTableTest, ACoarseClockIsReadPreciselyBeforeADenyItCouldExplain) {
  const uint64_t a = 0x66;
  ASSERT_EQ(Spend(a, kTen, 10), Outcome::kAllowed);
  TestClock::now_ns += kTen.interval_ns;  // one token is back
  TestClock::coarse_lag_ns = 4'000'000;
  EXPECT_EQ(Spend(a, kTen), Outcome::kAllowed);
  EXPECT_EQ(Spend(a, kTen), Outcome::kDenied);
}

TEST_F(SlotTableTest, AFreshTenantStartsWithAFullBucketAndNoUse) {
  std::mt19937_64 random(11);
  for (int i = 0; i < 3000; ++i) {
    TestClock::now_ns += kSecond / 8;
    const uint64_t h = random();
    uint64_t n = 0;
    while (n < 20 && Spend(h, kTen) == Outcome::kAllowed) ++n;
    ASSERT_EQ(n, 10u) << i;
  }
  EXPECT_GT(Counted(Counter::kEvictions), 1000u);
}

TEST_F(SlotTableTest, UseIsTakenOnceAndDirtyBitsAreSetOnTheEdgeOnly) {
  const uint64_t a = 0x71;
  ASSERT_EQ(Spend(a, kTen, 3), Outcome::kAllowed);
  const uint32_t slot = table_.Find(a);
  EXPECT_NE(dirty_[slot / 64] & (1ull << (slot % 64)), 0u);
  dirty_[slot / 64] = 0;
  ASSERT_EQ(Spend(a, kTen, 2), Outcome::kAllowed);
  EXPECT_EQ(dirty_[slot / 64], 0u) << "the flag was still set";
  ClearDirty(slots_[slot]);
  EXPECT_EQ(TakeUse(slots_[slot], slots_[slot].key), 5);
  EXPECT_EQ(TakeUse(slots_[slot], slots_[slot].key), 0);
  ASSERT_EQ(Spend(a, kTen, 1), Outcome::kAllowed);
  EXPECT_NE(dirty_[slot / 64] & (1ull << (slot % 64)), 0u);
}

TEST_F(SlotTableTest, ARefundOfALateDecisionGivesNothingBackTwice) {
  const uint64_t a = 0x81;
  Seen first;
  ASSERT_EQ(Spend(a, kTen, 4, &first), Outcome::kAllowed);
  const uint32_t slot = table_.Find(a);
  EXPECT_TRUE(RefundSlot(slots_[slot], FingerprintOf(a), first.gen, first.verdict.new_ns,
                         first.cost_ns, TestClock::now_ns));
  EXPECT_EQ(slots_[slot].word, TestClock::now_ns);
  ASSERT_EQ(Spend(a, kTen, 4, &first), Outcome::kAllowed);
  TestClock::now_ns += kSecond;
  EXPECT_FALSE(RefundSlot(slots_[slot], FingerprintOf(a), first.gen, first.verdict.new_ns,
                          first.cost_ns, TestClock::now_ns));
}

TEST_F(SlotTableTest, ARefundToAnotherTenantIsRefused) {
  const uint64_t a = 0x82;
  Seen seen;
  ASSERT_EQ(Spend(a, kTen, 4, &seen), Outcome::kAllowed);
  const uint32_t slot = table_.Find(a);
  EXPECT_FALSE(RefundSlot(slots_[slot], FingerprintOf(a), static_cast<uint16_t>(seen.gen + 1),
                          seen.verdict.new_ns, seen.cost_ns, TestClock::now_ns));
  EXPECT_FALSE(RefundSlot(slots_[slot], FingerprintOf(a) + 1, seen.gen, seen.verdict.new_ns,
                          seen.cost_ns, TestClock::now_ns));
}

// Several refunds and spends in any order never admit more than the bucket holds.
TEST_F(SlotTableTest, RefundsNeverLetMoreThroughThanRateAndBurst) {
  for (uint64_t seed = 0; seed < 200; ++seed) {
    std::mt19937_64 random(seed);
    const uint64_t h = random();
    const Limit limit = MakeLimit(1, kSecond, 3);
    const uint64_t start = TestClock::now_ns;
    double kept = 0;
    std::vector<Seen> open;
    for (int i = 0; i < 400; ++i) {
      TestClock::now_ns += random() % (kSecond / 2);
      Seen seen;
      if (Spend(h, limit, 1, &seen) == Outcome::kAllowed) {
        kept += 1;
        open.push_back(seen);
      }
      if (!open.empty() && random() % 3 == 0) {
        const size_t at = random() % open.size();
        const Seen d = open[at];
        open.erase(open.begin() + static_cast<std::ptrdiff_t>(at));
        const uint32_t slot = table_.Find(h);
        if (slot == kNoSlot) continue;
        const uint64_t back = RefundNs(d.verdict.new_ns, d.cost_ns, TestClock::now_ns);
        if (RefundSlot(slots_[slot], FingerprintOf(h), d.gen, d.verdict.new_ns, d.cost_ns,
                       TestClock::now_ns)) {
          kept -= static_cast<double>(back) / static_cast<double>(limit.interval_ns);
        }
      }
      const double may = 3 + static_cast<double>(TestClock::now_ns - start) / 1e9;
      ASSERT_LE(kept, may + 1e-6) << "seed " << seed << " step " << i;
    }
  }
}

TEST_F(SlotTableTest, FoldSetsTheWordFromGlobalStateAndOwnUse) {
  const uint64_t a = 0x91;
  ASSERT_EQ(Spend(a, kTen, 3), Outcome::kAllowed);
  const uint32_t slot = table_.Find(a);
  const uint64_t now = TestClock::now_ns;
  const auto unit = [](uint64_t n) { return n * 100; };
  EXPECT_TRUE(FoldWord(slots_[slot], slots_[slot].key, now, now + 5000, 2, kSecond, unit));
  EXPECT_EQ(slots_[slot].word, now + 5000 + 500) << "3 in the slot, 2 taken and unsent";
  EXPECT_TRUE(FoldWord(slots_[slot], slots_[slot].key, now, now + 5 * kSecond, 0, kSecond, unit));
  EXPECT_EQ(slots_[slot].word, now + kSecond) << "held at its ceiling";
  EXPECT_TRUE(FoldWord(slots_[slot], slots_[slot].key, now, now - 300, 2, kSecond, unit));
  EXPECT_EQ(slots_[slot].word, now + 200) << "300 ns of refill pay for three of the five";
  EXPECT_TRUE(FoldWord(slots_[slot], slots_[slot].key, now, now - kSecond, 2, kSecond, unit));
  EXPECT_EQ(slots_[slot].word, now) << "full again";
  EXPECT_FALSE(FoldWord(slots_[slot], slots_[slot].key + 1, now, now, 0, kSecond, unit));
}

TEST_F(SlotTableTest, RandomMemoryNeverHangsAndIsRightAgainWithinABurstTime) {
  std::mt19937_64 random(21);
  for (int round = 0; round < 200; ++round) {
    for (uint64_t i = 0; i < table_.capacity(); ++i) {
      slots_[i].word = round % 3 == 0 ? random() : random() >> (random() % 64);
      slots_[i].key = random();
      slots_[i].used = random();
      slots_[i].aux = random() & ~(0xffffffffull << 32);
    }
    const uint64_t h = random();
    for (int i = 0; i < 50; ++i) Spend(h, kTen);
    TestClock::now_ns += kTen.tau_ns + kTen.debt_max_ns + 20 * kSecond;
    uint64_t n = 0;
    while (n < 40 && Spend(h, kTen) == Outcome::kAllowed) ++n;
    EXPECT_EQ(n, 10u) << "round " << round;
  }
}

// What a hostile client would write: edges of every range, the right fingerprint everywhere, dead
// words of every gen, in all slots alike and in cycles.
TEST_F(SlotTableTest, AdversarialMemoryNeverHangsAndIsRightAgainWithinABurstTime) {
  const uint64_t h = 0x1234'5678'9abc'def0;
  const uint64_t fp = FingerprintOf(h);
  const auto odd_kind = static_cast<Kind>(7);
  const uint64_t edge = kTen.tau_ns + kTen.debt_max_ns;
  const std::vector<uint64_t> keys = {0, ~0ull, key::Make(fp, Kind::kTokenBucket, 0),
                                      key::Make(fp, odd_kind, 0xffff),
                                      key::Make(fp ^ 1, Kind::kTokenBucket, 7)};
  const std::vector<uint64_t> uses = {
      0, ~0ull, 1ull << 63, used::Make(0, 0), used::Make(7, -1), used::Make(0xffff, 1 << 30)};
  for (size_t round = 0; round < 2000; ++round) {
    const uint64_t now = TestClock::now_ns;
    const std::vector<uint64_t> words = {0,
                                         1,
                                         ~0ull,
                                         1ull << 63,
                                         (1ull << 63) - 1,
                                         now,
                                         now + kTen.tau_ns,
                                         now + edge,
                                         now + edge + 1,
                                         now + (1ull << 61),
                                         word::Dead(0, 0),
                                         word::Dead(7, now / 1000),
                                         word::Dead(0xffff, (1ull << 46) - 1)};
    const size_t step = round % 4;  // 0: all slots alike
    for (uint64_t i = 0; i < table_.capacity(); ++i) {
      slots_[i].word = words[(round + i * step) % words.size()];
      slots_[i].key = keys[(round / 13 + i * step) % keys.size()];
      slots_[i].used = uses[(round / 7 + i * step) % uses.size()];
      slots_[i].aux = round % 5 == 0 ? 0xffffffff : 0;
    }
    for (int i = 0; i < 50; ++i) SpendAsClientsDo(h, kTen);
    TestClock::now_ns += edge + 20 * kSecond;
    uint64_t n = 0;
    while (n < 40 && SpendAsClientsDo(h, kTen) == Outcome::kAllowed) ++n;
    ASSERT_EQ(n, 10u) << "round " << round;
  }
}

TEST_F(SlotTableTest, ThreadsOnOneKeyAdmitTheBurstTogether) {
  for (int round = 0; round < 20; ++round) {
    TestClock::now_ns += 100 * kSecond;
    const Limit limit = MakeLimit(1000, 1000 * kSecond, 1000);
    std::atomic<uint64_t> admitted{0};
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back([&] {
        for (int i = 0; i < 500; ++i) {
          if (Spend(static_cast<uint64_t>(round) << 20 | 0xb1, limit) == Outcome::kAllowed) {
            ++admitted;
          }
        }
      });
    }
    for (std::thread& t : threads) t.join();
    // Claims may race into a duplicate for an instant: its debt is folded, so at rest it is exact.
    EXPECT_LE(admitted, 1000u + 1000u * Counted(Counter::kDuplicates));
    EXPECT_GE(admitted, 1000u);
  }
}

class SmallTableTest : public SlotTableTest {
 protected:
  SmallTableTest() : SlotTableTest(64) {}
};

TEST_F(SmallTableTest, ThreadsThatCrowdASmallTableLoseNoSlotForGood) {
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([this, t] {
      std::mt19937_64 random(static_cast<uint64_t>(t));
      for (int i = 0; i < 20'000; ++i) {
        bool claimed;
        // Each thread has its own idea of now: words expire under the others' feet.
        const Table::Env env{100 * kSecond + random() % (200 * kSecond), 0, 500 * kSecond};
        table_.FindOrClaim(random() % 4096 * 0x9e3779b97f4a7c15, Kind::kTokenBucket, 0, env,
                           &claimed);
      }
    });
  }
  for (std::thread& t : threads) t.join();
  TestClock::now_ns = 5000 * kSecond;
  for (uint32_t i = 0; i < 64; ++i) {
    for (int tries = 0; tries < 4 && word::IsDead(slots_[i].word); ++tries) {
      table_.Settle(i, slots_[i].word, TestClock::now_ns);
    }
    EXPECT_FALSE(word::IsDead(slots_[i].word)) << i;
    EXPECT_EQ(used::Gen(slots_[i].used), key::Gen(slots_[i].key)) << i;
  }
}

}  // namespace
}  // namespace sluice::shm
