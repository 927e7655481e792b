// Callers that wait for a place of a request in flight: let in when one is left or lent, given up,
// killed, and together with other rules.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "client/include/sluice.h"
#include "client/include/sluice.hpp"
#include "shm/clock.h"
#include "shm/lent_places.h"
#include "shm/place_queue.h"
#include "tests/client/served_client.h"

namespace sluice::test {
namespace {

using namespace std::chrono_literals;

constexpr uint64_t kSecond = 1'000'000'000;
constexpr uint64_t kMinute = 60 * kSecond;

// Each bucket so slow that no test sees a token come back.
constexpr char kRules[] = R"(
rules:
  - {name: few, match: {route: /few}, key: [user], in_flight: 3}
  - {name: one, match: {route: /one}, key: [user], in_flight: 1}
  - {name: crowd, match: {route: /crowd}, key: [], in_flight: 4}
  - {name: tried, match: {route: /tried}, key: [user], in_flight: 1, shadow: true}
  - {name: turn-place, match: {route: /turn}, key: [user], in_flight: 2}
  - {name: turn, match: {route: /turn}, key: [user], limit: 1 per 10m, burst: 1}
  - {name: day-place, match: {route: /day}, key: [user], in_flight: 1}
  - {name: day, match: {route: /day}, key: [user], limit: 2 per 1d, algorithm: fixed_window}
)";

class WaitingForPlaces : public ServedClient {
 protected:
  explicit WaitingForPlaces(std::string_view rules = kRules, ServedSegments::Options options = {})
      : ServedClient(rules, options) {}
  ~WaitingForPlaces() override { close(cancel_); }

  Place Enter(std::string_view route, Deadline auto deadline, uint64_t cost = 1) {
    return client_.enter({{"route", route}, {"user", "u"}}, deadline, cost, cancel_);
  }
  void Cancel() const {
    const uint64_t one = 1;
    ASSERT_EQ(write(cancel_, &one, sizeof one), ssize_t{sizeof one});
  }
  uint64_t Held() const {
    const shm::LogShape logs = served_.buckets().geometry().logs;
    uint64_t held = 0;
    for (uint64_t i = 0; i < uint64_t{logs.rows} * logs.entries; ++i) {
      held += served_.buckets().log_entries()[i].load() != 0 ? 1 : 0;
    }
    return held;
  }
  // Those of all keys that the daemon is told of.
  uint64_t Denials() const {
    uint64_t denials = 0;
    for (uint64_t i = 0; i < served_.buckets().capacity(); ++i) {
      denials += shm::denied::Count(served_.buckets().denied()[i].load());
    }
    return denials;
  }
  // Waits, without an end, until the caller has been denied once, and so waits.
  void AwaitDenial() const {
    while (Denials() == 0) std::this_thread::sleep_for(1ms);
  }

