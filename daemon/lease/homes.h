// Settles in which map of homes all regions believe, shard by shard, so that no bucket is lent from
// two regions (lua/home.lua; docs/regions.md has the proof).
//
// H1 A region lends under a map only after all regions were told of it, and were then lending under
//    no earlier one.
// H2 It begins with an empty bucket, one generation of refill below 0: what a former home has lent
//    has ended by then.
//
// A round for a shard: all regions are told the maps, and when each has answered those that are not
// open yet are opened. Rounds of many hosts may mix. Single-threaded, without sockets or a clock.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "daemon/config/compile.h"
#include "daemon/lease/terms.h"
#include "daemon/redis/reply.h"

namespace sluice::lease {

// Where in the arguments of lua/home.lua the name of the primary stands; it is the sender's.
inline constexpr size_t kHomePrimaryArg = 1;

// What Homes needs of the network.
class HomesLink {
 public:
  virtual ~HomesLink() = default;
  // Whether the shard (as the keeper counts them: region x shards + shard) may be asked now.
  virtual bool MayLend(uint32_t shard, uint64_t now_ns) = 0;
  // Runs lua/home.lua there; a lost call is sent again. `args` are its ARGV without the primary.
  virtual void Settle(uint32_t shard, const std::vector<std::string>& args, uint64_t round) = 0;
};

class Homes {
 public:
  // What is passed outlives it. `regions`: 2 or more, `shards`: of each.
  Homes(uint32_t regions, uint32_t shards, HomesLink* link);

  // Settles anew where the maps are others.
  void SetRules(const config::CompiledRules& rules);
  // A call for a lease in this shard (region x shards + shard) was told why it is not at home.
  void OnAway(uint32_t shard, const std::string& label, Away why);
  // Sends what is due; to be called every few ms.
  void Tick(uint64_t now_ns);
  // InternalError: what answered is not the script.
  absl::Status OnReply(uint32_t shard, uint64_t round, const redis::Reply& reply);

  // Labels whose map of this host is not the one in force, and why: a person must mend it.
  const std::map<std::string, Away>& refused() const { return refused_; }
  // Shards whose round is over.
  uint32_t settled() const;

 private:
  enum class Phase : uint8_t { kWanted, kTelling, kOpening, kSettled };
  struct Told {
    int64_t state = 0;
    uint64_t set_us = 0;
  };
  struct Region {
    bool is_answered = false;
    uint64_t resend_ns = 0;
    uint64_t pause_ns = 0;
    std::vector<size_t> rules;  // asked for, of rules_
    std::vector<Told> told;     // for each of rules_
  };
  struct Shard {
    Phase phase = Phase::kWanted;
    uint64_t round = 0;
    uint64_t not_before_ns = 0;
    std::vector<Region> regions;
  };
  struct Rule {
    std::string label;
    std::vector<std::string> mark;  // label, epoch, map
  };

  void Begin(Shard& s, uint64_t now_ns);
  void Send(uint32_t index, uint64_t now_ns);
  void AllTold(Shard& s);

  const uint32_t region_count_;
  HomesLink* const link_;
  std::vector<Rule> rules_;
  std::vector<Shard> shards_;
  std::map<std::string, Away> refused_;
  uint64_t round_ = 0;
};

}  // namespace sluice::lease
