// Finding, claiming and reusing slots: fixed capacity, no tombstones, no locks; any process may be
// killed at any instruction. See docs/slot-protocol.md for the numbered invariants cited here.
//
// A key's neighbourhood is two groups of four slots. A slot passes from key to key by 8-byte CAS:
//
//   1 it is reusable if its fingerprint is 0, or its word is live and
//     (word + grace <= now, or word > now + max_debt)
//   2 load word w, then key k;   CAS word: w -> dead{gen(k), max(now_us, above w)}
//   3 CAS key: {*, g} -> {fp', kind', g+1}          only if gen(key) == gen(dead)
//   3b CAS used: {*, n} -> {g+1, 0}                 only while the word is still that dead word
//   4 CAS word: dead -> fresh(dead's time)          only once gen(key) == gen(dead) + 1
//   5 look again: of several slots with this key the lowest index wins, the others are emptied
//     and folded into it
//
// Whoever meets a dead word finishes the work or takes it back, so no death blocks a slot.
//
// I1 A word's value names its tenure: fresh words are above every word of earlier tenures, so a CAS
//    from a word that was read under a key succeeds only while that key still holds the slot. Only
//    a refund, the daemon's fold and a heal may lower a word, and within its tenure.
// I2 The key changes only under a dead word of its own gen; so after loading w live and then the
//    key, the key is the one that w belongs to, or the CAS from w fails.
// I3 `used` is charged to the tenant whose gen it carries; at reuse what is left goes to a counter.
// I4 A dead word whose gen is neither gen(key) nor gen(key) - 1 was made by nobody in order; it is
//    set to dead{gen(key), now}, else all readers would wait for a step that nobody owes.
// I5 At rest a key stands in one slot. A claimer killed between 4 and 5 leaves two; the next
//    claimer of that key or the daemon's sweep empties one: at most one extra burst per such kill.
//
// Memory orders, here and in bucket.h and take.h:
//   word   acq_rel CAS, acquire loads. The pair that matters: step 4's CAS publishes key (3) and
//          used (3b) to who loads the live word, so who loads the word first and then the key never
//          takes a new word for an old key (I2). A CAS reads the latest word whatever its order.
//   key    acq_rel CAS, acquire loads; seq_cst in step 3 and in step 5's look: of two claimers that
//          name their slots at the same time, one at least must see the other's (I5). Two words,
//          each written by one and read by the other: acquire and release would let both miss.
//   used   seq_cst, as the dirty flag and bits: they pair with the daemon's take (see take.h).
//   aux    acq_rel CAS in step 3a, before which the flags are another tenant's: who marks the slot
//          dirty after it hands this on, so that the daemon sees the key. Loads are relaxed where
//          they are for a hint.
// tests/weak weakens them one by one.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "shm/gcra.h"
#include "shm/kinds.h"
#include "shm/layout.h"
#include "shm/log_row.h"
#include "shm/move_use.h"
#include "shm/places.h"
#include "shm/window.h"

namespace sluice::shm {

inline constexpr uint32_t kNoSlot = ~0u;

template <class Cell>
class SlotTable {
 public:
  using SlotType = BasicSlot<Cell>;

  struct Env {
    uint64_t now_ns;
    uint64_t grace_ns;
    uint64_t max_debt_ns;
  };

  SlotTable(SlotType* slots, uint64_t capacity, Cell* counters)
      : slots_(slots), group_mask_(capacity / kGroupSlots - 1), counters_(counters) {}

  // The same for who has counted the groups: `group_mask` is capacity / kGroupSlots - 1.
  static SlotTable OfGroups(SlotType* slots, uint64_t group_mask, Cell* counters) {
    SlotTable table(slots, kGroupSlots, counters);
    table.group_mask_ = group_mask;
    return table;
  }

