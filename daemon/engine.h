// What the process side of the daemon needs of its working side: harvest and reconcile, behind one
// narrow interface, so that each can be built and tested without the other.
//
// All times are CLOCK_MONOTONIC ns, all durations end in _ns.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "daemon/chaos/order.h"
#include "daemon/config/compile.h"
#include "daemon/config/config.h"
#include "daemon/reconcile/quota_store.h"
#include "daemon/redis/latency.h"
#include "shm/segment.h"

namespace sluice {

// One Redis primary, as this daemon sees it.
struct PrimaryStatus {
  std::string address;   // as connected to; REGION/ stands before it where there are regions
  std::string hostname;  // announced beside it, for TLS; may be empty
  std::string breaker;   // "closed", "open", "half-open"
  bool connected = false;
  uint32_t shards = 0;           // virtual shards that live there
  uint64_t p50_ns = 0;           // of the last seconds
  uint64_t p99_ns = 0;           //
  redis::LatencySnapshot calls;  // since start
  uint64_t failures = 0;         // calls without a usable reply
  std::string last_error;        // empty: none
};

// Something that a person should mend. `id` is stable ("redis-noauth"), so that it is raised once.
struct Alarm {
  std::string id;
  std::string text;  // what is wrong
  std::string mend;  // what to do
  uint64_t since_ns = 0;
};

// Checks since the daemon's first start with these segments, as far as they were harvested.
struct RuleCounts {
  std::string label;  // "name" or "name@tier"
  uint64_t allowed = 0;
  uint64_t denied = 0;
  uint64_t degraded = 0;    // decided while the rule's shard was in emergency
  uint64_t near_limit = 0;  // buckets that came near the limit, each once in a period
  uint64_t bans = 0;        // that this host's denials have begun
};

// Requests of one class of a rule with priority, counted likewise.
struct ClassCounts {
  std::string rule;   // the name: of all its tiers
  std::string value;  // of the class
  uint64_t denied = 0;
};

// Tokens on loan for strict rules, since start.
struct LeaseCounts {
  uint64_t buckets = 0;      // that are known
  uint64_t held_tokens = 0;  // that this host may spend
  uint64_t calls = 0;        // resends not counted
  uint64_t called_buckets = 0;
  uint64_t resends = 0;
  uint64_t lent_tokens = 0;
  uint64_t returned_tokens = 0;
  uint64_t lost_tokens = 0;  // given up: they stood in a slot that was reused
};

// A copy of all that people and metrics are shown. Counters never fall within one process.
struct EngineSnapshot {
  bool has_redis = false;
  std::string transport;             // "io_uring", "epoll"; empty without Redis
  uint64_t unreconciled_age_ns = 0;  // age of the oldest use that Redis does not know
  uint64_t live_buckets = 0;         // slots that hold a key
  uint64_t harvested_tokens = 0;     // use taken from slots
  uint64_t batches = 0;              // script calls sent, resends not counted
  uint64_t batched_buckets = 0;      // buckets in them
  uint64_t resends = 0;
  uint64_t requeues = 0;  // batches counted again after a failover lost them
  uint64_t script_errors = 0;
  uint64_t redirects = 0;  // MOVED and ASK
  uint64_t map_refreshes = 0;
  LeaseCounts leases;
  uint64_t chaos_calls = 0;  // calls and replies that chaos failed or held back
  std::vector<PrimaryStatus> primaries;
  std::vector<RuleCounts> rules;
  std::vector<ClassCounts> classes;  // of rules in force, in their order
  std::vector<Alarm> alarms;
};

// What an engine works on. All of it outlives the engine.
struct EngineParts {
  shm::ControlWriter* control = nullptr;  // only SetShard and what is for any thread
  const shm::MappedBuckets* buckets = nullptr;
  std::optional<config::RedisConfig> redis;  // none: this host alone
  // In force while no daemon ran, where segments were taken over: use of that time is theirs.
  std::shared_ptr<const config::CompiledRules> former_rules;
  reconcile::QuotaStore* quotas = nullptr;  // null: none are kept; outlives the engine
};

// Harvest and reconcile with their thread. All members may be called from any thread but for
// Start and Stop, which the main thread calls once each, in this order.
class Engine {
 public:
  virtual ~Engine() = default;

  // Starts the thread. Does not wait for Redis: without it the shards go to emergency. Fails only
  // where no thread or ring can be made.
  virtual absl::Status Start(std::shared_ptr<const config::CompiledRules> rules) = 0;

  // Called after each publication; the policy with these rules is in force already.
  virtual void SetRules(std::shared_ptr<const config::CompiledRules> rules) = 0;

  // Faults on purpose until `until_ns`; none: ends what is in force. Taken over at the thread's
  // next turn.
  virtual void SetChaos(std::optional<chaos::Order> order, uint64_t until_ns) = 0;
  // True while the thread stands still by such an order. Cheap.
  virtual bool IsPaused() const = 0;

  // Ends the ban of the bucket of this name ("label:value:..."), at the thread's next turn. False
  // where too many wait for that.
  virtual bool Unban(std::string bucket) = 0;

  // A last harvest and reconcile that takes at most `bound`, then ends the thread.
  virtual void Stop(absl::Duration bound) = 0;

  // When the thread last came around its loop; the daemon's heartbeat vouches for it. It comes
  // around at least every 200 ms. Cheap.
  virtual uint64_t LastTickNs() const = 0;

  // At most a few hundred microseconds with 4096 rules; not for every check.
  virtual EngineSnapshot Snapshot() const = 0;
};

// Defined by daemon/reconcile.
std::unique_ptr<Engine> MakeEngine(const EngineParts& parts);

}  // namespace sluice
