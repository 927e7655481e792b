// Checks through the C ABI, each row beside its floor and beside the row that it is measured by.
#include <benchmark/benchmark.h>

#include <string_view>

#include "bench/contenders.h"
#include "bench/floors.h"
#include "bench/paired.h"
#include "bench/stage.h"
#include "shm/slot_table.h"

namespace sluice::bench {
namespace {

constexpr uint64_t kHotUnits = 4096;  // per slice: some tens of microseconds
constexpr uint64_t kColdUnits = 512;
constexpr size_t kBatch = 16;

Contender HandleCheck(const char* name, const char* descriptor, bool with_decision = false) {
  sluice_handle_t* const handle = Stage::Get().Handle(descriptor);
  return {name, [=](uint64_t n) {
            sluice_decision_t decision;
            sluice_decision_t* const wanted = with_decision ? &decision : nullptr;
            int allowed = 0;
            for (uint64_t i = 0; i < n; ++i) allowed += sluice_handle_check(handle, 1, wanted);
            benchmark::DoNotOptimize(allowed);
          }};
}

Contender HandleFloor(const char* label) {
  const FloorRule rule = Stage::Get().Floor(label);
  const uint64_t hash = shm::HashValue(rule.hash_key, {kKey, kKeyBytes}, rule.seed);
  const uint32_t slot = FloorSlot(rule, hash);
  Require(slot != shm::kNoSlot, "the floor's bucket is not there");
  return {"floor_ns", [=](uint64_t n) {
            benchmark::DoNotOptimize(FloorHandle(rule, slot, shm::FingerprintOf(hash), n));
          }};
}

Contender KeyedFloor(const char* label) {
  const FloorRule rule = Stage::Get().Floor(label);
  return {"floor_ns", [=](uint64_t n) {
            benchmark::DoNotOptimize(FloorKeyed(rule, {kKey, kKeyBytes}, n));
          }};
}

void CheckHotHandle(benchmark::State& state) {
  const Contender row = HandleCheck("ns", "id");
  row.run(1);
  RunPaired(state, kHotUnits,
            {row, HandleFloor("hot"), HandleCheck("with_decision_ns", "id", true)});
}

void CheckHotKeyed(benchmark::State& state) {
  const Contender row = KeyedCheck("ns", "hot");
  row.run(1);
  RunPaired(state, kHotUnits,
            {row, KeyedFloor("hot"), KeyedCheck("with_decision_ns", "hot", true)});
}

void CheckDeny(benchmark::State& state) {
  const Contender row = HandleCheck("ns", "spent");
  row.run(100);
  RunPaired(state, kHotUnits,
            {row, HandleFloor("exhausted"), HandleCheck("beside_ns", "id"),
             HandleCheck("with_decision_ns", "spent", true)});
}

void CheckDenyKeyed(benchmark::State& state) {
  const Contender row = KeyedCheck("ns", "exhausted");
  row.run(100);
  RunPaired(state, kHotUnits,
            {row, KeyedFloor("exhausted"), KeyedCheck("beside_ns", "hot"),
             KeyedCheck("with_decision_ns", "exhausted", true)});
}

// The request of the row and of its floor.
struct ThreeRules {
  static constexpr char kTenant[] = "acme";
  static constexpr char kIp[] = "203.0.113.7";
  sluice_descriptor_t descriptors[3] = {{"user", 4, kKey, kKeyBytes},
                                        {"tenant", 6, kTenant, sizeof kTenant - 1},
                                        {"ip", 2, kIp, sizeof kIp - 1}};
  FloorRule rules[3] = {Stage::Get().Floor("per-user"), Stage::Get().Floor("per-tenant"),
                        Stage::Get().Floor("per-ip")};
  std::string_view keys[3] = {{kKey, kKeyBytes}, kTenant, kIp};

  Contender Row(const char* name, bool with_decision = false) const {
    sluice_t* const client = Stage::Get().client();
    return {name, [this, client, with_decision](uint64_t n) {
              sluice_decision_t decision;
              sluice_decision_t* const wanted = with_decision ? &decision : nullptr;
              int allowed = 0;
              for (uint64_t i = 0; i < n; ++i) {
                allowed += sluice_check(client, descriptors, 3, 1, wanted);
              }
              benchmark::DoNotOptimize(allowed);
            }};
  }
  Contender Floor() const {
    return {"floor_ns",
            [this](uint64_t n) { benchmark::DoNotOptimize(FloorThree(rules, keys, n)); }};
  }
};

void CheckThreeRules(benchmark::State& state) {
  const ThreeRules three;
  const Contender row = three.Row("ns");
  row.run(1);
  RunPaired(
      state, kHotUnits / 2,
      {row, three.Floor(), KeyedCheck("beside_ns", "hot"), three.Row("with_decision_ns", true)});
}

Contender ColdSingle(const char* name) {
  sluice_rule_t* const rule = Stage::Get().Rule("cold");
  return {name, [=](uint64_t n) {
            const char* key = Stage::Get().NextCold(n);
            int allowed = 0;
            for (uint64_t i = 0; i < n; ++i, key += kKeyBytes) {
              allowed += sluice_rule_check(rule, key, kKeyBytes, 1, nullptr);
            }
            benchmark::DoNotOptimize(allowed);
          }};
}

void CheckColdSingle(benchmark::State& state) {
  const FloorRule rule = Stage::Get().Floor("cold");
  RunPaired(state, kColdUnits,
            {ColdSingle("ns"), {"floor_ns", [&](uint64_t n) {
                                  const char* const keys = Stage::Get().NextCold(n);
                                  benchmark::DoNotOptimize(FloorCold(rule, keys, kKeyBytes, n));
                                }}});
}

void CheckColdBatch16(benchmark::State& state) {
  sluice_rule_t* const bound = Stage::Get().Rule("cold");
  const FloorRule rule = Stage::Get().Floor("cold");
  const auto row = [&](uint64_t n) {
    const char* key = Stage::Get().NextCold(n);
    int allowed = 0;
    for (uint64_t i = 0; i < n; i += kBatch) {
      sluice_key_t keys[kBatch];
      int results[kBatch];
      for (sluice_key_t& k : keys) {
        k = {key, kKeyBytes};
        key += kKeyBytes;
      }
      allowed += sluice_rule_check_many(bound, keys, kBatch, 1, results, nullptr);
    }
    benchmark::DoNotOptimize(allowed);
  };
  const auto floor = [&](uint64_t n) {
    const char* const keys = Stage::Get().NextCold(n);
    benchmark::DoNotOptimize(FloorBatch16(rule, keys, kKeyBytes, n));
  };
  RunPaired(state, kColdUnits, {{"ns", row}, {"floor_ns", floor}, ColdSingle("beside_ns")});
}

BENCHMARK(CheckHotHandle)->Name("check_hot_handle")->UseManualTime();
BENCHMARK(CheckHotKeyed)->Name("check_hot_keyed")->UseManualTime();
BENCHMARK(CheckThreeRules)->Name("check_three_rules")->UseManualTime();
BENCHMARK(CheckDeny)->Name("check_deny")->UseManualTime();
BENCHMARK(CheckDenyKeyed)->Name("check_deny_keyed")->UseManualTime();
BENCHMARK(CheckColdSingle)->Name("check_cold_1m_single")->UseManualTime();
BENCHMARK(CheckColdBatch16)->Name("check_cold_1m_batch16")->UseManualTime();

}  // namespace
}  // namespace sluice::bench
