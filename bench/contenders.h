// The rows of checks: what each runs beside its floor. Rows are timed by main.cc and counted
// by instructions.cc.
#pragma once

#include <span>
#include <vector>

#include "bench/paired.h"
#include "bench/stage.h"

namespace sluice::bench {

struct CheckRow {
  const char* name;
  uint64_t units;  // checks per slice: some tens of microseconds; a multiple of `batch`
  uint64_t batch;  // the fewest checks that it can be asked for
  // The row first ("ns"), then its floor and what else it stands beside. Makes the stage.
  std::vector<Contender> (*contenders)();
};

// All rows of checks by one thread.
std::span<const CheckRow> CheckRows();

// Checks by key of the bound rule `label`.
Contender KeyedCheck(const char* name, const char* label, bool with_decision = false);

}  // namespace sluice::bench
