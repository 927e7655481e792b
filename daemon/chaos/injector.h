// Between the reconciler and the Redis client: what the order in force does to calls and replies.
// Whatever is held back or failed here was answered once by nobody else, so each call has its one
// answer. Single-threaded: the working thread's.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <optional>

#include "daemon/chaos/order.h"
#include "daemon/redis/cluster_client.h"

namespace sluice::chaos {

class Injector {
 public:
  // `longest_ns`: a reply that would come later than this is a time-out instead. `random`: 64
  // uniform bits.
  Injector(uint64_t longest_ns, std::function<uint64_t()> random);

  // In force until `until_ns`, or until the next Set.
  void Set(std::optional<Order> order, uint64_t until_ns);
  // The order in force; null where there is none. Ends it where its time is over.
  const Order* InForce(uint64_t now_ns);
  uint64_t touched() const { return touched_; }  // calls and replies, of all orders

  // True where the call, or the probe, is failed instead of being sent: it is answered by Deliver.
  bool TakesCall(uint32_t shard, uint64_t token, redis::PrimaryIndex primary, uint64_t now_ns);
  bool TakesPing(redis::PrimaryIndex primary, uint64_t token, uint64_t now_ns);
  // True where the reply is held back.
  bool TakesReply(uint32_t shard, uint64_t token, const redis::Reply& reply,
                  redis::PrimaryIndex primary, uint64_t now_ns);
  bool TakesPong(redis::PrimaryIndex primary, uint64_t token, uint64_t now_ns);

  // Answers what is due; all that is held back where no order is in force any more.
  void Deliver(uint64_t now_ns, redis::Listener& listener);
  // When Deliver has something to do; UINT64_MAX: nothing.
  uint64_t NextNs() const { return held_.empty() ? UINT64_MAX : held_.front().due_ns; }

 private:
  struct Held {
    uint64_t due_ns = 0;
    bool is_ping = false;
    uint32_t shard = 0;
    uint64_t token = 0;
    redis::PrimaryIndex primary = redis::kNoPrimary;
    std::optional<redis::Failure> failure = {};
    redis::Reply reply = {};
  };

  bool Hits(const Order& order);
  bool TakesOut(Held held, uint64_t now_ns);
  bool TakesIn(Held held, uint64_t now_ns);

  const uint64_t longest_ns_;
  const std::function<uint64_t()> random_;
  std::optional<Order> order_;
  uint64_t until_ns_ = 0;
  uint64_t touched_ = 0;
  std::deque<Held> held_;  // by due_ns: all of one order wait equally long
};

}  // namespace sluice::chaos
