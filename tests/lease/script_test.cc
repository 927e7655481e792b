// lua/lease.lua alone, by what its bucket then holds.
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <sstream>
#include <string>
#include <vector>

#include "daemon/lease/session.h"
#include "lua_scripts.h"
#include "tests/support/lua_redis.h"

namespace sluice::lease {
namespace {

constexpr char kKey[] = "rl:5:{0}";
constexpr uint64_t kSecondUs = 1'000'000;
constexpr uint64_t kStartUs = 1'700'000'000 * kSecondUs;

// The script as it is, or as the seeded bugs of test_mutants.py have it.
const std::string& Text() {
  static const std::string text = [] {
    const char* const file = getenv("LEASE_SCRIPT");
    if (file == nullptr) return std::string(lua::kLease);
    std::ifstream in(file);
    return std::string(std::istreambuf_iterator<char>(in), {});
  }();
  return text;
}

struct Stored {
  uint64_t level, t_us, fence_us, gen, out_now, out_before;
};

// A host without a clock: it says what the test has it say.
class Script : public testing::Test {
 protected:
  Script() { redis_.time_us = kStartUs; }

  redis::Reply Send(uint64_t instance, uint64_t seq, const Ask& ask,
                    const std::string& primary = "") {
    std::vector<std::string> args = Args(instance, seq, ask);
    args[kPrimaryArg] = primary;
    return redis_.Eval(Text(), kKey, args);
  }
  Grant Lend(uint64_t instance, uint64_t seq, const Ask& ask, const std::string& primary = "") {
    const redis::Reply reply = Send(instance, seq, ask, primary);
    Session session = SessionAt(instance, seq, ask);
    const auto grants = session.OnReply(seq, reply, 0);
    EXPECT_TRUE(grants.ok()) << grants.status() << reply.text;
    if (!grants.ok() || !grants->has_value()) return {};
    return (**grants)[0];
  }
  Stored Bucket() {
    Stored s{};
    std::istringstream(redis_.data[kKey]["b"]) >> s.level >> s.t_us >> s.fence_us >> s.gen >>
        s.out_now >> s.out_before;
    return s;
  }
  // In tokens; it may be below 0.
  int64_t Level() {
    return std::stoll(redis_.data[kKey]["b"]) / static_cast<int64_t>(terms_.unit_us);
  }
  static Ask Want(uint64_t target) {
    Ask ask;
    ask.target = target;
    ask.demand_milli = 1'000;
    return ask;
  }
  static Ask Report(const Grant& grant, uint64_t rem, uint64_t ret, uint64_t target) {
    Ask ask = Want(target);
    ask.fence_us = grant.fence_us;
    ask.gen = grant.gen;
    ask.held = grant.tokens;
    ask.rem = rem;
    ask.ret = ret;
    return ask;
  }

  test::LuaRedis redis_;
  Terms terms_ = *MakeTerms(10, kSecondUs, 100, 0);
  std::string bucket_ = "b";

