// What scripts do to the store by themselves: lua/fold.lua against the model, and its expiry
// against a real server.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "lua_scripts.h"
#include "tests/support/lua_redis.h"
#include "tests/support/redis_process.h"

namespace sluice::test {
namespace {

constexpr char kKey[] = "rl:4:{0}";
constexpr uint64_t kSecondUs = 1'000'000;

struct Use {
  std::string bucket;
  std::string cost_us;
  std::string tokens = "1";
  std::string age_us = "0";
};

// One batch under one rule; see lua/fold.lua for the order.
std::vector<std::string> Batch(uint64_t seq, const std::vector<Use>& uses,
                               uint64_t tau_us = kSecondUs, uint64_t time_us = 0) {
  std::vector<std::string> argv = {"0",
                                   "-1",
                                   std::string(32, 'a'),
                                   std::to_string(seq),
                                   std::to_string(time_us),
                                   std::to_string(2 * kSecondUs),
                                   "1",
                                   std::to_string(tau_us),
                                   std::to_string(tau_us),
                                   "1000"};
  for (const Use& use : uses) {
    for (const std::string& word :
         {use.bucket, std::string("1"), use.cost_us, use.tokens, use.age_us, std::string("0"),
          std::string("0"), std::string("-1")}) {
      argv.push_back(word);
    }
  }
  return argv;
}

// A script that fails half-way keeps what it wrote: this one has written nothing by then, not the
// first bucket without the second, nor the sequence number without either.
TEST(FoldTest, ABatchThatFailsHalfWayHasWrittenNothing) {
  LuaRedis redis;
  ASSERT_FALSE(redis.Eval(lua::kFold, kKey, Batch(1, {{"a", "100"}, {"b", "100"}})).is_error());
  const LuaRedis::Hash before = redis.data[kKey];
  ASSERT_TRUE(redis.Eval(lua::kFold, kKey, Batch(2, {{"a", "100"}, {"b", "much"}})).is_error());
  EXPECT_EQ(redis.data[kKey], before);
  ASSERT_FALSE(redis.Eval(lua::kFold, kKey, Batch(2, {{"a", "100"}, {"b", "100"}})).is_error());
  EXPECT_NE(redis.data[kKey], before) << "the same batch, mended, still counts";
}

// Lua's own way to write a number keeps 14 digits.
TEST(FoldTest, LargeNumbersKeepEveryDigit) {
  LuaRedis redis;
  redis.time_us = 4'000'000'000'000'001;
  ASSERT_FALSE(
      redis.Eval(lua::kFold, kKey, Batch(9'007'199'254'740'991, {{"a", "3", "900719925474099"}}))
          .is_error());
  const LuaRedis::Hash& hash = redis.data[kKey];
  EXPECT_EQ(hash.at("a").substr(0, 33), "4000000000000004 900719925474099 ");
  EXPECT_EQ(hash.at("h:" + std::string(32, 'a')), "9007199254740991 4000000000000001");
  EXPECT_EQ(hash.at("s:"), "900719925474099");
}

// Batches that the daemon still has go before it, under their own numbers: else the hash would know
// a number and not what stands below it.
TEST(FoldTest, ABatchIsRefusedWhereEarlierOnesAreMissing) {
  LuaRedis redis;
  const auto outcome = [&redis](uint64_t seq, const std::string& known) {
    std::vector<std::string> argv = Batch(seq, {{"a", "100"}});
    argv[1] = known;
    const redis::Reply reply = redis.Eval(lua::kFold, kKey, argv);
    return std::pair(reply.elements[0].integer, reply.elements[1].integer);
  };
  EXPECT_EQ(outcome(7, "-1"), std::pair(int64_t{1}, int64_t{-1}));
  const LuaRedis::Data before = redis.data;
  EXPECT_EQ(outcome(10, "9"), std::pair(int64_t{2}, int64_t{7}));
  EXPECT_EQ(redis.data, before);
  EXPECT_EQ(outcome(8, "7"), std::pair(int64_t{1}, int64_t{7}));
  EXPECT_EQ(outcome(8, "7"), std::pair(int64_t{0}, int64_t{8})) << "known: only read";
  EXPECT_EQ(outcome(7, "12"), std::pair(int64_t{0}, int64_t{8})) << "known, whatever is missing";
  EXPECT_EQ(outcome(10, "8"), std::pair(int64_t{1}, int64_t{8})) << "a number may be left out";
  EXPECT_EQ(redis.data[kKey].at("s:"), "3");
}

// Uses of one bucket, a batch each, at `at_s` of Redis' time and as old as they say.
class LostRefillTest : public testing::Test {
 protected:
  // What is owed then, ms.
  int64_t Fold(uint64_t at_s, uint64_t cost_ms, uint64_t age_s) {
    redis_.time_us = at_s * kSecondUs;
    const Use use{"a", std::to_string(cost_ms * 1000), "1", std::to_string(age_s * kSecondUs)};
    const redis::Reply reply =
        redis_.Eval(lua::kFold, kKey, Batch(++seq_, {use}, /*tau_us=*/100 * kSecondUs));
    EXPECT_FALSE(reply.is_error()) << reply.text;
    return reply.is_error() ? -1 : reply.elements[4].integer / 1000;
  }
  bool Remembers(const std::string& text) {
    return redis_.data[kKey].at("a").find(text) != std::string::npos;
  }

 private:
  LuaRedis redis_;
  uint64_t seq_ = 0;
};

// Hosts that return one after the other: the use of the first since would make a debt of what the
// others used while nobody was heard.
TEST_F(LostRefillTest, PaysForWhatIsReportedLate) {
  EXPECT_EQ(Fold(100, 1, 0), 1);
  EXPECT_EQ(Fold(105, 1000, 0), 1000) << "heard first; 4,999 ms of refill were lost";
  // Evenly used in 6 s, of which 5 were the outage: five sixths of it happened then.
  EXPECT_EQ(Fold(106, 3000, 6), 3000 - 2425);
  EXPECT_EQ(Fold(106, 100, 0), 675) << "what is used now is not paid for";
  EXPECT_EQ(Fold(106, 100, 1), 775) << "nor what was used since";
  EXPECT_EQ(Fold(106, 3000, 6), 775 + 575);
  EXPECT_EQ(Fold(106, 3000, 6), 1350 + 3000 - (4999 - 2 * 2425)) << "no more than was lost";
  EXPECT_EQ(Fold(106, 3000, 6), 4201 + 3000);
}

// No host takes longer to return; and a clock that went back makes an end that is not yet.
TEST_F(LostRefillTest, IsForgottenAndNoClockThatWentBackUsesIt) {
  constexpr char kLost[] = " g 9000000 110000000";
  (void)Fold(100, 1000, 0);
  (void)Fold(110, 30'000, 0);
  EXPECT_TRUE(Remembers(kLost));
  (void)Fold(109, 1000, 2);
  EXPECT_TRUE(Remembers(kLost)) << "it is not yet";
  (void)Fold(124, 1000, 0);
  EXPECT_TRUE(Remembers(kLost));
  (void)Fold(126, 1000, 0);
  EXPECT_FALSE(Remembers(" g "));
}

// Names that change with the keys of private values: one field a bucket, whichever name is first.
TEST(FoldTest, WhatStandsUnderAFormerNameIsTakenOver) {
  LuaRedis redis;
  redis.time_us = kSecondUs;
  const std::string nul(1, '\0');
  const auto fold = [&](uint64_t seq, const std::string& name) {
    const redis::Reply reply = redis.Eval(lua::kFold, kKey, Batch(seq, {{name, "1000", "2"}}));
    EXPECT_FALSE(reply.is_error()) << reply.text;
    return reply.is_error() ? -1 : reply.elements[4].integer;
  };
  EXPECT_EQ(fold(1, "old"), 1000);
  EXPECT_EQ(fold(2, "new" + nul + "old"), 2000);
  LuaRedis::Hash& hash = redis.data[kKey];
  EXPECT_EQ(hash.count("old"), 0u);
  EXPECT_EQ(hash.count("new"), 1u);
  EXPECT_EQ(fold(3, "old" + nul + "older" + nul + "new"), 3000) << "by a host that has not turned";
  EXPECT_EQ(hash.count("new"), 0u);
  EXPECT_EQ(fold(4, "new" + nul + "old"), 4000);
  EXPECT_EQ(fold(4, "new" + nul + "old"), 4000) << "a copy";
  // By one that did not know the new name: it stands in the new one's way no longer.
  EXPECT_EQ(fold(5, "old"), 1000);
  EXPECT_EQ(fold(6, "new" + nul + "old"), 5000);
  EXPECT_EQ(hash.count("old"), 0u);
  EXPECT_EQ(hash.at("s:"), "12");
}

// A sample of fixed size leaves ever more buckets behind that nobody asks for again.
TEST(FoldTest, KeysThatAreUsedOnceDoNotPileUp) {
  LuaRedis redis;
  constexpr int kBatches = 400;
  constexpr int kKeysPerBatch = 50;
  for (int batch = 0; batch < kBatches; ++batch) {
    redis.time_us += kSecondUs / 10;
    std::vector<Use> uses;
    for (int i = 0; i < kKeysPerBatch; ++i) {
      uses.push_back({std::to_string(batch * kKeysPerBatch + i), "1000"});
    }
    ASSERT_FALSE(
        redis.Eval(lua::kFold, kKey, Batch(static_cast<uint64_t>(batch + 1), uses)).is_error());
  }
  // Two generations of 2 s are kept: 2,000 keys; a sample of twice the inflow finds the others.
  EXPECT_LT(redis.data[kKey].size(), 6000u);
}

// PEXPIRE alone shortens what a longer debt needs, and with GT alone it never begins.
TEST(FoldTest, TheHashLivesAsLongAsItsLongestDebt) {
  RedisProcess redis({});
  ASSERT_TRUE(redis.running()) << redis.log();
  const auto fold = [&](const std::vector<std::string>& argv) {
    std::vector<std::string> words = {"EVAL", std::string(lua::kFold), "1", kKey};
    words.insert(words.end(), argv.begin(), argv.end());
    const redis::Reply reply = redis.Command(words);
    return reply.is_error() ? reply.text : std::string();
  };
  const auto left_s = [&] { return redis.Command({"PTTL", kKey}).integer / 1000; };
  constexpr uint64_t kDayUs = 86'400 * kSecondUs;
  ASSERT_EQ(fold(Batch(1, {{"a", "1000"}})), "");
  EXPECT_GT(left_s(), 500);
  EXPECT_LE(left_s(), 600);
  ASSERT_EQ(fold(Batch(2, {{"long", std::to_string(kDayUs)}}, kDayUs)), "");
  EXPECT_GT(left_s(), 86'400);
  ASSERT_EQ(fold(Batch(3, {{"a", "1000"}})), "");
  EXPECT_GT(left_s(), 86'400);
}

}  // namespace
}  // namespace sluice::test
