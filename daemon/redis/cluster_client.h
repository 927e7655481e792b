#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "daemon/redis/latency.h"
#include "daemon/redis/reply.h"
#include "daemon/redis/tls_context.h"
#include "daemon/ring/ring.h"

namespace sluice::redis {

// The daemon's only face towards Redis: calls scripts on the primary that owns a shard, follows
// redirects, keeps the map of the cluster, the connections, the time-outs and the alarms.
//
// It never resends after a time-out or a lost connection: whether a call was applied is then
// unknown, and only the caller's sequence numbers make a resend safe. Back-off, resends and the
// breaker are the caller's. What it does resend by itself was certainly not applied: a call that
// was answered with MOVED, ASK or NOSCRIPT.

// Position of a script in ClientOptions::scripts.
using ScriptId = uint32_t;

// Names a primary. Stable for a node id as long as the client lives, over fail-overs and map
// refreshes too; dense from 0, so it can index an array.
using PrimaryIndex = uint32_t;
inline constexpr PrimaryIndex kNoPrimary = UINT32_MAX;

// Most primaries (past and present) with an index. The largest advised cluster has 1000 nodes, but
// connections are bounded by ring::kMaxChannels, which leaves room for scouts and others.
inline constexpr uint32_t kMaxPrimaries = 400;

// Most calls and pings that one primary holds, waiting or in flight. With one batch in flight per
// shard a caller stays far below; above it a call fails with kRetryLater.
inline constexpr size_t kMaxCallsPerPrimary = 4096;

// Most bytes of unsent commands per primary, and most bytes of one call's arguments.
inline constexpr size_t kMaxUnsentBytes = 32u << 20;
inline constexpr size_t kMaxArgumentBytes = 4u << 20;

// Most redirects (MOVED, ASK) that one call follows before it fails with kRetryLater.
inline constexpr uint32_t kMaxRedirects = 4;

enum class Mode {
  kCluster,  // the map comes from CLUSTER SLOTS
  kSingle,   // every shard lives on the first seed; no CLUSTER command is ever sent
  // Every shard lives on the primary that the seeds, sentinels, name; a cluster of one.
  kSentinel,
};

// Gives the password of now, before each connect, so that a new one needs no restart. Where it
// fails the former stays, with an alarm. Null: the first one for good.
using ReadPassword = std::function<absl::StatusOr<std::string>()>;

// How to ask sentinels (kSentinel). They have users of their own.
struct SentinelOptions {
  std::string master;    // the name under which they watch the primary
  std::string user;      // empty: the default user
  std::string password;  // empty: no AUTH is sent to them
  ReadPassword read_password;
};

struct Script {
  std::string name;  // for messages
  std::string text;  // Lua
  // Keeps its keys apart from other scripts': `<prefix>:<shards>:<family>:{...}`, in the same
  // slots. Empty: the shard's own key.
  std::string family = {};
  // Before which of a call's arguments the RunId of the server that runs it is put in, wherever a
  // redirect leads it. While that is not known the call fails with kRetryLater.
  std::optional<uint32_t> run_id_before = {};
};

struct ClientOptions {
  // "host:port", "[v6]:port" or "unix:/path"; names are resolved on a thread apart. In kSentinel
  // the sentinels.
  std::vector<std::string> seeds;
  Mode mode = Mode::kCluster;
  SentinelOptions sentinel;
  std::string user;      // empty: the default user
  std::string password;  // empty: no AUTH is sent
  ReadPassword read_password;
  std::optional<TlsOptions> tls;       // none: plain TCP
  std::string client_name = "sluice";  // shown by CLIENT LIST; bytes outside ! to ~ become '-'
  std::string prefix = "rl";           // head of every key
  uint32_t shards = 64;                // 1 to 4096; part of every key, never changed in place
  std::vector<Script> scripts;
  // What Ping runs, with the key of a shard of that primary and no arguments. It must not write.
  // Without it Ping sends PING, which does not notice a cluster that is down.
  std::optional<ScriptId> probe_script;
  // Each server is asked who it is, see RunId. Needs the right to INFO; without it all else works.
  bool identify = false;
  // From the first SYN to the last answer of the handshake, that of TLS included.
  int64_t connect_timeout_ns = 1'000'000'000;
  // A request's time-out is 4 x the primary's 99th percentile, held between these two.
  int64_t request_timeout_min_ns = 25'000'000;
  int64_t request_timeout_max_ns = 250'000'000;
};

enum class FailureKind : uint8_t {
  kUnavailable,  // no primary known, refused, closed, no handshake: may or may not be applied
  kTimeout,      // no answer in time: may or may not be applied
  kRetryLater,   // the node asks for patience (LOADING, TRYAGAIN, CLUSTERDOWN, ...): not applied
  kDenied,       // the node refuses until somebody mends it (NOAUTH, NOPERM, OOM, ...)
  kScript,       // the script ended with an error: a part of it may be applied
  kProtocol,     // the peer does not speak Redis: the connection is closed
};
std::string_view FailureName(FailureKind kind);

struct Failure {
  FailureKind kind = FailureKind::kUnavailable;
  std::string message;  // what happened, the node's own words where there are any
  std::string mend;     // what the operator can do; empty where only patience helps
};

enum class AlarmKind : uint8_t {
  kWrongPassword,      // wrong or missing user or password
  kMissingPermission,  // the ACL lacks a command or key
  kWrongMode,          // mode is cluster and the server is not one, or the reverse
  kWrongAddress,       // a seed cannot be resolved or parsed
  kGarbage,            // the peer does not speak Redis
  kNoSeedReachable,    // no node (no sentinel) at all answers
  kRefusesWrites,      // OOM, MISCONF
  kUnsupported,        // the server is too old, or the script is broken there
  kTlsFailed,          // certificate, name or version; or the server does not speak TLS
  kNoMaster,           // no sentinel knows a primary of that name
  kTlsFiles,           // our own certificate, key or authorities cannot be read
  kPasswordFile,       // the password cannot be read
};
std::string_view AlarmName(AlarmKind kind);

// Raised once and cleared once for each (kind, subject).
struct Alarm {
  AlarmKind kind = AlarmKind::kNoSeedReachable;
  std::string subject;  // the node's or seed's address, or "redis" for the whole
  bool raised = true;
  std::string text;  // empty when cleared
  std::string mend;  // empty when cleared
};

// Called from Ring::Wait and ClusterClient::Poll only, never from inside Call or Ping, on the
// ring's thread. May call any method of the client but Poll.
class Listener {
 public:
  virtual ~Listener() = default;

