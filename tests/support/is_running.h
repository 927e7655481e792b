// Whether a process of a test still runs code of its own.
#pragma once

#include <sys/types.h>
#include <unistd.h>

#include <cstdio>
#include <string>

namespace sluice::test {

// True for another child of this process's parent. One that was killed and not waited for does not
// run, nor does one that is on its way out: its connections may be closed already.
inline bool IsSiblingRunning(pid_t pid) {
  constexpr unsigned kExiting = 4;  // PF_EXITING
  const std::string path = "/proc/" + std::to_string(pid) + "/stat";
  FILE* const file = fopen(path.c_str(), "re");
  if (file == nullptr) return false;
  char state = 'Z';
  int parent = 0;
  unsigned flags = 0;
  const int read = fscanf(file, "%*d (%*[^)]) %c %d %*d %*d %*d %*d %u", &state, &parent, &flags);
  fclose(file);
  return read == 3 && state != 'Z' && state != 'X' && parent == getppid() &&
         (flags & kExiting) == 0;
}

}  // namespace sluice::test
