#include "daemon/config/calendar.h"

#include <algorithm>
#include <utility>

#include "absl/status/status.h"
#include "absl/time/civil_time.h"
#include "daemon/config/text.h"
#include "shm/window.h"

namespace sluice::config {
namespace {

constexpr int64_t kEpochYear = 1970;
const absl::CivilDay kFirstMonday(1970, 1, 5);

// The day in a month, or its last where it has fewer.
absl::CivilDay DayOf(absl::CivilMonth month, int day) {
  const absl::CivilDay last = absl::CivilDay(month + 1) - 1;
  return std::min(absl::CivilDay(month.year(), month.month(), 1) + (day - 1), last);
}

// About which number the window of a civil day has; one off at most.
int64_t Guess(const CalendarConfig& config, absl::CivilDay day) {
  switch (config.unit) {
    case CalendarUnit::kDay:
      return day - absl::CivilDay(kEpochYear, 1, 1);
    case CalendarUnit::kWeek:
      return (day - kFirstMonday - config.weekday) / 7;
    case CalendarUnit::kMonth:
      return absl::CivilMonth(day) - absl::CivilMonth(kEpochYear, 1);
    case CalendarUnit::kYear:
      return day.year() - kEpochYear;
  }
  return 0;
}

}  // namespace

uint64_t CalendarPeriodNs(CalendarUnit unit) {
  constexpr uint64_t kDayNs = 86'400'000'000'000;
  constexpr uint64_t kDays[] = {1, 7, 31, 366};
  return kDays[static_cast<size_t>(unit)] * kDayNs;
}

std::string CalendarConfig::ToString() const {
  constexpr std::string_view kUnits[] = {"day", "week", "month", "year"};
  return Cat(kUnits[static_cast<size_t>(unit)], " ", time_zone, " ", month, " ", day, " ", minute,
             " ", weekday);
}

absl::StatusOr<Calendar> Calendar::Make(const CalendarConfig& config) {
  absl::TimeZone zone;
  if (!absl::LoadTimeZone(config.time_zone, &zone)) {
    return absl::NotFoundError(Cat(Shown(config.time_zone), " is no time zone of this machine"));
  }
  return Calendar(config, zone);
}

absl::Time Calendar::Begin(int64_t number) const {
  absl::CivilDay day;
  switch (config_.unit) {
    case CalendarUnit::kDay:
      day = absl::CivilDay(kEpochYear, 1, 1) + number;
      break;
    case CalendarUnit::kWeek:
      day = kFirstMonday + config_.weekday + 7 * number;
      break;
    case CalendarUnit::kMonth:
      day = DayOf(absl::CivilMonth(kEpochYear, 1) + number, config_.day);
      break;
    case CalendarUnit::kYear:
      day = DayOf(absl::CivilMonth(kEpochYear + number, config_.month), config_.day);
      break;
  }
  const absl::CivilSecond at = absl::CivilSecond(day) + 60 * config_.minute;
  const absl::TimeZone::TimeInfo info = zone_.At(at);
  return info.kind == absl::TimeZone::TimeInfo::SKIPPED ? info.trans : info.pre;
}

CalendarWindow Calendar::At(int64_t unix_us) const {
  const absl::Time instant = absl::FromUnixMicros(unix_us);
  int64_t number = Guess(config_, absl::CivilDay(absl::ToCivilSecond(instant, zone_)));
  while (Begin(number) > instant) --number;
  while (Begin(number + 1) <= instant) ++number;
  return {absl::ToUnixMicros(Begin(number)), absl::ToUnixMicros(Begin(number + 1))};
}

CalendarTable::CalendarTable(const Calendar& calendar, int64_t offset_us, uint64_t now_ns,
                             size_t ends)
    : offset_us_(offset_us) {
  const auto add = [&](const CalendarWindow& window) {
    const int64_t end_us = window.end_us - offset_us;
    entries_.push_back({window, end_us > 0 ? static_cast<uint64_t>(end_us) * 1000 : kLongOverNs});
  };
  CalendarWindow window = calendar.At(static_cast<int64_t>(now_ns / 1000) + offset_us);
  add(calendar.At(window.begin_us - 1));
  for (size_t i = 0; i < ends; ++i) {
    add(window);
    window = calendar.At(window.end_us);
  }
}

const CalendarTable::Entry* CalendarTable::Near(uint64_t end_ns) const {
  for (const Entry& entry : entries_) {
    if (entry.end_ns == kLongOverNs) continue;
    if (shm::window::IsNear(entry.end_ns, end_ns, shm::window::kCalendarSlackNs)) return &entry;
  }
  return nullptr;
}

uint64_t Moved(const CalendarTable& former, const CalendarTable& now, uint64_t end_ns) {
  const CalendarTable::Entry* was = former.Near(end_ns);
  const CalendarTable::Entry* is = was == nullptr ? nullptr : now.EndingAt(was->window.end_us);
  return is == nullptr ? end_ns : is->end_ns;
}

const CalendarTable::Entry* CalendarTable::EndingAt(int64_t end_us) const {
  for (const Entry& entry : entries_) {
    if (entry.window.end_us == end_us) return &entry;
  }
  return nullptr;
}

}  // namespace sluice::config
