// Threads on CPUs of their own.
#pragma once

#include <sched.h>

#include "bench/stage.h"

namespace sluice::bench {

// The CPUs that this process was started on: pinned threads have only their own.
inline const cpu_set_t started_on = [] {
  cpu_set_t all;
  sched_getaffinity(0, sizeof all, &all);
  return all;
}();

inline void PinTo(int nth) {
  cpu_set_t one;
  CPU_ZERO(&one);
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &started_on)) continue;
    if (nth-- == 0) CPU_SET(cpu, &one);
  }
  Require(sched_setaffinity(0, sizeof one, &one) == 0, "needs two CPUs");
}

// The calling thread, for a scope.
class Pinned {
 public:
  explicit Pinned(int nth) {
    sched_getaffinity(0, sizeof before_, &before_);
    PinTo(nth);
  }
  ~Pinned() { sched_setaffinity(0, sizeof before_, &before_); }
  Pinned(const Pinned&) = delete;
  Pinned& operator=(const Pinned&) = delete;

 private:
  cpu_set_t before_;
};

}  // namespace sluice::bench
