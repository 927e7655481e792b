// The daemon's half of a word of tokens on loan (credits.h): it puts credits in, learns what
// clients took, and takes out what it gives back. Daemon only; one purse a bucket.
//
// P1 Credits come into the word by the purse alone. What clients took is what was put in less what
//    is there; a word of another turn, tenant or maker holds nothing that counts. More than was put
//    in counts as far as it was told as spent in this turn: a client gave it back.
// P2 Each change is a CAS from the word that was looked at. So a client that spends at that moment
//    either was first, and is seen, or fails and looks again.
// P3 Once the word has expired nothing of it is counted before a CAS has taken out what is left.
//
// Memory orders: the word's CASes are acq_rel and its loads acquire, as in bucket.h: the key that
// is loaded after the word is at least as new (I2).
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "shm/credits.h"
#include "shm/layout.h"

namespace sluice::shm {

// A spender that comes first makes a CAS fail, and each spends something. Beyond so many somebody
// writes the word for its own sake: then all in it is given up.
inline constexpr int kPurseRestarts = 4096;

template <class Cell>
class BasicPurse {
 public:
  using SlotType = BasicSlot<Cell>;

  // Of the tokens in the word, since the last call: each token is told once.
  struct Change {
    uint64_t spent = 0;  // by clients
    uint64_t back = 0;   // given back by them, of what was told as spent in this turn
    uint64_t taken = 0;  // out of the word, by this call: the caller's again
    uint64_t lost = 0;   // with the tenancy, or with a word that nobody in order wrote
  };

  bool is_open() const { return slot_ != nullptr; }
  // Credits in the word, as far as known.
  uint64_t credits() const { return credits_; }

  // Stands from now on in `slot`, under the tenant `key` (a key word). What its word held is of
  // before: nobody may spend it any more. False where that tenancy is over. `*unsettled`: what was
  // spent of it before anybody looked.
  bool Open(SlotType* slot, uint64_t key, uint64_t* unsettled = nullptr) {
    slot_ = slot;
    key_ = key;
    credits_ = told_ = 0;
    uint64_t w;
    for (int i = 0; i < kPurseRestarts && Load(&w); ++i) {
      const uint64_t emptied = credits::Make(credits::ExpiryNs(w), credits::NextTurn(w), 0);
      if (!Exchange(w, emptied)) continue;
      if (unsettled != nullptr && credits::IsUnsettled(w)) *unsettled = credits::Count(w);
      word_ = emptied;
      return true;
    }
    slot_ = nullptr;
    return false;
  }

  // Learns what was spent; takes out the rest of a word that has expired. Nothing has at 0.
  Change Sync(uint64_t now_ns) {
    uint64_t w;
    for (int i = 0; i < kPurseRestarts && Load(&w); ++i) {
      const uint64_t left = LeftIn(w);
      const bool expired = now_ns >= credits::ExpiryNs(w);
      if (credits::Count(w) == left && (!expired || left == 0)) return Kept(left, 0);
      const uint64_t kept = expired ? 0 : left;
      if (Exchange(w, HeadOf(w) | kept)) return Kept(kept, left - kept);
    }
    return Lost();
  }

  // Begins a new turn and takes `wanted` credits out, or as many as are still there.
  Change TakeOut(uint64_t wanted) {
    uint64_t w;
    for (int i = 0; i < kPurseRestarts && Load(&w); ++i) {
      const uint64_t left = LeftIn(w);
      const uint64_t taken = std::min(wanted, left);
      const uint64_t next =
          credits::Make(credits::ExpiryNs(word_), credits::NextTurn(word_), left - taken);
      if (!Exchange(w, next)) continue;
      word_ = next;
      const Change change = Kept(left - taken, taken);
      told_ = 0;
      return change;
    }
    return Lost();
  }

  // Takes all out and leaves the word as a new tenant's, unsettled. The purse stands nowhere then.
  Change Leave() {
    uint64_t w;
    for (int i = 0; i < kPurseRestarts && Load(&w); ++i) {
      const uint64_t left = LeftIn(w);
      if (!Exchange(w, credits::Make(credits::ExpiryNs(word_), 0, 0))) continue;
      const Change change = Kept(0, left);
      slot_ = nullptr;
      return change;
    }
    return Lost();
  }

  // Adds `more` credits and sets the end of all.
  Change Put(uint64_t more, uint64_t expiry_ns) {
    uint64_t w;
    for (int i = 0; i < kPurseRestarts && Load(&w); ++i) {
      const uint64_t left = LeftIn(w);
      const uint64_t fitting = std::min(more, credits::kMax - left);
      const uint64_t next = credits::Make(expiry_ns, credits::Turn(word_), left + fitting);
      if (w != next && !Exchange(w, next)) continue;
      word_ = next;
      Change change = Kept(left, 0);
      credits_ += fitting;
      change.lost = more - fitting;
      return change;
    }
    Change change = Lost();
    change.lost += more;
    return change;
  }

 private:
  // False where the slot is another tenant's, or about to be. The word's acquire load pairs with
  // step 4's CAS (I2).
  bool Load(uint64_t* w) {
    if (slot_ == nullptr) return false;
    *w = slot_->word.load(std::memory_order_acquire);
    if (word::IsDead(*w) || slot_->key.load(std::memory_order_acquire) != key_) slot_ = nullptr;
    return slot_ != nullptr;
  }
  // Hands on what the word's earlier CASes have published.
  bool Exchange(uint64_t w, uint64_t next) {
    return slot_->word.compare_exchange_strong(w, next, std::memory_order_acq_rel);
  }
  uint64_t HeadOf(uint64_t w) const {
    return credits::IsSameTurn(w, word_) ? credits::WithCount(w, 0) : credits::WithCount(word_, 0);
  }
  uint64_t LeftIn(uint64_t w) const {
    return credits::IsSameTurn(w, word_) ? std::min(credits::Count(w), credits_ + told_) : 0;
  }
  Change Kept(uint64_t left, uint64_t taken) {
    Change change{.taken = taken};
    if (left + taken <= credits_) {
      change.spent = credits_ - left - taken;
    } else {
      change.back = left + taken - credits_;
    }
    told_ += change.spent - change.back;
    credits_ = left;
    return change;
  }
  Change Lost() {
    slot_ = nullptr;
    const uint64_t lost = credits_;
    credits_ = told_ = 0;
    return {.lost = lost};
  }

  SlotType* slot_ = nullptr;  // null: it stands nowhere
  uint64_t key_ = 0;
  uint64_t word_ = 0;     // as it was written last; its count does not matter
  uint64_t credits_ = 0;  // in the word, as far as known
  uint64_t told_ = 0;     // as spent in this turn
};

using Purse = BasicPurse<std::atomic<uint64_t>>;

}  // namespace sluice::shm
