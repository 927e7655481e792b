#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "daemon/ring/ring.h"

namespace sluice::ring {

// The back end for kernels and containers without io_uring. The ring belongs to the calling
// thread.
absl::StatusOr<std::unique_ptr<Ring>> OpenEpollRing();

}  // namespace sluice::ring
