#include "tests/support/wall_clock.h"

#include <errno.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

extern "C" {

int clock_gettime(clockid_t clock, timespec* ts) noexcept {
  const long result = syscall(SYS_clock_gettime, clock, ts);
  const bool is_wall = clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE;
  const int error = errno;
  if (result == 0 && is_wall) ts->tv_sec = ToldSecond(ts->tv_sec);
  errno = error;
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
