#include "client/lease.h"

#include <algorithm>

#include "client/check.h"
#include "shm/bucket.h"

namespace sluice::client {

constinit thread_local uint32_t watching = 0;
constinit thread_local Lease leases[kLeases] = {};

namespace {

struct Contention {
  const shm::Slot* slot;
  uint64_t since_ns;
  uint32_t lost;
};
constinit thread_local Contention contention = {};

// How many checks one lease covers; none of a leaky bucket, whose checks each have an instant of
// their own. `unit_ns`: what one costs this host.
uint32_t ChecksOf(const Rule& rule, uint64_t unit_ns) {
  if (rule.max_delay_ns != 0) return 0;
  const uint64_t fitting = rule.limit.tau_ns / kLeaseShare / std::max<uint64_t>(unit_ns, 1);
  return static_cast<uint32_t>(std::min<uint64_t>(kLeaseTokens / std::max(rule.cost, 1u), fitting));
}

// What is left of a lease goes back by the rule of refunds.
void End(const Leasable& b, Lease& lease) {
  if (lease.left != 0 && lease.attachment == &b.attachment && lease.client_id == b.client.id &&
      lease.fork_epoch == b.client.attacher.fork_epoch() &&
      shm::RefundSlot(*lease.slot, lease.fp, lease.gen, lease.new_ns, lease.left * lease.unit_ns,
                      shm::MonotonicClock::PreciseNs())) {
    shm::TakeBackUse(*lease.slot, b.attachment.dirty, IndexOf(b.attachment, *lease.slot), lease.gen,
                     lease.left * lease.tokens);
  }
  lease.name.owner = nullptr;
}

// Memory orders: LookSlot and CommitLook have their own; the load of aux is a hint.
Leased Take(const Leasable& b, uint64_t now_ns) {
  const uint64_t aux = b.slot.aux.load(std::memory_order_relaxed);
  const uint64_t unit_ns =
      shm::SharedCostNs(b.rule.unit_ns, shm::aux::InvShare(aux), b.rule.limit.tau_ns);
  const uint32_t checks = ChecksOf(b.rule, unit_ns);
  if (checks < 2) return Leased::kNo;
  // Two hot keys of one place are not to end each other's leases in turn.
  Lease& lease = LeaseOf(b.name);
  if (lease.name.owner != nullptr && lease.name != b.name && lease.left != 0 &&
      now_ns < lease.until_ns) {
    return Leased::kNo;
  }
  shm::Seen seen;
  if (shm::LookSlot(b.slot, b.fp, checks * b.rule.unit_ns, b.rule.limit.tau_ns, /*dearer_q16=*/0,
                    now_ns, &seen) != shm::Outcome::kAllowed ||
      !shm::CommitLook(b.slot, seen)) {
    return Leased::kNo;
  }
  if (lease.name.owner != nullptr) End(b, lease);
  lease = {.name = b.name,
           .until_ns = now_ns + kLeaseNs,
           .left = checks - 1,
           .gen = seen.gen,
           .tokens = b.rule.cost,
           .slot = &b.slot,
           .fp = b.fp,
           .unit_ns = seen.cost_ns / checks,
           .new_ns = seen.verdict.new_ns,
           .attachment = &b.attachment,
           .client_id = b.client.id,
           .fork_epoch = b.client.attacher.fork_epoch()};
  watching |= kLeasing;
  TableOf(b.attachment).Count(shm::Counter::kLeases);
  const uint64_t after = shm::CountUse(b.slot, checks * b.rule.cost);
  return IsTidy(after) && !IsTallying() ? Leased::kYes : Leased::kUntidy;
}

}  // namespace

Leased LeaseIfContended(const Leasable& bucket, uint64_t now_ns) {
  Contention& c = contention;
  if (c.slot != &bucket.slot || now_ns - c.since_ns > kContentionNs) {
    c = {&bucket.slot, now_ns, 0};
  }
  if (++c.lost < kContention) return Leased::kNo;
  c.lost = 0;
  return Take(bucket, now_ns);
}

Leased RenewLease(const Leasable& bucket, uint64_t now_ns) {
  const Lease* const own = LiveLease(bucket.client, bucket.name, now_ns);
  const bool is_hot = own != nullptr && own->left == 0;
  if (is_hot) {
    const Leased leased = Take(bucket, now_ns);
    if (leased != Leased::kNo) return leased;
  }
  bool any = false;
  for (Lease& lease : leases) {
    // One that is spent in time stays, to be taken again.
    if (lease.name.owner != nullptr && now_ns >= lease.until_ns) End(bucket, lease);
    any = any || lease.name.owner != nullptr;
  }
  if (!any) watching &= ~kLeasing;
  return Leased::kNo;
}

void UnspendLeased(const sluice_t& client, const LeaseName& name, uint64_t now_ns) {
  Lease* const lease = LiveLease(client, name, now_ns);
  if (lease != nullptr) ++lease->left;
}

}  // namespace sluice::client
