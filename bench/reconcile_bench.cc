// The daemon's way to Redis: from used slots through harvest, batches, io_uring and the fold script
// back into the words, for 100,000 buckets that are used all the time; and beside it batches of the
// same form sent by a bare loop, which is what this Redis can take at all.
#include <arpa/inet.h>
#include <benchmark/benchmark.h>
#include <netinet/in.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "bench/paired.h"
#include "bench/stage.h"
#include "daemon/engine.h"
#include "daemon/reconcile/batch.h"
#include "daemon/redis/codec.h"
#include "lua_scripts.h"
#include "tests/support/redis_process.h"

namespace sluice::bench {
namespace {

using Clock = std::chrono::steady_clock;

constexpr uint64_t kBuckets = 100'000;
constexpr uint64_t kSlots = 1 << 18;
constexpr uint32_t kShards = 16;  // as the served segments have
constexpr auto kUseEvery = std::chrono::milliseconds(50);
constexpr auto kWarmUp = std::chrono::milliseconds(1500);
constexpr auto kMeasured = std::chrono::milliseconds(2000);
constexpr char kRule[] = "rules:\n  - {name: live, key: [id], limit: 1000000/s}\n";

uint64_t CpuNs(int who) {
  rusage usage;
  getrusage(who, &usage);
  const auto ns = [](const timeval& t) {
    return static_cast<uint64_t>(t.tv_sec) * 1'000'000'000u +
           static_cast<uint64_t>(t.tv_usec) * 1000u;
  };
  return ns(usage.ru_utime) + ns(usage.ru_stime);
}
// Of all threads but this one: the engine's, and the attach server's few wake-ups.
uint64_t OthersCpuNs() { return CpuNs(RUSAGE_SELF) - CpuNs(RUSAGE_THREAD); }

double Seconds(Clock::duration d) { return std::chrono::duration<double>(d).count(); }

std::string BucketKey(uint64_t i) { return "bucket-" + std::to_string(1'000'000 + i); }

// A client that uses all buckets again and again.
class Load {
 public:
  explicit Load(const std::string& runtime_dir) : client_(OpenClient(runtime_dir, "reconcile")) {
    Require(sluice_rule_bind(client_, "live", &rule_) == 0, "no rule");
    for (uint64_t i = 0; i < kBuckets; ++i) names_.push_back(BucketKey(i));
    for (const std::string& name : names_) keys_.push_back({name.data(), name.size()});
    results_.resize(kBuckets);
  }
  ~Load() {
    sluice_rule_free(rule_);
    sluice_close(client_);
  }
  Load(const Load&) = delete;
  Load& operator=(const Load&) = delete;

  void RunFor(Clock::duration duration) {
    const Clock::time_point end = Clock::now() + duration;
    for (Clock::time_point next = Clock::now(); next < end; next += kUseEvery) {
      sluice_rule_check_many(rule_, keys_.data(), keys_.size(), 1, results_.data(), nullptr);
      std::this_thread::sleep_until(next + kUseEvery);
    }
  }

