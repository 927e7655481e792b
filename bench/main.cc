// Registers the rows of checks and runs all rows; --help tells the flags. scripts/bench calls it.
#include <benchmark/benchmark.h>

#include "bench/contenders.h"

int main(int argc, char** argv) {
  for (const sluice::bench::CheckRow& row : sluice::bench::CheckRows()) {
    benchmark::RegisterBenchmark(row.name, [&row](benchmark::State& state) {
      sluice::bench::RunPaired(state, row.units, row.contenders());
    })->UseManualTime();
  }
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
