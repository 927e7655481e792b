// Brings what hosts use together: harvests, batches by shard, sends, folds replies back into the
// words, and decides when a shard is in emergency. A state machine without threads, sockets or a
// clock: time, randomness, the transport and the memory come in, so that a simulation owns them.
//
// Tick() every kTickNs; replies and failures through OnReply, OnFailure and OnPong, each exactly
// once for a Call or Ping. Single-threaded.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/container/node_hash_map.h"
#include "daemon/config/compile.h"
#include "daemon/harvest/harvester.h"
#include "daemon/lease/homes.h"
#include "daemon/lease/keeper.h"
#include "daemon/lease/place_keeper.h"
#include "daemon/reconcile/batch.h"
#include "daemon/reconcile/breaker.h"
#include "daemon/reconcile/farewells.h"
#include "daemon/reconcile/ledger.h"
#include "daemon/reconcile/near.h"
#include "daemon/reconcile/quota_store.h"
#include "daemon/reconcile/transport.h"
#include "daemon/reconcile/windows.h"
#include "daemon/redis/reply.h"
#include "shm/segment.h"

namespace sluice::reconcile {

inline constexpr uint64_t kTickNs = 10'000'000;
// The same while nothing has been used for a second: the first use after that waits so long to be
// seen, as a flush would let it wait anyway.
inline constexpr uint64_t kQuietTickNs = 100'000'000;
inline constexpr uint64_t kQuietNs = 1'000'000'000;
// Where strict rules are in use: a check that found no token waits so long to be seen.
inline constexpr uint64_t kStrictTickNs = 2'000'000;
// Marks the token of a strict rule's call, and the id of its bucket.
inline constexpr uint64_t kStrictToken = 1ull << 63;
inline constexpr uint32_t kStrictBucket = 1u << 31;
// Marks the token of a call that settles homes.
inline constexpr uint64_t kHomeToken = 1ull << 62;
// Marks the token of a call about places of requests in flight.
inline constexpr uint64_t kPlaceToken = 1ull << 61;
inline constexpr uint64_t kLoanTokens = kStrictToken | kHomeToken | kPlaceToken;
// A shard is stale beyond this age of unreconciled use, and in emergency beyond the next.
inline constexpr uint64_t kStaleIntervals = 3;
inline constexpr uint64_t kEmergencyIntervals = 5;
inline constexpr uint64_t kEmergencyMinNs = 500'000'000;
// At the start a shard without any answer yet is given so long.
inline constexpr uint64_t kStartGraceNs = 1'000'000'000;
// A primary that was asked nothing for so long is probed: an idle host must not read as healthy.
inline constexpr uint64_t kProbeNs = 300'000'000;
// Pauses between resends of one frozen batch: jittered, doubled.
inline constexpr uint64_t kResendMinNs = 10'000'000;
inline constexpr uint64_t kResendMaxNs = 500'000'000;
// The interval grows with the fleet: 20,000 script calls per second and primary are what a Redis
// core does with room to spare.
inline constexpr double kCallsPerPrimary = 20'000;
// Bans that are kept for the log; what is more is only counted.
inline constexpr size_t kMaxBanEvents = 64;
// A batch that no reply came for within this time is given up with an alarm: long before the
// instance's field could be swept.
inline constexpr uint64_t kGiveUpNs = 12ull * 3600 * 1'000'000'000;

enum class CallOutcome : uint8_t {
  kRetry,  // unavailable, timed out, or asked for patience
  kHard,   // refused until a person mends something, or the script is broken there
};

struct ReconcilerOptions {
  uint32_t shard_count = 64;             // of each region
  uint32_t region_count = 1;             // the own one and others, each with a cluster
  uint64_t exchange_ns = 1'000'000'000;  // how often the others are told what is used here
  uint64_t flush_interval_ns = 100'000'000;
  std::string instance;          // 32 hex digits, random at each start
  uint64_t use_since_ns = 0;     // see Harvester
  bool has_redis = true;         // false: harvest and count, report to nobody
  QuotaStore* quotas = nullptr;  // null: none are kept; outlives the reconciler
};

struct RuleTotals {
  uint64_t allowed = 0;
  uint64_t denied = 0;
  uint64_t degraded = 0;
  uint64_t near_limit = 0;  // see NearLimits
  uint64_t bans = 0;        // that this host's denials have begun
};

// A bucket's name, read back from how people are shown it; see shm/bucket_name.h.
class NameOfText {
 public:
  NameOfText(const std::string& text, uint32_t values);
  // Points into this.
  shm::ParsedName parsed() const {
    shm::ParsedName name;
    name.label = label_;
    for (const std::string& value : values_) {
      if (name.count < shm::ParsedName::kMaxValues) name.values[name.count++] = value;
    }
    return name;
  }

