// A host that is asked for nothing any more says so. Its last word on a bucket would count for up
// to two generations (lua/fold.lua), and those who are asked now would have so much less of the
// limit.
#pragma once

#include <cstdint>
#include <queue>
#include <tuple>
#include <vector>

#include "daemon/reconcile/ledger.h"

namespace sluice::reconcile {

// Single-threaded.
class Farewells {
 public:
  // Redis has been told what this host asks for of the bucket, as its books say now; hosts report
  // what is in use once in `interval_ns`.
  void OnTold(BucketId id, const Bucket& bucket, uint64_t interval_ns);
  // What has had no use since, for longer than chance explains, is to be reported once more.
  void Queue(uint64_t now_ns, Ledger* ledger);

 private:
  struct Told {
    uint64_t due_ns;
    uint64_t reported_ns;  // as the bucket's then
    BucketId id;
  };
  struct Later {
    bool operator()(const Told& a, const Told& b) const {
      return std::tie(a.due_ns, a.reported_ns, a.id) > std::tie(b.due_ns, b.reported_ns, b.id);
    }
  };
  std::priority_queue<Told, std::vector<Told>, Later> told_;
};

}  // namespace sluice::reconcile
