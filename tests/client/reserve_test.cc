// Reserve, then settle: what a request costs is known only afterwards.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstring>
#include <new>
#include <random>
#include <string>
#include <vector>

#include "client/include/sluice.h"
#include "client/include/sluice.hpp"
#include "shm/clock.h"
#include "tests/client/served_client.h"
#include "tests/support/served_segments.h"

namespace sluice::test {
namespace {

using namespace std::chrono_literals;

// Rates so low that no test is slow enough to see a token come back.
constexpr char kRules[] = R"(
rules:
  - {name: tokens, match: {route: /llm}, key: [user], limit: 100 per 100h}
  - {name: window, match: {route: /window}, key: [user], limit: 100 per 10h, algorithm: fixed_window}
  - {name: log, match: {route: /log}, key: [user], limit: 100 per 10h, algorithm: sliding_log}
  - {name: queue, match: {route: /queue}, key: [user], limit: 1 per 1m, burst: 10, max_delay: 10m,
     algorithm: leaky_bucket}
  - {name: both-user, match: {route: /both}, key: [user], limit: 50 per 50h}
  - {name: both-tenant, match: {route: /both}, key: [tenant], limit: 1000 per 1000h, cost: 10}
  - {name: wide, match: {route: /wide}, key: [user], limit: 1000000000 per 366d}
)";

class ReserveTest : public ServedClient {
 protected:
  ReserveTest() : ServedClient(kRules, {.capacity = 1 << 16}) {}

