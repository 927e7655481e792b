// A clock that stands still, so that two runs of the same checks take the same instructions, and
// valgrind, which hides the kernel's fast clock, counts no system calls.
#pragma once

namespace sluice::bench {

// From now on every clock of this process, however it is read, stays at its present time.
void StopClocks();

}  // namespace sluice::bench
