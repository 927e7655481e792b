// The slot protocol of shm/slot_table.h, all interleavings of two processes with a kill before any
// shared access. Invariants I1 to I5 are stated there; each check names the ones it looks at.
#include <gtest/gtest.h>

#include "shm/bucket.h"
#include "shm/slot_table.h"
#include "shm/take.h"
#include "tests/model/expect_clean.h"
#include "tests/model/explorer.h"

namespace sluice::model {
namespace {

constexpr uint64_t kSecond = 1'000'000'000;
constexpr uint64_t kNow = 1000 * kSecond;
constexpr uint32_t kCapacity = 8;  // two groups: every key's neighbourhood is the whole table
using Table = shm::SlotTable<Cell>;
using ModelSlot = shm::BasicSlot<Cell>;

struct ModelClock {
  static uint64_t PreciseNs() { return kNow; }
  static uint64_t CoarseNs() { return kNow; }
};

const shm::Limit kTwo = shm::MakeLimit(1, kSecond, 2);
constexpr uint64_t kKeyA = 0xaaaa'0000'0000'0000;
constexpr uint64_t kKeyB = 0xbbbb'0000'0000'0000;

// A table whose slots are all taken by strangers for long, but those in `open`.
class World {
 public:
  explicit World(std::vector<uint32_t> open) : open_(std::move(open)) {
    for (ModelSlot& s : slots_) {
      for (Cell* cell : {&s.word, &s.key, &s.used, &s.aux}) memory_.push_back(cell);
    }
    for (Cell& cell : dirty_) memory_.push_back(&cell);
  }

  void Reset() {
    for (uint32_t i = 0; i < kCapacity; ++i) {
      const bool is_open = std::find(open_.begin(), open_.end(), i) != open_.end();
      ModelSlot& s = slots_[i];
      s.word.value = is_open ? 0 : kNow + 100 * kSecond;
      s.key.value = is_open ? 0 : shm::key::Make(1000 + i, shm::Kind::kTokenBucket, 0);
      s.used.value = shm::used::Make(0, 0);
      s.aux.value = 0;
      for (Cell* cell : {&s.word, &s.key, &s.used, &s.aux}) cell->quiet = !is_open;
    }
    for (Cell& cell : counters_) {
      cell.value = 0;
      cell.quiet = true;  // statistics: not part of the protocol
    }
    dirty_[0].value = 0;
    admitted_[0] = admitted_[1] = 0;
    taken_ = 0;
  }

  uint64_t KeyAt3(uint64_t hash) const {
    return shm::key::Make(shm::FingerprintOf(hash), shm::Kind::kTokenBucket, 3);
  }

  // Puts a tenant of gen 3 with unharvested use into a slot.
  void PutTenant(uint32_t slot, uint64_t hash, uint64_t word_ns, int64_t use) {
    slots_[slot].word.value = word_ns;
    slots_[slot].key.value = KeyAt3(hash);
    slots_[slot].used.value = shm::used::Make(3, use);
  }
  void PutExpired(uint32_t slot, uint64_t hash, int64_t use) {
    PutTenant(slot, hash, kNow - 10 * kSecond, use);
  }

  Table table() { return Table(slots_, kCapacity, counters_); }
  Table::Env Env() const { return {kNow, kSecond, 1000 * kSecond}; }

  // One check, as a client makes it. Returns the outcome.
  shm::Outcome Spend(uint64_t hash, int who) {
    Table t = table();
    for (int restart = 0; restart < shm::kMaxRestarts; ++restart) {
      uint32_t slot = t.Find(hash);
      if (slot != shm::kNoSlot) {
        const uint64_t w = slots_[slot].word.load();
        if (shm::word::IsDead(w)) {
          t.SettleOf(hash, slot, w, Env());
          slot = shm::kNoSlot;
        }
      }
      if (slot == shm::kNoSlot) {
        bool claimed;
        slot = t.FindOrClaim(hash, shm::Kind::kTokenBucket, 0, Env(), &claimed);
      }
      if (slot == shm::kNoSlot) return shm::Outcome::kGaveUp;
      shm::RequestTime<ModelClock> time(false, 0);
      shm::Seen seen;
      const shm::Charge charge{.cost_ns = kTwo.interval_ns,
                               .tau_ns = kTwo.tau_ns,
                               .debt_max_ns = kTwo.debt_max_ns,
                               .tokens = 1,
                               .commit = true};
      const shm::Outcome outcome =
          shm::CheckSlot(slots_[slot], shm::FingerprintOf(hash), charge, time, t, &seen);
      if (outcome == shm::Outcome::kLost) continue;
      if (outcome == shm::Outcome::kAllowed) {
        ++admitted_[who];
        shm::AddUse(slots_[slot], dirty_, slot, 1);
      }
      return outcome;
    }
    return shm::Outcome::kGaveUp;
  }

