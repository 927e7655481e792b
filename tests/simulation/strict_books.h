// Whether a strict rule ever admits more than its limit and burst over all hosts, in a window of
// any length: what is spent is taken from one perfect bucket, which may not go below 0.
//
// What docs/accuracy.md leaves open stays open here: a clock of Redis that is set forward brings
// the limit of that time, and where a node other than the owner of its slot ran a call, two served
// at once; then the shard is in doubt for the rest of a run.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>

#include "shm/gcra.h"
#include "tests/simulation/node.h"
#include "tests/simulation/timeline.h"

namespace sluice::simulation {

class StrictBooks {
 public:
  // `timeline` outlives it; `on_violation` hears of what is wrong.
  StrictBooks(const Timeline* timeline, const shm::Limit& limit,
              std::function<void(const std::string&)> on_violation)
      : timeline_(timeline), limit_(limit), on_violation_(std::move(on_violation)) {}

  // lua/lease.lua was run; `owns`: by the node that all agree upon.
  void OnCall(bool owns, const Loan& loan);
  // `tokens` of the bucket `text` were spent on some host.
  void OnSpent(const std::string& text, uint32_t tokens);

  // Tokens that were spent while the promise held.
  uint64_t judged() const { return judged_; }

 private:
  struct Shard {
    bool is_in_doubt = false;
    int64_t ahead_us = INT64_MIN;            // of Redis' clock as of the last call
    double forward_us = 0;                   // it was set forward so much in all
    std::map<std::string, int64_t> told_us;  // by instance: when its last call was run
  };
  struct Bucket {
    uint32_t shard = 0;
    double level = 0;  // tokens
    uint64_t at_ns = 0;
  };

  const Timeline* timeline_;
  const shm::Limit limit_;
  const std::function<void(const std::string&)> on_violation_;
  std::map<uint32_t, Shard> shards_;
  std::map<std::string, Bucket> buckets_;  // that Redis was asked about
  uint64_t judged_ = 0;
};

}  // namespace sluice::simulation
