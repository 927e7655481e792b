// Counts, under callgrind, what checks and their floors execute: see instructions.py, which runs
// it.
//
//   sluice_instructions ROW...
//
// For each contender of each row callgrind writes two dumps: one named "count ROW CONTENDER
// CHECKS", and one named "lines ROW CONTENDER CHECKS", whose data misses are the cache lines that a
// check touches, since the cache is emptied before each.
#include <valgrind/callgrind.h>

#include <cstdio>
#include <cstring>
#include <string>

#include "bench/contenders.h"
#include "bench/still_clock.h"

namespace sluice::bench {
namespace {

constexpr uint64_t kRounds = 8;
constexpr uint64_t kColdRounds = 64;
// Twice the simulated cache of instructions.py: whatever stood in it is gone.
constexpr size_t kEvictBytes = 2 * 32 * 1024;
alignas(64) volatile char evictor[kEvictBytes];

void EmptyCache() {
  for (size_t at = 0; at < kEvictBytes; at += 64) (void)evictor[at];
}

void Dump(const char* what, const CheckRow& row, const Contender& contender, uint64_t checks) {
  const std::string name =
      std::string(what) + " " + row.name + " " + contender.name + " " + std::to_string(checks);
  CALLGRIND_DUMP_STATS_AT(name.c_str());
}

void Count(const CheckRow& row, const Contender& contender) {
  contender.run(row.units);  // makes its buckets and blocks, and sets the dirty flags
  CALLGRIND_START_INSTRUMENTATION;
  contender.run(row.units);
  CALLGRIND_ZERO_STATS;
  for (uint64_t round = 0; round < kRounds; ++round) contender.run(row.units);
  Dump("count", row, contender, kRounds * row.units);
  CALLGRIND_TOGGLE_COLLECT;
  for (uint64_t round = 0; round < kColdRounds; ++round) {
    EmptyCache();
    CALLGRIND_TOGGLE_COLLECT;
    contender.run(row.batch);
    CALLGRIND_TOGGLE_COLLECT;
  }
  Dump("lines", row, contender, kColdRounds * row.batch);
  CALLGRIND_TOGGLE_COLLECT;
  CALLGRIND_STOP_INSTRUMENTATION;
}

}  // namespace
}  // namespace sluice::bench

int main(int argc, char** argv) {
  using sluice::bench::CheckRow;
  using sluice::bench::CheckRows;
  using sluice::bench::Contender;
  // The stage first: nothing else may run when the clocks stand still.
  sluice::bench::Stage::Get().Freeze();
  sluice::bench::StopClocks();
  int counted = 0;
  for (const CheckRow& row : CheckRows()) {
    for (int i = 1; i < argc; ++i) {
      if (std::strcmp(argv[i], row.name) != 0) continue;
      for (const Contender& contender : row.contenders()) {
        sluice::bench::Count(row, contender);
      }
      ++counted;
    }
  }
  if (counted == argc - 1) return 0;
  std::fprintf(stderr, "sluice_instructions: there is no such row\n");
  return 2;
}
