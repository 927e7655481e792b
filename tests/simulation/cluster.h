// A Redis Cluster: primaries with a replica each, what each node believes of the others,
// asynchronous replication, failover, and slots that move. Everything that the nodes tell each
// other takes time, so for a while they disagree.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "tests/simulation/node.h"

namespace sluice::simulation {

struct ClusterOptions {
  int primaries = 3;
  int replicas = 1;  // of each
  uint32_t shards = 6;
  uint64_t node_timeout_ns = 2 * kSecond;
  uint64_t learn_most_ns = 800 * kMs;  // until a node hears of a change
  // A primary that hears of nobody goes on so long beyond the time-out: with a replica promoted
  // meanwhile there are two.
  uint64_t late_most_ns = 0;
  std::string password;
};

class Cluster final : public Servers {
 public:
  Cluster(ClusterOptions options, Timeline* timeline, Network* network, Trace* trace, Random random,
          std::function<void(const std::string&)> on_violation);

  // A script that lends was run, `owns`: by the node that all agree upon.
  using OnLoan = std::function<void(bool owns, const Loan& loan)>;
  void set_on_loan(OnLoan on_loan) { on_loan_ = std::move(on_loan); }

  int size() const { return static_cast<int>(nodes_.size()); }
  Node& node(int i) { return *nodes_[static_cast<size_t>(i)]; }
  const Config& config() const { return config_; }
  const Shards& shards() const { return shards_; }
  const Lineage& lineage() const { return lineage_; }
  uint64_t failovers() const { return failovers_; }
  // All nodes well, of one mind, replicas in step, no slot on its way.
  bool IsWell() const;
  // What the cluster holds of a shard; null: nothing.
  const Copy* Owned(uint32_t shard) const;

  // Faults.
  void Kill(int node, bool silent);
  // Comes back with what its disk holds: all, or nothing newer than `lost_ns`, or nothing.
  void Restart(int node, bool empty, uint64_t loading_ns);
  void Pause(int node);
  void Resume(int node);
  void CutBus(int node, bool cut);
  // Writes of the node reach its replicas no sooner than then.
  void StallReplication(int node, uint64_t until_ns);
  // Moves the slot of the shard's hash; takes up to `pause_ns` between its steps.
  void Migrate(uint32_t shard, int to, uint64_t pause_ns);
  // Until it hears the news again, the owner of the shard's slot takes `other` for it, which sends
  // everybody back.
  void Misdirect(uint32_t shard, int other);
  // FLUSHALL.
  void Flush(int node);
  // CLUSTER FAILOVER: the replica takes over, nothing is lost.
  void PlannedFailover(int primary);

  // Servers
  Answer OnConnect(int node, WireId wire) override;
  void OnRequest(int node, WireId wire, std::string bytes) override;
  void OnHangUp(int node, WireId wire) override;

 private:
  struct Health {
    uint64_t gone_since_ns = 0;  // 0: the others hear of it
    uint64_t elect_ns = 0;
    uint64_t learn_ns = 0;  // when it learns of the newest config; 0: not under way
    uint64_t cut_until_down_ns = 0;
    uint64_t stalled_until_ns = 0;
    uint64_t replicated_ns = 0;  // arrival of its latest write at replicas
    uint64_t synced_run = 0;  // of its primary, that it has followed from a full copy on; 0: none
    uint64_t sync_ns = 0;     // a full copy is under way until then
  };

  void Beat();
  bool IsReachable(int node) const;
  bool HasMajority() const;
  void Elect(int primary);
  void Promote(int from, int to);
  void Learn(int node);
  void FollowPrimary(int node);
  void Replicate(int node, const std::string& key);
  void FinishMigration(uint32_t shard);
  void MoveKey(const std::string& key, int from, int to);
  void MendMigrations();

  const ClusterOptions options_;
  Timeline* timeline_;
  Trace* trace_;
  Random random_;
  Shards shards_;
  Lineage lineage_;
  test::LuaRedis lua_;
  Config config_;  // what a majority has agreed upon
  std::vector<std::unique_ptr<Node>> nodes_;
  std::vector<Health> health_;
  struct Migration {
    bool under_way = false;
    int from = 0, to = 0;
    uint64_t mend_ns = 0;  // it broke: an operator looks at it then
  };
  std::vector<Migration> migrations_;  // by shard
  uint64_t failovers_ = 0;
  OnLoan on_loan_;
};

}  // namespace sluice::simulation
