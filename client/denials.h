// Denials are counted without writing the exhausted key's line: each thread holds (slot, n), and on
// another key, 64 denials or 1 ms adds n to the slot's cell. A kill or a fork loses at most 64 per
// thread; so does a thread that alternates between two clients.
#pragma once

#include <cstdint>

#include "client/client.h"

namespace sluice::client {

inline constexpr uint32_t kTallyMax = 64;
inline constexpr uint64_t kTallyNs = 1'000'000;

struct Tally {
  const shm::Slot* slot;
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
