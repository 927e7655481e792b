// Denials are counted without writing the exhausted key's line: each thread holds (slot, n), and on
// another key, 64 denials or 1 ms adds n to the slot's cell. A kill or a fork loses at most 64 per
// thread; so does a thread that alternates between two clients.
//
// A tally also remembers what was denied: while the slot's words stand as they were seen and its
// time has not come, the answer is the same, without computing it.
#pragma once

#include <cstdint>

#include "client/client.h"
#include "client/plan.h"

namespace sluice::client {

inline constexpr uint32_t kTallyMax = 64;
inline constexpr uint64_t kTallyNs = 1'000'000;

struct Tally {
  const shm::Slot* slot;
  const Rule* rule;   // cost 1 of it was denied by the three words below
  uint64_t until_ns;  // and would be up to here; 0: nothing is remembered
  uint64_t word_ns;
  uint64_t key;
  uint64_t aux;
  uint64_t since_ns;
  uint32_t n;  // 0: nothing is tallied
  uint16_t gen;
  // Whom it belongs to; looked at before anything is read or written through it, so that a closed
  // client's tally and, in a child, its parent's are dropped.
  const Attachment* attachment;
  uint64_t client_id;
  uint64_t fork_epoch;
};

// Initial-exec and constinit: a fixed offset from the thread pointer, no call.
extern constinit thread_local Tally tally __attribute__((tls_model("initial-exec")));

void FlushTally(const sluice_t& client);
void BeginTally(const Attachment& attachment, const sluice_t& client, const shm::Slot& slot,
                uint16_t gen, uint64_t now_ns);

// True when a check of cost 1 is denied as the last one was; it is tallied then. The word before
// the key: I2.
inline bool TallyDeniedAgain(const shm::Slot& slot, const Rule& rule, uint64_t now_ns) {
  Tally& t = tally;
  if (t.slot != &slot || t.rule != &rule || now_ns >= t.until_ns || t.n - 1 >= kTallyMax - 1 ||
      slot.word.load(std::memory_order_acquire) != t.word_ns ||
      slot.key.load(std::memory_order_acquire) != t.key ||
      slot.aux.load(std::memory_order_relaxed) != t.aux) {
    return false;
  }
  ++t.n;
  return true;
}

// After BeginTally: remembers, where a check of cost 1 would be denied at `now_ns`.
void RememberDenial(const shm::Slot& slot, const Rule& rule, uint64_t now_ns, uint64_t lag_ns);

// True when the denial is tallied; else BeginTally is to be called.
inline bool TallyDenied(const shm::Slot& slot, uint16_t gen, uint64_t now_ns) {
  Tally& t = tally;
  if (t.slot != &slot || t.gen != gen || t.n - 1 >= kTallyMax - 1 ||
      now_ns - t.since_ns >= kTallyNs) [[unlikely]] {
    return false;
  }
  ++t.n;
  return true;
}

inline void NoteDenied(const Attachment& attachment, const sluice_t& client, const shm::Slot& slot,
                       uint16_t gen, uint64_t now_ns) {
  if (!TallyDenied(slot, gen, now_ns)) BeginTally(attachment, client, slot, gen, now_ns);
}

// On an allowed check: true when FlushTally is to be called, since it is of another key.
inline bool IsTallyOfOther(const shm::Slot& slot) { return tally.n != 0 && tally.slot != &slot; }

}  // namespace sluice::client
