// Loaded into a program by LD_PRELOAD: each second the wall clock jumps by two hours, forth and
// back. The other clocks stand as they are.
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

namespace {

time_t Jumped(time_t second) {
  timespec steady;
  syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &steady);
  return steady.tv_sec % 2 == 0 ? second + 3600 : second - 3600;
}

}  // namespace

extern "C" {

int clock_gettime(clockid_t clock, timespec* ts) noexcept {
  const long result = syscall(SYS_clock_gettime, clock, ts);
  const bool is_wall = clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE;
  if (result == 0 && is_wall) ts->tv_sec = Jumped(ts->tv_sec);
  return static_cast<int>(result);
}

int gettimeofday(timeval* tv, void*) noexcept {
  timespec ts;
  clock_gettime(CLOCK_REALTIME, &ts);
  tv->tv_sec = ts.tv_sec;
  tv->tv_usec = ts.tv_nsec / 1000;
  return 0;
}

time_t time(time_t* out) noexcept {
  timespec ts;
  clock_gettime(CLOCK_REALTIME, &ts);
  if (out != nullptr) *out = ts.tv_sec;
  return ts.tv_sec;
}

}  // extern "C"
