// The rows of checks: what each runs beside its floor. Rows are timed by main.cc and counted
// by instructions.cc.
#pragma once

#include <span>
#include <vector>

#include "bench/paired.h"
#include "bench/stage.h"

namespace sluice::bench {

using Contenders = std::vector<Contender>;

// Checks per slice of a row that works in the caches.
inline constexpr uint64_t kHotUnits = 4096;

struct CheckRow {
  const char* name;
  uint64_t units;  // checks per slice: some tens of microseconds; a multiple of `batch`
  uint64_t batch;  // the fewest checks that it can be asked for
  // The row first ("ns"), then its floor and what else it stands beside. Makes the stage.
  Contenders (*contenders)();
};

// All rows of checks by one thread.
std::span<const CheckRow> CheckRows();
// Of these, the ones of what a rule may have beyond a limit. They have no floor.
std::span<const CheckRow> FeatureRows();

// Checks by handle of the one descriptor `descriptor` with kKey.
Contender HandleCheck(const char* name, const char* descriptor, bool with_decision = false);

// Checks by key of the bound rule `label`.
Contender KeyedCheck(const char* name, const char* label, bool with_decision = false);

}  // namespace sluice::bench
