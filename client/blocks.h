// What can be computed once for a handle, a bound rule or a shape, kept in blocks that are never
// written while they can be read: a change of the rules is followed in another block, while other
// threads still read the old one. A block is written again only kBlockRestNs after it was
// superseded. Where none has rested one more is allocated, within the process's allowance; beyond
// it a change is answered the long way until one has. In calm there is one, after a change two.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <new>
#include <utility>

namespace sluice::client {

// Far beyond the longest check.
inline constexpr uint64_t kBlockRestNs = 10'000'000'000;
// Most bytes of all blocks of a process beyond two of each.
inline constexpr uint64_t kBlockAllowance = 32ull << 20;
inline constinit std::atomic<uint64_t> extra_block_bytes{0};  // of them; orders nothing

// Which block is in force; rebuilding is one thread's at a time.
// Memory orders: storing current_ with release pairs with current(): who sees a block sees it
// whole. busy_ is a lock: its release pairs with the next thread's acquire.
template <class Block>
class Blocks {
 public:
  Blocks() = default;
  ~Blocks() {
    while (newest_ != nullptr) Drop(newest_->next);
  }
  Blocks(const Blocks&) = delete;
  Blocks& operator=(const Blocks&) = delete;

  Block* current() const { return current_.load(std::memory_order_acquire); }

  // Runs build(old, block) on a block that rests, where `old` is the one in force or null, then
  // puts it in force. Null where another thread is at it, there is no memory, or build said no.
  template <class Build>
  Block* Rebuild(uint64_t now_ns, Build build) {
    if (busy_.exchange(true, std::memory_order_acquire)) return nullptr;
    Block* built = nullptr;
    Node* const node = Rested(now_ns);
    if (node != nullptr && build(current_.load(std::memory_order_relaxed), &node->block)) {
      built = &node->block;
      newest_->superseded_ns = now_ns;
      newest_ = node;
      current_.store(built, std::memory_order_release);
    }
    busy_.store(false, std::memory_order_release);
    return built;
  }

 private:
  struct Node {
    Block block;
    Node* next;  // in a circle: the newest, the oldest, the second oldest ...
    uint64_t superseded_ns;
  };

  bool IsFree(const Node& node, uint64_t now_ns) const {
    const bool is_in_force = &node.block == current_.load(std::memory_order_relaxed);
    return !is_in_force && (node.superseded_ns == 0 || now_ns > node.superseded_ns + kBlockRestNs);
  }

  // The oldest where it has rested, else a new one. Where the second oldest has rested too, the
  // flurry is over: one is given back.
  Node* Rested(uint64_t now_ns) {
    if (newest_ == nullptr) return Add();
    Node* const oldest = newest_->next;
    if (!IsFree(*oldest, now_ns)) return Add();
    if (count_ > 2 && IsFree(*oldest->next, now_ns)) Drop(oldest);
    return newest_->next;
  }

  // After the newest: as the oldest. The sum of bytes orders nothing, here and in Drop.
  Node* Add() {
    const bool is_extra = count_ >= 2;
    if (is_extra && extra_block_bytes.load(std::memory_order_relaxed) > kBlockAllowance) {
      return nullptr;
    }
    Node* const node = new (std::nothrow) Node;
    if (node == nullptr) return nullptr;
    node->superseded_ns = 0;
    if (newest_ == nullptr) newest_ = node->next = node;
    node->next = std::exchange(newest_->next, node);
    ++count_;
    if (is_extra) extra_block_bytes.fetch_add(sizeof(Node), std::memory_order_relaxed);
    return node;
  }

  // Relaxed: the sum orders nothing.
  void Drop(Node* oldest) {
    if (count_ > 2) extra_block_bytes.fetch_sub(sizeof(Node), std::memory_order_relaxed);
    --count_;
    newest_->next = oldest->next;
    if (oldest == newest_) newest_ = nullptr;
    delete oldest;
  }

  std::atomic<Block*> current_{nullptr};
  Node* newest_ = nullptr;
  uint32_t count_ = 0;
  std::atomic<bool> busy_{false};
};

}  // namespace sluice::client
