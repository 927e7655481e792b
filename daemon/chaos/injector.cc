#include "daemon/chaos/injector.h"

#include <algorithm>
#include <utility>

namespace sluice::chaos {
namespace {

constexpr double kTwoTo64 = 18446744073709551616.0;

redis::Failure FailureOf(Fault fault) {
  if (fault == Fault::kRedisError) {
    return {.kind = redis::FailureKind::kDenied,
            .message = "chaos: redis-error",
            .mend = "end sluicectl chaos"};
  }
  return {.kind = redis::FailureKind::kUnavailable,
          .message = "chaos: redis-cut",
          .mend = "end sluicectl chaos"};
}

}  // namespace

Injector::Injector(uint64_t longest_ns, std::function<uint64_t()> random)
    : longest_ns_(longest_ns), random_(std::move(random)) {}

void Injector::Set(std::optional<Order> order, uint64_t until_ns) {
  order_ = std::move(order);
  until_ns_ = until_ns;
}

const Order* Injector::InForce(uint64_t now_ns) {
  if (order_.has_value() && now_ns >= until_ns_) order_.reset();
  return order_.has_value() ? &*order_ : nullptr;
}

bool Injector::Hits(const Order& order) {
  return order.share >= 1 || static_cast<double>(random_()) < order.share * kTwoTo64;
}

bool Injector::TakesOut(Held held, uint64_t now_ns) {
  const Order* const order = InForce(now_ns);
  if (order == nullptr ||
      (order->fault != Fault::kRedisError && order->fault != Fault::kRedisCut) || !Hits(*order)) {
    return false;
  }
  ++touched_;
  held.due_ns = now_ns;
  held.failure = FailureOf(order->fault);
  held_.push_front(std::move(held));  // due at once: before all others
  return true;
}

bool Injector::TakesIn(Held held, uint64_t now_ns) {
  const Order* const order = InForce(now_ns);
  if (order == nullptr || order->fault != Fault::kRedisDelay || !Hits(*order)) return false;
  ++touched_;
  if (order->by_ns > longest_ns_) {
    held.failure = {.kind = redis::FailureKind::kTimeout,
                    .message = "chaos: redis-delay",
                    .mend = "end sluicectl chaos"};
  }
  held.due_ns = now_ns + std::min(order->by_ns, longest_ns_);
  const auto later = [&](const Held& other) { return other.due_ns > held.due_ns; };
  held_.insert(std::find_if(held_.begin(), held_.end(), later), std::move(held));
  return true;
}

bool Injector::TakesCall(uint32_t shard, uint64_t token, redis::PrimaryIndex primary,
                         uint64_t now_ns) {
  return TakesOut({.shard = shard, .token = token, .primary = primary}, now_ns);
}

bool Injector::TakesPing(redis::PrimaryIndex primary, uint64_t token, uint64_t now_ns) {
  return TakesOut({.is_ping = true, .token = token, .primary = primary}, now_ns);
}

bool Injector::TakesReply(uint32_t shard, uint64_t token, const redis::Reply& reply,
                          redis::PrimaryIndex primary, uint64_t now_ns) {
  return TakesIn({.shard = shard, .token = token, .primary = primary, .reply = reply}, now_ns);
}

bool Injector::TakesPong(redis::PrimaryIndex primary, uint64_t token, uint64_t now_ns) {
  return TakesIn({.is_ping = true, .token = token, .primary = primary}, now_ns);
}

void Injector::Deliver(uint64_t now_ns, redis::Listener& listener) {
  const bool is_over = InForce(now_ns) == nullptr;
  std::deque<Held> due;
  while (!held_.empty() && (is_over || held_.front().due_ns <= now_ns)) {
    due.push_back(std::move(held_.front()));
    held_.pop_front();
  }
  for (const Held& held : due) {  // the listener may call again
    if (held.is_ping) {
      listener.OnPong(held.primary, held.token, held.failure ? &*held.failure : nullptr);
    } else if (held.failure.has_value()) {
      listener.OnFailure(held.shard, held.token, *held.failure, held.primary);
    } else {
      listener.OnReply(held.shard, held.token, held.reply, held.primary);
    }
  }
}

}  // namespace sluice::chaos
