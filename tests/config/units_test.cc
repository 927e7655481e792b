#include "daemon/config/units.h"

#include <gtest/gtest.h>

#include <random>

#include "daemon/config/keys.h"

namespace sluice::config {
namespace {

constexpr uint64_t kMs = 1'000'000;
constexpr uint64_t kSecond = 1000 * kMs;
constexpr uint64_t kDay = 86'400 * kSecond;

TEST(UnitsTest, ReadsDurationsAsPeopleWriteThem) {
  EXPECT_EQ(ParseDurationNs("100ms").value(), 100 * kMs);
  EXPECT_EQ(ParseDurationNs("10s").value(), 10 * kSecond);
  EXPECT_EQ(ParseDurationNs("1m30s").value(), 90 * kSecond);
  EXPECT_EQ(ParseDurationNs("1h").value(), 3600 * kSecond);
  EXPECT_EQ(ParseDurationNs("7d").value(), 7 * kDay);
  EXPECT_EQ(ParseDurationNs("1d2h3m4s5ms").value(), kDay + 7'384 * kSecond + 5 * kMs);
  EXPECT_EQ(ParseDurationNs("400d").value(), 400 * kDay);
}

TEST(UnitsTest, RefusesWhatIsNoDurationAndSaysWhatToWrite) {
  for (const char* text : {"",
                           "s",
                           "10",
                           "10 s",
                           "-1s",
                           "+1s",
                           "1.5s",
                           "1s1m",
                           "1s1s",
                           "10S",
                           "1w",
                           "0s",
                           "0ms",
                           "401d",
                           "1d400d",
                           "99999999999999999999s",
                           "1e3s",
                           "0x1s",
                           "18446744073709551615ms",
                           "9223372036854775807d"}) {
    const auto parsed = ParseDurationNs(text);
    ASSERT_FALSE(parsed.ok()) << text;
    EXPECT_NE(parsed.status().message().find("; "), absl::string_view::npos) << parsed.status();
  }
  EXPECT_NE(ParseDurationNs("10").status().message().find("10s or 10ms"), absl::string_view::npos);
  EXPECT_NE(ParseDurationNs("1.5s").status().message().find("1500ms"), absl::string_view::npos);
}

TEST(UnitsTest, ReadsBackEveryDurationThatItWrites) {
  std::mt19937_64 random(7);
  for (int i = 0; i < 20'000; ++i) {
    const uint64_t span_ms = 400 * kDay / kMs >> (random() % 36);
    const uint64_t ns = (random() % span_ms + 1) * kMs;
    const std::string text = FormatDuration(ns);
    const auto parsed = ParseDurationNs(text);
    ASSERT_TRUE(parsed.ok()) << text << " " << parsed.status();
    ASSERT_EQ(*parsed, ns) << text;
  }
}

TEST(UnitsTest, ReadsLimitsAsPeopleWriteThem) {
  const auto is = [](const char* text, uint64_t tokens, uint64_t period_ns) {
    const auto rate = ParseRate(text);
    ASSERT_TRUE(rate.ok()) << rate.status();
    EXPECT_EQ(rate->tokens, tokens) << text;
    EXPECT_EQ(rate->period_ns, period_ns) << text;
  };
  is("100/s", 100, kSecond);
  is("5000/h", 5000, 3600 * kSecond);
  is("10/m", 10, 60 * kSecond);
  is("10/min", 10, 60 * kSecond);
  is("1/d", 1, kDay);
  is("1 per 10s", 1, 10 * kSecond);
  is("100 per 1m30s", 100, 90 * kSecond);
  is("100 per minute", 100, 60 * kSecond);
  is("3/10s", 3, 10 * kSecond);
  is(" 1_000_000 / s ", 1'000'000, kSecond);
  is("0/s", 0, kSecond);
}

TEST(UnitsTest, RefusesWhatIsNoLimit) {
  for (const char* text :
       {"", "/", "100", "100/", "/s", "-1/s", "1.5/s", "100/fortnight", "1per s", "100 per",
        "100//s", "1/s/s", "1/0s", "1/401d", "_1/s", "1_/s", "99999999999999999999/s"}) {
    EXPECT_FALSE(ParseRate(text).ok()) << text;
  }
  EXPECT_NE(ParseRate("100").status().message().find("100/s, 100/m"), absl::string_view::npos);
}

TEST(KeysTest, MeasureSlipsOfTheHand) {
  EXPECT_EQ(EditDistance("limit", "limit"), 0u);
  EXPECT_EQ(EditDistance("Limit", "limit"), 0u);
  EXPECT_EQ(EditDistance("limt", "limit"), 1u);
  EXPECT_EQ(EditDistance("lmiit", "limit"), 1u);
  EXPECT_EQ(EditDistance("limits", "limit"), 1u);
  EXPECT_EQ(EditDistance("", "key"), 3u);
  EXPECT_EQ(EditDistance("kitten", "sitting"), 3u);
  EXPECT_EQ(EditDistance(std::string(65, 'a'), "a"), SIZE_MAX);
}

TEST(KeysTest, SuggestTheNearestKeyAndNoneForAnotherWord) {
  const auto keys = KeysWithin("rules[]");
  EXPECT_EQ(Nearest("brust", keys), "burst");
  EXPECT_EQ(Nearest("algoritm", keys), "algorithm");
  EXPECT_EQ(Nearest("when-degraded", keys), "when_degraded");
  EXPECT_EQ(Nearest("colour", keys), "");
}

TEST(KeysTest, ListEachKeyOnceWithItsSection) {
  for (const KeySpec& spec : AllKeys()) {
    EXPECT_EQ(FindKey(spec.path), &spec) << spec.path;
    EXPECT_FALSE(spec.doc.empty()) << spec.path;
    EXPECT_EQ(spec.doc.back(), '.') << spec.path;
  }
  EXPECT_EQ(FindKey("rules[].colour"), nullptr);
  EXPECT_EQ(FindKey("rules[].tiers.*.when_degraded.mode"), FindKey("rules[].when_degraded.mode"));
}

}  // namespace
}  // namespace sluice::config
