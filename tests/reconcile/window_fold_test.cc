// What lua/fold.lua makes of windows: the first reporter's stands for all, old use is counted where
// it happened or forgotten, and Redis' clock may jump.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "lua_scripts.h"
#include "tests/support/lua_redis.h"

namespace sluice::test {
namespace {

constexpr char kKey[] = "rl:4:{0}";
constexpr int64_t kSecondUs = 1'000'000;
constexpr int64_t kMsUs = 1000;

struct State {
  int64_t left_us, cur, prev;
  bool operator==(const State&) const = default;
};

std::ostream& operator<<(std::ostream& out, const State& s) {
  return out << "{left " << s.left_us << " cur " << s.cur << " prev " << s.prev << "}";
}

// Hosts that report into one window of a second.
class Windows {
 public:
  explicit Windows(bool slides) : slides_(slides) {}

  // Host `host` used `cur` in its window, which had `left_us` left when the batch was frozen,
  // `late_us` ago, and `prev` in the one before it.
  State Report(char host, int64_t cur, int64_t left_us, int64_t prev = 0, int64_t late_us = 0) {
    const std::vector<std::string> argv = {std::to_string(late_us),
                                           "-1",
                                           std::string(32, host),
                                           std::to_string(++seq_),
                                           "0",
                                           std::to_string(2 * kSecondUs),
                                           "2",
                                           "1000000",
                                           "1000000",
                                           "1000",
                                           std::to_string(length_us),
                                           slides_ ? "-2" : "-1",
                                           "1000",
                                           "tokens",
                                           "1",
                                           "100",
                                           "1",
                                           "0",
                                           "0",
                                           "0",
                                           "-1",
                                           "window",
                                           "2",
                                           std::to_string(cur) + " " + std::to_string(prev),
                                           std::to_string(cur + prev),
                                           std::to_string(left_us),
                                           "5000",
                                           "0",
                                           "-1"};
    const redis::Reply reply = redis.Eval(lua::kFold, kKey, argv);
    EXPECT_FALSE(reply.is_error()) << reply.text;
    EXPECT_EQ(reply.elements.size(), 4u + 2 * 3 + 2);
    return {reply.elements[7].integer, reply.elements[10].integer, reply.elements[11].integer};
  }
  State Look() { return Report('z', 0, 0); }
  void Pass(int64_t us) { redis.time_us += static_cast<uint64_t>(us); }

  LuaRedis redis;
  int64_t length_us = kSecondUs;

