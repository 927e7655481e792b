// Sliding logs on a slot: a check, and a refund. Lock-free; any process may be killed at any
// instruction, and leaves at most what its request had taken. Invariants L1 to L3 in log_row.h.
//
// L4 The word is raised before an entry is taken: so long as one counts, its slot keeps its tenant.
//    An entry that comes late, after its slot has passed on, is of an earlier gen and counts for
//    nobody, and by then would have expired: the slot was held for a period after the time in it.
//    Nor is it put in the place of one of the next tenant's, whose times are later than his who is
//    late.
// L5 Who cannot have all that he asks for gives back what he took, and looks again. He says no only
//    by a look in which he holds nothing. Of several who hinder each other the last to give back
//    finds the room of all; who looked earlier may have been told no by what another took and gave
//    back.
// L6 Who may not use all of the limit, for the class of his request, counts again when he has
//    taken, and gives back where that is more than he may. Of those who take at once the last sees
//    what all the others took.
//
// Memory orders: acquire loads and acq_rel CAS of the word, as in bucket.h; see log_row.h for the
// entries.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "shm/bucket.h"
#include "shm/layout.h"
#include "shm/log_row.h"
#include "shm/slot_table.h"
#include "shm/window_slot.h"

namespace sluice::shm::logs {

// The hint is stored when it has moved by so many entries: a cache line.
inline constexpr uint32_t kHintStep = 8;

// What a request may use of a limit: its class's part, of that its host's share, and what other
// hosts left.
struct Room {
  uint32_t most;     // of the class; all of the limit where it is the whole
  uint32_t quota;    // of a share, and in an emergency of a part of that
  uint32_t left;     // by the others
  uint64_t gone_ns;  // how long until nothing of theirs counts

