// What goes wrong in a run: which kinds of faults, when, where and how long, drawn from the seed.
// Each run draws some of the kinds, so that runs differ in more than their order; each fault ends,
// and the plan knows when the last one has.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "tests/simulation/random.h"
#include "tests/simulation/simulation.h"

namespace sluice::simulation {

class FaultPlan {
 public:
  FaultPlan(const World& world, Random random) : world_(world), random_(random) {}

  // Faults begin in this span of the timeline.
  void Schedule(uint64_t from_ns, uint64_t until_ns);
  uint64_t end_ns() const { return end_ns_; }
  const std::vector<std::string>& names() const { return names_; }

 private:
  struct Kind {
    const char* name;
    uint64_t least_ns, most_ns;  // how long
    // Begins the fault, and sees to it that it ends after so long.
    void (FaultPlan::*begin)(uint64_t for_ns);
  };
  static const std::vector<Kind>& Kinds();

  // Of links.
  void Delay(uint64_t for_ns);
  void Cut(uint64_t for_ns);
  void Truncate(uint64_t for_ns);
  void HalfClose(uint64_t for_ns);
  void Swallow(uint64_t for_ns);
  void Drip(uint64_t for_ns);
  void Reset(uint64_t for_ns);
  // Of nodes.
  void KillNode(uint64_t for_ns);
  void PauseNode(uint64_t for_ns);
  void SlowNode(uint64_t for_ns);
  void CutBus(uint64_t for_ns);
  void LoseWrites(uint64_t for_ns);
  void ShiftClock(uint64_t for_ns);
  void SayNo(uint64_t for_ns);
  void FlushScripts(uint64_t for_ns);
  void FlushData(uint64_t for_ns);
  void Migrate(uint64_t for_ns);
  void Misdirect(uint64_t for_ns);
  void PlannedFailover(uint64_t for_ns);
  // Of hosts.
  void PauseHost(uint64_t for_ns);
  void KillDaemon(uint64_t for_ns);
  void RestartDaemon(uint64_t for_ns);
  void KillClients(uint64_t for_ns);
  void ChangeRules(uint64_t for_ns);

  // Some links: one, all of a host, all of a node, or all. `heal`: what stood still goes on.
  void OnLinks(uint64_t for_ns, const std::function<void(Link&)>& begin,
               const std::function<void(Link&)>& end);
  int AnyNode() { return static_cast<int>(random_.Below(static_cast<uint64_t>(Nodes()))); }
  int AnyPrimary();
  std::vector<config::RuleConfig> OtherRules(const Host& host);
  Host& AnyHost() { return *(*world_.hosts)[random_.Below(world_.hosts->size())]; }
  int Nodes() const { return world_.cluster->size(); }

  const World world_;
  Random random_;
  uint64_t end_ns_ = 0;
  std::vector<std::string> names_;
};

}  // namespace sluice::simulation