  // The slots of sliding logs: the first `rows` of a table, with a row of entries beside each, and
  // looked at by the terms of one rule. Keys of logs are to be found and claimed by such a table
  // only; what others do to their slots does not depend on it.
  static SlotTable OfLogs(SlotType* slots, LogShape shape, Cell* counters, Cell* entries,
                          const logs::Terms& terms) {
    SlotTable table =
        OfGroups(slots, std::max(shape.rows, kMinLogRows) / kGroupSlots - 1, counters);
    table.logs_ = {entries,
                   shape.entries,
                   {std::min(terms.limit, std::max(shape.entries, 1u)), terms.period_us}};
    return table;
  }
  // The same for places of requests in flight, by a rule's limit.
  static SlotTable OfPlaces(SlotType* slots, LogShape shape, Cell* counters, Cell* entries,
                            uint64_t limit) {
    SlotTable table = OfLogs(slots, shape, counters, entries, logs::TermsOf({.limit = limit}));
    table.has_places_ = true;
    return table;
  }
  const logs::Rows<Cell>& log_rows() const { return logs_; }

  SlotType& slot(uint32_t i) const { return slots_[i]; }
  uint64_t capacity() const { return (group_mask_ + 1) * kGroupSlots; }

  uint32_t FirstGroup(uint64_t hash) const {
    return static_cast<uint32_t>((hash & group_mask_) * kGroupSlots);
  }
  // Differs from the first: the lowest bit is flipped at least.
  uint32_t SecondGroup(uint64_t hash) const {
    const uint64_t step = ((hash * 0x9e3779b97f4a7c15) >> 32) | 1;
    return static_cast<uint32_t>(((hash ^ step) & group_mask_) * kGroupSlots);
  }

  // A group is two lines. Most keys are in their first group: only who misses them there asks for
  // the second.
  void PrefetchFirst(uint64_t hash) const { PrefetchGroup(FirstGroup(hash)); }
  void PrefetchSecond(uint64_t hash) const { PrefetchGroup(SecondGroup(hash)); }

  uint32_t Find(uint64_t hash) const {
    const SlotType* const found = FindSlot(hash);
    return found != nullptr ? static_cast<uint32_t>(found - slots_) : kNoSlot;
  }
  SlotType* FindSlot(uint64_t hash) const {
    const uint64_t fp = FingerprintOf(hash);
    SlotType* const found = FindIn(slots_ + FirstGroup(hash), fp);
    return found != nullptr ? found : FindIn(slots_ + SecondGroup(hash), fp);
  }
  // One group alone, without branches: where many keys are looked for, the place in a group is
  // never what was predicted.
  uint32_t FindFirst(uint64_t hash) const { return PickIn(FirstGroup(hash), FingerprintOf(hash)); }
  uint32_t FindSecond(uint64_t hash) const {
    return PickIn(SecondGroup(hash), FingerprintOf(hash));
  }

  // The slot of `hash`, claimed when there is none. `aux_init` is what a fresh tenant starts with.
  // *claimed tells that this call made the tenancy (its text is to be written). kNoSlot: the
  // neighbourhood is full, or kMaxRestarts others changed it meanwhile.
  uint32_t FindOrClaim(uint64_t hash, Kind kind, uint64_t aux_init, const Env& env, bool* claimed) {
    *claimed = false;
    for (int attempt = 0; attempt < kMaxRestarts; ++attempt) {
      const uint32_t found = Find(hash);
      if (found != kNoSlot) return found;
      const Candidate candidate = Choose(hash, env);
      if (candidate.slot == kNoSlot) return kNoSlot;
      if (!Claim(candidate, FingerprintOf(hash), kind, aux_init, env)) continue;
      *claimed = true;
      Count(Counter::kClaims);
      return ResolveDuplicates(hash, env);
    }
    return kNoSlot;
  }

  // True where `i` is the only slot of the key `hash`. seq_cst: see L3 in log_row.h.
  bool IsAlone(uint64_t hash, uint32_t i) const {
    bool is_there = false;
    for (const uint32_t group : {FirstGroup(hash), SecondGroup(hash)}) {
      for (uint32_t j = group; j < group + kGroupSlots; ++j) {
        if (key::Fp(slots_[j].key.load(std::memory_order_seq_cst)) != FingerprintOf(hash)) continue;
        if (j != i) return false;
        is_there = true;
      }
    }
    return is_there;
  }

