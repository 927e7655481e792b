#pragma once

#include <atomic>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "daemon/redis/alarm_board.h"
#include "daemon/redis/cluster_client.h"
#include "daemon/redis/cluster_map.h"
#include "daemon/redis/connection.h"
#include "daemon/redis/error_reply.h"
#include "daemon/redis/latency.h"
#include "daemon/redis/resolver.h"
#include "daemon/redis/sentinel.h"

namespace sluice::redis {

// The inside of ClusterClient, in four files: client_calls.cc (a call's way and its redirects),
// client_nodes.cc (connections, their pauses, alarms), client_refresh.cc (the map),
// client_sentinel.cc (the map of one, as sentinels tell it).
//
// Every failure and alarm is queued and told by the next Poll; answers are told as they come. So
// nothing calls the listener from inside Call or Ping.
class ClusterClient::Impl final : private ConnectionObserver {
 public:
  Impl(ClientOptions options, std::vector<Endpoint> seeds, Environment environment);
  ~Impl() override;

  void Call(uint32_t shard, ScriptId script, std::string_view encoded_args, uint32_t arg_count,
            uint64_t token);
  void Ping(PrimaryIndex primary, uint64_t token);
  PrimaryIndex PrimaryOf(uint32_t shard) const { return map_.Owner(shard_slots_[shard]); }
  size_t primary_count() const { return map_.size(); }
  PrimaryInfo Primary(PrimaryIndex index) const;
  const std::string& RunId(PrimaryIndex index) const;
  const std::string& ShardKey(uint32_t shard) const { return shard_keys_[shard]; }
  bool Ready() const;
  size_t outstanding() const { return requests_.size() + failed_.size(); }
  void RequestRefresh() { refresh_wanted_ = true; }
  // Before each connect: certificates may have been renewed, passwords changed.
  void ReadFilesAnew();
  void Poll();
  int64_t NextDeadlineNs() const;
  std::vector<PrimaryStats> Stats() const;
  ClientCounters Counters() const;

 private:
  struct Request {
    enum class Kind : uint8_t { kCall, kPing, kMap, kIdentity };
    Kind kind = Kind::kCall;
    uint32_t shard = 0;
    bool scripted = true;  // a ping without a probe script is a plain PING
    ScriptId script = 0;
    uint32_t arg_count = 0;
    std::string args;
    uint64_t token = 0;
    uint32_t redirects = 0;
    bool asking = false;      // redirected by ASK: every attempt starts with ASKING
    bool whole_text = false;  // EVAL after NOSCRIPT
    PrimaryIndex primary = kNoPrimary;
  };

  // An alarm about a node, under the address that the node had then.
  using Standing = std::optional<std::pair<AlarmKind, std::string>>;

  struct Node {
    Node(Impl* client, PrimaryIndex index);
    Connection connection;
    std::deque<uint64_t> waiting;  // requests, until the connection is ready
    int64_t retry_at_ns = 0;       // end of the reconnect pause
    int64_t pause_ns = 0;          // the last pause, before jitter
    int64_t last_used_ns = 0;
    ConnectionEnd last_end;
    std::string run_id;           // of the server that the connection is to
    int64_t ask_identity_ns = 0;  // not before; INT64_MAX: asked, or no use
    Standing start_alarm;         // raised by a failed start, cleared by a good one
    Standing call_alarm;          // raised by a refused call, cleared by a good one
    QuantileEstimator quantile;
    std::shared_ptr<LatencyHistogram> latency = std::make_shared<LatencyHistogram>();
  };

  struct FailedRequest {
    Request request;
    Failure failure;
  };

  struct AtomicCounters {
    std::atomic<uint64_t> calls{0}, replies{0}, failures{0}, script_errors{0}, moved{0}, asked{0},
        noscript{0}, timeouts{0}, connects{0}, disconnects{0}, refreshes{0}, refresh_failures{0};
  };

  // client_calls.cc
  uint64_t Register(Request&& request);
  void Route(uint64_t id);
  void Dispatch(uint64_t id, PrimaryIndex primary);
  void SendNow(uint64_t id, Node* node);
  std::string Encode(const Request& request) const;
  std::string KeyOf(const Request& request) const;
  bool NeedsRunId(const Request& request) const;
  void FailRequest(uint64_t id, Failure failure);
  void OnAnswer(Connection* connection, uint64_t id, Reply reply, int64_t latency_ns,
                bool on_time) override;
  void OnLost(Connection* connection, uint64_t id, const Failure& failure) override;
  void TakeAnswer(uint64_t id, const Reply& reply);
  void TakeIdentity(PrimaryIndex primary, const Reply& reply);
  void TakeError(uint64_t id, const Reply& reply);
  void FollowRedirect(uint64_t id, const Reply& reply, ErrorClass what);
  void Deliver(const Request& request, const Reply& reply);
  void DeliverFailures();

