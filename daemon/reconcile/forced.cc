// Emergencies by an operator's word: shards, or buckets of some rules.
#include "daemon/reconcile/reconciler.h"
#include "shm/take.h"

namespace sluice::reconcile {
namespace {

// The same share of shards or names each time: x in [0, 1) for what is spread evenly over 32 bits.
bool IsWithin(uint32_t spread, double share) {
  return static_cast<double>(spread) < share * 4294967296.0;
}

// FNV-1a, so that a game day meets the same buckets again.
uint32_t SpreadOf(const std::string& text) {
  uint64_t hash = 0xcbf29ce484222325;
  for (const char c : text) hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001b3;
  return static_cast<uint32_t>((hash * 0x9e3779b97f4a7c15) >> 32);
}

}  // namespace

bool Reconciler::IsForced(uint32_t shard) const {
  if (forced_share_ == 0 || !forced_rules_.empty()) return false;
  // Shard 0 always is: a share of few shards is at least one.
  return IsWithin(shard * 0x9e3779b9u, forced_share_);
}

bool Reconciler::IsForced(const Bucket& b) const {
  if (forced_rules_.empty() || b.rule == nullptr) return false;
  const std::string& label = b.rule->label;
  const std::string name = label.substr(0, label.find('@'));
  for (const std::string& rule : forced_rules_) {
    if (rule == label || rule == name) return IsWithin(SpreadOf(b.text), forced_share_);
  }
  return false;
}

void Reconciler::ShowShard(Bucket& b) {
  if (b.place.key == 0 || b.rule == nullptr) return;
  shm::SetAux(buckets_->slots()[b.place.slot], b.place.key, b.inv_share,
              b.forced ? shm::kForcedShard : b.shard, b.rule->id);
}

void Reconciler::Force(double share, std::vector<std::string> rules, uint64_t now_ns) {
  const bool had_rules = !forced_rules_.empty();
  forced_share_ = share;
  forced_rules_ = std::move(rules);
  if (!had_rules && forced_rules_.empty()) return;
  // The state before the buckets that point at it, and after them.
  if (!forced_rules_.empty()) {
    control_->SetShard(shm::kForcedShard, shm::ShardMode::kEmergency, now_ns);
  }
  for (BucketId id = 0; id < ledger_.bucket_slots(); ++id) {
    Bucket& b = ledger_.bucket(id);
    const bool forced = IsForced(b);
    if (forced == b.forced) continue;
    b.forced = forced;
    ShowShard(b);
  }
  if (forced_rules_.empty()) {
    control_->SetShard(shm::kForcedShard, shm::ShardMode::kHealthy, now_ns);
  }
}

}  // namespace sluice::reconcile
