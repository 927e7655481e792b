// The decision by a script call, as limiters that keep their buckets in Redis make it.
#pragma once

#include <hiredis/hiredis.h>

#include <cstdint>
#include <string>
#include <vector>

#include "bench/stage.h"

namespace sluice::bench {

// One token bucket, as GCRA: what such limiters run, with the server's own time.
inline constexpr char kBucketScript[] = R"(
local t = redis.call('TIME')
local now = tonumber(t[1]) * 1000000 + tonumber(t[2])
local tau, cost = tonumber(ARGV[1]), tonumber(ARGV[2])
local base = math.max(tonumber(redis.call('GET', KEYS[1]) or '0'), now)
if base + cost - now > tau then return {0, base + cost - tau - now} end
redis.call('SET', KEYS[1], string.format('%.0f', base + cost), 'PX', math.ceil(tau / 1000) + 1)
return {1, 0}
)";

// A blocking connection to a redis-server on loopback. Ends the process where it fails.
class RedisConnection {
 public:
  explicit RedisConnection(uint16_t port) : context_(redisConnect("127.0.0.1", port)) {
    Require(context_ != nullptr && context_->err == 0, "cannot connect to redis-server");
    Append({"SCRIPT", "LOAD", kBucketScript});
    redisReply* const loaded = Next();
    sha_ = loaded->str;
    freeReplyObject(loaded);
  }
  ~RedisConnection() { redisFree(context_); }
  RedisConnection(const RedisConnection&) = delete;
  RedisConnection& operator=(const RedisConnection&) = delete;

  // Asks for a decision; NextDecision() waits for the first that was asked for and not yet told.
  void AppendEvalsha() { Append({"EVALSHA", sha_.c_str(), "1", kKey, "1000000", "1"}); }
  bool NextDecision() {
    redisReply* const reply = Next();
    const bool allowed =
        reply->type == REDIS_REPLY_ARRAY && reply->elements == 2 && reply->element[0]->integer == 1;
    freeReplyObject(reply);
    return allowed;
  }
  void AppendIncr() { Append({"INCR", kKey}); }
  int64_t NextNumber() {
    redisReply* const reply = Next();
    const int64_t number = reply->integer;
    freeReplyObject(reply);
    return number;
  }

 private:
  void Append(std::vector<const char*> words) {
    Require(redisAppendCommandArgv(context_, static_cast<int>(words.size()), words.data(),
                                   /*argvlen=*/nullptr) == REDIS_OK,
            "cannot write to redis-server");
  }
  redisReply* Next() {
    void* reply = nullptr;
    Require(redisGetReply(context_, &reply) == REDIS_OK &&
                static_cast<redisReply*>(reply)->type != REDIS_REPLY_ERROR,
            "redis-server refused a call");
    return static_cast<redisReply*>(reply);
  }

  redisContext* context_;
  std::string sha_;
};

}  // namespace sluice::bench
