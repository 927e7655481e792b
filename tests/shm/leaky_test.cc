// Leaky buckets that queue: the word against a queue that is served one by one.
#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "shm/gcra.h"

namespace sluice::shm {
namespace {

constexpr uint64_t kSecond = 1'000'000'000;
constexpr uint64_t kMs = 1'000'000;

struct Answer {
  bool allowed;
  uint64_t delay_ns;
};

// The word as a check treats it.
struct Word {
  Limit limit;
  uint64_t max_delay_ns;
  uint64_t tat = 0;

  Answer Ask(uint64_t n, uint64_t now) {
    const Verdict v = Decide(tat, now, CostNs(n, limit.period_ns, limit.limit), limit.tau_ns);
    if (!v.allowed) return {false, 0};
    tat = v.new_ns;
    return {true, DelayNs(v.new_ns, now, limit.tau_ns, max_delay_ns)};
  }
};

// The same told as a queue: `burst` tokens stand ready; a request takes what is there, and for what
// is missing it waits until the tokens have come, behind those that wait already. In units of
// 1 / limit ns, so that all is exact.
struct Queue {
  uint64_t limit, period_ns, burst, max_delay_ns;
  __int128 level;  // tokens x period; negative: owed to those that wait
  uint64_t at;

  Answer Ask(uint64_t n, uint64_t now) {
    const __int128 full = static_cast<__int128>(burst) * period_ns;
    level = std::min(full, level + static_cast<__int128>(now - at) * limit);
    at = now;
    const __int128 after = level - static_cast<__int128>(n) * period_ns;
    if (after >= 0) {
      level = after;
      return {true, 0};
    }
    const __int128 wait_ns = (-after + limit - 1) / limit;
    if (wait_ns > static_cast<__int128>(max_delay_ns)) return {false, 0};
    level = after;
    return {true, static_cast<uint64_t>(wait_ns)};
  }
};

TEST(LeakyBucketTest, AnswersAsAQueueDoes) {
  std::mt19937_64 random(7);
  for (int round = 0; round < 400; ++round) {
    // Intervals of whole ns: then nothing is rounded, and each answer is equal.
    const uint64_t limit = 1 + random() % 1000;
    const uint64_t interval = 1 + random() % (10 * kMs);
    const uint64_t burst = 1 + random() % 20;
    const uint64_t max_delay = 1 + random() % (40 * interval);
    Word word{MakeLimit(limit, limit * interval, burst, max_delay), max_delay};
    Queue queue{limit, limit * interval, burst, max_delay, 0, kSecond};
    queue.level = static_cast<__int128>(burst) * queue.period_ns;
    uint64_t now = kSecond;
    for (int i = 0; i < 2000; ++i) {
      now += random() % (3 * interval);
      const uint64_t n = 1 + random() % std::min<uint64_t>(burst, 4);
      const Answer said = word.Ask(n, now);
      const Answer meant = queue.Ask(n, now);
      ASSERT_EQ(said.allowed, meant.allowed) << round << "." << i;
      ASSERT_EQ(said.delay_ns, meant.delay_ns) << round << "." << i;
    }
  }
}

TEST(LeakyBucketTest, NoTwoRequestsGoOnWithinLessThanAnInterval) {
  std::mt19937_64 random(8);
  for (int round = 0; round < 200; ++round) {
    const uint64_t limit = 1 + random() % 10'000;
    const uint64_t max_delay = kMs + random() % kSecond;
    Word word{MakeLimit(limit, kSecond, 1, max_delay), max_delay};
    const uint64_t interval = word.limit.interval_ns;
    uint64_t now = kSecond;
    uint64_t last = 0;
    for (int i = 0; i < 3000; ++i) {
      now += random() % (2 * interval);
      const Answer answer = word.Ask(1, now);
      if (!answer.allowed) continue;
      const uint64_t goes_on = now + answer.delay_ns;
      ASSERT_LE(answer.delay_ns, max_delay);
      if (last != 0) {
        ASSERT_GE(goes_on, last + interval);
      }
      last = goes_on;
    }
  }
}

TEST(LeakyBucketTest, ATokenBucketNeverDelays) {
  const Limit limit = MakeLimit(10, kSecond, 5);
  for (uint64_t ahead = 0; ahead <= limit.tau_ns; ahead += limit.tau_ns / 100) {
    EXPECT_EQ(DelayNs(kSecond + ahead, kSecond, limit.tau_ns, 0), 0u);
  }
}

TEST(LeakyBucketTest, NoDelayIsLongerThanTheLongest) {
  const Limit limit = MakeLimit(10, kSecond, 1, 300 * kMs);
  EXPECT_EQ(DelayNs(100 * kSecond, kSecond, limit.tau_ns, 300 * kMs), 300 * kMs);
  EXPECT_EQ(DelayNs(0, kSecond, limit.tau_ns, 300 * kMs), 0u);
}

}  // namespace
}  // namespace sluice::shm
