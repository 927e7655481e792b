#include "client/denials.h"

#include <algorithm>

#include "shm/bucket.h"

namespace sluice::client {

constinit thread_local Tally tally = {};

void FlushTally(const sluice_t& client) {
  Tally& t = tally;
  if (t.of != 0 && t.client_id == client.id && t.fork_epoch == client.attacher.fork_epoch()) {
    const Attachment& a = *t.attachment;
    const auto index = static_cast<uint32_t>(
        ((t.of & ~kOfClass) - reinterpret_cast<uintptr_t>(a.slots)) / sizeof(shm::Slot));
    shm::AddDenied(a.slots[index], a.denied[index], a.dirty, index, t.gen, t.n);
    if ((t.of & kOfClass) != 0) CountClass(a, t.policy, t.group, t.floor_q16, t.n);
  }
  t.of = 0;
  watching &= ~kTallying;
}

void BeginTally(const Attachment& attachment, const sluice_t& client, const shm::Slot& slot,
                uint16_t gen, uint64_t now_ns) {
  FlushTally(client);
  watching |= kTallying;
  tally = {.of = AddressOf(slot),
           .n = 1,
           .gen = gen,
           .floor_q16 = 0,
           .group = 0,
           .policy = 0,
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

void CountClass(const Attachment& attachment, uint64_t policy, uint16_t group, uint16_t floor_q16,
                uint64_t n) {
  const shm::PolicyView view = ViewOf(attachment, policy);
  const shm::GroupView& of = view.group(group);
  const uint32_t count = std::min<uint32_t>(of.class_count, shm::kMaxClasses);
  for (uint32_t i = 1; i < count; ++i) {
    const shm::ClassView& c = view.class_of(of, i);
    if (c.floor_q16 != floor_q16) continue;
    const uint16_t tag = c.tag;
    // Under other rules nobody knows which class that was.
    if (IsInForce(attachment, policy)) {
      shm::AddClassDenied(attachment.class_denied[shm::ClassCellOf(group, i)], tag, n);
    }
    return;
  }
}

void NoteDeniedOfClass(const Attachment& attachment, const sluice_t& client, const shm::Slot& slot,
                       uint16_t gen, const Rule& rule, uint64_t policy, uint64_t now_ns) {
  Tally& t = tally;
  const bool is_same = t.of == (AddressOf(slot) | kOfClass) && t.gen == gen &&
                       t.floor_q16 == rule.floor_q16 && t.policy == policy &&
                       t.client_id == client.id && t.n < kTallyMax &&
                       now_ns - t.since_ns < kTallyNs;
  if (is_same) {
    ++t.n;
    return;
  }
  BeginTally(attachment, client, slot, gen, now_ns);
  t.of |= kOfClass;
  t.floor_q16 = rule.floor_q16;
  t.group = rule.group;
  t.policy = policy;
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
