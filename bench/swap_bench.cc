// Checks while limits change ten times a second. Each check is timed by itself; what is told is the
// slowest one around each change, beside the 99.9th percentile of all checks of that run, and of as
// long a run without changes.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "bench/paired.h"
#include "bench/pinned.h"
#include "bench/stage.h"
#include "daemon/config/parse.h"
#include "shm/clock.h"
#include "shm/policy_view.h"
#include "shm/slot_table.h"

namespace sluice::bench {
namespace {

constexpr std::chrono::milliseconds kBetweenChanges{100};
constexpr uint64_t kChanges = 20;  // of one run
// A check that meets a change began this near to it.
constexpr uint64_t kBeforeNs = 2'000;
constexpr uint64_t kAfterNs = 10'000;
constexpr uint64_t kLongestNs = 1'000'000;  // of the histogram

uint64_t NowNs() {
  return static_cast<uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count());
}

// Thirty rules, of which a request matches three: what an API has. `limit`: of all.
std::string Rules(const std::string& limit) {
  std::string rules = "rules:\n";
  const auto add = [&](const std::string& name, const std::string& match, const char* key) {
    rules += "  - {name: " + name + match + ", key: [" + key + "], limit: " + limit + "}\n";
  };
  for (int i = 0; i < 27; ++i) {
    const std::string route = std::to_string(i);
    add("route-" + route, ", match: {route: /v1/" + route + "}", "account");
  }
  add("per-user", "", "user");
  add("per-tenant", "", "tenant");
  add("per-ip", "", "ip");
  return rules;
}

// Segments with those rules, and both forms of them, compiled.
struct SwapStage {
  test::ServedSegments served{Rules("1000000000/s"), {.reconciling = true}};
  sluice_t* const client = OpenClient(served.dir(), "sluice_bench");
  const std::string policies[2] = {Compiled("999999999/s"), Compiled("1000000000/s")};

  static SwapStage& Get() {
    static SwapStage* const stage = new SwapStage;
    return *stage;
  }

  std::string Compiled(const std::string& limit) {
    const auto& info = served.control().info();
    return *config::Compile(config::ParseConfig(Rules(limit), "swap.yaml").config, info.hash_key,
                            /*seq=*/1);
  }

 private:
  SwapStage() {
    for (uint32_t shard = 0; shard < served.control().info().shard_count; ++shard) {
      served.control().SetShard(shard, shm::ShardMode::kHealthy, 1);
    }
  }
};

// The times of single checks.
class Times {
 public:
  Times() : counts_(kLongestNs + 1) { slow_.reserve(1 << 20); }

  void Add(uint64_t begin_ns, uint64_t took_ns) {
    ++counts_[std::min(took_ns, kLongestNs)];
    ++total_;
    if (took_ns > kFastNs && slow_.size() < slow_.capacity()) slow_.push_back({begin_ns, took_ns});
  }
  uint64_t Percentile(double share) const {
    const auto wanted = static_cast<uint64_t>(share * static_cast<double>(total_));
    uint64_t seen = 0;
    for (uint64_t ns = 0; ns <= kLongestNs; ++ns) {
      seen += counts_[ns];
      if (seen > wanted) return ns;
    }
    return kLongestNs;
  }
  uint64_t CountAbove(uint64_t ns) const {
    uint64_t n = 0;
    for (uint64_t i = ns + 1; i <= kLongestNs; ++i) n += counts_[i];
    return n;
  }
  // Of those that began in [from_ns, to_ns]; at least kFastNs.
  uint64_t Slowest(uint64_t from_ns, uint64_t to_ns) const {
    uint64_t slowest_ns = kFastNs;
    for (const auto& [begin_ns, took_ns] : slow_) {
      if (begin_ns >= from_ns && begin_ns <= to_ns) slowest_ns = std::max(slowest_ns, took_ns);
    }
    return slowest_ns;
  }

