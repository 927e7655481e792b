#include "client/denials.h"

#include "shm/bucket.h"

namespace sluice::client {

constinit thread_local Tally tally = {};

void FlushTally(const sluice_t& client) {
  Tally& t = tally;
  if (t.n != 0 && t.client_id == client.id && t.fork_epoch == client.attacher.fork_epoch()) {
    const Attachment& a = *t.attachment;
    const auto index = static_cast<uint32_t>(t.slot - a.slots);
    shm::AddDenied(a.slots[index], a.denied[index], a.dirty, index, t.gen, t.n);
  }
  t.n = 0;
}

void BeginTally(const Attachment& attachment, const sluice_t& client, const shm::Slot& slot,
                uint16_t gen, uint64_t now_ns) {
  FlushTally(client);
  tally = {.slot = &slot,
           .since_ns = now_ns,
           .n = 1,
           .gen = gen,
           .attachment = &attachment,
           .client_id = client.id,
           .fork_epoch = client.attacher.fork_epoch()};
}

}  // namespace sluice::client
