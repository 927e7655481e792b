// Loaded into a program by LD_PRELOAD: each second the wall clock jumps by two hours, forth and
// back.
#include <sys/syscall.h>
#include <unistd.h>

#include "tests/support/wall_clock.h"

time_t ToldSecond(time_t second) {
  timespec steady;
  syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &steady);
  return steady.tv_sec % 2 == 0 ? second + 3600 : second - 3600;
}
