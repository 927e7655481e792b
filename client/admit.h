// A request over several rules as nearly all of them are: each bucket stands in the table, none is
// degraded, all say yes at the first look and nobody else changes one meanwhile.
#pragma once

#include "client/check.h"
#include "client/lease.h"

namespace sluice::client {

// A bucket that said yes, and all that is needed to hold it to that or to give back.
struct Look {
  shm::Slot* slot;
  uint64_t word_ns;
  uint64_t new_ns;
  uint16_t gen;

  uint64_t cost_ns(uint64_t now_ns) const { return new_ns - std::max(word_ns, now_ns); }
};

// A bit for each bucket of a request that a lease covers.
using LeasedBits = uint32_t;
static_assert(kMaxItems <= 32);

// What such a request asks of its caller, for the i-th bucket:
//   hash(i), cost_ns(i), tau_ns(i), tokens(i)
//   Finish(i, slot)     see FinishItem
//   may_lease()         whether a lease may stand for a check: cost 1, and no decision is wanted
//   leasable(i, slot), lease_name(i)

// Refunds the first `count` buckets but those that a lease covered, which are given back to it.
template <class Request>
[[gnu::noinline]] void GiveBack(const Request& request, const sluice_t& client, const Look* looks,
                                size_t count, LeasedBits leased, uint64_t now_ns) {
  const uint64_t fresh_ns = Clock::PreciseNs();
  for (size_t i = 0; leased >> i != 0; ++i) {
    if ((leased >> i & 1) != 0) UnspendLeased(client, request.lease_name(i), now_ns);
  }
  for (size_t i = 0; i < count; ++i) {
    if ((leased >> i & 1) != 0) continue;
    shm::RefundSlot(*looks[i].slot, shm::FingerprintOf(request.hash(i)), looks[i].gen,
                    looks[i].new_ns, looks[i].cost_ns(now_ns), fresh_ns);
  }
}

template <class Request>
[[gnu::always_inline]] inline bool LookAt(const Request& request, size_t i, shm::Slot& slot,
                                          uint64_t now_ns, Look* look) {
  shm::Seen seen;
  if (shm::LookSlot(slot, shm::FingerprintOf(request.hash(i)), request.cost_ns(i),
                    request.tau_ns(i), /*dearer_q16=*/0, now_ns, &seen) != shm::Outcome::kAllowed) {
    return false;
  }
  *look = {&slot, seen.word_ns, seen.verdict.new_ns, seen.gen};
  return true;
}

// As CommitLook: pairs with the loads of LookSlot.
[[gnu::always_inline]] inline bool CommitAt(const Look& look) {
  uint64_t word = look.word_ns;
  return look.slot->word.compare_exchange_strong(word, look.new_ns, std::memory_order_acq_rel);
}

template <class Request>
[[gnu::always_inline]] inline void CountAt(const Request& request, size_t i, const Look& look) {
  const uint64_t aux = shm::CountUses(*look.slot, request.tokens(i));
  if (!IsTidy(aux)) [[unlikely]] {
    request.Finish(i, *look.slot);
  }
}

// True where `taken` covers a check of the i-th bucket, in `slot`; that is noted, and nothing is
// left to do for it.
template <class Request>
bool IsCovered(const Request& request, size_t i, shm::Slot& slot, Leased taken,
               LeasedBits* leased) {
  if (taken == Leased::kNo) return false;
  if (taken == Leased::kUntidy) request.Finish(i, slot);
  *leased |= LeasedBits{1} << i;
  return true;
}

// So often a commit that others' commits spoil is tried, before the long way.
inline constexpr int kCommits = 8;

// After a commit of the i-th bucket that was lost to another thread: looks and commits again, or
// leases. False where neither gave it.
template <class Request>
bool CommitContended(const Request& request, size_t i, uint64_t now_ns, Look* look,
                     LeasedBits* leased) {
  for (int commit = 1; commit < kCommits; ++commit) {
    if (request.may_lease() &&
        IsCovered(request, i, *look->slot,
                  LeaseIfContended(request.leasable(i, *look->slot), now_ns), leased)) {
      return true;
    }
    if (!LookAt(request, i, *look->slot, now_ns, look)) return false;
    if (CommitAt(*look)) return true;
  }
  return false;
}

// Commits the buckets from the `from`-th on, the first of which is lost already where `is_lost`,
// and counts all.
template <class Request>
[[gnu::noinline]] bool CommitRest(const Request& request, const sluice_t& client, size_t count,
                                  uint64_t now_ns, Look* looks, size_t from, bool is_lost,
                                  LeasedBits leased) {
  for (size_t i = from; i < count; ++i) {
    if ((leased >> i & 1) != 0 || (!is_lost && CommitAt(looks[i]))) continue;
    is_lost = false;
    if (!CommitContended(request, i, now_ns, &looks[i], &leased)) {
      GiveBack(request, client, looks, i, leased, now_ns);
      return false;
    }
  }
  for (size_t i = 0; i < count; ++i) {
    if ((leased >> i & 1) == 0) CountAt(request, i, looks[i]);
  }
  if (IsTallying()) FlushTally(client);
  return true;
}

// AdmitAll for a thread that leases, where no shard is degraded.
template <class Request>
[[gnu::noinline]] bool AdmitLeasing(const Request& request, const sluice_t& client,
                                    const Attachment& a, size_t count, uint64_t now_ns,
                                    Look* looks) {
  if (IsSilent(a, now_ns)) return false;
  LeasedBits leased = 0;
  for (size_t i = 0; i < count; ++i) {
    if (SpendLeased(client, request.lease_name(i), now_ns)) {
      leased |= LeasedBits{1} << i;
      continue;
    }
    shm::Slot* const slot = TableOf(a).FindSlot(request.hash(i));
    if (slot != nullptr &&
        IsCovered(request, i, *slot, RenewLease(request.leasable(i, *slot), now_ns), &leased)) {
      continue;
    }
    if (slot == nullptr || !LookAt(request, i, *slot, now_ns, &looks[i])) {
      GiveBack(request, client, looks, 0, leased, now_ns);
      return false;
    }
  }
  return CommitRest(request, client, count, now_ns, looks, 0, /*is_lost=*/false, leased);
}

// True: admitted and counted. False: nothing is spent, and the long way decides. Inlined whole; it
// keeps little, since a locked operation waits until all that was stored before it has left the
// core. kAnyDegraded: whether IsAnyShardDegraded(a).
template <bool kAnyDegraded, class Request>
[[gnu::always_inline]] inline bool AdmitAll(const Request& request, const sluice_t& client,
                                            const Attachment& a, size_t count, uint64_t now_ns,
                                            Look* looks) {
  if (IsSilent(a, now_ns)) return false;
  for (size_t i = 0; i < count; ++i) {
    shm::Slot* const slot = TableOf(a).FindSlot(request.hash(i));
    if (slot == nullptr || (kAnyDegraded && !IsShardHealthy(a, *slot))) return false;
    if (!LookAt(request, i, *slot, now_ns, &looks[i])) return false;
  }
  for (size_t i = 0; i < count; ++i) {
    if (!CommitAt(looks[i])) [[unlikely]] {
      return CommitRest(request, client, count, now_ns, looks, i, /*is_lost=*/true, 0);
    }
  }
  for (size_t i = 0; i < count; ++i) CountAt(request, i, looks[i]);
  if (IsTallying()) [[unlikely]] {
    FlushTally(client);
  }
  return true;
}

}  // namespace sluice::client
