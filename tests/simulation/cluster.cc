#include "tests/simulation/cluster.h"

#include <algorithm>
#include <utility>

#include "daemon/redis/slot.h"

namespace sluice::simulation {
namespace {

constexpr uint64_t kBeatNs = 50 * kMs;
constexpr uint64_t kLagMostNs = 3 * kMs;

size_t At(int i) { return static_cast<size_t>(i); }

}  // namespace

Cluster::Cluster(ClusterOptions options, Timeline* timeline, Network* network, Trace* trace,
                 Random random, std::function<void(const std::string&)> on_violation)
    : options_(std::move(options)),
      timeline_(timeline),
      trace_(trace),
      random_(random),
      lua_(random_.Next()),
      migrations_(options_.shards) {
  shards_.keys = redis::ShardKeys("rl", options_.shards);
  for (const std::string& key : shards_.keys) {
    shards_.slots.push_back(redis::KeySlot(key));
    const auto of_family = [&key](const char* family) {
      return std::string(key).insert(key.find('{'), family);
    };
    shards_.places.push_back(of_family("places:"));
    shards_.strict.push_back(of_family("strict:"));
  }
  for (uint32_t i = 0; i < options_.shards; ++i) {
    config_.slot_owner.push_back(static_cast<int>(i) * options_.primaries /
                                 static_cast<int>(options_.shards));
  }
  config_.range_owner = config_.slot_owner;
  for (int i = 0; i < options_.primaries * (1 + options_.replicas); ++i) {
    config_.primary_of.push_back(i < options_.primaries ? kNobody : i % options_.primaries);
  }
  const Node::Parts parts{.timeline = timeline,
                          .network = network,
                          .trace = trace,
                          .lua = &lua_,
                          .lineage = &lineage_,
                          .shards = &shards_,
                          .password = options_.password,
                          .on_write = [this](int n, const std::string& key) { Replicate(n, key); },
                          .on_loan =
                              [this](int n, const Loan& loan) {
                                if (!on_loan_) return;
                                on_loan_(config_.slot_owner[loan.shard] == n, loan);
                              },
                          .on_violation = std::move(on_violation)};
  for (size_t i = 0; i < config_.primary_of.size(); ++i) {
    nodes_.push_back(std::make_unique<Node>(static_cast<int>(i), parts, random_.Fork(), config_));
    health_.emplace_back();
    health_.back().synced_run = 1;
  }
  Beat();
}

Servers::Answer Cluster::OnConnect(int n, WireId wire) { return node(n).OnConnect(wire); }
void Cluster::OnRequest(int n, WireId wire, std::string bytes) {
  node(n).OnRequest(wire, std::move(bytes));
}
void Cluster::OnHangUp(int n, WireId wire) { node(n).OnHangUp(wire); }

bool Cluster::IsReachable(int n) const {
  const Node& node = *nodes_[At(n)];
  return node.alive() && !node.paused() && !node.bus_cut;
}

bool Cluster::HasMajority() const {
  int all = 0;
  int well = 0;
  for (int i = 0; i < size(); ++i) {
    if (config_.primary_of[At(i)] != kNobody) continue;
    ++all;
    well += IsReachable(i) ? 1 : 0;
  }
  return well * 2 > all;
}

bool Cluster::IsWell() const {
  for (int i = 0; i < size(); ++i) {
    const Node& node = *nodes_[At(i)];
    const Health& h = health_[At(i)];
    if (!IsReachable(i) || node.IsLoading() || node.cluster_down || h.sync_ns != 0 ||
        node.config.version != config_.version) {
      return false;
    }
  }
  return std::none_of(migrations_.begin(), migrations_.end(),
                      [](const Migration& m) { return m.under_way || m.mend_ns != 0; });
}

const Copy* Cluster::Owned(uint32_t shard) const {
  const Data& data = nodes_[At(config_.slot_owner[shard])]->data;
  const auto found = data.find(shards_.keys[shard]);
  return found != data.end() ? &found->second : nullptr;
}

// The nodes' pulse: who hears of whom, elections, and news of the config that reaches each node at
// its own time.
void Cluster::Beat() {
  const uint64_t now_ns = timeline_->now_ns();
  bool covered = true;
  for (int i = 0; i < size(); ++i) {
    Health& h = health_[At(i)];
    h.gone_since_ns = IsReachable(i) ? 0 : h.gone_since_ns == 0 ? now_ns : h.gone_since_ns;
    const bool failed = h.gone_since_ns != 0 && now_ns > h.gone_since_ns + options_.node_timeout_ns;
    if (failed && config_.primary_of[At(i)] == kNobody) Elect(i);
  }
  for (int i = 0; i < size(); ++i) {
    const Health& h = health_[At(i)];
    const bool failed = h.gone_since_ns != 0 && now_ns > h.gone_since_ns + options_.node_timeout_ns;
    const bool owns = std::count(config_.slot_owner.begin(), config_.slot_owner.end(), i) +
                          std::count(config_.range_owner.begin(), config_.range_owner.end(), i) >
                      0;
    if (failed && owns) covered = false;
  }
  for (int i = 0; i < size(); ++i) {
    Node& node = *nodes_[At(i)];
    Health& h = health_[At(i)];
    if (!node.alive() || node.paused()) continue;
    if (node.bus_cut) {
      // A primary that hears of no majority stops after a while; until then there may be two.
      if (now_ns > h.cut_until_down_ns) node.cluster_down = true;
      continue;
    }
    node.cluster_down = !covered || !HasMajority();
    if (node.config.version != config_.version && h.learn_ns == 0) {
      h.learn_ns = now_ns + random_.Between(10 * kMs, options_.learn_most_ns);
    }
    if (h.learn_ns != 0 && now_ns >= h.learn_ns) Learn(i);
    FollowPrimary(i);
  }
  MendMigrations();
  timeline_->After(kBeatNs, [this] { Beat(); });
}

void Cluster::Elect(int primary) {
  Health& h = health_[At(primary)];
  const uint64_t now_ns = timeline_->now_ns();
  if (!HasMajority()) return;
  if (h.elect_ns == 0) h.elect_ns = now_ns + random_.Between(200 * kMs, 1500 * kMs);
  if (now_ns < h.elect_ns) return;
  for (int i = 0; i < size(); ++i) {
    const Health& candidate = health_[At(i)];
    if (config_.primary_of[At(i)] != primary || !IsReachable(i) || node(i).IsLoading()) continue;
    if (candidate.sync_ns != 0 || candidate.synced_run == 0) continue;
    h.elect_ns = 0;
    ++failovers_;
    return Promote(primary, i);
  }
}

void Cluster::Promote(int from, int to) {
  trace_->Note("promote", static_cast<uint64_t>(from), static_cast<uint64_t>(to));
  for (std::vector<int>* owners : {&config_.slot_owner, &config_.range_owner}) {
    std::replace(owners->begin(), owners->end(), from, to);
  }
  std::replace(config_.primary_of.begin(), config_.primary_of.end(), from, to);
  config_.primary_of[At(from)] = to;
  config_.primary_of[At(to)] = kNobody;
  ++config_.version;
  Learn(to);
}

void Cluster::Learn(int n) {
  Node& node = *nodes_[At(n)];
  const int before = node.config.primary_of[At(n)];
  node.config = config_;
  health_[At(n)].learn_ns = 0;
  const int now = config_.primary_of[At(n)];
  trace_->Note("learn", static_cast<uint64_t>(n), config_.version);
  if (now == kNobody) {
    health_[At(n)].synced_run = 0;
    health_[At(n)].sync_ns = 0;
  } else if (now != before) {
    // Demoted, or another primary: what it has is thrown away for a full copy.
    node.data.clear();
    node.migrating.clear();
    node.importing.clear();
    health_[At(n)].synced_run = 0;
  }
}

// A replica takes a full copy of its primary, and then follows it write by write.
void Cluster::FollowPrimary(int n) {
  Node& node = *nodes_[At(n)];
  Health& h = health_[At(n)];
  const int from = node.config.primary_of[At(n)];
  if (from == kNobody || !IsReachable(from) || this->node(from).IsLoading() || node.IsLoading()) {
    return;
  }
  Node& primary = this->node(from);
  if (!primary.IsPrimary() || h.synced_run == primary.run_id()) return;
  const uint64_t now_ns = timeline_->now_ns();
  if (h.sync_ns == 0) {
    h.sync_ns = now_ns + random_.Between(20 * kMs, 500 * kMs);
    node.data.clear();
  }
  if (now_ns < h.sync_ns) return;
  h.sync_ns = 0;
  h.synced_run = primary.run_id();
  node.data = primary.data;
  trace_->Note("sync", static_cast<uint64_t>(n), static_cast<uint64_t>(from));
}

void Cluster::Replicate(int n, const std::string& key) {
  Node& node = *nodes_[At(n)];
  Health& h = health_[At(n)];
  const uint64_t now_ns = timeline_->now_ns();
  const auto found = node.data.find(key);
  const bool gone = found == node.data.end();
  const Copy copy = gone ? Copy() : found->second;
  h.replicated_ns =
      std::max({h.replicated_ns, h.stalled_until_ns, now_ns + random_.Below(kLagMostNs)});
  const uint64_t run = node.run_id();
  timeline_->At(h.replicated_ns, [this, n, run, key, copy, gone] {
    const Node& from = *nodes_[At(n)];
    if (from.run_id() != run) return;  // it died with this unsent
    for (int i = 0; i < size(); ++i) {
      Node& replica = *nodes_[At(i)];
      if (!replica.alive() || replica.config.primary_of[At(i)] != n) continue;
      if (health_[At(i)].synced_run != run || from.bus_cut || replica.bus_cut) {
        // The link broke: nothing but a full copy mends it.
        if (health_[At(i)].synced_run == run) health_[At(i)].synced_run = run - 1;
        continue;
      }
      if (gone) {
        replica.data.erase(key);
      } else {
        replica.data[key] = copy;
      }
    }
  });
}

void Cluster::Kill(int n, bool silent) {
  trace_->Note("kill", static_cast<uint64_t>(n), silent);
  node(n).Kill(silent);
  health_[At(n)].learn_ns = 0;
  health_[At(n)].sync_ns = 0;
}

void Cluster::Restart(int n, bool empty, uint64_t loading_ns) {
  trace_->Note("restart", static_cast<uint64_t>(n), empty);
  node(n).Restart(empty ? Data() : std::move(node(n).data), loading_ns);
  if (node(n).config.primary_of[At(n)] != kNobody) health_[At(n)].synced_run = 0;
}

void Cluster::Pause(int n) {
  trace_->Note("pause", static_cast<uint64_t>(n));
  node(n).Pause();
}

void Cluster::Resume(int n) {
  trace_->Note("resume", static_cast<uint64_t>(n));
  node(n).Resume();
}

void Cluster::CutBus(int n, bool cut) {
  trace_->Note("bus", static_cast<uint64_t>(n), cut);
  node(n).bus_cut = cut;
  health_[At(n)].cut_until_down_ns =
      timeline_->now_ns() + options_.node_timeout_ns + random_.Below(options_.late_most_ns + 1);
}

void Cluster::StallReplication(int n, uint64_t until_ns) {
  trace_->Note("stall", static_cast<uint64_t>(n), until_ns);
  health_[At(n)].stalled_until_ns = until_ns;
}

void Cluster::Misdirect(uint32_t shard, int other) {
  const int owner = config_.slot_owner[shard];
  if (owner == other || migrations_[shard].under_way || migrations_[shard].mend_ns != 0) return;
  trace_->Note("misdirect", shard, static_cast<uint64_t>(owner), static_cast<uint64_t>(other));
  node(owner).config.slot_owner[shard] = other;
  node(owner).config.version = 0;
}

void Cluster::Flush(int n) {
  trace_->Note("flush", static_cast<uint64_t>(n));
  for (uint32_t shard = 0; shard < shards_.keys.size(); ++shard) {
    for (const std::string& key : shards_.AllOf(shard)) {
      if (node(n).data.erase(key) != 0) Replicate(n, key);
    }
  }
}

void Cluster::PlannedFailover(int primary) {
  for (int i = 0; i < size(); ++i) {
    if (config_.primary_of[At(primary)] != kNobody || config_.primary_of[At(i)] != primary)
      continue;
    if (!IsReachable(primary) || !IsReachable(i) || node(i).IsLoading()) continue;
    if (health_[At(i)].synced_run != node(primary).run_id()) continue;
    if (node(primary).config.version != config_.version) continue;
    node(i).data = node(primary).data;
    Promote(primary, i);
    return Learn(primary);
  }
}

}  // namespace sluice::simulation
