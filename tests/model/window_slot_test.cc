// Windows on a slot, all interleavings of two processes with a kill before any shared access. The
// invariants W1 to W3 are stated in shm/window_slot.h; each check names the ones it looks at.
#include "shm/window_slot.h"

#include <gtest/gtest.h>

#include "tests/model/expect_clean.h"
#include "tests/model/explorer.h"

namespace sluice::model {
namespace {

using shm::Kind;
namespace window = shm::window;

constexpr uint64_t kSecond = 1'000'000'000;
constexpr uint32_t kCapacity = 8;
constexpr uint32_t kSlot = 2;
constexpr uint16_t kGen = 3;
constexpr uint64_t kKeyA = 0xaaaa'0000'0000'0000;
constexpr uint64_t kKeyB = 0xbbbb'0000'0000'0000;

// An end of a window on a step, far from 0; and long after it has expired.
constexpr uint64_t kEnd = window::kStepNs * 100'000;
constexpr uint64_t kLate = kEnd + 10 * kSecond;

// One slot of a table whose others are taken for long.
class World {
 public:
  World(Kind kind, uint64_t limit) : kind_(kind), limit_(window::MakeLimit(limit, kSecond)) {
    for (shm::BasicSlot<Cell>& s : slots_) {
      for (Cell* cell : {&s.word, &s.key, &s.used, &s.aux}) memory.push_back(cell);
    }
    memory.push_back(&second_);
  }

  const window::Terms terms() const {
    return window::TermsOf(kind_, limit_.limit, limit_.period_ns);
  }
  uint64_t units(uint64_t tokens) const {
    return window::UnitsOfTokens(tokens, window::ScaleOf(limit_.limit));
  }

  // A tenant A whose window ends at `end_ns`, with so many tokens counted and in the one before.
  void Put(uint64_t end_ns, uint64_t counted, uint64_t closed, uint64_t purse = 0) {
    const bool slides = kind_ == Kind::kSlidingWindow;
    const uint64_t tail_ns = slides ? terms().length_ns : 0;
    for (uint32_t i = 0; i < kCapacity; ++i) {
      slots_[i].word.value = end_ns + 1000 * kSecond;
      slots_[i].key.value = shm::key::Make(1000 + i, Kind::kTokenBucket, 0);
      slots_[i].used.value = shm::used::Make(0, 0);
      slots_[i].aux.value = 0;
      for (Cell* cell : {&slots_[i].word, &slots_[i].key, &slots_[i].used, &slots_[i].aux}) {
        cell->quiet = i != kSlot;
      }
    }
    for (Cell& cell : counters_) cell.quiet = true;
    slot().word.value = window::Make(end_ns + tail_ns, units(counted));
    slot().key.value = shm::key::Make(shm::FingerprintOf(kKeyA), kind_, kGen);
    slot().used.value = shm::used::Make(kGen, 0);
    slot().aux.quiet = true;
    second_.value = slides ? window::second::Make(kGen, end_ns - tail_ns, units(closed), purse)
                           : window::second::MakeFixed(kGen, end_ns, purse);
    for (auto& admitted : admitted_) admitted = {};
  }

  // One check; what it spent is noted by the window that it was counted in.
  void Spend(int who, uint32_t tokens, uint64_t hash = kKeyA) {
    shm::RequestTime<ClockOfEach> time(false, 0);
    shm::Seen seen;
    const shm::Charge charge{.cost_ns = 0,
                             .tau_ns = limit_.tau_ns,
                             .debt_max_ns = limit_.debt_max_ns,
                             .tokens = tokens,
                             .dearer_q16 = 0,
                             .admit_always = false,
                             .commit = true,
                             .kind = kind_,
                             .limit = &limit_};
    const shm::Outcome outcome = window::CheckWindow(slot(), &second_, shm::FingerprintOf(hash),
                                                     charge, time, table(), &seen);
    if (outcome != shm::Outcome::kAllowed) return;
    const bool slides = kind_ == Kind::kSlidingWindow;
    const uint64_t end_ns = window::EndNs(terms(), seen.verdict.new_ns, slides);
    (end_ns <= boundary_ns ? admitted_[who].old_window : admitted_[who].new_window) += tokens;
  }

  // Gives back of what was spent in the window that stood at first.
  void Refund(uint64_t tokens) {
    const bool slides = kind_ == Kind::kSlidingWindow;
    const uint64_t spent = window::Make(kEnd + (slides ? terms().length_ns : 0), 0);
    window::RefundWindow(slot(), &second_, shm::FingerprintOf(kKeyA), kGen, spent, tokens,
                         window::ScaleIndexOf(limit_.limit), kEnd - kSecond / 2);
  }

  // Claims the slot for B, spends there twice in one window and once in the next.
  void ClaimForB(int who) {
    ClockOfEach::now_ns[who] = kLate;
    bool claimed = false;
    const shm::SlotTable<Cell>::Env env{ClockOfEach::PreciseNs(), kSecond / 1000, 5000 * kSecond};
    if (table().FindOrClaim(kKeyB, kind_, 0, env, &claimed) != kSlot) return;
    Spend(who, 1, kKeyB);
    Spend(who, 1, kKeyB);
    ClockOfEach::now_ns[who] += terms().length_ns + window::kStepNs;
    Spend(who, 1, kKeyB);
  }

