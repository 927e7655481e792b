// Rules that lend: their buckets are keepers' (daemon/lease/), which ask through the same
// breakers and shards as all else.
#include <algorithm>
#include <utility>

#include "absl/strings/str_format.h"
#include "daemon/reconcile/reconciler.h"
#include "daemon/redis/codec.h"
#include "shm/hash.h"

namespace sluice::reconcile {
namespace {

constexpr uint64_t kSyncMinNs = 10'000'000;
constexpr uint64_t kSyncMaxNs = 50'000'000;
// So long after the last use the first one after it is looked for a little less often.
constexpr uint64_t kBusyNs = 1'000'000'000;

uint64_t HexWord(std::string_view hex) {
  uint64_t word = 0;
  for (const char c : hex) {
    word = word << 4 | static_cast<uint64_t>(c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10);
  }
  return word;
}

lease::Instance InstanceOf(const std::string& hex) {
  const std::string_view text = hex;
  return {HexWord(text.substr(0, 16)), text.size() > 16 ? HexWord(text.substr(16, 16)) : 0};
}

}  // namespace

void Reconciler::OpenKeeper() {
  if (!options_.has_redis) return;
  lease::Link* const link = this;
  keeper_ = std::make_unique<lease::Keeper>(
      lease::Keeper::Options{
          .shard_count = shards(),
          .instance = InstanceOf(options_.instance),
          .sync_ns = std::clamp(options_.flush_interval_ns / 2, kSyncMinNs, kSyncMaxNs)},
      buckets_, link, random_);
  // Each daemon over these segments has a later one: see lua/places.lua.
  lease::PlaceLink* const place_link = this;
  places_ = std::make_unique<lease::PlaceKeeper>(
      lease::PlaceKeeper::Options{
          .shard_count = shards(),
          .instance = absl::StrFormat("%016x%016x", control_->header().generation,
                                      shm::Incarnation(control_->header()))},
      buckets_, place_link);
  places_->TakeOver();
  if (options_.region_count > 1) {
    lease::HomesLink* const homes = this;
    homes_ = std::make_unique<lease::Homes>(options_.region_count, options_.shard_count, homes);
  }
}

uint64_t Reconciler::PauseNs(uint64_t now_ns) const {
  if (has_strict_) {
    return now_ns < last_strict_ns_ + kBusyNs ? kStrictTickNs : kTickNs;
  }
  return IsQuiet(now_ns) ? kQuietTickNs : kTickNs;
}

void Reconciler::TickStrict(uint64_t now_ns) {
  now_ns_ = now_ns;
  Harvest(now_ns);
  if (keeper_ != nullptr) keeper_->Tick(now_ns);
  if (places_ != nullptr) places_->Tick(now_ns);
  if (homes_ != nullptr) homes_->Tick(now_ns);
}

void Reconciler::OnStrictUse(uint32_t bucket, int64_t tokens, uint64_t denied, uint64_t need) {
  const config::CompiledRule* const rule = keeper_->RuleOf(bucket);
  bool is_degraded = false;
  if (rule != nullptr) {
    is_degraded = ledger_.shard(keeper_->ShardOf(bucket)).mode == shm::ShardMode::kEmergency ||
                  keeper_->ShownShardOf(bucket) == shm::kForcedShard;
    Count(*rule, tokens, denied, is_degraded);
  }
  last_strict_ns_ = now_ns_;
  const uint64_t alone = is_degraded && tokens > 0 ? static_cast<uint64_t>(tokens) : 0;
  keeper_->OnUse(bucket, denied, need, alone, now_ns_);
}

bool Reconciler::MayLend(uint32_t shard, uint64_t now_ns) {
  return MaySend(shard, now_ns) && transport_->IsKnown(transport_->PrimaryOf(shard));
}

void Reconciler::Lend(uint32_t shard, const std::vector<std::string>& args, uint64_t seq) {
  const uint32_t primary = transport_->PrimaryOf(shard);
  if (primary == kNoPrimary || !PrimaryAt(primary).breaker.Allow(now_ns_)) return;
  PrimaryAt(primary).asked_ns = now_ns_;
  std::string encoded;
  uint32_t count = 0;
  for (size_t i = 0; i < args.size(); ++i) {
    if (i == lease::kPrimaryArg) continue;
    redis::AppendBulk(&encoded, args[i]);
    ++count;
  }
  transport_->Lend(shard, encoded, count, kStrictToken | seq);
}

void Reconciler::OnLoanReply(uint32_t shard, uint64_t token, const redis::Reply& reply,
                             uint32_t primary, uint64_t now_ns) {
  const uint64_t seq = token & ~kLoanTokens;
  if ((token & kStrictToken) != 0) return OnLent(shard, seq, reply, primary, now_ns);
  if ((token & kPlaceToken) != 0) return OnPlaces(shard, seq, reply, primary, now_ns);
  OnSettled(shard, seq, reply, primary, now_ns);
}

void Reconciler::OnLent(uint32_t shard, uint64_t seq, const redis::Reply& reply, uint32_t primary,
                        uint64_t now_ns) {
  JudgeReply(keeper_->OnReply(shard, seq, reply, now_ns), primary, now_ns);
}

void Reconciler::AskPlaces(uint32_t shard, const std::vector<std::string>& args, uint64_t seq) {
  const uint32_t primary = transport_->PrimaryOf(shard);
  if (primary == kNoPrimary || !PrimaryAt(primary).breaker.Allow(now_ns_)) return;
  PrimaryAt(primary).asked_ns = now_ns_;
  std::string encoded;
  for (const std::string& arg : args) redis::AppendBulk(&encoded, arg);
  transport_->AskPlaces(shard, encoded, static_cast<uint32_t>(args.size()), kPlaceToken | seq);
}

void Reconciler::OnPlaces(uint32_t shard, uint64_t seq, const redis::Reply& reply, uint32_t primary,
                          uint64_t now_ns) {
  JudgeReply(places_->OnReply(shard, seq, reply, now_ns), primary, now_ns);
}

void Reconciler::JudgeReply(const absl::Status& status, uint32_t primary, uint64_t now_ns) {
  if (primary == kNoPrimary) return;
  Primary& p = PrimaryAt(primary);
  if (status.ok()) {
    p.breaker.OnSuccess(now_ns, now_ns - std::min(p.asked_ns, now_ns), SlowNs(primary));
  } else {
    ++stats_.bad_replies;
    p.breaker.OnFailure(now_ns, /*hard=*/true, random_());
  }
}

uint32_t Reconciler::ShownShard(const config::CompiledRule& rule, const std::string& text,
                                uint32_t shard) {
  return IsForced(rule, text) ? shm::kForcedShard : shard;
}

uint32_t Reconciler::HomeShard(const config::CompiledRule& rule, const std::string& text,
                               uint32_t shard) {
  const uint32_t of_region = shard % options_.shard_count;
  if (rule.home == nullptr) return of_region;
  const uint32_t region = rule.home->RegionOf(text);
  return (region < options_.region_count ? region : 0) * options_.shard_count + of_region;
}

void Reconciler::OnAway(uint32_t shard, const config::CompiledRule& rule, lease::Away why) {
  if (homes_ != nullptr) homes_->OnAway(shard, rule.label, why);
}

void Reconciler::Settle(uint32_t shard, const std::vector<std::string>& args, uint64_t round) {
  const uint32_t primary = transport_->PrimaryOf(shard);
  if (primary == kNoPrimary || !PrimaryAt(primary).breaker.Allow(now_ns_)) return;
  PrimaryAt(primary).asked_ns = now_ns_;
  std::string encoded;
  for (const std::string& arg : args) redis::AppendBulk(&encoded, arg);
  transport_->Settle(shard, encoded, static_cast<uint32_t>(args.size()), kHomeToken | round);
}

void Reconciler::OnSettled(uint32_t shard, uint64_t round, const redis::Reply& reply,
                           uint32_t primary, uint64_t now_ns) {
  JudgeReply(homes_->OnReply(shard, round, reply), primary, now_ns);
}

// A hint of this daemon's own: orders nothing.
uint64_t Reconciler::HostsSeen() {
  return control_->header().hosts.load(std::memory_order_relaxed);
}

void Reconciler::OnHosts(uint64_t hosts) {
  hosts_next_ = std::max(hosts_next_, static_cast<int64_t>(hosts));
  if (hosts > HostsSeen()) control_->SetHosts(hosts);
}

void Reconciler::OnForgotten(const harvest::Place& place) { harvester_.Forget(place); }

}  // namespace sluice::reconcile
