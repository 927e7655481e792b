// The books of a run: what hosts admitted against what the owners of the shards have counted.
//
// For each host and bucket, with `counted` from the owner's lineage:
//   counted <= admitted, reported <= admitted              always: nothing is counted twice
//   admitted - given back = counted + lost by kills + lost by Redis
//                                                          at the end, when all is reported
// Refunds are reported as use is, and may be lost as use may; then more is counted than was kept.
// Reported is what batches of different numbers have ever told any node. A copy of a hash counts a
// number once, so where this holds no copy, also of those that were forgotten, counts a use twice.
// Lost by kills is at most what killed daemons had taken and Redis had not answered for. Lost by
// Redis is at most what it acknowledged and forgot before the daemon could hear of it within the
// journal's time. All else that is missing is a violation.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "tests/simulation/cluster.h"
#include "tests/simulation/host.h"

namespace sluice::simulation {

struct Totals {
  int64_t admitted = 0;
  int64_t given_back = 0;
  int64_t counted = 0;
  int64_t lost_by_kills = 0;
  int64_t lost_by_redis = 0;
  uint64_t batches = 0;    // counted
  uint64_t forgotten = 0;  // acknowledged, and then lost by Redis
};

class Books {
 public:
  using Hosts = std::vector<std::unique_ptr<Host>>;

  Books(const Cluster* cluster, const Hosts* hosts) : cluster_(cluster), hosts_(hosts) {}

  // What is wrong, a line each. `closing`: all hosts are settled, nothing may be missing.
  std::vector<std::string> Check(bool closing);
  // Of the last check.
  const Totals& totals() const { return totals_; }

 private:
  struct Line {
    int64_t counted = 0;
    int64_t reported = 0;
    int64_t may_be_missing = 0;
    int64_t may_be_too_much = 0;  // of refunds that are missing
  };
  using Lines = std::vector<std::map<std::string, Line>>;  // by host

  void AddCounted(Lines* lines, std::vector<std::string>* wrong);
  void AddReported(Lines* lines);
  void AddForgotten(Lines* lines);
  // What is wrong with one bucket of one host.
  void CheckLine(size_t host, const std::string& text, bool closing, const Line& line,
                 std::vector<std::string>* wrong);

  const Cluster* cluster_;
  const Hosts* hosts_;
  Totals totals_;
  struct Owner {
    size_t host = 0;
    const Life* life = nullptr;
  };
  std::map<std::string, Owner> owners_;  // by instance
  // By daemon and shard, then by seq.
  using Whose = std::pair<const Life*, uint32_t>;
  std::map<Whose, std::map<int64_t, bool>> in_chain_;
  // A batch's copies: it may have been counted in several lineages.
  std::map<Whose, std::map<int64_t, std::vector<const Applied*>>> all_;
};

}  // namespace sluice::simulation