 private:
  std::string label_;
  std::vector<std::string> values_;
};

// A ban that begins or is lifted, for the log.
struct BanEvent {
  std::string bucket;
  uint64_t for_ns = 0;  // 0: lifted by an operator
};

struct ReconcilerStats {
  uint64_t harvested_tokens = 0;
  uint64_t overflow_tokens = 0;
  uint64_t batches = 0;
  uint64_t batched_buckets = 0;
  uint64_t resends = 0;
  uint64_t requeues = 0;
  uint64_t bad_replies = 0;
  uint64_t given_up = 0;
  uint64_t oldest_use_ns = 0;  // age; 0: Redis knows all
  uint64_t interval_ns = 0;    // in force
};

class Reconciler : public harvest::Sink,
                   private lease::Link,
                   private lease::PlaceLink,
                   private lease::HomesLink {
 public:
  // Everything passed outlives the reconciler. `transport` may be null without Redis.
  Reconciler(ReconcilerOptions options, const shm::MappedBuckets* buckets,
             shm::ControlWriter* control, Transport* transport, std::function<double()> random);

  void SetRules(std::shared_ptr<const config::CompiledRules> rules, uint64_t now_ns);
  void Tick(uint64_t now_ns);
  // Harvests, and does for strict rules what is due; between two Ticks.
  void TickStrict(uint64_t now_ns);
  // How long until the next of the two.
  uint64_t PauseNs(uint64_t now_ns) const;
  bool has_strict() const { return has_strict_; }
  const lease::Keeper* keeper() const { return keeper_.get(); }
  const lease::Homes* homes() const { return homes_.get(); }  // null without regions
  // Harvests all and sends what may be sent, without waiting for intervals.
  void FlushAll(uint64_t now_ns);
  // True when Redis knows all that was harvested.
  bool IsSettled() const { return ledger_.pending_buckets() == 0; }
  // True when nothing has been used for a while: Tick() may then come every kQuietTickNs.
  bool IsQuiet(uint64_t now_ns) const { return now_ns > last_use_ns_ + kQuietNs && IsSettled(); }

  void OnReply(uint32_t shard, uint64_t token, const redis::Reply& reply, uint32_t primary,
               uint64_t now_ns);
  void OnFailure(uint32_t shard, uint64_t token, CallOutcome outcome, uint32_t primary,
                 uint64_t now_ns);
  void OnPong(uint32_t primary, bool well, bool hard, uint64_t now_ns);

  // Puts a share of the shards in emergency, or where `rules` (names or labels) are given that
  // share of their buckets; share 0 ends it. The next Tick shows shards, this call buckets.
  void Force(double share, std::vector<std::string> rules, uint64_t now_ns);

  // Ends the ban of the bucket of this name, on this host now and with the next exchange with Redis
  // everywhere. False where no rule with a penalty names its buckets so.
  bool Unban(const std::string& text, uint64_t now_ns);
  // Those since the last call; at most kMaxBanEvents.
  std::vector<BanEvent> TakeBanEvents() { return std::exchange(ban_events_, {}); }

  // harvest::Sink
  uint32_t OnBucket(const harvest::Place& place, harvest::Named named) override;
  void Expect(uint32_t bucket) override {
    if ((bucket & kStrictBucket) == 0) ledger_.Prefetch(bucket);
  }
  void OnUse(uint32_t bucket, int64_t tokens, uint64_t denied, uint64_t need) override;
  void OnOverflow(uint16_t rule, int64_t tokens) override;
  void OnClassDenied(const config::CompiledClass& c, uint64_t denied) override;

  const ReconcilerStats& stats() const { return stats_; }
  const absl::node_hash_map<std::string, RuleTotals>& totals() const { return totals_; }
  // Denied requests of that class of a rule.
  uint64_t class_denied(const config::CompiledClass& c) const {
    const auto at = class_totals_.find({c.rule, c.value});
    return at == class_totals_.end() ? 0 : at->second;
  }
  Breaker::State breaker(uint32_t primary) const;
  uint64_t live_buckets() const { return harvester_.live_buckets(); }
  uint32_t emergencies() const { return emergencies_; }  // shards in emergency
  bool forces_rules() const { return !forced_rules_.empty(); }
  const Ledger& ledger() const { return ledger_; }
  // Shards served by a primary, by the transport's present map.
  uint32_t ShardsOf(uint32_t primary) const;

 private:
  struct Primary {
    Breaker breaker;
    uint64_t asked_ns = 0;     // last call or ping sent
    uint64_t restored_ns = 0;  // last look for quotas that it has lost; 0: none
    bool pinging = false;
    bool known = false;  // as the transport said last
  };

  Primary& PrimaryAt(uint32_t index);
  void Harvest(uint64_t now_ns);
  void FlushDue(uint32_t index, uint64_t now_ns, bool at_once);
  void Send(uint32_t index, uint64_t now_ns);
  void Probe(uint64_t now_ns);
  void Judge(uint32_t index, uint64_t now_ns);
  void SetMode(uint32_t index, shm::ShardMode mode, uint64_t now_ns);
  void SendAgain(uint32_t index, uint64_t now_ns);
  bool MaySend(uint32_t index, uint64_t now_ns);
  void OnRefusal(uint32_t index, int64_t last_seq, uint64_t now_ns);
  void FoldBack(Bucket& b, uint64_t now_ns);
  // Of the calendar that the rule follows; null: it has none.
  const std::atomic<uint64_t>* EndsOf(const config::CompiledRule& rule) const {
    return rule.calendar_place == 0
               ? nullptr
               : control_->header().calendar_ends[(rule.calendar_place - 1) % shm::kMaxCalendars];
  }
  void FoldBackWindow(Bucket& b, const BatchItem& item, const BucketState& state, uint64_t now_ns);
  bool IsForced(uint32_t shard) const;
  bool IsForced(const Bucket& b) const;
  bool IsForced(const config::CompiledRule& rule, const std::string& text) const;
  void Count(const config::CompiledRule& rule, int64_t tokens, uint64_t denied, bool is_degraded);
  bool IsJump(const Bucket& b, uint64_t now_ns) const;
  uint64_t IntervalNs() const;
  // Primaries of other regions are far, and may take their time.
  uint64_t SlowNs(uint32_t primary) const {
    return primary % options_.region_count == 0 ? kSlowNs : kFarSlowNs;
  }

  // shares.cc
  bool RenewShare(Bucket& b, uint64_t now_ns);
  bool PublishShare(Bucket& b);
  void ExpireShares(uint64_t now_ns);

  // penalties.cc
  void Penalise(BucketId id, Bucket& b, uint64_t denied);
  Penal& PenalOf(BucketId id, Bucket& b);
  bool DecidesAlone(const Bucket& b) const;
  uint64_t WordNow(const Bucket& b) const;
  harvest::Place PlaceOf(const config::CompiledRule& rule, const NameOfText& name) const;
  uint64_t BannedWordOf(const Bucket& b) const;
  void AssertBan(Bucket& b);
  void KeepBan(Bucket& b);
  void ShowBan(Bucket& b, bool is_banned);
  void NoteBan(const Bucket& b, uint64_t for_ns);
  void FollowBan(BucketId id, Bucket& b, const BatchItem& item, const BucketState& state);
  void ExpireBans();
  void RebindBans();
  void Free(Bucket& b);

  // regions.cc
  void Exchange(const Bucket& b, int64_t tokens, uint64_t denied, uint64_t since_ns,
                const WindowSeen& seen);
  uint64_t IntervalOf(uint32_t shard) const;
  bool IsDue(uint32_t shard, uint64_t now_ns) const;

  // quotas.cc
  void Recall(Bucket& b, uint64_t now_ns);
  void KeepQuota(const Bucket& b, const BucketState& told, uint64_t redis_us);
  void KeepOwnQuota(const Bucket& b);
  void RestoreQuotas(uint32_t shard, uint64_t now_ns);
  void RaiseToRestored(const Bucket& b, uint64_t now_ns, BucketState* state);

  // strict.cc
  void OpenKeeper();
  void OnStrictUse(uint32_t bucket, int64_t tokens, uint64_t denied, uint64_t need);
  void OnLoanReply(uint32_t shard, uint64_t token, const redis::Reply& reply, uint32_t primary,
                   uint64_t now_ns);
  void OnLent(uint32_t shard, uint64_t seq, const redis::Reply& reply, uint32_t primary,
              uint64_t now_ns);
  void AskPlaces(uint32_t shard, const std::vector<std::string>& args, uint64_t seq) override;
  void OnPlaces(uint32_t shard, uint64_t seq, const redis::Reply& reply, uint32_t primary,
                uint64_t now_ns);
  void JudgeReply(const absl::Status& status, uint32_t primary, uint64_t now_ns);
  bool MayLend(uint32_t shard, uint64_t now_ns) override;
  void Lend(uint32_t shard, const std::vector<std::string>& args, uint64_t seq) override;
  uint32_t ShownShard(const config::CompiledRule& rule, const std::string& text,
                      uint32_t shard) override;
  uint64_t HostsSeen() override;
  void OnHosts(uint64_t hosts) override;
  void OnForgotten(const harvest::Place& place) override;
  uint32_t HomeShard(const config::CompiledRule& rule, const std::string& text,
                     uint32_t shard) override;
  void OnAway(uint32_t shard, const config::CompiledRule& rule, lease::Away why) override;
  void Settle(uint32_t shard, const std::vector<std::string>& args, uint64_t round) override;
  void OnSettled(uint32_t shard, uint64_t round, const redis::Reply& reply, uint32_t primary,
                 uint64_t now_ns);
  uint32_t shards() const { return options_.shard_count * options_.region_count; }

  ReconcilerOptions options_;
  const shm::MappedBuckets* buckets_;
  shm::ControlWriter* control_;
  Transport* transport_;
  std::function<double()> random_;
  harvest::Harvester harvester_;
  Ledger ledger_;
  std::shared_ptr<const config::CompiledRules> rules_;
  std::unique_ptr<lease::Keeper> keeper_;       // null without Redis
  std::unique_ptr<lease::PlaceKeeper> places_;  // null without Redis
  std::unique_ptr<lease::Homes> homes_;         // null without regions
  bool has_strict_ = false;                     // among the rules
  uint64_t last_strict_ns_ = 0;                 // of use under one of them
  std::vector<Primary> primaries_;
  absl::node_hash_map<std::string, RuleTotals> totals_;  // also of rules that are gone
  std::map<std::pair<std::string, std::string>, uint64_t> class_totals_;  // likewise
  NearLimits near_;
  Farewells farewells_;
  std::vector<RuleTotals*> totals_by_id_;  // into totals_, by id of the rules now
  ReconcilerStats stats_;
  uint64_t now_ns_ = 0;  // of the tick or event under way
  uint64_t started_ns_ = 0;
  uint64_t last_use_ns_ = 0;
  uint64_t last_harvest_ns_ = 0;
  uint32_t emergencies_ = 0;
  int64_t hosts_ = 1;  // most seen on a bucket in this and the last generation
  int64_t hosts_next_ = 0;
  uint64_t hosts_turn_ns_ = 0;
  BucketId expire_at_ = 0;
  double forced_share_ = 0;
  std::vector<std::string> forced_rules_;
  std::vector<BucketId> banned_;  // whose ban is shown to clients
  std::vector<BanEvent> ban_events_;
};

}  // namespace sluice::reconcile
