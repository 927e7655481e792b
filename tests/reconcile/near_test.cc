// Buckets near their limit are counted once in a period, whoever asks how often.
#include <gtest/gtest.h>

#include <string>

#include "tests/config/parsed.h"
#include "tests/reconcile/fleet.h"

namespace sluice::test {
namespace {

constexpr char kRules[] = R"(
redis: {addresses: "h:1", mode: single}
rules:
  - {name: bucket, key: [user], limit: 10 per 60s}
  - {name: early, key: [user], limit: 10 per 60s, near: 0.5}
  - {name: window, key: [user], limit: 10 per 60s, algorithm: fixed_window}
)";

class NearTest : public testing::Test {
 protected:
  NearTest() : fleet_(1, config::Good(kRules)) {}

  void Use(const std::string& rule, const std::string& key, int checks) {
    for (int i = 0; i < checks; ++i) fleet_.host(0).Check(rule, key);
    fleet_.Run(200 * kMs);
  }
  uint64_t Near(const std::string& rule) {
    return fleet_.host(0).reconciler().totals().at(rule).near_limit;
  }

  Fleet fleet_;
};

TEST_F(NearTest, ABucketIsCountedOnceInAPeriod) {
  for (const std::string rule : {"bucket", "window"}) {
    Use(rule, "a", 7);
    EXPECT_EQ(Near(rule), 0u) << rule;
    Use(rule, "a", 1);
    EXPECT_EQ(Near(rule), 1u) << rule;
    for (int i = 0; i < 5; ++i) Use(rule, "a", 3);
    EXPECT_EQ(Near(rule), 1u) << rule;
    Use(rule, "b", 9);
    EXPECT_EQ(Near(rule), 2u) << rule;
    fleet_.Run(61 * kSecond);
    Use(rule, "a", 9);
    EXPECT_EQ(Near(rule), 3u) << rule;
  }
}

TEST_F(NearTest, WhereItBeginsIsTheRules) {
  Use("early", "a", 4);
  EXPECT_EQ(Near("early"), 0u);
  Use("early", "a", 1);
  EXPECT_EQ(Near("early"), 1u);
}

}  // namespace
}  // namespace sluice::test
