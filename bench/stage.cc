#include "bench/stage.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>

#include "shm/clock.h"
#include "shm/credits.h"
#include "shm/kinds.h"
#include "shm/lent_places.h"
#include "shm/slot_table.h"

namespace sluice::bench {
namespace {

// Limits that hot checks never reach and that the coarse clock serves, and one long exhausted. A
// cold bucket stays occupied for a minute after each check: none takes another's slot.
constexpr char kRules[] = R"(
redis: {addresses: "none:1"}
rules:
  - {name: hot, key: [id], limit: 1000000000/s}
  - {name: exhausted, key: [spent], limit: 10 per 1h}
  - {name: contended, key: [leased], limit: 1000000000/s}
  - {name: cold, key: [cold], limit: 1 per 60s, burst: 100000}
  - {name: cold-user, key: [cold_user], limit: 1 per 60s, burst: 100000}
  - {name: cold-tenant, key: [cold_tenant], limit: 1 per 60s, burst: 100000}
  - {name: cold-ip, key: [cold_ip], limit: 1 per 60s, burst: 100000}
  - {name: per-user, key: [user], limit: 1000000000/s}
  - {name: per-tenant, key: [tenant], limit: 1000000000/s}
  - {name: per-ip, key: [ip], limit: 1000000000/s}
  - {name: precise, key: [precise], limit: 1000000000/s, burst: 1000}
  - {name: fixed, key: [fixed], limit: 1000000000 per 1s, algorithm: fixed_window}
  - {name: sliding, key: [sliding], limit: 1000000000 per 1s, algorithm: sliding_window}
  - {name: classed, key: [classed], limit: 1000000000/s,
     priority: {classes: {critical: 1, sheddable: 0.5}}}
  - {name: classless, key: [classless], limit: 1000000000/s}
  - {name: given, key: [given], limit: 1000000000/s, override: {max: 1000000000}}
  - {name: tried, key: [tried], limit: 1000000000/s, candidate: {limit: 500000000/s}}
  - {name: punished, key: [punished], limit: 10 per 1h, penalty: {deny_costs: 1}}
  - {name: spread, key: [spread], limit: 10 per 1h, retry_spread: 60s}
  - {name: levels, key: [levels], limit: 1000000000/s, soft: {at: 0.8}, metadata: {plan: free}}
  - {name: ended, key: [ended], limit: 1000000000/s, outcomes: {5xx: refund}}
  - {name: daily, key: [daily], limit: 1000000000/day, algorithm: fixed_window, calendar: {}}
  - {name: log, key: [log], limit: 4096 per 1ms, algorithm: sliding_log}
  - {name: at-once, key: [at_once], in_flight: 100}
  - {name: strict, key: [lent], limit: 1000000/s, consistency: strict}
)";
constexpr uint64_t kLentForNs = 60'000'000'000;
constexpr uint32_t kAttachMs = 5000;

}  // namespace

void Require(bool ok, const char* what) {
  if (ok) return;
  std::fprintf(stderr, "sluice_bench: %s\n", what);
  std::exit(1);
}

sluice_t* OpenClient(const std::string& runtime_dir, const char* label) {
  const sluice_options_t options = {sizeof options, 0, runtime_dir.c_str(), label};
  sluice_t* client = nullptr;
  Require(sluice_open(&options, &client) == 0, "cannot open a client");
  Require(sluice_wait(client, kAttachMs) == 1, "the client does not attach");
  return client;
}

FloorRule FloorOf(test::ServedSegments& served, const char* label) {
  const config::CompiledRule* const rule = served.rules().Find(label);
  Require(rule != nullptr, label);
  const shm::MappedBuckets& buckets = served.buckets();
  return {.slots = buckets.slots(),
          .dirty = buckets.dirty(),
          .group_mask = buckets.capacity() / shm::kGroupSlots - 1,
          .hash_key = served.control().info().hash_key,
          .seed = rule->hash_seed,
          .cost_ns = rule->limit.interval_ns,
          .tau_ns = rule->limit.tau_ns};
}

