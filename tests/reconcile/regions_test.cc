// Regions that count a limit each in its own Redis and hear of each other, in virtual time. The
// books close in each of them: all have counted what all admitted.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "daemon/config/parse.h"
#include "tests/accuracy/meter.h"
#include "tests/reconcile/fleet.h"

namespace sluice::test {
namespace {

constexpr uint32_t kRegions = 3;
constexpr size_t kHostsEach = 2;
constexpr uint64_t kLimit = 1000;

config::Config LocalRule(const std::string& limit) {
  const config::ParseResult parsed = config::ParseConfig(
      "redis: {region: r0, regions: {r0: {addresses: \"h:1\"}, r1: {addresses: \"h:2\"}, r2: "
      "{addresses: \"h:3\"}}}\n"
      "rules: [{name: local, key: [user], " +
          limit + "}]\n",
      "t.yaml");
  if (!parsed.ok()) abort();
  return parsed.config;
}

class RegionsFleet {
 public:
  explicit RegionsFleet(uint64_t beat_ns, const std::string& limit = "limit: 1000/s") {
    VirtualClock::now_ns = 1000 * kSecond;
    const config::Config config = LocalRule(limit);
    for (auto& network : far) {
      network.one_way_ns = 40 * kMs;
      network.timeout_ns = 250 * kMs;
    }
    for (uint32_t r = 0; r < kRegions; ++r) {
      for (size_t i = 0; i < kHostsEach; ++i) {
        hosts.push_back(
            std::make_unique<Host>(static_cast<int>(hosts.size()), config, &redis[r], &near[r],
                                   HostOptions{.regions = kRegions, .exchange_ns = beat_ns}));
        for (uint32_t other = 0; other < kRegions; ++other) {
          if (other != r) hosts.back()->far.push_back({&redis[other], &far[other]});
        }
      }
    }
  }

  // `per_s`: checks of each host, by its number.
  void Run(uint64_t ns, const std::function<double(size_t)>& per_s) {
    const uint64_t end = VirtualClock::now_ns + ns;
    std::vector<double> owed(hosts.size());
    while (VirtualClock::now_ns < end) {
      VirtualClock::now_ns += kMs;
      for (LuaRedis& one : redis) one.time_us += 1000;
      for (size_t i = 0; i < hosts.size(); ++i) {
        for (owed[i] += per_s(i) / 1000; owed[i] >= 1; owed[i] -= 1) {
          if (!hosts[i]->Check("local", "u")) continue;
          ++admitted;
          meter.Force(1, VirtualClock::now_ns);
        }
      }
      for (auto& host : hosts) host->Advance();
    }
  }
  int64_t Counted(uint32_t region) const {
    int64_t n = 0;
    for (const auto& [key, hash] : redis[region].data) {
      const auto found = hash.find("s:");
      if (found != hash.end()) n += strtoll(found->second.c_str(), nullptr, 10);
    }
    return n;
  }

  LuaRedis redis[kRegions];
  Network near[kRegions];
  Network far[kRegions];  // to each from the others
  std::vector<std::unique_ptr<Host>> hosts;
  accuracy::Bucket meter{*lease::MakeTerms(kLimit, 1'000'000, kLimit, 0)};
  uint64_t admitted = 0;
};

double Everywhere(size_t) { return 1000; }
double Nowhere(size_t) { return 0; }

class BeatTest : public testing::TestWithParam<uint64_t> {
 protected:
  // regions x limit x beat
  uint64_t Bound() const { return kRegions * kLimit * GetParam() / 1000; }
  RegionsFleet fleet_{GetParam() * kMs};

