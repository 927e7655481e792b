// Strict rules at the client: credits that the daemon's hand puts into the word, by every way of
// checking.
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <optional>
#include <thread>

#include "client/include/sluice.hpp"
#include "shm/clock.h"
#include "shm/purse.h"
#include "tests/support/served_segments.h"

namespace sluice::test {
namespace {

using namespace std::chrono_literals;

constexpr uint64_t kSecond = 1'000'000'000;
constexpr char kStrictRules[] = R"(
redis: {addresses: "h:1"}
rules:
  - name: strict
    key: [user]
    limit: 100/s
    burst: 50
    consistency: strict
    when_degraded: {mode: degrade, factor: 0.5}
  - name: closed
    key: [account]
    limit: 100/s
    burst: 50
    consistency: strict
    when_degraded: {mode: closed}
  - name: patient
    key: [caller]
    limit: 100/s
    burst: 50
    consistency: strict
    wait: 5ms
  - name: tiny
    match: {tiny: "yes"}
    key: [user]
    limit: 1 per 1h
    burst: 1
)";

class StrictClientTest : public testing::Test {
 protected:
  StrictClientTest()
      : served_(kStrictRules, {.reconciling = true}),
        client_({.runtime_dir = served_.dir().c_str()}) {
    EXPECT_TRUE(client_.wait(5000ms));
    SetAll(shm::ShardMode::kHealthy);
  }
  void SetAll(shm::ShardMode mode) {
    for (uint32_t i = 0; i < 16; ++i) served_.control().SetShard(i, mode, 1);
  }
  // The slot of the one strict key that is used.
  std::optional<uint32_t> Slot() {
    for (uint32_t i = 0; i < served_.buckets().capacity(); ++i) {
      const uint64_t key = served_.buckets().slots()[i].key;
      if (shm::key::Fp(key) != 0 && shm::key::KindOf(key) == shm::Kind::kLease) return i;
    }
    return {};
  }
  uint64_t Word() { return served_.buckets().slots()[*Slot()].word; }
  uint64_t Wanted() { return shm::denied::Count(served_.buckets().denied()[*Slot()].load()); }
  // A key that asked once is lent `credits` for a second.
  void Lend(uint64_t credits, uint64_t for_ns = kSecond) {
    const uint32_t slot = *Slot();
    shm::Slot& s = served_.buckets().slots()[slot];
    ASSERT_TRUE(purse_.Open(&s, s.key));
    (void)purse_.Put(credits, shm::MonotonicClock::PreciseNs() + for_ns);
  }
  Decision Check(uint32_t cost = 1) { return client_.check({{"user", "u"}}, cost); }

