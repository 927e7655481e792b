// Priority under overload, on one host and over ten that share a limit: whoever matters most is
// served, and what others may use is not left lying. Of buckets, and of windows and logs.
#include <gtest/gtest.h>

#include <cstdint>
#include <random>
#include <string>

#include "tests/config/parsed.h"
#include "tests/reconcile/fleet.h"
#include "tests/support/class_load.h"

namespace sluice::test {
namespace {

constexpr uint64_t kLimit = 1'000;  // tokens/s, and the burst
constexpr char kRules[] = R"(
redis: {addresses: "h:1", mode: single}
rules:
  - name: api
    key: [tenant]
    limit: 1000/s
    priority: {classes: {critical: 1, normal: 0.8, sheddable: 0.5}}
)";
// Of what is counted, under its algorithm.
constexpr char kCounted[] = R"(
redis: {addresses: "h:1", mode: single}
rules:
  - name: api
    key: [tenant]
    limit: 1000/s
    algorithm: $
    priority: {classes: {critical: 1, normal: 0.8, sheddable: 0.5}}
)";
std::string Counted(const std::string& algorithm) {
  std::string rules = kCounted;
  return rules.replace(rules.find('$'), 1, algorithm);
}

struct Outcome {
  ClassLoads classes = kThreeClasses;
  double used = 0;  // of burst and limit
};

// `load` times the limit comes in, by chance, evenly over the hosts.
Outcome Overload(int hosts, double load, bool with_floors, uint64_t seed,
                 const std::string& rules = kRules) {
  constexpr uint64_t kFor = 30;
  Fleet fleet(hosts, config::Good(rules));
  std::mt19937_64 random(seed);
  std::poisson_distribution<int> arrivals(load * kLimit / 1000);
  Outcome outcome;
  std::discrete_distribution<size_t> which{0.3, 0.4, 0.3};
  fleet.Run(kFor * kSecond, [&] {
    for (int i = arrivals(random); i > 0; --i) {
      ClassLoad& c = outcome.classes[which(random)];
      Host& host = fleet.host(random() % static_cast<uint64_t>(hosts));
      const uint16_t floor_q16 = with_floors ? c.floor_q16 : uint16_t{0};
      ++c.asked;
      c.admitted += host.Check("api", "t", 1, /*degraded=*/false, floor_q16) ? 1 : 0;
    }
  });
  outcome.used = static_cast<double>(fleet.Admitted()) / static_cast<double>(kLimit * (kFor + 1));
  return outcome;
}

void ExpectServed(int hosts) {
  for (const uint64_t seed : {1u, 2u, 3u}) {
    const Outcome o = Overload(hosts, 2, /*with_floors=*/true, seed);
    printf("%d hosts, seed %d: critical %.5f, normal %.3f, sheddable %.3f, used %.4f\n", hosts,
           static_cast<int>(seed), o.classes[0].part(), o.classes[1].part(), o.classes[2].part(),
           o.used);
    EXPECT_GE(o.classes[0].part(), 0.999) << hosts << " hosts, seed " << seed;
    EXPECT_GE(o.used, 0.97) << hosts << " hosts, seed " << seed;
    // What is left is the normal ones': the sheddable ones get what is beyond them, which is none.
    EXPECT_GT(o.classes[1].part(), 0.4) << hosts << " hosts, seed " << seed;
    EXPECT_LT(o.classes[2].part(), 0.2) << hosts << " hosts, seed " << seed;
  }
}

TEST(PriorityFleetTest, OneHostServesAllThatIsCriticalAtTwiceTheLimit) { ExpectServed(1); }

TEST(PriorityFleetTest, TenHostsServeAllThatIsCriticalAtTwiceTheLimit) { ExpectServed(10); }

TEST(PriorityFleetTest, WithoutFloorsItIsServedNoBetterThanTheRest) {
  const Outcome o = Overload(10, 2, /*with_floors=*/false, 1);
  EXPECT_LT(o.classes[0].part(), 0.7);
}

// A window or a log has nothing beyond its limit: what a class leaves is left of the limit itself.
// In a fixed window that is all that is critical until its end, three fifths of the limit here; in
// the others use runs out of sight all the time.
TEST(PriorityFleetTest, WindowsAndLogsServeWhatIsCriticalFirst) {
  for (const char* const algorithm : {"fixed_window", "sliding_window", "sliding_log"}) {
    for (const int hosts : {1, 10}) {
      const Outcome o = Overload(hosts, 2, /*with_floors=*/true, 1, Counted(algorithm));
      const Outcome without = Overload(hosts, 2, /*with_floors=*/false, 1, Counted(algorithm));
      printf("%s, %d hosts: critical %.5f (%.5f without), normal %.3f, sheddable %.3f, used %.4f\n",
             algorithm, hosts, o.classes[0].part(), without.classes[0].part(), o.classes[1].part(),
             o.classes[2].part(), o.used);
      const bool is_fixed = std::string(algorithm) == "fixed_window";
      EXPECT_GE(o.classes[0].part(), is_fixed ? 0.75 : 0.95) << algorithm;
      EXPECT_GE(o.classes[0].part(), without.classes[0].part() + 0.25) << algorithm;
      EXPECT_GE(o.used, is_fixed ? 0.9 : 0.75) << algorithm;
      EXPECT_LT(o.classes[2].part(), is_fixed ? 0.3 : 0.05) << algorithm;
    }
  }
}

TEST(PriorityFleetTest, BelowTheLimitNobodyIsShed) {
  const Outcome o = Overload(10, 0.7, /*with_floors=*/true, 1);
  for (const ClassLoad& c : o.classes) EXPECT_GE(c.part(), 0.999);
}

}  // namespace
}  // namespace sluice::test