  void ExpectBooksClosed() {
    fleet_.Run(10 * kSecond, Nowhere);
    for (uint32_t r = 0; r < kRegions; ++r) {
      EXPECT_EQ(fleet_.Counted(r), static_cast<int64_t>(fleet_.admitted)) << r;
    }
  }
};

TEST_P(BeatTest, AFlashCrowdEverywhereIsOverByLessThanTheBoundAndIsPaidBack) {
  fleet_.Run(10 * kSecond, Everywhere);
  const uint64_t flash_over = fleet_.meter.over_tokens();
  RecordProperty("over", static_cast<int>(flash_over));
  EXPECT_LE(flash_over, Bound());
  // With the burst among it, and what buckets may not owe.
  EXPECT_LE(fleet_.admitted, 11 * kLimit + Bound());
  const uint64_t before = fleet_.admitted;
  fleet_.Run(10 * kSecond, Everywhere);
  EXPECT_LE(fleet_.admitted - before, 10 * kLimit * 103 / 100);
  EXPECT_GE(fleet_.admitted - before, 10 * kLimit * 90 / 100);
  ExpectBooksClosed();
}

TEST_P(BeatTest, DemandThatWandersFromRegionToRegionIsOverByLessThanTheBound) {
  for (size_t turn = 0; turn < 12; ++turn) {
    fleet_.Run(kSecond + turn * 100 * kMs,
               [&](size_t i) { return i / kHostsEach == turn % kRegions ? 2000.0 : 0.0; });
  }
  RecordProperty("over", static_cast<int>(fleet_.meter.over_tokens()));
  EXPECT_LE(fleet_.meter.over_tokens(), Bound());
  ExpectBooksClosed();
}

TEST_P(BeatTest, ARegionThatIsCutOffGoesOnAndIsToldOfAllAfterwards) {
  fleet_.Run(5 * kSecond, Everywhere);
  fleet_.far[2].cut = true;
  const uint64_t before = fleet_.hosts[4]->admitted + fleet_.hosts[5]->admitted;
  fleet_.Run(5 * kSecond, Everywhere);
  EXPECT_GT(fleet_.hosts[4]->admitted + fleet_.hosts[5]->admitted, before + kLimit);
  // Nobody's own shards are in emergency for it.
  for (const auto& host : fleet_.hosts) {
    for (uint32_t shard = 0; shard < 4; ++shard) {
      EXPECT_NE(host->Mode(shard), shm::ShardMode::kEmergency);
    }
  }
  EXPECT_EQ(fleet_.hosts[0]->Mode(4 + 4), shm::ShardMode::kEmergency);
  fleet_.far[2].cut = false;
  ExpectBooksClosed();
}

TEST_P(BeatTest, WhatIsLostIsToldAgainAndCountedOnce) {
  for (Network& network : fleet_.far) network.lose_request = network.lose_reply = 0.1;
  fleet_.Run(10 * kSecond, Everywhere);
  for (Network& network : fleet_.far) network.lose_request = network.lose_reply = 0;
  EXPECT_LE(fleet_.admitted, 11 * kLimit * 115 / 100);
  ExpectBooksClosed();
}

INSTANTIATE_TEST_SUITE_P(Ms, BeatTest, testing::Values(250, 500, 1000, 2000));

// Windows have no later to pay in: what regions admit before they hear of each other is over for
// good, at most what comes in a beat and the way, window by window.
class WindowsTest : public testing::TestWithParam<const char*> {
 protected:
  static constexpr uint64_t kTokens = 5000;  // in 5 s
  static constexpr uint64_t kBeatNs = 500 * kMs;
  RegionsFleet fleet_{kBeatNs, std::string("limit: 5000 per 5s, algorithm: ") + GetParam()};

  void ExpectBooksClosed() {
    fleet_.Run(20 * kSecond, Nowhere);
    for (uint32_t r = 0; r < kRegions; ++r) {
      EXPECT_EQ(fleet_.Counted(r), static_cast<int64_t>(fleet_.admitted)) << r;
    }
  }
};

TEST_P(WindowsTest, AreSharedByRegionsThatAllAskForTheWholeLimit) {
  fleet_.Run(60 * kSecond, [](size_t) { return 1000.0; });
  RecordProperty("admitted", static_cast<int>(fleet_.admitted));
  // By themselves they would admit three times as much. The bound, per window, is 2 regions that
  // use 2,000/s for a beat and the way: 2,160.
  EXPECT_LE(fleet_.admitted, 12 * kTokens * 120 / 100);
  EXPECT_GE(fleet_.admitted, 12 * kTokens * 85 / 100);
  ExpectBooksClosed();
}

TEST_P(WindowsTest, HearOfARegionThatUsesAllBeforeTheyAreAskedThemselves) {
  fleet_.Run(2 * kSecond, [](size_t i) { return i < kHostsEach ? 4000.0 : 0.0; });
  const uint64_t first = fleet_.admitted;
  EXPECT_GE(first, kTokens * 95 / 100);
  // A host that meets the key hears of it with its first reply; four of them ask.
  fleet_.Run(kSecond, [](size_t i) { return i < kHostsEach ? 0.0 : 1000.0; });
  RecordProperty("later", static_cast<int>(fleet_.admitted - first));
  EXPECT_LE(fleet_.admitted, kTokens * 112 / 100);
  ExpectBooksClosed();
}

TEST_P(WindowsTest, WhatIsLostIsToldAgainAndCountedOnce) {
  for (Network& network : fleet_.far) network.lose_request = network.lose_reply = 0.1;
  fleet_.Run(20 * kSecond, [](size_t) { return 1000.0; });
  for (Network& network : fleet_.far) network.lose_request = network.lose_reply = 0;
  ExpectBooksClosed();
}

INSTANTIATE_TEST_SUITE_P(Kinds, WindowsTest, testing::Values("fixed_window", "sliding_window"));

}  // namespace
}  // namespace sluice::test
