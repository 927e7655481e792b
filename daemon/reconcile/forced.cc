// Emergencies by an operator's word: shards, or buckets of some rules.
#include "daemon/reconcile/reconciler.h"
#include "shm/hash.h"

namespace sluice::reconcile {
namespace {

// The same share of shards or names each time: x in [0, 1) for what is spread evenly over 32 bits.
bool IsWithin(uint32_t spread, double share) {
  return static_cast<double>(spread) < share * 4294967296.0;
}

// Not salted, so that a game day meets the same buckets again.
uint32_t SpreadOf(const std::string& text) {
  return static_cast<uint32_t>((shm::Fnv1a(text) * 0x9e3779b97f4a7c15) >> 32);
}

}  // namespace

bool Reconciler::IsForced(uint32_t shard) const {
  if (forced_share_ == 0 || !forced_rules_.empty()) return false;
  // Shard 0 always is: a share of few shards is at least one.
  return IsWithin(shard * 0x9e3779b9u, forced_share_);
}

bool Reconciler::IsForced(const Bucket& b) const {
  return b.rule != nullptr && IsForced(*b.rule, b.text);
}

bool Reconciler::IsForced(const config::CompiledRule& of, const std::string& text) const {
  if (forced_rules_.empty()) return false;
  const std::string& label = of.label;
  const std::string name = config::RuleName(label);
  for (const std::string& rule : forced_rules_) {
    if (rule == label || rule == name) return IsWithin(SpreadOf(text), forced_share_);
  }
  return false;
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
    PublishShare(b);
  }
  if (keeper_ != nullptr) keeper_->ShowShards(now_ns);
  if (forced_rules_.empty()) {
    control_->SetShard(shm::kForcedShard, shm::ShardMode::kHealthy, now_ns);
  }
}

}  // namespace sluice::reconcile
