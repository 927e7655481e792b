// The daemon's pair of segments: an earlier daemon's where they fit, else a new generation.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "daemon/supervisor.h"
#include "shm/segment.h"

namespace sluice {

class Segments {
 public:
  // Looks through `held` (its segments are taken out, those that do not fit are forgotten), adopts
  // the pair that fits or makes a new one, not published yet. Says in the log what it did.
  absl::Status AdoptOrCreate(const shm::ControlOptions& options, std::vector<NamedFd>* held,
                             const Supervisor& supervisor, uint64_t now_ns);

  // Publishes the pair and has the supervisor hold it. Once the rules stand in it.
  absl::Status Publish(const Supervisor& supervisor);

  shm::ControlWriter& control() { return control_; }
  const shm::ControlWriter& control() const { return control_; }
  const shm::MappedBuckets& buckets() const { return buckets_.buckets(); }
  int buckets_fd() const { return buckets_.fd(); }
  int read_only_control_fd() const { return read_only_.get(); }
  bool adopted() const { return adopted_; }

 private:
  bool Adopt(const std::string& generation, const shm::ControlOptions& options,
             std::vector<NamedFd>* held, uint64_t now_ns);

  shm::ControlWriter control_;
  shm::BucketsOwner buckets_;
  shm::OwnedFd read_only_;
  bool adopted_ = false;
};

}  // namespace sluice
