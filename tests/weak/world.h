// A small table over weak memory, and what processes do to it: the production templates, called as
// the client and the daemon call them.
#pragma once

#include <algorithm>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "shm/bucket.h"
#include "shm/key_text.h"
#include "shm/log_slot.h"
#include "shm/slot_table.h"
#include "shm/take.h"
#include "shm/window_slot.h"
#include "tests/weak/weak_cell.h"

namespace sluice::weak {

inline constexpr uint64_t kSecond = 1'000'000'000;
inline constexpr uint64_t kNow = 1000 * kSecond;
inline constexpr uint32_t kCapacity =
    8;  // two groups: every key's neighbourhood is the whole table
inline constexpr uint64_t kKeyA = 0xaaaa'0000'0000'0000;
inline constexpr uint64_t kKeyB = 0xbbbb'0000'0000'0000;
inline const shm::Limit kTwo = shm::MakeLimit(1, kSecond, 2);
inline const shm::Limit kOneLog = shm::logs::MakeLimit(1, kSecond);

struct WorldClock {
  static uint64_t PreciseNs() { return kNow; }
  static uint64_t CoarseNs() { return kNow; }
};

// What a scenario is about; the other cells are quiet, for they would only multiply the states.
enum About : unsigned {
  kUsed = 1,
  kAux = 2,
  kDirtyBits = 4,
  kDenied = 8,
  kText = 16,
  kSecondWord = 32,
  kLog = 64
};

// A table whose slots are all taken by strangers for long, but those in `open`.
class World {
 public:
  using Table = shm::SlotTable<Cell>;
  using Slot = shm::BasicSlot<Cell>;

  World(std::vector<uint32_t> open, unsigned about)
      : open_(std::move(open)), about_(about), memory_(Cells()) {}

