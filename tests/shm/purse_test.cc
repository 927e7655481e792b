// The daemon's hand in a word that clients spend from at the same time.
#include "shm/purse.h"

#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <thread>
#include <vector>

#include "shm/slot_table.h"

namespace sluice::shm {
namespace {

constexpr uint64_t kSecondNs = 1'000'000'000;
constexpr uint64_t kNowNs = 100 * kSecondNs;
constexpr uint64_t kExpiryNs = kNowNs + kSecondNs;
constexpr uint64_t kKey = key::Make(77, Kind::kLease, 3);

class PurseTest : public testing::Test {
 protected:
  PurseTest() {
    slot_.key = kKey;
    slot_.word = credits::Make(kNowNs, 0, 0);
    EXPECT_TRUE(purse_.Open(&slot_, kKey));
  }
  bool Spend(uint64_t cost, uint64_t now_ns = kNowNs) {
    uint64_t w = slot_.word.load();
    while (credits::Spendable(w, now_ns) >= cost) {
      if (slot_.word.compare_exchange_weak(w, w - cost)) return true;
    }
    return false;
  }

  Slot slot_{};
  Purse purse_;
};

TEST_F(PurseTest, TellsEachSpentTokenOnce) {
  (void)purse_.Put(10, kExpiryNs);
  EXPECT_TRUE(Spend(4));
  EXPECT_EQ(purse_.Sync(kNowNs).spent, 4u);
  EXPECT_EQ(purse_.Sync(kNowNs).spent, 0u);
  EXPECT_TRUE(Spend(6));
  EXPECT_FALSE(Spend(1));
  EXPECT_EQ(purse_.Put(5, kExpiryNs).spent, 6u);
  EXPECT_EQ(purse_.credits(), 5u);
}

TEST_F(PurseTest, TakesOutNoMoreThanClientsLeft) {
  (void)purse_.Put(10, kExpiryNs);
  EXPECT_TRUE(Spend(7));
  const Purse::Change change = purse_.TakeOut(5);
  EXPECT_EQ(change.spent, 7u);
  EXPECT_EQ(change.taken, 3u);
  EXPECT_EQ(purse_.credits(), 0u);
  EXPECT_FALSE(Spend(1));
}

TEST_F(PurseTest, EndsNoLaterThanItWasTold) {
  (void)purse_.Put(10, kExpiryNs);
  EXPECT_LE(credits::ExpiryNs(slot_.word), kExpiryNs);
  EXPECT_GT(credits::ExpiryNs(slot_.word), kExpiryNs - credits::kStepNs);
  EXPECT_FALSE(Spend(1, kExpiryNs));
}

TEST_F(PurseTest, AnExpiredWordIsEmptiedBeforeItIsCounted) {
  (void)purse_.Put(10, kExpiryNs);
  // A client that read the time in time, and comes late.
  const uint64_t seen = slot_.word.load();
  EXPECT_EQ(purse_.Sync(kExpiryNs).taken, 10u);
  uint64_t expected = seen;
  EXPECT_FALSE(slot_.word.compare_exchange_strong(expected, seen - 1));
}

TEST_F(PurseTest, EachReportBeginsATurn) {
  (void)purse_.Put(10, kExpiryNs);
  EXPECT_TRUE(Spend(4));
  const uint64_t spent_word = slot_.word.load();
  EXPECT_EQ(credits::Refunded(spent_word, spent_word, 4, kNowNs), spent_word + 4);
  (void)purse_.TakeOut(0);
  const uint64_t w = slot_.word.load();
  EXPECT_EQ(credits::Count(w), 6u);
  EXPECT_EQ(credits::Refunded(w, spent_word, 4, kNowNs), w);
  (void)purse_.Put(0, kExpiryNs);
  EXPECT_EQ(credits::Refunded(slot_.word, spent_word, 4, kNowNs), slot_.word);
}

TEST_F(PurseTest, ARefundIsNoUse) {
  (void)purse_.Put(10, kExpiryNs);
  EXPECT_TRUE(Spend(4));
  const uint64_t w = slot_.word.load();
  slot_.word = credits::Refunded(w, w, 4, kNowNs);
  EXPECT_EQ(purse_.Sync(kNowNs).spent, 0u);
  EXPECT_EQ(purse_.credits(), 10u);
}

TEST_F(PurseTest, WhatWasToldAsSpentMayComeBackWithinItsTurn) {
  (void)purse_.Put(10, kExpiryNs);
  EXPECT_TRUE(Spend(4));
  const uint64_t spent_word = slot_.word.load();
  EXPECT_EQ(purse_.Sync(kNowNs).spent, 4u);
  slot_.word = credits::Refunded(slot_.word, spent_word, 4, kNowNs);
  EXPECT_EQ(purse_.Sync(kNowNs).back, 4u);
  EXPECT_EQ(purse_.credits(), 10u);
  EXPECT_EQ(purse_.Sync(kNowNs).back, 0u);
}

TEST_F(PurseTest, WhatStoodThereBeforeIsNobodys) {
  slot_.word = credits::Make(kExpiryNs, 5, 100);
  Purse other;
  EXPECT_TRUE(other.Open(&slot_, kKey));
  EXPECT_FALSE(Spend(1));
  EXPECT_EQ(other.Sync(kNowNs).spent, 0u);
}

TEST_F(PurseTest, AReusedSlotTakesItsCreditsAlong) {
  (void)purse_.Put(10, kExpiryNs);
  EXPECT_TRUE(Spend(2));
  slot_.key = key::Make(78, Kind::kLease, 4);
  const Purse::Change change = purse_.Sync(kNowNs);
  EXPECT_EQ(change.lost, 10u);
  EXPECT_EQ(change.spent + change.taken, 0u);
  EXPECT_FALSE(purse_.is_open());
  EXPECT_EQ(purse_.Put(3, kExpiryNs).lost, 3u);
}

TEST_F(PurseTest, CreditsFromNowhereAreTakenOutAgain) {
  (void)purse_.Put(10, kExpiryNs);
  slot_.word = credits::WithCount(slot_.word, 1000);
  EXPECT_EQ(purse_.Sync(kNowNs).spent, 0u);
  EXPECT_EQ(credits::Count(slot_.word), 10u);
}

// Memory in which a client comes first whenever the purse is about to write.
struct MeddledCell {
  uint64_t value = 0;
  static inline std::function<void(uint64_t*)> meddle;

