// Where windows by the calendar begin and end: short months, leap years, both changes of summer
// time, weeks of any start; and what the file says of it.
#include "daemon/config/calendar.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/time/time.h"
#include "daemon/config/compile.h"
#include "daemon/config/parse.h"
#include "tests/config/parsed.h"

namespace sluice::config {
namespace {

absl::TimeZone Zone(const std::string& name) {
  absl::TimeZone zone;
  EXPECT_TRUE(absl::LoadTimeZone(name, &zone)) << name;
  return zone;
}

int64_t UnixUs(const std::string& utc) {
  absl::Time time;
  std::string error;
  EXPECT_TRUE(absl::ParseTime("%Y-%m-%d %H:%M", utc, &time, &error)) << error;
  return absl::ToUnixMicros(time);
}

std::string Utc(int64_t unix_us) {
  return absl::FormatTime("%Y-%m-%d %H:%M", absl::FromUnixMicros(unix_us), absl::UTCTimeZone());
}

// The windows from the one in which `utc` lies on, each by its end, in the calendar's own time.
std::vector<std::string> Ends(const CalendarConfig& config, const std::string& utc, int count) {
  const auto calendar = Calendar::Make(config);
  EXPECT_TRUE(calendar.ok());
  std::vector<std::string> ends;
  CalendarWindow window = calendar->At(UnixUs(utc));
  for (int i = 0; i < count; ++i) {
    ends.push_back(absl::FormatTime("%Y-%m-%d %H:%M", absl::FromUnixMicros(window.end_us),
                                    Zone(config.time_zone)));
    const CalendarWindow next = calendar->At(window.end_us);
    EXPECT_EQ(next.begin_us, window.end_us);
    window = next;
  }
  return ends;
}

using Texts = std::vector<std::string>;

TEST(CalendarTest, AMonthThatLacksTheAnchorBeginsOnItsLastDay) {
  const auto ends = [](int day, const std::string& from) {
    return Ends({.unit = CalendarUnit::kMonth, .day = day}, from, 4);
  };
  EXPECT_EQ(ends(31, "2026-01-05 00:00"), (Texts{"2026-01-31 00:00", "2026-02-28 00:00",
                                                 "2026-03-31 00:00", "2026-04-30 00:00"}));
  EXPECT_EQ(ends(30, "2028-01-30 00:00"), (Texts{"2028-02-29 00:00", "2028-03-30 00:00",
                                                 "2028-04-30 00:00", "2028-05-30 00:00"}));
  EXPECT_EQ(ends(29, "2027-02-28 00:00"), (Texts{"2027-03-29 00:00", "2027-04-29 00:00",
                                                 "2027-05-29 00:00", "2027-06-29 00:00"}));
  EXPECT_EQ(ends(29, "2100-02-01 00:00").front(), "2100-02-28 00:00");  // no leap year
  EXPECT_EQ(ends(1, "2026-12-31 23:59").front(), "2027-01-01 00:00");
}

TEST(CalendarTest, AYearThatBeginsOnALeapDayBeginsADayEarlierInOthers) {
  EXPECT_EQ(Ends({.unit = CalendarUnit::kYear, .month = 2, .day = 29}, "2026-06-01 00:00", 3),
            (Texts{"2027-02-28 00:00", "2028-02-29 00:00", "2029-02-28 00:00"}));
  EXPECT_EQ(Ends({.unit = CalendarUnit::kYear, .month = 4, .day = 1, .minute = 360},
                 "2026-04-01 05:59", 2),
            (Texts{"2026-04-01 06:00", "2027-04-01 06:00"}));
}

TEST(CalendarTest, WeeksBeginOnAnyDay) {
  // 2026-11-29 is a Sunday.
  const Texts days = {"2026-11-30", "2026-12-01", "2026-12-02", "2026-12-03",
                      "2026-12-04", "2026-12-05", "2026-12-06"};
  for (int weekday = 0; weekday < 7; ++weekday) {
    const CalendarConfig config = {.unit = CalendarUnit::kWeek, .weekday = weekday};
    EXPECT_EQ(Ends(config, "2026-11-29 12:00", 1).front(),
              days[static_cast<size_t>(weekday)] + " 00:00");
  }
  EXPECT_EQ(Ends({.unit = CalendarUnit::kWeek, .weekday = 5}, "1969-12-20 00:00", 2),
            (Texts{"1969-12-27 00:00", "1970-01-03 00:00"}));
}

TEST(CalendarTest, DaysAreShorterAndLongerWhereSummerTimeChanges) {
  const CalendarConfig berlin = {.unit = CalendarUnit::kDay, .time_zone = "Europe/Berlin"};
  const auto calendar = Calendar::Make(berlin);
  const auto hours = [&](const std::string& utc) {
    const CalendarWindow window = calendar->At(UnixUs(utc));
    return (window.end_us - window.begin_us) / 3'600'000'000;
  };
  EXPECT_EQ(hours("2026-03-28 12:00"), 24);
  EXPECT_EQ(hours("2026-03-29 12:00"), 23);
  EXPECT_EQ(hours("2026-10-25 12:00"), 25);
  EXPECT_EQ(Utc(calendar->At(UnixUs("2026-10-25 12:00")).begin_us), "2026-10-24 22:00");
}

TEST(CalendarTest, ATimeThatIsSkippedIsTheChangeAndOneThatComesTwiceTheFirst) {
  const auto day_of = [](const std::string& utc) {
    const auto calendar =
        Calendar::Make({.unit = CalendarUnit::kDay, .time_zone = "Europe/Berlin", .minute = 150});
    return calendar->At(UnixUs(utc));
  };
  // 02:30 is skipped on 2026-03-29: at 01:00 UTC clocks go from 02:00 to 03:00.
  EXPECT_EQ(Utc(day_of("2026-03-29 12:00").begin_us), "2026-03-29 01:00");
  EXPECT_EQ(Utc(day_of("2026-03-29 00:59").end_us), "2026-03-29 01:00");
  // And comes twice on 2026-10-25: at 00:30 and at 01:30 UTC.
  EXPECT_EQ(Utc(day_of("2026-10-25 12:00").begin_us), "2026-10-25 00:30");
  EXPECT_EQ(Utc(day_of("2026-10-25 00:45").end_us), "2026-10-26 01:30");
}

TEST(CalendarTest, EachInstantOfYearsLiesInOneWindow) {
  for (const CalendarUnit unit : {CalendarUnit::kDay, CalendarUnit::kWeek, CalendarUnit::kMonth}) {
    for (const char* zone : {"America/Sao_Paulo", "Pacific/Apia", "Australia/Lord_Howe", "UTC"}) {
      const auto calendar =
          Calendar::Make({.unit = unit, .time_zone = zone, .day = 31, .minute = 0, .weekday = 6});
      ASSERT_TRUE(calendar.ok());
      // Apia had no 2011-12-30 at all.
      for (int64_t at = UnixUs("2011-06-01 00:00"); at < UnixUs("2012-06-01 00:00");
           at += 25'200'000'001) {
        const CalendarWindow window = calendar->At(at);
        ASSERT_LE(window.begin_us, at);
        ASSERT_GT(window.end_us, at);
        ASSERT_EQ(calendar->At(window.end_us - 1).begin_us, window.begin_us);
        ASSERT_LE(window.end_us - window.begin_us,
                  static_cast<int64_t>(CalendarPeriodNs(unit) / 1000) + 3'600'000'000);
      }
    }
  }
}

TEST(CalendarTest, ATableKnowsItsWindowsByTheirEndsAndWhereTheyMoved) {
  const auto calendar = Calendar::Make({.unit = CalendarUnit::kDay});
  constexpr uint64_t kHourNs = 3'600'000'000'000;
  const uint64_t now_ns = 100 * 24 * kHourNs;
  const int64_t offset_us = UnixUs("2026-05-05 06:00") - static_cast<int64_t>(now_ns / 1000);
  const CalendarTable table(*calendar, offset_us, now_ns, 3);
  ASSERT_EQ(table.entries().size(), 4u);
  EXPECT_EQ(table.entries()[0].end_ns, now_ns - 6 * kHourNs);
  EXPECT_EQ(table.entries()[1].end_ns, now_ns + 18 * kHourNs);
  EXPECT_EQ(Utc(table.Near(now_ns + 19 * kHourNs)->window.end_us), "2026-05-06 00:00");
  EXPECT_EQ(table.Near(now_ns + 5 * kHourNs - 1), &table.entries()[0]);
  EXPECT_EQ(table.Near(now_ns + 200 * kHourNs), nullptr);
  EXPECT_EQ(table.EndingAt(UnixUs("2026-05-07 00:00")), &table.entries()[2]);
  // The wall clock is set an hour ahead: the day ends an hour sooner.
  const CalendarTable later(*calendar, offset_us + 3'600'000'000, now_ns, 3);
  EXPECT_EQ(Moved(table, later, now_ns + 18 * kHourNs), now_ns + 17 * kHourNs);
  EXPECT_EQ(Moved(table, later, 5), 5u);
}

// The day before ended before the machine was started: in no hour is it the one that is open.
TEST(CalendarTest, AWindowFromBeforeTheMachineWasStartedIsNearToNoEnd) {
  const auto calendar = Calendar::Make({.unit = CalendarUnit::kDay});
  ASSERT_TRUE(calendar.ok());
  constexpr uint64_t kHourNs = 3'600'000'000'000;
  const uint64_t now_ns = kHourNs;
  for (int64_t hour = 15; hour < 24; ++hour) {
    const int64_t wall_us = UnixUs("2026-05-05 00:00") + hour * 3'600'000'000;
    const CalendarTable table(*calendar, wall_us - static_cast<int64_t>(now_ns / 1000), now_ns, 3);
    const CalendarTable::Entry* const open =
        table.Near(now_ns + static_cast<uint64_t>(24 - hour) * kHourNs);
    ASSERT_NE(open, nullptr) << hour;
    EXPECT_EQ(Utc(open->window.end_us), "2026-05-06 00:00") << hour;
  }
}

constexpr char kHead[] = "rules:\n  - name: quota\n    key: []\n    algorithm: fixed_window\n";

TEST(CalendarFileTest, LimitsFollowTheCalendarEachByItsUnit) {
  const Config config = Good(std::string(kHead) +
                             "    limit: 9/month\n    tiers: {paid: {limit: 90/year}, big: {limit: "
                             "5/month}}\n    calendar: {time_zone: Europe/Berlin, anchor_day: 31, "
                             "anchor_month: 4, anchor_time: \"06:30\", week_start: saturday}\n");
  ASSERT_EQ(config.calendars.size(), 2u);
  EXPECT_EQ(config.calendars[0], (CalendarConfig{.unit = CalendarUnit::kMonth,
                                                 .time_zone = "Europe/Berlin",
                                                 .month = 4,
                                                 .day = 31,
                                                 .minute = 390,
                                                 .weekday = 5}));
  EXPECT_EQ(config.rules[0].limit->calendar, 1);
  EXPECT_EQ(config.rules[0].tiers[0].limit.calendar, 2);
  EXPECT_EQ(config.rules[0].tiers[1].limit.calendar, 1);
}

TEST(CalendarFileTest, PoliciesDifferByTheirCalendarsAndNotByTheirPlaces) {
  const std::string text = std::string(kHead) + "    limit: 9/day\n    calendar: ";
  const auto rules_of = [](const Config& config) {
    const auto bytes = Compile(config, shm::HashKey{}, 1);
    return *CompiledRules::Load(*bytes);
  };
  Config berlin = Good(text + "{time_zone: Europe/Berlin}");
  const CompiledRules before = rules_of(berlin);
  EXPECT_NE(rules_of(Good(text + "{}")).version_hash(), before.version_hash());
  EXPECT_NE(rules_of(Good(text + "{}")).rules()[0].hash_seed, before.rules()[0].hash_seed);
  KeepCalendarPlaces({{.unit = CalendarUnit::kYear}, berlin.calendars[0]}, &berlin);
  ASSERT_EQ(berlin.calendars.size(), 2u);
  const CompiledRules after = rules_of(berlin);
  EXPECT_EQ(after.rules()[0].calendar_place, 2u);
  EXPECT_EQ(after.version_hash(), before.version_hash());
  EXPECT_EQ(after.rules()[0].hash_seed, before.rules()[0].hash_seed);
}

class BadCalendarTest : public testing::TestWithParam<BadFile> {};

TEST_P(BadCalendarTest, IsAProblemThatSaysWhatToWrite) { ExpectBad(GetParam()); }

#define WINDOW "rules:\n  - name: quota\n    key: []\n    algorithm: fixed_window\n"
INSTANTIATE_TEST_SUITE_P(
    Each, BadCalendarTest,
    testing::Values(
        BadFile{WINDOW "    limit: 9/month", "no calendar says"},
        BadFile{WINDOW "    limit: 9/h\n    calendar: {}", "no windows of 1h"},
        BadFile{WINDOW "    limit: 9/day\n    calendar: {time_zone: Mars/Base}", "no time zone"},
        BadFile{WINDOW "    limit: 9/day\n    calendar: {anchor_time: \"24:00\"}",
                "no time of the day"},
        BadFile{"rules: [{name: aa, key: [], limit: 9/day, calendar: {}}]", "for fixed windows"},
        BadFile{WINDOW "    limit: 9/month\n    calendar: {anchor_day: 32}", "anchor_day"}));
#undef WINDOW

}  // namespace
}  // namespace sluice::config
