// Segments with a policy, served to clients over an attach socket by a thread of this process: what
// a client needs of a daemon, without harvest and Redis. The test owns heartbeat, shard states and
// policies.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <string_view>
#include <thread>

#include "daemon/admin/attach_server.h"
#include "daemon/admin/event_loop.h"
#include "daemon/config/calendars.h"
#include "daemon/config/compile.h"
#include "shm/segment.h"

namespace sluice::test {

class ServedSegments {
 public:
  struct Options {
    uint64_t capacity = 4096;
    bool reconciling = false;
    bool beat = true;  // keep the heartbeat fresh
  };

  // `rules_yaml`: the text of a configuration, at least its rules. Aborts on failure: tests only.
  explicit ServedSegments(std::string_view rules_yaml) : ServedSegments(rules_yaml, Options()) {}
  ServedSegments(std::string_view rules_yaml, Options options);
  ~ServedSegments();

  void Publish(std::string_view rules_yaml);
  // Another pair of segments on the same socket, as after a daemon that could not adopt.
  void NewGeneration(std::string_view rules_yaml);
  // Sets by how much Unix time is ahead of the monotonic clock, microseconds, as if somebody had
  // set the wall clock; 0 at first.
  void SetWallOffset(int64_t offset_us);
  void StopServing();
  void StartServing();

  shm::ControlWriter& control() { return control_; }
  const shm::MappedBuckets& buckets() const { return buckets_.buckets(); }
  const config::CompiledRules& rules() const { return rules_; }
  const std::string& dir() const { return dir_; }
  // Tokens used by all tenants of all slots, as a daemon would take them.
  int64_t TotalUse() const;

 private:
  void Create(std::string_view rules_yaml);

  Options options_;
  std::string dir_;
  shm::ControlWriter control_;
  int64_t wall_offset_us_ = 0;
  config::Calendars calendars_{&control_, [this] { return wall_offset_us_; }};
  shm::BucketsOwner buckets_;
  config::CompiledRules rules_;
  shm::OwnedFd read_only_;
  std::thread thread_;
  std::atomic<bool> stop_{false};
};

}  // namespace sluice::test