  uint64_t load(std::memory_order = std::memory_order_seq_cst) const { return value; }
  void store(uint64_t v, std::memory_order = std::memory_order_seq_cst) {
    if (meddle) meddle(&value);
    value = v;
  }
  bool compare_exchange_strong(uint64_t& expected, uint64_t desired, std::memory_order) {
    if (meddle) meddle(&value);
    if (value != expected) {
      expected = value;
      return false;
    }
    value = desired;
    return true;
  }
};

TEST(PurseBetweenTest, WhoSpendsBetweenTheLookAndTheChangeIsSeen) {
  BasicSlot<MeddledCell> slot{};
  slot.key.value = kKey;
  slot.word.value = credits::Make(kNowNs, 0, 0);
  BasicPurse<MeddledCell> purse;
  ASSERT_TRUE(purse.Open(&slot, kKey));
  uint64_t spent = 0;
  uint64_t writes = 0;
  MeddledCell::meddle = [&](uint64_t* word) {
    if (++writes % 3 == 0 || credits::Spendable(*word, kNowNs) == 0) return;
    --*word;
    ++spent;
  };
  uint64_t put = 0;
  uint64_t told = 0;
  uint64_t taken = 0;
  for (uint64_t i = 0; i < 1000; ++i) {
    auto change = i % 3 == 0   ? purse.Put(7, kExpiryNs + i * credits::kStepNs)
                  : i % 3 == 1 ? purse.TakeOut(3)
                               : purse.Sync(kNowNs);
    put += i % 3 == 0 ? 7 : 0;
    told += change.spent;
    taken += change.taken;
    EXPECT_EQ(change.lost + change.back, 0u);
  }
  MeddledCell::meddle = nullptr;
  told += purse.Sync(kNowNs).spent;
  EXPECT_EQ(told, spent);
  EXPECT_EQ(put, told + taken + purse.credits());
  EXPECT_EQ(credits::Count(slot.word.value), purse.credits());
}

// Real threads: whatever order things come in, what was put in is what was spent, taken and left.
TEST_F(PurseTest, NothingIsLostOrDoubledBetweenSpendersAndThePurse) {
  std::atomic<bool> stop{false};
  std::atomic<uint64_t> spends{0};
  std::atomic<uint64_t> spent{0};
  std::vector<std::thread> spenders;
  for (int i = 0; i < 3; ++i) {
    spenders.emplace_back([&, i] {
      uint64_t own = 0;
      const uint64_t cost = static_cast<uint64_t>(i) + 1;
      while (!stop.load()) {
        uint64_t w = slot_.word.load();
        if (credits::Spendable(w, kNowNs) < cost) continue;
        if (!slot_.word.compare_exchange_strong(w, w - cost)) continue;
        spends.fetch_add(1);
        if (own % 7 == 0) {  // now and then given back at once
          uint64_t now = slot_.word.load();
          const uint64_t back = credits::Refunded(now, w - cost, cost, kNowNs);
          if (back != now && slot_.word.compare_exchange_strong(now, back)) continue;
        }
        own += cost;
      }
      spent.fetch_add(own);
    });
  }
  uint64_t put = 0;
  uint64_t told = 0;
  uint64_t taken = 0;
  for (uint64_t i = 0; i < 20'000'000 && (i < 10'000 || spends.load() < 100'000); ++i) {
    Purse::Change change;
    switch (i % 4) {
      case 0:
      case 2:
        // Seven turns take longer than a step of the expiry.
        change = purse_.Put(i % 50, kExpiryNs + i / 16 * credits::kStepNs);
        put += i % 50 - change.lost;
        break;
      case 1:
        change = purse_.TakeOut(i % 7);
        break;
      case 3:
        change = purse_.Sync(kNowNs);
        break;
    }
    told += change.spent - change.back;
    taken += change.taken;
  }
  stop = true;
  EXPECT_GE(spends.load(), 1000u) << "they never met";
  for (std::thread& thread : spenders) thread.join();
  const Purse::Change last = purse_.Sync(kNowNs);
  told += last.spent - last.back;
  EXPECT_EQ(told, spent.load());
  EXPECT_EQ(put, told + taken + purse_.credits());
  EXPECT_EQ(purse_.credits(), credits::Count(slot_.word));
}

}  // namespace
}  // namespace sluice::shm
