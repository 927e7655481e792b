// Priority under overload where tokens are lent, strictly and with overdrafts: whoever matters most
// is served, nothing is over, and what others may use is not left lying. In virtual time.
#include <gtest/gtest.h>

#include <cstdint>
#include <random>

#include "tests/lease/keeper_fleet.h"
#include "tests/support/class_load.h"

namespace sluice::lease {
namespace {

constexpr uint64_t kLimit = 1'000;  // tokens/s, and the burst
constexpr uint64_t kForMs = 30'000;

struct Load {
  size_t hosts;
  double of_limit;
  bool strict = true;
  bool with_floors = true;
  // What is critical comes in at the first host alone, and nothing else does.
  bool is_skewed = false;
};

struct Outcome {
  test::ClassLoads classes = test::kThreeClasses;
  double used = 0;  // percent of what a perfect bucket admits
  uint64_t over = 0;
};

Outcome Serve(const Load& load, uint64_t seed) {
  KeeperFleet fleet(load.hosts, kLimit, kLimit, seed, /*wait_ns=*/0, load.strict);
  fleet.HaveClasses();
  std::mt19937_64 random(seed);
  std::poisson_distribution<int> arrivals(load.of_limit * kLimit / 1000);
  std::discrete_distribution<size_t> which{0.3, 0.4, 0.3};
  Outcome o;
  const uint64_t admitted_before = fleet.admitted;
  const uint64_t perfect_before = fleet.perfect_admitted;
  for (uint64_t ms = 0; ms < kForMs; ++ms) {
    fleet.Run(kMilli, 0);
    for (int i = arrivals(random); i > 0; --i) {
      const size_t of = which(random);
      const size_t at = !load.is_skewed ? random() % load.hosts
                        : of == 0       ? 0
                                        : 1 + random() % (load.hosts - 1);
      test::ClassLoad& c = o.classes[of];
      ++c.asked;
      c.admitted += fleet.ArriveOf(at, load.with_floors ? c.floor_q16 : uint16_t{0}) ? 1 : 0;
    }
  }
  o.used = 100 * static_cast<double>(fleet.admitted - admitted_before) /
           static_cast<double>(fleet.perfect_admitted - perfect_before);
  o.over = fleet.over();
  printf(
      "%s, %d hosts at %.1f%s%s, seed %d: critical %.5f, normal %.3f, sheddable %.3f, "
      "used %.2f %%, over %d\n",
      load.strict ? "strict" : "overdraft", static_cast<int>(load.hosts), load.of_limit,
      load.with_floors ? "" : " without floors", load.is_skewed ? " skewed" : "",
      static_cast<int>(seed), o.classes[0].part(), o.classes[1].part(), o.classes[2].part(), o.used,
      static_cast<int>(o.over));
  return o;
}

TEST(LentPriorityTest, WhatIsCriticalIsServedAtTwiceTheLimit) {
  for (const bool strict : {true, false}) {
    for (const size_t hosts : {size_t{1}, size_t{2}, size_t{10}}) {
      for (uint64_t seed = 1; seed <= 3; ++seed) {
        const Outcome o = Serve({.hosts = hosts, .of_limit = 2, .strict = strict}, seed);
        EXPECT_GE(o.classes[0].part(), 0.999);
        EXPECT_GE(o.used, 97);
        if (strict) {
          EXPECT_EQ(o.over, 0u);
        }
        EXPECT_LT(o.classes[2].part(), 0.2);
      }
    }
  }
}

// Whoever comes in at one host alone is served by what the others leave in Redis.
TEST(LentPriorityTest, WhatIsCriticalAtOneHostAloneIsServed) {
  for (const bool strict : {true, false}) {
    for (uint64_t seed = 1; seed <= 3; ++seed) {
      const Outcome o =
          Serve({.hosts = 10, .of_limit = 2, .strict = strict, .is_skewed = true}, seed);
      EXPECT_GE(o.classes[0].part(), 0.95);
      EXPECT_GE(o.used, 97);
    }
  }
}

TEST(LentPriorityTest, WithoutFloorsItIsServedNoBetterThanTheRest) {
  const Outcome o = Serve({.hosts = 10, .of_limit = 2, .with_floors = false}, 1);
  EXPECT_LT(o.classes[0].part(), 0.7);
}

TEST(LentPriorityTest, BelowTheLimitNobodyIsShed) {
  for (const bool strict : {true, false}) {
    for (const double of_limit : {0.7, 0.05}) {
      const Outcome o = Serve({.hosts = 10, .of_limit = of_limit, .strict = strict}, 1);
      // A strict rule's host that holds nothing denies its first check, whatever the class.
      for (const test::ClassLoad& c : o.classes) EXPECT_GE(c.part(), strict ? 0.97 : 0.999);
    }
  }
}

// Nothing is set aside that nobody uses: a low class that comes alone has all that comes in, also
// where hosts hold most of a small burst.
TEST(LentPriorityTest, AClassThatComesAloneHasTheWholeLimit) {
  constexpr uint16_t kLow = 45'875;  // three tenths of the burst
  for (const bool strict : {true, false}) {
    for (const uint64_t burst : {100u, 1'000u}) {
      KeeperFleet fleet(10, kLimit, burst, 1, /*wait_ns=*/0, strict);
      fleet.HaveClasses();
      std::mt19937_64 random(1);
      std::poisson_distribution<int> arrivals(2);
      const uint64_t admitted = fleet.admitted;
      const uint64_t perfect = fleet.perfect_admitted;
      for (uint64_t ms = 0; ms < kForMs; ++ms) {
        fleet.Run(kMilli, 0);
        for (int i = arrivals(random); i > 0; --i) (void)fleet.ArriveOf(random() % 10, kLow);
      }
      const double used = 100 * static_cast<double>(fleet.admitted - admitted) /
                          static_cast<double>(fleet.perfect_admitted - perfect);
      printf("%s, burst %d: a class of 0.3 alone used %.2f %%, over %d\n",
             strict ? "strict" : "overdraft", static_cast<int>(burst), used,
             static_cast<int>(fleet.over()));
      EXPECT_GE(used, 90);
    }
  }
}

}  // namespace
}  // namespace sluice::lease
