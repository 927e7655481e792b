// Virtual time: what happens when. Events of one instant run in the order in which they were made,
// so a run is the same each time.
#pragma once

#include <cstdint>
#include <functional>
#include <queue>
#include <utility>
#include <vector>

namespace sluice::simulation {

inline constexpr uint64_t kUs = 1'000;
inline constexpr uint64_t kMs = 1'000'000;
inline constexpr uint64_t kSecond = 1'000'000'000;
// Unix time at a run's beginning: a few seconds before a full minute.
inline constexpr uint64_t kEpochUs = 1'700'000'030'000'000;

class Timeline {
 public:
  uint64_t now_ns() const { return now_ns_; }
  uint64_t events() const { return events_; }

  void At(uint64_t at_ns, std::function<void()> run) {
    queue_.push({at_ns < now_ns_ ? now_ns_ : at_ns, made_++, std::move(run)});
  }
  void After(uint64_t ns, std::function<void()> run) { At(now_ns_ + ns, std::move(run)); }

  // Runs what is due up to `until_ns`; false when `go_on` said no after an event.
  bool RunUntil(uint64_t until_ns, const std::function<bool()>& go_on) {
    while (!queue_.empty() && queue_.top().at_ns <= until_ns) {
      // The queue's order does not look at what is moved out.
      Event event = std::move(const_cast<Event&>(queue_.top()));
      queue_.pop();
      now_ns_ = event.at_ns;
      ++events_;
      event.run();
      if (!go_on()) return false;
    }
    now_ns_ = until_ns;
    return true;
  }

 private:
  struct Event {
    uint64_t at_ns;
    uint64_t made;
    std::function<void()> run;
    bool operator<(const Event& other) const {  // the queue gives the largest first
      return at_ns != other.at_ns ? at_ns > other.at_ns : made > other.made;
    }
  };
  std::priority_queue<Event> queue_;
  uint64_t now_ns_ = 0;
  uint64_t made_ = 0;
  uint64_t events_ = 0;
};

}  // namespace sluice::simulation