  // Exactly one of these two for each Call. `primary` is the node that answered, or should have;
  // kNoPrimary if none was known.
  virtual void OnReply(uint32_t shard, uint64_t token, const Reply& reply,
                       PrimaryIndex primary) = 0;
  virtual void OnFailure(uint32_t shard, uint64_t token, const Failure& failure,
                         PrimaryIndex primary) = 0;

  // Exactly once for each Ping; `failure` is null when the primary is well.
  virtual void OnPong(PrimaryIndex primary, uint64_t token, const Failure* failure) = 0;

  // PrimaryOf, primary_count or an address has changed.
  virtual void OnTopology() = 0;

  virtual void OnAlarm(const Alarm& alarm) = 0;
};

struct PrimaryInfo {
  std::string address;   // "host:port" as the cluster announces it
  std::string node_id;   // empty where it is not known (single mode, a node known by MOVED only)
  std::string hostname;  // announced beside the address; what TLS checks; may be empty
  bool in_map = false;   // owns slots in the present map
  bool connected = false;
  int64_t p50_ns = 0;  // 0 while too few calls were answered
  int64_t p99_ns = 0;  // the same
  int64_t request_timeout_ns = 0;
};

struct PrimaryStats {
  PrimaryIndex index = 0;
  std::string address;
  std::string node_id;
  LatencySnapshot latency;
};

struct ClientCounters {
  uint64_t calls = 0;
  uint64_t replies = 0;
  uint64_t failures = 0;
  uint64_t script_errors = 0;
  uint64_t moved = 0;
  uint64_t asked = 0;
  uint64_t noscript = 0;
  uint64_t timeouts = 0;
  uint64_t connects = 0;
  uint64_t disconnects = 0;
  uint64_t refreshes = 0;         // maps taken over
  uint64_t refresh_failures = 0;  // attempts that gave none

  ClientCounters& operator+=(const ClientCounters& other);
};

// Single-threaded (the ring's thread), but for Stats and Counters, which any thread may call.
class ClusterClient {
 public:
  struct Environment {
    ring::Ring* ring = nullptr;
    Listener* listener = nullptr;
    std::function<int64_t()> now_ns;   // CLOCK_MONOTONIC in a daemon
    std::function<uint64_t()> random;  // 64 uniform bits, for jitter
  };

  // Checks the options, starts to connect. InvalidArgument names the option and its bound. The
  // ring and the listener must outlive the client.
  static absl::StatusOr<std::unique_ptr<ClusterClient>> Create(ClientOptions options,
                                                               Environment environment);
  // Closes every connection, without callbacks.
  ~ClusterClient();
  ClusterClient(const ClusterClient&) = delete;
  ClusterClient& operator=(const ClusterClient&) = delete;

  // Sends `EVALSHA sha 1 <key of shard> args...` to the shard's primary. `encoded_args` holds
  // `arg_count` bulk strings (AppendBulk of codec.h); both are copied. Answered by exactly one
  // OnReply or OnFailure later on. While the primary is being connected the call waits for it;
  // while it is in its reconnect pause the call fails soon.
  void Call(uint32_t shard, ScriptId script, std::string_view encoded_args, uint32_t arg_count,
            uint64_t token);

  // A read-only probe of one primary; follows no redirect. Answered by exactly one OnPong. A
  // primary in its reconnect pause is tried at once.
  void Ping(PrimaryIndex primary, uint64_t token);

  // The primary that owns the shard, or kNoPrimary.
  PrimaryIndex PrimaryOf(uint32_t shard) const;

  // One more than the largest index ever given out; departed primaries keep theirs.
  size_t primary_count() const;
  PrimaryInfo Primary(PrimaryIndex index) const;

  // The random name of the server's process: another after each restart, and after each failover
  // that of another server. Empty while it is not known: not connected, not asked (`identify`), or
  // not told.
  const std::string& RunId(PrimaryIndex index) const;

  // The key of a shard, for display and for tools.
  const std::string& ShardKey(uint32_t shard) const;

  // A map is known, and all primaries in it are connected.
  bool Ready() const;

  // Calls and pings that have not been answered yet.
  size_t outstanding() const;

  // Asks for a fresh map soon (single-flight, at least 1 s apart).
  void RequestRefresh();

  // Passwords, certificates and keys are looked at anew now, and not only at the next connect.
  void ReadFilesAnew();

  // Drives time-outs, reconnects, refreshes and queued failures. Call it after each Ring::Wait.
  void Poll();

  // When Poll has something to do next, on the injected clock; INT64_MAX when nothing is due.
  int64_t NextDeadlineNs() const;

  // From any thread.
  std::vector<PrimaryStats> Stats() const;
  ClientCounters Counters() const;

 private:
  class Impl;
  explicit ClusterClient(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace sluice::redis
