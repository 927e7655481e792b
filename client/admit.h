// A request over several rules as nearly all of them are: each bucket stands in the table, none is
// degraded, all say yes at the first look and nobody else changes one meanwhile.
#pragma once

#include "client/check.h"

namespace sluice::client {

// A bucket that said yes, and all that is needed to hold it to that or to give back.
struct Look {
  shm::Slot* slot;
  uint64_t word_ns;
  uint64_t new_ns;
  uint16_t gen;

  uint64_t cost_ns(uint64_t now_ns) const { return new_ns - std::max(word_ns, now_ns); }
};

template <class Request>
[[gnu::noinline]] void GiveBack(const Request& request, const Look* looks, size_t count,
                                uint64_t now_ns) {
  const uint64_t fresh_ns = Clock::PreciseNs();
  for (size_t i = 0; i < count; ++i) {
    shm::RefundSlot(*looks[i].slot, shm::FingerprintOf(request.hash(i)), looks[i].gen,
                    looks[i].new_ns, looks[i].cost_ns(now_ns), fresh_ns);
  }
}

// True: admitted and counted. False: nothing is spent, and the long way decides. Inlined whole; it
// keeps little, since a locked operation waits until all that was stored before it has left the
// core. kAnyDegraded: whether IsAnyShardDegraded(a). `request`:
//   hash(i), cost_ns(i), tau_ns(i), tokens(i)   of the i-th bucket
//   Finish(i, slot)                             see FinishItem
template <bool kAnyDegraded, class Request>
[[gnu::always_inline]] inline bool AdmitAll(const Request& request, const sluice_t& client,
                                            const Attachment& a, size_t count, uint64_t now_ns,
                                            Look* looks) {
  if (IsSilent(a, now_ns)) return false;
  for (size_t i = 0; i < count; ++i) {
    const uint64_t hash = request.hash(i);
    shm::Slot* const slot = TableOf(a).FindSlot(hash);
    if (slot == nullptr || (kAnyDegraded && !IsShardHealthy(a, *slot))) return false;
    shm::Seen seen;
    if (shm::LookSlot(*slot, shm::FingerprintOf(hash), request.cost_ns(i), request.tau_ns(i),
                      /*dearer_q16=*/0, now_ns, &seen) != shm::Outcome::kAllowed) {
      return false;
    }
    looks[i] = {slot, seen.word_ns, seen.verdict.new_ns, seen.gen};
  }
  for (size_t i = 0; i < count; ++i) {
    // As CommitLook: pairs with the loads of LookSlot.
    uint64_t word = looks[i].word_ns;
    if (!looks[i].slot->word.compare_exchange_strong(word, looks[i].new_ns,
                                                     std::memory_order_acq_rel)) [[unlikely]] {
      GiveBack(request, looks, i, now_ns);
      return false;
    }
  }
  for (size_t i = 0; i < count; ++i) {
    shm::Slot& slot = *looks[i].slot;
    const uint64_t aux = shm::CountUse(slot, request.tokens(i));
    if ((aux & (shm::aux::kDirty | shm::aux::kTextWanted)) != shm::aux::kDirty) [[unlikely]] {
      request.Finish(i, slot);
    }
  }
  if (IsTallying()) [[unlikely]] {
    FlushTally(client);
  }
  return true;
}

}  // namespace sluice::client
