// One run: a cluster, hosts, clients and faults, all from one seed, and what was wrong with it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tests/simulation/books.h"
#include "tests/simulation/cluster.h"
#include "tests/simulation/host.h"
#include "tests/simulation/network.h"

namespace sluice::simulation {

// Whom faults happen to.
struct World {
  Timeline* timeline;
  Trace* trace;
  Network* network;
  Cluster* cluster;
  const Books::Hosts* hosts;
};

struct Report {
  uint64_t seed = 0;
  uint64_t hash = 0;                // of all that happened: the same for the same seed
  std::vector<std::string> faults;  // by name, in the order of their beginnings
  std::vector<std::string> wrong;
  Totals totals;
  uint64_t failovers = 0;
  uint64_t checks = 0;
  uint64_t killed_clients = 0;
  uint64_t rule_changes = 0;
  uint64_t bans_seen = 0;       // buckets that hosts held to be banned, in all looks
  uint64_t entered = 0;         // places of requests in flight
  uint64_t strict_judged = 0;   // tokens spent while a strict limit had to hold
  uint64_t seats_judged = 0;    // so often somebody entered while the limit had to hold
  uint64_t classes_judged = 0;  // tokens that classes took which may not use all
  uint64_t quotas_judged = 0;   // tokens of quotas by the calendar
  uint64_t tried = 0;           // requests that a candidate was asked about
  uint64_t events = 0;
  uint64_t settled_ns = 0;  // from the end of the last fault until all was well
};

// All hosts are well and all use is reported so long after the last fault, at the latest.
inline constexpr uint64_t kLiveNs = 30 * kSecond;

Report Run(uint64_t seed, bool print);

}  // namespace sluice::simulation
