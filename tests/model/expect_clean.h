// How far the model's tests go, and what they expect of a scenario.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <utility>

#include "tests/model/explorer.h"

namespace sluice::model {

// MODEL_STATES goes further than the tests have time for, or less far.
inline constexpr uint64_t kUsualStates = 2'000'000;
inline const uint64_t kMaxStates = [] {
  const char* const wanted = getenv("MODEL_STATES");
  return wanted != nullptr ? strtoull(wanted, nullptr, 10) : kUsualStates;
}();

// `bounded`: too many states to visit all; the first kMaxStates must be clean.
inline void ExpectClean(Scenario scenario, const char* name, bool bounded = false) {
  const Exploration e = Explorer(std::move(scenario)).Run(kMaxStates);
  EXPECT_EQ(e.failure, "") << "schedule " << e.schedule;
  EXPECT_TRUE(e.complete || bounded || kMaxStates < kUsualStates) << "bound reached";
  EXPECT_GT(e.ends, 0u);
  printf("%s: %lu states, %lu ends, %s\n", name, e.states, e.ends,
         e.complete ? "complete" : "bounded");
}

}  // namespace sluice::model