  shm::SlotTable<Cell> table() { return shm::SlotTable<Cell>(slots_, kCapacity, counters_); }
  shm::BasicSlot<Cell>& slot() { return slots_[kSlot]; }
  uint64_t Old() const { return admitted_[0].old_window + admitted_[1].old_window; }
  uint64_t New() const { return admitted_[0].new_window + admitted_[1].new_window; }
  window::Open OpenAt(uint64_t now_ns) {
    const uint16_t gen = shm::key::Gen(slot().key.value);
    return kind_ == Kind::kSlidingWindow
               ? window::OpenSliding(terms(), slot().word.value, second_.value, gen, now_ns)
               : window::OpenFixed(terms(), slot().word.value, second_.value, gen, now_ns);
  }

  std::vector<Cell*> memory;
  uint64_t boundary_ns = 0;  // ends up to here are of the window that stood at first
  Cell second_;

 private:
  struct Admitted {
    uint64_t old_window = 0;
    uint64_t new_window = 0;
  };
  Kind kind_;
  shm::Limit limit_;
  shm::BasicSlot<Cell> slots_[kCapacity];
  Cell counters_[shm::kCounters];
  Admitted admitted_[3];
};

bool IsAnyKilled(const std::vector<bool>& killed) {
  return std::find(killed.begin(), killed.end(), true) != killed.end();
}

// W2: one spends in a window with a clock just before its end, twice, while another begins the
// next. All that the old one counted weighs in the new one, and nothing is counted in both.
TEST(WindowSlotModel, WhatAWindowCountedWeighsInTheNextWhoeverBeginsIt) {
  World w(Kind::kSlidingWindow, 10);
  w.boundary_ns = kEnd;
  ClockOfEach::now_ns[0] = kEnd - 1000;
  ClockOfEach::now_ns[1] = kEnd + 1000;
  ClockOfEach::now_ns[2] = kEnd + 2000;
  Scenario s;
  s.memory = w.memory;
  s.reset = [&w] { w.Put(kEnd, 4, 2); };
  s.processes = {[&w] {
                   w.Spend(0, 1);
                   w.Spend(0, 1);
                 },
                 [&w] {
                   w.Spend(1, 1);
                   w.Spend(1, 1);
                 }};
  s.check = [&w](const std::vector<bool>& killed) -> std::string {
    const window::Open o = w.OpenAt(ClockOfEach::now_ns[2]);
    if (o.end_ns != kEnd + w.terms().length_ns) return "another window is open";
    if (o.closed < w.units(4 + w.Old())) return "what the old window counted was forgotten";
    if (o.count < w.units(w.New())) return "what the new window counted was forgotten";
    if (IsAnyKilled(killed)) return "";
    if (o.closed != w.units(4 + w.Old()) || o.count != w.units(w.New())) return "counted twice";
    return w.Old() + w.New() == 4 ? "" : "not all were admitted";
  };
  ExpectClean(std::move(s), "a window's end under a spender");
}

// W2: both begin the next window; together they never admit more than the estimate allows.
TEST(WindowSlotModel, TwoThatBeginAWindowBeginOne) {
  World w(Kind::kSlidingWindow, 4);
  w.boundary_ns = kEnd;
  for (uint64_t& now_ns : ClockOfEach::now_ns) now_ns = kEnd;
  Scenario s;
  s.memory = w.memory;
  s.reset = [&w] { w.Put(kEnd, 3, 4); };
  s.processes = {[&w] { w.Spend(0, 1); }, [&w] { w.Spend(1, 1); }};
  s.check = [&w](const std::vector<bool>& killed) -> std::string {
    const window::Open o = w.OpenAt(kEnd);
    if (o.closed != w.units(3)) return "the closed window's count is wrong";
    if (w.New() > 1) return "more was admitted than is left";
    return IsAnyKilled(killed) || w.New() == 1 ? "" : "less was admitted than is left";
  };
  ExpectClean(std::move(s), "two begin a window");
}

// W3: what is paid is never less than what was admitted.
TEST(WindowSlotModel, NoTokenIsPaidTwiceFromOnePurse) {
  for (const Kind kind : {Kind::kFixedWindow, Kind::kSlidingWindow}) {
    World w(kind, 256 << 14);
    w.boundary_ns = 0;
    for (uint64_t& now_ns : ClockOfEach::now_ns) now_ns = kEnd - kSecond / 2;
    Scenario s;
    s.memory = w.memory;
    const uint64_t per_token = 1ull << w.terms().token_shift;
    s.reset = [&w, per_token] { w.Put(kEnd, 512, 0, /*purse=*/150 * per_token); };
    const auto twice = [&w](int who) {
      return [&w, who] {
        w.Spend(who, 100);
        w.Spend(who, 300);
      };
    };
    s.processes = {twice(0), twice(1)};
    s.check = [&w](const std::vector<bool>& killed) -> std::string {
      const window::Open o = w.OpenAt(ClockOfEach::now_ns[2]);
      const uint64_t fine = (o.count << w.terms().part_bits) - o.purse;
      const uint64_t used = fine >> w.terms().token_shift;
      const uint64_t due = 512 - 150 + w.New();
      if (used < due) return "more was admitted than paid";
      if (!IsAnyKilled(killed) && w.New() != 800) return "not all were admitted";
      return used <= due + 4 * 256 ? "" : "too much was lost";
    };
    ExpectClean(std::move(s), "a purse");
  }
}

// W3: what is given back is never more than was spent, whoever pays or spends meanwhile.
TEST(WindowSlotModel, ARefundBesideASpenderGivesNothingTwice) {
  for (const Kind kind : {Kind::kFixedWindow, Kind::kSlidingWindow}) {
    World w(kind, 256 << 14);
    w.boundary_ns = 0;
    for (uint64_t& now_ns : ClockOfEach::now_ns) now_ns = kEnd - kSecond / 2;
    const uint64_t per_token = 1ull << w.terms().token_shift;
    Scenario s;
    s.memory = w.memory;
    s.reset = [&w, per_token] { w.Put(kEnd, 1024, 0, /*purse=*/150 * per_token); };
    // Of the 874 tokens that are used, 300 and then 200: a purse that overflows, and one that does
    // not.
    s.processes = {[&w] {
                     w.Refund(300);
                     w.Refund(200);
                   },
                   [&w] {
                     w.Spend(1, 100);
                     w.Spend(1, 30);
                   }};
    s.check = [&w](const std::vector<bool>& killed) -> std::string {
      const window::Open o = w.OpenAt(ClockOfEach::now_ns[2]);
      const uint64_t fine = (o.count << w.terms().part_bits) - o.purse;
      const uint64_t used = fine >> w.terms().token_shift;
      const uint64_t due = 1024 - 150 - 500 + w.New();
      if (used < due) return "more was given back than was spent";
      if (IsAnyKilled(killed)) return "";
      if (w.New() != 130) return "not all were admitted";
      return used <= due + 4 * 256 ? "" : "too much was lost";
    };
    ExpectClean(std::move(s), "a refund beside a spender");
  }
}

// W1: who is late for A, with the words that it read, neither spends from B nor lends it A's past.
TEST(WindowSlotModel, AnotherTenancysPastIsNeverRead) {
  World w(Kind::kSlidingWindow, 10);
  w.boundary_ns = 0;
  ClockOfEach::now_ns[0] = kEnd + 1000;
  ClockOfEach::now_ns[2] = kLate + w.terms().length_ns + window::kStepNs + 1000;
  Scenario s;
  s.memory = w.memory;
  s.reset = [&w] {
    w.Put(kEnd, 9, 10);
    w.slot().used.quiet = true;
  };
  s.processes = {[&w] { w.Spend(0, 1); }, [&w] { w.ClaimForB(1); }};
  s.max_kills = 0;
  s.check = [&w](const std::vector<bool>& killed) -> std::string {
    const uint64_t k = w.slot().key.value;
    if (killed[1] || shm::key::Fp(k) != shm::FingerprintOf(kKeyB)) return "";
    const window::Open o = w.OpenAt(ClockOfEach::now_ns[2]);
    if (o.closed != w.units(2)) return "B's past is not B's";
    return o.count == w.units(1) ? "" : "B's count is not B's";
  };
  ExpectClean(std::move(s), "a window's next tenant", /*bounded=*/true);
}

// W1, W2: the daemon folds Redis' next window while a client begins it too, or still spends.
TEST(WindowSlotModel, AFoldUnderASpenderLeavesAWindowThatBothMean) {
  for (const uint64_t client_ns : {kEnd - 1000, kEnd + 1000}) {
    World w(Kind::kSlidingWindow, 100);
    w.boundary_ns = kEnd;
    ClockOfEach::now_ns[0] = client_ns;
    ClockOfEach::now_ns[1] = kEnd + 1000;
    ClockOfEach::now_ns[2] = kEnd + 2000;
    Scenario s;
    s.memory = w.memory;
    s.reset = [&w] { w.Put(kEnd, 4, 2); };
    s.processes = {
        [&w] {
          w.Spend(0, 1);
          w.Spend(0, 1);
        },
        [&w] {
          window::FoldWindow(
              w.slot(), w.second_, w.slot().key.value, w.terms(), ClockOfEach::now_ns[1],
              {.left_ns = w.terms().length_ns - 1000, .current = 20, .closed = 40, .on_the_way = 0},
              {.tokens = 0, .end_ns = 0}, 0);
        }};
    s.check = [&w](const std::vector<bool>& killed) -> std::string {
      const window::Open o = w.OpenAt(ClockOfEach::now_ns[2]);
      if (o.end_ns != kEnd + w.terms().length_ns) return "another window is open";
      if (o.closed < w.units(4)) return "the old window's count was forgotten";
      if (killed[1]) return "";
      return o.count >= w.units(20) && o.closed >= w.units(40) ? "" : "Redis' word was forgotten";
    };
    ExpectClean(std::move(s), "a fold under a spender");
  }
}

}  // namespace
}  // namespace sluice::model
