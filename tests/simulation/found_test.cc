// Bugs that the simulation has found, each as a run of its own: the seeds' runs change with every
// fault that is added.
#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "tests/simulation/cluster.h"
#include "tests/simulation/host.h"

namespace sluice::simulation {
namespace {

// One host on a cluster of two primaries without replicas.
class FoundTest : public testing::Test {
 protected:
  FoundTest() {
    network_.set_servers(&cluster_);
    config::RuleConfig rule;
    rule.name = "per-user";
    rule.key = {{.descriptor = "user"}};
    rule.limit = config::LimitConfig{.limit = 1000, .period_ns = kSecond, .burst = 1000};
    HostOptions options;
    options.config.redis.emplace();
    options.config.redis->addresses = {absl::StrCat(NodeHost(0), ":", kNodePort)};
    options.config.redis->shards = kShards;
    options.config.rules = {rule};
    options.base_ns = 1000 * kSecond;
    host_ = std::make_unique<Host>(std::move(options), &timeline_, &network_, &trace_, Random(3));
    host_->StartDaemon();
    RunFor(3 * kSecond);
  }

  void RunFor(uint64_t ns) {
    timeline_.RunUntil(timeline_.now_ns() + ns, [] { return true; });
  }
  std::vector<Alarm> Alarms() const { return host_->worker()->Snapshot().alarms; }

  static constexpr uint32_t kShards = 4;
  Timeline timeline_;
  Trace trace_{&timeline_, /*print=*/false};
  Network network_{&timeline_, &trace_, Random(1), /*hosts=*/1, /*nodes=*/2};
  Cluster cluster_{{.primaries = 2, .replicas = 0, .shards = kShards},
                   &timeline_,
                   &network_,
                   &trace_,
                   Random(2),
                   [](const std::string& what) { ADD_FAILURE() << what; }};
  std::unique_ptr<Host> host_;
};

// No call went to the node any more, so none could show that it was well.
TEST_F(FoundTest, AnAlarmAboutRefusedCallsEndsWithTheLastShardOfThatNode) {
  ASSERT_TRUE(Alarms().empty());
  cluster_.node(0).says_no = "NOPERM this user has no permissions to run the 'evalsha' command";
  RunFor(2 * kSecond);
  ASSERT_FALSE(Alarms().empty());
  for (uint32_t shard = 0; shard < kShards; ++shard) cluster_.Migrate(shard, 1, 10 * kMs);
  RunFor(20 * kSecond);
  ASSERT_TRUE(cluster_.IsWell());
  for (const Alarm& alarm : Alarms()) ADD_FAILURE() << alarm.text;
}

}  // namespace
}  // namespace sluice::simulation