  // client_nodes.cc
  void OnReady(Connection* connection) override;
  void OnDown(Connection* connection, const ConnectionEnd& end) override;
  void PollNode(PrimaryIndex index, int64_t now_ns);
  void Connect(PrimaryIndex index, int64_t now_ns);
  Connection::Ground Ground() {
    return {environment_.ring, &resolver_, tls_.get(), &environment_.now_ns};
  }
  void AskIdentity(PrimaryIndex index);
  void ReleaseWaiting(Node* node);
  // Raises or clears an alarm about our own files.
  void FilesAlarm(AlarmKind kind, const std::string& subject, const absl::Status& status);
  void ReadAnew(const ReadPassword& read, const std::string& subject, std::string* password);
  // Raises an alarm in place of the one remembered in `standing`.
  void RaiseFor(PrimaryIndex index, AlarmKind kind, const Failure& failure, Standing* standing);
  void Clear(Standing* standing);
  void FitNodesToMap();
  void TellTopology();
  int64_t Jitter(int64_t full_ns);
  int64_t Now() const { return environment_.now_ns(); }
  std::string AddressOf(PrimaryIndex index) const { return ToString(map_.node(index).endpoint); }

  // client_refresh.cc
  void PollRefresh(int64_t now_ns);
  void StartRefresh(int64_t now_ns);
  void TryNextSource(int64_t now_ns);
  void AskForSlots(Connection* connection);
  void TakeSlots(const Reply& reply);
  void SourceFailed(Failure failure, std::optional<AlarmKind> alarm);
  void FinishRefresh(bool taken, int64_t now_ns);
  void ScoutDown(const ConnectionEnd& end);
  // Of all that SourceFailed may have raised for it.
  void ClearSeedAlarms(const std::string& address);

  // client_sentinel.cc
  void TakeMaster(const Reply& reply);
  void MasterRefused(const std::string& subject, const std::string& line);
  void ForSentinels(Failure* failure, std::optional<AlarmKind>* alarm) const;
  void ObeySentinel(const SentinelReply& master);
  void FinishSentinels(bool taken);

  const ClientOptions options_;
  const std::vector<Endpoint> seeds_;
  const Environment environment_;
  Greeting greeting_;        // of primaries
  Greeting scout_greeting_;  // of scouts: loads no scripts
  std::vector<std::string> shard_keys_;
  std::vector<uint32_t> shard_slots_;

  Resolver resolver_;
  const std::unique_ptr<TlsContext> tls_;  // null: no TLS
  ClusterMap map_;
  std::vector<std::unique_ptr<Node>> nodes_;  // by PrimaryIndex, like the map's
  bool topology_changed_ = false;
  AlarmBoard alarms_;

  uint64_t next_request_ = 1;
  absl::flat_hash_map<uint64_t, Request> requests_;
  std::deque<uint64_t> waiting_for_map_;  // until the first refresh has ended
  std::vector<FailedRequest> failed_;     // told by the next Poll

  // The refresh: one at a time, over `sources_` in turn until one gives a map.
  struct Source {
    bool is_seed = false;
    uint32_t index = 0;
  };
  bool refresh_wanted_ = true;
  bool refreshing_ = false;
  bool first_refresh_over_ = false;
  int64_t refresh_not_before_ns_ = 0;
  int64_t periodic_refresh_ns_ = 0;
  std::vector<Source> sources_;        // the rest, the next one last
  Source source_;                      // the one being asked
  uint64_t slots_request_ = 0;         // 0: not sent yet
  PrimaryIndex shunned_ = kNoPrimary;  // the node whose failure made us ask: not a source
  bool only_unreachable_ = true;       // every source so far was out of reach
  std::set<std::pair<std::string, AlarmKind>> seed_alarms_;  // by address; raised by refreshes
  // Why there is no map yet.
  Failure no_map_{FailureKind::kUnavailable, "the map of the cluster is not known yet", ""};
  // Sentinel mode: what was believed, and what this refresh has heard that was not an answer.
  int64_t sentinel_epoch_ = 0;
  std::optional<SentinelReply> stale_master_;
  std::optional<Failure> unknown_master_;
  int64_t other_sentinel_at_ns_ = 0;  // until then the connection to one is kept
  Connection scout_;                  // to a seed; closed when a refresh ends, but to a sentinel

  AtomicCounters counters_;
  struct StatsEntry {
    std::string address;
    std::string node_id;
    std::shared_ptr<LatencyHistogram> latency;
  };
  mutable std::mutex stats_mutex_;
  std::vector<StatsEntry> stats_;  // by PrimaryIndex; guarded by stats_mutex_
};

}  // namespace sluice::redis
