// The same decision by one script call per request, as limiters that keep their buckets in Redis
// make it: hiredis, blocking, over loopback, against a server of its own.
#include <benchmark/benchmark.h>
#include <hiredis/hiredis.h>

#include <chrono>
#include <cstring>
#include <string>
#include <vector>

#include "bench/contenders.h"
#include "bench/paired.h"
#include "bench/stage.h"
#include "tests/support/redis_process.h"

namespace sluice::bench {
namespace {

// One token bucket, as GCRA: what such limiters run, with the server's own time.
constexpr char kScript[] = R"(
local t = redis.call('TIME')
local now = tonumber(t[1]) * 1000000 + tonumber(t[2])
local tau, cost = tonumber(ARGV[1]), tonumber(ARGV[2])
local base = math.max(tonumber(redis.call('GET', KEYS[1]) or '0'), now)
if base + cost - now > tau then return {0, base + cost - tau - now} end
redis.call('SET', KEYS[1], string.format('%.0f', base + cost), 'PX', math.ceil(tau / 1000) + 1)
return {1, 0}
)";
constexpr uint64_t kKeyedUnits = 1024;  // beside each request

class Connection {
 public:
  explicit Connection(uint16_t port) : context_(redisConnect("127.0.0.1", port)) {
    Require(context_ != nullptr && context_->err == 0, "cannot connect to redis-server");
    redisReply* const loaded = Command({"SCRIPT", "LOAD", kScript});
    sha_ = loaded->str;
    freeReplyObject(loaded);
  }
  ~Connection() { redisFree(context_); }
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  bool Check() {
    redisReply* const reply = Command({"EVALSHA", sha_.c_str(), "1", kKey, "1000000", "1"});
    const bool allowed =
        reply->type == REDIS_REPLY_ARRAY && reply->elements == 2 && reply->element[0]->integer == 1;
    freeReplyObject(reply);
    return allowed;
  }

 private:
  redisReply* Command(std::vector<const char*> words) {
    auto* const reply = static_cast<redisReply*>(redisCommandArgv(
        context_, static_cast<int>(words.size()), words.data(), /*argvlen=*/nullptr));
    Require(reply != nullptr && reply->type != REDIS_REPLY_ERROR, "redis-server refused a call");
    return reply;
  }

  redisContext* context_;
  std::string sha_;
};

// By the wall clock, since a caller waits; the checks beside it by the same.
void EvalshaPerRequest(benchmark::State& state) {
  const test::RedisProcess redis({});
  Require(redis.running(), "cannot start redis-server");
  Connection connection(redis.port());
  const Contender keyed = KeyedCheck("", "hot");
  keyed.run(kKeyedUnits);
  Require(connection.Check(), "the script denies its first request");
  std::vector<double> row_ns;
  std::vector<double> keyed_ns;
  for ([[maybe_unused]] auto _ : state) {
    const auto begin = std::chrono::steady_clock::now();
    benchmark::DoNotOptimize(connection.Check());
    const auto middle = std::chrono::steady_clock::now();
    keyed.run(kKeyedUnits);
    const auto end = std::chrono::steady_clock::now();
    const std::chrono::duration<double, std::nano> row = middle - begin;
    const std::chrono::duration<double, std::nano> checks = end - middle;
    state.SetIterationTime(row.count() * 1e-9);
    row_ns.push_back(row.count());
    keyed_ns.push_back(checks.count() / kKeyedUnits);
  }
  state.counters["ns"] = Median(row_ns);
  state.counters["beside_ns"] = Median(keyed_ns);
}

BENCHMARK(EvalshaPerRequest)->Name("redis_evalsha_per_request")->UseManualTime();

}  // namespace
}  // namespace sluice::bench