  // Finishes or takes back what the dead word `d` of slot `i` began (steps 3 to 4, I4).
  void Settle(uint32_t i, uint64_t d, uint64_t now_ns) { Abandon(SettleTenancy(i, d, 0, now_ns)); }

  // The same by who looked for the key `hash` there: where that slot was just being emptied as a
  // duplicate, the use that was left in it goes on to the slot that remains.
  void SettleOf(uint64_t hash, uint32_t i, uint64_t d, const Env& env) {
    MoveToWinner(hash, {}, SettleTenancy(i, d, FingerprintOf(hash), env.now_ns), env);
  }

  // Step 5 for one key, by a claimer or the daemon's sweep; returns the slot that remains. Only
  // slots above the one that remains are emptied: a lower one may have come since the first look,
  // and its claimer then empties ours, so that none would remain.
  uint32_t ResolveDuplicates(uint64_t hash, const Env& env) {
    uint32_t winner = WinnerOf(hash);
    for (int attempt = 0; winner != kNoSlot && attempt < kMaxRestarts; ++attempt) {
      // Settled first: one that is about to be emptied must not take the others' debts along. The
      // load pairs with step 4's CAS, as in Claim.
      const uint64_t w = slots_[winner].word.load(std::memory_order_acquire);
      if (!word::IsDead(w)) break;
      SettleOf(hash, winner, w, env);
      winner = WinnerOf(hash);
    }
    if (winner == kNoSlot) return kNoSlot;
    if (has_places_) {
      return places::Resolve(*this, hash, winner, env.now_ns,
                             [&](uint32_t i) { Empty(i, hash, env); });
    }
    for (const uint32_t group : {FirstGroup(hash), SecondGroup(hash)}) {
      for (uint32_t i = group; i < group + kGroupSlots; ++i) {
        if (i <= winner || FpAt(i) != FingerprintOf(hash)) continue;
        if (logs_.entries == nullptr || MoveLog(i, winner, hash, env)) Empty(i, hash, env);
      }
    }
    return winner;
  }

  // A counter orders nothing.
  void Count(Counter counter, uint64_t n = 1) const {
    counters_[static_cast<uint32_t>(counter)].fetch_add(n, std::memory_order_relaxed);
  }

 private:
  static constexpr int kRoomy = 3;  // free slots of a group

  struct Candidate {
    uint32_t slot = kNoSlot;
    uint64_t word = 0;  // as loaded; live: begin at step 2, dead: at step 3
  };

  // What a duplicate's word says that it owed: one of both.
  struct Owed {
    uint64_t debt_ns = 0;
    uint64_t window_word = 0;
  };

  static uint16_t NextGen(uint64_t k) { return static_cast<uint16_t>(key::Gen(k) + 1); }
  // A time that is above every word of this tenure (I1). A wild word cannot be surpassed in 47
  // bits of us; whoever still holds it can only heal from it, which fails or is right. Where one of
  // the kinds, of before or to come, keeps a payload, above every payload: words of such a kind may
  // fall within a tenure, and its fresh word stands at the step of its time.
  static uint64_t TimeAbove(uint64_t w, bool has_payload, const Env& env) {
    const uint64_t now_us = env.now_ns / 1000;
    if (w > env.now_ns + env.max_debt_ns) return now_us;
    return std::max(now_us, (has_payload ? AboveNs(w) : w) / 1000 + 1);
  }

  // Pairs with step 3's CAS.
  uint64_t FpAt(uint32_t i) const { return key::Fp(slots_[i].key.load(std::memory_order_acquire)); }

  void PrefetchGroup(uint32_t group) const {
    const char* const line = reinterpret_cast<const char*>(&slots_[group]);
    __builtin_prefetch(line);
    __builtin_prefetch(line + 64);
  }

  static SlotType* FindIn(SlotType* group, uint64_t fp) {
    for (uint32_t i = 0; i < kGroupSlots; ++i) {
      if (key::Fp(group[i].key.load(std::memory_order_acquire)) == fp) return group + i;
    }
    return nullptr;
  }

  uint32_t PickIn(uint32_t group, uint64_t fp) const {
    uint32_t hits = 0;
    for (uint32_t i = 0; i < kGroupSlots; ++i) hits |= (FpAt(group + i) == fp ? 1u : 0u) << i;
    return hits != 0 ? group + static_cast<uint32_t>(__builtin_ctz(hits)) : kNoSlot;
  }

