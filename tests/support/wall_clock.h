// For programs' clocks under LD_PRELOAD: the wall clock, asked for in any way, tells what
// ToldSecond() makes of the second that it is. The other clocks stand as they are.
#pragma once

#include <time.h>

// Each library has its own.
time_t ToldSecond(time_t second);
