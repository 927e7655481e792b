// What other regions are told of limits that each counts by itself: the same use, to the same
// bucket of their clusters, at a slower beat. There it is a host's like any other.
#include <algorithm>

#include "daemon/reconcile/reconciler.h"
#include "shm/hash.h"

namespace sluice::reconcile {

void Reconciler::Exchange(const Bucket& b, int64_t tokens, uint64_t denied, uint64_t since_ns,
                          const WindowSeen& seen) {
  if (b.rule == nullptr || !b.rule->exchanged) return;
  for (uint32_t region = 1; region < options_.region_count; ++region) {
    const uint32_t shard = region * options_.shard_count + b.shard;
    const BucketId id = ledger_.InternMirror(b, shard, now_ns_);
    ledger_.AddUse(id, tokens, denied, since_ns, now_ns_);
    if (tokens != 0 && shm::IsWindow(b.kind)) NoteWindowUse(ledger_.bucket(id), tokens, seen);
    // A flash crowd does not wait for the beat.
    if (IsJump(ledger_.bucket(id), now_ns_)) ledger_.shard(shard).urgent = true;
  }
}

uint64_t Reconciler::IntervalOf(uint32_t shard) const {
  return shard < options_.shard_count ? stats_.interval_ns
                                      : std::max(stats_.interval_ns, options_.exchange_ns);
}

// Exchanges have beats of their own for each host and shard: all at once would make regions take
// turns in denying.
bool Reconciler::IsDue(uint32_t index, uint64_t now_ns) const {
  const Shard& s = ledger_.shard(index);
  if (s.urgent) return true;
  const uint64_t interval_ns = IntervalOf(index);
  if (index < options_.shard_count) {
    return s.queue.size() >= kFlushBuckets || now_ns >= s.queued_since_ns + interval_ns;
  }
  uint64_t state = shm::Fnv1a(options_.instance) + index;
  const uint64_t phase_ns = shm::SplitMix64(state) % interval_ns;
  return (now_ns + phase_ns) / interval_ns != (s.queued_since_ns + phase_ns) / interval_ns;
}

}  // namespace sluice::reconcile
