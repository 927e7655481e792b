// Which buckets have come near their limit, told once in a period of the limit each, so that a
// count of them says how many keys are affected and not how often they ask.
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/container/flat_hash_map.h"
#include "daemon/reconcile/ledger.h"
#include "shm/segment.h"

namespace sluice::reconcile {

// Single-threaded.
class NearLimits {
 public:
  // So many are remembered; of those beyond, one may be told twice.
  static constexpr size_t kMost = 65'536;

  // True where the rule's `near` part of the bucket is used, by what its slot says now, and that
  // has not been told in this period. Precondition: bucket.rule is set.
  bool IsNews(const Bucket& bucket, const shm::MappedBuckets& buckets, uint64_t now_ns);

 private:
  absl::flat_hash_map<uint64_t, uint64_t> told_until_ns_;  // by the key word of the slot
};

}  // namespace sluice::reconcile
