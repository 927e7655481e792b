// Windows whose boundaries follow a calendar: which window an instant lies in, and when it begins
// and ends. The same on all hosts that have the same time zone data, whatever their clocks say.
// Pure but for reading that data when a calendar is made; immutable after, so safe to share.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "daemon/config/config.h"

namespace sluice::config {

// [begin, end), microseconds of Unix time.
struct CalendarWindow {
  int64_t begin_us;
  int64_t end_us;
};

class Calendar {
 public:
  // NotFound when this machine knows no such time zone.
  static absl::StatusOr<Calendar> Make(const CalendarConfig& config);

  // The window in which the instant lies. A boundary that a change to summer time skips is the
  // instant of that change; of one that comes twice, the first.
  CalendarWindow At(int64_t unix_us) const;

 private:
  Calendar(const CalendarConfig& config, absl::TimeZone zone) : config_(config), zone_(zone) {}
  // When the window of that number begins. Never falls as numbers rise.
  absl::Time Begin(int64_t number) const;

  CalendarConfig config_;
  absl::TimeZone zone_;
};

// What the daemon has published of one calendar: some windows, and where they end on this host's
// monotonic clock, as the wall clock stood then. Immutable.
class CalendarTable {
 public:
  // No word tells of a window that was over before this machine was started.
  static constexpr uint64_t kLongOverNs = 1;

  struct Entry {
    CalendarWindow window;
    uint64_t end_ns;  // CLOCK_MONOTONIC; kLongOverNs: before that clock began
  };

  // From the window before that of now on, `ends` of them from now. `offset_us`: by how much Unix
  // time is ahead of the monotonic clock.
  CalendarTable(const Calendar& calendar, int64_t offset_us, uint64_t now_ns, size_t ends);

  // By the end of a window as a slot's word tells it; null when none ends near.
  const Entry* Near(uint64_t end_ns) const;
  // By its end exactly.
  const Entry* EndingAt(int64_t end_us) const;

  // The one before now's first.
  const std::vector<Entry>& entries() const { return entries_; }
  int64_t offset_us() const { return offset_us_; }

 private:
  std::vector<Entry> entries_;
  int64_t offset_us_;
};

// Where a window ends now that ended at `end_ns` by a former table of the same calendar; `end_ns`
// itself where either knows no such window.
uint64_t Moved(const CalendarTable& former, const CalendarTable& now, uint64_t end_ns);

}  // namespace sluice::config
