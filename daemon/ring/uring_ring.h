#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "daemon/ring/ring.h"

namespace sluice::ring {

// Completion queue entries asked for: every channel may have a connect or a send, a receive, and
// a cancellation of each in flight, so the queue cannot overflow.
inline constexpr unsigned kUringCompletions = 4 * kMaxChannels + 64;
inline constexpr unsigned kUringSubmissions = 512;

// The io_uring back end. With `flags` as for io_uring_setup (IORING_SETUP_...); the error is the
// kernel's refusal. The ring belongs to the calling thread.
absl::StatusOr<std::unique_ptr<Ring>> OpenUringRing(unsigned flags);

}  // namespace sluice::ring
