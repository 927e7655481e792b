// Time in shared memory is CLOCK_MONOTONIC in nanoseconds, never a process's own TSC calibration:
// two processes would drift apart. The coarse clock (4 ms steps on most kernels) costs a fifth of
// the precise one and never runs ahead. How far it lags is more than its step: 2 to 6.4 ms were
// measured where clock_getres says 4 ms, 14.6 ms at worst in 20 million readings.
#pragma once

#include <time.h>

#include <cstdint>

namespace sluice::shm {

inline uint64_t ToNs(const timespec& ts) {
  return static_cast<uint64_t>(ts.tv_sec) * 1'000'000'000u + static_cast<uint64_t>(ts.tv_nsec);
}

// The production clock of checks. Tests and the simulation pass their own type with these members.
struct MonotonicClock {
  static uint64_t PreciseNs() { return Read(CLOCK_MONOTONIC); }
  static uint64_t CoarseNs() { return Read(CLOCK_MONOTONIC_COARSE); }
  // One of the two. By a branch, which is predicted: were the clock's number looked up, the reading
  // would wait for that load, and a check spends its time waiting for the reading.
  static uint64_t Now(bool coarse) {
    if (!coarse) [[unlikely]] {
      return PreciseOutOfLine();
    }
    return CoarseNs();
  }
  static uint64_t CoarseStepNs() {
    timespec ts;
    return clock_getres(CLOCK_MONOTONIC_COARSE, &ts) == 0 ? ToNs(ts) : 10'000'000u;
  }

 private:
  // Kept apart, lest the two calls are merged into one with a number that is looked up.
  [[gnu::noinline]] static uint64_t PreciseOutOfLine() { return PreciseNs(); }
  static uint64_t Read(clockid_t clock) {
    timespec ts;
    clock_gettime(clock, &ts);
    return ToNs(ts);
  }
};

// A deny within so many steps of the edge is decided anew with the precise clock.
inline constexpr uint64_t kCoarseLagSteps = 4;

// The coarse clock may serve where its lag admits at most 1 % of the burst: rate * 2 * step, that
// is 2 * step / T tokens, against burst = tau / T.
inline bool CoarseServes(uint64_t tau_ns, uint64_t step_ns) { return tau_ns >= 200 * step_ns; }

}  // namespace sluice::shm
