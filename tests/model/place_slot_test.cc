// Places on slots, all interleavings of two processes with a kill before any shared access. The
// invariants F1 to F4 are stated in shm/places.h, F5 and F6 in shm/lent_places.h; each check names
// the ones it looks at.
#include "shm/place_slot.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "tests/model/expect_clean.h"
#include "tests/model/explorer.h"

namespace sluice::model {
namespace {

using shm::Kind;
namespace places = shm::places;

constexpr uint64_t kSecond = 1'000'000'000;
constexpr uint32_t kCapacity = 8;
constexpr uint32_t kRow = 3;    // entries of a row
constexpr uint32_t kLower = 2;  // slots that are free to be claimed
constexpr uint32_t kHigher = 6;
constexpr uint16_t kGen = 3;
constexpr uint64_t kKeyA = 0xaaaa'0000'0000'0000;
constexpr uint64_t kKeyB = 0xbbbb'0000'0000'0000;
constexpr uint64_t kNow = shm::payload::kStepNs * 100'000;

// A table of two groups, in which two slots are to be had.
class World {
 public:
  explicit World(uint32_t limit) : limit_(places::MakeLimit(limit)) {
    for (shm::BasicSlot<Cell>& s : slots_) {
      for (Cell* cell : {&s.word, &s.key, &s.used, &s.aux}) memory.push_back(cell);
    }
    for (Cell& e : entries_) memory.push_back(&e);
    for (Cell& c : caps_) memory.push_back(&c);
  }

  // The two slots empty since long, all others taken for long.
  void Clear() {
    for (uint32_t i = 0; i < kCapacity; ++i) {
      const bool is_open = i == kLower || i == kHigher;
      slots_[i].word.value = is_open ? kNow - 100 * kSecond : kNow + 1000 * kSecond;
      slots_[i].key.value = is_open ? shm::key::Make(0, Kind::kTokenBucket, kGen - 1)
                                    : shm::key::Make(1000 + i, Kind::kTokenBucket, 0);
      slots_[i].used.value = shm::used::Make(is_open ? kGen - 1 : 0, 0);
      slots_[i].aux.value = 0;
      for (Cell* cell : {&slots_[i].word, &slots_[i].key}) cell->quiet = !is_open;
      slots_[i].used.quiet = slots_[i].aux.quiet = true;
      for (uint32_t e = 0; e < kRow; ++e) {
        Entry(i, e).value = 0;
        Entry(i, e).quiet = !is_open || e >= limit_.limit;
      }
    }
    for (Cell& cell : counters_) cell.quiet = true;
    for (Cell& cell : caps_) {
      cell.value = 0;
      cell.quiet = !is_lent;
    }
    for (auto& of : in_) of.clear();
  }

  // A tenancy of A in which `who` holds the first `held` places.
  void Put(uint32_t slot, uint32_t held, int who = 2) {
    slots_[slot].key.value = shm::key::Make(shm::FingerprintOf(kKeyA), Kind::kInFlight, kGen);
    slots_[slot].used.value = shm::used::Make(kGen, 0);
    slots_[slot].word.value = held == 0
                                  ? shm::payload::Make(kNow - kSecond, 0)
                                  : places::Pinned(0, kNow, static_cast<uint32_t>(limit_.limit));
    for (uint32_t e = 0; e < held; ++e) {
      const uint64_t entry = places::Make(kGen, NameOf(who, e));
      Entry(slot, e).value = entry;
      in_[who].push_back({slot, entry, e});
    }
  }
  // A third holds the entry `e` of the slot.
  void PutHeld(uint32_t slot, uint32_t e) {
    Entry(slot, e).value = places::Make(kGen, NameOf(2, e));
    in_[2].push_back({slot, Entry(slot, e).value, e});
  }
  void CloseOthers(uint32_t slot) {
    for (uint32_t i = 0; i < kCapacity; ++i) {
      if (i == slot) continue;
      slots_[i].key.value = shm::key::Make(1000 + i, Kind::kTokenBucket, 0);
      slots_[i].word.value = kNow + 1000 * kSecond;
      for (Cell* cell : {&slots_[i].word, &slots_[i].key}) cell->quiet = true;
      for (uint32_t e = 0; e < kRow; ++e) Entry(i, e).quiet = true;
    }
  }

