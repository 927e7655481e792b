// The calendars that the rules in force follow: where their windows end on this host's monotonic
// clock, published to the clients, and anew when a window is over or the wall clock was set.
//
// Boundaries are instants of Unix time, the same on all hosts; clients look at the monotonic clock
// only. It stands still while the machine sleeps and does not follow when the wall clock is set, so
// by each of the two what is between them changes, and ends move with it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "daemon/config/calendar.h"
#include "daemon/config/config.h"
#include "shm/segment.h"

namespace sluice::config {

// Single-threaded, or under its owner's lock.
class Calendars {
 public:
  using Tables = std::vector<std::shared_ptr<const CalendarTable>>;

  // `control` outlives it. `offset_us`: by how much Unix time is ahead of
  // CLOCK_MONOTONIC now, microseconds.
  Calendars(shm::ControlWriter* control, std::function<int64_t()> offset_us)
      : control_(control), offset_us_(std::move(offset_us)) {}

  // Publishes those of `config`, by their places. NotFound when a time zone is gone.
  absl::Status Set(const Config& config, uint64_t now_ns);
  // True when they were published anew: one is over, or the wall clock was set by more than
  // kNoticedUs. Cheap otherwise.
  bool Renew(uint64_t now_ns);
  const Tables& tables() const { return tables_; }  // by place

 private:
  void Publish(uint64_t now_ns);

  shm::ControlWriter* control_;
  std::function<int64_t()> offset_us_;
  std::vector<Calendar> calendars_;
  Tables tables_;
  int64_t published_us_ = 0;  // the offset of then
};

// Below the step on which ends of windows stand.
inline constexpr int64_t kNoticedUs = 4000;

}  // namespace sluice::config
