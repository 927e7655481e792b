#include <algorithm>
#include <optional>
#include <set>
#include <string>
#include <string_view>

#include "absl/strings/ascii.h"
#include "daemon/config/calendar.h"
#include "daemon/config/parse_rules.h"
#include "daemon/config/text.h"

namespace sluice::config {
namespace {

// "HH:MM", as minutes.
std::optional<int> MinuteOf(const std::string& text) {
  const auto digit = [&](size_t i) {
    return absl::ascii_isdigit(static_cast<unsigned char>(text[i])) ? text[i] - '0' : 100;
  };
  if (text.size() != 5 || text[2] != ':') return std::nullopt;
  const int hour = 10 * digit(0) + digit(1);
  const int minute = 10 * digit(3) + digit(4);
  if (hour > 23 || minute > 59) return std::nullopt;
  return 60 * hour + minute;
}

void ReadInt(Section* section, std::string_view name, int* out) {
  auto value = static_cast<uint64_t>(*out);
  section->Read(name, &value);
  *out = static_cast<int>(value);
}

std::optional<CalendarUnit> UnitOf(uint64_t period_ns) {
  for (const CalendarUnit unit :
       {CalendarUnit::kDay, CalendarUnit::kWeek, CalendarUnit::kMonth, CalendarUnit::kYear}) {
    if (CalendarPeriodNs(unit) == period_ns) return unit;
  }
  return std::nullopt;
}

// What is said and means nothing for windows of these units.
void WarnOfIdle(Section* rule, const std::set<CalendarUnit>& units) {
  using enum CalendarUnit;
  struct Part {
    std::string_view key;
    std::set<CalendarUnit> units;
    std::string_view of;
  };
  const Part parts[] = {{"week_start", {kWeek}, "weeks"},
                        {"anchor_month", {kYear}, "years"},
                        {"anchor_day", {kMonth, kYear}, "months and years"}};
  const YAML::Node node = rule->Value("calendar");
  for (const Part& part : parts) {
    const bool is_used = std::any_of(units.begin(), units.end(),
                                     [&](CalendarUnit unit) { return part.units.contains(unit); });
    if (is_used || !node.IsMap() || !node[std::string(part.key)].IsDefined()) continue;
    rule->Warning("calendar", Cat("`", part.key, "` is for windows of ", part.of),
                  "remove it, or write the limit in such a period");
  }
}

}  // namespace

bool ParseCalendar(Section* rule, CalendarConfig* calendar, Findings* findings) {
  const YAML::Node node = rule->Value("calendar");
  if (!node.IsDefined()) return false;
  Section section(node, rule->MarkOf("calendar"), rule->PathOf("calendar"),
                  rule->SpecPathOf("calendar"), findings);
  if (section.Read("time_zone", &calendar->time_zone)) {
    if (const auto made = Calendar::Make(*calendar); !made.ok()) {
      section.Problem("time_zone", std::string(made.status().message()),
                      "write a name such as Europe/Berlin, or install tzdata");
    }
  }
  ReadInt(&section, "anchor_day", &calendar->day);
  ReadInt(&section, "anchor_month", &calendar->month);
  std::string time;
  if (section.Read("anchor_time", &time)) {
    const std::optional<int> minute = MinuteOf(time);
    if (!minute) {
      section.Problem("anchor_time", Cat(Shown(time), " is no time of the day"),
                      "write hours and minutes, as \"06:00\"");
    }
    calendar->minute = minute.value_or(0);
  }
  size_t weekday = 0;
  if (section.ReadChoice("week_start", &weekday)) calendar->weekday = static_cast<int>(weekday);
  return true;
}

void FollowCalendar(Section* section, CalendarConfig calendar, Config* config, RuleConfig* rule) {
  if (rule->kind != shm::Kind::kFixedWindow) {
    section->Problem("calendar", "is for fixed windows: no other algorithm has an end",
                     "write `algorithm: fixed_window`, or remove the line");
    return;
  }
  std::set<CalendarUnit> units;
  const auto follow = [&](LimitConfig* limit) {
    const std::optional<CalendarUnit> unit = UnitOf(limit->period_ns);
    if (!unit) {
      section->Problem("calendar", Cat("has no windows of ", FormatDuration(limit->period_ns)),
                       "write limits per day, week, month or year, as `limit: 1000/month`");
      return;
    }
    calendar.unit = *unit;
    units.insert(*unit);
    std::vector<CalendarConfig>& all = config->calendars;
    auto at = std::find(all.begin(), all.end(), calendar);
    if (at == all.end()) {
      if (all.size() == shm::kMaxCalendars) {
        section->Problem("calendar", Cat("is one more than the ", shm::kMaxCalendars, " that fit"),
                         "let rules share calendars: zone, anchors and unit");
        return;
      }
      at = all.insert(all.end(), calendar);
    }
    limit->calendar = static_cast<uint16_t>(at - all.begin() + 1);
  };
  ForEachLimit(*rule, follow);
  if (!units.empty()) WarnOfIdle(section, units);
}

}  // namespace sluice::config
