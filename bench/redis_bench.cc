// The same decision by one script call per request, as limiters that keep their buckets in Redis
// make it: hiredis, blocking, over loopback, against a server of its own.
#include <benchmark/benchmark.h>

#include <chrono>
#include <vector>

#include "bench/contenders.h"
#include "bench/evalsha.h"
#include "bench/paired.h"
#include "bench/stage.h"
#include "tests/support/redis_process.h"

namespace sluice::bench {
namespace {

constexpr uint64_t kKeyedUnits = 1024;  // beside each request

bool Check(RedisConnection& connection) {
  connection.AppendEvalsha();
  return connection.NextDecision();
}

// By the wall clock, since a caller waits; the checks beside it by the same.
void EvalshaPerRequest(benchmark::State& state) {
  const test::RedisProcess redis({});
  Require(redis.running(), "cannot start redis-server");
  RedisConnection connection(redis.port());
  const Contender keyed = KeyedCheck("", "hot");
  keyed.run(kKeyedUnits);
  Require(Check(connection), "the script denies its first request");
  std::vector<double> row_ns;
  std::vector<double> keyed_ns;
  for ([[maybe_unused]] auto _ : state) {
    const auto begin = std::chrono::steady_clock::now();
    benchmark::DoNotOptimize(Check(connection));
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
