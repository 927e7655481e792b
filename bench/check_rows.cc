// What the rows of checks run, all of it through the C ABI but the floors.
#include <benchmark/benchmark.h>

#include <array>
#include <cstdio>
#include <string>
#include <string_view>
#include <vector>

#include "bench/contenders.h"
#include "bench/floors.h"
#include "shm/slot_table.h"

namespace sluice::bench {
namespace {

constexpr uint64_t kColdUnits = 528;  // a multiple of 3 and of 16

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

Contender AesFloor(const char* label) {
  const FloorRule rule = Stage::Get().Floor(label);
  return {"aes_floor_ns", [=](uint64_t n) {
            benchmark::DoNotOptimize(FloorKeyedAes(rule, {kKey, kKeyBytes}, n));
          }};
}

Contenders CheckHotHandle() {
  const Contender row = HandleCheck("ns", "id");
  row.run(1);
  return {row, HandleFloor("hot"), HandleCheck("with_decision_ns", "id", true)};
}

Contenders CheckHotKeyed() {
  const Contender row = KeyedCheck("ns", "hot");
  row.run(1);
  Contenders contenders = {row, KeyedFloor("hot"), KeyedCheck("with_decision_ns", "hot", true)};
  if (HasAes()) contenders.push_back(AesFloor("hot"));
  return contenders;
}

Contenders CheckDeny() {
  const Contender row = HandleCheck("ns", "spent");
  row.run(100);
  return {row, HandleFloor("exhausted"), HandleCheck("beside_ns", "id"),
          HandleCheck("with_decision_ns", "spent", true)};
}

Contenders CheckDenyKeyed() {
  const Contender row = KeyedCheck("ns", "exhausted");
  row.run(100);
  return {row, KeyedFloor("exhausted"), KeyedCheck("beside_ns", "hot"),
          KeyedCheck("with_decision_ns", "exhausted", true)};
}

// The daemon's store into the word is a part of the row, once in kHotUnits checks.
Contender Lent(const Contender& row) {
  row.run(1);
  return {row.name, [run = row.run](uint64_t n) {
            Stage::Get().Lend("strict");
            run(n);
          }};
}

Contenders CheckStrictHandle() {
  return {Lent(HandleCheck("ns", "lent")), HandleCheck("beside_ns", "precise")};
}

Contenders CheckStrictKeyed() {
  return {Lent(KeyedCheck("ns", "strict")), KeyedCheck("beside_ns", "precise")};
}

Contenders CheckWindow(const char* descriptor) {
  const Contender row = HandleCheck("ns", descriptor);
  row.run(1);
  return {row, HandleCheck("beside_ns", "precise")};
}

// Keys in turn, so that none is at its limit: the shortest period and the largest limit are four
// checks in a microsecond.
Contenders CheckLog() {
  constexpr size_t kKeys = 16;
  std::array<sluice_handle_t*, kKeys> handles{};
  for (size_t i = 0; i < kKeys; ++i) {
    handles[i] = Stage::Get().Handle("log", std::string_view(kKey + i, kKeyBytes - i));
  }
  const Contender row = {"ns", [handles](uint64_t n) {
                           int allowed = 0;
                           for (uint64_t i = 0; i < n; ++i) {
                             allowed += sluice_handle_check(handles[i % kKeys], 1, nullptr);
                           }
                           benchmark::DoNotOptimize(allowed);
                         }};
  row.run(kKeys);
  return {row, HandleCheck("beside_ns", "precise")};
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

Contenders CheckThreeRules() {
  static const ThreeRules three;
  const Contender row = three.Row("ns");
  row.run(1);
  return {row, three.Floor(), KeyedCheck("beside_ns", "hot"), three.Row("with_decision_ns", true)};
}

Contender ColdSingle(Stage& stage, const char* name) {
  stage.NextCold(0);  // makes the keys, before anything is timed
  sluice_rule_t* const rule = stage.Rule("cold");
  return {name, [&stage, rule](uint64_t n) {
            const char* key = stage.NextCold(n);
            int allowed = 0;
            for (uint64_t i = 0; i < n; ++i, key += kKeyBytes) {
              allowed += sluice_rule_check(rule, key, kKeyBytes, 1, nullptr);
            }
            benchmark::DoNotOptimize(allowed);
          }};
}

Contenders CheckColdSingle(Stage& stage) {
  const FloorRule rule = stage.Floor("cold");
  const auto floor = [&stage, rule](uint64_t n) {
    benchmark::DoNotOptimize(FloorCold(rule, stage.NextCold(n), kKeyBytes, n));
  };
  return {ColdSingle(stage, "ns"), {"floor_ns", floor}};
}

// Requests whose user, tenant and address are all cold: a million of each.
class ColdRequests {
 public:
  ColdRequests() {
    Stage& stage = Stage::Wide();
    addresses_.reserve(kCount);
    for (uint32_t i = 0; i < kCount; ++i) {
      char text[16];
      std::snprintf(text, sizeof text, "10.%u.%u.%u", i >> 16, i >> 8 & 255, i & 255);
      addresses_.emplace_back(text);
    }
    keys_ = stage.NextCold(kCount);
    for (uint32_t i = 0; i < kCount; ++i) Check(i);
  }

  void Run(uint64_t n) {
    int allowed = 0;
    for (uint64_t i = 0; i < n; ++i) allowed += Check(Next());
    benchmark::DoNotOptimize(allowed);
  }
  void RunFloor(const FloorRule rules[3], uint64_t n) {
    uint64_t admitted = 0;
    for (uint64_t i = 0; i < n; ++i) {
      const uint32_t at = Next();
      const std::string_view key = {keys_ + at * kKeyBytes, kKeyBytes};
      const std::string_view keys[3] = {key, key, addresses_[at]};
      admitted += FloorThree(rules, keys, 1);
    }
    benchmark::DoNotOptimize(admitted);
  }

 private:
  static constexpr uint32_t kCount = 1'000'000;

  uint32_t Next() { return at_ = at_ + 1 < kCount ? at_ + 1 : 0; }
  int Check(uint32_t at) const {
    const char* const key = keys_ + at * kKeyBytes;
    const std::string& address = addresses_[at];
    const sluice_descriptor_t descriptors[3] = {{"cold_user", 9, key, kKeyBytes},
                                                {"cold_tenant", 11, key, kKeyBytes},
                                                {"cold_ip", 7, address.data(), address.size()}};
    return sluice_check(Stage::Wide().client(), descriptors, 3, 1, nullptr);
  }

  std::vector<std::string> addresses_;
  const char* keys_;
  uint32_t at_ = 0;
};

Contenders CheckThreeRulesCold() {
  static ColdRequests* const requests = new ColdRequests;
  Stage& stage = Stage::Wide();
  const std::array<FloorRule, 3> rules = {stage.Floor("cold-user"), stage.Floor("cold-tenant"),
                                          stage.Floor("cold-ip")};
  return {{"ns", [](uint64_t n) { requests->Run(n); }},
          {"floor_ns", [rules](uint64_t n) { requests->RunFloor(rules.data(), n); }},
          ColdSingle(stage, "beside_ns")};
}

template <size_t kBatch>
Contenders CheckColdBatch(Stage& stage) {
  sluice_rule_t* const bound = stage.Rule("cold");
  const FloorRule rule = stage.Floor("cold");
  const auto row = [&stage, bound](uint64_t n) {
    const char* key = stage.NextCold(n);
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
  const auto floor = [&stage, rule](uint64_t n) {
    benchmark::DoNotOptimize(FloorBatch(rule, stage.NextCold(n), kKeyBytes, kBatch, n));
  };
  return {{"ns", row}, {"floor_ns", floor}, ColdSingle(stage, "beside_ns")};
}

constexpr CheckRow kRows[] = {
    {"check_hot_handle", kHotUnits, 1, CheckHotHandle},
    {"check_hot_keyed", kHotUnits, 1, CheckHotKeyed},
    {"check_three_rules", kHotUnits / 2, 1, CheckThreeRules},
    {"check_deny", kHotUnits, 1, CheckDeny},
    {"check_deny_keyed", kHotUnits, 1, CheckDenyKeyed},
    {"check_strict_handle", kHotUnits, 1, CheckStrictHandle},
    {"check_strict_keyed", kHotUnits, 1, CheckStrictKeyed},
    {"check_fixed_window", kHotUnits, 1, [] { return CheckWindow("fixed"); }},
    {"check_sliding_window", kHotUnits, 1, [] { return CheckWindow("sliding"); }},
    {"check_sliding_log", kHotUnits, 1, CheckLog},
    {"check_cold_1m_single", kColdUnits, 1, [] { return CheckColdSingle(Stage::Get()); }},
    {"check_cold_1m_batch3", kColdUnits, 3, [] { return CheckColdBatch<3>(Stage::Get()); }},
    {"check_cold_1m_batch16", kColdUnits, 16, [] { return CheckColdBatch<16>(Stage::Get()); }},
    {"check_three_rules_cold", kColdUnits, 1, CheckThreeRulesCold},
    {"check_cold_8m_single", kColdUnits, 1, [] { return CheckColdSingle(Stage::Large()); }},
    {"check_cold_8m_batch3", kColdUnits, 3, [] { return CheckColdBatch<3>(Stage::Large()); }},
    {"check_cold_8m_batch16", kColdUnits, 16, [] { return CheckColdBatch<16>(Stage::Large()); }},
};

}  // namespace

std::span<const CheckRow> CheckRows() {
  static const auto* const rows = [] {
    auto* const all = new std::vector<CheckRow>(std::begin(kRows), std::end(kRows));
    const std::span<const CheckRow> more = FeatureRows();
    all->insert(all->end(), more.begin(), more.end());
    return all;
  }();
  return *rows;
}

Contender HandleCheck(const char* name, const char* descriptor, bool with_decision) {
  sluice_handle_t* const handle = Stage::Get().Handle(descriptor);
  return {name, [=](uint64_t n) {
            sluice_decision_t decision;
            sluice_decision_t* const wanted = with_decision ? &decision : nullptr;
            int allowed = 0;
            for (uint64_t i = 0; i < n; ++i) allowed += sluice_handle_check(handle, 1, wanted);
            benchmark::DoNotOptimize(allowed);
          }};
}

Contender KeyedCheck(const char* name, const char* label, bool with_decision) {
  sluice_rule_t* const rule = Stage::Get().Rule(label);
  return {name, [=](uint64_t n) {
            sluice_decision_t decision;
            sluice_decision_t* const wanted = with_decision ? &decision : nullptr;
            int allowed = 0;
            for (uint64_t i = 0; i < n; ++i) {
              allowed += sluice_rule_check(rule, kKey, kKeyBytes, 1, wanted);
            }
            benchmark::DoNotOptimize(allowed);
          }};
}

}  // namespace sluice::bench
