// What the slot protocol promises under weak memory, as scenarios for the explorer. Each is as
// small as its promise allows: every access of weak memory multiplies the states.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "tests/weak/world.h"

namespace sluice::weak {

// A scenario with the world that it lives in.
struct Staged {
  std::unique_ptr<World> world;
  model::Scenario scenario;
};

struct Named {
  const char* name;
  Staged (*make)();
};

extern const std::vector<Named> kScenarios;

}  // namespace sluice::weak
