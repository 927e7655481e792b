// The working side, one turn after another: the Redis client, the reconciler, the alarms, and the
// state that people are shown. Without threads, sockets or a clock: ring, time and randomness come
// in, so that engine.cc puts it on a thread and a simulation puts many into one process.
//
// A turn is Tick(), then Wait() on the ring. Single-threaded.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "daemon/chaos/injector.h"
#include "daemon/engine.h"
#include "daemon/reconcile/reconciler.h"
#include "daemon/redis/cluster_client.h"
#include "daemon/redis/regions.h"
#include "daemon/ring/ring.h"

namespace sluice::reconcile {

struct WorkerEnvironment {
  ring::Ring* ring = nullptr;        // null without Redis
  std::function<uint64_t()> now_ns;  // CLOCK_MONOTONIC in a daemon
  std::function<uint64_t()> random;  // 64 uniform bits
  std::string instance;              // 32 hex digits, random at each start
  std::string transport_name;        // for the status
  uint64_t use_since_ns = 0;         // the last heartbeat of an earlier daemon; 0: there was none
};

class Worker final : private redis::Listener, private Transport {
 public:
  // All of `parts` and the ring outlive the worker. Fails where the options are wrong or the
  // password cannot be read.
  static absl::StatusOr<std::unique_ptr<Worker>> Create(const EngineParts& parts,
                                                        WorkerEnvironment environment);
  ~Worker() override;

  void SetRules(std::shared_ptr<const config::CompiledRules> rules);
  // Faults on purpose, until then; none: ends what is in force.
  void SetChaos(std::optional<chaos::Order> order, uint64_t until_ns);
  // Ends the ban of a bucket.
  void Unban(const std::string& bucket);
  // True while such an order makes the thread stand still: no Tick() then.
  bool IsPaused();
  // Does what is due, and returns when it wants another turn at the latest.
  uint64_t Tick();
  // Takes what the network brings until then; returns early with the first of it.
  void Wait(uint64_t until_ns);
  // Harvests and sends all that is left; true when Redis knows all of it.
  bool Flush();
  EngineSnapshot Snapshot() const;
  const Reconciler& reconciler() const { return *reconciler_; }
  const redis::ClusterClient* client() const { return client_ ? &client_->own() : nullptr; }

 private:
  Worker(const EngineParts& parts, WorkerEnvironment environment);
  absl::Status Open();
  void UpdateAlarms();
  void RaiseNamelessAlarm();
  void RaiseHomeAlarms();
  void RaiseRuleAlarms();
  void ClearRuleAlarms(bool over);
  void SetAlarm(const std::string& id, bool raised, std::string text, std::string mend);
  PrimaryStatus StatusOf(const redis::PrimaryStats& stats) const;

  // redis::Listener
  void OnReply(uint32_t shard, uint64_t token, const redis::Reply& reply,
               redis::PrimaryIndex primary) override;
  void OnFailure(uint32_t shard, uint64_t token, const redis::Failure& failure,
                 redis::PrimaryIndex primary) override;
  void OnPong(redis::PrimaryIndex primary, uint64_t token, const redis::Failure* failure) override;
  void OnTopology() override {}
  void OnAlarm(const redis::Alarm& alarm) override;

  // Transport
  void Call(uint32_t shard, std::string_view args, uint32_t arg_count, uint64_t token) override;
  void Lend(uint32_t shard, std::string_view args, uint32_t arg_count, uint64_t token) override;
  void Settle(uint32_t shard, std::string_view args, uint32_t arg_count, uint64_t token) override;
  void AskPlaces(uint32_t shard, std::string_view args, uint32_t arg_count,
                 uint64_t token) override;
  bool IsKnown(uint32_t primary) const override { return !client_->RunId(primary).empty(); }
  void Ping(uint32_t primary, uint64_t token) override;
  uint32_t PrimaryOf(uint32_t shard) const override { return client_->PrimaryOf(shard); }
  uint32_t primary_count() const override {
    return static_cast<uint32_t>(client_->primary_count());
  }

  // Where chaos lets it lag, it stands still first: it never goes back.
  uint64_t Now() const { return std::max(environment_.now_ns() - lag_ns_, not_before_ns_); }
  uint64_t RealNow() const { return environment_.now_ns(); }
  void DeliverHeld();
  void LogBans();
  void EndChaos();
  void EndChaosInTime();

  const EngineParts parts_;
  const WorkerEnvironment environment_;
  std::shared_ptr<const config::CompiledRules> rules_;
  std::unique_ptr<redis::RegionClients> client_;
  std::unique_ptr<Reconciler> reconciler_;
  chaos::Injector injector_;
  bool is_delivering_ = false;  // what comes was held back already
  std::string chaos_;           // the order in force, for people; empty: none
  uint64_t lag_ns_ = 0;         // of the clock, by chaos
  uint64_t not_before_ns_ = 0;
  std::map<std::string, Alarm> alarms_;
  std::map<std::string, uint64_t> degraded_before_;  // by label, while no emergency stood
  std::map<uint32_t, std::string> last_error_;       // by primary
  std::map<uint32_t, uint64_t> failures_;            // by primary
  uint64_t tick_ns_ = 0;                             // the next
  uint64_t strict_ns_ = 0;                           // the next of strict rules alone
  int nameless_looks_ = 0;                           // in a row, that found such a server
  uint64_t alarms_ns_ = 0;                           // last looked at
};

}  // namespace sluice::reconcile
