// Rows beside their floors. All contenders of a row run in turn, in slices of some tens of
// microseconds, so that all of them meet the same machine: its clock rate, its neighbours, its
// cache. Each slice is timed by the thread's CPU time, and a repetition's figure is the median of
// its slices, so that an interruption is not counted as work.
#pragma once

#include <benchmark/benchmark.h>
#include <time.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace sluice::bench {

// One of what is measured in turn: runs `n` units of work.
struct Contender {
  std::string name;  // of its counter, in ns per unit: "ns", "floor_ns", "beside_ns"
  std::function<void(uint64_t n)> run;
};

inline uint64_t ThreadCpuNs() {
  timespec ts;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
  return static_cast<uint64_t>(ts.tv_sec) * 1'000'000'000u + static_cast<uint64_t>(ts.tv_nsec);
}

inline double Median(std::vector<double> values) {
  if (values.empty()) return 0;
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

// Runs the contenders in turn, `units` of each per slice, for as long as the state goes on. The
// first contender is the row: its time is the benchmark's.
inline void RunPaired(benchmark::State& state, uint64_t units,
                      const std::vector<Contender>& contenders) {
  std::vector<std::vector<double>> slices(contenders.size());
  for ([[maybe_unused]] auto _ : state) {
    for (size_t i = 0; i < contenders.size(); ++i) {
      const uint64_t begin_ns = ThreadCpuNs();
      contenders[i].run(units);
      const uint64_t took_ns = ThreadCpuNs() - begin_ns;
      slices[i].push_back(static_cast<double>(took_ns) / static_cast<double>(units));
      if (i == 0) state.SetIterationTime(static_cast<double>(took_ns) * 1e-9);
    }
  }
  for (size_t i = 0; i < contenders.size(); ++i) {
    state.counters[contenders[i].name] = Median(std::move(slices[i]));
  }
}

}  // namespace sluice::bench