 private:
  static constexpr uint64_t kFastNs = 80;
  std::vector<uint64_t> counts_;
  std::vector<std::pair<uint64_t, uint64_t>> slow_;  // begin, took
  uint64_t total_ = 0;
};

// Makes kChanges changes, or none, at their pace; returns when each began and ended.
std::vector<std::pair<uint64_t, uint64_t>> Change(SwapStage& stage, bool is_calm) {
  std::vector<std::pair<uint64_t, uint64_t>> changes;
  for (uint64_t i = 0; i < kChanges; ++i) {
    std::this_thread::sleep_for(kBetweenChanges);
    if (is_calm) continue;
    const uint64_t begin_ns = NowNs();
    Require(stage.served.control()
                .PublishPolicy(stage.policies[i % 2], shm::MonotonicClock::PreciseNs(), nullptr)
                .ok(),
            "a change is refused");
    changes.push_back({begin_ns, NowNs()});
  }
  return changes;
}

struct Run {
  Times times;
  std::vector<std::pair<uint64_t, uint64_t>> changes;
};

// Times checks, one by one, while another thread changes the limits.
template <class Check>
Run Measure(SwapStage& stage, bool is_calm, const Check& check) {
  Run run;
  std::atomic<bool> done{false};
  std::thread publisher([&] {
    PinTo(0);
    run.changes = Change(stage, is_calm);
    done = true;
  });
  while (!done.load(std::memory_order_relaxed)) {
    const uint64_t begin_ns = NowNs();
    benchmark::DoNotOptimize(check());
    run.times.Add(begin_ns, NowNs() - begin_ns);
  }
  publisher.join();
  return run;
}

// The slowest check around each change, in order.
std::vector<double> SlowestOf(const Run& run) {
  std::vector<double> slowest_ns;
  for (const auto& [begin_ns, end_ns] : run.changes) {
    slowest_ns.push_back(
        static_cast<double>(run.times.Slowest(begin_ns - kBeforeNs, end_ns + kAfterNs)));
  }
  std::sort(slowest_ns.begin(), slowest_ns.end());
  return slowest_ns;
}

// The least that a check by handle can do about changes: it looks at the policy word, and reads its
// rule's two numbers where they changed.
class Floor {
 public:
  explicit Floor(SwapStage& stage)
      : control_(stage.served.control()), rule_(FloorOf(stage.served, "per-user")) {
    const uint64_t hash = shm::HashValue(rule_.hash_key, {kKey, kKeyBytes}, rule_.seed);
    slot_ = FloorSlot(rule_, hash);
    Require(slot_ != shm::kNoSlot, "no bucket");
    fingerprint_ = shm::FingerprintOf(hash);
    id_ = stage.served.rules().Find("per-user")->id;
  }
  uint64_t Check() {
    const uint64_t policy = control_.header().policy.load(std::memory_order_acquire);
    if (policy != policy_) {
      const shm::RuleNumbers& numbers = shm::PolicyView(control_.policy().data()).rule(id_).numbers;
      rule_.cost_ns = numbers.unit_ns;
      rule_.tau_ns = numbers.limit.tau_ns;
      policy_ = policy;
    }
    return FloorHandle(rule_, slot_, fingerprint_, 1);
  }

 private:
  const shm::ControlWriter& control_;
  FloorRule rule_;
  uint64_t policy_ = 0;
  uint64_t fingerprint_;
  uint32_t slot_;
  uint32_t id_;
};

template <class Check>
void Swap(benchmark::State& state, const Check& check) {
  SwapStage& stage = SwapStage::Get();
  const Pinned pinned(1);
  for ([[maybe_unused]] auto _ : state) {
    const Run calm = Measure(stage, /*is_calm=*/true, check);
    const Run run = Measure(stage, /*is_calm=*/false, check);
    Floor floor(stage);
    const Run least = Measure(stage, /*is_calm=*/false, [&] { return floor.Check(); });
    const std::vector<double> slowest_ns = SlowestOf(run);
    const uint64_t p999_ns = run.times.Percentile(0.999);
    state.SetIterationTime(1);
    state.counters["ns"] = Median(slowest_ns);
    state.counters["floor_ns"] = Median(SlowestOf(least));
    state.counters["ninth_of_ten_ns"] = slowest_ns[slowest_ns.size() * 9 / 10];
    state.counters["beside_ns"] = static_cast<double>(p999_ns);
    state.counters["calm_p999_ns"] = static_cast<double>(calm.times.Percentile(0.999));
    state.counters["slow_per_change"] = (static_cast<double>(run.times.CountAbove(3 * p999_ns)) -
                                         static_cast<double>(calm.times.CountAbove(3 * p999_ns))) /
                                        static_cast<double>(kChanges);
  }
}

void SwapHandle(benchmark::State& state) {
  const sluice_descriptor_t user = {"user", 4, kKey, kKeyBytes};
  sluice_handle_t* handle = nullptr;
  Require(sluice_handle_bind(SwapStage::Get().client, &user, 1, &handle) == 0, "no handle");
  Swap(state, [&] { return sluice_handle_check(handle, 1, nullptr); });
  sluice_handle_free(handle);
}

void SwapKeyed(benchmark::State& state) {
  sluice_rule_t* rule = nullptr;
  Require(sluice_rule_bind(SwapStage::Get().client, "per-user", &rule) == 0, "no rule");
  Swap(state, [&] { return sluice_rule_check(rule, kKey, kKeyBytes, 1, nullptr); });
  sluice_rule_free(rule);
}

void SwapThreeRules(benchmark::State& state) {
  const sluice_descriptor_t request[] = {
      {"user", 4, kKey, kKeyBytes}, {"tenant", 6, "acme", 4}, {"ip", 2, "203.0.113.1", 11}};
  Swap(state, [&] { return sluice_check(SwapStage::Get().client, request, 3, 1, nullptr); });
}

BENCHMARK(SwapHandle)->Name("policy_swap_handle")->UseManualTime()->Iterations(1);
BENCHMARK(SwapKeyed)->Name("policy_swap_keyed")->UseManualTime()->Iterations(1);
BENCHMARK(SwapThreeRules)->Name("policy_swap_three_rules")->UseManualTime()->Iterations(1);

}  // namespace
}  // namespace sluice::bench