  static bool IsExpired(uint64_t w, const Env& env) {
    return w + env.grace_ns <= env.now_ns || w > env.now_ns + env.max_debt_ns;
  }

  // The first group while it has a line to itself for the key, since a key in the second costs each
  // cold look a second miss (at half load 19 % of keys instead of 27 %, and no sooner full); then
  // the emptier one. In it a slot whose line neighbour is empty, so that two hot keys share a line
  // only when the group fills up. Slots whose claimer has stalled come last.
  Candidate Choose(uint64_t hash, const Env& env) {
    Candidate best;
    int best_score = -1;
    for (const uint32_t group : {FirstGroup(hash), SecondGroup(hash)}) {
      Candidate in_group;
      int free_slots = 0;
      int in_group_score = -1;
      for (uint32_t i = group; i < group + kGroupSlots; ++i) {
        const uint64_t w = slots_[i].word.load(std::memory_order_acquire);
        const uint64_t fp = FpAt(i);
        int score;
        if (word::IsDead(w)) {
          score = 0;
        } else if (fp == 0 || IsExpired(w, env)) {
          ++free_slots;
          score = 1 + (fp == 0 ? 1 : 0) + (FpAt(i ^ 1) == 0 ? 2 : 0);
        } else {
          continue;
        }
        if (score > in_group_score) {
          in_group_score = score;
          in_group = {i, w};
        }
      }
      if (free_slots >= kRoomy) return in_group;
      const int score = free_slots * 8 + in_group_score;
      if (in_group.slot != kNoSlot && score > best_score) {
        best_score = score;
        best = in_group;
      }
    }
    return best;
  }

  // Steps 2 to 4. Word before key, in acquire: pairs with step 4's CAS by the last claimer (I2).
  bool Claim(const Candidate& candidate, uint64_t fp, Kind kind, uint64_t aux_init,
             const Env& env) {
    SlotType& s = slots_[candidate.slot];
    uint64_t dead = candidate.word;
    if (word::IsDead(dead)) {
      const uint64_t k = s.key.load(std::memory_order_acquire);
      // Further on than step 3, or hostile; or its time may not be above every payload.
      if (key::Gen(k) != word::DeadGen(dead) || kind != Kind::kTokenBucket) {
        Settle(candidate.slot, dead, env.now_ns);
        return false;
      }
    } else {
      uint64_t w = candidate.word;
      const uint64_t k = s.key.load(std::memory_order_acquire);  // after w: I2
      if (key::Fp(k) != 0 && !IsExpired(w, env)) return false;
      const bool has_payload = kind != Kind::kTokenBucket || key::KindOf(k) != Kind::kTokenBucket;
      dead = word::Dead(key::Gen(k), TimeAbove(w, has_payload, env));
      if (!s.word.compare_exchange_strong(w, dead, std::memory_order_acq_rel)) return false;
    }
    uint64_t k = s.key.load(std::memory_order_acquire);
    if (key::Gen(k) != word::DeadGen(dead)) return false;
    const uint64_t claimed = key::Make(fp, kind, NextGen(k));
    if (!s.key.compare_exchange_strong(k, claimed, std::memory_order_seq_cst)) return false;
    if (key::Fp(k) != 0) Count(Counter::kEvictions);
    SetAux(s, dead, aux_init);
    Abandon(Finish(candidate.slot, dead, claimed));
    return true;
  }

  // Hints only, so two tries suffice: the daemon derives rule and shard from the text. Flags start
  // clear: a dirty bit left in the bitmap costs one needless look, a flag left set would hide use.
  // The CAS pairs with a later mark of the slot; the first load orders nothing, the CAS looks
  // again.
  void SetAux(SlotType& s, uint64_t dead, uint64_t aux_init) {
    uint64_t a = s.aux.load(std::memory_order_relaxed);
    for (int attempt = 0; attempt < 2; ++attempt) {
      if (s.word.load(std::memory_order_acquire) != dead) return;
      if (s.aux.compare_exchange_strong(a, aux_init, std::memory_order_acq_rel)) return;
    }
  }

