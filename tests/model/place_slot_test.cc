// Places on slots, all interleavings of two processes with a kill before any shared access. The
// invariants F1 to F4 are stated in shm/places.h, F5 and F6 in shm/lent_places.h; each check names
// the ones it looks at.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "tests/model/expect_clean.h"
#include "tests/model/explorer.h"
#include "tests/model/place_world.h"

namespace sluice::model {
namespace {

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
    if (std::string wrong = w.Judge(); !wrong.empty()) return wrong;
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
    if (std::string wrong = w.Judge(); !wrong.empty()) return wrong;
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
        if (std::string wrong = w.Judge(); !wrong.empty()) return wrong;
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
    if (std::string wrong = w.Judge(kKeyB); !wrong.empty()) return wrong;
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
      if (std::string wrong = w.Judge(); !wrong.empty()) return wrong;
      return w.In() <= counted || killed[1] ? "" : "more are in than the host has left";
    };
    ExpectClean(std::move(s), "places given back under who enters", /*bounded=*/true);
  }
}

// F5, F6: a cap of another tenancy, or one that has ended, lends nothing.
std::string Said(bool entered) { return entered ? "entered" : "denied"; }

TEST(PlaceSlotModel, WhatWasLentToAnotherTenancyIsNotLent) {
  World w(2);
  w.is_lent = true;
  AllNow(kNow);
  w.Clear();
  w.Put(kLower, 0);
  w.CloseOthers(kLower);
  w.PutCap(kLower, 2);
  EXPECT_EQ(Said(w.Enter(0, 1, kKeyB)), "denied") << "its gen is the next";
  w.Clear();
  w.Put(kLower, 0);
  w.CloseOthers(kLower);
  w.PutCap(kLower, 1);
  EXPECT_EQ(Said(w.Enter(0, 2)), "denied");
  EXPECT_EQ(Said(w.Enter(0)), "entered");
  AllNow(kNow + 2 * kSecond);
  w.Leave(0);
  EXPECT_EQ(Said(w.Enter(0)), "denied") << "it has ended";
}

}  // namespace
}  // namespace sluice::model
