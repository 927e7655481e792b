// What hosts say of demand that has ended, in virtual time and against the real script.
#include <gtest/gtest.h>

#include "tests/reconcile/fleet.h"
#include "tests/reconcile/traffic.h"

namespace sluice::test {
namespace {

constexpr uint64_t kRate = 2000;
constexpr uint64_t kBurst = kRate / 5;
constexpr double kAsked = 2.0 * kRate;

uint64_t Batches(Host& host) { return host.reconciler().stats().batches; }

// What was asked for at the hosts before would count there, and leave less.
TEST(FarewellTest, DemandThatMovesFromHostToHostHasTheLimitAtEach) {
  constexpr size_t kHosts = 6;
  Fleet fleet(static_cast<int>(kHosts), OneRule(kRate, kSecond, kBurst));
  for (size_t turn = 0; turn < 2 * kHosts; ++turn) {
    Host& host = fleet.host(turn % kHosts);
    Demand demand(host, kAsked);
    const uint64_t before = host.admitted;
    fleet.Run(kSecond, [&] { demand.Step(); });
    EXPECT_GT(host.admitted - before, kRate * 85 / 100) << "turn " << turn;
  }
  EXPECT_LT(fleet.Admitted(), 12 * kRate + 2 * kBurst);
}

TEST(FarewellTest, IsSaidAFewTimesAndThenNothingIs) {
  Fleet fleet(2, OneRule(kRate, kSecond, kBurst));
  Demand a(fleet.host(0), kAsked);
  Demand b(fleet.host(1), kAsked);
  fleet.Run(3 * kSecond, [&] {
    a.Step();
    b.Step();
  });
  const uint64_t before = Batches(fleet.host(0));
  fleet.Run(2 * kSecond, [&] { b.Step(); });
  const uint64_t after = Batches(fleet.host(0));
  EXPECT_GT(after, before + 1) << "beside the last report";
  EXPECT_LT(after, before + 6);
  fleet.Run(2 * kSecond, [&] { b.Step(); });
  EXPECT_EQ(Batches(fleet.host(0)), after);
}

TEST(FarewellTest, WhoSharesWithNobodySaysNone) {
  Fleet fleet(2, OneRule(kRate, kSecond, kBurst));
  Demand a(fleet.host(0), kAsked);
  fleet.Run(3 * kSecond, [&] { a.Step(); });
  const uint64_t before = Batches(fleet.host(0));
  fleet.Run(2 * kSecond);
  EXPECT_LE(Batches(fleet.host(0)), before + 1);
}

// Four a second come a quarter of a second apart: that is no silence.
TEST(FarewellTest, WhoIsAskedSeldomSaysNoneBetweenTwoRequests) {
  Fleet fleet(2, OneRule(/*limit=*/20, kSecond, /*burst=*/20));
  Demand a(fleet.host(0), 4);
  Demand b(fleet.host(1), 4);
  fleet.Run(3 * kSecond, [&] {
    a.Step();
    b.Step();
  });
  const uint64_t before = Batches(fleet.host(0));
  fleet.Run(5 * kSecond, [&] {
    a.Step();
    b.Step();
  });
  EXPECT_LE(Batches(fleet.host(0)), before + 21);
}

// Of demand that pauses: what is left to a host without any would be six tokens.
TEST(FarewellTest, WhoIsBackSoonBeginsWithTheShareThatHeHad) {
  Fleet fleet(2, OneRule(kRate, kSecond, /*burst=*/24));
  Demand a(fleet.host(0), kAsked);
  Demand b(fleet.host(1), kAsked / 8);
  fleet.Run(3 * kSecond, [&] {
    a.Step();
    b.Step();
  });
  fleet.Run(kSecond, [&] { b.Step(); });
  const uint64_t before = fleet.host(0).admitted;
  fleet.Run(5 * kMs, [&] { a.Step(); });
  EXPECT_GE(fleet.host(0).admitted - before, 15u);
}

}  // namespace
}  // namespace sluice::test