  // The daemon's take of a slot, for the tenant it finds there.
  void Take(uint32_t slot) {
    const uint64_t k = slots_[slot].key.load();
    shm::ClearDirty(slots_[slot]);
    if (shm::key::Fp(k) == shm::FingerprintOf(kKeyA)) taken_ += shm::TakeUse(slots_[slot], k);
  }

  // What a newcomer sees when all is at rest: every key can be checked, and stands once (I5).
  std::string AtRest(std::initializer_list<uint64_t> keys) {
    for (const uint64_t hash : keys) {
      admitted_at_rest_ = 0;
      for (int i = 0; i < 3; ++i) {
        const shm::Outcome outcome = Spend(hash, 2);
        if (outcome == shm::Outcome::kGaveUp) return "a key cannot be checked at rest";
        admitted_at_rest_ += outcome == shm::Outcome::kAllowed ? 1 : 0;
      }
      table().ResolveDuplicates(hash, Env());
      int places = 0;
      for (ModelSlot& s : slots_) {
        places += shm::key::Fp(s.key.value) == shm::FingerprintOf(hash) ? 1 : 0;
      }
      if (places != 1) return "a key stands in " + std::to_string(places) + " slots at rest";
    }
    for (uint32_t slot = 0; slot < kCapacity; ++slot) {
      if (IsLost(slot)) return "a slot is lost for good";
    }
    return "";
  }

  // Settles a dead word, as whoever meets it does; true where it stays dead (I4).
  bool IsLost(uint32_t slot) {
    const Cell& word = slots_[slot].word;
    for (int i = 0; i < 3 && shm::word::IsDead(word.value); ++i) {
      table().Settle(slot, word.value, kNow);
    }
    return shm::word::IsDead(word.value);
  }

  int64_t UseOf(uint64_t hash) {
    int64_t use = 0;
    for (ModelSlot& s : slots_) {
      if (shm::key::Fp(s.key.value) != shm::FingerprintOf(hash)) continue;
      if (shm::used::Gen(s.used.value) == shm::key::Gen(s.key.value)) {
        use += shm::used::Count(s.used.value);
      }
    }
    return use;
  }

