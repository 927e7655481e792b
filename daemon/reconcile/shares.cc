// What part of each bucket's limit this host may use, for its clients and by what Redis told.
#include <algorithm>
#include <cstdint>

#include "daemon/reconcile/reconciler.h"
#include "daemon/reconcile/share.h"
#include "shm/take.h"

namespace sluice::reconcile {
namespace {

constexpr size_t kExpirePerTick = 256;
constexpr uint64_t kKeptNs = 2 * kGenerationUs * 1000;  // after the last reply

}  // namespace

// By what Redis told of all demand. False as in PublishShare.
bool Reconciler::RenewShare(Bucket& b, uint64_t now_ns) {
  b.touched_ns = now_ns;
  b.share_expired = false;
  const uint32_t fresh = InverseShare(ShareOf(b.demand.rate(), b.others, b.hosts, RateOf(b.limit)));
  // Who said farewell and is back soon begins with the share that he had.
  b.inv_share = b.is_silent ? std::min(b.inv_share, fresh) : fresh;
  return PublishShare(b);
}

// False when the bucket does not stand in the segment any more. The key's load pairs with step 3.
bool Reconciler::PublishShare(Bucket& b) {
  if (b.rule == nullptr || b.place.key == 0) return false;
  shm::Slot& slot = buckets_->slots()[b.place.slot];
  if (slot.key.load(std::memory_order_acquire) != b.place.key) {
    b.place.key = 0;  // another key stands there now
    return false;
  }
  shm::SetAux(slot, b.place.key, b.inv_share, b.shown_shard(), b.rule->id);
  return true;
}

// A host that went quiet keeps the share that kappa gives it, not the one of its busy time.
void Reconciler::ExpireShares(uint64_t now_ns) {
  for (size_t i = 0; i < kExpirePerTick && ledger_.bucket_slots() != 0; ++i) {
    if (expire_at_ >= ledger_.bucket_slots()) expire_at_ = 0;
    Bucket& b = ledger_.bucket(expire_at_++);
    if (b.inv_share == 0 || b.share_expired || now_ns < b.touched_ns + kKeptNs) continue;
    b.share_expired = true;
    b.inv_share = InverseShare(ShareOf(0, b.others, b.hosts, RateOf(b.limit)));
    PublishShare(b);
  }
}

}  // namespace sluice::reconcile
