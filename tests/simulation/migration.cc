// Slots that move between primaries, step by step as redis-cli does it: the target imports, the
// source migrates, the key moves, the new owner is made known. What breaks on the way is mended by
// an operator some seconds later.
#include <algorithm>

#include "tests/simulation/cluster.h"

namespace sluice::simulation {
namespace {

constexpr uint64_t kMendNs = 2 * kSecond;

size_t At(int i) { return static_cast<size_t>(i); }

}  // namespace

void Cluster::Migrate(uint32_t shard, int to, uint64_t pause_ns) {
  Migration& m = migrations_[shard];
  const int from = config_.slot_owner[shard];
  if (m.under_way || m.mend_ns != 0 || from == to || config_.primary_of[At(to)] != kNobody) return;
  if (!IsReachable(from) || !IsReachable(to) || node(from).config.version != config_.version ||
      node(to).config.version != config_.version) {
    return;
  }
  trace_->Note("migrate", shard, static_cast<uint64_t>(from), static_cast<uint64_t>(to));
  m = {.under_way = true, .from = from, .to = to};
  node(to).importing[shard] = from;
  node(from).migrating[shard] = to;
  const auto goes_on = [this, shard, from, to] {
    const Migration& now = migrations_[shard];
    const bool well = now.under_way && IsReachable(from) && IsReachable(to) &&
                      node(from).migrating.contains(shard) && node(to).importing.contains(shard) &&
                      config_.slot_owner[shard] == from && config_.primary_of[At(to)] == kNobody;
    if (!well && now.under_way) {
      migrations_[shard] = {.mend_ns = timeline_->now_ns() + kMendNs};
      trace_->Note("migration broke", shard);
    }
    return well;
  };
  timeline_->After(1 + random_.Below(pause_ns), [this, shard, from, to, pause_ns, goes_on] {
    if (!goes_on()) return;
    MoveKey(shards_.keys[shard], from, to);
    timeline_->After(1 + random_.Below(pause_ns), [this, shard, from, to, pause_ns, goes_on] {
      if (!goes_on()) return;
      MoveKey(shards_.places[shard], from, to);
      MoveKey(shards_.strict[shard], from, to);
      // SETSLOT NODE on the target first; the source goes on to answer ASK.
      node(to).config.slot_owner[shard] = to;
      node(to).importing.erase(shard);
      timeline_->After(1 + random_.Below(pause_ns), [this, shard] { FinishMigration(shard); });
    });
  });
}

void Cluster::FinishMigration(uint32_t shard) {
  const Migration m = migrations_[shard];
  if (!m.under_way) return;
  migrations_[shard] = {};
  if (!IsReachable(m.from) || !IsReachable(m.to) || config_.slot_owner[shard] != m.from ||
      config_.primary_of[At(m.to)] != kNobody) {
    migrations_[shard].mend_ns = timeline_->now_ns() + kMendNs;
    trace_->Note("migration broke", shard);
    return;
  }
  config_.slot_owner[shard] = m.to;
  ++config_.version;
  node(m.from).migrating.erase(shard);
  Learn(m.from);
  Learn(m.to);
  trace_->Note("migrated", shard);
}

// MIGRATE: the key is at one place, then at the other.
void Cluster::MoveKey(const std::string& key, int from, int to) {
  const auto found = node(from).data.find(key);
  if (found == node(from).data.end()) return;
  node(to).data[key] = std::move(found->second);
  node(from).data.erase(found);
  Replicate(from, key);
  Replicate(to, key);
  trace_->Note("moved", static_cast<uint64_t>(from), static_cast<uint64_t>(to));
}

// What redis-cli --cluster fix does: the slot stays with its owner, and the key, where the owner
// has none, is brought back from where it was left.
void Cluster::MendMigrations() {
  for (uint32_t shard = 0; shard < migrations_.size(); ++shard) {
    Migration& m = migrations_[shard];
    if (m.mend_ns == 0 || timeline_->now_ns() < m.mend_ns) continue;
    const int owner = config_.slot_owner[shard];
    bool all_well = true;
    for (int i = 0; i < size(); ++i) {
      all_well = all_well && (config_.primary_of[At(i)] != kNobody ||
                              (IsReachable(i) && node(i).config.version == config_.version));
    }
    if (!all_well) continue;
    m = {};
    for (int i = 0; i < size(); ++i) {
      node(i).importing.erase(shard);
      node(i).migrating.erase(shard);
      if (i == owner || config_.primary_of[At(i)] != kNobody) continue;
      node(i).config = config_;
      for (const std::string& key : shards_.AllOf(shard)) {
        if (!node(i).data.contains(key)) continue;
        if (node(owner).data.contains(key)) {
          node(i).data.erase(key);
          Replicate(i, key);
        } else {
          MoveKey(key, i, owner);
        }
      }
    }
    trace_->Note("mended", shard);
  }
}

}  // namespace sluice::simulation
