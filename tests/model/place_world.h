// A table of places on slots for the model's tests, and who enters, leaves and lends there.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "shm/place_slot.h"
#include "tests/model/row_world.h"

namespace sluice::model {

namespace places = shm::places;

class World : public RowWorld {
 public:
  explicit World(uint32_t limit) : limit_(places::MakeLimit(limit)) {
    for (Cell& c : caps_) memory.push_back(&c);
  }

  void Clear() {
    ClearTable(static_cast<uint32_t>(limit_.limit));
    for (Cell& cell : caps_) {
      cell.value = 0;
      cell.quiet = !is_lent;
    }
    for (auto& of : in_) of.clear();
  }

  // A tenancy of A in which `who` holds the first `held` places.
  void Put(uint32_t slot, uint32_t held, int who = 2) {
    PutTenancy(slot, Kind::kInFlight,
               held == 0 ? shm::payload::Make(kNow - kSecond, 0)
                         : places::Pinned(0, kNow, static_cast<uint32_t>(limit_.limit)));
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
  shm::Outcome Try(int who, uint32_t index, uint32_t cost, uint64_t hash) {
    shm::RequestTime<ClockOfEach> time(false, 0);
    const shm::Charge charge = ChargeOf(limit_, Kind::kInFlight, cost);
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
      const uint32_t index = FindAlone(table(), hash, Kind::kInFlight, EnvNow());
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
    places::Stock stock;
    const uint64_t k = shm::key::Make(shm::FingerprintOf(kKeyA), Kind::kInFlight, kGen);
    places::SetCap(caps_[slot], slots_[slot], k, table().log_rows().of(slot),
                   static_cast<uint32_t>(limit_.limit), counted, kNow + 2 * kSecond, &stock);
    return stock.counted();
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
  uint32_t Held(uint64_t hash = kKeyA) { return CountTaken(hash, places::IsFree); }

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
  Cell caps_[kCapacity];
  std::vector<Place> in_[3];
};

inline bool IsAnyKilled(const std::vector<bool>& killed) {
  return std::find(killed.begin(), killed.end(), true) != killed.end();
}

inline void AllNow(uint64_t now_ns) {
  for (uint64_t& each : ClockOfEach::now_ns) each = now_ns;
}

}  // namespace sluice::model
