// Windows over whole hosts in virtual time, against the real script.
#include "daemon/reconcile/windows.h"

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <vector>

#include "shm/window.h"
#include "tests/reconcile/traffic.h"

namespace sluice::test {
namespace {

class WindowsTest : public testing::TestWithParam<shm::Kind> {};

INSTANTIATE_TEST_SUITE_P(Kinds, WindowsTest,
                         testing::Values(shm::Kind::kFixedWindow, shm::Kind::kSlidingWindow),
                         [](const auto& kind) {
                           return kind.param == shm::Kind::kFixedWindow ? "Fixed" : "Sliding";
                         });

TEST_P(WindowsTest, TwoHostsAtTwiceTheLimitAdmitTheLimitTogether) {
  for (const uint64_t period : {kSecond, 5 * kSecond}) {
    const uint64_t limit = 2000 * (period / kSecond);
    Fleet fleet(2, OneWindow(GetParam(), limit, period));
    const auto step = DemandOf(fleet, {2000, 2000});
    fleet.Run(3 * period, step);
    for (int window = 0; window < 3; ++window) {
      const uint64_t before = fleet.Admitted();
      fleet.Run(10 * period, step);
      const double used = static_cast<double>(fleet.Admitted() - before) / (10.0 * limit);
      printf("window of %lu s: %.1f %% used\n", period / kSecond, used * 100);
      EXPECT_GE(used, 0.97) << period;
      EXPECT_LE(used, 1.02) << period;
    }
  }
}

TEST_P(WindowsTest, UnevenHostsAdmitTheLimitTogether) {
  Fleet fleet(4, OneWindow(GetParam(), 10'000, 5 * kSecond));
  const auto step = DemandOf(fleet, {3000, 500, 100, 400});
  fleet.Run(15 * kSecond, step);
  const uint64_t before = fleet.Admitted();
  fleet.Run(50 * kSecond, step);
  EXPECT_NEAR(static_cast<double>(fleet.Admitted() - before), 100'000, 3000);
}

TEST_P(WindowsTest, TenHostsAndCostsAboveOne) {
  Fleet fleet(10, OneWindow(GetParam(), 100'000, 5 * kSecond));
  const auto step = DemandOf(fleet, std::vector<double>(10, 400), /*tokens=*/10);
  fleet.Run(15 * kSecond, step);
  const uint64_t before = fleet.Admitted();
  fleet.Run(50 * kSecond, step);
  EXPECT_NEAR(static_cast<double>(fleet.Admitted() - before), 1'000'000, 30'000);
}

// Its own window would have ended later: it is the fleet's from its first reply on.
TEST_P(WindowsTest, AHostThatComesLateJoinsTheWindowThatIsOpen) {
  for (const uint64_t comes_s : {10, 20, 40, 55}) {
    Fleet fleet(2, OneWindow(GetParam(), 100, 60 * kSecond));
    fleet.Run(kSecond, DemandOf(fleet, {500}));
    ASSERT_EQ(fleet.Admitted(), 100u);
    fleet.Run((comes_s - 1) * kSecond);
    fleet.Run(4 * kSecond, DemandOf(fleet, {0, 20}));
    EXPECT_LE(fleet.Admitted() - 100, 5u) << "until it had heard, after " << comes_s;
  }
}

TEST_P(WindowsTest, UnderTheLimitNobodyIsDenied) {
  Fleet fleet(2, OneWindow(GetParam(), 2000, kSecond));
  fleet.Run(10 * kSecond, DemandOf(fleet, {800, 800}));
  EXPECT_NEAR(static_cast<double>(fleet.Admitted()), 16'000, 20);
}

// Limits whose counts are scaled, up and down.
TEST_P(WindowsTest, LargeAndSmallLimitsAreShared) {
  for (const uint64_t limit : {20ull, 200'000ull, 40'000'000ull, 1'000'000'000ull}) {
    Fleet fleet(2, OneWindow(GetParam(), limit, 5 * kSecond));
    const auto tokens = static_cast<uint32_t>(std::max<uint64_t>(1, limit / 5000));
    const double rate = std::min<double>(2000, static_cast<double>(limit));
    const auto step = DemandOf(fleet, {rate, rate}, tokens);
    fleet.Run(15 * kSecond, step);
    const uint64_t before = fleet.Admitted();
    fleet.Run(50 * kSecond, step);
    const double used = static_cast<double>(fleet.Admitted() - before) / (10.0 * limit);
    printf("limit %lu: %.1f %% used\n", static_cast<unsigned long>(limit), used * 100);
    EXPECT_GE(used, limit == 20 ? 0.8 : 0.97) << limit;
    EXPECT_LE(used, limit == 20 ? 1.2 : 1.02) << limit;
  }
}

TEST_P(WindowsTest, NothingIsLostOrDoubledWhenMessagesAre) {
  ExpectNothingIsLostOrDoubled(OneWindow(GetParam(), 5000, kSecond));
}

// Through an outage each host goes on with its share, window by window; what was used then is
// counted in its own windows, and those are over.
TEST_P(WindowsTest, AnOutageNeitherOpensTheWindowsNorBlocksThemAfterwards) {
  Fleet fleet(2, OneWindow(GetParam(), 2000, kSecond));
  const auto step = DemandOf(fleet, {2000, 2000});
  fleet.Run(5 * kSecond, step);
  fleet.network.cut = true;
  fleet.Run(2 * kSecond, step);
  uint64_t before = fleet.Admitted();
  fleet.Run(10 * kSecond, step);
  EXPECT_NEAR(static_cast<double>(fleet.Admitted() - before), 20'000, 1000);
  fleet.network.cut = false;
  fleet.Run(4 * kSecond, step);
  before = fleet.Admitted();
  fleet.Run(10 * kSecond, step);
  EXPECT_NEAR(static_cast<double>(fleet.Admitted() - before), 20'000, 600);
  fleet.Run(5 * kSecond);
  EXPECT_EQ(fleet.Counted(), static_cast<int64_t>(fleet.Admitted()));
}

// Its clock an hour back or ahead: no window lasts longer than one, and all goes on.
TEST_P(WindowsTest, RedisClockMayJump) {
  for (const int64_t by_s : {-3600, 3600}) {
    Fleet fleet(2, OneWindow(GetParam(), 2000, kSecond));
    const auto step = DemandOf(fleet, {2000, 2000});
    fleet.Run(5 * kSecond, step);
    fleet.redis.time_us += static_cast<uint64_t>(by_s * 1'000'000);
    uint64_t before = fleet.Admitted();
    fleet.Run(2 * kSecond, step);
    EXPECT_GE(fleet.Admitted() - before, 1500u);
    EXPECT_LE(fleet.Admitted() - before, 3 * 2000 * 1.02);
    before = fleet.Admitted();
    fleet.Run(10 * kSecond, step);
    EXPECT_NEAR(static_cast<double>(fleet.Admitted() - before), 20'000, 600);
  }
}

// Redis forgets all: the fleet goes on, and is in step again within a window.
TEST_P(WindowsTest, AFlushIsOverWithinAWindow) {
  Fleet fleet(2, OneWindow(GetParam(), 2000, kSecond));
  const auto step = DemandOf(fleet, {2000, 2000});
  fleet.Run(5 * kSecond, step);
  fleet.redis.data.clear();
  fleet.Run(3 * kSecond, step);
  const uint64_t before = fleet.Admitted();
  fleet.Run(10 * kSecond, step);
  EXPECT_NEAR(static_cast<double>(fleet.Admitted() - before), 20'000, 600);
}

// What was used while no daemon ran is not all of the open window's.
TEST_P(WindowsTest, UseOfManyWindowsAtOnceIsCountedByWhatTheWordsSay) {
  const bool slides = GetParam() == shm::Kind::kSlidingWindow;
  shm::BucketsOwner owner;
  ASSERT_TRUE(owner.Create(1024).ok());
  const shm::window::Terms terms = shm::window::TermsOf(GetParam(), 100, kSecond);
  const uint64_t end = shm::window::kStepNs * 1000;
  reconcile::Bucket b;
  b.kind = GetParam();
  b.limit = shm::window::MakeLimit(100, kSecond);
  b.place = {7, shm::key::Make(5, GetParam(), 3)};
  owner.buckets().slots()[7].key = b.place.key;
  owner.buckets().slots()[7].word =
      shm::window::Make(end + (slides ? terms.length_ns : 0), shm::window::UnitsOfTokens(30, 8));
  owner.buckets().second()[7] =
      shm::window::second::Make(3, end - terms.length_ns, shm::window::UnitsOfTokens(80, 8), 0);
  reconcile::NoteWindowUse(b, 1000, reconcile::LookAtWindow(b, owner.buckets()));
  EXPECT_EQ(b.window_end_ns, end);
  EXPECT_EQ(b.in_window, 30);
  EXPECT_EQ(b.in_closed, slides ? 80 : 0);
}

// A limit that is lowered counts what was used under the former one.
TEST_P(WindowsTest, ALimitThatChangesKeepsWhatWasCounted) {
  Fleet fleet(1, OneWindow(GetParam(), 2000, 60 * kSecond));
  fleet.Run(kSecond, DemandOf(fleet, {1000}));
  ASSERT_EQ(fleet.Admitted(), 1000u);
  for (const uint64_t limit : {1500ull, 900ull, 100'000ull}) {
    fleet.host(0).SetConfig(OneWindow(GetParam(), limit, 60 * kSecond), limit);
    const uint64_t before = fleet.Admitted();
    // Another scale begins the word anew; Redis still knows, and the first reply tells.
    fleet.Run(kSecond, DemandOf(fleet, {2000}));
    EXPECT_NEAR(static_cast<double>(fleet.Admitted() - before),
                limit == 1500  ? 500
                : limit == 900 ? 0
                               : 2000,
                3)
        << limit;
  }
}

}  // namespace
}  // namespace sluice::test
