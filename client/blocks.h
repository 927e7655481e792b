// What can be computed once for a handle or a bound rule, kept in two blocks: a change of the rules
// can be followed while other threads still read the old block. A block is written again only
// kPolicyRestNs after it was superseded; until then a third change is answered the long way.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "shm/policy_view.h"

namespace sluice::client {

inline constexpr size_t kBlocks = 2;

// Which of two blocks is in force; rebuilding is one thread's at a time.
// Memory orders: storing current_ with release pairs with current(): who sees a block sees it
// whole. busy_ is a lock: its release pairs with the next thread's acquire.
template <class Block>
class Blocks {
 public:
  Block* current() const { return current_.load(std::memory_order_acquire); }

  // Runs build(block) on the block that rests, then puts it in force. Null where another thread is
  // at it, the other block was in use too recently, or build said no.
  template <class Build>
  Block* Rebuild(uint64_t now_ns, Build build) {
    if (busy_.exchange(true, std::memory_order_acquire)) return nullptr;
    Block* next = nullptr;
    const size_t other = current() == &blocks_[0] ? 1 : 0;
    const uint64_t rested_ns = superseded_ns_[other];
    if (rested_ns == 0 || now_ns > rested_ns + shm::kPolicyRestNs) {
      if (build(&blocks_[other])) {
        next = &blocks_[other];
        superseded_ns_[1 - other] = now_ns;
        current_.store(next, std::memory_order_release);
      }
    }
    busy_.store(false, std::memory_order_release);
    return next;
  }

 private:
  Block blocks_[kBlocks];
  uint64_t superseded_ns_[kBlocks] = {};  // 0: never in force
  std::atomic<Block*> current_{nullptr};
  std::atomic<bool> busy_{false};
};

}  // namespace sluice::client
