// Traffic of a fleet's tests, and what holds of it whatever the algorithm.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "tests/reconcile/fleet.h"

namespace sluice::test {

// One rule by user.
inline config::Config OneRule(uint64_t limit, uint64_t period_ns, uint64_t burst,
                              shm::Kind kind = shm::Kind::kTokenBucket) {
  config::RuleConfig rule;
  rule.name = "per-user";
  rule.key = {{.descriptor = "user"}};
  rule.limit = config::LimitConfig{.limit = limit, .period_ns = period_ns, .burst = burst};
  rule.kind = kind;
  config::Config config;
  config.redis.emplace();
  config.rules = {rule};
  return config;
}
// The same of a window or a log.
inline config::Config OneWindow(shm::Kind kind, uint64_t limit, uint64_t period_ns) {
  return OneRule(limit, period_ns, limit, kind);
}

// Checks of user "u" on a host, so many a second, of `tokens` each; each step is a millisecond, and
// fractions carry over.
class Demand {
 public:
  Demand(Host& host, double per_second, uint32_t tokens = 1)
      : host_(host), per_ms_(per_second / 1000), tokens_(tokens) {}
  void Step() {
    for (owed_ += per_ms_; owed_ >= 1; owed_ -= 1) host_.Check("per-user", "u", tokens_);
  }

 private:
  Host& host_;
  double per_ms_;
  uint32_t tokens_;
  double owed_ = 0;
};

// A step of all of them: so many checks a second on each of the first hosts.
inline std::function<void()> DemandOf(Fleet& fleet, const std::vector<double>& per_second,
                                      uint32_t tokens = 1) {
  auto demands = std::make_shared<std::vector<Demand>>();
  for (const double rate : per_second) {
    demands->emplace_back(fleet.host(demands->size()), rate, tokens);
  }
  return [demands] {
    for (Demand& demand : *demands) demand.Step();
  };
}

// Three hosts check while a fifth of all messages is lost, then rest: all use is counted, once.
inline void ExpectNothingIsLostOrDoubled(const config::Config& config) {
  Fleet fleet(3, config);
  fleet.network.lose_request = 0.2;
  fleet.network.lose_reply = 0.2;
  fleet.Run(10 * kSecond, [&] {
    for (int h = 0; h < 3; ++h) {
      for (int user = 0; user < 3; ++user) {
        fleet.host(static_cast<size_t>(h)).Check("per-user", "u" + std::to_string(user));
      }
    }
  });
  fleet.Run(20 * kSecond);
  EXPECT_GT(fleet.host(0).reconciler().stats().resends, 10u);
  EXPECT_EQ(fleet.Counted(), static_cast<int64_t>(fleet.Admitted()));
}

}  // namespace sluice::test
