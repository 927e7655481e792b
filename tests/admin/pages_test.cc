// The pages of the admin socket from given values: the metrics' table, and the JSON.
#include <gtest/gtest.h>

#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <string>

#include "daemon/admin/global_lease.h"
#include "daemon/admin/metrics.h"
#include "daemon/admin/status.h"
#include "daemon/admin/status_json.h"

namespace sluice::admin {
namespace {

DaemonStatus FullStatus() {
  DaemonStatus status;
  status.version = "1.2.3";
  status.now_ns = 20'000'000'000;
  status.started_ns = 5'000'000'000;
  status.generation = 0xabc;
  status.capacity = 1000;
  status.shards = {shm::shard_state::Make(shm::ShardMode::kHealthy, 0),
                   shm::shard_state::Make(shm::ShardMode::kEmergency, 19'000'000'000)};
  status.counters.assign(shm::kCounters, 0);
  status.counters[static_cast<size_t>(shm::Counter::kEvictions)] = 17;
  status.engine.has_redis = true;
  status.engine.transport = "epoll";
  status.engine.live_buckets = 250;
  status.engine.unreconciled_age_ns = 1'500'000'000;
  PrimaryStatus primary;
  primary.address = "127.0.0.1:7000";
  primary.breaker = "open";
  primary.calls.counts[0] = 3;
  primary.calls.counts[2] = 2;
  primary.calls.counts.back() = 1;
  primary.calls.sum_us = 5'000'000;
  status.engine.primaries = {primary};
  RuleCounts counts;
  counts.label = "per-\"user\"\\x";
  counts.allowed = 12;
  counts.denied = 3;
  status.engine.rules = {counts};
  status.engine.classes = {{.rule = "api", .value = "low \"1\"", .denied = 41}};
  status.clients.clients = {{.pid = 5, .uid = 6, .label = "web", .since_ns = 19'000'000'000}};
  status.clients.attached = 1;
  status.alarms = {{"config-bad", "text", "mend", 18'000'000'000}};
  return status;
}

// Sample name without its suffix -> how often; TYPE lines -> type.
struct Parsed {
  std::map<std::string, int> samples;
  std::map<std::string, std::string> types;
};

Parsed Parse(const std::string& page) {
  Parsed parsed;
  std::istringstream lines(page);
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string first;
    std::string second;
    std::string name;
    words >> first >> second >> name;
    if (first == "#" && second == "TYPE") words >> parsed.types[name];
    if (first != "#") ++parsed.samples[line.substr(0, line.find_first_of("{ "))];
  }
  return parsed;
}

TEST(MetricsTest, ShowsEveryMetricOfTheTableAndNoOther) {
  const Parsed parsed = Parse(RenderMetrics(FullStatus()));
  std::set<std::string> known;
  for (const MetricSpec& spec : AllMetrics()) {
    EXPECT_TRUE(known.insert(spec.name).second) << spec.name << " stands twice in the table";
    EXPECT_EQ(parsed.types.count(spec.name), 1u) << spec.name << " is not on the page";
  }
  for (const auto& [name, type] : parsed.types) EXPECT_EQ(known.count(name), 1u) << name;
}

TEST(MetricsTest, NamesFollowTheConventions) {
  for (const MetricSpec& spec : AllMetrics()) {
    const std::string name = spec.name;
    EXPECT_TRUE(name.starts_with("sluice_")) << name;
    EXPECT_EQ(name.ends_with("_total"), spec.type == MetricType::kCounter) << name;
    EXPECT_EQ(std::string(spec.help).back(), '.') << name;
  }
}

TEST(MetricsTest, EscapesLabelsAndCountsPerRule) {
  const std::string page = RenderMetrics(FullStatus());
  EXPECT_NE(page.find("sluice_class_denied_total{rule=\"api\",class=\"low \\\"1\\\"\"} 41\n"),
            std::string::npos)
      << page;
  EXPECT_NE(page.find("sluice_checks_total{rule=\"per-\\\"user\\\"\\\\x\",result=\"denied\"} 3\n"),
            std::string::npos)
      << page;
  EXPECT_NE(page.find("sluice_table_evictions_total 17\n"), std::string::npos);
  EXPECT_NE(page.find("sluice_shard_mode{shard=\"1\"} 2\n"), std::string::npos);
  EXPECT_NE(page.find("sluice_alarm{id=\"config-bad\"} 1\n"), std::string::npos);
}

TEST(MetricsTest, HistogramsAreCumulativeAndEndWithTheirCount) {
  const std::string page = RenderMetrics(FullStatus());
  const std::string head = "sluice_redis_call_seconds_bucket{primary=\"127.0.0.1:7000\",le=";
  EXPECT_NE(page.find(head + "\"0.0001\"} 3\n"), std::string::npos) << page;
  EXPECT_NE(page.find(head + "\"0.0005\"} 5\n"), std::string::npos);
  EXPECT_NE(page.find(head + "\"+Inf\"} 6\n"), std::string::npos);
  EXPECT_NE(page.find("sluice_redis_call_seconds_count{primary=\"127.0.0.1:7000\"} 6\n"),
            std::string::npos);
  EXPECT_NE(page.find("sluice_redis_call_seconds_sum{primary=\"127.0.0.1:7000\"} 5\n"),
            std::string::npos);
}

TEST(MetricsTest, ReferenceNamesEveryMetric) {
  const std::string reference = MetricsReference();
  for (const MetricSpec& spec : AllMetrics()) {
    EXPECT_NE(reference.find("| `" + std::string(spec.name) + "` |"), std::string::npos);
  }
}

TEST(StatusJsonTest, TellsTheWorstModeAndOnlyTroubledShards) {
  const nlohmann::ordered_json json = StatusJson(FullStatus());
  EXPECT_EQ(json["mode"], "emergency");
  EXPECT_EQ(json["shards"]["healthy"], 1);
  EXPECT_EQ(json["shards"]["troubled"].size(), 1u);
  EXPECT_EQ(json["shards"]["troubled"][0]["shard"], 1);
  EXPECT_DOUBLE_EQ(json["shards"]["troubled"][0]["since_s"], 1.0);
  EXPECT_DOUBLE_EQ(json["uptime_s"], 15.0);
  EXPECT_DOUBLE_EQ(json["table"]["load"], 0.25);
  EXPECT_EQ(json["redis"]["primaries"][0]["calls"], 6);
  EXPECT_EQ(json["alarms"][0]["mend"], "mend");
  EXPECT_EQ(json["clients"]["list"][0]["pid"], 5);
}

TEST(StatusJsonTest, TellsWhatIsOnLoan) {
  DaemonStatus status = FullStatus();
  status.engine.leases = {.buckets = 2, .held_tokens = 7, .calls = 9, .lent_tokens = 30};
  EXPECT_EQ(StatusJson(status)["leases"]["held_tokens"], 7);
  EXPECT_EQ(StatusJson(status)["leases"]["calls"], 9);
  EXPECT_NE(RenderMetrics(status).find("sluice_lease_lent_tokens_total 30\n"), std::string::npos);
}

config::CompiledRule StrictRule() {
  config::CompiledRule rule;
  rule.limit = shm::MakeLimit(10, 1'000'000'000, 20);
  rule.kind = shm::Kind::kLease;
  rule.strict = true;
  return rule;
}

// Its fields: level t fence gen o0 o1 d0 d1 n0 n1 unit lost lost_us cut full. 10/s is 1 in 100,000
// us.
TEST(GlobalLeaseTest, CountsWhatIsOutInThisGenerationAndTheLast) {
  const std::string field = "300000 50500000 1 50 4 6 2500 1500 2 1 100000 0 0 0 60000000";
  const auto at = [&](int64_t now_us) {
    nlohmann::ordered_json out;
    EXPECT_TRUE(AddLentState(StrictRule(), field, now_us, &out));
    return out;
  };
  const nlohmann::ordered_json now = at(50'700'000);
  EXPECT_EQ(now["remaining"], 5) << "two came in 0.2 s";
  EXPECT_EQ(now["out_tokens"], 10);
  EXPECT_EQ(now["hosts"], 3);
  EXPECT_DOUBLE_EQ(now["demand_per_s"], 4.0);
  EXPECT_DOUBLE_EQ(now["reset_after_s"], 9.3);
  EXPECT_FALSE(now["denying"]);
  EXPECT_EQ(at(51'500'000)["out_tokens"], 4);
  EXPECT_EQ(at(51'500'000)["hosts"], 2);
  EXPECT_EQ(at(99'000'000)["out_tokens"], 0);
  EXPECT_EQ(at(99'000'000)["remaining"], 20);
}

// Its field: called_us, then of each host instance lent seen_us missing since_us.
TEST(GlobalPlacesTest, CountsWhatHostsThatAreNotSilentHaveAndLack) {
  config::CompiledRule rule;
  rule.kind = shm::Kind::kInFlight;
  rule.strict = true;
  rule.limit.limit = rule.limit.burst = 8;
  const std::string field = "60000000 aa 5 60000000 0 0 bb 1 59500000 2 59000000 cc 0 59900000 3 1";
  const auto at = [&](int64_t now_us) {
    nlohmann::ordered_json out;
    EXPECT_TRUE(AddLentPlaces(rule, field, now_us, &out));
    return out;
  };
  const nlohmann::ordered_json now = at(60'000'000);
  EXPECT_EQ(now["remaining"], 2);
  EXPECT_EQ(now["lent_places"], 6);
  EXPECT_EQ(now["hosts"], 2);
  EXPECT_EQ(now["missing_places"], 5);
  EXPECT_FALSE(now["denying"]);
  EXPECT_EQ(at(61'000'000)["missing_places"], 0) << "asked for too long ago";
  EXPECT_EQ(at(89'600'000)["lent_places"], 5) << "one is silent";
  EXPECT_EQ(at(99'000'000)["lent_places"], 0);
  nlohmann::ordered_json none;
  for (const char* bad : {"", "1 aa 2", "1 aa x 1 0 0", "1 aa 1 1 -1 0", "1 aa 99999999 1 0 0"}) {
    EXPECT_FALSE(AddLentPlaces(rule, bad, 60'000'000, &none)) << bad;
  }
  EXPECT_TRUE(none.is_null());
}

TEST(GlobalLeaseTest, ShowsNothingBelowZeroAndRefusesWhatIsNoBucket) {
  nlohmann::ordered_json out;
  ASSERT_TRUE(AddLentState(StrictRule(), "-1000000 50500000 1 50 0 0 0 0 0 1 100000 0 0 0 60000000",
                           50'600'000, &out));
  EXPECT_EQ(out["remaining"], 0);
  EXPECT_TRUE(out["denying"]);
  nlohmann::ordered_json none;
  for (const char* field : {"", "1 2 3", "a b c d e f g h i j k l m n",
                            "1 2 3 4 5 6 7 8 9 10 0 0 0 12", "nan 2 3 4 5 6 7 8 9 10 nan 0 0 12"}) {
    EXPECT_FALSE(AddLentState(StrictRule(), field, 50'600'000, &none)) << field;
  }
  EXPECT_TRUE(none.is_null());
}

TEST(StatusJsonTest, HasNoRedisWhereThereIsNone) {
  DaemonStatus status = FullStatus();
  status.engine = {};
  const nlohmann::ordered_json json = StatusJson(status);
  EXPECT_TRUE(json["redis"].is_null());
}

}  // namespace
}  // namespace sluice::admin
