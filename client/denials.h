// Denials are counted without writing the exhausted key's line: each thread holds (slot, n), and on
// another key, 64 denials or 1 ms adds n to the slot's cell. A kill or a fork loses at most 64 per
// thread; so does a thread that alternates between two clients.
//
// A tally also remembers what was denied: a word names its tenure (I1), so while it stands as it
// was seen, the same key under the same rule is denied until its time comes, without computing it.
// What changes beside the word (the host's share) is heeded within kTallyNs.
//
// Denials under a rule with classes are also counted by class, so that a tally of theirs is of one
// class: it is marked, and what looks for a tally of the slot alone does not find it.
#pragma once

#include <cstdint>

#include "client/client.h"
#include "client/plan.h"
#include "client/watching.h"

namespace sluice::client {

inline constexpr uint32_t kTallyMax = 64;
inline constexpr uint64_t kTallyNs = 1'000'000;

// In the low bits of a slot's address, which are 0.
inline constexpr uintptr_t kOfClass = 1;
static_assert(alignof(shm::Slot) > kOfClass);

struct Tally {
  // A slot's address, with kOfClass where its rule has classes; 0: nothing is tallied.
  uintptr_t of;
  uint32_t n;
  uint16_t gen;
  // Of such a rule: the class and where its policy has it.
  uint16_t floor_q16;
  uint16_t group;
  uint64_t policy;
  // What is remembered: cost 1 of `rule` was denied by this word, and would be before until_ns
  // (0: nothing). `hash` names the key where a rule has many, at this index.
  const Rule* rule;
  uint64_t until_ns;
  uint64_t word_ns;
  uint64_t hash;
  uint32_t index;
  uint64_t since_ns;
  // Whom it belongs to; looked at before anything is read or written through it, so that a closed
  // client's tally and, in a child, its parent's are dropped.
  const Attachment* attachment;
  uint64_t client_id;
  uint64_t fork_epoch;
};

// Initial-exec and constinit: a fixed offset from the thread pointer, no call.
extern constinit thread_local Tally tally __attribute__((tls_model("initial-exec")));

inline uintptr_t AddressOf(const shm::Slot& slot) { return reinterpret_cast<uintptr_t>(&slot); }

void FlushTally(const sluice_t& client);
void BeginTally(const Attachment& attachment, const sluice_t& client, const shm::Slot& slot,
                uint16_t gen, uint64_t now_ns);

// True when a check of cost 1 under `rule` is denied as the last one was; it is tallied then.
// `slot`: where its key stands. The caller has seen that the policy is still the same.
// Acquire as in LookSlot: pairs with step 4's CAS; an equal word means the same tenant (I1).
inline bool TallyDeniedAgain(const shm::Slot& slot, const Rule& rule, uint64_t now_ns) {
  Tally& t = tally;
  if (t.of != AddressOf(slot) || t.rule != &rule || now_ns >= t.until_ns || t.n >= kTallyMax ||
      slot.word.load(std::memory_order_acquire) != t.word_ns) {
    return false;
  }
  ++t.n;
  return true;
}

// The same for the key `hash` of a rule with many, before it is looked for.
inline bool TallyDeniedAgain(const Attachment& a, uint64_t hash, const Rule& rule,
                             uint64_t now_ns) {
  const Tally& t = tally;
  return t.hash == hash && t.rule == &rule &&
         TallyDeniedAgain(a.slots[t.index & (a.capacity - 1)], rule, now_ns);
}

// After BeginTally: remembers, where a check of cost 1 of the key with fingerprint `fp` would be
// denied at `now_ns`. `hash` 0: the rule has no other key.
void RememberDenial(const Attachment& attachment, const shm::Slot& slot, uint64_t fp, uint64_t hash,
                    const Rule& rule, uint64_t now_ns, uint64_t lag_ns);

// True when the denial is tallied; else BeginTally is to be called.
inline bool TallyDenied(const shm::Slot& slot, uint16_t gen, uint64_t now_ns) {
  Tally& t = tally;
  if (t.of != AddressOf(slot) || t.gen != gen || t.n >= kTallyMax ||
      now_ns - t.since_ns >= kTallyNs) [[unlikely]] {
    return false;
  }
  ++t.n;
  return true;
}

// Counts a denial under a rule with classes, of the policy `policy`.
void NoteDeniedOfClass(const Attachment& attachment, const sluice_t& client, const shm::Slot& slot,
                       uint16_t gen, const Rule& rule, uint64_t policy, uint64_t now_ns);
// Adds n denials to those of the class with that floor, of the first where several have it.
void CountClass(const Attachment& attachment, uint64_t policy, uint16_t group, uint16_t floor_q16,
                uint64_t n);

inline void NoteDenied(const Attachment& attachment, const sluice_t& client, const shm::Slot& slot,
                       uint16_t gen, const Rule& rule, uint64_t policy, uint64_t now_ns) {
  if (rule.classed) {
    NoteDeniedOfClass(attachment, client, slot, gen, rule, policy, now_ns);
  } else if (!TallyDenied(slot, gen, now_ns)) {
    BeginTally(attachment, client, slot, gen, now_ns);
  }
}

// Counts one denial without a tally, where each leads towards a ban.
void NoteAtOnce(const Attachment& attachment, shm::Slot& slot, uint16_t gen);

// On an allowed check: true when FlushTally is to be called, since it is of another key.
inline bool IsTallyOfOther(const shm::Slot& slot) {
  const uintptr_t tallied = tally.of;
  return tallied != 0 && (tallied & ~kOfClass) != AddressOf(slot);
}

}  // namespace sluice::client
