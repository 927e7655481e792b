#include "client/denials.h"

#include "shm/bucket.h"

namespace sluice::client {

thread_local Tally tally;

void FlushTally(uint64_t client_id, uint64_t fork_epoch) {
  Tally& t = tally;
  if (t.n != 0 && t.client_id == client_id && t.fork_epoch == fork_epoch) {
    const Attachment& a = *t.attachment;
    shm::AddDenied(a.slots[t.slot], a.denied[t.slot], a.dirty, t.slot, t.gen, t.n);
  }
  t.n = 0;
}

void BeginTally(const Attachment& attachment, uint64_t client_id, uint64_t fork_epoch,
                uint32_t slot, uint16_t gen, uint64_t now_ns) {
  FlushTally(client_id, fork_epoch);
  tally = {.attachment = &attachment,
           .client_id = client_id,
           .fork_epoch = fork_epoch,
           .since_ns = now_ns,
           .slot = slot,
           .n = 1,
           .gen = gen};
}

}  // namespace sluice::client
