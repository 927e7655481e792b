// A small world for tests of one thing: one host, a cluster, and no faults but the test's.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/simulation/books.h"
#include "tests/simulation/cluster.h"
#include "tests/simulation/host.h"

namespace sluice::simulation {

struct OneHostOptions {
  int replicas = 0;  // of each of two primaries, which are the nodes 0 and 1
  int seed = 0;      // the node in redis.addresses
  double corrected = 0;
  uint64_t check_gap_ns = HostOptions().check_gap_ns;
};

class OneHost {
 public:
  explicit OneHost(const OneHostOptions& options = {})
      : network_(&timeline_, &trace_, Random(1), /*hosts=*/1, /*nodes=*/2 + 2 * options.replicas),
        cluster_({.primaries = 2, .replicas = options.replicas, .shards = kShards}, &timeline_,
                 &network_, &trace_, Random(2),
                 [](const std::string& what) { ADD_FAILURE() << what; }) {
    network_.set_servers(&cluster_);
    config::RuleConfig rule;
    rule.name = "per-user";
    rule.key = {{.descriptor = "user"}};
    // So slow that a refund finds something to give back for long.
    rule.limit = config::LimitConfig{.limit = 20, .period_ns = kSecond, .burst = 1000};
    HostOptions host;
    host.config.redis.emplace();
    host.config.redis->addresses = {absl::StrCat(NodeHost(options.seed), ":", kNodePort)};
    host.config.redis->shards = kShards;
    host.config.rules = {rule};
    host.base_ns = 1000 * kSecond;
    host.corrected = options.corrected;
    host.check_gap_ns = options.check_gap_ns;
    hosts_.push_back(
        std::make_unique<Host>(std::move(host), &timeline_, &network_, &trace_, Random(3)));
    this->host().StartDaemon();
  }

  void RunFor(uint64_t ns) {
    timeline_.RunUntil(timeline_.now_ns() + ns, [] { return true; });
  }
  // Whether it came true in that time.
  bool RunUntil(const std::function<bool()>& done, uint64_t most_ns) {
    return !timeline_.RunUntil(timeline_.now_ns() + most_ns, [&] { return !done(); });
  }
  std::vector<Alarm> Alarms() { return host().worker()->Snapshot().alarms; }

  Host& host() { return *hosts_[0]; }
  const Books::Hosts& hosts() const { return hosts_; }
  Cluster& cluster() { return cluster_; }
  Network& network() { return network_; }

  static constexpr uint32_t kShards = 4;

 private:
  Timeline timeline_;
  Trace trace_{&timeline_, /*print=*/false};
  Network network_;
  Cluster cluster_;
  Books::Hosts hosts_;
};

}  // namespace sluice::simulation
