// What clients answer in an emergency, and when the daemon is gone.
#include <gtest/gtest.h>
#include <unistd.h>

#include "client/include/sluice.hpp"
#include "tests/support/served_segments.h"

namespace sluice::test {
namespace {

using namespace std::chrono_literals;

constexpr char kDegradedRules[] = R"(
rules:
  - name: open
    match: {route: open}
    key: [user]
    limit: 1 per 1h
    burst: 4
    when_degraded: {mode: open}
  - name: closed
    match: {route: closed}
    key: [user]
    limit: 1 per 1h
    burst: 4
    when_degraded: {mode: closed}
  - name: quarter
    match: {route: quarter}
    key: [user]
    limit: 1 per 1h
    burst: 40
    when_degraded: {mode: degrade, factor: 0.25}
)";

class DegradedClientTest : public testing::Test {
 protected:
  DegradedClientTest()
      : served_(kDegradedRules, {.reconciling = true}),
        client_({.runtime_dir = served_.dir().c_str()}) {
    EXPECT_TRUE(client_.wait(5000ms));
    SetAll(shm::ShardMode::kHealthy);
  }
  void SetAll(shm::ShardMode mode) {
    for (uint32_t i = 0; i < 16; ++i) served_.control().SetShard(i, mode, 1);
  }
  int Admitted(const char* route, int tries) {
    int n = 0;
    for (int i = 0; i < tries; ++i) n += client_.check({{"route", route}, {"user", "u"}}) ? 1 : 0;
    return n;
  }

  ServedSegments served_;
  Client client_;
};

TEST_F(DegradedClientTest, EachRouteFollowsItsOwnWordInAnEmergency) {
  SetAll(shm::ShardMode::kEmergency);
  EXPECT_EQ(Admitted("open", 20), 20);
  EXPECT_EQ(Admitted("closed", 20), 0);
  EXPECT_EQ(Admitted("quarter", 100), 10);
  EXPECT_TRUE(client_.check({{"route", "open"}, {"user", "u"}}).is_emergency());
}

TEST_F(DegradedClientTest, StaleShardsDecideAsBefore) {
  SetAll(shm::ShardMode::kStale);
  EXPECT_EQ(Admitted("open", 20), 4);
  EXPECT_EQ(Admitted("closed", 20), 4);
}

TEST_F(DegradedClientTest, TheUseOfAnOpenEmergencyIsCounted) {
  SetAll(shm::ShardMode::kEmergency);
  EXPECT_EQ(Admitted("open", 1000), 1000);
  EXPECT_EQ(served_.TotalUse(), 1000);
  SetAll(shm::ShardMode::kHealthy);
  EXPECT_EQ(Admitted("open", 5), 0) << "and held against the key afterwards";
}

TEST(DeadDaemonTest, AReconcilingDaemonThatIsGoneMeansEmergencyAndALocalOneDoesNot) {
  for (const bool reconciling : {true, false}) {
    ServedSegments served(kDegradedRules, {.reconciling = reconciling, .beat = false});
    Client client({.runtime_dir = served.dir().c_str()});
    ASSERT_TRUE(client.wait(5000ms));
    for (uint32_t i = 0; i < 16; ++i) served.control().SetShard(i, shm::ShardMode::kHealthy, 1);
    served.StopServing();
    usleep(1'300'000);
    EXPECT_EQ(bool(client.check({{"route", "closed"}, {"user", "u"}})), !reconciling);
    EXPECT_EQ(bool(client.check({{"route", "open"}, {"user", "u"}})), true);
  }
}

}  // namespace
}  // namespace sluice::test