 private:
  bool slides_;
  uint64_t seq_ = 0;
};

TEST(WindowFoldTest, TheFirstReportersWindowStands) {
  Windows w(/*slides=*/false);
  EXPECT_EQ(w.Report('a', 10, 900 * kMsUs), (State{900 * kMsUs, 10, 0}));
  w.Pass(50 * kMsUs);
  EXPECT_EQ(w.Report('b', 5, 990 * kMsUs), (State{850 * kMsUs, 15, 0}));
  w.Pass(849 * kMsUs);
  EXPECT_EQ(w.Report('a', 1, kMsUs), (State{kMsUs, 16, 0}));
  w.Pass(kMsUs);
  EXPECT_EQ(w.Look(), (State{0, 0, 0})) << "over, and none follows by itself";
  w.Pass(300 * kMsUs);
  EXPECT_EQ(w.Report('b', 7, 950 * kMsUs), (State{950 * kMsUs, 7, 0}));
}

TEST(WindowFoldTest, SlidingWindowsFollowEachOtherWhileTheLastOneWeighs) {
  Windows w(/*slides=*/true);
  EXPECT_EQ(w.Report('a', 10, 900 * kMsUs), (State{900 * kMsUs, 10, 0}));
  w.Pass(1000 * kMsUs);
  EXPECT_EQ(w.Look(), (State{900 * kMsUs, 0, 10}));
  EXPECT_EQ(w.Report('b', 4, 890 * kMsUs), (State{900 * kMsUs, 4, 10}));
  w.Pass(kSecondUs);
  EXPECT_EQ(w.Look(), (State{900 * kMsUs, 0, 4}));
  w.Pass(2 * kSecondUs);
  EXPECT_EQ(w.Look(), (State{0, 0, 0}));
}

// A host tells apart what it used before its window ended and since.
TEST(WindowFoldTest, UseIsCountedInTheWindowWhereItHappened) {
  Windows w(/*slides=*/true);
  w.Report('a', 10, 500 * kMsUs);
  w.Pass(520 * kMsUs);
  EXPECT_EQ(w.Report('b', 3, 985 * kMsUs, /*prev=*/8), (State{980 * kMsUs, 3, 18}));
  EXPECT_EQ(w.Report('b', 2, -20 * kMsUs), (State{980 * kMsUs, 3, 20}))
      << "all of it before the window ended";
  Windows fixed(/*slides=*/false);
  fixed.Report('a', 10, 500 * kMsUs);
  fixed.Pass(520 * kMsUs);
  EXPECT_EQ(fixed.Report('b', 3, 985 * kMsUs, /*prev=*/8), (State{985 * kMsUs, 3, 0}));
}

// A batch that an outage kept says how late it is.
TEST(WindowFoldTest, OldUseIsForgottenWhenItsWindowIsOver) {
  for (const bool slides : {false, true}) {
    Windows w(slides);
    EXPECT_EQ(w.Report('a', 50, 800 * kMsUs, 0, /*late_us=*/30 * kSecondUs), (State{0, 0, 0}));
    EXPECT_EQ(w.redis.data[kKey].at("s:"), "51") << "but stands in the books";
    w.Report('b', 5, 800 * kMsUs);
    EXPECT_EQ(w.Report('a', 50, 800 * kMsUs, 0, 30 * kSecondUs), (State{800 * kMsUs, 5, 0}));
    EXPECT_EQ(w.Report('a', 50, 800 * kMsUs, 0, 100 * kMsUs), (State{800 * kMsUs, 55, 0}));
  }
}

TEST(WindowFoldTest, ALateReportOfTheLastWindowWeighsInTheNext) {
  Windows w(/*slides=*/true);
  EXPECT_EQ(w.Report('a', 50, 100 * kMsUs, 0, /*late_us=*/400 * kMsUs),
            (State{700 * kMsUs, 0, 50}));
}

TEST(WindowFoldTest, ARefundLowersTheCountAndNeverBelowNothing) {
  Windows w(/*slides=*/false);
  w.Report('a', 10, 900 * kMsUs);
  EXPECT_EQ(w.Report('a', -4, 900 * kMsUs).cur, 6);
  EXPECT_EQ(w.Report('a', -40, 900 * kMsUs).cur, 0);
}

// A failover to a node whose clock is behind: what was to last a second lasts no longer. One that
// is ahead ends a window early, once.
TEST(WindowFoldTest, NoWindowLastsLongerThanItsLengthWhateverTheClockDoes) {
  for (const bool slides : {false, true}) {
    Windows w(slides);
    w.Report('a', 10, 900 * kMsUs);
    w.Pass(-3600 * kSecondUs);
    EXPECT_EQ(w.Look(), (State{kSecondUs, 10, 0}));
    w.Pass(kSecondUs);
    EXPECT_EQ(w.Look().cur, 0);
    w.Report('a', 10, 900 * kMsUs);
    w.Pass(3600 * kSecondUs);
    EXPECT_EQ(w.Look(), (State{0, 0, 0}));
    EXPECT_EQ(w.Report('a', 3, 900 * kMsUs), (State{900 * kMsUs, 3, 0}));
    w.Pass(100 * kMsUs);
    EXPECT_EQ(w.Report('a', 3, 800 * kMsUs), (State{800 * kMsUs, 6, 0}));
  }
}

// No host can say that its window lasts longer than one may.
TEST(WindowFoldTest, AWildReportBeginsNoLongerWindow) {
  Windows w(/*slides=*/true);
  EXPECT_EQ(w.Report('a', 10, 86'400 * kSecondUs), (State{kSecondUs, 10, 0}));
}

TEST(WindowFoldTest, ARuleThatChangesItsKindBeginsAnew) {
  Windows w(/*slides=*/false);
  w.Report('a', 10, 900 * kMsUs);
  std::string& field = w.redis.data[kKey].at("window");
  ASSERT_EQ(field.substr(field.size() - 5), " 10 0");
  w.redis.data[kKey]["window"] = w.redis.data[kKey].at("tokens");
  EXPECT_EQ(w.Look(), (State{0, 0, 0}));
  EXPECT_EQ(w.Report('a', 2, 900 * kMsUs), (State{900 * kMsUs, 2, 0}));
  w.redis.data[kKey]["tokens"] = w.redis.data[kKey].at("window");
  EXPECT_EQ(w.Look(), (State{900 * kMsUs, 2, 0})) << "and the token bucket is read as empty";
}

// What is swept is what weighs no more: a sliding window is kept for a length after its end.
TEST(WindowFoldTest, AWindowIsKeptAsLongAsItWeighs) {
  for (const bool slides : {false, true}) {
    Windows w(slides);
    w.length_us = 60 * kSecondUs;
    w.Report('a', 10, 60 * kSecondUs);
    for (int i = 0; i < 90; ++i) {
      w.Pass(kSecondUs);
      std::vector<std::string> argv = {"0",
                                       "-1",
                                       std::string(32, 'y'),
                                       std::to_string(i + 1),
                                       "0",
                                       "2000000",
                                       "1",
                                       "1000",
                                       "1000",
                                       "1000",
                                       "other",
                                       "1",
                                       "1",
                                       "1",
                                       "0",
                                       "0",
                                       "0",
                                       "-1"};
      ASSERT_FALSE(w.redis.Eval(lua::kFold, kKey, argv).is_error());
    }
    EXPECT_EQ(w.redis.data[kKey].count("window"), slides ? 1u : 0u);
  }
}

}  // namespace
}  // namespace sluice::test