  uint32_t least() const { return std::min(quota, left); }
};

// `second`: what the others took; null: nobody says.
template <class Cell>
inline Room RoomOf(const Terms& t, const Cell* second, const Charge& charge, const Seen& seen,
                   uint64_t now_ns) {
  const auto most = static_cast<uint32_t>(std::min<uint64_t>(t.limit, charge.limit->burst));
  const uint32_t quota = QuotaOf(most, Dearer(aux::InvShare(seen.aux), charge.dearer_q16));
  if (second == nullptr) return {most, quota, most, 0};
  const others::Weight w =
      others::Weigh(second->load(std::memory_order_relaxed), seen.gen, charge.limit->period_ns,
                    now_ns);  // a hint: orders nothing
  return {most, quota, most - std::min(w.tokens, most), w.gone_ns};
}

// What a look says of a request.
struct Measured {
  bool allowed;
  uint32_t live;
};
inline Measured Judge(const Terms& t, const Tally& tally, const Room& room, uint64_t tokens) {
  const uint32_t live = t.limit - tally.free;
  // A share never rejects everything: what fits the limit fits where nothing else is.
  const bool fits = live + tokens <= room.least() || (live == 0 && tokens <= room.left);
  return {fits, live};
}

// Whether more counts than the room of a class, after its request has taken `tokens` (L6).
template <class Cell>
inline bool IsOver(const Row<Cell>& row, const Terms& t, const Room& room, uint16_t gen,
                   uint64_t now_ns, uint64_t tokens) {
  if (room.most == t.limit) return false;
  const uint32_t live = CountLive(row, t, gen, now_ns);
  return live > room.least() && live > tokens;
}

// What is told of a log in which `live` tokens counted before this request took its own.
template <class Cell>
inline void Tell(const Row<Cell>& row, const Terms& t, const Tally& tally, const Measured& m,
                 const Room& room, uint64_t tokens, uint64_t now_ns, Seen* seen) {
  const uint64_t taken = seen->verdict.allowed ? tokens : 0;
  seen->remaining = room.least() - std::min<uint64_t>(room.least(), m.live + taken);
  if (m.live + taken == 0 && room.left != 0) {
    seen->remaining = std::max<uint64_t>(seen->remaining, 1);
  }
  seen->retry_after_ns = 0;
  if (tokens > room.most) {
    seen->retry_after_ns = kNever;
  } else if (!m.allowed && (m.live == 0 || tokens > room.left)) {
    seen->retry_after_ns = room.gone_ns;
  } else if (!m.allowed) {
    const uint64_t fits = std::max<uint64_t>(room.least(), tokens) - tokens;
    const auto nth = static_cast<uint32_t>(m.live - std::min<uint64_t>(fits, m.live));
    seen->retry_after_ns = FreeAfterNs(
        t, nth <= 1 ? tally.oldest_us : NthOldestUs(row, t, seen->gen, now_ns, nth), now_ns);
  }
  seen->reset_after_ns = taken != 0 ? StampUs(now_ns) * 1000 - now_ns + uint64_t(t.period_us) * 1000
                         : m.live != 0 ? FreeAfterNs(t, tally.newest_us, now_ns)
                                       : 0;
}

// Keeps where to look next, at best effort. Its CAS pairs with the acquire loads of the word.
template <class Cell>
inline void StoreHint(BasicSlot<Cell>& slot, const Terms& t, uint64_t w, uint32_t next) {
  const uint32_t moved = (next + t.limit - HintOf(w, t)) % t.limit;
  if (moved < kHintStep) return;
  slot.word.compare_exchange_strong(w, payload::Make(payload::TimeNs(w), next),
                                    std::memory_order_acq_rel);
}

// One check, as CheckSlot() in bucket.h makes it for token buckets, of the key `hash` in the slot
// `index` of `table`, which knows the rows and the rule's terms. `second`: the slot's second word,
// or null where no others share the limit. *seen is filled for kAllowed and kDenied; `brief`: but
// for what is told, which costs a look at the whole log. An allowed one has the time of its entries
// as seen->verdict.new_ns. kLost also where the key stands in two slots: resolve them first. The
// time must be precise. The word's loads and CAS pair with those of step 4, in slot_table.h.
template <class Cell, class Clock>
inline Outcome CheckLog(const SlotTable<Cell>& table, uint32_t index, uint64_t hash,
                        const Cell* second, const Charge& charge, bool brief,
                        RequestTime<Clock>& time, Seen* seen) {
  BasicSlot<Cell>& slot = table.slot(index);
  const Row<Cell> row = table.log_rows().of(index);
  const Terms t = table.log_rows().terms;
  const auto period_ns = static_cast<uint64_t>(t.period_us) * 1000;
  for (int attempt = 0; attempt < kMaxRestarts; ++attempt) {
    if (attempt != 0) {
      window::StandBack(attempt, time.now_ns());
      time.ReadPrecise();
    }
    const uint64_t now_ns = time.now_ns();
    uint64_t w = slot.word.load(std::memory_order_acquire);
    if (word::IsDead(w)) return Outcome::kLost;
    const uint64_t k = slot.key.load(std::memory_order_acquire);  // after the word: I2
    if (key::Fp(k) != FingerprintOf(hash)) return Outcome::kLost;
    seen->word_ns = w;
    seen->aux = slot.aux.load(std::memory_order_relaxed);  // a hint: orders nothing
    seen->gen = key::Gen(k);
    seen->cost_ns = 0;
    if (NeedsHeal(w, now_ns, charge.tau_ns, charge.debt_max_ns)) {
      // A thread may have stood still since it read the time: only by a fresh one is a word wild.
      if (attempt != 0 &&
          slot.word.compare_exchange_strong(w, WordOf(now_ns + period_ns, HintOf(w, t)),
                                            std::memory_order_acq_rel)) {
        table.Count(Counter::kHeals);
      }
      continue;
    }
    const Room room = RoomOf(t, second, charge, *seen, now_ns);
    const bool is_quick = brief && room.least() == room.most && charge.tokens <= room.most;
    const uint32_t start = HintOf(w, t);
    // So many must be free, those that are not for the class among them.
    const uint64_t enough = t.limit - room.most + charge.tokens;
    Tally tally = Look(row, t, seen->gen, now_ns, start,
                       is_quick ? static_cast<uint32_t>(enough) : kMaxLogEntries);
    if (tally.is_any_ahead && Heal<Clock>(row, t, now_ns) != 0) {
      table.Count(Counter::kHeals);
      continue;
    }
    const Measured m =
        is_quick ? Measured{tally.free >= enough, 0} : Judge(t, tally, room, charge.tokens);
    const uint64_t stamp_us = StampUs(now_ns);
    seen->verdict.allowed = m.allowed || charge.admit_always;
    seen->verdict.new_ns = stamp_us * 1000;
    if (seen->verdict.allowed && charge.commit) {
      const uint64_t until_ns = payload::Ceil(stamp_us * 1000 + period_ns);
      if (payload::TimeNs(w) < until_ns) {
        const uint64_t raised = payload::Make(until_ns, start);
        if (!slot.word.compare_exchange_strong(w, raised, std::memory_order_acq_rel)) continue;
        w = raised;
      }
      // Where a rule fails open the log holds what there is room for.
      const auto tokens = static_cast<uint32_t>(
          m.allowed ? charge.tokens : std::min<uint64_t>(charge.tokens, tally.free));
      const Taken taken = Take(row, t, seen->gen, now_ns, start, tokens);
      const bool is_short =
          m.allowed && (taken.count < tokens || IsOver(row, t, room, seen->gen, now_ns, tokens));
      const bool is_alone = table.IsAlone(hash, index);
      if (is_short || !is_alone) {
        GiveBack(row, t.limit, seen->gen, stamp_us, start, taken.count);
        if (!is_alone) return Outcome::kLost;
        continue;
      }
      StoreHint(slot, t, w, taken.next);
    }
    if (!is_quick) Tell(row, t, tally, m, room, charge.tokens, now_ns, seen);
    seen->verdict.base_ns = now_ns + (is_quick ? 0 : seen->reset_after_ns);
    return seen->verdict.allowed ? Outcome::kAllowed : Outcome::kDenied;
  }
  return Outcome::kGaveUp;
}

// Takes back what a check spent at `spent_ns` (its verdict.new_ns), while the tenancy is the same
// and less than a period has passed. True when anything was given back. `fp` 0: whatever key the
// gen says. The word's load pairs with step 4's CAS of it, as in bucket.h.
template <class Cell>
inline bool RefundLog(BasicSlot<Cell>& slot, const Row<Cell>& row, uint64_t fp, uint16_t gen,
                      uint64_t spent_ns, uint32_t tokens, uint64_t period_ns,
                      uint64_t fresh_now_ns) {
  if (fresh_now_ns >= spent_ns + period_ns) return false;
  const uint64_t w = slot.word.load(std::memory_order_acquire);
  if (word::IsDead(w)) return false;
  const uint64_t k = slot.key.load(std::memory_order_acquire);
  if ((fp != 0 && key::Fp(k) != fp) || key::Gen(k) != gen) return false;
  return GiveBack(row, row.size, gen, spent_ns / 1000, 0, tokens) != 0;
}

// Takes up to `tokens` without asking: a debt that is known by now, as far as there is room for it.
// Its CAS pairs with the word's loads.
template <class Cell>
inline void Fill(BasicSlot<Cell>& slot, const Row<Cell>& row, Terms t, uint16_t gen,
                 uint64_t now_ns, uint32_t tokens) {
  t.limit = std::min(t.limit, row.size);
  const uint64_t until_ns =
      payload::Ceil(StampUs(now_ns) * 1000 + static_cast<uint64_t>(t.period_us) * 1000);
  for (int attempt = 0; attempt < kMaxRestarts; ++attempt) {
    uint64_t w = slot.word.load(std::memory_order_acquire);
    if (word::IsDead(w) || key::Gen(slot.key.load(std::memory_order_acquire)) != gen) return;
    const uint64_t raised = payload::Make(until_ns, HintOf(w, t));
    if (payload::TimeNs(w) >= until_ns ||
        slot.word.compare_exchange_strong(w, raised, std::memory_order_acq_rel)) {
      Take(row, t, gen, now_ns, HintOf(w, t), tokens);
      return;
    }
  }
}

// A log's keys that have no slot share one bucket without entries: a word that says until when
// something counts, and how much. All of it counts until a period after the last of it: no period
// holds more than the limit, but a steady demand is served less. Its CAS pairs with its load.
template <class Cell, class Clock>
inline Outcome CheckWithoutLog(BasicSlot<Cell>& slot, const Charge& charge,
                               RequestTime<Clock>& time, Seen* seen) {
  const Limit& limit = *charge.limit;
  for (int attempt = 0; attempt < kMaxRestarts; ++attempt) {
    if (attempt != 0) {
      window::StandBack(attempt, time.now_ns());
      time.ReadPrecise();
    }
    const uint64_t now_ns = time.now_ns();
    uint64_t w = slot.word.load(std::memory_order_acquire);
    const uint64_t until_ns = payload::TimeNs(w);
    const bool is_wild = until_ns > now_ns + 2 * limit.period_ns + limit.debt_max_ns;
    const uint64_t live = word::IsDead(w) || until_ns <= now_ns || is_wild ? 0 : payload::Value(w);
    // All of the limit, or what the request's class may use of it.
    const uint64_t most = std::min({limit.limit, limit.burst, uint64_t{kMaxLogEntries}});
    const uint32_t quota = QuotaOf(static_cast<uint32_t>(most), charge.dearer_q16);
    const bool fits = live + charge.tokens <= quota || (live == 0 && charge.tokens <= most);
    *seen = {};
    seen->verdict = {fits || charge.admit_always, now_ns, now_ns};
    const uint64_t after = live + (fits ? charge.tokens : 0);
    seen->remaining = quota - std::min<uint64_t>(quota, after);
    seen->retry_after_ns = charge.tokens > most ? kNever : fits ? 0 : until_ns - now_ns;
    const uint64_t next = payload::Make(payload::Ceil(now_ns + limit.period_ns), after);
    seen->reset_after_ns = fits ? payload::TimeNs(next) - now_ns : until_ns - now_ns;
    if (!seen->verdict.allowed) return Outcome::kDenied;
    if (!charge.commit || !fits ||
        slot.word.compare_exchange_strong(w, next, std::memory_order_acq_rel)) {
      return Outcome::kAllowed;
    }
  }
  return Outcome::kGaveUp;
}

}  // namespace sluice::shm::logs
