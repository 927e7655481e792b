// Kinds of word beside the token bucket: how they pass through the slot protocol.

#include "shm/kinds.h"

#include <gtest/gtest.h>

#include <memory>

#include "shm/bucket.h"
#include "shm/slot_table.h"
#include "shm/window_slot.h"

namespace sluice::shm {
namespace {

constexpr uint64_t kSecond = 1'000'000'000;
constexpr uint64_t kCapacity = 64;
using Cell = std::atomic<uint64_t>;

struct TestClock {
  static inline uint64_t now_ns = 0;
  static uint64_t PreciseNs() { return now_ns; }
  static uint64_t CoarseNs() { return now_ns; }
};

class KindsTest : public testing::Test {
 protected:
  KindsTest()
      : slots_(new Slot[kCapacity]()),
        counters_(new Cell[kCounters]()),
        table_(slots_.get(), kCapacity, counters_.get()) {
    for (uint64_t i = 0; i < kCapacity; ++i) slots_[i].used = used::Make(0, 0);
    TestClock::now_ns = 100 * kSecond;
  }

  SlotTable<Cell>::Env Env() const { return {TestClock::now_ns, kSecond, 100 * kSecond}; }

  uint32_t Claim(uint64_t hash, Kind kind) {
    bool claimed = false;
    return table_.FindOrClaim(hash, kind, 0, Env(), &claimed);
  }

  Outcome Spend(uint64_t hash, uint32_t tokens, Seen* seen, bool commit = true) {
    const uint32_t slot = Claim(hash, Kind::kFixedWindow);
    const Charge charge{.cost_ns = 0,
                        .tau_ns = limit_.tau_ns,
                        .debt_max_ns = limit_.debt_max_ns,
                        .tokens = tokens,
                        .dearer_q16 = 0,
                        .admit_always = false,
                        .commit = commit,
                        .kind = Kind::kFixedWindow,
                        .limit = &limit_};
    RequestTime<TestClock> time(/*coarse_serves=*/false, 0);
    return window::CheckWindow<Cell>(slots_[slot], nullptr, FingerprintOf(hash), charge, time,
                                     table_, seen);
  }

  bool Refund(uint64_t hash, const Seen& seen, uint32_t tokens) {
    return window::RefundWindow<Cell>(slots_[table_.Find(hash)], nullptr, FingerprintOf(hash),
                                      seen.gen, seen.verdict.new_ns, tokens, /*index=*/0,
                                      TestClock::now_ns);
  }

