// Retries that are spread: who is denied together does not come back together.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <thread>
#include <vector>

#include "client/include/sluice.h"
#include "client/include/sluice.hpp"
#include "shm/clock.h"
#include "tests/client/served_client.h"

namespace sluice::test {
namespace {

using namespace std::chrono_literals;

constexpr uint64_t kSecond = 1'000'000'000;

constexpr char kRules[] = R"(
rules:
  - {name: spread, match: {route: /spread}, key: [user], limit: 1000/s, burst: 200, retry_spread: 30s}
  - {name: plain, match: {route: /plain}, key: [user], limit: 1000/s, burst: 200}
  - {name: slow, match: {route: /slow}, key: [user], limit: 1 per 1h, retry_spread: 8m}
  - {name: steady, match: {route: /steady}, key: [user], limit: 1 per 1s, burst: 1, retry_spread: 8m}
  - {name: other, match: {route: /steady}, key: [tenant], limit: 1000/s}
)";

class SpreadTest : public ServedClient {
 protected:
  SpreadTest() : ServedClient(kRules) {}

  // A thousand clients are denied at once, and come back when they were told; how many of them are
  // denied again. A machine that stands still for less than the burst's 0.2 s changes nothing.
  int DeniedAgain(const char* route) {
    const auto check = [&] { return client_.check({{"route", route}, {"user", "crowd"}}); };
    while (check()) {
    }
    std::vector<uint64_t> retries_ns;
    while (retries_ns.size() < 1000) {
      const Decision d = check();
      if (!d) retries_ns.push_back(d.raw().now_ns + d.raw().retry_after_ns);
    }
    std::sort(retries_ns.begin(), retries_ns.end());
    int denied = 0;
    for (const uint64_t at_ns : retries_ns) {
      for (uint64_t now_ns = shm::MonotonicClock::PreciseNs(); now_ns < at_ns;
           now_ns = shm::MonotonicClock::PreciseNs()) {
        std::this_thread::sleep_for(std::chrono::nanoseconds(at_ns - now_ns));
      }
      denied += check() ? 0 : 1;
    }
    return denied;
  }
};

TEST_F(SpreadTest, ACrowdThatComesBackAsToldIsServed) {
  EXPECT_GT(DeniedAgain("/plain"), 700);
  EXPECT_LT(DeniedAgain("/spread"), 100);
}

TEST_F(SpreadTest, PlacesFollowEachOtherAtTheRateOfTheLimit) {
  auto handle = client_.bind({{"route", "/steady"}, {"user", "h"}, {"tenant", "t"}});
  auto check = [&] {
    return client_.check({{"route", "/steady"}, {"user", "l"}, {"tenant", "t"}});
  };
  const auto rise = [](const auto& ask) {
    while (ask()) {
    }
    const sluice_decision_t first = ask().raw();
    const uint64_t first_ns = first.now_ns + first.retry_after_ns;
    for (uint64_t i = 1; i < 20; ++i) {
      const sluice_decision_t d = ask().raw();
      EXPECT_NEAR(static_cast<double>(d.now_ns + d.retry_after_ns - first_ns),
                  static_cast<double>(i * kSecond), 1e6 * static_cast<double>(i))
          << i;
    }
  };
  rise([&] { return handle->check(); });
  rise(check);
  auto rule = client_.bind_rule("steady");
  rise([&] { return rule->check("r"); });
}

TEST_F(SpreadTest, NobodyIsToldEarlierThanThereIsATokenOrLaterThanTheSpread) {
  const auto check = [&] { return client_.check({{"route", "/slow"}, {"user", "u"}}); };
  ASSERT_TRUE(check());
  const auto first = *check().retry_after();
  for (int i = 0; i < 1000; ++i) {
    const auto retry = *check().retry_after();
    EXPECT_GT(retry, first - 1min);
    EXPECT_LE(retry, first + 8min);
  }
}

TEST_F(SpreadTest, ALookTakesNoPlace) {
  const auto request = {Descriptor("route", "/steady"), Descriptor("user", "look"),
                        Descriptor("tenant", "look")};
  ASSERT_TRUE(client_.check(request));
  for (int i = 0; i < 5; ++i) {
    EXPECT_LE(*client_.peek(request).retry_after(), 1s);
  }
  EXPECT_LE(*client_.check(request).retry_after(), 1s);
  EXPECT_GT(*client_.check(request).retry_after(), 1s);
}

}  // namespace
}  // namespace sluice::test
