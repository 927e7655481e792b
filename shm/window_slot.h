// Windows on a slot: a check, and the daemon's fold of what all hosts used. Lock-free; any process
// may be killed at any instruction. The arithmetic is in window.h.
//
// W1 The second word is written by who begins a window, pays from or into the purse, or folds, each
//    by CAS from a value that was read while the word stood: word, key, second word, and the word
//    again. So who writes it knows whose it is, although it is not the word that is compared: had
//    another tenancy or window begun meanwhile, its second word would be another, since each that
//    begins where something can be misread writes its own first.
// W2 A window begins with the second word, then the word. Until the latter, and where a kill
//    prevents that, the word may still be added to by who read the time before its end; whoever
//    begins the window then lets the second word follow. It is never lowered: what is refunded
//    after the end still weighs.
// W3 A purse is taken from before the word is stored, and paid into after. Killed in between, or
//    lost to another's CAS: less than a unit is lost, on the strict side.
//
// Memory orders: acquire loads and acq_rel CAS throughout, as for the word in bucket.h. Each of the
// two words' loads pairs with the CASes of that word; the second word's CAS before the word's makes
// it visible to who reads that word.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "shm/bucket.h"
#include "shm/layout.h"
#include "shm/slot_table.h"
#include "shm/window.h"

namespace sluice::shm::window {

// How far two tellings of one window's end may lie apart, a step of rounding on either side, and
// still be one: then the end that stands stays.
inline constexpr uint64_t kSameEndNs = 2 * kStepNs;

// A window that began so long before the end that Redis tells, or later, is the one after it: a
// reply may be late by that much.
inline constexpr uint64_t kAboutEndNs = 100'000'000;

// What is read of a slot at one instant.
struct Pair {
  uint64_t word;
  uint64_t second;
  uint64_t key;
};

// False when the slot is being reused, or changed meanwhile (then *is_lost is false: read again).
template <class Cell>
inline bool ReadPair(const BasicSlot<Cell>& slot, const Cell* second, Pair* pair, bool* is_lost) {
  pair->word = slot.word.load(std::memory_order_acquire);
  *is_lost = word::IsDead(pair->word);
  if (*is_lost) return false;
  pair->key = slot.key.load(std::memory_order_acquire);  // after the word: I2
  pair->second = second != nullptr ? second->load(std::memory_order_acquire) : 0;
  return second == nullptr || slot.word.load(std::memory_order_acquire) == pair->word;  // W1
}

// Adds what was paid beyond whole units to the purse that stands beside the same window; where
// there is another by now, or no room, it is lost (W3). Its CAS pairs with the load of ReadPair().
template <class Cell>
inline void PayIn(Cell& beside, uint64_t of_window, uint64_t fine, uint64_t mask) {
  constexpr int kTries = 8;
  uint64_t s = beside.load(std::memory_order_acquire);
  for (int attempt = 0; attempt < kTries; ++attempt) {
    const bool is_same = ((s ^ of_window) & ~mask) == 0;
    if (!is_same || (s & mask) + fine > mask) return;
    if (beside.compare_exchange_strong(s, s + fine, std::memory_order_acq_rel)) return;
  }
}

// Stores what Measure() made of a pair. False when either word has changed since; then nothing was
// spent, at most part of a unit of the purse (W3). Its CASes pair with the loads of ReadPair().
template <class Cell>
inline bool Commit(BasicSlot<Cell>& slot, Cell* beside, const Pair& pair, const Measured& m) {
  uint64_t s = pair.second;
  if (m.second_first != s &&
      !beside->compare_exchange_strong(s, m.second_first, std::memory_order_acq_rel)) {
    return false;
  }
  uint64_t w = pair.word;
  if (m.new_word != w &&
      !slot.word.compare_exchange_strong(w, m.new_word, std::memory_order_acq_rel)) {
    // A window that has begun stays so; what was taken from the purse goes back.
    const uint64_t was = pair.second & m.purse_mask;
    const uint64_t is = m.second_first & m.purse_mask;
    if (m.second_first == m.second_after && was > is) {
      PayIn(*beside, pair.second, was - is, m.purse_mask);
    }
    return false;
  }
  if (m.second_after == m.second_first) return true;
  s = m.second_first;
  if (!beside->compare_exchange_strong(s, m.second_after, std::memory_order_acq_rel)) {
    const uint64_t was =
        (m.second_first ^ m.second_after) & ~m.purse_mask ? 0 : m.second_first & m.purse_mask;
    PayIn(*beside, m.second_after, (m.second_after & m.purse_mask) - was, m.purse_mask);
  }
  return true;
}

// Waits a moment that grows and is hardly the same for two, so that those who meet over and over at
// one word do not: who gave up would be answered uncounted.
inline void StandBack(int attempt, uint64_t now_ns) {
  const uint64_t most = 1ull << std::min(4 + attempt, 12);
  for (uint64_t turns = now_ns * 0x9e3779b97f4a7c15 >> 52 & (most - 1); turns != 0; --turns) {
    asm volatile("" ::: "memory");
  }
}

// One check, as CheckSlot() in bucket.h makes it for token buckets: *seen is filled for kAllowed
// and kDenied, seen->verdict.new_ns is the word that was stored. `second` is the slot's second
// word, null where it has none. The time must be precise.
template <class Cell, class Clock>
inline Outcome CheckWindow(BasicSlot<Cell>& slot, Cell* second, uint64_t fp, const Charge& charge,
                           RequestTime<Clock>& time, const SlotTable<Cell>& table, Seen* seen) {
  const Limit& limit = *charge.limit;
  Terms terms = TermsOf(charge.kind, limit.limit, limit.period_ns, limit.burst);
  terms.ends = charge.ends;
  for (int attempt = 0; attempt < kMaxRestarts; ++attempt) {
    if (attempt != 0) {
      StandBack(attempt, time.now_ns());
      time.ReadPrecise();
    }
    Pair pair;
    bool is_lost;
    const bool is_whole = ReadPair(slot, second, &pair, &is_lost);
    if (is_lost || (is_whole && key::Fp(pair.key) != fp)) return Outcome::kLost;
    if (!is_whole) continue;
    seen->word_ns = pair.word;
    seen->aux = slot.aux.load(std::memory_order_relaxed);  // a hint: orders nothing
    seen->gen = key::Gen(pair.key);
    const Measured m =
        Measure(charge.kind, terms, pair.word, pair.second, second != nullptr, seen->gen,
                time.now_ns(), charge.tokens, Dearer(aux::InvShare(seen->aux), charge.dearer_q16));
    if (m.is_wild) {
      // A thread may have stood still since it read the time: only by a fresh one is a word wild.
      uint64_t w = pair.word;
      if (attempt != 0 &&
          slot.word.compare_exchange_strong(w, m.new_word, std::memory_order_acq_rel)) {
        table.Count(Counter::kHeals);
      }
      continue;
    }
    seen->cost_ns = 0;
    seen->verdict = {m.allowed || charge.admit_always, pair.word, m.new_word};
    seen->remaining = m.remaining;
    seen->retry_after_ns = m.retry_after_ns;
    seen->reset_after_ns = m.reset_after_ns;
    if (!seen->verdict.allowed) return Outcome::kDenied;
    if (!charge.commit || Commit(slot, second, pair, m)) return Outcome::kAllowed;
  }
  return Outcome::kGaveUp;
}

// Takes back `tokens` that a check spent when it left `spent_word`, while the window is the same,
// by the scale of that `index`. True when anything was given back. `fp` 0: whatever key the gen
// says. `second`: the slot's second word, null where it has none: then whole units only.
template <class Cell>
inline bool RefundWindow(BasicSlot<Cell>& slot, Cell* second, uint64_t fp, uint16_t gen,
                         uint64_t spent_word, uint64_t tokens, int index, uint64_t fresh_now_ns) {
  for (int attempt = 0; attempt < kMaxRestarts; ++attempt) {
    Pair pair;
    bool is_lost;
    const bool is_whole = ReadPair(slot, second, &pair, &is_lost);
    if (is_lost) return false;
    if (!is_whole) continue;
    if ((fp != 0 && key::Fp(pair.key) != fp) || key::Gen(pair.key) != gen) return false;
    if (!IsOpenStill(pair.word, spent_word, fresh_now_ns)) return false;
    const Measured m = MeasureRefund(key::KindOf(pair.key), index, pair.word, pair.second,
                                     second != nullptr, gen, tokens);
    if (m.new_word == pair.word && m.second_after == pair.second) return false;
    if (Commit(slot, second, pair, m)) return true;
  }
  return false;
}

// What all hosts used, as Redis tells it.
struct Global {
  uint64_t left_ns;    // until its window ends; 0: none is open
  int64_t current;     // tokens in it, this host's reported ones among them
  int64_t closed;      // in the one before
  int64_t on_the_way;  // at most, that other hosts have used in it and not reported yet
};

// This host's use that is not in it: tokens that were taken from the slot, and the end of the
// window that they were used in. What the slot itself still counts is added.
struct Unreported {
  int64_t tokens;
  uint64_t end_ns;
};

// Sets the words to the global state and this host's own unreported use, each of its tokens dearer
// by `inv_share`. By CAS, computed anew when the word changed meanwhile. The end that Redis tells
// stands for all hosts; but where this host has begun the window after it, what Redis told is about
// to be over and changes nothing. False when the slot has another tenant.
template <class Cell>
inline bool FoldWindow(BasicSlot<Cell>& slot, Cell& beside, uint64_t k, const Terms& t,
                       uint64_t now_ns, const Global& global, const Unreported& unreported,
                       uint32_t inv_share) {
  const bool slides = key::KindOf(k) == Kind::kSlidingWindow;
  const uint64_t tail_ns = slides ? t.length_ns : 0;
  const uint64_t longest_ns = slides ? t.length_ns : t.period_ns;
  const uint64_t half_ns = t.period_ns / 2;
  // A calendar's ends are known here, and what is told is of the window that is open or of none.
  const bool is_calendar = t.ends != nullptr;
  const uint64_t told_ns =
      is_calendar ? CalendarEndNs(t, now_ns) : now_ns + std::min(global.left_ns, longest_ns);
  if (is_calendar && !IsNear(told_ns, now_ns + global.left_ns, kCalendarSlackNs)) return true;
  for (int attempt = 0; attempt < kMaxRestarts; ++attempt) {
    Pair pair;
    bool is_lost;
    const bool is_whole = ReadPair(slot, &beside, &pair, &is_lost);
    if (is_lost || (is_whole && pair.key != k)) return false;
    if (!is_whole) continue;
    if (global.left_ns == 0) return true;
    const uint64_t stood_ns = EndNs(t, pair.word, slides);
    if (!is_calendar && stood_ns + kAboutEndNs >= told_ns + longest_ns &&
        stood_ns <= Ceil(now_ns) + longest_ns + kStepNs) {
      return true;
    }
    const bool stays = stood_ns > now_ns && IsNear(stood_ns, told_ns, kSameEndNs);
    const uint64_t end_ns = stays ? stood_ns : Ceil(told_ns);
    const uint64_t u = slot.used.load(std::memory_order_seq_cst);
    int64_t own = 0;
    if (used::Gen(u) == key::Gen(k) && IsNear(stood_ns, end_ns, half_ns)) own += used::Count(u);
    if (IsNear(unreported.end_ns, end_ns, half_ns)) own += unreported.tokens;
    const uint64_t current = FineOf(t, global.current, aux::kShareOne);
    const uint64_t least = current + FineOf(t, own, inv_share);
    // A window has no later to pay in: what this host took the others to have used, by its share,
    // stands while it may be on the way. Else each that reports would admit that again. Where it
    // took too little, half of what may be on the way is.
    uint64_t fine = least;
    if (IsNear(stood_ns, end_ns, half_ns) && stood_ns > now_ns) {
      const uint64_t on_the_way = FineOf(t, global.on_the_way, aux::kShareOne);
      const uint64_t taken = Count(pair.word) << t.part_bits;
      fine = taken < least ? least + on_the_way / 2 : std::min(taken, least + on_the_way);
    }
    fine = std::min(fine, t.ceiling_fine());
    const uint64_t count = t.units(fine);
    const uint64_t closed =
        slides ? std::min(t.units(FineOf(t, global.closed, aux::kShareOne)), t.ceiling()) : 0;
    const uint64_t purse = t.has_purse() ? (count << t.part_bits) - fine : 0;
    if ((slides || t.has_purse()) &&
        (closed != 0 || purse != 0 || second::Gen(pair.second) == key::Gen(k))) {
      const uint64_t tag_ns = slides ? end_ns - t.length_ns : end_ns;
      const uint64_t next = slides ? second::Make(key::Gen(k), tag_ns, closed, purse)
                                   : second::MakeFixed(key::Gen(k), tag_ns, purse);
      uint64_t s = pair.second;  // pairs with the load of ReadPair()
      if (next != s && !beside.compare_exchange_strong(s, next, std::memory_order_acq_rel))
        continue;
    }
    // Pairs with the loads of ReadPair(), as the other.
    uint64_t w = pair.word;
    const uint64_t target = Make(end_ns + tail_ns, count);
    if (w == target || slot.word.compare_exchange_strong(w, target, std::memory_order_acq_rel)) {
      return true;
    }
  }
  return true;  // contended: the next reply sets it
}

}  // namespace sluice::shm::window
