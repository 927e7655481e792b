// Windows by the calendar as a client sees them: to the true boundary, by every way to check, and
// where the wall clock is set.
#include <gtest/gtest.h>

#include <string>

#include "client/include/sluice.hpp"
#include "shm/clock.h"
#include "tests/client/served_client.h"
#include "tests/support/served_segments.h"

namespace sluice::test {
namespace {

using namespace std::chrono_literals;

constexpr int64_t kHourUs = 3'600'000'000;

constexpr char kRules[] = R"(
rules:
  - {name: day, match: {route: /day}, key: [user], algorithm: fixed_window, limit: 5/day,
     calendar: {}}
  - {name: month, match: {route: /month}, key: [user], algorithm: fixed_window, limit: 5/month,
     calendar: {anchor_day: 31}}
)";

class CalendarTest : public ServedClient {
 protected:
  CalendarTest() : ServedClient(kRules) {}
  void SetUp() override {
    ServedClient::SetUp();
    BeAt(14 * kHourUs);
  }
  // As if it were so long after 2026-02-10 00:00 UTC.
  void BeAt(int64_t after_us) {
    constexpr int64_t kMidnightUs = 1'770'681'600'000'000;
    const auto now_ns = static_cast<int64_t>(shm::MonotonicClock::PreciseNs());
    served_.SetWallOffset(kMidnightUs + after_us - now_ns / 1000);
  }
  int Allowed(const char* route, const char* user, int checks) {
    int allowed = 0;
    for (int i = 0; i < checks; ++i) {
      allowed += client_.check({{"route", route}, {"user", user}}).allowed() ? 1 : 0;
    }
    return allowed;
  }
  static void ExpectAbout(std::chrono::nanoseconds found, std::chrono::nanoseconds wanted) {
    EXPECT_LE(found, wanted);
    EXPECT_GT(found, wanted - 60s);  // what the test has taken
  }
};

TEST_F(CalendarTest, AnswersAreToTheTrueBoundary) {
  Decision first = client_.check({{"route", "/day"}, {"user", "u"}});
  EXPECT_TRUE(first.allowed());
  EXPECT_EQ(first.remaining(), 4u);
  ExpectAbout(first.reset_after(), 10h);
  EXPECT_EQ(Allowed("/day", "u", 10), 4);
  Decision denied = client_.check({{"route", "/day"}, {"user", "u"}});
  ASSERT_TRUE(denied.retry_after());
  ExpectAbout(*denied.retry_after(), 10h);
  // From 10 February to its 28th, which stands for the 31st.
  ExpectAbout(client_.check({{"route", "/month"}, {"user", "u"}}).reset_after(), 17 * 24h + 10h);
}

TEST_F(CalendarTest, EveryWayToCheckCountsInOneWindow) {
  auto handle = client_.bind({{"route", "/day"}, {"user", "w"}});
  auto rule = client_.bind_rule("day");
  ASSERT_TRUE(handle && rule);
  EXPECT_EQ(Allowed("/day", "w", 2), 2);
  EXPECT_TRUE(handle->check());
  EXPECT_TRUE(rule->check("w"));
  EXPECT_TRUE(handle->allow());
  EXPECT_FALSE(handle->allow());
  EXPECT_FALSE(rule->check("w"));
  EXPECT_EQ(Allowed("/day", "w", 1), 0);
}

TEST_F(CalendarTest, AClockThatIsSetByAnHourKeepsTheCountAndMovesTheEnd) {
  EXPECT_EQ(Allowed("/day", "u", 3), 3);
  BeAt(15 * kHourUs);
  Decision later = client_.check({{"route", "/day"}, {"user", "u"}});
  EXPECT_EQ(later.remaining(), 1u);
  ExpectAbout(later.reset_after(), 9h);
  BeAt(13 * kHourUs);
  Decision earlier = client_.check({{"route", "/day"}, {"user", "u"}});
  EXPECT_EQ(earlier.remaining(), 0u);
  ExpectAbout(earlier.reset_after(), 11h);
  EXPECT_EQ(Allowed("/day", "u", 3), 0);
}

TEST_F(CalendarTest, ANewDayGivesAllBackAndTheMonthGoesOn) {
  EXPECT_EQ(Allowed("/day", "u", 9), 5);
  EXPECT_EQ(Allowed("/month", "u", 4), 4);
  BeAt(24 * kHourUs + kHourUs / 2);  // a clock that is set by more than 11 h begins anew
  EXPECT_EQ(Allowed("/day", "u", 9), 5);
  EXPECT_EQ(Allowed("/month", "u", 9), 1);
  BeAt((18 * 24 + 1) * kHourUs);
  EXPECT_EQ(Allowed("/month", "u", 9), 5);
}

}  // namespace
}  // namespace sluice::test
