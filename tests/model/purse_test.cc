// A word of tokens on loan, all interleavings of its clients and the daemon's keeper with a kill
// before any shared access. P1 to P3 are stated in shm/purse.h; each check names those it looks at.
#include "shm/purse.h"

#include <gtest/gtest.h>

#include "shm/lease_slot.h"
#include "shm/slot_table.h"
#include "tests/model/expect_clean.h"
#include "tests/model/explorer.h"

namespace sluice::model {
namespace {

namespace credits = shm::credits;
using Purse = shm::BasicPurse<Cell>;

constexpr uint64_t kSecond = 1'000'000'000;
constexpr uint32_t kCapacity = 8;
constexpr uint32_t kSlot = 2;
constexpr uint16_t kGen = 3;
constexpr uint64_t kKeyA = 0xaaaa'0000'0000'0000;
constexpr uint64_t kKeyB = 0xbbbb'0000'0000'0000;
constexpr uint64_t kEnd = credits::kStepNs * 100'000;  // of the credits that stand there at first
constexpr uint64_t kLater = kEnd + kSecond;
constexpr uint64_t kNow = kEnd - kSecond / 2;
constexpr uint64_t kPut = 10;
constexpr int kKeeper = 1;  // its process

// One slot of a table whose others are taken for long, and the purse that stands in it.
class World {
 public:
  World() {
    for (shm::BasicSlot<Cell>& s : slots_) {
      for (Cell* cell : {&s.word, &s.key, &s.used, &s.aux}) memory.push_back(cell);
    }
    // What has come of it is part of a state: two that differ in it only are not one.
    for (Cell* cell : {&admitted, &given_back, &told, &taken, &lost, &opened, &stray}) {
      memory.push_back(cell);
    }
  }

  // kPut credits on loan to kEnd, put in by the purse.
  void Put() {
    for (uint64_t& now_ns : ClockOfEach::now_ns) now_ns = kNow;
    for (uint32_t i = 0; i < kCapacity; ++i) {
      slots_[i].word.value = kEnd + 1000 * kSecond;
      slots_[i].key.value = shm::key::Make(1000 + i, shm::Kind::kTokenBucket, 0);
      slots_[i].used.value = shm::used::Make(0, 0);
      slots_[i].aux.value = 0;
      for (Cell* cell : {&slots_[i].word, &slots_[i].key, &slots_[i].used, &slots_[i].aux}) {
        cell->quiet = i != kSlot;
      }
    }
    for (Cell& cell : counters_) cell.quiet = true;
    second_.quiet = slot().aux.quiet = true;
    slot().word.value = credits::Make(kEnd - kSecond, 0, 0);
    slot().key.value = shm::key::Make(shm::FingerprintOf(kKeyA), shm::Kind::kLease, kGen);
    slot().used.value = shm::used::Make(kGen, 0);
    for (Cell* cell : {&admitted, &given_back, &told, &taken, &lost, &opened, &stray}) {
      cell->value = 0;
    }
    purse = {};
    (void)purse.Open(&slot(), slot().key.value);
    (void)purse.Put(kPut, kEnd);
  }

  // A client's check, and its refund of what it spent.
  bool Spend(uint32_t tokens) {
    shm::RequestTime<ClockOfEach> time(false, 0);
    const shm::Charge charge{.cost_ns = 0,
                             .tau_ns = limit_.tau_ns,
                             .debt_max_ns = limit_.debt_max_ns,
                             .tokens = tokens,
                             .dearer_q16 = 0,
                             .admit_always = false,
                             .commit = true,
                             .kind = shm::Kind::kLease,
                             .limit = &limit_};
    const shm::Outcome outcome =
        credits::CheckLease(slot(), second_, shm::FingerprintOf(kKeyA), charge, time, &seen_);
    if (outcome != shm::Outcome::kAllowed) return false;
    admitted.value += tokens;
    // Nobody has put anything in since.
    if (opened.value == 1) ++stray.value;
    return true;
  }
  void GiveBack(uint32_t tokens) {
    if (credits::RefundLease(slot(), shm::FingerprintOf(kKeyA), kGen, seen_.verdict.new_ns, tokens,
                             ClockOfEach::PreciseNs())) {
      given_back.value += tokens;
    }
  }

