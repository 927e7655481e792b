// A table of slots with rows of entries, in which two slots are to be had: what the models of
// sliding logs and of places work on.
#pragma once

#include <cstdint>
#include <vector>

#include "shm/layout.h"
#include "shm/slot_table.h"
#include "tests/model/explorer.h"

namespace sluice::model {

using shm::Kind;

inline constexpr uint64_t kSecond = 1'000'000'000;
inline constexpr uint32_t kCapacity = 8;
inline constexpr uint32_t kRow = 3;    // entries of a row
inline constexpr uint32_t kLower = 2;  // slots that are free to be claimed
inline constexpr uint32_t kHigher = 6;
inline constexpr uint16_t kGen = 3;
inline constexpr uint64_t kKeyA = 0xaaaa'0000'0000'0000;
inline constexpr uint64_t kKeyB = 0xbbbb'0000'0000'0000;
inline constexpr uint64_t kNow = shm::payload::kStepNs * 100'000;

class RowWorld {
 public:
  RowWorld() {
    for (shm::BasicSlot<Cell>& s : slots_) {
      for (Cell* cell : {&s.word, &s.key, &s.used, &s.aux}) memory.push_back(cell);
    }
    for (Cell& e : entries_) memory.push_back(&e);
  }

  // The two slots empty since long, all others taken for long. `used`: entries of a row that
  // processes meet at.
  void ClearTable(uint32_t used) {
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
        Entry(i, e).quiet = !is_open || e >= used;
      }
    }
    for (Cell& cell : counters_) cell.quiet = true;
  }
  // A tenancy of A with the word `w`.
  void PutTenancy(uint32_t slot, Kind kind, uint64_t w) {
    slots_[slot].key.value = shm::key::Make(shm::FingerprintOf(kKeyA), kind, kGen);
    slots_[slot].used.value = shm::used::Make(kGen, 0);
    slots_[slot].word.value = w;
  }
  // As step 5 leaves whoever has a key in two slots.
  void CloseOthers(uint32_t slot) {
    for (uint32_t i = 0; i < kCapacity; ++i) {
      if (i == slot) continue;
      slots_[i].key.value = shm::key::Make(1000 + i, Kind::kTokenBucket, 0);
      slots_[i].word.value = kNow + 1000 * kSecond;
      for (Cell* cell : {&slots_[i].word, &slots_[i].key}) cell->quiet = true;
      for (uint32_t e = 0; e < kRow; ++e) Entry(i, e).quiet = true;
    }
  }

  shm::BasicSlot<Cell>& slot(uint32_t i) { return slots_[i]; }
  Cell& Entry(uint32_t slot, uint32_t e) { return entries_[slot * kRow + e]; }

  std::vector<Cell*> memory;

 protected:
  // The slot in which the key is to be had, found or claimed, alone; kNoSlot: in none.
  static uint32_t FindAlone(shm::SlotTable<Cell> table, uint64_t hash, Kind kind,
                            const shm::SlotTable<Cell>::Env& env) {
    const uint32_t index = table.Find(hash);
    if (index != shm::kNoSlot && !table.IsAlone(hash, index)) table.ResolveDuplicates(hash, env);
    bool claimed = false;
    return table.FindOrClaim(hash, kind, 0, env, &claimed);
  }
  // Entries in the key's slots that are not free by `is_free(entry, gen)`.
  template <class IsFree>
  uint32_t CountTaken(uint64_t hash, IsFree is_free) {
    uint32_t taken = 0;
    for (uint32_t i = 0; i < kCapacity; ++i) {
      const uint64_t k = slots_[i].key.value;
      if (shm::key::Fp(k) != shm::FingerprintOf(hash)) continue;
      for (uint32_t e = 0; e < kRow; ++e) {
        taken += is_free(Entry(i, e).value, shm::key::Gen(k)) ? 0 : 1;
      }
    }
    return taken;
  }
  static shm::Charge ChargeOf(const shm::Limit& limit, Kind kind, uint32_t tokens) {
    return {.cost_ns = 0,
            .tau_ns = limit.tau_ns,
            .debt_max_ns = limit.debt_max_ns,
            .tokens = tokens,
            .dearer_q16 = 0,
            .admit_always = false,
            .commit = true,
            .kind = kind,
            .limit = &limit};
  }

  shm::BasicSlot<Cell> slots_[kCapacity];
  Cell entries_[kCapacity * kRow];
  Cell counters_[shm::kCounters];
};

}  // namespace sluice::model