  // See Settle. Returns the use that was left of the tenancy that ends, where it was of the key
  // `fp`. Its acquire loads pair with the CASes of steps 2 and 3: the gen tells how far the work
  // came.
  int64_t SettleTenancy(uint32_t i, uint64_t d, uint64_t fp, uint64_t now_ns) {
    SlotType& s = slots_[i];
    uint64_t k = s.key.load(std::memory_order_acquire);
    if (key::Gen(k) == word::DeadGen(d)) {
      // The claimer has not named its key yet and may be dead: empty the slot. If it lives, its
      // step 3 fails and it looks for another slot.
      const uint64_t emptied = key::Make(0, Kind::kTokenBucket, NextGen(k));
      if (s.key.compare_exchange_strong(k, emptied, std::memory_order_acq_rel)) {
        const int64_t left = Finish(i, d, emptied);
        if (fp != 0 && key::Fp(k) == fp) return left;
        Abandon(left);
      }
    } else if (key::Gen(k) == static_cast<uint16_t>(word::DeadGen(d) + 1)) {
      Abandon(Finish(i, d, k));
    } else if (s.word.compare_exchange_strong(d, word::Dead(key::Gen(k), now_ns / 1000),
                                              std::memory_order_acq_rel)) {
      Count(Counter::kRepairs);
    }
    return 0;
  }

  void Abandon(int64_t use) const {
    if (use > 0) Count(Counter::kAbandonedUse, static_cast<uint64_t>(use));
  }

  // Steps 3b and 4 for the dead word `d` under the key `k`, gen(k) == gen(d) + 1. Returns what the
  // last tenancy's use still held, once. The last CAS pairs with each acquire load of the live
  // word.
  int64_t Finish(uint32_t i, uint64_t d, uint64_t k) {
    SlotType& s = slots_[i];
    // Until it carries the new gen: a daemon that takes the old tenant's use at this moment makes
    // the CAS fail once, and a tenancy begun with the old gen would never be charged.
    int64_t left = 0;
    for (int attempt = 0; attempt < kMaxRestarts; ++attempt) {
      uint64_t u = s.used.load(std::memory_order_seq_cst);
      // Loaded before this look at the word: if the slot has moved on since, `used` has too, and
      // the CAS fails (I3).
      if (used::Gen(u) == key::Gen(k) || s.word.load(std::memory_order_seq_cst) != d) break;
      if (s.used.compare_exchange_strong(u, used::Make(key::Gen(k), 0),
                                         std::memory_order_seq_cst)) {
        left = used::Gen(u) == word::DeadGen(d) ? used::Count(u) : 0;
        break;
      }
    }
    uint64_t expected = d;
    s.word.compare_exchange_strong(expected, FreshWord(key::KindOf(k), word::DeadTimeUs(d) * 1000),
                                   std::memory_order_acq_rel);
    return left;
  }

  // Before a duplicate is emptied its entries go to the winner; false: not all did, and it stays.
  bool MoveLog(uint32_t from, uint32_t to, uint64_t hash, const Env& env) {
    return logs::MoveLog(slots_[from], logs_.of(from), slots_[to], logs_.of(to), logs_.terms,
                         env.now_ns, [&] { return WinnerOf(hash) == to; });
  }

