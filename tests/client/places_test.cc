// Places of requests in flight: entered and left in every way, by processes that fork and by
// processes that are killed.
#include <gtest/gtest.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "client/include/sluice.h"
#include "client/include/sluice.hpp"
#include "shm/clock.h"
#include "shm/places.h"
#include "tests/client/served_client.h"
#include "tests/support/is_running.h"
#include "tests/support/served_segments.h"

namespace sluice::test {
namespace {

using namespace std::chrono_literals;

constexpr char kRules[] = R"(
rules:
  - {name: few, match: {route: /few}, key: [user], in_flight: 3}
  - {name: heavy, match: {route: /heavy}, key: [user], in_flight: 5, cost: 2}
  - {name: both, match: {route: /both}, key: [user], in_flight: 4}
  - {name: paid, match: {route: /both}, key: [tenant], limit: 6 per 10m}
  - {name: tried, match: {route: /tried}, key: [user], in_flight: 1, shadow: true}
  - {name: crowd, match: {route: /crowd}, key: [], in_flight: 100}
  - name: tiered
    match: {route: /tiered}
    key: [user]
    tiers: {free: {in_flight: 1}, paid: {in_flight: 2}}
)";

class ClientPlacesTest : public ServedClient {
 protected:
  ClientPlacesTest() : ServedClient(kRules) {}

