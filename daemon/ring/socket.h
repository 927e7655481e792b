#pragma once

#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "daemon/ring/address.h"

namespace sluice::ring {

// "what: strerror(error)" with the code that fits: ResourceExhausted when descriptors or memory
// are short, PermissionDenied, Unavailable otherwise.
absl::Status ErrnoStatus(int error, std::string_view what);

// A stream socket for the address, close-on-exec, without Nagle's delay. epoll wants it
// nonblocking; io_uring wants it blocking, since a nonblocking one answers EAGAIN to it instead
// of waiting for readiness.
absl::StatusOr<int> OpenStreamSocket(const Address& address, bool nonblocking);

// Sends what the socket takes at once; for what may be lost.
void SendNow(int fd, std::string_view bytes);

// Sets or clears O_NONBLOCK.
absl::Status SetNonblocking(int fd, bool nonblocking);

// A nonblocking eventfd for Wake, and its two ends. SignalEvent is safe in signal handlers.
absl::StatusOr<int> OpenEvent();
void SignalEvent(int fd);
void DrainEvent(int fd);

}  // namespace sluice::ring
