#include "client/denials.h"

#include <algorithm>

#include "shm/bucket.h"

namespace sluice::client {

constinit thread_local Tally tally = {};

void FlushTally(const sluice_t& client) {
  Tally& t = tally;
  if (t.slot != nullptr && t.client_id == client.id &&
      t.fork_epoch == client.attacher.fork_epoch()) {
    const Attachment& a = *t.attachment;
    const auto index = static_cast<uint32_t>(t.slot - a.slots);
    shm::AddDenied(a.slots[index], a.denied[index], a.dirty, index, t.gen, t.n);
  }
  t.slot = nullptr;
  watching &= ~kTallying;
}

void BeginTally(const Attachment& attachment, const sluice_t& client, const shm::Slot& slot,
                uint16_t gen, uint64_t now_ns) {
  FlushTally(client);
  watching |= kTallying;
  tally = {.slot = &slot,
           .n = 1,
           .gen = gen,
           .rule = nullptr,
           .until_ns = 0,
           .word_ns = 0,
           .hash = 0,
           .index = 0,
           .since_ns = now_ns,
           .attachment = &attachment,
           .client_id = client.id,
           .fork_epoch = client.attacher.fork_epoch()};
}

void NoteAtOnce(const Attachment& attachment, shm::Slot& slot, uint16_t gen) {
  const auto index = static_cast<uint32_t>(&slot - attachment.slots);
  shm::AddDenied(slot, attachment.denied[index], attachment.dirty, index, gen, 1);
}

void RememberDenial(const Attachment& attachment, const shm::Slot& slot, uint64_t fp, uint64_t hash,
                    const Rule& rule, uint64_t now_ns, uint64_t lag_ns) {
  shm::Seen seen;
  if (shm::LookSlot(slot, fp, rule.unit_ns, rule.limit.tau_ns, /*dearer_q16=*/0, now_ns, &seen) !=
          shm::Outcome::kDenied ||
      !shm::IsDenialClear(seen, rule.limit.tau_ns, rule.limit.debt_max_ns, now_ns, lag_ns)) {
    return;
  }
  tally.rule = &rule;
  tally.until_ns = std::min(seen.verdict.new_ns - rule.limit.tau_ns - lag_ns, now_ns + kTallyNs);
  tally.word_ns = seen.word_ns;
  tally.hash = hash;
  tally.index = static_cast<uint32_t>(&slot - attachment.slots);
}

}  // namespace sluice::client
