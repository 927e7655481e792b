#include "tests/simulation/faults.h"

#include <algorithm>

namespace sluice::simulation {
namespace {

constexpr double kKindsOfARun = 0.4;
constexpr uint64_t kFaultsLeast = 3;
constexpr uint64_t kFaultsMost = 14;

}  // namespace

const std::vector<FaultPlan::Kind>& FaultPlan::Kinds() {
  static const std::vector<Kind> kinds = {
      {"delay", kSecond / 2, 6 * kSecond, &FaultPlan::Delay},
      {"cut", kSecond / 10, 8 * kSecond, &FaultPlan::Cut},
      {"truncate", kSecond, 6 * kSecond, &FaultPlan::Truncate},
      {"half close", kSecond, 6 * kSecond, &FaultPlan::HalfClose},
      {"swallow", kSecond, 6 * kSecond, &FaultPlan::Swallow},
      {"drip", kSecond, 5 * kSecond, &FaultPlan::Drip},
      {"reset", kSecond, 8 * kSecond, &FaultPlan::Reset},
      {"kill node", kSecond / 5, 10 * kSecond, &FaultPlan::KillNode},
      {"pause node", kSecond / 5, 10 * kSecond, &FaultPlan::PauseNode},
      {"slow node", kSecond, 6 * kSecond, &FaultPlan::SlowNode},
      {"cut bus", kSecond, 10 * kSecond, &FaultPlan::CutBus},
      {"lose writes", 4 * kSecond, 10 * kSecond, &FaultPlan::LoseWrites},
      {"shift clock", kSecond / 10, 8 * kSecond, &FaultPlan::ShiftClock},
      {"say no", kSecond / 5, 5 * kSecond, &FaultPlan::SayNo},
      {"flush scripts", 1, 1, &FaultPlan::FlushScripts},
      {"flush data", 1, 1, &FaultPlan::FlushData},
      {"migrate", kSecond / 10, 4 * kSecond, &FaultPlan::Migrate},
      {"misdirect", 1, 1, &FaultPlan::Misdirect},
      {"planned failover", 1, 1, &FaultPlan::PlannedFailover},
      {"pause host", kSecond / 2, 30 * kSecond, &FaultPlan::PauseHost},
      {"kill daemon", kSecond / 20, 6 * kSecond, &FaultPlan::KillDaemon},
      {"restart daemon", kSecond, 4 * kSecond, &FaultPlan::RestartDaemon},
      {"kill clients", 2 * kSecond, 10 * kSecond, &FaultPlan::KillClients},
      {"change rules", kSecond / 20, 8 * kSecond, &FaultPlan::ChangeRules},
  };
  return kinds;
}

void FaultPlan::Schedule(uint64_t from_ns, uint64_t until_ns) {
  std::vector<const Kind*> drawn;
  for (const Kind& kind : Kinds()) {
    if (random_.Chance(kKindsOfARun)) drawn.push_back(&kind);
  }
  end_ns_ = until_ns;
  if (drawn.empty()) return;
  std::vector<uint64_t> begins(random_.Between(kFaultsLeast, kFaultsMost));
  for (uint64_t& at_ns : begins) at_ns = random_.Between(from_ns, until_ns);
  std::sort(begins.begin(), begins.end());
  for (const uint64_t at_ns : begins) {
    const Kind* kind = drawn[random_.Below(drawn.size())];
    const uint64_t for_ns = random_.Between(kind->least_ns, kind->most_ns);
    names_.emplace_back(kind->name);
    end_ns_ = std::max(end_ns_, at_ns + for_ns);
    world_.timeline->At(at_ns, [this, kind, for_ns] {
      world_.trace->Note(kind->name, for_ns);
      (this->*kind->begin)(for_ns);
    });
  }
}

int FaultPlan::AnyPrimary() {
  std::vector<int> primaries;
  for (int i = 0; i < Nodes(); ++i) {
    if (world_.cluster->config().primary_of[static_cast<size_t>(i)] == kNobody) {
      primaries.push_back(i);
    }
  }
  return primaries[random_.Below(primaries.size())];
}

void FaultPlan::OnLinks(uint64_t for_ns, const std::function<void(Link&)>& begin,
                        const std::function<void(Link&)>& end) {
  const int one_host = static_cast<int>(random_.Below(world_.hosts->size()));
  const int one_node = AnyNode();
  const bool all_hosts = random_.Chance(0.5);
  const bool all_nodes = random_.Chance(0.3);
  for (int h = 0; h < world_.network->hosts(); ++h) {
    for (int n = 0; n < Nodes(); ++n) {
      if ((!all_hosts && h != one_host) || (!all_nodes && n != one_node)) continue;
      begin(world_.network->link(h, n));
      world_.timeline->After(for_ns, [this, h, n, end] {
        end(world_.network->link(h, n));
        world_.network->Heal(h, n);
      });
    }
  }
}

void FaultPlan::Delay(uint64_t for_ns) {
  const uint64_t least_ns = random_.Below(100 * kMs);
  const uint64_t most_ns = least_ns + random_.Below(400 * kMs);
  OnLinks(
      for_ns,
      [=](Link& link) {
        link.least_ns = least_ns;
        link.most_ns = most_ns;
      },
      [](Link& link) {
        link.least_ns = Link().least_ns;
        link.most_ns = Link().most_ns;
      });
}

void FaultPlan::Cut(uint64_t for_ns) {
  const uint64_t way = random_.Below(3);
  OnLinks(
      for_ns,
      [way](Link& link) {
        link.cut_out = way != 1;
        link.cut_back = way != 0;
      },
      [](Link& link) { link.cut_out = link.cut_back = false; });
}

void FaultPlan::Truncate(uint64_t for_ns) {
  const double chance = random_.Unit() / 2;
  OnLinks(
      for_ns, [chance](Link& link) { link.truncate = chance; },
      [](Link& link) { link.truncate = 0; });
}

void FaultPlan::HalfClose(uint64_t for_ns) {
  const double chance = random_.Unit() / 2;
  OnLinks(
      for_ns, [chance](Link& link) { link.half_close = chance; },
      [](Link& link) { link.half_close = 0; });
}

void FaultPlan::Swallow(uint64_t for_ns) {
  const double chance = random_.Unit() / 5;
  OnLinks(
      for_ns, [chance](Link& link) { link.swallow = chance; },
      [](Link& link) { link.swallow = 0; });
}

void FaultPlan::Drip(uint64_t for_ns) {
  const uint64_t gap_ns = random_.Between(kMs / 10, 30 * kMs);
  OnLinks(
      for_ns, [gap_ns](Link& link) { link.drip_ns = gap_ns; },
      [](Link& link) { link.drip_ns = 0; });
}

// Again and again: each makes daemons ask for the map anew, and the nodes may not be of one mind.
void FaultPlan::Reset(uint64_t for_ns) {
  const uint64_t gap_ns = random_.Between(100 * kMs, kSecond);
  for (uint64_t at_ns = 0; at_ns < for_ns; at_ns += gap_ns) {
    world_.timeline->After(at_ns, [this] {
      const int host = static_cast<int>(random_.Below(world_.hosts->size()));
      for (int node = 0; node < Nodes(); ++node) {
        if (random_.Chance(0.5)) world_.network->Reset(host, node);
      }
    });
  }
}

void FaultPlan::KillNode(uint64_t for_ns) {
  const int node = random_.Chance(0.7) ? AnyPrimary() : AnyNode();
  if (!world_.cluster->node(node).alive()) return;
  const bool empty = random_.Chance(0.2);
  const uint64_t loading_ns = random_.Below(kSecond);
  world_.cluster->Kill(node, /*silent=*/random_.Chance(0.3));
  // It has loaded its data when the fault is over.
  world_.timeline->After(for_ns - std::min(for_ns, loading_ns), [this, node, empty, loading_ns] {
    if (!world_.cluster->node(node).alive()) world_.cluster->Restart(node, empty, loading_ns);
  });
}

void FaultPlan::PauseNode(uint64_t for_ns) {
  const int node = random_.Chance(0.7) ? AnyPrimary() : AnyNode();
  if (!world_.cluster->node(node).alive()) return;
  world_.cluster->Pause(node);
  world_.timeline->After(for_ns, [this, node] { world_.cluster->Resume(node); });
}

void FaultPlan::SlowNode(uint64_t for_ns) {
  const int node = AnyNode();
  world_.cluster->node(node).slow_ns = random_.Below(200 * kMs);
  world_.timeline->After(for_ns, [this, node] { world_.cluster->node(node).slow_ns = 0; });
}

// It does not hear of the others and yet serves whoever reaches it: two may take themselves for the
// primary.
void FaultPlan::CutBus(uint64_t for_ns) {
  const int node = random_.Chance(0.8) ? AnyPrimary() : AnyNode();
  world_.cluster->CutBus(node, true);
  world_.timeline->After(for_ns, [this, node] { world_.cluster->CutBus(node, false); });
}

// Its replica stays behind, then takes over: what was acknowledged meanwhile is lost.
void FaultPlan::LoseWrites(uint64_t for_ns) {
  const int node = AnyPrimary();
  const uint64_t behind_ns = random_.Between(kSecond / 10, 3 * kSecond);
  world_.cluster->StallReplication(node, world_.timeline->now_ns() + for_ns);
  world_.timeline->After(behind_ns, [this, node] {
    if (world_.cluster->node(node).alive()) world_.cluster->Kill(node, /*silent=*/false);
  });
  world_.timeline->After(for_ns, [this, node] {
    if (!world_.cluster->node(node).alive()) world_.cluster->Restart(node, /*empty=*/false, 0);
  });
}

void FaultPlan::ShiftClock(uint64_t for_ns) {
  const int node = AnyNode();
  world_.cluster->node(node).clock_offset_us =
      static_cast<int64_t>(random_.Below(10'000'000)) - 5'000'000;
  world_.timeline->After(for_ns, [this, node, back = random_.Chance(0.7)] {
    if (back) world_.cluster->node(node).clock_offset_us = 0;
  });
}

void FaultPlan::SayNo(uint64_t for_ns) {
  static const char* const kTexts[] = {
      "OOM command not allowed when used memory > 'maxmemory'.",
      "MISCONF Redis is configured to save RDB snapshots, but it is currently unable to persist.",
      "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
      "NOPERM this user has no permissions to run the 'evalsha' command",
      "NOREPLICAS Not enough good replicas to write.",
      "TRYAGAIN Multiple keys request during rehashing of slot",
      "READONLY You can't write against a read only replica.",
      "ERR something that nobody has heard of",
  };
  const int node = random_.Chance(0.8) ? AnyPrimary() : AnyNode();
  world_.cluster->node(node).says_no = kTexts[random_.Below(std::size(kTexts))];
  world_.timeline->After(for_ns, [this, node] { world_.cluster->node(node).says_no.clear(); });
}

void FaultPlan::FlushScripts(uint64_t) { world_.cluster->node(AnyNode()).scripts.clear(); }

void FaultPlan::FlushData(uint64_t) { world_.cluster->Flush(AnyPrimary()); }

void FaultPlan::Migrate(uint64_t for_ns) {
  const auto shard = static_cast<uint32_t>(random_.Below(world_.cluster->shards().keys.size()));
  world_.cluster->Migrate(shard, AnyPrimary(), std::max<uint64_t>(for_ns / 3, 1));
}

void FaultPlan::Misdirect(uint64_t) {
  const auto shard = static_cast<uint32_t>(random_.Below(world_.cluster->shards().keys.size()));
  world_.cluster->Misdirect(shard, AnyPrimary());
}

void FaultPlan::PlannedFailover(uint64_t) { world_.cluster->PlannedFailover(AnyPrimary()); }

void FaultPlan::PauseHost(uint64_t for_ns) { AnyHost().Pause(world_.timeline->now_ns() + for_ns); }

void FaultPlan::KillDaemon(uint64_t for_ns) {
  Host& host = AnyHost();
  host.KillDaemon();
  world_.timeline->After(for_ns, [&host] { host.StartDaemon(); });
}

// As an upgrade does it: the new one starts when the old one is done, or its time is over.
void FaultPlan::RestartDaemon(uint64_t for_ns) {
  Host& host = AnyHost();
  const uint64_t until_ns = world_.timeline->now_ns() + for_ns / 2;
  host.StopDaemon(until_ns);
  world_.timeline->After(for_ns, [&host] {
    host.KillDaemon();
    host.StartDaemon();
  });
}

void FaultPlan::KillClients(uint64_t for_ns) {
  Host& host = AnyHost();
  host.set_kill_chance(random_.Unit() / 4);
  world_.timeline->After(for_ns, [&host] { host.set_kill_chance(0); });
}

// Each limit somewhere between a tenth and three times what it was; perhaps one rule less, and one
// more.
std::vector<config::RuleConfig> FaultPlan::OtherRules(const Host& host) {
  std::vector<config::RuleConfig> rules = host.first_rules();
  for (config::RuleConfig& rule : rules) {
    // Hosts that know of different limits may let more in than the lowest.
    if (rule.kind == shm::Kind::kInFlight || rule.strict) continue;
    // What is told of a quota is cut to what its limit lets a host believe.
    if (rule.limit->calendar != 0) continue;
    const uint64_t tenths = random_.Between(1, 30);
    rule.limit->limit = std::max<uint64_t>(rule.limit->limit * tenths / 10, 1);
    rule.limit->burst = std::max<uint64_t>(rule.limit->burst * random_.Between(1, 30) / 10, 3);
    if (shm::IsCountedInWindows(rule.kind)) rule.limit->limit = rule.limit->burst;
  }
  if (random_.Chance(0.4)) {
    config::RuleConfig extra = rules[0];
    extra.name = random_.Chance(0.5) ? "extra-a" : "extra-b";
    rules.insert(rules.begin(), extra);
  }
  if (random_.Chance(0.4)) {
    rules.erase(rules.begin() + static_cast<std::ptrdiff_t>(random_.Below(rules.size())));
  }
  return rules;
}

// On some hosts, in the midst of traffic and batches; afterwards those of the beginning again.
void FaultPlan::ChangeRules(uint64_t for_ns) {
  const bool all = random_.Chance(0.5);
  Host& one = AnyHost();
  for (const std::unique_ptr<Host>& host : *world_.hosts) {
    if (!all && host.get() != &one) continue;
    host->ChangeRules(OtherRules(*host));
    world_.timeline->After(for_ns, [host = host.get()] { host->ChangeRules(host->first_rules()); });
  }
}

}  // namespace sluice::simulation