  Reservation Reserve(const char* route, const char* user, uint32_t estimate,
                      std::chrono::nanoseconds hold = 1min) {
    return client_.reserve({{"route", route}, {"user", user}, {"tenant", "t"}}, estimate, hold);
  }
  uint64_t Left(const char* route, const char* user) {
    return client_.peek({{"route", route}, {"user", user}, {"tenant", "t"}}, 0).remaining();
  }
};

TEST_F(ReserveTest, NoMoreIsReservedThanThereIs) {
  uint64_t reserved = 0;
  for (const uint32_t estimate : {58u, 80u, 175u, 175u, 175u}) {
    const Reservation r = Reserve("/llm", "five", estimate);
    if (r) reserved += r.estimate();
    EXPECT_LE(reserved, 100u);
  }
  EXPECT_EQ(reserved, 58u);
}

TEST_F(ReserveTest, AnEstimateAboveTheCapacityIsTheCapacity) {
  const Reservation r = Reserve("/llm", "large", 175);
  ASSERT_TRUE(r);
  EXPECT_EQ(r.estimate(), 100u);
  EXPECT_FALSE(Reserve("/llm", "large", 1));
  EXPECT_TRUE(client_.settle(r, 30));
  EXPECT_EQ(Left("/llm", "large"), 70u);
  // Of several rules the smallest counts, in units of the request's cost.
  EXPECT_EQ(Reserve("/both", "large", 1000).estimate(), 50u);
}

TEST_F(ReserveTest, WhatWasNotUsedComesBackAndTheRestIsChargedByEveryAlgorithm) {
  for (const char* route : {"/llm", "/window", "/log"}) {
    const Reservation less = Reserve(route, "less", 60);
    ASSERT_TRUE(less);
    EXPECT_EQ(Left(route, "less"), 40u) << route;
    EXPECT_TRUE(client_.settle(less, 25));
    EXPECT_EQ(Left(route, "less"), 75u) << route;
    const Reservation more = Reserve(route, "more", 10);
    EXPECT_TRUE(client_.settle(more, 35));
    EXPECT_EQ(Left(route, "more"), 65u) << route;
    const Reservation same = Reserve(route, "same", 10);
    EXPECT_TRUE(client_.settle(same, 10));
    EXPECT_EQ(Left(route, "same"), 90u) << route;
    const Reservation none = Reserve(route, "none", 10);
    EXPECT_TRUE(client_.settle(none, 0));
    EXPECT_EQ(Left(route, "none"), 100u) << route;
  }
  const Reservation queued = Reserve("/queue", "q", 15);
  EXPECT_TRUE(client_.settle(queued, 4));
  EXPECT_EQ(Left("/queue", "q"), 16u);
  EXPECT_EQ(served_.TotalUse(), 3 * (25 + 35 + 10) + 4);
}

TEST_F(ReserveTest, AnUnderestimateIsDebtAsFarAsTheRulesBound) {
  const Reservation r = Reserve("/llm", "debt", 10);
  EXPECT_TRUE(client_.settle(r, 150));
  const Decision d = client_.check({{"route", "/llm"}, {"user", "debt"}});
  ASSERT_FALSE(d);
  // 150 of 100 are used: the next fits when 51 have come back, of which each takes an hour.
  EXPECT_NEAR(static_cast<double>(d.retry_after()->count()) / 3600e9, 51, 0.1);
  const Reservation again = Reserve("/llm", "bound", 1);
  EXPECT_TRUE(client_.settle(again, 1'000'000));
  const Decision far = client_.check({{"route", "/llm"}, {"user", "bound"}});
  EXPECT_NEAR(static_cast<double>(far.retry_after()->count()) / 3600e9, 101, 0.1);
}

TEST_F(ReserveTest, AllRulesOfARequestAreSettled) {
  const Reservation r = Reserve("/both", "u", 20);
  ASSERT_TRUE(r);
  EXPECT_TRUE(client_.settle(r, 5));
  EXPECT_EQ(Left("/both", "u"), 45u);
  EXPECT_EQ(served_.TotalUse(), 5 + 50);
  EXPECT_TRUE(client_.settle(Reserve("/both", "u", 5), 15));
  EXPECT_EQ(Left("/both", "u"), 30u);
  EXPECT_EQ(served_.TotalUse(), 20 + 200);
}

TEST_F(ReserveTest, TheFirstToSettleCounts) {
  const Reservation r = Reserve("/llm", "twice", 50);
  const Reservation copy = r;
  EXPECT_TRUE(client_.settle(r, 10));
  EXPECT_FALSE(client_.settle(r, 0));
  EXPECT_FALSE(client_.settle(copy, 90));
  EXPECT_EQ(Left("/llm", "twice"), 90u);
}

TEST_F(ReserveTest, WhenItsTimeIsOverTheEstimateStands) {
  const Reservation r = Reserve("/llm", "late", 50, 1ms);
  ASSERT_TRUE(r);
  usleep(2000);
  EXPECT_FALSE(client_.settle(r, 1));
  EXPECT_EQ(Left("/llm", "late"), 50u);
}

TEST_F(ReserveTest, ADenialHoldsNothing) {
  EXPECT_TRUE(Reserve("/llm", "full", 100));
  const Reservation denied = Reserve("/llm", "full", 10);
  EXPECT_FALSE(denied);
  EXPECT_TRUE(denied.decision().retry_after());
  EXPECT_FALSE(client_.settle(denied, 1));
  const Reservation unmatched = client_.reserve({{"colour", "red"}}, 5, 1min);
  EXPECT_TRUE(unmatched);
  EXPECT_FALSE(client_.settle(unmatched, 1));
}

TEST_F(ReserveTest, AnotherProcessMaySettle) {
  const Reservation r = Reserve("/llm", "other", 50);
  const pid_t child = fork();
  if (child == 0) {
    Client client({.runtime_dir = served_.dir().c_str()});
    _exit(client.wait(5000ms) && client.settle(r, 20) ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_FALSE(client_.settle(r, 0));
  EXPECT_EQ(Left("/llm", "other"), 80u);
}

TEST_F(ReserveTest, SettlesUnderChangedRulesToo) {
  const Reservation less = Reserve("/llm", "less", 50);
  const Reservation more = Reserve("/llm", "more", 10);
  std::string rules = kRules;
  rules.replace(rules.find("100 per 100h"), 12, "200 per 200h");
  served_.Publish(rules);
  EXPECT_TRUE(client_.settle(less, 20));
  EXPECT_TRUE(client_.settle(more, 30));
  EXPECT_EQ(Left("/llm", "less"), 180u);
  EXPECT_EQ(Left("/llm", "more"), 170u);
  served_.NewGeneration(kRules);
  const Reservation stale = less;
  client_.wait(5000ms);
  for (int i = 0; i < 500 && sluice_settle(client_.raw(), &stale.raw(), 1) != SLUICE_E_STALE; ++i) {
    usleep(10'000);
    client_.check({{"route", "/llm"}, {"user", "x"}});
  }
  EXPECT_EQ(sluice_settle(client_.raw(), &stale.raw(), 1), SLUICE_E_STALE);
}

// A table of the smallest size holds some reservations, and says when it can hold no more.
TEST(ReserveFullTest, WhereNoSlotIsFreeNothingIsSpent) {
  ServedSegments served(kRules, {.capacity = 64});
  Client client({.runtime_dir = served.dir().c_str()});
  ASSERT_TRUE(client.wait(5000ms));
  int64_t held = 0;
  int full = 0;
  for (int i = 0; i < 200; ++i) {
    const Reservation r = client.reserve({{"route", "/wide"}, {"user", "u"}}, 3, 1h);
    held += r.error() == 0 ? 3 : 0;
    full += r.error() == SLUICE_E_FULL ? 1 : 0;
  }
  EXPECT_GT(held, 3 * 16);
  EXPECT_GT(full, 100);
  EXPECT_EQ(served.TotalUse(), held);
}

TEST(ReserveFullTest, ASlotIsFreeAsSoonAsItsReservationIsSettled) {
  ServedSegments served(kRules, {.capacity = 64});
  Client client({.runtime_dir = served.dir().c_str()});
  ASSERT_TRUE(client.wait(5000ms));
  for (int i = 0; i < 1000; ++i) {
    const Reservation r = client.reserve({{"route", "/wide"}, {"user", "u"}}, 3, 1h);
    ASSERT_EQ(r.error(), 0) << i;
    ASSERT_TRUE(client.settle(r, 1)) << i;
  }
  EXPECT_EQ(served.TotalUse(), 1000);
}

TEST_F(ReserveTest, WrongArgumentsAreErrors) {
  const Descriptor d[] = {{"route", "/llm"}, {"user", "wrong"}};
  sluice_reservation_t r;
  sluice_t* const c = client_.raw();
  EXPECT_EQ(sluice_reserve(nullptr, d, 2, 1, 1'000'000, &r), SLUICE_E_ARGUMENT);
  EXPECT_EQ(sluice_reserve(c, d, 2, 1, 1'000'000, nullptr), SLUICE_E_ARGUMENT);
  EXPECT_EQ(sluice_reserve(c, d, 2, 0, 1'000'000, &r), SLUICE_E_ARGUMENT);
  EXPECT_EQ(sluice_reserve(c, d, 2, SLUICE_MAX_COST + 1, 1'000'000, &r), SLUICE_E_ARGUMENT);
  EXPECT_EQ(sluice_reserve(c, d, 2, 1, 999'999, &r), SLUICE_E_ARGUMENT);
  EXPECT_EQ(sluice_reserve(c, d, 2, 1, SLUICE_MAX_HOLD_NS + 1, &r), SLUICE_E_ARGUMENT);
  EXPECT_EQ(sluice_settle(c, &r, 1), 0);
  EXPECT_EQ(sluice_settle(c, nullptr, 1), SLUICE_E_ARGUMENT);
  EXPECT_EQ(Left("/llm", "wrong"), 100u);
}

// What a process has done, written before and after each step, so that nothing of it is unknown but
// the step in which it was killed.
struct Book {
  std::atomic<int64_t> settled;  // what is charged for good
  std::atomic<int64_t> held;     // estimates that are not settled
  std::atomic<int64_t> step;     // the most that the step under way may charge or give back
};

TEST_F(ReserveTest, ProcessesThatAreKilledLeaveTheirEstimates) {
  constexpr int kProcesses = 8;
  constexpr int kRounds = 40;  // of kills
  auto* const books =
      static_cast<Book*>(mmap(nullptr, sizeof(Book) * kProcesses * kRounds, PROT_READ | PROT_WRITE,
                              MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  ASSERT_NE(books, MAP_FAILED);
  const auto work = [&](Book& book, uint64_t seed) {
    Client client({.runtime_dir = served_.dir().c_str()});
    if (!client.wait(5000ms)) _exit(1);
    std::mt19937_64 random(seed);
    for (;;) {
      const auto estimate = static_cast<uint32_t>(1 + random() % 20);
      const auto actual = static_cast<uint32_t>(random() % 40);
      book.step = estimate;
      const Reservation r = client.reserve({{"route", "/wide"}, {"user", "u"}}, estimate, 1h);
      if (r.error() == SLUICE_E_FULL) continue;  // by what was never settled
      if (!r || r.error() != 0) _exit(2);
      book.held += estimate;
      if (random() % 16 == 0) continue;  // never settled
      book.step = actual > estimate ? actual - estimate : estimate;
      if (!client.settle(r, actual)) _exit(3);
      book.held -= estimate;
      book.settled += actual;
    }
  };
  std::mt19937_64 random(7);
  for (int round = 0; round < kRounds; ++round) {
    std::array<pid_t, kProcesses> children{};
    for (int i = 0; i < kProcesses; ++i) {
      Book& book = books[round * kProcesses + i];
      children[static_cast<size_t>(i)] = fork();
      if (children[static_cast<size_t>(i)] == 0) work(book, random() + static_cast<uint64_t>(i));
    }
    usleep(static_cast<useconds_t>(10'000 + random() % 20'000));
    for (const pid_t child : children) kill(child, SIGKILL);
    for (const pid_t child : children) {
      int status = 0;
      waitpid(child, &status, 0);
      EXPECT_TRUE(WIFSIGNALED(status)) << WEXITSTATUS(status);
    }
  }
  int64_t known = 0;
  int64_t unknown = 0;
  for (int i = 0; i < kProcesses * kRounds; ++i) {
    known += books[i].settled + books[i].held;
    unknown += books[i].step;
  }
  EXPECT_GT(known, 10 * unknown);
  // Within what the killed steps may have done and the book does not know.
  EXPECT_NEAR(static_cast<double>(served_.TotalUse()), static_cast<double>(known),
              static_cast<double>(unknown));
  munmap(books, sizeof(Book) * kProcesses * kRounds);
}

}  // namespace
}  // namespace sluice::test
