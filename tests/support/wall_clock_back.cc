// Loaded into a program by LD_PRELOAD: once there is a file PREFIX.PID, PREFIX as the environment's
// WALL_CLOCK_BACK says and PID the process, its wall clock stands an hour back; PREFIX.PID.asked is
// made then when somebody asks for the time.
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "tests/support/wall_clock.h"

namespace {

constexpr time_t kHourS = 3600;

bool IsBack() {
  const char* prefix = getenv("WALL_CLOCK_BACK");
  if (prefix == nullptr) return false;
  char path[4096];
  snprintf(path, sizeof path, "%s.%d", prefix, getpid());
  if (access(path, F_OK) != 0) return false;
  snprintf(path, sizeof path, "%s.%d.asked", prefix, getpid());
  if (access(path, F_OK) != 0) close(open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0644));
  return true;
}

}  // namespace

time_t ToldSecond(time_t second) { return IsBack() ? second - kHourS : second; }