  ServedSegments served_;
  Client client_;
  shm::Purse purse_;
};

TEST_F(StrictClientTest, NothingIsAllowedOnTrustAndTheFirstMissIsTold) {
  const Decision d = Check(3);
  EXPECT_FALSE(d);
  EXPECT_EQ(d.remaining(), 0u);
  EXPECT_GE(d.raw().retry_after_ns, shm::credits::kRetryNs);
  EXPECT_EQ(shm::wanted::Tokens(Wanted()), 3u);
  EXPECT_EQ(shm::wanted::Largest(Wanted()), 3u);
  EXPECT_NE(served_.buckets().dirty()[*Slot() / 64] >> (*Slot() % 64) & 1, 0u);
  EXPECT_EQ(Check(51).raw().retry_after_ns, SLUICE_NEVER);
  EXPECT_EQ(shm::wanted::Largest(Wanted()), 3u) << "what can never be lent is not asked for";
}

TEST_F(StrictClientTest, SpendsWhatIsLentAndNoMoreByEveryWay) {
  EXPECT_FALSE(Check());
  Lend(40);
  Handle handle = *client_.bind({{"user", "u"}});
  Rule rule = *client_.bind_rule("strict");
  sluice_rule_t* many = nullptr;
  ASSERT_EQ(sluice_rule_bind(client_.raw(), "strict", &many), 0);
  int allowed = 0;
  for (int i = 0; i < 20; ++i) {
    allowed += Check() ? 1 : 0;
    allowed += handle.allow() ? 1 : 0;
    allowed += handle.check() ? 1 : 0;
    allowed += rule.allow("u") ? 1 : 0;
    allowed += rule.check("u") ? 1 : 0;
    const sluice_key_t keys[] = {{"u", 1}, {"u", 1}};
    int results[2];
    allowed += sluice_rule_check_many(many, keys, 2, 1, results, nullptr);
  }
  sluice_rule_free(many);
  EXPECT_EQ(allowed, 40);
  EXPECT_EQ(purse_.Sync(shm::MonotonicClock::PreciseNs()).spent, 40u);
  EXPECT_EQ(served_.TotalUse(), 40);
}

TEST_F(StrictClientTest, ACallerThatMayWaitIsServedAsSoonAsItsHostIsLentEnough) {
  EXPECT_FALSE(client_.check_wait({{"user", "u"}}, 5ms, 3)) << "nobody lends";
  EXPECT_EQ(shm::wanted::Tokens(Wanted()), 3u) << "told once";
  std::thread lender([this] {
    std::this_thread::sleep_for(5ms);
    Lend(2);
    std::this_thread::sleep_for(5ms);
    (void)purse_.Put(3, shm::MonotonicClock::PreciseNs() + kSecond);
  });
  const Decision d = client_.check_wait({{"user", "u"}}, 10s, 3);
  lender.join();
  EXPECT_TRUE(d);
  EXPECT_EQ(d.remaining(), 2u);
  EXPECT_EQ(client_.check_wait({{"user", "u"}}, 10s, 51).raw().retry_after_ns, SLUICE_NEVER);
  EXPECT_TRUE(client_.check_wait({{"user", "u"}, {"tiny", "yes"}}, 10s));
  EXPECT_FALSE(client_.check_wait({{"user", "u"}, {"tiny", "yes"}}, 10s)) << "another denies";
}

TEST_F(StrictClientTest, ACallerThatAcquiresAsksAgainUntilItsHostIsLentEnough) {
  EXPECT_FALSE(client_.acquire({{"user", "u"}}, 5ms)) << "nobody lends";
  std::thread lender([this] {
    // Until it was asked a third time: what was asked for may have gone to others.
    while (shm::wanted::Tokens(Wanted()) < 3) std::this_thread::sleep_for(1ms);
    Lend(2);
  });
  EXPECT_TRUE(client_.acquire({{"user", "u"}}, 1h));
  lender.join();
  EXPECT_EQ(client_.acquire({{"user", "u"}}, 1h, 51).raw().retry_after_ns, SLUICE_NEVER);
}

TEST_F(StrictClientTest, ACallerWaitsNoLongerThanItsRuleSaysAndNotForWhatComesTooLate) {
  // How often this thread slept meanwhile.
  const auto sleeps = [&](const char* name, std::chrono::nanoseconds max_wait) {
    rusage before;
    rusage after;
    getrusage(RUSAGE_THREAD, &before);
    EXPECT_FALSE(client_.check_wait({{name, "c"}}, max_wait));
    getrusage(RUSAGE_THREAD, &after);
    return after.ru_nvcsw - before.ru_nvcsw;
  };
  EXPECT_GE(sleeps("caller", 24h), 1) << "and ends";
  EXPECT_GE(sleeps("caller", Client::kWaitByRule), 1);
  EXPECT_EQ(sleeps("user", Client::kWaitByRule), 0) << "its rule says nothing of waiting";
  EXPECT_GE(sleeps("user", 20ms), 1);
  // The daemon knows that nothing comes for an hour.
  const uint64_t later_ns = shm::MonotonicClock::PreciseNs() + 3600 * kSecond;
  for (uint32_t i = 0; i < served_.buckets().capacity(); ++i) {
    const uint64_t key = served_.buckets().slots()[i].key;
    served_.buckets().second()[i] = shm::credits::second::Make(shm::key::Gen(key), later_ns);
  }
  EXPECT_EQ(sleeps("user", 400ms), 0);
}

TEST_F(StrictClientTest, CostsAreSpentWholeOrNotAtAll) {
  EXPECT_FALSE(Check());
  Lend(10);
  EXPECT_FALSE(Check(11));
  const Decision d = Check(7);
  EXPECT_TRUE(d);
  EXPECT_EQ(d.remaining(), 3u);
  EXPECT_EQ(d.raw().reset_after_ns, 47 * (kSecond / 100));
  EXPECT_FALSE(Check(4));
  EXPECT_TRUE(Check(3));
}

TEST_F(StrictClientTest, ALeaseThatHasEndedServesNobody) {
  EXPECT_FALSE(Check());
  Lend(10, shm::credits::kStepNs);  // rounded down: at most a step, perhaps nothing
  std::this_thread::sleep_for(10ms);
  EXPECT_FALSE(Check());
}

TEST_F(StrictClientTest, ARefundIsGivenBackUntilTheNextReport) {
  EXPECT_FALSE(Check());
  Lend(10);
  Decision first = Check(4);
  Decision second = Check(2);
  EXPECT_EQ(client_.refund(first), 1);
  EXPECT_EQ(shm::credits::Count(Word()), 8u);
  (void)purse_.TakeOut(0);
  EXPECT_EQ(client_.refund(second), 0);
  EXPECT_EQ(shm::credits::Count(Word()), 8u);
}

TEST_F(StrictClientTest, ARequestThatAnotherRuleRejectsSpendsNothing) {
  EXPECT_FALSE(Check());
  Lend(10);
  EXPECT_TRUE(client_.check({{"user", "u"}, {"tiny", "yes"}}));
  for (int i = 0; i < 5; ++i) EXPECT_FALSE(client_.check({{"user", "u"}, {"tiny", "yes"}}));
  EXPECT_EQ(shm::credits::Count(Word()), 9u);
}

TEST_F(StrictClientTest, InAnEmergencyEachRuleFollowsItsWord) {
  EXPECT_FALSE(Check());
  Lend(10);
  SetAll(shm::ShardMode::kEmergency);
  int allowed = 0;
  for (int i = 0; i < 100; ++i) allowed += Check() ? 1 : 0;
  EXPECT_GE(allowed, 25) << "half of the burst";
  EXPECT_LE(allowed, 26 + 5);
  EXPECT_EQ(shm::credits::Count(Word()), 10u) << "what is lent waits for better times";
  EXPECT_TRUE(Check().is_emergency());
  EXPECT_FALSE(client_.check({{"account", "a"}}));
  SetAll(shm::ShardMode::kHealthy);
  allowed = 0;
  for (int i = 0; i < 20; ++i) allowed += Check() ? 1 : 0;
  EXPECT_EQ(allowed, 10);
}

TEST_F(StrictClientTest, TheFieldsOfHttpTellWhatThisHostHolds) {
  EXPECT_FALSE(Check());
  Lend(10);
  Decision d = Check(4);
  const std::string fields = client_.http_fields(d);
  EXPECT_NE(fields.find("\"strict\";r=6;t=1"), std::string::npos) << fields;
}

}  // namespace
}  // namespace sluice::test
