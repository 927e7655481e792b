#include "daemon/config/calendars.h"

#include <algorithm>

namespace sluice::config {

absl::Status Calendars::Set(const Config& config, uint64_t now_ns) {
  std::vector<Calendar> calendars;
  for (const CalendarConfig& wanted : config.calendars) {
    absl::StatusOr<Calendar> made = Calendar::Make(wanted);
    if (!made.ok()) return made.status();
    calendars.push_back(*std::move(made));
  }
  calendars_ = std::move(calendars);
  Publish(now_ns);
  return absl::OkStatus();
}

void Calendars::Publish(uint64_t now_ns) {
  published_us_ = offset_us_();
  tables_.clear();
  for (const Calendar& calendar : calendars_) {
    tables_.push_back(
        std::make_shared<const CalendarTable>(calendar, published_us_, now_ns, shm::kCalendarEnds));
    std::vector<uint64_t> ends_ns;
    for (const CalendarTable::Entry& entry : tables_.back()->entries()) {
      if (ends_ns.size() == shm::kCalendarEnds) break;
      if (entry.end_ns > now_ns) ends_ns.push_back(entry.end_ns);
    }
    control_->SetCalendar(static_cast<uint32_t>(tables_.size() - 1), ends_ns);
  }
}

bool Calendars::Renew(uint64_t now_ns) {
  if (calendars_.empty()) return false;
  const int64_t moved_us = offset_us_() - published_us_;
  const bool is_set = moved_us > kNoticedUs || moved_us < -kNoticedUs;
  const bool is_over = std::any_of(tables_.begin(), tables_.end(), [&](const auto& table) {
    return table->entries()[1].end_ns <= now_ns;
  });
  if (!is_set && !is_over) return false;
  Publish(now_ns);
  return true;
}

}  // namespace sluice::config