  // Empties slot `i` of the key `hash`; its debt and use go to the slot that remains. The word's
  // acquire load pairs with step 4's CAS, as in Claim.
  void Empty(uint32_t i, uint64_t hash, const Env& env) {
    SlotType& s = slots_[i];
    for (int attempt = 0; attempt < kMaxRestarts; ++attempt) {
      uint64_t w = s.word.load(std::memory_order_acquire);
      if (word::IsDead(w)) {
        SettleOf(hash, i, w, env);
        continue;
      }
      uint64_t k = s.key.load(std::memory_order_acquire);
      if (key::Fp(k) != FingerprintOf(hash)) return;
      if (key::KindOf(k) == Kind::kInFlight && !places::IsLoose(w)) return;  // F3
      const bool has_payload = key::KindOf(k) != Kind::kTokenBucket;
      const uint64_t d = word::Dead(key::Gen(k), TimeAbove(w, has_payload, env));
      if (!s.word.compare_exchange_strong(w, d, std::memory_order_acq_rel)) continue;
      // From here `w` is final: all that was spent in this slot stands in it. What is counted may
      // still grow, by who spent and has not counted yet: some of it here, some in Finish.
      const uint64_t emptied = key::Make(0, Kind::kTokenBucket, NextGen(k));
      uint64_t u = s.used.load(std::memory_order_seq_cst);
      int64_t use = 0;
      if (used::Gen(u) == key::Gen(k) && used::Count(u) != 0 &&
          s.used.compare_exchange_strong(u, used::Make(key::Gen(k), 0),
                                         std::memory_order_seq_cst)) {
        use = used::Count(u);
      }
      if (s.key.compare_exchange_strong(k, emptied, std::memory_order_acq_rel)) {
        use += Finish(i, d, emptied);
      }
      const bool owes = !has_payload && w > env.now_ns && w <= env.now_ns + env.max_debt_ns;
      MoveToWinner(hash, {owes ? w - env.now_ns : 0, IsWindow(key::KindOf(k)) ? w : 0}, use, env);
      Count(Counter::kDuplicates);
      return;
    }
  }

  // The lowest slot of the key. seq_cst: see step 5's look. Looks twice where it finds none: the
  // key may have come to a slot that was looked at, and left one that was not yet.
  uint32_t WinnerOf(uint64_t hash) const {
    uint32_t winner = kNoSlot;
    for (int look = 0; look < 2 && winner == kNoSlot; ++look) {
      for (const uint32_t group : {FirstGroup(hash), SecondGroup(hash)}) {
        for (uint32_t i = group; i < group + kGroupSlots; ++i) {
          const uint64_t k = slots_[i].key.load(std::memory_order_seq_cst);
          if (key::Fp(k) == FingerprintOf(hash)) winner = std::min(winner, i);
        }
      }
    }
    return winner;
  }

  // Adds a duplicate's debt to the winner's, for both were really spent, and its use likewise. The
  // winner may lose to a lower one meanwhile. Its last CAS decides: where it succeeds the winner
  // was alive since `w` was loaded, so whoever empties it later finds all that was added; where it
  // fails the use is taken back, or went on with what the other took. Word before key, in acquire:
  // pairs with step 4's CAS. It never lowers a word, also with a now that is out of date.
  void MoveToWinner(uint64_t hash, const Owed& owed, int64_t use, const Env& env) {
    const bool owes = owed.debt_ns != 0 || owed.window_word > env.now_ns;
    for (int attempt = 0; (owes || use != 0) && attempt < kMaxRestarts; ++attempt) {
      const uint32_t winner = WinnerOf(hash);
      if (winner == kNoSlot) break;  // it expired, and was evicted
      SlotType& s = slots_[winner];
      uint64_t w = s.word.load(std::memory_order_acquire);
      if (word::IsDead(w)) {
        use += SettleTenancy(winner, w, FingerprintOf(hash), env.now_ns);
        continue;
      }
      const uint64_t k = s.key.load(std::memory_order_acquire);
      if (key::Fp(k) != FingerprintOf(hash)) continue;
      if (use != 0 && !MoveUse(s, k, use, /*is_back=*/false)) continue;
      const uint64_t ceiling_ns = env.now_ns + env.max_debt_ns;
      const uint64_t sum = std::max(w, env.now_ns) + owed.debt_ns;
      uint64_t moved = owed.debt_ns == 0 ? w : std::max(w, std::min(sum, ceiling_ns));
      if (owed.window_word != 0) moved = window::Merged(w, owed.window_word, env.now_ns);
      if (s.word.compare_exchange_strong(w, moved, std::memory_order_acq_rel)) return;
      if (use != 0 && !MoveUse(s, k, -use, /*is_back=*/true)) use = 0;
    }
    Abandon(use);
  }

  SlotType* slots_;
  uint64_t group_mask_;
  Cell* counters_;
  logs::Rows<Cell> logs_{};
  bool has_places_ = false;
};

}  // namespace sluice::shm
