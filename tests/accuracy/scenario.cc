#include "tests/accuracy/scenario.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <numeric>
#include <utility>

#include "tests/accuracy/trap.h"

namespace sluice::accuracy {
namespace {

constexpr double kZipfExponent = 1.1;
constexpr double kHotShare = 0.9;
constexpr uint64_t kMoveNs = 2 * kSecondNs;
constexpr uint64_t kHopNs = kSecondNs;
constexpr double kOnShare = 0.25;
constexpr double kOnMeanNs = 100.0 * kMilliNs;
constexpr double kOffMeanNs = 300.0 * kMilliNs;
// All at once, and nearly nobody for about a lifetime of a lease: the bucket is full again.
constexpr uint64_t kPulseLeastNs = 20 * kMilliNs;
constexpr double kPulseMeanNs = 100.0 * kMilliNs;
constexpr uint64_t kLullLeastNs = 50 * kMilliNs;
constexpr double kLullMeanNs = 600.0 * kMilliNs;
constexpr double kLoneShare = 0.6;  // of the pulses: at one host
constexpr double kRampLeast = 0.2;
constexpr double kRampMost = 3;
constexpr double kRampNs = 20.0 * kSecondNs;

constexpr uint64_t kSpikeGapNs = kMilliNs / 10;  // within a spike

// A daemon that was cut off tries again each second, from a connection that is to be made anew.
constexpr uint64_t kLateNs = 1'500 * kMilliNs;

bool IsZipf(Pattern p) { return p == Pattern::kZipf || p == Pattern::kMove || p == Pattern::kRamp; }

const char* NameOf(Pattern p) {
  static constexpr const char* kNames[] = {"uni",  "zipf",  "hot",   "move",  "hop", "onoff",
                                           "ramp", "flash", "pulse", "spike", "trap"};
  return kNames[static_cast<size_t>(p)];
}

Scenario Make(Pattern pattern, uint32_t hosts, double load, const char* extra = "") {
  Scenario s;
  s.pattern = pattern;
  s.hosts = hosts;
  s.load = load;
  std::string times = std::to_string(load);
  times.erase(times.find_last_not_of('0') + 1);
  if (times.back() == '.') times.pop_back();
  s.name = std::string(NameOf(pattern)) + "-" + std::to_string(hosts) + "-x" + times;
  if (*extra != '\0') s.name += std::string("-") + extra;
  return s;
}

Scenario Low(Scenario s) {
  s.limit_per_s = 10;
  s.burst = 10;
  s.wait_ns = 20 * kMilliNs;
  s.duration_ns = 300 * kSecondNs;
  return s;
}

// A second of the limit as the burst, and seldom a call: what Redis and a host believe of each
// other differs for long. Here bugs show that busy buckets hide.
Scenario Slow(Scenario s) {
  s.limit_per_s = 200;
  s.burst = 200;
  s.duration_ns = 300 * kSecondNs;
  s.loss = 0.1;
  s.stall = 0.1;
  s.stall_again = 0.8;
  s.crash = true;
  return s;
}

void AddMore(std::vector<Scenario>* all) {
  using enum Pattern;
  for (const double load : {0.9, 2.0}) {
    Scenario s = Make(kUni, 100, load, "tcp");
    s.stall = 0.002;
    s.stall_again = 0.3;
    all->push_back(s);
    s = Make(kUni, 100, load, "adopt");
    s.adopt = true;
    all->push_back(s);
    s = Make(kUni, 100, load, "cpu");
    s.service_ns = 500'000;  // 2,000 calls a second, and a hundred hosts
    all->push_back(s);
    s = Make(kUni, 100, load, "clock-back");
    s.jump = Jump::kBack;
    all->push_back(s);
    s = Make(kUni, 100, load, "clock-forward");
    s.jump = Jump::kForward;
    all->push_back(s);
    s = Make(kUni, 10, load, "50keys");
    s.keys = 50;
    s.limit_per_s = 500;
    s.burst = 100;
    all->push_back(s);
    s = Make(kUni, 10'000, load);
    s.limit_per_s = 50'000;
    s.burst = 20'000;
    s.duration_ns = 10 * kSecondNs;
    all->push_back(s);
  }
  // A page that asks for ten things at once, each ten seconds, from whichever host.
  for (const uint32_t hosts : {2, 10, 100}) {
    Scenario s = Low(Make(kSpike, hosts, 0.1));
    s.wait_ns = 0;
    s.burst = 20;
    s.spike = 10;
    all->push_back(s);
  }
  for (const uint32_t hosts : {2, 5}) {
    all->push_back(Slow(Make(kPulse, hosts, 10, "slow")));
    all->push_back(Slow(Make(kHop, hosts, 2, "slow")));
  }
  Scenario s = Make(kTrap, 3, 20);
  s.limit_per_s = 800;
  s.duration_ns = 200 * kSecondNs;
  all->push_back(s);
}

}  // namespace

uint64_t Exponential(simulation::Random* random, double mean_ns) {
  return static_cast<uint64_t>(-std::log(1 - random->Unit()) * mean_ns);
}

std::vector<Scenario> Scenarios() {
  std::vector<Scenario> all;
  using enum Pattern;
  for (const double load : {0.5, 0.9, 1.0, 1.2, 2.0, 5.0}) all.push_back(Make(kUni, 100, load));
  for (const double load : {0.9, 2.0}) {
    for (const Pattern p : {kZipf, kHot, kMove, kHop, kOnOff}) all.push_back(Make(p, 100, load));
  }
  all.push_back(Make(kRamp, 100, 2));
  all.push_back(Make(kFlash, 100, 5));
  for (const uint32_t hosts : {2, 10, 1000}) {
    for (const double load : {0.9, 1.2, 2.0}) all.push_back(Make(kUni, hosts, load));
    all.push_back(Make(kMove, hosts, 2));
    all.push_back(Make(kFlash, hosts, 5));
  }
  for (const double load : {0.9, 2.0}) {
    Scenario s = Make(kUni, 100, load, "loss1");
    s.loss = 0.01;
    all.push_back(s);
    s = Make(kUni, 100, load, "loss5");
    s.loss = 0.05;
    all.push_back(s);
    s = Make(kUni, 100, load, "crash");
    s.crash = true;
    all.push_back(s);
    s = Make(kUni, 100, load, "pause");
    s.pause = true;
    all.push_back(s);
    s.late_ns = kLateNs;
    s.name += "-late";
    all.push_back(s);
    s = Make(kUni, 100, load, "failover");
    s.failover = true;
    all.push_back(s);
    s = Make(kMove, 100, load, "allbad");
    s.crash = s.pause = s.failover = true;
    s.loss = 0.05;
    all.push_back(s);
    s = Make(kUni, 100, load, "cost");
    s.max_cost = 20;
    all.push_back(s);
    // Where what is out and what is refilled meet most often.
    s = Make(kHop, 10, load, "lossy");
    s.loss = 0.2;
    all.push_back(s);
  }
  for (const double load : {0.9, 2.0, 5.0}) all.push_back(Low(Make(kUni, 100, load, "low")));
  // Of the same, without a wait: from when nearly all hosts have seen the key.
  for (const double load : {0.9, 2.0, 5.0}) {
    all.push_back(Low(Make(kUni, 100, load, "low-now")));
    all.back().wait_ns = 0;
    all.back().warm_ns = 60 * kSecondNs;
    all.push_back(Low(Make(kUni, 100, load, "low-new")));
    all.back().wait_ns = 0;
  }
  Scenario s = Low(Make(kHop, 100, 0.9, "low"));
  all.push_back(s);
  s = Low(Make(kUni, 100, 2, "low-cost"));
  s.max_cost = 5;
  all.push_back(s);
  s = Low(Make(kUni, 100, 0.9, "low-bad"));
  s.loss = 0.05;
  s.crash = true;
  all.push_back(s);
  AddMore(&all);
  return all;
}

Arrivals::Arrivals(const Scenario& scenario, simulation::Random random)
    : scenario_(scenario), random_(random) {
  // Costs are 1 in three of four, so that the load is of tokens.
  const double cost = 0.75 + 0.25 * (1 + static_cast<double>(scenario.max_cost)) / 2;
  peak_per_s_ = static_cast<double>(scenario.limit_per_s * scenario.keys) * scenario.load / cost;
  if (scenario.pattern == Pattern::kOnOff) {
    peak_per_s_ /= kOnShare;
    for (uint32_t i = 0; i < scenario.hosts; ++i) {
      const bool on = random_.Chance(kOnShare);
      on_off_.push_back({on, Exponential(&random_, on ? kOnMeanNs : kOffMeanNs)});
    }
  }
  if (scenario.pattern == Pattern::kRamp) peak_per_s_ *= kRampMost / scenario.load;
  ranked_.resize(scenario.hosts);
  std::iota(ranked_.begin(), ranked_.end(), 0);
  double sum = 0;
  for (uint32_t rank = 1; IsZipf(scenario.pattern) && rank <= scenario.hosts; ++rank) {
    zipf_.push_back(sum += std::pow(rank, -kZipfExponent));
  }
  Shuffle();
}

void Arrivals::Shuffle() {
  for (size_t i = ranked_.size(); i > 1; --i) std::swap(ranked_[i - 1], ranked_[random_.Below(i)]);
}

// As a part of the peak.
double Arrivals::RateAt(uint64_t at_ns) {
  if (scenario_.pattern == Pattern::kRamp) {
    const double wave =
        (1 + std::sin(2 * std::numbers::pi * static_cast<double>(at_ns) / kRampNs)) / 2;
    return (kRampLeast + (kRampMost - kRampLeast) * wave) / kRampMost;
  }
  if (scenario_.pattern == Pattern::kFlash) {
    // Idle, then all at once: for 2 s, and for 0.2 s, each 10 s.
    const uint64_t in_turn = at_ns % (10 * kSecondNs);
    const bool lit = (in_turn >= 3 * kSecondNs && in_turn < 5 * kSecondNs) ||
                     (in_turn >= 8 * kSecondNs && in_turn < 8 * kSecondNs + 200 * kMilliNs);
    return lit ? 1 : 0.01;
  }
  if (scenario_.pattern == Pattern::kPulse) {
    while (at_ns >= pulse_end_ns_) {
      pulse_ns_ = pulse_end_ns_ + kLullLeastNs + Exponential(&random_, kLullMeanNs);
      pulse_end_ns_ = pulse_ns_ + kPulseLeastNs + Exponential(&random_, kPulseMeanNs);
      pulse_host_ = random_.Chance(kLoneShare)
                        ? static_cast<uint32_t>(random_.Below(scenario_.hosts))
                        : kAllHosts;
    }
    return at_ns >= pulse_ns_ ? 1 : 0;
  }
  if (scenario_.pattern == Pattern::kTrap) {
    return Trap(scenario_.seed, at_ns).At(at_ns) != nullptr ? 1 : 0;
  }
  return 1;
}

bool Arrivals::Picks(uint64_t at_ns, uint32_t* host) {
  const uint32_t any = static_cast<uint32_t>(random_.Below(scenario_.hosts));
  *host = any;
  switch (scenario_.pattern) {
    case Pattern::kHot:
      if (random_.Chance(kHotShare)) *host = 0;
      return true;
    case Pattern::kHop:
      *host = ranked_[at_ns / kHopNs % scenario_.hosts];
      return true;
    case Pattern::kMove:
    case Pattern::kRamp:
      if (at_ns >= moved_ns_ + kMoveNs) {
        moved_ns_ = at_ns;
        Shuffle();
      }
      [[fallthrough]];
    case Pattern::kZipf: {
      const double at = random_.Unit() * zipf_.back();
      const auto found = std::lower_bound(zipf_.begin(), zipf_.end(), at);
      *host = ranked_[static_cast<size_t>(found - zipf_.begin())];
      return true;
    }
    case Pattern::kOnOff: {
      OnOff& state = on_off_[any];
      while (state.until_ns <= at_ns) {
        state.on = !state.on;
        state.until_ns += Exponential(&random_, state.on ? kOnMeanNs : kOffMeanNs) + 1;
      }
      return state.on;
    }
    case Pattern::kUni:
    case Pattern::kPulse:
      if (pulse_host_ != kAllHosts) *host = pulse_host_;
      return true;
    case Pattern::kTrap: {
      const Trap trap(scenario_.seed, at_ns);
      const Trap::Pulse& pulse = *trap.At(at_ns);
      if (!pulse.others) *host = 0;
      return pulse.first || *host != 0;
    }
    case Pattern::kFlash:
    case Pattern::kSpike:
      return true;
  }
  return true;
}

Arrival Arrivals::NextOfSpikes() {
  if (spike_left_ == 0) {
    spike_left_ = scenario_.spike;
    spike_host_ = static_cast<uint32_t>(random_.Below(scenario_.hosts));
    at_ns_ += Exponential(&random_, 1e9 / peak_per_s_ * static_cast<double>(scenario_.spike));
  }
  --spike_left_;
  at_ns_ += kSpikeGapNs;
  return {.at_ns = at_ns_, .host = spike_host_};
}

Arrival Arrivals::Next() {
  if (scenario_.spike > 0) return NextOfSpikes();
  Arrival a;
  do {  // ends with the duration, since time only grows
    at_ns_ += Exponential(&random_, 1e9 / peak_per_s_) + 1;
    a.at_ns = at_ns_;
  } while (at_ns_ < scenario_.duration_ns &&
           (!random_.Chance(RateAt(at_ns_)) || !Picks(at_ns_, &a.host)));
  a.key = static_cast<uint32_t>(random_.Below(scenario_.keys));
  a.cost = random_.Chance(0.75) ? 1 : random_.Between(1, scenario_.max_cost);
  return a;
}

}  // namespace sluice::accuracy
