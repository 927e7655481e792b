// The rules of a run: some are in each, others in a part of the seeds, so that none hides another.
#pragma once

#include <cstdint>

#include "daemon/config/config.h"
#include "tests/simulation/random.h"
#include "tests/simulation/timeline.h"

namespace sluice::simulation {

inline constexpr uint32_t kSeats = 6;    // in flight
inline constexpr uint64_t kStrict = 10;  // a second, and burst
inline constexpr uint64_t kBanAfter = 10;
inline constexpr uint64_t kBanNs = 3 * kSecond;
// Of all rules together, with those that changes bring; of limits that come with a request each
// counts as a rule.
inline constexpr size_t kRulesMost = 22;
// What each value of a private key begins with.
inline constexpr char kPrivateMark[] = "nobody-else-sees-";

// Rules and all that they need beside them: calendars, and keys for what is private. The strict
// rule is the last.
void DrawRules(Random* random, config::Config* config);

// What is told apart by its key only: the same keys, another of them in use on each other host.
void DrawPrivateKeys(Random* random, config::Config* config);

}  // namespace sluice::simulation
