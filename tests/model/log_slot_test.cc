// Sliding logs on slots, all interleavings of two processes with a kill before any shared access.
// The invariants L1 to L5 are stated in shm/log_row.h and shm/log_slot.h; each check names the ones
// it looks at.
#include "shm/log_slot.h"

#include <gtest/gtest.h>

#include "tests/model/expect_clean.h"
#include "tests/model/row_world.h"

namespace sluice::model {
namespace {

namespace logs = shm::logs;

// Long after a short period, but not so late that a time of then is wild for who reads kNow again:
// the clock of each stands still.
constexpr uint64_t kShort = kSecond / 10;
constexpr uint64_t kLate = kNow + 9 * kShort;

class World : public RowWorld {
 public:
  explicit World(uint32_t limit, uint64_t period_ns = kSecond)
      : limit_(logs::MakeLimit(limit, period_ns)) {}

  // Entries as if of long ago.
  void Clear() {
    ClearTable(kRow);
    for (uint32_t& n : admitted_) n = 0;
  }

  // A tenancy of A, whose first `taken` entries were taken so long before `now_ns`.
  void Put(uint32_t slot, uint32_t taken, uint64_t ago_ns, uint64_t word_ns) {
    PutTenancy(slot, Kind::kSlidingLog, shm::payload::Make(word_ns, 0));
    for (uint32_t e = 0; e < taken; ++e) {
      Entry(slot, e).value = logs::Make(kGen, logs::StampUs(kNow - ago_ns));
    }
  }

  // One check in the slot `index`.
  shm::Outcome Check(uint32_t index, uint32_t tokens, uint64_t hash, bool brief, shm::Seen* found) {
    shm::RequestTime<ClockOfEach> time(false, 0);
    shm::Limit limit = limit_;
    limit.burst = std::min(limit.burst, most);
    const shm::Charge charge = ChargeOf(limit, Kind::kSlidingLog, tokens);
    return logs::CheckLog<Cell>(table(), index, hash, nullptr, charge, brief, time, found);
  }

  // As a client does: finds or claims, resolves, checks. Returns the slot where it was admitted.
  uint32_t Spend(int who, uint32_t tokens, uint64_t hash = kKeyA, bool brief = true) {
    for (int round = 0; round < 4; ++round) {
      const uint32_t index = FindAlone(table(), hash, Kind::kSlidingLog, EnvNow());
      if (index == shm::kNoSlot) return shm::kNoSlot;
      const shm::Outcome outcome = Check(index, tokens, hash, brief, &seen[who]);
      if (outcome == shm::Outcome::kLost) continue;
      if (outcome != shm::Outcome::kAllowed) return shm::kNoSlot;
      admitted_[who] += tokens;
      return index;
    }
    return shm::kNoSlot;
  }
  // The step of a check in which a token is taken, for a class that may use `part`, in the slot
  // kLower.
  void TakeOnce(int who, uint32_t part) {
    const logs::Row<Cell> row = table().log_rows().of(kLower);
    const logs::Terms t = logs::TermsOf(limit_);
    const uint64_t now_ns = ClockOfEach::PreciseNs();
    const logs::Taken taken = logs::Take(row, t, kGen, now_ns, 0, 1);
    const logs::Room room = {.most = part, .quota = part, .left = part, .gone_ns = 0};
    if (taken.count == 1 && !logs::IsOver(row, t, room, kGen, now_ns, 1)) {
      ++admitted_[who];
    } else {
      logs::GiveBack(row, t.limit, kGen, logs::StampUs(now_ns), 0, taken.count);
    }
  }
  bool GiveBack(int who, uint32_t index, uint32_t tokens) {
    const bool given = logs::RefundLog(slots_[index], table().log_rows().of(index), 0,
                                       seen[who].gen, seen[who].verdict.new_ns, tokens,
                                       limit_.period_ns, ClockOfEach::PreciseNs());
    if (given) admitted_[who] -= tokens;
    return given;
  }