 private:
  Session SessionAt(uint64_t instance, uint64_t seq, const Ask& ask) {
    Session session({instance, 0}, 50'000);
    const Asked asked{bucket_, terms_, ask};
    for (uint64_t i = 0; i < seq; ++i) (void)session.Start({&asked, 1}, 0, 0);
    return session;
  }
  std::vector<std::string> Args(uint64_t instance, uint64_t seq, const Ask& ask) {
    return SessionAt(instance, seq, ask).call()->args;
  }
};

TEST_F(Script, RefillStopsWhereLevelAndWhatIsOutAreTheBurst) {
  EXPECT_EQ(Lend(1, 1, Want(40)).tokens, 40u);
  redis_.time_us += kSecondUs / 2;
  (void)Lend(2, 1, Want(0));
  EXPECT_EQ(Bucket().level, 60 * terms_.unit_us);
}

TEST_F(Script, RefillIsCountedUpToTheEndOfEachGeneration) {
  (void)Lend(1, 1, Want(40));
  redis_.time_us += 2 * kSecondUs + kSecondUs / 10;
  (void)Lend(2, 1, Want(0));
  // It ended 0.1 s ago: what it kept out for two seconds has not been refilled before.
  EXPECT_EQ(Bucket().level, 61 * terms_.unit_us);
}

TEST_F(Script, ADuplicateIsToldTheSameAndChangesNothing) {
  const redis::Reply first = Send(1, 1, Want(10));
  const auto before = redis_.data;
  redis_.time_us += 1000;
  const redis::Reply second = Send(1, 1, Want(10));
  ASSERT_EQ(first.elements.size(), second.elements.size());
  for (size_t i = 0; i < first.elements.size(); ++i) {
    EXPECT_EQ(first.elements[i].integer, second.elements[i].integer) << i;
  }
  EXPECT_EQ(redis_.data, before);
}

TEST_F(Script, WhatStandsUnderAFormerNameIsTakenOver) {
  EXPECT_EQ(Lend(1, 1, Want(40)).tokens, 40u);
  bucket_ = std::string("c\0b", 3);
  const Grant grant = Lend(2, 1, Want(80));
  EXPECT_LE(grant.tokens, 60u);
  EXPECT_EQ(redis_.data[kKey].count("b"), 0u);
  EXPECT_EQ(redis_.data[kKey].count("c"), 1u);
  bucket_ = std::string("b\0c", 3);
  EXPECT_LE(Lend(1, 2, Want(80)).tokens + grant.tokens, 60u);
  EXPECT_EQ(redis_.data[kKey].count("b"), 1u);
  EXPECT_EQ(redis_.data[kKey].count("c"), 0u);
}

TEST_F(Script, AnOlderCallIsRefused) {
  (void)Lend(1, 2, Want(10));
  const auto before = redis_.data;
  EXPECT_EQ(Send(1, 1, Want(10)).elements[0].integer, 0);
  EXPECT_EQ(redis_.data, before);
}

TEST_F(Script, ALiveReturnMovesTokensBackAndAnExpiredOneIsCreditedNothing) {
  const Grant lent = Lend(1, 1, Want(40));
  redis_.time_us += 1000;
  const Grant again = Lend(1, 2, Report(lent, 0, 30, 0));
  EXPECT_TRUE(again.live);
  EXPECT_EQ(Bucket().level, 90 * terms_.unit_us);
  EXPECT_EQ(Bucket().out_now, 0u);
  const Grant more = Lend(1, 3, Want(40));
  redis_.time_us += 2 * kSecondUs;
  EXPECT_FALSE(Lend(1, 4, Report(more, 0, 40, 0)).live);
  EXPECT_EQ(Bucket().level, (100 - more.tokens) * terms_.unit_us + 1000 * terms_.limit);
}

TEST_F(Script, ReturningMoreThanWasHeldIsNotBelieved) {
  const Grant lent = Lend(1, 1, Want(10));
  EXPECT_FALSE(Lend(1, 2, Report(lent, 0, 11, 0)).live);
  EXPECT_EQ(Bucket().level, 90 * terms_.unit_us);
  EXPECT_EQ(Bucket().out_now, 10u);
}

TEST_F(Script, ALargeCostIsServedWholeOrNotAtAll) {
  (void)Lend(1, 1, Want(60));
  (void)Lend(2, 1, Want(30));
  Ask ask = Want(50);
  ask.need = 50;
  const Grant none = Lend(3, 1, ask);
  EXPECT_EQ(none.tokens, 0u);
  EXPECT_TRUE(none.shortage);
  redis_.time_us += 20 * kSecondUs;
  EXPECT_EQ(Lend(3, 2, ask).tokens, 50u);
}

TEST_F(Script, AnotherPrimaryLendsNothingUntilAllLeasesOfBeforeHaveEnded) {
  (void)Lend(1, 1, Want(0), "a");
  redis_.time_us += 20 * kSecondUs;
  const Grant lent = Lend(1, 2, Want(40), "a");
  ASSERT_EQ(lent.tokens, 40u);
  redis_.time_us += 1000;
  const Grant fenced = Lend(1, 3, Report(lent, 40, 0, 60), "b");
  EXPECT_FALSE(fenced.live);
  EXPECT_EQ(fenced.tokens, 0u);
  redis_.time_us += kSecondUs;
  EXPECT_EQ(Lend(1, 4, Want(60), "b").tokens, 0u);
  // From then on it is refilled, from nothing.
  redis_.time_us += kSecondUs * 3 / 10;
  const uint64_t given = Lend(1, 5, Want(60), "b").tokens;
  EXPECT_GT(given, 0u);
  EXPECT_EQ(Bucket().level + given * terms_.unit_us, 3 * terms_.unit_us);
}

TEST_F(Script, WhatWasSpentBeyondTheLeaseIsTakenFromTheLevelDownToItsFloor) {
  terms_ = *MakeTerms(10, kSecondUs, 100, 0, 10'000);
  Ask ask = Want(0);
  ask.over = 130;
  EXPECT_EQ(Lend(1, 1, ask).tokens, 0u);
  EXPECT_EQ(Level(), -30);
  ask.over = 500;
  (void)Lend(1, 2, ask);
  EXPECT_EQ(Level(), -100);
  redis_.time_us += 11 * kSecondUs;
  EXPECT_EQ(Lend(1, 3, Want(50)).tokens, 10u);
}

TEST_F(Script, WhatAHostSpentAloneIsPaidByRefillThatWasLostWhileNobodyCame) {
  terms_ = *MakeTerms(10, kSecondUs, 100, 0, 10'000);
  const Grant lent = Lend(1, 1, Want(100));
  redis_.time_us += 4 * kSecondUs;  // of which refill lost what found the burst out, or full
  Ask ask = Report(lent, 0, 0, 0);
  ask.alone = 30;
  ask.alone_us = 3 * kSecondUs;
  ask.part_ppm = 1'000'000;
  (void)Lend(1, 2, ask);
  EXPECT_EQ(Level(), 50) << "20 came in, 20 more found the burst out and pay";
  ask = Want(1);
  ask.alone = 15;
  ask.alone_us = 3 * kSecondUs;
  ask.part_ppm = 1'000'000;
  redis_.time_us += kSecondUs / 100;
  (void)Lend(2, 1, ask);
  EXPECT_EQ(Level(), 34) << "and nothing pays again";
}

TEST_F(Script, WhatHostsSpendThatAreNotBackYetIsSetAsideAndPaysWhenTheyAre) {
  terms_ = *MakeTerms(10, kSecondUs, 100, 0, 10'000);
  const Grant lent = Lend(1, 1, Want(100));
  redis_.time_us += 4 * kSecondUs;
  Ask ask = Report(lent, 0, 0, 0);
  ask.alone = 1;
  ask.alone_us = 3 * kSecondUs;
  ask.part_ppm = 600'000;  // four tenths of the limit go on elsewhere
  (void)Lend(1, 2, ask);
  ASSERT_EQ(Level(), 60) << "and 20 were lost";
  redis_.time_us += kSecondUs;
  (void)Lend(1, 3, Want(0));
  EXPECT_EQ(Level(), 66) << "of 10 tokens that came";
  ask = Want(0);
  ask.alone = 23;  // 20 were lost and one of them is paid, and 4 stood aside
  ask.alone_us = 4 * kSecondUs;
  ask.part_ppm = 400'000;
  (void)Lend(2, 1, ask);
  EXPECT_EQ(Level(), 66);
  redis_.time_us += kSecondUs;
  (void)Lend(1, 4, Want(0));
  EXPECT_EQ(Level(), 76) << "all are back";
}

// A call of before the outage ran when it ended, and its host was not there any more: the pause
// after it took the place of the outage, and nothing paid for that.
TEST_F(Script, APauseSoonAfterAnOutageIsPartOfIt) {
  terms_ = *MakeTerms(10, kSecondUs, 100, 0, 10'000);
  (void)Lend(1, 1, Want(60));
  redis_.time_us += 5 * kSecondUs;
  (void)Lend(1, 2, Want(0));
  redis_.time_us += kSecondUs;
  (void)Lend(1, 3, Want(0));
  Ask ask = Want(0);
  ask.alone = 20;
  ask.alone_us = 6 * kSecondUs;
  ask.part_ppm = 1'000'000;
  (void)Lend(1, 4, ask);
  EXPECT_EQ(Level(), 80) << "20 found what was lent still out, and pay";
}

// They were told nothing for long, and back before they went on alone.
TEST_F(Script, NothingIsSetAsideForHostsThatWereNotAlone) {
  terms_ = *MakeTerms(10, kSecondUs, 100, 0, 10'000);
  const Grant lent = Lend(1, 1, Want(100));
  redis_.time_us += 4 * kSecondUs;
  Ask ask = Report(lent, 0, 0, 0);
  ask.alone_us = 3 * kSecondUs;
  ask.part_ppm = 600'000;
  (void)Lend(1, 2, ask);
  const int64_t level = Level();
  redis_.time_us += kSecondUs;
  (void)Lend(1, 3, Want(0));
  EXPECT_EQ(Level(), level + 10) << "nobody was";
  ask = Want(0);
  ask.alone = 1;
  ask.alone_us = 4 * kSecondUs;
  ask.part_ppm = 200'000;
  (void)Lend(2, 1, ask);
  redis_.time_us += kSecondUs;
  (void)Lend(1, 4, Want(0));
  EXPECT_EQ(Level(), level + 18) << "one was, and a fifth of the limit is not back";
}

TEST_F(Script, NothingIsSetAsideForLong) {
  terms_ = *MakeTerms(10, kSecondUs, 100, 0, 10'000);
  const Grant lent = Lend(1, 1, Want(100));
  redis_.time_us += 4 * kSecondUs;
  Ask ask = Report(lent, 0, 0, 0);
  ask.alone = 1;
  ask.alone_us = 3 * kSecondUs;
  ask.part_ppm = 500'000;
  (void)Lend(1, 2, ask);
  for (uint64_t seq = 3; seq < 63; ++seq) {
    redis_.time_us += kSecondUs / 20;
    (void)Lend(1, seq, Want(0));
  }
  EXPECT_NEAR(static_cast<double>(Level()), 60 + 30 - 12.5, 1) << "half of it, for 2.5 of 3 s";
  const int64_t level = Level();
  redis_.time_us += kSecondUs / 20;
  (void)Lend(1, 63, Want(0));
  redis_.time_us += kSecondUs;
  (void)Lend(1, 64, Want(0));
  EXPECT_GE(Level(), level + 10);
}

TEST_F(Script, AStrictBucketPaysForNoOverdraft) {
  Ask ask = Want(10);
  ask.over = 30;
  (void)Lend(1, 1, ask);
  EXPECT_EQ(Level(), 90);
}

TEST_F(Script, WhereHostsMayOverdrawAFailoverIsNotWaitedFor) {
  terms_ = *MakeTerms(10, kSecondUs, 100, 0, 10'000);
  const Grant lent = Lend(1, 1, Want(40), "first");
  ASSERT_EQ(lent.tokens, 40u);
  const Grant next = Lend(1, 2, Report(lent, 10, 0, 20), "second");
  EXPECT_TRUE(next.live);
  EXPECT_EQ(next.tokens, 10u);
}

TEST_F(Script, ATimeThatGoesBackRefillsNothing) {
  (void)Lend(1, 1, Want(60));
  const uint64_t level = Bucket().level;
  redis_.time_us -= 10 * kSecondUs;
  (void)Lend(2, 1, Want(0));
  EXPECT_EQ(Bucket().level, level);
  EXPECT_EQ(Bucket().t_us, kStartUs);
}

}  // namespace
}  // namespace sluice::lease