 private:
  sluice_t* const client_;
  sluice_rule_t* rule_ = nullptr;
  std::vector<std::string> names_;
  std::vector<sluice_key_t> keys_;
  std::vector<int> results_;
};

struct Figures {
  double buckets_per_s = 0;
  double cpu_us_per_bucket = 0;
};

Figures RunEngine(const test::RedisProcess& redis) {
  test::ServedSegments served(kRule, {.capacity = kSlots, .reconciling = true});
  config::RedisConfig config;
  config.addresses = {redis.address()};
  config.mode = config::RedisMode::kSingle;
  config.shards = kShards;
  const std::unique_ptr<Engine> engine =
      MakeEngine({.control = &served.control(), .buckets = &served.buckets(), .redis = config});
  Require(engine->Start(std::make_shared<const config::CompiledRules>(served.rules())).ok(),
          "the engine does not start");
  Figures figures;
  {
    Load load(served.dir());
    load.RunFor(kWarmUp);
    const uint64_t buckets = engine->Snapshot().batched_buckets;
    const uint64_t cpu_ns = OthersCpuNs();
    const Clock::time_point begin = Clock::now();
    load.RunFor(kMeasured);
    const double done = static_cast<double>(engine->Snapshot().batched_buckets - buckets);
    Require(done > 0, "nothing was reconciled");
    figures.buckets_per_s = done / Seconds(Clock::now() - begin);
    figures.cpu_us_per_bucket = static_cast<double>(OthersCpuNs() - cpu_ns) / 1000 / done;
  }
  engine->Stop(absl::Seconds(1));
  return figures;
}

// The batches of one round over all buckets, as they go over the wire; `round` is their sequence
// number.
std::vector<std::string> MakeBatches(const std::string& sha, uint64_t round) {
  reconcile::Ledger ledger(kShards);
  const config::CompiledRule rule = {.label = "live",
                                     .limit = shm::MakeLimit(1'000'000, 1'000'000'000, 1'000'000)};
  std::vector<std::string> batches;
  for (uint64_t first = 0; first < kBuckets; first += reconcile::kMaxBatchBuckets) {
    const auto shard = static_cast<uint32_t>(batches.size() % kShards);
    std::vector<reconcile::BatchItem> items;
    for (uint64_t i = first; i < std::min(kBuckets, first + reconcile::kMaxBatchBuckets); ++i) {
      const reconcile::BucketId id =
          ledger.Intern({.slot = static_cast<uint32_t>(i), .key = i + 1},
                        {.text = "live:" + BucketKey(i), .shard = shard, .rule = &rule}, 1);
      items.push_back({.bucket = id, .tokens = 2, .since_ns = 1});
    }
    const reconcile::Batch batch =
        reconcile::Freeze(ledger, std::move(items), std::string(32, 'b'),
                          round * kBuckets + batches.size() + 1, 0, 2, 100'000'000);
    std::string command;
    redis::AppendArrayHead(&command, 4 + batch.arg_count);
    redis::AppendBulk(&command, "EVALSHA");
    redis::AppendBulk(&command, sha);
    redis::AppendBulk(&command, "1");
    redis::AppendBulk(&command, "raw:{" + std::to_string(shard) + "}");
    batches.push_back(command + reconcile::ArgsOf(batch, /*known_seq=*/-1, 2));
  }
  return batches;
}

// Sends the batches as fast as they are answered, kShards in flight as the daemon has, and looks at
// nothing in a reply but its lines.
double RawSeconds(uint16_t port, const std::vector<std::string>& batches) {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(port);
  Require(connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0,
          "cannot connect to redis-server");
  constexpr size_t kReplyLines = 1 + 4 + 3 * reconcile::kMaxBatchBuckets;
  static_assert(kBuckets % reconcile::kMaxBatchBuckets == 0);
  const Clock::time_point begin = Clock::now();
  size_t sent = 0;
  size_t lines = 0;
  char buffer[65536];
  while (lines < batches.size() * kReplyLines) {
    for (; sent < batches.size() && sent - lines / kReplyLines < kShards; ++sent) {
      const std::string& batch = batches[sent];
      Require(
          send(fd, batch.data(), batch.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(batch.size()),
          "redis-server takes no more");
    }
    const ssize_t got = recv(fd, buffer, sizeof buffer, 0);
    Require(got > 0 && buffer[0] != '-', "redis-server does not answer");
    lines += static_cast<size_t>(std::count(buffer, buffer + got, '\n'));
  }
  const double seconds = Seconds(Clock::now() - begin);
  close(fd);
  return seconds;
}

void Reconcile(benchmark::State& state) {
  constexpr uint64_t kRawRounds = 6;
  for ([[maybe_unused]] auto _ : state) {
    const test::RedisProcess redis({});
    Require(redis.running(), "cannot start redis-server");
    const Figures engine = RunEngine(redis);
    const std::string sha = redis.Command({"SCRIPT", "LOAD", std::string(lua::kFold)}).text;
    RawSeconds(redis.port(), MakeBatches(sha, 0));  // makes the fields
    std::vector<double> raw;
    for (uint64_t round = 1; round <= kRawRounds; ++round) {
      raw.push_back(static_cast<double>(kBuckets) /
                    RawSeconds(redis.port(), MakeBatches(sha, round)));
    }
    state.SetIterationTime(engine.cpu_us_per_bucket * 1e-6);
    state.counters["buckets_per_s"] = engine.buckets_per_s;
    state.counters["cpu_us_per_bucket"] = engine.cpu_us_per_bucket;
    state.counters["raw_buckets_per_s"] = Median(raw);
  }
}

BENCHMARK(Reconcile)->Name("reconcile")->UseManualTime()->Iterations(1);

}  // namespace
}  // namespace sluice::bench
