// What a thread keeps beside the shared memory: denials that it tallies, tokens that it leased. One
// word tells the usual check that there is neither.
#pragma once

#include <cstdint>

namespace sluice::client {

inline constexpr uint32_t kTallying = 1;
inline constexpr uint32_t kLeasing = 2;

// Initial-exec and constinit, here and for what it speaks of: a fixed offset from the thread
// pointer, no call.
extern constinit thread_local uint32_t watching __attribute__((tls_model("initial-exec")));

inline bool IsWatching() { return watching != 0; }
inline bool IsTallying() { return (watching & kTallying) != 0; }
inline bool IsLeasing() { return (watching & kLeasing) != 0; }

}  // namespace sluice::client