  shm::Outcome Try(int who, uint32_t index, uint32_t cost, uint64_t hash) {
    shm::RequestTime<ClockOfEach> time(false, 0);
    const shm::Charge charge{.cost_ns = 0,
                             .tau_ns = limit_.tau_ns,
                             .debt_max_ns = limit_.debt_max_ns,
                             .tokens = cost,
                             .dearer_q16 = 0,
                             .admit_always = false,
                             .commit = true,
                             .kind = Kind::kInFlight,
                             .limit = &limit_};
    shm::Seen seen;
    const shm::Outcome outcome =
        places::Enter<Cell>(table(), index, hash, charge,
                            is_lent ? places::Lent<Cell>{&caps_[index], 0} : places::Lent<Cell>{},
                            NameOf(who, 8 + in_[who].size()), time, &seen);
    if (outcome == shm::Outcome::kAllowed) {
      for (uint32_t i = 0; i < cost; ++i) {
        in_[who].push_back({index, seen.verdict.new_ns, static_cast<uint32_t>(seen.cost_ns)});
      }
    }
    return outcome;
  }
  // As a client does: finds or claims, resolves, enters.
  bool Enter(int who, uint32_t cost = 1, uint64_t hash = kKeyA) {
    for (int round = 0; round < 4; ++round) {
      const shm::SlotTable<Cell>::Env env = EnvNow();
      uint32_t index = table().Find(hash);
      if (index != shm::kNoSlot && !table().IsAlone(hash, index)) {
        table().ResolveDuplicates(hash, env);
      }
      bool claimed = false;
      index = table().FindOrClaim(hash, Kind::kInFlight, 0, env, &claimed);
      if (index == shm::kNoSlot) return false;
      const shm::Outcome outcome = Try(who, index, cost, hash);
      if (outcome != shm::Outcome::kLost) return outcome == shm::Outcome::kAllowed;
    }
    return false;
  }
  // Gives back the last place of `whose`; it is written off before, as a request is over by then.
  void Leave(int whose) {
    if (in_[whose].empty()) return;
    const Place place = in_[whose].back();
    in_[whose].pop_back();
    LeaveBy(place);
  }
  void WriteOff(int whose) { in_[whose].clear(); }
  void Pin(uint32_t slot) {
    uint64_t w = slots_[slot].word.load();
    slots_[slot].word.compare_exchange_strong(w, places::Pinned(w, kNow, 1));
  }
  // As the daemon does: no more than `counted` are to be in use. Returns how many may be.
  uint32_t SetCap(uint32_t slot, uint32_t counted) {
    return places::SetCap(caps_[slot], table().log_rows().of(slot), kGen,
                          static_cast<uint32_t>(limit_.limit), counted, kNow + 2 * kSecond)
        .counted();
  }
  // The cap without a look, as it stood before.
  void PutCap(uint32_t slot, uint32_t cap) {
    caps_[slot].value = places::cap::Make(kGen, kNow + 2 * kSecond, cap);
  }
  bool Loosen(uint32_t slot) {
    return places::Loosen(slots_[slot], table().log_rows().of(slot), ClockOfEach::PreciseNs());
  }

  static shm::SlotTable<Cell>::Env EnvNow() {
    return {ClockOfEach::PreciseNs(), kSecond / 1000, 2 * places::kPinNs};
  }
  shm::SlotTable<Cell> table() {
    return shm::SlotTable<Cell>::OfPlaces(slots_, {kCapacity, kRow}, counters_, entries_,
                                          limit_.limit);
  }
  shm::BasicSlot<Cell>& slot(uint32_t i) { return slots_[i]; }
  Cell& Entry(uint32_t slot, uint32_t e) { return entries_[slot * kRow + e]; }
  uint32_t In() const {
    return static_cast<uint32_t>(in_[0].size() + in_[1].size() + in_[2].size());
  }
  uint32_t In(int who) const { return static_cast<uint32_t>(in_[who].size()); }

  // What holds in every end: no more are in than the limit, and whoever is in has his place in a
  // slot of that key that will not pass on, the only one.
  std::string Judge(uint64_t hash = kKeyA) {
    if (In() > limit_.limit) return "more are in than there are places";
    std::vector<uint64_t> seen;
    for (const auto& of : in_) {
      for (const Place& place : of) {
        const uint64_t k = slots_[place.slot].key.value;
        const uint64_t w = slots_[place.slot].word.value;
        if (shm::key::Fp(k) != shm::FingerprintOf(hash)) return "a slot passed on from under one";
        if (shm::word::IsDead(w) || places::IsLoose(w)) return "a slot may pass on from under one";
        const auto in_row = CountOf(place.slot, place.entry);
        const auto before =
            static_cast<uint32_t>(std::count(seen.begin(), seen.end(), place.entry));
        if (in_row <= before) return "a place was given to another";
        seen.push_back(place.entry);
      }
    }
    return "";
  }
  // Entries in the key's slots that are held, of whomever.
  uint32_t Held(uint64_t hash = kKeyA) {
    uint32_t held = 0;
    for (uint32_t i = 0; i < kCapacity; ++i) {
      const uint64_t k = slots_[i].key.value;
      if (shm::key::Fp(k) != shm::FingerprintOf(hash)) continue;
      for (uint32_t e = 0; e < kRow; ++e) {
        held += places::IsFree(Entry(i, e).value, shm::key::Gen(k)) ? 0 : 1;
      }
    }
    return held;
  }