  static shm::SlotTable<Cell>::Env EnvNow() {
    return {ClockOfEach::PreciseNs(), kSecond / 1000, 5000 * kSecond};
  }
  shm::SlotTable<Cell> table() {
    return shm::SlotTable<Cell>::OfLogs(slots_, {kCapacity, kRow}, counters_, entries_,
                                        logs::TermsOf(limit_));
  }
  uint32_t Admitted() const { return admitted_[0] + admitted_[1]; }
  uint32_t Admitted(int who) const { return admitted_[who]; }
  // Entries of the key's slots that count at `now_ns`.
  uint32_t Live(uint64_t hash, uint64_t now_ns) {
    const logs::Terms terms = logs::TermsOf(limit_);
    return CountTaken(hash, [&](uint64_t entry, uint16_t gen) {
      return logs::IsFree(terms, entry, gen, now_ns);
    });
  }

  shm::Seen seen[3];
  uint64_t most = shm::kNever;  // what the class of the requests may use

 private:
  shm::Limit limit_;
  uint32_t admitted_[3] = {};
};

bool IsAnyKilled(const std::vector<bool>& killed) {
  return std::find(killed.begin(), killed.end(), true) != killed.end();
}

void AllNow(uint64_t now_ns) {
  for (uint64_t& each : ClockOfEach::now_ns) each = now_ns;
}

// L1, L5: two ask for two of three tokens. One has them, the other takes nothing; a killed one
// leaves what it had taken at most.
TEST(LogSlotModel, OfTwoWhoCannotBothHaveAllOneDoes) {
  World w(3);
  AllNow(kNow);
  for (const bool brief : {true, false}) {
    Scenario s;
    s.memory = w.memory;
    s.reset = [&w] {
      w.Clear();
      w.Put(kLower, 0, 0, kNow);
      w.CloseOthers(kLower);
    };
    s.processes = {[&w, brief] { w.Spend(0, 2, kKeyA, brief); },
                   [&w, brief] { w.Spend(1, 2, kKeyA, brief); }};
    s.check = [&w](const std::vector<bool>& killed) -> std::string {
      if (w.Admitted() > 2) return "more was admitted than there is";
      if (w.Live(kKeyA, kNow) < w.Admitted()) return "what was admitted was forgotten";
      if (w.Live(kKeyA, kNow) > w.Admitted() + (IsAnyKilled(killed) ? 2 : 0)) return "taken twice";
      return IsAnyKilled(killed) || w.Admitted() == 2 ? "" : "neither had what there is";
    };
    ExpectClean(std::move(s), "two who want two of three", /*bounded=*/true);
  }
}

// L6: two of a class that may find two of four tokens used, of which one is: at most one of them
// has the other, and a killed one leaves what it had taken at most. One of both tries but once: two
// that hinder each other step by step would do so until they give up.
TEST(LogSlotModel, OfAClassNoMoreThanItsPartIsHadAtOnce) {
  for (const bool brief : {true, false}) {
    World w(4);
    AllNow(kNow);
    Scenario s;
    s.memory = w.memory;
    s.reset = [&w] {
      w.Clear();
      w.Put(kLower, 1, kSecond / 2, kNow + kSecond);
      w.CloseOthers(kLower);
    };
    w.most = 2;
    s.processes = {[&w, brief] { w.Spend(0, 1, kKeyA, brief); }, [&w] { w.TakeOnce(1, 2); }};
    s.check = [&w](const std::vector<bool>& killed) -> std::string {
      if (w.Admitted() > 1) return "the class had more than its part";
      if (w.Live(kKeyA, kNow) < 1 + w.Admitted()) return "what was admitted was forgotten";
      if (w.Live(kKeyA, kNow) > 1 + w.Admitted() + (IsAnyKilled(killed) ? 1 : 0)) return "kept";
      return "";
    };
    ExpectClean(std::move(s), "two of a class that want its last token", /*bounded=*/true);
  }
}

// L1: the last token goes to one, and one that is just free again too.
TEST(LogSlotModel, NoTokenGoesToTwo) {
  World w(2);
  AllNow(kNow);
  Scenario s;
  s.memory = w.memory;
  s.reset = [&w] {
    w.Clear();
    w.Put(kLower, 1, kSecond, kNow);  // free again at this very moment
    w.CloseOthers(kLower);
  };
  s.processes = {[&w] {
                   w.Spend(0, 1);
                   w.Spend(0, 1);
                 },
                 [&w] {
                   w.Spend(1, 1);
                   w.Spend(1, 1);
                 }};
  s.check = [&w](const std::vector<bool>& killed) -> std::string {
    if (w.Admitted() > 2) return "more was admitted than there is";
    if (w.Live(kKeyA, kNow) < w.Admitted()) return "what was admitted was forgotten";
    return IsAnyKilled(killed) || w.Admitted() == 2 ? "" : "less was admitted than there is";
  };
  ExpectClean(std::move(s), "two spend the last tokens");
}

// L1: what is given back is free from the time on at which it was taken, and not for who has read
// the time before: for him the token that was there before still counts.
TEST(LogSlotModel, WhatIsGivenBackDoesNotComeEarly) {
  World w(1);
  AllNow(kNow);
  ClockOfEach::now_ns[1] = kNow - 10'000;
  Scenario s;
  s.memory = w.memory;
  s.reset = [&w] {
    w.Clear();
    w.Put(kLower, 1, kSecond, kNow);  // free at kNow
    w.CloseOthers(kLower);
  };
  s.processes = {[&w] {
                   const uint32_t index = w.Spend(0, 1);
                   if (index != shm::kNoSlot) w.GiveBack(0, index, 1);
                 },
                 [&w] { w.Spend(1, 1); }};
  s.check = [&w](const std::vector<bool>& killed) -> std::string {
    if (w.Admitted(1) != 0) return "a token came early";
    return IsAnyKilled(killed) || w.Live(kKeyA, kNow) == 0 ? "" : "it was not given back";
  };
  ExpectClean(std::move(s), "a refund under who has an earlier time");
}

// L2: one gives back what it took while another takes as much at the same time.
TEST(LogSlotModel, ARefundGivesBackAsMuchAsWasTaken) {
  World w(3);
  AllNow(kNow);
  Scenario s;
  s.memory = w.memory;
  s.reset = [&w] {
    w.Clear();
    w.Put(kLower, 0, 0, kNow);
    w.CloseOthers(kLower);
  };
  s.processes = {[&w] {
                   const uint32_t index = w.Spend(0, 1);
                   if (index != shm::kNoSlot) w.GiveBack(0, index, 1);
                 },
                 [&w] {
                   w.Spend(1, 1);
                   w.Spend(1, 1);
                 }};
  s.check = [&w](const std::vector<bool>& killed) -> std::string {
    const uint32_t live = w.Live(kKeyA, kNow);
    if (live < w.Admitted()) return "more was given back than was taken";
    return IsAnyKilled(killed) || (live == w.Admitted() && live == 2) ? "" : "less was given back";
  };
  ExpectClean(std::move(s), "a refund beside a spender", /*bounded=*/true);
}

// L4: who is late for A while its slot goes to B neither spends from B nor keeps A's slot.
TEST(LogSlotModel, TheNextTenantHasALogOfItsOwn) {
  World w(1, kShort);
  for (const uint64_t ago_ns : {uint64_t{0}, 2 * kShort}) {
    AllNow(kLate);
    ClockOfEach::now_ns[0] = kNow;
    Scenario s;
    s.memory = w.memory;
    s.reset = [&w, ago_ns] {
      w.Clear();
      w.Put(kLower, 1, ago_ns, kNow + shm::payload::kStepNs);
      w.CloseOthers(kLower);
    };
    s.processes = {[&w] { w.Check(kLower, 1, kKeyA, true, &w.seen[0]); },
                   [&w] {
                     w.Spend(1, 1, kKeyB);
                     w.Spend(1, 1, kKeyB);
                   }};
    s.max_kills = 0;
    s.check = [&w](const std::vector<bool>&) -> std::string {
      if (shm::key::Fp(w.slot(kLower).key.value) != shm::FingerprintOf(kKeyB)) return "";
      if (w.Admitted(1) > 1) return "B had more than its limit";
      if (w.Live(kKeyB, kLate) < w.Admitted(1)) return "what B took was forgotten";
      return w.Admitted(1) == 1 ? "" : "B paid for A";
    };
    ExpectClean(std::move(s), "a log's next tenant", /*bounded=*/true);
  }
}

// L4: a token that counts is not lost with its slot: it is raised first.
TEST(LogSlotModel, ASlotIsNotTakenFromWhoHasJustSpent) {
  World w(2);
  AllNow(kNow);
  Scenario s;
  s.memory = w.memory;
  s.reset = [&w] {
    w.Clear();
    w.Put(kLower, 0, 0, kNow - kSecond);  // may be taken by another
    w.CloseOthers(kLower);
  };
  s.processes = {[&w] { w.Spend(0, 1); }, [&w] { w.Spend(1, 1, kKeyB); }};
  s.check = [&w](const std::vector<bool>&) -> std::string {
    if (w.Admitted(0) != 0 && w.Admitted(1) != 0) return "both spent in one slot";
    if (w.Live(kKeyA, kNow) < w.Admitted(0)) return "A's token was forgotten";
    return w.Live(kKeyB, kNow) < w.Admitted(1) ? "B's token was forgotten" : "";
  };
  ExpectClean(std::move(s), "an eviction under who spends", /*bounded=*/true);
}

// L3: two claimers of one key may name two slots; together they have no more than the limit.
TEST(LogSlotModel, TwoClaimersOfAKeyShareItsLimit) {
  for (const uint32_t kills : {0u, 1u}) {
    World w(1);
    AllNow(kNow);
    Scenario s;
    s.memory = w.memory;
    s.max_kills = kills;
    s.reset = [&w] { w.Clear(); };
    s.processes = {[&w] { w.Spend(0, 1); }, [&w] { w.Spend(1, 1); }};
    s.check = [&w](const std::vector<bool>&) -> std::string {
      return w.Admitted() <= 1 ? "" : "two slots served one limit";
    };
    ExpectClean(std::move(s), "two claimers of a log", /*bounded=*/true);
  }
}

// L3: a key stands in two slots, of which the higher has served; one resolves that and spends,
// while another who found the higher spends there.
TEST(LogSlotModel, WhatADuplicateServedCountsWhereItGoes) {
  for (const uint32_t kills : {0u, 1u}) {
    World w(2);
    AllNow(kNow);
    Scenario s;
    s.memory = w.memory;
    s.max_kills = kills;
    s.reset = [&w] {
      w.Clear();
      w.Put(kLower, 0, 0, kNow);
      w.Put(kHigher, 1, 1000, kNow + kSecond);
    };
    s.processes = {[&w] {
                     if (w.Check(kHigher, 1, kKeyA, true, &w.seen[0]) == shm::Outcome::kAllowed) {
                       w.Spend(0, 1);
                     }
                     w.Spend(0, 1);
                   },
                   [&w] { w.Spend(1, 1); }};
    s.check = [&w](const std::vector<bool>& killed) -> std::string {
      // A process that is killed between a take and its counting took as much as it may.
      if (w.Admitted() > 1) return "what the duplicate served was forgotten";
      if (w.Live(kKeyA, kNow) < 1 + w.Admitted()) return "a token was lost";
      return IsAnyKilled(killed) || w.table().Find(kKeyA) == kLower ? "" : "no slot remains";
    };
    ExpectClean(std::move(s), "a duplicate that has served", /*bounded=*/true);
  }
}

// L3: two resolve the same two slots.
TEST(LogSlotModel, TwoWhoResolveADuplicateLoseNothing) {
  World w(3);
  AllNow(kNow);
  Scenario s;
  s.memory = w.memory;
  s.reset = [&w] {
    w.Clear();
    w.Put(kLower, 0, 0, kNow);
    w.Put(kHigher, 2, 1000, kNow + kSecond);
  };
  const auto resolve = [&w] { w.table().ResolveDuplicates(kKeyA, World::EnvNow()); };
  s.processes = {resolve, resolve};
  s.check = [&w](const std::vector<bool>& killed) -> std::string {
    const uint32_t live = w.Live(kKeyA, kNow);
    if (live < 2) return "a token was lost";
    return IsAnyKilled(killed) || live == 2 ? "" : "a token was moved twice";
  };
  ExpectClean(std::move(s), "two resolve a duplicate", /*bounded=*/true);
}

}  // namespace
}  // namespace sluice::model