  std::vector<uint32_t> open_;
  ModelSlot slots_[kCapacity];
  Cell dirty_[1];
  Cell counters_[shm::kCounters];
  std::vector<Cell*> memory_;
  int admitted_[3] = {};
  int admitted_at_rest_ = 0;
  int64_t taken_ = 0;
};

int KilledCount(const std::vector<bool>& killed) {
  return static_cast<int>(std::count(killed.begin(), killed.end(), true));
}

// The processes in the world as `put` leaves it.
Scenario In(World& w, std::function<void()> put, std::vector<std::function<void()>> processes) {
  Scenario s;
  s.memory = w.memory_;
  s.reset = [&w, put = std::move(put)] {
    w.Reset();
    put();
  };
  s.processes = std::move(processes);
  return s;
}

// I5, I1: both insert the same key into an empty neighbourhood of two open slots.
Scenario TwoClaimersOfOneKey(World& w, uint32_t max_kills) {
  const auto put = [&w] {
    // Hints and dirty bits have scenarios of their own; here they would only multiply the states.
    for (ModelSlot& slot : w.slots_) slot.aux.quiet = true;
    w.dirty_[0].quiet = true;
  };
  Scenario s = In(w, put, {[&w] { w.Spend(kKeyA, 0); }, [&w] { w.Spend(kKeyA, 1); }});
  s.max_kills = max_kills;
  s.check = [&w](const std::vector<bool>& killed) -> std::string {
    const int before = w.admitted_[0] + w.admitted_[1];
    std::string rest = w.AtRest({kKeyA});
    if (!rest.empty()) return rest;
    // The burst is 2; a claimer killed between steps 4 and 5 leaves one extra burst.
    const int bound = 2 + 2 * KilledCount(killed);
    if (before + w.admitted_at_rest_ > bound) return "more than the burst was admitted";
    return "";
  };
  return s;
}

TEST(SlotProtocolModel, TwoClaimersOfOneKeyEndInOneSlotWithinTheBurst) {
  World w({0, 5});
  ExpectClean(TwoClaimersOfOneKey(w, 0), "two claimers of one key", /*bounded=*/true);
}

TEST(SlotProtocolModel, AClaimerKilledAnywhereLeavesOneExtraBurstAtMost) {
  World w({0, 5});
  ExpectClean(TwoClaimersOfOneKey(w, 1), "two claimers of one key, one kill", /*bounded=*/true);
}

// The same where they spend nothing, which is small enough to visit all: neither none nor two of
// the slots remain.
TEST(SlotProtocolModel, OfTwoClaimersOfOneKeyOneSlotRemains) {
  World w({0, 5});
  const auto put = [&w] {
    for (ModelSlot& slot : w.slots_) slot.aux.quiet = slot.used.quiet = true;
  };
  const auto claim = [&w] {
    bool claimed;
    w.table().FindOrClaim(kKeyA, shm::Kind::kTokenBucket, 0, w.Env(), &claimed);
  };
  Scenario s = In(w, put, {claim, claim});
  s.max_kills = 0;
  s.check = [&w](const std::vector<bool>&) -> std::string {
    const auto is_there = [](const ModelSlot& slot) {
      return shm::key::Fp(slot.key.value) == shm::FingerprintOf(kKeyA);
    };
    const auto places = std::count_if(std::begin(w.slots_), std::end(w.slots_), is_there);
    return places == 1 ? "" : "the key stands in " + std::to_string(places) + " slots";
  };
  ExpectClean(std::move(s), "two claimers that spend nothing");
}

// I2, I4: A and B both want slot 3, the only open one.
Scenario TwoClaimersOfOneSlot(World& w, std::function<void()> put) {
  Scenario s = In(w, std::move(put), {[&w] { w.Spend(kKeyA, 0); }, [&w] { w.Spend(kKeyB, 1); }});
  s.check = [&w](const std::vector<bool>& killed) -> std::string {
    if (KilledCount(killed) == 0 && w.admitted_[0] + w.admitted_[1] != 1) {
      return "not exactly one got the slot";
    }
    return w.IsLost(3) ? "the slot is lost for good" : "";
  };
  return s;
}

TEST(SlotProtocolModel, TwoClaimersOfOneSlotGiveItToOne) {
  World w({3});
  Scenario s = TwoClaimersOfOneSlot(w, [] {});
  s.check = [&w, check = s.check](const std::vector<bool>& killed) -> std::string {
    std::string wrong = check(killed);
    if (!wrong.empty()) return wrong;
    if (shm::used::Gen(w.slots_[3].used.value) != shm::key::Gen(w.slots_[3].key.value)) {
      return "use carries another tenant's gen";
    }
    return "";
  };
  ExpectClean(std::move(s), "two claimers of one slot");
}

// I1, I2, I3: one evicts the expired A for B while the other spends from A's slot.
TEST(SlotProtocolModel, AnEvictionUnderASpenderNeverChargesTheWrongTenant) {
  World w({2, 6});
  const auto put = [&] {
    w.PutExpired(2, kKeyA, 5);
    w.PutExpired(6, 0xcccc'0000'0000'0000, 0);
  };
  Scenario s = In(w, put, {[&] { w.Spend(kKeyA, 0); }, [&] { w.Spend(kKeyB, 1); }});
  s.check = [&](const std::vector<bool>& killed) -> std::string {
    const int64_t use_b = w.UseOf(kKeyB);
    if (use_b > w.admitted_[1]) return "B is charged for A's use";
    if (KilledCount(killed) == 0 && use_b != w.admitted_[1]) return "B's use is lost";
    return w.AtRest({kKeyA, kKeyB});
  };
  ExpectClean(std::move(s), "eviction under a spender");
}

// What comes late for A, with unharvested use, while B takes its expired slot.
Scenario LateForA(World& w, int64_t use, std::function<void()> late) {
  return In(w, [&w, use] { w.PutExpired(2, kKeyA, use); },
            {std::move(late), [&w] { w.Spend(kKeyB, 1); }});
}

// I3: the daemon takes A's use while B evicts A: what is taken was A's, and at most that.
TEST(SlotProtocolModel, ATakeDuringReuseNeverTakesTheNextTenantsUse) {
  World w({2});
  Scenario s = LateForA(w, 5, [&] { w.Take(2); });
  s.check = [&](const std::vector<bool>& killed) -> std::string {
    if (w.taken_ != 0 && w.taken_ != 5) return "took " + std::to_string(w.taken_);
    if (KilledCount(killed) == 0 && w.UseOf(kKeyB) != w.admitted_[1]) return "B's use is wrong";
    return "";
  };
  ExpectClean(std::move(s), "take during reuse");
}

// I3 and the dirty bit: use is taken, or its slot is dirty again.
TEST(SlotProtocolModel, UseIsTakenOrItsSlotIsDirtyAgain) {
  World w({2});
  const auto put = [&] {
    w.PutTenant(2, kKeyA, kNow, 0);
    w.slots_[2].aux.value = shm::aux::kDirty;
    w.dirty_[0].value = 1u << 2;
  };
  const auto harvest = [&] {
    if ((w.dirty_[0].exchange(0) & (1u << 2)) != 0) w.Take(2);
  };
  Scenario s = In(w, put, {harvest, [&] { w.Spend(kKeyA, 1); }});
  s.max_kills = 0;
  s.check = [&](const std::vector<bool>&) -> std::string {
    const int64_t left = w.UseOf(kKeyA);
    if (w.taken_ + left != w.admitted_[1]) return "use does not add up";
    if (left != 0 && (w.dirty_[0].value & (1u << 2)) == 0) return "use is left in a clean slot";
    return "";
  };
  ExpectClean(std::move(s), "take against spend");
}

// Two spenders of the last tokens: never more than the burst, with and without a kill.
TEST(SlotProtocolModel, TwoSpendersOfOneSlotShareItsBurst) {
  World w({2});
  const auto twice = [&](int who) {
    w.Spend(kKeyA, who);
    w.Spend(kKeyA, who);
  };
  Scenario s = In(w, [&] { w.PutTenant(2, kKeyA, kNow, 0); },
                  {[&, twice] { twice(0); }, [&, twice] { twice(1); }});
  s.check = [&](const std::vector<bool>& killed) -> std::string {
    const int admitted = w.admitted_[0] + w.admitted_[1];
    if (admitted > 2) return "more than the burst";
    if (KilledCount(killed) == 0 && admitted != 2) return "less than the burst";
    if (KilledCount(killed) == 0 && w.UseOf(kKeyA) != 2) return "use does not add up";
    return "";
  };
  ExpectClean(std::move(s), "two spenders");
}

// I4: a dead word that nobody in order made, in the only open slot.
TEST(SlotProtocolModel, AWildDeadWordIsMendedByWhoeverMeetsIt) {
  World w({3});
  Scenario s = TwoClaimersOfOneSlot(w, [&] {
    w.slots_[3].word.value = shm::word::Dead(77, kNow / 1000);
    w.slots_[3].key.value = shm::key::Make(0, shm::Kind::kTokenBucket, 5);
    w.slots_[3].used.value = shm::used::Make(5, 0);
  });
  ExpectClean(std::move(s), "a wild dead word");
}

// I1, I2: a refund and the daemon's fold.
TEST(SlotProtocolModel, ARefundNeverLowersTheNextTenantsWord) {
  World w({2});
  Scenario s = LateForA(w, 0, [&] {
    shm::RefundSlot(w.slots_[2], shm::FingerprintOf(kKeyA), 3, kNow + kSecond, kSecond, kNow);
  });
  s.check = [&](const std::vector<bool>& killed) -> std::string {
    if (killed[1] || w.admitted_[1] == 0) return "";
    return w.slots_[2].word.value == kNow + kTwo.interval_ns ? "" : "B's spend was given back";
  };
  ExpectClean(std::move(s), "a late refund");
}

TEST(SlotProtocolModel, AFoldNeverSetsTheNextTenantsWord) {
  World w({2});
  Scenario s = LateForA(w, 0, [&] {
    shm::FoldWord(w.slots_[2], w.KeyAt3(kKeyA), kNow, kNow + 5 * kSecond, 0, 10 * kSecond,
                  [](uint64_t n) { return n * kSecond; });
  });
  s.check = [&](const std::vector<bool>& killed) -> std::string {
    const ModelSlot& slot = w.slots_[2];
    if (shm::key::Fp(slot.key.value) != shm::FingerprintOf(kKeyB)) return "";
    if (killed[1] || shm::word::IsDead(slot.word.value)) return "";
    return slot.word.value <= kNow + kTwo.interval_ns ? "" : "A's debt was folded into B";
  };
  ExpectClean(std::move(s), "a late fold");
}

// I5: a key that stands twice, one token spent in each, is folded while another spends. Until then
// each slot may give its last token; at rest all of it is owed, and counted as used once.
TEST(SlotProtocolModel, ADuplicateIsFoldedIntoItsWinnerWhole) {
  World w({0, 5});
  const auto put = [&] {
    for (const uint32_t slot : {0u, 5u}) w.PutTenant(slot, kKeyA, kNow + kTwo.interval_ns, 1);
  };
  Scenario s = In(
      w, put, {[&] { w.table().ResolveDuplicates(kKeyA, w.Env()); }, [&] { w.Spend(kKeyA, 1); }});
  s.max_kills = 0;
  s.check = [&](const std::vector<bool>&) -> std::string {
    if (w.UseOf(kKeyA) != 2 + w.admitted_[1]) return "use does not add up";
    const uint64_t owed = static_cast<uint64_t>(2 + w.admitted_[1]) * kTwo.interval_ns;
    if (w.slots_[0].word.value != kNow + owed) return "a duplicate's debt was forgotten";
    return w.AtRest({kKeyA});
  };
  ExpectClean(std::move(s), "a duplicate");
}

// I5: three claimers at once. One folds slot 5 into slot 2 when the third names its key in slot 0
// and folds both: what 2 was given while it was being emptied is owed and counted in 0.
TEST(SlotProtocolModel, ADuplicateOfAWinnerThatLosesIsFoldedIntoTheLastWinner) {
  World w({0, 2, 5});
  const uint64_t dead = shm::word::Dead(2, kNow / 1000);
  const auto put = [&] {
    w.slots_[0].word.value = dead;
    w.slots_[0].key.value = shm::key::Make(0, shm::Kind::kTokenBucket, 2);
    w.slots_[0].used.value = shm::used::Make(2, 0);
    for (const uint32_t slot : {2u, 5u}) w.PutTenant(slot, kKeyA, kNow + kTwo.interval_ns / 2, 1);
    for (ModelSlot& slot : w.slots_) slot.aux.quiet = true;
  };
  const auto resolve = [&] { w.table().ResolveDuplicates(kKeyA, w.Env()); };
  const auto claim_last = [&] {
    uint64_t k = w.slots_[0].key.load();
    if (w.slots_[0].key.compare_exchange_strong(k, w.KeyAt3(kKeyA))) {
      w.table().Settle(0, dead, kNow);
    }
    resolve();
  };
  Scenario s = In(w, put, {resolve, claim_last});
  s.max_kills = 0;
  s.check = [&](const std::vector<bool>&) -> std::string {
    if (w.UseOf(kKeyA) != 2) return "use does not add up";
    if (w.slots_[0].word.value != kNow + kTwo.interval_ns)
      return "a duplicate's debt was forgotten";
    return w.AtRest({kKeyA});
  };
  // Complete with 9,511,376 states, which takes longer than the tests have.
  ExpectClean(std::move(s), "a duplicate of a duplicate", /*bounded=*/true);
}

// I3, I5: two claimers of one key while the daemon sweeps duplicates and takes.
TEST(SlotProtocolModel, AClaimUnderTheDaemonsSweepLosesNothingWithoutAKill) {
  World w({0, 5});
  Scenario s = TwoClaimersOfOneKey(w, 0);
  s.processes.push_back([&w] {
    w.table().ResolveDuplicates(kKeyA, w.Env());
    w.Take(0);
    w.Take(5);
  });
  s.check = [&w, check = s.check](const std::vector<bool>& killed) -> std::string {
    if (w.taken_ + w.UseOf(kKeyA) > w.admitted_[0] + w.admitted_[1]) return "use was doubled";
    return check(killed);
  };
  ExpectClean(std::move(s), "two claimers and the daemon", /*bounded=*/true);
}

// The explorer itself must bite: a claim without the gen in its dead word, as a mutant of Claim.
TEST(SlotProtocolModel, FindsALostUpdateThatIsThere) {
  World w({2});
  const auto racy = [&] { w.dirty_[0].store(w.dirty_[0].load() + 1); };
  Scenario s = In(w, [] {}, {racy, racy});
  s.max_kills = 0;
  s.check = [&](const std::vector<bool>&) -> std::string {
    return w.dirty_[0].value == 2 ? "" : "an update was lost";
  };
  EXPECT_EQ(Explorer(std::move(s)).Run(kMaxStates).failure, "an update was lost");
}

}  // namespace
}  // namespace sluice::model
