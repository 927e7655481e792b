// A host that is asked for nothing any more says so. Its last word on a bucket would count for up
// to two generations (lua/fold.lua), and those who are asked now would have so much less of the
// limit.
#pragma once

#include <cstdint>
#include <deque>

#include "daemon/reconcile/ledger.h"

namespace sluice::reconcile {

// Single-threaded.
class Farewells {
 public:
  // Redis has been told what this host asks for of the bucket, as its books say now.
  void OnTold(BucketId id, const Bucket& bucket);
  // What has had no use since, for some intervals between reports, is to be reported once more.
  void Queue(uint64_t now_ns, uint64_t interval_ns, Ledger* ledger);

 private:
  struct Told {
    BucketId id;
    uint64_t reported_ns;  // as the bucket's then
  };
  std::deque<Told> told_;  // in the order of their times
};

}  // namespace sluice::reconcile
