#include "daemon/admin/status_json.h"

#include <algorithm>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "shm/layout.h"

namespace sluice::admin {
namespace {

using nlohmann::ordered_json;

// Shards listed one by one; all are counted.
constexpr size_t kMaxTroubledListed = 128;

const char* ModeName(shm::ShardMode mode) {
  switch (mode) {
    case shm::ShardMode::kHealthy:
      return "healthy";
    case shm::ShardMode::kStale:
      return "stale";
    case shm::ShardMode::kEmergency:
      return "emergency";
  }
  return "?";
}

const char* DegradedName(shm::DegradedMode mode) {
  switch (mode) {
    case shm::DegradedMode::kOpen:
      return "open";
    case shm::DegradedMode::kClosed:
      return "closed";
    case shm::DegradedMode::kDegrade:
      return "degrade";
    case shm::DegradedMode::kNormal:
      return "normal";
  }
  return "?";
}

const char* OpName(shm::MatchOp op) {
  switch (op) {
    case shm::MatchOp::kExact:
      return "exact";
    case shm::MatchOp::kPrefix:
      return "prefix";
    case shm::MatchOp::kGlob:
      return "glob";
    case shm::MatchOp::kOneOf:
      return "one_of";
  }
  return "?";
}

double Seconds(uint64_t ns) { return static_cast<double>(ns) * 1e-9; }
double SecondsSince(uint64_t now_ns, uint64_t then_ns) {
  return then_ns == 0 || then_ns > now_ns ? 0.0 : Seconds(now_ns - then_ns);
}
std::string Hex(uint64_t value) { return absl::StrFormat("%016x", value); }

double LeftS(const Chaos& chaos, uint64_t now_ns) {
  return now_ns < chaos.until_ns ? Seconds(chaos.until_ns - now_ns) : 0.0;
}

ordered_json ChaosJson(const DaemonStatus& status) {
  if (status.chaos.token == 0) return nullptr;
  return {{"text", status.chaos.text}, {"left_s", LeftS(status.chaos, status.now_ns)}};
}

ordered_json ShardsJson(const DaemonStatus& status, shm::ShardMode* worst) {
  uint64_t by_mode[3] = {};
  ordered_json troubled = ordered_json::array();
  for (size_t i = 0; i < status.shards.size(); ++i) {
    const shm::ShardMode mode = shm::shard_state::Mode(status.shards[i]);
    ++by_mode[static_cast<size_t>(mode)];
    *worst = std::max(*worst, mode);
    if (mode == shm::ShardMode::kHealthy || troubled.size() >= kMaxTroubledListed) continue;
    troubled.push_back(
        {{"shard", i},
         {"mode", ModeName(mode)},
         {"since_s", SecondsSince(status.now_ns, shm::shard_state::SinceNs(status.shards[i]))}});
  }
  return {{"count", status.shards.size()},
          {"healthy", by_mode[0]},
          {"stale", by_mode[1]},
          {"emergency", by_mode[2]},
          {"troubled", troubled}};
}

ordered_json RedisJson(const EngineSnapshot& engine) {
  if (!engine.has_redis) return nullptr;
  ordered_json primaries = ordered_json::array();
  for (const PrimaryStatus& p : engine.primaries) {
    uint64_t calls = 0;
    for (const uint64_t count : p.calls.counts) calls += count;
    primaries.push_back({{"address", p.address},
                         {"connected", p.connected},
                         {"breaker", p.breaker},
                         {"shards", p.shards},
                         {"p50_us", static_cast<double>(p.p50_ns) * 1e-3},
                         {"p99_us", static_cast<double>(p.p99_ns) * 1e-3},
                         {"calls", calls},
                         {"failures", p.failures},
                         {"last_error", p.last_error}});
  }
  return {{"transport", engine.transport},
          {"unreconciled_age_s", Seconds(engine.unreconciled_age_ns)},
          {"batches", engine.batches},
          {"batched_buckets", engine.batched_buckets},
          {"resends", engine.resends},
          {"requeues", engine.requeues},
          {"script_errors", engine.script_errors},
          {"redirects", engine.redirects},
          {"map_refreshes", engine.map_refreshes},
          {"primaries", primaries}};
}

ordered_json LeasesJson(const EngineSnapshot& engine) {
  if (!engine.has_redis) return nullptr;
  const LeaseCounts& leases = engine.leases;
  return {{"buckets", leases.buckets},
          {"held_tokens", leases.held_tokens},
          {"calls", leases.calls},
          {"called_buckets", leases.called_buckets},
          {"resends", leases.resends},
          {"lent_tokens", leases.lent_tokens},
          {"returned_tokens", leases.returned_tokens},
          {"lost_tokens", leases.lost_tokens}};
}

ordered_json TableJson(const DaemonStatus& status) {
  const auto count = [&](shm::Counter counter) -> uint64_t {
    const size_t i = static_cast<size_t>(counter);
    return i < status.counters.size() ? status.counters[i] : 0;
  };
  const double capacity = static_cast<double>(std::max<uint64_t>(status.capacity, 1));
  return {{"capacity", status.capacity},
          {"log_keys", status.logs.rows},
          {"log_tokens", status.logs.entries},
          {"log_bytes", status.logs.bytes()},
          {"live", status.engine.live_buckets},
          {"load", static_cast<double>(status.engine.live_buckets) / capacity},
          {"claims", count(shm::Counter::kClaims)},
          {"evictions", count(shm::Counter::kEvictions)},
          {"abandoned_tokens", count(shm::Counter::kAbandonedUse)},
          {"overflows", count(shm::Counter::kOverflows)},
          {"gave_up", count(shm::Counter::kGaveUp)},
          {"leases", count(shm::Counter::kLeases)},
          {"heals", count(shm::Counter::kHeals)},
          {"duplicates", count(shm::Counter::kDuplicates)},
          {"repairs", count(shm::Counter::kRepairs)}};
}

ordered_json ClientsJson(const DaemonStatus& status) {
  ordered_json list = ordered_json::array();
  for (const ClientInfo& client : status.clients.clients) {
    list.push_back({{"pid", client.pid},
                    {"uid", client.uid},
                    {"label", client.label},
                    {"since_s", SecondsSince(status.now_ns, client.since_ns)},
                    {"same_user", client.same_user}});
  }
  return {{"attached", status.clients.attached},
          {"attached_total", status.clients.attached_total},
          {"refused_total", status.clients.refused_total},
          {"same_user", status.clients.same_user},
          {"list", list}};
}

std::string KeyPart(const config::KeyConfig& key) {
  if (key.form != shm::KeyForm::kIp) return key.descriptor;
  return absl::StrFormat("%s/%d (IPv6: /%d)", key.descriptor, key.v4_bits, key.v6_bits);
}

ordered_json PriorityJson(const config::RuleConfig& rule, const EngineSnapshot& engine) {
  if (!rule.priority) return nullptr;
  ordered_json classes = ordered_json::object();
  ordered_json denied = ordered_json::object();
  for (const config::PriorityConfig::Class& c : rule.priority->classes) classes[c.value] = c.part;
  for (const ClassCounts& c : engine.classes) {
    if (c.rule == rule.name) denied[c.value] = c.denied;
  }
  return {{"by", rule.priority->descriptor},
          {"classes", classes},
          {"otherwise", rule.priority->otherwise},
          {"denied", denied}};
}

ordered_json PenaltyJson(const config::PenaltyConfig& penalty) {
  if (!penalty.is_any()) return nullptr;
  return {{"after", penalty.after},
          {"within_ns", penalty.within_ns},
          {"for_ns", penalty.for_ns},
          {"deny_costs", penalty.deny_costs}};
}

RuleCounts CountsOf(const EngineSnapshot& engine, const std::string& label) {
  for (const RuleCounts& known : engine.rules) {
    if (known.label == label) return known;
  }
  return {};
}

// `candidate` null: the rule has none.
ordered_json CandidateJson(const config::CompiledRule* candidate, const EngineSnapshot& engine) {
  if (candidate == nullptr) return nullptr;
  const RuleCounts counts = CountsOf(engine, candidate->label);
  return {{"label", candidate->label},
          {"limit", candidate->limit.limit},
          {"period_ns", candidate->limit.period_ns},
          {"burst", candidate->limit.burst},
          {"cost", candidate->cost},
          {"max_delay_ns", candidate->max_delay_ns},
          {"would_allow", counts.allowed},
          {"would_deny", counts.denied}};
}

ordered_json OverrideJson(const config::RuleConfig& rule) {
  if (!rule.override) return nullptr;
  return {{"by", rule.override->descriptor}, {"max", rule.override->max}};
}

ordered_json RuleJson(const config::CompiledRule& rule, const config::RuleConfig& from,
                      const EngineSnapshot& engine) {
  const RuleCounts counts = CountsOf(engine, rule.label);
  ordered_json match = ordered_json::array();
  for (const config::MatchConfig& m : from.match) {
    match.push_back({{"descriptor", m.descriptor}, {"op", OpName(m.op)}, {"values", m.values}});
  }
  ordered_json key = ordered_json::array();
  for (const config::KeyConfig& k : from.key) key.push_back(KeyPart(k));
  const bool is_tier = rule.label.size() > from.name.size();
  const auto factor = [](uint32_t q16) { return q16 == 0 ? 1.0 : 65536.0 / q16; };
  ordered_json degraded = {{"mode", DegradedName(rule.mode)},
                           {"factor", factor(rule.factor_q16)},
                           {"for_ns", rule.for_ns},
                           {"then", DegradedName(rule.then_mode)},
                           {"then_factor", factor(rule.then_factor_q16)},
                           {"alert", rule.alert}};
  return {{"label", rule.label},
          {"name", from.name},
          {"tier", is_tier ? rule.label.substr(from.name.size() + 1) : ""},
          {"limit", rule.limit.limit},
          {"period_ns", rule.kind == shm::Kind::kInFlight ? 0 : rule.limit.period_ns},
          {"burst", rule.limit.burst},
          {"cost", rule.cost},
          {"algorithm", config::AlgorithmName(rule.kind, rule.max_delay_ns)},
          {"max_delay_ns", rule.max_delay_ns},
          {"match", match},
          {"key", key},
          {"consistency", rule.strict                      ? "strict"
                          : rule.kind == shm::Kind::kLease ? "overdraft"
                                                           : "approximate"},
          {"wait_ns", rule.wait_ns},
          {"priority", PriorityJson(from, engine)},
          {"override", OverrideJson(from)},
          {"shadow", rule.shadow},
          {"when_degraded", degraded},
          {"allowed", counts.allowed},
          {"denied", counts.denied},
          {"degraded", counts.degraded},
          {"near_limit", counts.near_limit},
          {"penalty", PenaltyJson(rule.penalty)},
          {"bans", counts.bans}};
}

}  // namespace

ordered_json StatusJson(const DaemonStatus& status) {
  auto worst = shm::ShardMode::kHealthy;
  const ordered_json shards = ShardsJson(status, &worst);
  ordered_json alarms = ordered_json::array();
  for (const Alarm& alarm : status.alarms) {
    alarms.push_back({{"id", alarm.id},
                      {"text", alarm.text},
                      {"mend", alarm.mend},
                      {"since_s", SecondsSince(status.now_ns, alarm.since_ns)}});
  }
  return {{"version", status.version},
          {"pid", status.pid},
          {"uptime_s", SecondsSince(status.now_ns, status.started_ns)},
          {"adopted", status.adopted},
          {"incarnation", status.incarnation},
          {"generation", Hex(status.generation)},
          {"mode", ModeName(worst)},
          {"policy",
           {{"seq", status.policy_seq},
            {"rules", status.rule_count},
            {"version_hash", Hex(status.version_hash)}}},
          {"config",
           {{"path", status.config.path},
            {"ok", status.config.ok},
            {"reloads", status.config.reloads},
            {"failed_reloads", status.config.failed_reloads},
            {"problems", status.config.problems},
            {"warnings", status.config.warnings},
            {"pending", status.config.pending}}},
          {"shards", shards},
          {"redis", RedisJson(status.engine)},
          {"leases", LeasesJson(status.engine)},
          {"table", TableJson(status)},
          {"clients", ClientsJson(status)},
          {"alarms", alarms},
          {"chaos", ChaosJson(status)}};
}

ordered_json ChaosLine(const Chaos& chaos, const DaemonStatus& before, const DaemonStatus& status) {
  shm::ShardMode worst = shm::ShardMode::kHealthy;
  const ordered_json shards = ShardsJson(status, &worst);
  const auto degraded = [](const DaemonStatus& s) {
    uint64_t sum = 0;
    for (const RuleCounts& rule : s.engine.rules) sum += rule.degraded;
    return sum;
  };
  return {{"chaos", chaos.text},
          {"left_s", LeftS(chaos, status.now_ns)},
          {"mode", ModeName(worst)},
          {"emergency", shards.at("emergency")},
          {"unreconciled_age_s", Seconds(status.engine.unreconciled_age_ns)},
          {"calls", status.engine.chaos_calls - before.engine.chaos_calls},
          {"degraded", degraded(status) - degraded(before)}};
}

ordered_json RulesJson(const RulesInForce& in_force, const EngineSnapshot& engine) {
  ordered_json rules = ordered_json::array();
  for (const config::CompiledRule& rule : in_force.rules->rules()) {
    if (rule.group >= in_force.config->rules.size()) continue;
    if (rule.is_candidate()) continue;  // stands with its rule
    rules.push_back(RuleJson(rule, in_force.config->rules[rule.group], engine));
    rules.back()["candidate"] = CandidateJson(in_force.rules->ById(rule.candidate), engine);
  }
  return {{"policy_seq", in_force.rules->seq()}, {"rules", rules}};
}

}  // namespace sluice::admin
