// One blocking connection to a node of Redis, for people's looks: each command has a time-out.
#pragma once

#include <hiredis/hiredis.h>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "daemon/config/config.h"
#include "daemon/redis/tls_session.h"
#include "shm/clock.h"

namespace sluice::admin {

inline constexpr int kGlobalCommandMs = 1'000;

struct NodeAddress {
  std::string address;   // host:port
  std::string hostname;  // what its certificate names; empty: the host of the address
};

struct FreeContext {
  void operator()(redisContext* context) const { redisFree(context); }
};
struct FreeReply {
  void operator()(redisReply* reply) const { freeReplyObject(reply); }
};
using Reply = std::unique_ptr<redisReply, FreeReply>;

inline std::string_view TextOf(const redisReply* reply) {
  return reply != nullptr && reply->str != nullptr ? std::string_view(reply->str, reply->len)
                                                   : std::string_view();
}

// Logged in, with the distance of the node's clock. Single-threaded.
class Node {
 public:
  // `tls` may be null: plain TCP.
  static std::unique_ptr<Node> Open(const NodeAddress& at, const config::RedisConfig& redis,
                                    const redis::TlsContext* tls, std::string* problem);

  // Null when the connection has failed: see error().
  Reply Command(const std::vector<std::string>& args);
  bool is_broken() const { return context_->err != 0; }
  std::string error() const { return tls_error_.empty() ? context_->errstr : tls_error_; }
  int64_t now_us() const {
    return offset_us_ + static_cast<int64_t>(shm::MonotonicClock::PreciseNs() / 1000);
  }

 private:
  bool LogIn(const config::RedisConfig& redis, std::string* problem);
  bool ShakeHands(const NodeAddress& at, const redis::TlsContext& tls);
  Reply TlsCommand(const std::string& command);

  std::unique_ptr<redisContext, FreeContext> context_;
  std::unique_ptr<redis::TlsSession> tls_;  // null: plain TCP
  std::string tls_error_;
  int64_t offset_us_ = 0;  // of its TIME beyond our CLOCK_MONOTONIC
};

}  // namespace sluice::admin