  std::vector<Cell*> memory;
  bool is_lent = false;  // places are, slot by slot

 private:
  struct Place {
    uint32_t slot;
    uint64_t entry;
    uint32_t first;
  };
  static uint64_t NameOf(int who, uint64_t nonce) {
    return places::NameOf(static_cast<uint32_t>(who) + 1, nonce);
  }
  void LeaveBy(const Place& place) {
    places::Leave(table().log_rows().of(place.slot), place.entry, place.first, 1);
  }
  uint32_t CountOf(uint32_t slot, uint64_t entry) {
    uint32_t n = 0;
    for (uint32_t e = 0; e < kRow; ++e) n += Entry(slot, e).value == entry ? 1 : 0;
    return n;
  }

  shm::Limit limit_;
  shm::BasicSlot<Cell> slots_[kCapacity];
  Cell entries_[kCapacity * kRow];
  Cell counters_[shm::kCounters];
  Cell caps_[kCapacity];
  std::vector<Place> in_[3];
};

bool IsAnyKilled(const std::vector<bool>& killed) {
  return std::find(killed.begin(), killed.end(), true) != killed.end();
}

void AllNow(uint64_t now_ns) {
  for (uint64_t& each : ClockOfEach::now_ns) each = now_ns;
}

// F1: two ask for two of three places. One has them, the other holds nothing.
TEST(PlaceSlotModel, OfTwoWhoCannotBothHaveAllOneDoes) {
  World w(3);
  AllNow(kNow);
  Scenario s;
  s.memory = w.memory;
  s.reset = [&w] {
    w.Clear();
    w.Put(kLower, 0);
    w.CloseOthers(kLower);
  };
  s.processes = {[&w] { w.Enter(0, 2); }, [&w] { w.Enter(1, 2); }};
  s.check = [&w](const std::vector<bool>& killed) -> std::string {
    if (const std::string wrong = w.Judge(); !wrong.empty()) return wrong;
    if (IsAnyKilled(killed)) return "";
    return w.In() == 2 && w.Held() == 2 ? "" : "neither is in, or more is held than is in";
  };
  ExpectClean(std::move(s), "two who want two of three places", /*bounded=*/true);
}

// F1, F4: the last place goes from one to another; who leaves by a copy that is over takes it from
// nobody.
TEST(PlaceSlotModel, APlaceIsLeftOnce) {
  World w(1);
  AllNow(kNow);
  Scenario s;
  s.memory = w.memory;
  s.reset = [&w] {
    w.Clear();
    w.Put(kLower, 1);
    w.CloseOthers(kLower);
    w.WriteOff(2);
  };
  const auto leave = [&w] {
    const uint64_t over = places::Make(kGen, places::NameOf(3, 0));
    places::Leave(w.table().log_rows().of(kLower), over, 0, 1);
  };
  s.processes = {[&w, leave] {
                   leave();
                   w.Enter(0);
                 },
                 [&w, leave] {
                   leave();
                   w.Enter(1);
                 }};
  s.check = [&w](const std::vector<bool>&) -> std::string { return w.Judge(); };
  ExpectClean(std::move(s), "a place that is left twice");
}

// F3: the daemon lets go of a slot in which nothing is held, and another key comes, while one
// enters there.
TEST(PlaceSlotModel, ASlotIsNotTakenFromWhoHasJustEntered) {
  for (const bool is_pinned : {true, false}) {
    World w(2);
    AllNow(kNow);
    ClockOfEach::now_ns[1] = kNow + kSecond;
    Scenario s;
    s.memory = w.memory;
    s.reset = [&w, is_pinned] {
      w.Clear();
      w.Put(kLower, is_pinned ? 1 : 0);
      w.CloseOthers(kLower);
      if (is_pinned) w.Entry(kLower, 0).value = 0;
      w.WriteOff(2);
    };
    s.processes = {[&w] { w.Enter(0); },
                   [&w] {
                     ClockOfEach::now_ns[1] = kNow + kSecond;
                     w.Loosen(kLower);
                     ClockOfEach::now_ns[1] = kNow + 3 * kSecond;
                     w.Enter(1, 1, kKeyB);
                   }};
    s.check = [&w](const std::vector<bool>& killed) -> std::string {
      if (w.In(0) != 0 && w.In(1) != 0) return "both are in, in one slot";
      if (w.In(0) + w.In(1) == 0) return IsAnyKilled(killed) ? "" : "neither is in";
      return w.Judge(w.In(0) != 0 ? kKeyA : kKeyB);
    };
    ExpectClean(std::move(s), "a slot let go under who enters", /*bounded=*/true);
  }
}

// F3: two let go of one slot at once, one of which may stand still in the middle, while one enters
// and leaves and enters.
TEST(PlaceSlotModel, TwoWhoLetGoDoNotMissWhoEnters) {
  World w(1);
  AllNow(kNow);
  Scenario s;
  s.memory = w.memory;
  s.reset = [&w] {
    w.Clear();
    w.Put(kLower, 1);
    w.CloseOthers(kLower);
    w.Entry(kLower, 0).value = 0;
    w.WriteOff(2);
  };
  s.processes = {[&w] {
                   w.Enter(0);
                   w.Leave(0);
                   w.Enter(0);
                 },
                 [&w] { w.Loosen(kLower); }, [&w] { w.Loosen(kLower); }};
  s.check = [&w](const std::vector<bool>& killed) -> std::string {
    if (const std::string wrong = w.Judge(); !wrong.empty()) return wrong;
    return killed[0] || w.In(0) == 1 ? "" : "nobody hindered it, and it is not in";
  };
  ExpectClean(std::move(s), "two let go of a slot under who enters", /*bounded=*/true);
}

// F2: two claimers of one key may name two slots; together they have no more than the limit.
TEST(PlaceSlotModel, TwoClaimersOfAKeyShareItsPlaces) {
  for (const uint32_t kills : {0u, 1u}) {
    World w(1);
    AllNow(kNow);
    Scenario s;
    s.memory = w.memory;
    s.reset = [&w] { w.Clear(); };
    s.processes = {[&w] { w.Enter(0); }, [&w] { w.Enter(1); }};
    s.max_kills = kills;
    s.check = [&w](const std::vector<bool>&) -> std::string { return w.Judge(); };
    ExpectClean(std::move(s), "two claimers of a key of places", /*bounded=*/true);
  }
}

// F2: a key stands in two slots, and in one of them, whichever, somebody is in. Who resolves it and
// who enters leave him his place, and together no more are in than the limit.
TEST(PlaceSlotModel, OfTwoSlotsTheOneRemainsInWhichSomebodyIs) {
  for (const uint32_t held : {kLower, kHigher}) {
    for (const uint32_t kills : {0u, 1u}) {
      World w(2);
      AllNow(kNow);
      Scenario s;
      s.memory = w.memory;
      s.reset = [&w, held] {
        w.Clear();
        w.Put(kLower, held == kLower ? 1 : 0);
        w.Put(kHigher, held == kHigher ? 1 : 0);
      };
      s.processes = {[&w] { w.Enter(0); },
                     [&w] { w.table().ResolveDuplicates(kKeyA, World::EnvNow()); }};
      s.max_kills = kills;
      s.check = [&w, held](const std::vector<bool>& killed) -> std::string {
        if (const std::string wrong = w.Judge(); !wrong.empty()) return wrong;
        return IsAnyKilled(killed) || w.table().IsAlone(kKeyA, held) ? "" : "two slots remain";
      };
      ExpectClean(std::move(s), "places in one of two slots", /*bounded=*/true);
    }
  }
}

// F2: two have found the key in one slot each, before anybody has resolved it: not both are in.
TEST(PlaceSlotModel, NobodyIsInWhileTheKeyStandsInTwoSlots) {
  World w(1);
  AllNow(kNow);
  Scenario s;
  s.memory = w.memory;
  s.reset = [&w] {
    w.Clear();
    w.Put(kLower, 0);
    w.Put(kHigher, 0);
  };
  s.processes = {[&w] { w.Try(0, kLower, 1, kKeyA); }, [&w] { w.Try(1, kHigher, 1, kKeyA); }};
  s.check = [&w](const std::vector<bool>& killed) -> std::string {
    if (w.In() != 0) return "somebody is in";
    return IsAnyKilled(killed) || w.Held() == 0 ? "" : "what was taken was not given back";
  };
  ExpectClean(std::move(s), "two enter in two slots of a key");
}

// F2, F3: one resolves it by what it saw before another took a place in the higher, had the lower
// emptied for it, and came in: what the first would empty is the slot in which somebody is by then.
TEST(PlaceSlotModel, ASlotIsNotEmptiedBecauseItWasLooseBefore) {
  World w(1);
  AllNow(kNow);
  Scenario s;
  s.memory = w.memory;
  s.reset = [&w] {
    w.Clear();
    w.Put(kLower, 0);
    w.Put(kHigher, 0);
  };
  const auto resolve = [&w] { w.table().ResolveDuplicates(kKeyA, World::EnvNow()); };
  s.processes = {[&w, resolve] {
                   const auto row = w.table().log_rows().of(kHigher);
                   const uint64_t entry = places::Make(kGen, places::NameOf(1, 5));
                   w.Pin(kHigher);
                   places::Take(row, 1, entry, 0, 1);
                   resolve();
                   places::Leave(row, entry, 0, 1);
                   w.Try(0, kHigher, 1, kKeyA);
                 },
                 resolve};
  s.max_kills = 0;
  s.check = [&w](const std::vector<bool>&) -> std::string { return w.Judge(); };
  ExpectClean(std::move(s), "one resolves while another comes in", /*bounded=*/true);
}

// F2, F3: one who is late for A, while its slot goes to B, takes nothing from B.
TEST(PlaceSlotModel, TheNextTenantHasPlacesOfItsOwn) {
  World w(1);
  AllNow(kNow);
  Scenario s;
  s.memory = w.memory;
  s.reset = [&w] {
    w.Clear();
    w.Put(kLower, 0);
    w.CloseOthers(kLower);
  };
  s.processes = {[&w] { w.Try(0, kLower, 1, kKeyA); },
                 [&w] {
                   w.Enter(1, 1, kKeyB);
                   w.Leave(1);
                   w.Enter(1, 1, kKeyB);
                 }};
  s.max_kills = 0;
  s.check = [&w](const std::vector<bool>&) -> std::string {
    if (w.In(0) != 0) return w.Judge(kKeyA);
    if (const std::string wrong = w.Judge(kKeyB); !wrong.empty()) return wrong;
    return w.In(1) == 1 ? "" : "B paid for A";
  };
  ExpectClean(std::move(s), "the next tenant of a row of places", /*bounded=*/true);
}

// F5: the daemon gives places back under who enters, where none is held and where the one is that
// stands highest. What it counts is all that is in use, then and after it has raised the cap again.
TEST(PlaceSlotModel, WhatTheHostGivesBackIsUsedByNobody) {
  for (const uint32_t held : {0u, 1u}) {
    World w(3);
    w.is_lent = true;
    AllNow(kNow);
    uint32_t counted = 0;
    Scenario s;
    s.memory = w.memory;
    s.reset = [&w, &counted, held] {
      w.Clear();
      w.Put(kLower, 0);
      w.CloseOthers(kLower);
      w.Pin(kLower);
      if (held != 0) w.PutHeld(kLower, 2);
      w.PutCap(kLower, 3);
      counted = 3;
    };
    s.processes = {[&w] {
                     w.Enter(0, 2);
                     w.Leave(0);
                     w.Enter(0);
                   },
                   [&w, &counted] {
                     counted = w.SetCap(kLower, 1);
                     counted = w.SetCap(kLower, std::max(counted, 2u));
                     counted = w.SetCap(kLower, 1);
                   }};
    s.check = [&w, &counted](const std::vector<bool>& killed) -> std::string {
      if (const std::string wrong = w.Judge(); !wrong.empty()) return wrong;
      return w.In() <= counted || killed[1] ? "" : "more are in than the host has left";
    };
    ExpectClean(std::move(s), "places given back under who enters", /*bounded=*/true);
  }
}

// F5, F6: a cap of another tenancy, or one that has ended, lends nothing.
TEST(PlaceSlotModel, WhatWasLentToAnotherTenancyIsNotLent) {
  World w(2);
  w.is_lent = true;
  AllNow(kNow);
  w.Clear();
  w.Put(kLower, 0);
  w.CloseOthers(kLower);
  w.PutCap(kLower, 2);
  EXPECT_FALSE(w.Enter(0, 1, kKeyB)) << "its gen is the next";
  w.Clear();
  w.Put(kLower, 0);
  w.CloseOthers(kLower);
  w.PutCap(kLower, 1);
  EXPECT_FALSE(w.Enter(0, 2));
  EXPECT_TRUE(w.Enter(0));
  AllNow(kNow + 2 * kSecond);
  w.Leave(0);
  EXPECT_FALSE(w.Enter(0)) << "it has ended";
}

}  // namespace
}  // namespace sluice::model
