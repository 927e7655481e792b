// Denials are counted without writing the exhausted key's line: each thread holds (slot, n), and on
// another key, 64 denials or 1 ms adds n to the slot's cell. A kill loses at most 64 per thread; so
// does a thread that alternates between two clients.
#pragma once

#include <cstdint>

#include "client/attach.h"

namespace sluice::client {

inline constexpr uint32_t kTallyMax = 64;
inline constexpr uint64_t kTallyNs = 1'000'000;

struct Tally {
  const Attachment* attachment;  // valid while client_id's client is open
  uint64_t client_id;
  uint64_t fork_epoch;  // of the process that counted: a child drops its parent's tally
  uint64_t since_ns;
  uint32_t slot;
  uint32_t n;
  uint16_t gen;
};

// Initial-exec: a fixed offset from the thread pointer, no call.
extern thread_local Tally tally __attribute__((tls_model("initial-exec")));

void FlushTally(uint64_t client_id, uint64_t fork_epoch);
void BeginTally(const Attachment& attachment, uint64_t client_id, uint64_t fork_epoch,
                uint32_t slot, uint16_t gen, uint64_t now_ns);

inline void NoteDenied(const Attachment& attachment, uint64_t client_id, uint64_t fork_epoch,
                       uint32_t slot, uint16_t gen, uint64_t now_ns) {
  Tally& t = tally;
  if (t.n != 0 && t.n < kTallyMax && t.slot == slot && t.gen == gen &&
      t.attachment == &attachment && t.client_id == client_id && t.fork_epoch == fork_epoch &&
      now_ns - t.since_ns < kTallyNs) [[likely]] {
    ++t.n;
    return;
  }
  BeginTally(attachment, client_id, fork_epoch, slot, gen, now_ns);
}

// On an allowed check of another key.
inline void NoteOther(uint64_t client_id, uint64_t fork_epoch, uint32_t slot) {
  if (tally.n != 0 && tally.slot != slot) [[unlikely]] {
    FlushTally(client_id, fork_epoch);
  }
}

}  // namespace sluice::client
