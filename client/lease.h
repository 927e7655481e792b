// Leases: a key that is hot on several cores costs each check a journey of its cache line. A thread
// that meets others there takes the tokens of several checks in one go, and spends them by itself.
//
// A lease is charged when it is taken, so what was spent never exceeds burst and rate since any
// start. By the time of spending, a window may hold one lease a thread more: at most kLeaseTokens,
// and 1/kLeaseShare of the burst. A lease ends after kLeaseNs. What is left goes back as a refund
// does, where the thread checks anything then; else, and where its time has passed, it is dropped.
#pragma once

#include <cstdint>

#include "client/client.h"
#include "client/plan.h"
#include "client/watching.h"

namespace sluice::client {

inline constexpr uint32_t kLeaseTokens = 64;
inline constexpr uint32_t kLeaseShare = 16;
inline constexpr uint64_t kLeaseNs = 2'000'000;
inline constexpr size_t kLeases = 4;  // of one thread at a time
// So many lost CASes on one slot within kContentionNs make a thread lease.
inline constexpr uint32_t kContention = 3;
inline constexpr uint64_t kContentionNs = 10'000'000;

// Names what a lease covers. `owner`: the rule of a handle or bound rule, or the client of lists of
// descriptors; null: none. `id`: the key's hash, where the owner has many; of a list's bucket with
// the policy mixed in, since its rule has no address that lasts, and the class's floor: what one
// class may lease is not another's.
struct LeaseName {
  const void* owner;
  uint64_t id;
  bool operator==(const LeaseName&) const = default;
};

inline LeaseName NameOfListed(const sluice_t& client, uint64_t policy, uint64_t hash,
                              uint16_t floor_q16) {
  return {&client, hash ^ (policy + (uint64_t{floor_q16} << 48)) * 0x9e3779b97f4a7c15};
}

struct Lease {
  LeaseName name;  // whose checks of cost 1 it covers
  uint64_t until_ns;
  uint32_t left;  // checks
  // For giving back: one check's cost, the slot, its tenancy, and the TAT that was stored.
  uint16_t gen;
  uint32_t tokens;  // one check's
  shm::Slot* slot;
  uint64_t fp;
  uint64_t unit_ns;
  uint64_t new_ns;
  // Whose it is: another attachment's, a closed client's, and in a child its parent's, is dropped.
  const Attachment* attachment;
  uint64_t client_id;
  uint64_t fork_epoch;
};

extern constinit thread_local Lease leases[kLeases] __attribute__((tls_model("initial-exec")));

inline Lease& LeaseOf(const LeaseName& name) {
  return leases[((reinterpret_cast<uintptr_t>(name.owner) >> 4) ^ name.id) % kLeases];
}

// This thread's lease of that name, that may be spent from now; else null.
inline Lease* LiveLease(const sluice_t& client, const LeaseName& name, uint64_t now_ns) {
  Lease& lease = LeaseOf(name);
  const bool is_live = lease.name == name && now_ns < lease.until_ns &&
                       lease.client_id == client.id &&
                       lease.fork_epoch == client.attacher.fork_epoch();
  return is_live ? &lease : nullptr;
}

// True when a check of cost 1 of that name is covered: it is admitted, and nothing is left to do.
inline bool SpendLeased(const sluice_t& client, const LeaseName& name, uint64_t now_ns) {
  Lease* const lease = LiveLease(client, name, now_ns);
  if (lease == nullptr || lease->left == 0) return false;
  --lease->left;
  return true;
}

// A bucket that a thread may lease from.
struct Leasable {
  const sluice_t& client;
  const Attachment& attachment;
  const Rule& rule;
  LeaseName name;
  shm::Slot& slot;
  uint64_t fp;
};

enum class Leased : uint8_t {
  kNo,      // the check is to be made as always
  kYes,     // it is admitted, and the first of a new lease
  kUntidy,  // likewise; the slot is to be finished, see FinishItem
};

// After a CAS that was lost to another thread.
Leased LeaseIfContended(const Leasable& bucket, uint64_t now_ns);

// Where SpendLeased said no: takes the next lease when the last one was spent in time, and ends
// those of this thread that are over.
Leased RenewLease(const Leasable& bucket, uint64_t now_ns);

// Takes a spent check back: the request was refused by another bucket. Where the lease has ended
// meanwhile, it stays spent.
void UnspendLeased(const sluice_t& client, const LeaseName& name, uint64_t now_ns);

}  // namespace sluice::client