Stage::Stage(uint64_t cold_keys, uint64_t slots)
    : cold_count_(cold_keys), served_(kRules, {.capacity = slots, .reconciling = true}) {
  for (uint32_t shard = 0; shard < served_.control().info().shard_count; ++shard) {
    served_.control().SetShard(shard, shm::ShardMode::kHealthy, 1);
  }
  client_ = OpenClient(served_.dir(), "sluice_bench");
}

Stage& Stage::Get() {
  static Stage* const stage = new Stage(1'000'000, 1 << 21);
  return *stage;
}
Stage& Stage::Wide() {
  static Stage* const stage = new Stage(1'000'000, 1 << 23);
  return *stage;
}
Stage& Stage::Large() {
  static Stage* const stage = new Stage(8'000'000, 1 << 24);
  return *stage;
}

sluice_handle_t* Stage::Handle(const char* name) const { return Handle(name, {kKey, kKeyBytes}); }

sluice_handle_t* Stage::Handle(const char* name, std::string_view value) const {
  const sluice_descriptor_t descriptor = {name, std::strlen(name), value.data(), value.size()};
  sluice_handle_t* handle = nullptr;
  Require(sluice_handle_bind(client_, &descriptor, 1, &handle) == 0, name);
  return handle;
}

sluice_rule_t* Stage::Rule(const char* label) const {
  sluice_rule_t* rule = nullptr;
  Require(sluice_rule_bind(client_, label, &rule) == 0, label);
  return rule;
}

void Stage::Lend(const char* label) {
  const config::CompiledRule* const rule = served_.rules().Find(label);
  Require(rule != nullptr, label);
  const uint64_t hash = shm::HashOfKind(
      shm::HashValue(served_.control().info().hash_key, {kKey, kKeyBytes}, rule->hash_seed),
      rule->kind);
  const shm::MappedBuckets& b = served_.buckets();
  using Table = shm::SlotTable<std::atomic<uint64_t>>;
  const bool has_row = shm::HasRow(rule->kind);
  const Table table = has_row ? Table::OfPlaces(b.slots(), b.geometry().logs, b.counters(),
                                                b.log_entries(), rule->limit.limit)
                              : Table(b.slots(), b.capacity(), b.counters());
  const uint32_t slot = table.Find(hash);
  Require(slot != shm::kNoSlot, "the bucket that is to be lent to is not there");
  // As after a renewal.
  const uint64_t until_ns = shm::MonotonicClock::PreciseNs() + kLentForNs;
  if (has_row) {
    const uint16_t gen = shm::key::Gen(b.slots()[slot].key.load());
    b.second()[slot].store(shm::places::cap::Make(gen, until_ns, shm::kMaxLogEntries));
  } else {
    b.slots()[slot].word.store(shm::credits::Make(until_ns, 0, shm::credits::kMax));
  }
}

const char* Stage::NextCold(uint64_t n) {
  if (cold_keys_.empty()) MakeColdKeys();
  if (cold_at_ + n > cold_count_) cold_at_ = 0;
  const char* const keys = cold_keys_.data() + cold_at_ * kKeyBytes;
  cold_at_ += n;
  return keys;
}

void Stage::MakeColdKeys() {
  std::mt19937_64 random(1);  // the same keys in each run
  cold_keys_.reserve(cold_count_ * kKeyBytes);
  for (uint64_t i = 0; i < cold_count_; ++i) {
    char key[kKeyBytes + 1];
    std::snprintf(key, sizeof key, "%016lx-%03lx-%015lx", random(), i & 0xfff, random() >> 4);
    cold_keys_.append(key, kKeyBytes);
  }
  sluice_rule_t* const rule = Rule("cold");
  for (uint64_t i = 0; i < cold_count_; ++i) {
    sluice_rule_check(rule, cold_keys_.data() + i * kKeyBytes, kKeyBytes, 1, nullptr);
  }
  sluice_rule_free(rule);
}

}  // namespace sluice::bench