  // What the keeper makes of a change: each token is told once.
  void Note(const Purse::Change& change) {
    told.value += change.spent - change.back;
    taken.value += change.taken;
    lost.value += change.lost;
  }

  // Claims the slot for B, whose clients find nothing there.
  void ClaimForB(uint64_t now_ns) {
    bool claimed = false;
    const shm::SlotTable<Cell>::Env env{now_ns, kSecond / 1000, 5000 * kSecond};
    (void)table().FindOrClaim(kKeyB, shm::Kind::kLease, 0, env, &claimed);
  }

  shm::SlotTable<Cell> table() { return shm::SlotTable<Cell>(slots_, kCapacity, counters_); }
  shm::BasicSlot<Cell>& slot() { return slots_[kSlot]; }
  uint64_t Left() const { return credits::Count(slots_[kSlot].word.value); }

  std::vector<Cell*> memory;
  Purse purse;
  Cell admitted, given_back;  // tokens, by clients
  Cell told, taken, lost;     // by the purse
  Cell opened;                // 1: by another daemon that has put nothing in; 2: it has
  Cell stray;                 // spends of what nobody put in

 private:
  const shm::Limit limit_ = shm::MakeLimit(100, kSecond, 50);
  shm::BasicSlot<Cell> slots_[kCapacity];
  Cell counters_[shm::kCounters];
  Cell second_;
  shm::Seen seen_;  // of the one client that gives back
};

// All that was put in was spent, taken, or is there; what was told as spent was, once.
std::string Balance(World& w, uint64_t put, bool is_keeper_killed) {
  const uint64_t spent = w.admitted.value - w.given_back.value;
  if (spent + w.taken.value > put) return "a token was spent that was taken out";
  if (is_keeper_killed) return "";
  w.Note(w.purse.Sync(kNow));
  if (w.told.value != spent) return "what was told as spent was not what was";
  if (w.lost.value != 0) return "something was lost";
  return spent + w.taken.value + w.Left() == put ? "" : "tokens came or went";
}

// P1, P2.
TEST(PurseModel, WhatIsPutInIsSpentTakenOrThere) {
  World w;
  Scenario s;
  s.memory = w.memory;
  s.reset = [&w] { w.Put(); };
  s.processes = {[&w] {
                   (void)w.Spend(3);
                   (void)w.Spend(4);
                 },
                 [&w] {
                   w.Note(w.purse.Sync(kNow));
                   w.Note(w.purse.TakeOut(5));
                   w.Note(w.purse.Put(4, kLater));
                 },
                 [&w] { (void)w.Spend(2); }};
  s.check = [&w](const std::vector<bool>& killed) { return Balance(w, kPut + 4, killed[kKeeper]); };
  ExpectClean(std::move(s), "a purse between spenders");
}

// P1: a refund counts until the report of what it gives back, and not after it.
TEST(PurseModel, NothingReportedAsSpentIsGivenBack) {
  World w;
  Scenario s;
  s.memory = w.memory;
  s.reset = [&w] { w.Put(); };
  s.processes = {[&w] {
                   if (w.Spend(3)) w.GiveBack(3);
                 },
                 [&w] {
                   w.Note(w.purse.Sync(kNow));
                   w.Note(w.purse.TakeOut(0));  // a report
                   w.Note(w.purse.Sync(kNow));
                 },
                 [&w] { (void)w.Spend(2); }};
  s.check = [&w](const std::vector<bool>& killed) { return Balance(w, kPut, killed[kKeeper]); };
  ExpectClean(std::move(s), "refunds around a report");
}

// P1: who writes the word for its own sake adds nothing that is taken out or stays.
TEST(PurseModel, CreditsFromNowhereAreNeitherTakenNorKept) {
  World w;
  Scenario s;
  s.memory = w.memory;
  s.reset = [&w] { w.Put(); };
  s.processes = {[&w] {
                   uint64_t word = w.slot().word.load();
                   (void)w.slot().word.compare_exchange_strong(word, word + 1000);
                 },
                 [&w] {
                   w.Note(w.purse.Sync(kNow));
                   w.Note(w.purse.TakeOut(50));
                 },
                 [&w] { (void)w.Spend(2); }};
  s.check = [&w](const std::vector<bool>& killed) -> std::string {
    if (killed[kKeeper]) return "";
    w.Note(w.purse.Sync(kNow));
    return w.taken.value + w.Left() <= kPut ? "" : "more was there than was put in";
  };
  ExpectClean(std::move(s), "credits from nowhere");
}

// P3: the keeper's clock has passed the end, a client still has the time of before.
TEST(PurseModel, WhatHasEndedIsSpentOrReturnedAndNeverBoth) {
  World w;
  uint64_t returned = 0;
  Scenario s;
  s.memory = w.memory;
  s.reset = [&w, &returned] {
    w.Put();
    ClockOfEach::now_ns[kKeeper] = kEnd;
    returned = 0;
  };
  s.processes = {[&w] {
                   (void)w.Spend(3);
                   (void)w.Spend(4);
                 },
                 [&w, &returned] {
                   // As a lease ends: what was not spent by now goes back.
                   const Purse::Change change = w.purse.Sync(kEnd);
                   returned = kPut - change.spent;
                 }};
  s.check = [&w, &returned](const std::vector<bool>&) -> std::string {
    return w.admitted.value + returned <= kPut ? "" : "a token was spent and returned";
  };
  ExpectClean(std::move(s), "the end of a lease under a spender");
}

// K4 of daemon/lease/keeper.h: another daemon, after a crash of the first one anywhere.
TEST(PurseModel, AnotherDaemonFindsNothingThatCounts) {
  World w;
  Scenario s;
  s.memory = w.memory;
  s.reset = [&w] { w.Put(); };
  s.processes = {[&w] {
                   if (w.Spend(3)) w.GiveBack(3);
                   (void)w.Spend(1);
                 },
                 [&w] {
                   if (!w.purse.Open(&w.slot(), w.slot().key.value)) return;
                   w.told.value = 0;
                   w.opened.value = 1;
                   const Purse::Change change = w.purse.Put(4, kLater);
                   w.opened.value = 2;
                   w.Note(change);
                   w.Note(w.purse.TakeOut(2));
                 }};
  s.check = [&w](const std::vector<bool>& killed) -> std::string {
    if (w.stray.value != 0) return "what stood there before was spent from";
    if (killed[kKeeper]) return "";
    w.Note(w.purse.Sync(kNow));
    return w.told.value + w.taken.value + w.Left() == 4 ? "" : "tokens came or went";
  };
  ExpectClean(std::move(s), "another daemon's purse");
}

// P1, P2: the slot is claimed for another key meanwhile.
TEST(PurseModel, AnotherTenantIsLentNothing) {
  World w;
  Scenario s;
  s.memory = w.memory;
  s.reset = [&w] {
    w.Put();
    ClockOfEach::now_ns[0] = ClockOfEach::now_ns[kKeeper] = kEnd + kSecond;
  };
  s.processes = {[&w] { w.ClaimForB(kEnd + kSecond); },
                 [&w] {
                   w.Note(w.purse.Sync(kEnd + kSecond));
                   w.Note(w.purse.Put(5, kEnd + 2 * kSecond));
                   w.Note(w.purse.TakeOut(1));
                 }};
  s.check = [&w](const std::vector<bool>& killed) -> std::string {
    const bool is_b = shm::key::Fp(w.slot().key.value) == shm::FingerprintOf(kKeyB);
    const uint64_t word = w.slot().word.value;
    if (is_b && !shm::word::IsDead(word) && credits::Count(word) != 0) return "B was lent A's";
    if (killed[0] || killed[kKeeper] || shm::word::IsDead(word)) return "";
    const uint64_t left = is_b ? 0 : w.Left();
    return w.taken.value + w.lost.value + left == kPut + 5 ? "" : "tokens came or went";
  };
  ExpectClean(std::move(s), "a purse's next tenant", /*bounded=*/true);
}

}  // namespace
}  // namespace sluice::model
