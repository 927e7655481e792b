// Time, chance and messages in the tests of fleets.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <queue>
#include <random>
#include <utility>
#include <vector>

namespace sluice::lease {

inline constexpr uint64_t kMilli = 1'000'000;
inline constexpr uint64_t kSecond = 1'000'000'000;
inline constexpr uint64_t kHarvestNs = 2 * kMilli;

struct Events {
  void At(uint64_t at_ns, std::function<void()> run) {
    queue_.push({at_ns, ++order_, std::move(run)});
  }
  // Runs what is due until then, `arrive` whenever `next_ns` says, and `harvest` each kHarvestNs.
  template <class Next, class Arrive, class Harvest>
  void RunUntil(uint64_t end_ns, Next next_ns, Arrive arrive, Harvest harvest) {
    uint64_t arrival_ns = next_ns();
    while (now_ns < end_ns) {
      const uint64_t event_ns = queue_.empty() ? UINT64_MAX : queue_.top().at_ns;
      const uint64_t first_ns = std::min({event_ns, arrival_ns, harvest_ns_, end_ns});
      now_ns = std::max(now_ns, first_ns);
      if (event_ns == first_ns) {
        const auto run = queue_.top().run;
        queue_.pop();
        run();
      } else if (arrival_ns == first_ns) {
        arrive();
        arrival_ns = next_ns();
      } else if (harvest_ns_ == first_ns) {
        harvest();
        harvest_ns_ += kHarvestNs;
      }
    }
  }

  uint64_t now_ns = kSecond;

 private:
  struct Event {
    uint64_t at_ns;
    uint64_t order;
    std::function<void()> run;
    bool operator<(const Event& other) const {
      return at_ns != other.at_ns ? at_ns > other.at_ns : order > other.order;
    }
  };
  std::priority_queue<Event> queue_;
  uint64_t order_ = 0;
  uint64_t harvest_ns_ = kSecond;
};

struct VirtualWorld {
  explicit VirtualWorld(uint64_t seed) : random(seed) {}

  double Unit() { return std::uniform_real_distribution<double>(0, 1)(random); }
  bool Chance(double p) { return p > 0 && Unit() < p; }
  uint64_t Below(uint64_t n) { return random() % n; }
  // When the next of those comes that come each `mean_ns`, as by a Poisson process.
  uint64_t NextNs(double mean_ns) {
    return events.now_ns +
           static_cast<uint64_t>(std::exponential_distribution<double>(1 / mean_ns)(random));
  }
  // So many of all hosts a second; 0: none.
  uint64_t NextArrivalNs(double per_s) { return per_s > 0 ? NextNs(1e9 / per_s) : UINT64_MAX; }
  // A message to a Redis half a millisecond away, and `far_ns`; lost, or up to `late_ns` late.
  void Carry(uint64_t far_ns, uint64_t late_ns, std::function<void()> run) {
    if (Chance(loss)) return;
    uint64_t takes_ns = kMilli / 2 + far_ns + Below(kMilli / 4 + far_ns / 10);
    if (Chance(loss)) takes_ns += Below(late_ns);
    events.At(events.now_ns + takes_ns, std::move(run));
  }

  Events events;
  std::mt19937_64 random;
  double loss = 0;  // of messages, each way; as many come late
};

}  // namespace sluice::lease
