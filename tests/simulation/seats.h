// Whether more are in flight over all hosts than the limit, where docs/in-flight.md promises that
// they are not: it listens to the calls of lua/places.lua that are run.
//
// The promise rests on one primary, and on hosts that speak after Redis has lost what it knew. So a
// shard is in doubt for the rest of a run from when
// - a node other than the owner of its slot ran a call, or
// - places were lent though a host where some are in use had not been heard since Redis began
//   anew, or for as long as a host may be silent.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "tests/simulation/host.h"
#include "tests/simulation/node.h"
#include "tests/simulation/timeline.h"

namespace sluice::simulation {

class Seats {
 public:
  using Hosts = std::vector<std::unique_ptr<Host>>;

  // What is passed outlives it; `on_violation` hears of what is wrong.
  Seats(const Timeline* timeline, const Hosts* hosts, uint32_t limit,
        std::function<void(const std::string&)> on_violation)
      : timeline_(timeline), hosts_(hosts), limit_(limit), on_violation_(std::move(on_violation)) {}

  // lua/places.lua was run; `owns`: by the node that all agree upon.
  void OnCall(bool owns, const Loan& loan);
  // Somebody has entered the bucket `text` on a host.
  void OnEnter(const std::string& text);

  // How often somebody entered while the promise held.
  uint64_t judged() const { return judged_; }

 private:
  struct Heard {
    uint64_t at_ns = 0;
    int64_t now_us = 0;  // as the script was answering
  };
  struct Shard {
    int64_t fence_us = 0;   // as last told
    uint64_t begun_ns = 0;  // Redis knew nothing then
    bool is_in_doubt = false;
    std::map<std::string, Heard> heard;  // by a host's segments
    std::set<std::string> texts;         // of its buckets
  };

  bool IsHeard(const Shard& shard, const Host& host) const;
  static bool IsUsedIn(const Shard& shard, const Host& host);

  const Timeline* timeline_;
  const Hosts* hosts_;
  const uint32_t limit_;
  const std::function<void(const std::string&)> on_violation_;
  std::map<uint32_t, Shard> shards_;
  std::map<std::string, uint32_t> shard_of_;  // by bucket
  uint64_t judged_ = 0;
};

}  // namespace sluice::simulation