  Place Enter(std::string_view route, std::string_view user, uint32_t cost = 1) {
    return client_.enter({{"route", route}, {"user", user}, {"tenant", "t"}}, cost);
  }
  uint64_t Remaining(std::string_view route, std::string_view user) {
    return client_.peek({{"route", route}, {"user", user}, {"tenant", "t"}}).remaining();
  }
  // How many entries of all rows are not 0.
  uint64_t Held() const {
    const shm::LogShape logs = served_.buckets().geometry().logs;
    uint64_t held = 0;
    for (uint64_t i = 0; i < uint64_t{logs.rows} * logs.entries; ++i) {
      held += served_.buckets().log_entries()[i].load() != 0 ? 1 : 0;
    }
    return held;
  }
  // Waits for it, and no longer than such a thing may take.
  bool ComesTo(uint64_t held) const {
    const uint64_t until_ns = shm::MonotonicClock::PreciseNs() + 20'000'000'000;
    while (Held() != held) {
      if (shm::MonotonicClock::PreciseNs() > until_ns) return false;
      usleep(1000);
    }
    return true;
  }
  // Runs `act` in a forked process; returns its pid.
  template <class Act>
  static pid_t Fork(Act act) {
    const pid_t pid = fork();
    if (pid == 0) {
      act();
      _exit(0);
    }
    return pid;
  }
  // Its exit status; -1: it was killed.
  static int Reap(pid_t pid) {
    int status = 0;
    return waitpid(pid, &status, 0) == pid && WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }
};

TEST_F(ClientPlacesTest, NoMoreThanTheLimitAreInFlight) {
  Place a = Enter("/few", "u");
  const Place b = Enter("/few", "u");
  const Place c = Enter("/few", "u");
  EXPECT_TRUE(a && b && c);
  EXPECT_EQ(b.decision().remaining(), 1u);
  const Place denied = Enter("/few", "u");
  EXPECT_FALSE(denied);
  EXPECT_EQ(denied.decision().remaining(), 0u);
  EXPECT_EQ(denied.decision().raw().period_ns, 0u);
  EXPECT_EQ(denied.decision().retry_after(), 1s) << "a guess";
  EXPECT_EQ(denied.decision().level(), Level::kHard);
  EXPECT_TRUE(Enter("/few", "v")) << "another key's";
  EXPECT_EQ(Held(), 3u) << "that of v was left at once";
  EXPECT_TRUE(a.leave());
  EXPECT_FALSE(a.leave());
  EXPECT_TRUE(Enter("/few", "u"));
  EXPECT_EQ(Remaining("/few", "u"), 1u);
}

TEST_F(ClientPlacesTest, ACopyLeavesOnce) {
  const sluice_descriptor_t request[] = {{"route", 5, "/few", 4}, {"user", 4, "u", 1}};
  sluice_place_t place;
  ASSERT_EQ(sluice_enter(client_.raw(), request, 2, 1, &place), 1);
  sluice_place_t copy = place;
  sluice_place_t other;
  EXPECT_EQ(sluice_leave(client_.raw(), &copy), 1);
  ASSERT_EQ(sluice_enter(client_.raw(), request, 2, 1, &other), 1);
  EXPECT_EQ(sluice_leave(client_.raw(), &place), 0) << "it stands where the first stood";
  EXPECT_EQ(Held(), 1u);
  EXPECT_EQ(sluice_leave(client_.raw(), &other), 1);
  EXPECT_EQ(sluice_enter(client_.raw(), request, 2, 0, &other), SLUICE_E_ARGUMENT);
  EXPECT_EQ(sluice_leave(client_.raw(), &other), 0);
  EXPECT_EQ(sluice_leave(nullptr, &other), SLUICE_E_ARGUMENT);
  EXPECT_EQ(sluice_enter(client_.raw(), request, 2, 1, nullptr), SLUICE_E_ARGUMENT);
}

TEST_F(ClientPlacesTest, PlacesAreTakenAllOrNone) {
  const Place two = Enter("/heavy", "u", 2);
  EXPECT_TRUE(two);
  EXPECT_EQ(Held(), 4u);
  EXPECT_FALSE(Enter("/heavy", "u")) << "one is free, and two are asked for";
  EXPECT_EQ(Held(), 4u);
  const Place never = Enter("/heavy", "w", 3);
  EXPECT_FALSE(never);
  EXPECT_EQ(never.decision().retry_after(), std::nullopt);
}

TEST_F(ClientPlacesTest, ARejectedRequestHoldsAndSpendsNothing) {
  std::vector<Place> in;
  for (int i = 0; i < 4; ++i) in.push_back(Enter("/both", "a"));
  EXPECT_EQ(Held(), 4u);
  for (int i = 0; i < 5; ++i) EXPECT_FALSE(Enter("/both", "a")) << "no place";
  in.push_back(Enter("/both", "b"));
  in.push_back(Enter("/both", "b"));
  EXPECT_TRUE(in.back()) << "the tenant had two tokens left";
  EXPECT_FALSE(Enter("/both", "b")) << "no token";
  EXPECT_EQ(Held(), 6u);
  in.clear();
  EXPECT_EQ(Held(), 0u);
  EXPECT_FALSE(Enter("/both", "c")) << "leaving gives no tokens back";
}

TEST_F(ClientPlacesTest, ARefundGivesAllBack) {
  const sluice_descriptor_t request[] = {
      {"route", 5, "/both", 5}, {"user", 4, "u", 1}, {"tenant", 6, "t", 1}};
  sluice_place_t place;
  ASSERT_EQ(sluice_enter(client_.raw(), request, 3, 3, &place), 1);
  EXPECT_EQ(Held(), 3u);
  EXPECT_EQ(sluice_refund(client_.raw(), &place.decision), 2);
  EXPECT_EQ(Held(), 0u);
  EXPECT_EQ(sluice_leave(client_.raw(), &place), 0);
  EXPECT_EQ(served_.TotalUse(), 0);
}

TEST_F(ClientPlacesTest, AChecksOnlyLooks) {
  auto handle = client_.bind({{"route", "/few"}, {"user", "u"}});
  auto rule = client_.bind_rule("few");
  ASSERT_TRUE(handle && rule);
  const auto ask = [&] {
    return std::vector<bool>{handle->allow(), rule->allow("u"), handle->check(7).allowed(),
                             client_.check({{"route", "/few"}, {"user", "u"}}).allowed(),
                             client_.allow({{"route", "/few"}, {"user", "u"}})};
  };
  EXPECT_EQ(ask(), std::vector<bool>(5, true));
  EXPECT_EQ(Held(), 0u);
  const Place all[] = {Enter("/few", "u"), Enter("/few", "u"), Enter("/few", "u")};
  EXPECT_EQ(ask(), std::vector<bool>(5, false));
  EXPECT_EQ(Held(), 3u);
  EXPECT_TRUE(client_.reserve({{"route", "/few"}, {"user", "v"}}, 500, 1s));
}

TEST_F(ClientPlacesTest, ShadowAndTiers) {
  const Place one = Enter("/tried", "u");
  const Place two = Enter("/tried", "u");
  EXPECT_TRUE(two);
  EXPECT_TRUE(two.decision().shadow_denied());
  EXPECT_EQ(Held(), 1u);
  const auto enter = [&](const char* tier) {
    return client_.enter({{"route", "/tiered"}, {"user", "u"}, {"tier", tier}});
  };
  const Place in[] = {enter("free"), enter("paid"), enter("paid")};
  EXPECT_FALSE(enter("free"));
  EXPECT_FALSE(enter("paid"));
}

TEST_F(ClientPlacesTest, FieldsSayThatRequestsAtOnceAreCounted) {
  const Place one = Enter("/few", "u");
  EXPECT_EQ(client_.http_fields(one.decision()),
            "RateLimit-Policy: \"few\";q=3;qu=\"concurrent-requests\"\r\n"
            "RateLimit: \"few\";r=2\r\n");
}

TEST_F(ClientPlacesTest, AClosedClientHoldsNothing) {
  {
    Client other({.runtime_dir = served_.dir().c_str()});
    ASSERT_TRUE(other.wait(5s));
    const sluice_descriptor_t request[] = {{"route", 5, "/few", 4}, {"user", 4, "u", 1}};
    sluice_place_t place;
    ASSERT_EQ(sluice_enter(other.raw(), request, 2, 1, &place), 1);
    EXPECT_EQ(sluice_leave(client_.raw(), &place), 0) << "another client's";
    EXPECT_EQ(Held(), 1u);
  }
  EXPECT_TRUE(ComesTo(0));
}

TEST_F(ClientPlacesTest, AChildHoldsNothingOfItsParents) {
  Place mine = Enter("/few", "u");
  ASSERT_TRUE(mine);
  EXPECT_EQ(Reap(Fork([&] {
              mine.leave();
              if (!client_.wait(5s)) _exit(1);
              Place own = Enter("/few", "u");
              if (!own || own.decision().is_default()) _exit(2);
            })),
            0);
  EXPECT_TRUE(ComesTo(1)) << "the child's comes back, its parent's stays";
  EXPECT_TRUE(mine.leave());
  EXPECT_TRUE(ComesTo(0));
}

// A server that has forked a child: the child has the socket too, and says nothing by it.
TEST_F(ClientPlacesTest, AParentsDeathIsSeenAlthoughItsChildLives) {
  int pipe_fds[2];
  ASSERT_EQ(pipe(pipe_fds), 0);
  const pid_t parent = Fork([&] {
    Client own({.runtime_dir = served_.dir().c_str()});
    if (!own.wait(5s)) _exit(1);
    const Place place = own.enter({{"route", "/few"}, {"user", "u"}});
    if (!place) _exit(2);
    const pid_t child = Fork([] { pause(); });
    if (write(pipe_fds[1], &child, sizeof child) != sizeof child) _exit(3);
    pause();
  });
  pid_t child = 0;
  ASSERT_EQ(read(pipe_fds[0], &child, sizeof child), static_cast<ssize_t>(sizeof child));
  EXPECT_EQ(Held(), 1u);
  kill(parent, SIGKILL);
  EXPECT_TRUE(ComesTo(0));
  EXPECT_EQ(kill(child, 0), 0) << "it lives on";
  kill(child, SIGKILL);
  Reap(parent);
}

TEST_F(ClientPlacesTest, ADaemonThatStartsAgainKnowsWhoHeldWhat) {
  Place mine = Enter("/few", "u");
  const pid_t other = Fork([&] {
    Client own({.runtime_dir = served_.dir().c_str()});
    if (!own.wait(5s)) _exit(1);
    const Place place = own.enter({{"route", "/few"}, {"user", "u"}});
    pause();
  });
  ASSERT_TRUE(ComesTo(2));
  served_.StopServing();
  kill(other, SIGKILL);
  Reap(other);
  usleep(200'000);
  EXPECT_EQ(Held(), 2u) << "nobody was there to see it";
  served_.StartServing();
  EXPECT_TRUE(ComesTo(1));
  const Place again = Enter("/few", "u");
  EXPECT_TRUE(again);
  EXPECT_EQ(Held(), 2u);
  EXPECT_TRUE(mine.leave()) << "under the number that it had";
}

TEST_F(ClientPlacesTest, ALowerLimitCountsThoseThatAreIn) {
  std::vector<Place> in;
  for (int i = 0; i < 90; ++i) in.push_back(client_.enter({{"route", "/crowd"}}));
  std::string rules = kRules;
  rules.replace(rules.find("100}"), 4, " 50}");
  served_.Publish(rules);
  in.erase(in.begin() + 50, in.end());
  EXPECT_FALSE(client_.enter({{"route", "/crowd"}}));
  in.pop_back();
  EXPECT_TRUE(client_.enter({{"route", "/crowd"}}));
}

// What a worker of the test below does until it is killed: enters, checks that nobody else is where
// it is, and leaves.
struct Board {
  std::atomic<int32_t> owners[100];
  std::atomic<uint64_t> entered;
  std::atomic<uint64_t> violations;
};
void Work(const char* dir, Board* board, unsigned seed) {
  Client client({.runtime_dir = dir});
  if (!client.wait(5s)) _exit(1);
  std::minstd_rand random(seed);
  const int32_t self = getpid();
  std::vector<Place> in;
  for (;;) {
    if (in.size() < 20) {
      in.push_back(client.enter({{"route", "/crowd"}}));
      if (!in.back()) {
        in.pop_back();
      } else {
        const uint32_t at = in.back().raw().decision.spends[0].floor_q16;
        const int32_t before = at < 100 ? board->owners[at].exchange(self) : self;
        if (before != 0 && (before == self || IsSiblingRunning(before))) ++board->violations;
        ++board->entered;
      }
    }
    if (!in.empty() && (in.size() == 20 || random() % 3 == 0)) {
      const size_t i = random() % in.size();
      std::swap(in[i], in.back());
      board->owners[in.back().raw().decision.spends[0].floor_q16 % 100] = 0;
      in.pop_back();
    }
    if (random() % 8 == 0) usleep(random() % 100);
  }
}

// SLUICE_KILLS: how many, where more are wanted.
TEST_F(ClientPlacesTest, KilledAtAnyInstructionTheyAreNeverOverAndAllComesBack) {
  const char* const wanted = getenv("SLUICE_KILLS");
  const int kills = wanted != nullptr ? atoi(wanted) : 300;
  auto* const board =
      new (mmap(nullptr, sizeof(Board), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0))
          Board{};
  const auto begin = [&](int i) {
    return Fork([&] { Work(served_.dir().c_str(), board, static_cast<unsigned>(i)); });
  };
  std::vector<pid_t> workers;
  for (int i = 0; i < 8; ++i) workers.push_back(begin(i));
  std::minstd_rand random(7);
  uint64_t most = 0;
  for (int k = 0; k < kills; ++k) {
    usleep(1000 + random() % 8000);
    pid_t& worker = workers[random() % workers.size()];
    kill(worker, SIGKILL);
    Reap(worker);
    worker = begin(100 + k);
    most = std::max(most, Held());
  }
  for (const pid_t worker : workers) kill(worker, SIGKILL);
  const uint64_t last_ns = shm::MonotonicClock::PreciseNs();
  for (const pid_t worker : workers) Reap(worker);
  EXPECT_TRUE(ComesTo(0));
  RecordProperty("back_ms",
                 static_cast<int>((shm::MonotonicClock::PreciseNs() - last_ns) / 1'000'000));
  RecordProperty("most_held", static_cast<int>(most));
  printf("%d kills, %llu entered, at most %llu seen held, all back after %.0f ms\n", kills,
         static_cast<unsigned long long>(board->entered.load()),
         static_cast<unsigned long long>(most),
         static_cast<double>(shm::MonotonicClock::PreciseNs() - last_ns) * 1e-6);
  EXPECT_EQ(board->violations, 0u);
  EXPECT_GT(board->entered, static_cast<uint64_t>(kills));
  EXPECT_LE(most, 100u);
  std::vector<Place> in;
  for (int i = 0; i < 100; ++i) in.push_back(client_.enter({{"route", "/crowd"}}));
  EXPECT_TRUE(in.back());
  EXPECT_FALSE(client_.enter({{"route", "/crowd"}}));
  munmap(board, sizeof(Board));
}

}  // namespace
}  // namespace sluice::test