  Table table() { return Table(slots_, kCapacity, counters_); }
  Table::Env Env() const { return {kNow, kSecond, 1000 * kSecond}; }
  bool IsOpen(uint32_t slot) const {
    return std::find(open_.begin(), open_.end(), slot) != open_.end();
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
  static uint64_t KeyAt3(uint64_t hash) {
    return shm::key::Make(shm::FingerprintOf(hash), shm::Kind::kTokenBucket, 3);
  }
  void PutDirty(uint32_t slot) {
    slots_[slot].aux.value = shm::aux::kDirty;
    dirty_.value |= 1u << slot;
  }

  // A check of a slot that is known, as by a handle.
  shm::Outcome Check(uint32_t slot, uint64_t hash, int64_t* admitted) {
    Table t = table();
    shm::RequestTime<WorldClock> time(false, 0);
    shm::Seen seen;
    const shm::Charge charge{.cost_ns = kTwo.interval_ns,
                             .tau_ns = kTwo.tau_ns,
                             .debt_max_ns = kTwo.debt_max_ns,
                             .tokens = 1,
                             .commit = true};
    const shm::Outcome outcome =
        shm::CheckSlot(slots_[slot], shm::FingerprintOf(hash), charge, time, t, &seen);
    if (outcome == shm::Outcome::kAllowed) {
      ++*admitted;
      shm::AddUse(slots_[slot], &dirty_, slot, 1);
    }
    return outcome;
  }

  // A check that finds its slot, or claims one and writes its text.
  shm::Outcome Spend(uint64_t hash, int64_t* admitted) {
    Table t = table();
    for (int restart = 0; restart < 3; ++restart) {
      uint32_t slot = t.Find(hash);
      if (slot != shm::kNoSlot) {
        const uint64_t w = slots_[slot].word.load(std::memory_order_acquire);
        if (shm::word::IsDead(w)) {
          t.SettleOf(hash, slot, w, Env());
          slot = shm::kNoSlot;
        }
      }
      bool claimed = false;
      if (slot == shm::kNoSlot) {
        slot = t.FindOrClaim(hash, shm::Kind::kTokenBucket, 0, Env(), &claimed);
      }
      if (slot == shm::kNoSlot) return shm::Outcome::kGaveUp;
      const shm::Outcome outcome = Check(slot, hash, admitted);
      if (outcome != shm::Outcome::kLost) return outcome;
    }
    return shm::Outcome::kGaveUp;
  }

  // A sliding window of `limit` a second in slot 2, A's: it has just ended, with so many counted.
  void PutWindow(uint64_t limit, uint64_t counted, uint64_t purse) {
    const shm::window::Terms terms =
        shm::window::TermsOf(shm::Kind::kSlidingWindow, limit, kSecond);
    const uint64_t end_ns = shm::window::TimeNs(kNow);
    const auto units = [limit](uint64_t tokens) {
      return shm::window::UnitsOfTokens(tokens, shm::window::ScaleOf(limit));
    };
    // One with a purse goes on for a length.
    const uint64_t ahead_ns = purse == 0 ? terms.length_ns : 2 * terms.length_ns;
    slots_[2].word.value = shm::window::Make(end_ns + ahead_ns, units(counted));
    slots_[2].key.value = shm::key::Make(shm::FingerprintOf(kKeyA), shm::Kind::kSlidingWindow, 3);
    second_.value = shm::window::second::Make(3, end_ns + ahead_ns - 2 * terms.length_ns, 0, purse);
  }
  void CheckWindow(uint64_t limit, uint32_t tokens, int64_t* admitted) {
    const Table t = table();
    const shm::Limit l = shm::window::MakeLimit(limit, kSecond);
    shm::RequestTime<WorldClock> time(false, 0);
    shm::Seen seen;
    const shm::Charge charge{.cost_ns = 0,
                             .tau_ns = l.tau_ns,
                             .debt_max_ns = l.debt_max_ns,
                             .tokens = tokens,
                             .commit = true,
                             .kind = shm::Kind::kSlidingWindow,
                             .limit = &l};
    const shm::Outcome outcome = shm::window::CheckWindow(
        slots_[2], &second_, shm::FingerprintOf(kKeyA), charge, time, t, &seen);
    if (outcome == shm::Outcome::kAllowed) *admitted += tokens;
  }

  // Sliding logs of one token a second. A's in slot 6; slot 2 is as who claims it for A too, having
  // looked before, leaves it right before he names it.
  void PutLogs() {
    for (const uint32_t slot : {2u, 6u}) {
      slots_[slot].word.value = shm::payload::Make(kNow, 0);
      slots_[slot].key.value = slot == 2 ? 0 : LogKey();
    }
  }
  // As step 3 does.
  void NameLog() {
    uint64_t k = 0;
    slots_[2].key.compare_exchange_strong(k, LogKey(), std::memory_order_seq_cst);
    LogTable().ResolveDuplicates(kKeyA, Env());
  }
  void CheckLog(uint32_t slot, int64_t* admitted) {
    shm::RequestTime<WorldClock> time(false, 0);
    shm::Seen seen;
    const shm::Charge charge{.cost_ns = 0,
                             .tau_ns = kOneLog.tau_ns,
                             .debt_max_ns = kOneLog.debt_max_ns,
                             .tokens = 1,
                             .commit = true,
                             .kind = shm::Kind::kSlidingLog,
                             .limit = &kOneLog};
    const shm::Outcome outcome = shm::logs::CheckLog<Cell>(LogTable(), slot, kKeyA, nullptr, charge,
                                                           /*brief=*/true, time, &seen);
    if (outcome == shm::Outcome::kAllowed) ++*admitted;
  }
  static uint64_t LogKey() {
    return shm::key::Make(shm::FingerprintOf(kKeyA), shm::Kind::kSlidingLog, 3);
  }
  Table LogTable() {
    return Table::OfLogs(slots_, {kCapacity, 1}, counters_, entries_, shm::logs::TermsOf(kOneLog));
  }

  bool Claim(uint64_t hash) {
    bool claimed = false;
    table().FindOrClaim(hash, shm::Kind::kTokenBucket, 0, Env(), &claimed);
    return claimed;
  }

  // What the harvester does with each slot of the bitmap.
  void Harvest() {
    uint64_t bits = shm::TakeDirty(dirty_);
    for (; bits != 0; bits &= bits - 1) {
      Slot& slot = slots_[__builtin_ctzll(bits)];
      shm::ClearDirty(slot);
      Take(slot, slot.key.load(std::memory_order_acquire));
    }
  }
  void Take(Slot& slot, uint64_t key) {
    if (shm::key::Fp(key) == 0) return;
    taken_ += shm::TakeUse(slot, key);
    denied_taken_ += static_cast<int64_t>(shm::TakeDenied(denied_, key));
  }

  // At rest, outside the processes.
  int64_t UseOf(uint64_t hash) const {
    int64_t use = 0;
    for (const Slot& s : slots_) {
      if (shm::key::Fp(s.key.value) != shm::FingerprintOf(hash)) continue;
      if (shm::used::Gen(s.used.value) == shm::key::Gen(s.key.value)) {
        use += shm::used::Count(s.used.value);
      }
    }
    return use;
  }
  int Places(uint64_t hash) const {
    return static_cast<int>(std::count_if(std::begin(slots_), std::end(slots_), [&](const Slot& s) {
      return shm::key::Fp(s.key.value) == shm::FingerprintOf(hash);
    }));
  }
  bool IsDirty(uint32_t slot) const { return ((dirty_.value >> slot) & 1) != 0; }
  bool IsLost(uint32_t slot) {
    const Cell& word = slots_[slot].word;
    for (int i = 0; i < 3 && shm::word::IsDead(word.value); ++i) {
      table().Settle(slot, word.value, kNow);
    }
    return shm::word::IsDead(word.value);
  }

  // The processes in the world as `put` leaves it.
  model::Scenario In(std::function<void()> put, std::vector<std::function<void()>> processes,
                     std::function<std::string(const std::vector<bool>&)> check) {
    model::Scenario s;
    s.reset = [this, put = std::move(put), count = processes.size()] {
      Reset();
      put();
      memory_.Reset(count);
    };
    s.hash = [this] { return memory_.Hash(); };
    s.processes = std::move(processes);
    s.check = [this, check = std::move(check)](const std::vector<bool>& killed) {
      return memory_.refused().empty() ? check(killed) : "refused: " + memory_.refused();
    };
    s.max_kills = 0;
    return s;
  }

  Slot slots_[kCapacity];
  Cell dirty_;
  Cell denied_;
  Cell second_;
  Cell entries_[kCapacity];
  shm::BasicKeyText<Cell> text_;
  Cell counters_[shm::kCounters];
  int64_t admitted_a_ = 0;
  int64_t admitted_b_ = 0;
  bool claimed_ = false;
  int64_t taken_ = 0;
  int64_t denied_taken_ = 0;

 private:
  std::vector<Cell*> Cells() {
    std::vector<Cell*> cells;
    const auto add = [&](Cell& cell, const char* name) {
      cell.name = name;
      cells.push_back(&cell);
    };
    for (Slot& s : slots_) {
      add(s.word, "word");
      add(s.key, "key");
      add(s.used, "used");
      add(s.aux, "aux");
    }
    add(dirty_, "dirty");
    add(denied_, "denied");
    add(second_, "second");
    for (Cell& cell : entries_) add(cell, "entry");
    add(text_.tag, "tag");
    for (Cell& cell : text_.words) add(cell, "text");
    for (Cell& cell : counters_) add(cell, "counter");
    return cells;
  }

  void Reset() {
    for (uint32_t i = 0; i < kCapacity; ++i) {
      const bool is_open = IsOpen(i);
      Slot& s = slots_[i];
      s.word.value = is_open ? 0 : kNow + 100 * kSecond;
      s.key.value = is_open ? 0 : shm::key::Make(1000 + i, shm::Kind::kTokenBucket, 0);
      s.used.value = shm::used::Make(0, 0);
      s.aux.value = 0;
      s.word.quiet = s.key.quiet = !is_open;
      s.used.quiet = !is_open || (about_ & kUsed) == 0;
      s.aux.quiet = !is_open || (about_ & kAux) == 0;
    }
    for (Cell& cell : counters_) {
      cell.value = 0;
      cell.quiet = true;
    }
    dirty_.value = denied_.value = second_.value = text_.tag.value = 0;
    second_.quiet = (about_ & kSecondWord) == 0;
    dirty_.quiet = (about_ & kDirtyBits) == 0;
    denied_.quiet = (about_ & kDenied) == 0;
    text_.tag.quiet = (about_ & kText) == 0;
    for (size_t i = 0; i < shm::kKeyTextWords; ++i) {
      text_.words[i].value = 0;
      text_.words[i].quiet = i > 1 || (about_ & kText) == 0;
    }
    for (uint32_t i = 0; i < kCapacity; ++i) {
      entries_[i].value = 0;
      entries_[i].quiet = !IsOpen(i) || (about_ & kLog) == 0;
    }
    admitted_a_ = admitted_b_ = 0;
    claimed_ = false;
    taken_ = denied_taken_ = 0;
  }

  std::vector<uint32_t> open_;
  unsigned about_;
  Memory memory_;
};

}  // namespace sluice::weak