  const int cancel_ = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
};

TEST_F(WaitingForPlaces, WhereOneIsFreeNobodySleeps) {
  rusage before;
  ASSERT_EQ(getrusage(RUSAGE_THREAD, &before), 0);
  const Place in[] = {client_.enter({{"route", "/few"}, {"user", "u"}}, 24h),
                      client_.enter({{"route", "/few"}, {"user", "u"}}, 24h),
                      client_.enter({{"route", "/few"}, {"user", "u"}}, 24h)};
  rusage after;
  ASSERT_EQ(getrusage(RUSAGE_THREAD, &after), 0);
  EXPECT_EQ(after.ru_nvcsw, before.ru_nvcsw);
  EXPECT_TRUE(in[0] && in[1] && in[2]);
  EXPECT_EQ(in[2].decision().delay(), 0ns);
  EXPECT_EQ(Held(), 3u);
  EXPECT_EQ(Denials(), 0u);
}

TEST_F(WaitingForPlaces, WhoWaitsIsLetInWhenAnotherLeaves) {
  Place first = Enter("/one", 0ns);
  ASSERT_TRUE(first);
  std::thread leaves([&] {
    AwaitDenial();
    std::this_thread::sleep_for(20ms);
    first.leave();
  });
  const Place second = Enter("/one", 24h);
  leaves.join();
  EXPECT_TRUE(second);
  EXPECT_EQ(Held(), 1u);
}

TEST_F(WaitingForPlaces, ACallerThatAcquiresSeesThatOneIsFreeAndTakesNone) {
  Place first = Enter("/one", 0ns);
  std::thread leaves([&] {
    AwaitDenial();
    first.leave();
  });
  EXPECT_TRUE(client_.acquire({{"route", "/one"}, {"user", "u"}}, 24h));
  leaves.join();
  EXPECT_EQ(Held(), 0u);
}

TEST_F(WaitingForPlaces, ADeadlineThatIsPastIsAnEnter) {
  const Place first = Enter("/one", std::chrono::steady_clock::now() - 1h);
  EXPECT_TRUE(first);
  const auto now = std::chrono::steady_clock::now();
  for (const auto past : {now - 1h, now, std::chrono::steady_clock::time_point::min()}) {
    const Place denied = Enter("/one", past);
    EXPECT_FALSE(denied);
    EXPECT_EQ(denied.error(), 0);
    EXPECT_EQ(denied.decision().retry_after(), 1s) << "a guess";
  }
  EXPECT_FALSE(Enter("/one", 0s));
  EXPECT_FALSE(Enter("/one", -1s));
  EXPECT_EQ(Held(), 1u);
}

TEST_F(WaitingForPlaces, WhoIsTooLateHoldsNothing) {
  const Place first = Enter("/one", 0ns);
  const auto deadline = std::chrono::steady_clock::now() + 30ms;
  const Place late = Enter("/one", deadline);
  EXPECT_GE(std::chrono::steady_clock::now(), deadline);
  EXPECT_FALSE(late);
  EXPECT_EQ(late.error(), 0);
  EXPECT_EQ(late.raw().name, 0u);
  EXPECT_EQ(Held(), 1u);
}

TEST_F(WaitingForPlaces, WhatCanNeverBeHadIsDeniedAtOnce) {
  const Place all = Enter("/few", 24h, 3);
  EXPECT_TRUE(all);
  const Place never = Enter("/few", std::chrono::steady_clock::time_point::max(), 4);
  EXPECT_FALSE(never);
  EXPECT_EQ(never.decision().retry_after(), std::nullopt);
  EXPECT_EQ(Held(), 3u);
}

TEST_F(WaitingForPlaces, AllPlacesOfACostAreWaitedForAndNoneIsHeldMeanwhile) {
  Place in[] = {Enter("/few", 0ns), Enter("/few", 0ns)};
  std::atomic<uint64_t> most = 0;
  std::thread leaves([&] {
    AwaitDenial();
    for (int i = 0; i < 30; ++i) {
      most = std::max<uint64_t>(most, Held());
      std::this_thread::sleep_for(1ms);
    }
    in[0].leave();
  });
  const Place two = Enter("/few", 24h, 2);
  leaves.join();
  EXPECT_TRUE(two);
  EXPECT_EQ(most, 2u);
  EXPECT_EQ(Held(), 3u);
}

TEST_F(WaitingForPlaces, AWordOrASignalEndsTheWait) {
  const Place first = Enter("/one", 0ns);
  std::thread cancels([&] {
    AwaitDenial();
    Cancel();
  });
  const Place cancelled = Enter("/one", 24h);
  cancels.join();
  EXPECT_FALSE(cancelled);
  EXPECT_EQ(cancelled.error(), SLUICE_E_CANCELLED);
  EXPECT_EQ(cancelled.raw().name, 0u);
  EXPECT_EQ(Enter("/few", 24h).error(), SLUICE_E_CANCELLED) << "cancelled from the start";

  struct sigaction wake = {};
  wake.sa_handler = [](int) {};
  struct sigaction before;
  ASSERT_EQ(sigaction(SIGALRM, &wake, &before), 0);
  // Again and again: the first may come before the sleep begins.
  const itimerval soon = {.it_interval = {0, 20'000}, .it_value = {0, 20'000}};
  ASSERT_EQ(setitimer(ITIMER_REAL, &soon, nullptr), 0);
  const Place signalled = client_.enter({{"route", "/one"}, {"user", "u"}}, 24h);
  const itimerval off = {};
  setitimer(ITIMER_REAL, &off, nullptr);
  sigaction(SIGALRM, &before, nullptr);
  EXPECT_FALSE(signalled);
  EXPECT_EQ(signalled.error(), SLUICE_E_CANCELLED);
  EXPECT_EQ(Held(), 1u);
}

TEST_F(WaitingForPlaces, WhileNoPlaceIsFreeOtherRulesSpendNothing) {
  const Place first = Enter("/day", 0ns);
  ASSERT_TRUE(first);
  const int64_t use = served_.TotalUse();
  std::thread looks([&] {
    AwaitDenial();
    for (int i = 0; i < 20; ++i) {
      EXPECT_EQ(served_.TotalUse(), use);
      std::this_thread::sleep_for(1ms);
    }
    Cancel();
  });
  EXPECT_EQ(Enter("/day", 24h).error(), SLUICE_E_CANCELLED);
  looks.join();
  EXPECT_EQ(served_.TotalUse(), use);
}

TEST_F(WaitingForPlaces, WhatAnotherRuleAdmitsOnlyLaterIsDeniedAtOnceAndTakesNoPlace) {
  ASSERT_TRUE(Enter("/day", 0ns).leave());
  Place second = Enter("/day", 0ns);
  ASSERT_TRUE(second);
  const int64_t use = served_.TotalUse();
  EXPECT_EQ(client_.rule_of(Enter("/day", 10min).decision()), "day") << "not for want of a place";
  second.leave();
  const Place denied = Enter("/day", 10min);
  EXPECT_FALSE(denied);
  EXPECT_EQ(client_.rule_of(denied.decision()), "day");
  EXPECT_EQ(Held(), 0u);
  EXPECT_EQ(served_.TotalUse(), use);
}

TEST_F(WaitingForPlaces, ATurnIsSleptForWithThePlaceHeldAndBothAreGivenBack) {
  const Place first = Enter("/turn", 0ns);
  ASSERT_TRUE(first);
  const int64_t use = served_.TotalUse();
  EXPECT_FALSE(Enter("/turn", 9min)) << "its turn is later than that";
  EXPECT_EQ(Held(), 1u);
  std::thread cancels([&] {
    while (Held() != 2) std::this_thread::sleep_for(1ms);
    EXPECT_GT(served_.TotalUse(), use) << "its turn is told";
    Cancel();
  });
  const Place waits = Enter("/turn", 15min);
  cancels.join();
  EXPECT_EQ(waits.error(), SLUICE_E_CANCELLED);
  EXPECT_EQ(Held(), 1u);
  const uint64_t ahead_ns = client_.peek({{"route", "/turn"}, {"user", "u"}}).raw().retry_after_ns;
  EXPECT_NEAR(static_cast<double>(ahead_ns), 10.0 * kMinute, 1.0 * kMinute) << "the first's";
}

TEST_F(WaitingForPlaces, OneWaitIsADenialAtItsBeginAndTwiceASecond) {
  const Place first = Enter("/one", 0ns);
  std::thread cancels([&] {
    while (Denials() < 3) std::this_thread::sleep_for(1ms);
    Cancel();
  });
  const uint64_t begin_ns = shm::MonotonicClock::PreciseNs();
  EXPECT_EQ(Enter("/one", 24h).error(), SLUICE_E_CANCELLED);
  const uint64_t waited_ns = shm::MonotonicClock::PreciseNs() - begin_ns;
  cancels.join();
  EXPECT_GE(waited_ns, kSecond) << "twice half a second";
  EXPECT_LE(Denials(), 1 + waited_ns / (kSecond / 2));
}

TEST_F(WaitingForPlaces, AShadowRuleMakesNobodyWait) {
  const Place in[] = {Enter("/tried", 24h), Enter("/tried", 24h)};
  EXPECT_TRUE(in[0] && in[1]);
  EXPECT_TRUE(in[1].decision().shadow_denied());
  EXPECT_EQ(Held(), 1u);
}

TEST_F(WaitingForPlaces, ManyThreadsAllGetInAndNeverMoreThanTheLimit) {
  std::atomic<int> in = 0;
  std::atomic<int> most = 0;
  std::atomic<int> entered = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 5; ++i) {
        const Place place = client_.enter({{"route", "/crowd"}}, 24h);
        EXPECT_TRUE(place);
        const int now = ++in;
        for (int m = most; now > m && !most.compare_exchange_weak(m, now);) {
        }
        ++entered;
        std::this_thread::sleep_for(2ms);
        --in;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(entered, 40);
  EXPECT_LE(most, 4);
  EXPECT_EQ(Held(), 0u);
}

// Without an order the one who waits would have to look within what is less than a microsecond.
TEST_F(WaitingForPlaces, WhoLeavesAndComesBackAtOnceLetsThosePassWhoWaited) {
  Place mine = Enter("/one", 0ns);
  std::atomic<bool> is_in = false;
  std::thread waits([&] {
    const Place place = client_.enter({{"route", "/one"}, {"user", "u"}}, 24h);
    is_in = true;
  });
  AwaitDenial();
  int rounds = 0;
  for (; !is_in && rounds < 10'000; ++rounds) {
    std::this_thread::sleep_for(2ms);
    mine.leave();
    mine = Enter("/one", 24h);
  }
  mine.leave();
  waits.join();
  EXPECT_LT(rounds, 10'000);
}

TEST(PlaceQueue, WhoCameFirstIsShownAndItEndsByItself) {
  constexpr uint64_t kMs = 1'000'000;
  constexpr uint64_t kNow = 500 * kMinute;
  constexpr uint64_t kKey = shm::key::Make(7, shm::Kind::kInFlight, 3);
  constexpr uint16_t kRule = 9;
  shm::Slot slot;
  slot.key = kKey;
  slot.aux = shm::aux::Make(0, 5, kRule) | shm::aux::kDirty;
  const auto is_behind = [&](uint64_t came_ns, uint64_t now_ns) {
    return shm::places::IsBehind(slot.aux, came_ns, now_ns);
  };
  EXPECT_FALSE(is_behind(kNow, kNow));
  EXPECT_TRUE(shm::places::ShowWaiting(slot, kKey, kRule, kNow - 50 * kMs, kNow));
  EXPECT_TRUE(is_behind(kNow, kNow));
  EXPECT_TRUE(is_behind(kNow - 30 * kMs, kNow + 100 * kMs));
  EXPECT_FALSE(is_behind(kNow - 50 * kMs, kNow)) << "he himself";
  EXPECT_FALSE(is_behind(kNow - 100 * kMs, kNow)) << "one who came before";
  EXPECT_FALSE(is_behind(kNow, kNow + 200 * kMs)) << "he looks no more";
  EXPECT_FALSE(shm::places::ShowWaiting(slot, kKey, kRule, kNow, kNow));
  EXPECT_TRUE(shm::places::ShowWaiting(slot, kKey, kRule, kNow - 90 * kMinute, kNow));
  EXPECT_TRUE(is_behind(kNow - 50 * kMs, kNow))
      << "older than can be said, and before him for that";
  shm::places::ShowEntered(slot, kKey, kRule, kNow);
  EXPECT_FALSE(is_behind(kNow - 50 * kMs, kNow)) << "who waits already passes";
  EXPECT_TRUE(is_behind(kNow + 20 * kMs, kNow + 20 * kMs)) << "who comes now does not";
  EXPECT_FALSE(is_behind(kNow + 90 * kMs, kNow + 90 * kMs));
  EXPECT_EQ(shm::aux::Shard(slot.aux), 5u);
  EXPECT_EQ(shm::aux::Rule(slot.aux), kRule);
  EXPECT_NE(slot.aux & shm::aux::kDirty, 0u);
  const uint64_t before = slot.aux;
  EXPECT_FALSE(shm::places::ShowWaiting(slot, kKey, kRule + 1, 0, kNow)) << "another rule's";
  EXPECT_FALSE(shm::places::ShowWaiting(slot, kKey + 1, kRule, 0, kNow)) << "another tenancy's";
  shm::places::ShowEntered(slot, kKey + 1, kRule, kNow);
  EXPECT_EQ(slot.aux, before);
}

TEST_F(WaitingForPlaces, WhoIsKilledWhileWaitingLosesNothing) {
  Place first = Enter("/one", 0ns);
  ASSERT_TRUE(first);
  std::vector<pid_t> waiters;
  for (int i = 0; i < 4; ++i) {
    const pid_t pid = fork();
    if (pid == 0) {
      Client own({.runtime_dir = served_.dir().c_str()});
      if (!own.wait(20s)) _exit(1);
      const Place place = own.enter({{"route", "/one"}, {"user", "u"}}, 24h);
      _exit(place ? 2 : 3);
    }
    waiters.push_back(pid);
  }
  while (Denials() < waiters.size()) std::this_thread::sleep_for(1ms);
  for (const pid_t pid : waiters) {
    kill(pid, SIGKILL);
    int status = 0;
    ASSERT_EQ(waitpid(pid, &status, 0), pid);
    EXPECT_TRUE(WIFSIGNALED(status)) << "it waited";
  }
  EXPECT_EQ(Held(), 1u);
  first.leave();
  EXPECT_TRUE(Enter("/one", 0ns));
}

TEST_F(WaitingForPlaces, WhereTheDefaultAnswersNobodyWaits) {
  Client nobody({.default_allowed = false, .runtime_dir = "/nonexistent"});
  const Place place = nobody.enter({{"route", "/one"}, {"user", "u"}}, 24h);
  EXPECT_FALSE(place);
  EXPECT_TRUE(place.decision().is_default());
  EXPECT_TRUE(client_.enter({{"route", "/other"}}, 24h)) << "no rule matches";
  const pid_t child = fork();
  if (child == 0) {
    // By the default, unless it has a connection of its own already.
    Place first = client_.enter({{"route", "/one"}, {"user", "u"}}, 24h);
    if (!first) _exit(1);
    first.leave();
    if (!client_.wait(20s)) _exit(2);
    const Place own = client_.enter({{"route", "/one"}, {"user", "u"}}, 24h);
    _exit(own && !own.decision().is_default() ? 0 : 3);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
}

TEST_F(WaitingForPlaces, WrongArgumentsAreSaid) {
  const sluice_descriptor_t d = Descriptor("route", "/one");
  sluice_place_t place;
  EXPECT_EQ(sluice_enter_until(nullptr, &d, 1, 1, 0, -1, &place), SLUICE_E_ARGUMENT);
  EXPECT_EQ(sluice_enter_until(client_.raw(), &d, 1, 1, 0, -1, nullptr), SLUICE_E_ARGUMENT);
  EXPECT_EQ(sluice_enter_until(client_.raw(), nullptr, 1, 1, 0, -1, &place), SLUICE_E_ARGUMENT);
  EXPECT_EQ(sluice_enter_until(client_.raw(), &d, 1, 0, 0, -1, &place), SLUICE_E_ARGUMENT);
  EXPECT_EQ(sluice_enter_until(client_.raw(), &d, 1, SLUICE_MAX_COST + 1, 0, -1, &place),
            SLUICE_E_ARGUMENT);
  EXPECT_EQ(sluice_enter_until(client_.raw(), &d, 1, 1, 0, 1'000'000, &place), SLUICE_E_ARGUMENT);
  EXPECT_EQ(place.name, 0u);
  EXPECT_EQ(sluice_leave(client_.raw(), &place), 0);
}

constexpr char kLentRules[] = R"(
redis: {addresses: "h:1"}
rules:
  - {name: exports, match: {route: /exports}, key: [user], in_flight: 8}
)";

class WaitingForLentPlaces : public WaitingForPlaces {
 protected:
  WaitingForLentPlaces() : WaitingForPlaces(kLentRules, {.reconciling = true}) {}
  void SetUp() override {
    WaitingForPlaces::SetUp();
    SetAll(shm::ShardMode::kHealthy);
  }
  void SetAll(shm::ShardMode mode) {
    for (uint32_t i = 0; i < shm::kMaxShards; ++i) served_.control().SetShard(i, mode, 1);
  }
  // As the daemon does, for the key that was used.
  void Lend(uint32_t places) {
    const shm::MappedBuckets& b = served_.buckets();
    for (uint32_t i = 0; i < b.capacity(); ++i) {
      const uint64_t key = b.slots()[i].key.load();
      if (shm::key::Fp(key) == 0 || shm::key::KindOf(key) != shm::Kind::kInFlight) continue;
      b.second()[i] = shm::places::cap::Make(shm::key::Gen(key),
                                             shm::MonotonicClock::PreciseNs() + kMinute, places);
    }
  }
};

TEST_F(WaitingForLentPlaces, WhoComesFirstWaitsUntilTheHostIsLentOne) {
  const Place denied = Enter("/exports", 0ns);
  EXPECT_FALSE(denied);
  EXPECT_EQ(denied.decision().retry_after(), 20ms);
  const uint64_t told = Denials();
  std::thread lends([&] {
    while (Denials() == told) std::this_thread::sleep_for(1ms);
    Lend(2);
  });
  const Place in = Enter("/exports", 24h);
  lends.join();
  EXPECT_TRUE(in);
  EXPECT_EQ(in.decision().remaining(), 1u);
  EXPECT_TRUE(Enter("/exports", 24h));
}

TEST_F(WaitingForLentPlaces, InAnEmergencyThatAdmitsNobodyOneWaitsForItsEnd) {
  EXPECT_FALSE(Enter("/exports", 0ns));
  SetAll(shm::ShardMode::kEmergency);
  const uint64_t told = Denials();
  std::thread mends([&] {
    while (Denials() == told) std::this_thread::sleep_for(1ms);
    SetAll(shm::ShardMode::kHealthy);
    Lend(1);
  });
  EXPECT_TRUE(Enter("/exports", 24h));
  mends.join();
}

}  // namespace
}  // namespace sluice::test
