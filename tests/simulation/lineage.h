// What each copy of a shard's hash has counted, beside the hash itself and beyond what Redis knows:
// a batch that was applied points to the one applied before it in that copy. So a copy is a
// pointer, and what a failover lost is what its pointer does not lead to.
#pragma once

#include <cstdint>
#include <deque>
#include <string>
#include <utility>
#include <vector>

namespace sluice::simulation {

struct Applied {
  const Applied* before = nullptr;
  uint32_t shard = 0;
  std::string instance;
  int64_t seq = 0;
  uint64_t at_ns = 0;
  int node = 0;
  int64_t sum = 0;  // tokens counted in this copy, this batch included
  std::vector<std::pair<std::string, int64_t>> tokens;  // by bucket
};

// A daemon asked this node for its state of a shard, whether or not it changed it.
struct Asked {
  uint32_t shard = 0;
  std::string instance;
  uint64_t at_ns = 0;
  const Applied* head = nullptr;  // afterwards
};

struct Lineage {
  std::deque<Applied> applied;  // in the order of time; addresses stay
  std::deque<Asked> asked;
};

}  // namespace sluice::simulation