  std::unique_ptr<Slot[]> slots_;
  std::unique_ptr<Cell[]> counters_;
  SlotTable<Cell> table_;
  Limit limit_ = MakeLimit(10, 2 * kSecond, 10);
};

TEST_F(KindsTest, AKindHasPlacesOfItsOwnAndTokenBucketsStandWhereTheyStood) {
  EXPECT_EQ(HashOfKind(12345, Kind::kTokenBucket), 12345u);
  EXPECT_NE(FingerprintOf(HashOfKind(12345, Kind::kFixedWindow)), FingerprintOf(12345));
  EXPECT_NE(FingerprintOf(HashOfKind(12345, Kind::kFixedWindow)),
            FingerprintOf(HashOfKind(12345, Kind::kLease)));
}

TEST_F(KindsTest, AWindowCountsUpToItsLimitAndNoFurther) {
  Seen seen;
  EXPECT_EQ(Spend(7 << 20, 4, &seen), Outcome::kAllowed);
  EXPECT_EQ(seen.remaining, 6u);
  EXPECT_EQ(Spend(7 << 20, 7, &seen), Outcome::kDenied);
  EXPECT_EQ(seen.remaining, 6u);
  EXPECT_GE(seen.retry_after_ns, 2 * kSecond);
  EXPECT_LE(seen.retry_after_ns, 2 * kSecond + payload::kStepNs);
  EXPECT_EQ(Spend(7 << 20, 6, &seen), Outcome::kAllowed);
  EXPECT_EQ(Spend(7 << 20, 1, &seen), Outcome::kDenied);
  TestClock::now_ns += seen.retry_after_ns - 1;
  EXPECT_EQ(Spend(7 << 20, 1, &seen), Outcome::kDenied);
  TestClock::now_ns += 1;
  EXPECT_EQ(Spend(7 << 20, 10, &seen), Outcome::kAllowed);
  EXPECT_EQ(Spend(7 << 20, 11, &seen), Outcome::kDenied);
  EXPECT_EQ(seen.retry_after_ns, kNever);
}

TEST_F(KindsTest, ALookSpendsNothing) {
  Seen seen;
  for (int i = 0; i < 3; ++i) EXPECT_EQ(Spend(7 << 20, 10, &seen, false), Outcome::kAllowed);
  EXPECT_EQ(Spend(7 << 20, 10, &seen), Outcome::kAllowed);
}

TEST_F(KindsTest, ARefundCountsInItsOwnWindowOnly) {
  Seen first;
  Seen seen;
  ASSERT_EQ(Spend(7 << 20, 10, &first), Outcome::kAllowed);
  EXPECT_TRUE(Refund(7 << 20, first, 3));
  EXPECT_EQ(Spend(7 << 20, 3, &seen), Outcome::kAllowed);
  TestClock::now_ns += 3 * kSecond;
  EXPECT_FALSE(Refund(7 << 20, first, 7)) << "the window is over";
  ASSERT_EQ(Spend(7 << 20, 10, &seen), Outcome::kAllowed);
  EXPECT_FALSE(Refund(7 << 20, first, 7)) << "it was spent in another window";
}

TEST_F(KindsTest, AWildWordIsHealedToAFullWindow) {
  Seen seen;
  ASSERT_EQ(Spend(7 << 20, 1, &seen), Outcome::kAllowed);
  slots_[table_.Find(7 << 20)].word =
      window::Make(TestClock::now_ns + 50 * kSecond, window::kMaxCount);
  EXPECT_EQ(Spend(7 << 20, 1, &seen), Outcome::kDenied);
  EXPECT_LE(seen.retry_after_ns, 2 * kSecond + payload::kStepNs);
  EXPECT_EQ(counters_[static_cast<uint32_t>(Counter::kHeals)], 1u);
}

// I1: a word with a payload may fall within its tenure, so what comes after stands above any of it.
TEST_F(KindsTest, AFreshWordStandsAboveEveryPayloadOfBefore) {
  const uint64_t hash = 7 << 20;
  const uint32_t slot = Claim(hash, Kind::kLease);
  const uint64_t lent = payload::Make(TestClock::now_ns, payload::kMask);
  slots_[slot].word = lent - 5000;                  // five thousand of its credits are spent
  TestClock::now_ns += kSecond + payload::kStepNs;  // and it has only just expired
  ASSERT_GE(TestClock::now_ns, payload::TimeNs(lent));
  for (uint64_t other = 1; other < 4 * kCapacity; ++other) Claim(other << 19 | other, Kind::kLease);
  ASSERT_NE(table_.Find(hash), slot) << "the slot was to pass on";
  EXPECT_FALSE(word::IsDead(slots_[slot].word));
  EXPECT_GT(slots_[slot].word, lent);
  EXPECT_EQ(payload::Value(slots_[slot].word), 0u);
}

// A duplicate's count goes to the slot that remains, as a token bucket's debt does.
TEST_F(KindsTest, ADuplicateOfAWindowIsCountedInItsWinner) {
  const uint64_t hash = 7 << 20;
  Seen seen;
  ASSERT_EQ(Spend(hash, 4, &seen), Outcome::kAllowed);
  const uint32_t first = table_.Find(hash);
  const uint32_t group = first / 4 * 4;
  const uint32_t other = group + (first % 4 + 1) % 4;
  slots_[other].word = slots_[first].word.load();
  slots_[other].key = slots_[first].key.load();
  slots_[other].used = slots_[first].used.load();
  const uint32_t winner = table_.ResolveDuplicates(hash, Env());
  EXPECT_EQ(winner, std::min(first, other));
  EXPECT_EQ(Spend(hash, 3, &seen), Outcome::kDenied);
  EXPECT_EQ(seen.remaining, 2u);
}

TEST_F(KindsTest, TokenBucketsBeginAtTheirTimeExactly) {
  const uint32_t slot = Claim(7 << 20, Kind::kTokenBucket);
  EXPECT_EQ(slots_[slot].word, TestClock::now_ns / 1000 * 1000);
}

}  // namespace
}  // namespace sluice::shm
