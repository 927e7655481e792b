// What the admin socket shows, as plain values, and where it comes from.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "daemon/admin/attach_server.h"
#include "daemon/config/compile.h"
#include "daemon/config/config.h"
#include "daemon/engine.h"
#include "shm/segment.h"

namespace sluice::admin {

// The last word on the configuration file.
struct ConfigState {
  std::string path;
  bool ok = true;  // false: the file is bad and the limits before it are in force
  uint64_t loaded_ns = 0;
  uint64_t reloads = 0;         // that took effect
  uint64_t failed_reloads = 0;  // that did not
  std::vector<std::string> problems;
  std::vector<std::string> warnings;
  std::string pending;  // why a change is not in force yet; empty: it is
};

// A fault on purpose that is in force.
struct Chaos {
  uint64_t token = 0;  // never used twice by one daemon; 0: none is
  uint64_t until_ns = 0;
  std::string text;  // "redis-delay by 200ms on 10 % of calls"
};

struct DaemonStatus {
  std::string version;
  int pid = 0;
  uint64_t now_ns = 0;
  uint64_t started_ns = 0;
  bool adopted = false;  // the segments are those of an earlier daemon
  uint64_t incarnation = 0;
  uint64_t generation = 0;
  uint64_t capacity = 0;
  shm::LogShape logs;  // rows of none: no sliding logs
  uint64_t policy_seq = 0;
  uint64_t version_hash = 0;
  uint64_t rule_count = 0;
  std::vector<uint64_t> shards;    // shard_state words
  std::vector<uint64_t> counters;  // by shm::Counter
  EngineSnapshot engine;
  ClientsSnapshot clients;
  ConfigState config;
  Chaos chaos;
  std::vector<Alarm> alarms;  // the engine's and the process side's
};

// The rules in force with the configuration that they came from.
struct RulesInForce {
  std::shared_ptr<const config::Config> config;
  std::shared_ptr<const config::CompiledRules> rules;
};

struct ReloadResult {
  bool ok = false;
  std::vector<std::string> problems;  // as `--check-config` says them
  std::vector<std::string> warnings;
};

// The daemon, as the admin socket sees it. Any thread may call any member.
class StatusSource {
 public:
  virtual ~StatusSource() = default;

  virtual DaemonStatus Status() const = 0;
  virtual RulesInForce Rules() const = 0;
  virtual ReloadResult Reload() = 0;
  // The text of the configuration in force.
  virtual std::string ConfigText() const = 0;
  // Ends the ban of a bucket; false where too many wait for that.
  virtual bool Unban(const std::string& bucket) = 0;
  // See daemon/chaos/order.h for what is asked and refused; one at a time.
  virtual absl::StatusOr<Chaos> BeginChaos(const std::map<std::string, std::string>& asked) = 0;
  // Ends that one, where it is still in force.
  virtual void EndChaos(uint64_t token) = 0;
  // Stay mapped as long as the source lives.
  virtual const shm::MappedBuckets& Buckets() const = 0;
  virtual const shm::SegmentInfo& Info() const = 0;
  // Who holds places of requests in flight, [kMaxHolders]; null: not known.
  virtual const shm::HolderCell* HolderCells() const = 0;
};

}  // namespace sluice::admin
