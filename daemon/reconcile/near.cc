#include "daemon/reconcile/near.h"

#include <algorithm>

#include "daemon/reconcile/windows.h"
#include "shm/places.h"

namespace sluice::reconcile {
namespace {

// The word is a hint here, which orders nothing: one that has changed belongs to the next tenancy,
// which is looked at when it is used.
bool IsNear(const Bucket& b, const shm::MappedBuckets& buckets, uint64_t now_ns) {
  const uint64_t percent = b.rule->near_percent;
  if (shm::IsWindow(b.kind)) {
    const WindowSeen seen = LookAtWindow(b, buckets);
    return seen.is_ours && seen.end_ns > now_ns &&
           static_cast<uint64_t>(std::max<int64_t>(seen.most, 0)) * 100 >= b.limit.limit * percent;
  }
  if (b.kind == shm::Kind::kInFlight) {
    const shm::LogShape logs = buckets.geometry().logs;
    if (b.place.slot >= logs.rows) return false;
    const shm::logs::Row<std::atomic<uint64_t>> row = {
        buckets.log_entries() + uint64_t{b.place.slot} * logs.entries, logs.entries};
    const uint64_t held = shm::places::CountHeld(row, logs.entries, shm::key::Gen(b.place.key));
    return held * 100 >= b.limit.limit * percent;
  }
  const uint64_t w = buckets.slots()[b.place.slot].word.load(std::memory_order_acquire);
  if (shm::word::IsDead(w) || w <= now_ns) return false;
  // A token that has come back in part is used, as in an answer's `remaining`.
  const uint64_t used_ns = std::min(w - now_ns + b.limit.interval_ns - 1, 2 * b.limit.tau_ns);
  return used_ns * 100 >= b.limit.tau_ns * percent;
}

}  // namespace

bool NearLimits::IsNews(const Bucket& bucket, const shm::MappedBuckets& buckets, uint64_t now_ns) {
  if (!IsNear(bucket, buckets, now_ns)) return false;
  if (told_until_ns_.size() >= kMost) {
    absl::erase_if(told_until_ns_, [&](const auto& told) { return told.second <= now_ns; });
    if (told_until_ns_.size() >= kMost) told_until_ns_.clear();
  }
  uint64_t& until_ns = told_until_ns_[bucket.place.key];
  if (until_ns > now_ns) return false;
  until_ns = now_ns + bucket.limit.period_ns;
  return true;
}

}  // namespace sluice::reconcile
