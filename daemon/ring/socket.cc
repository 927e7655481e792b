#include "daemon/ring/socket.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"

namespace sluice::ring {

absl::Status ErrnoStatus(int error, std::string_view what) {
  const std::string message = absl::StrCat(std::string(what), ": ", std::strerror(error));
  switch (error) {
    case EMFILE:
    case ENFILE:
    case ENOMEM:
    case ENOBUFS:
      return absl::ResourceExhaustedError(message);
    case EPERM:
    case EACCES:
      return absl::PermissionDeniedError(message);
    case EBADF:
    case EINVAL:
      return absl::InvalidArgumentError(message);
    default:
      return absl::UnavailableError(message);
  }
}

absl::StatusOr<int> OpenStreamSocket(const Address& address, bool nonblocking) {
  const int type = SOCK_STREAM | SOCK_CLOEXEC | (nonblocking ? SOCK_NONBLOCK : 0);
  const int fd = socket(address.family(), type, 0);
  if (fd < 0) return ErrnoStatus(errno, "cannot open a socket");
  if (address.family() != AF_UNIX) {
    const int one = 1;
    // Commands are written in whole batches already; waiting to fill a packet only adds latency.
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  }
  return fd;
}

absl::Status SetNonblocking(int fd, bool nonblocking) {
  const int flags = fcntl(fd, F_GETFL);
  if (flags < 0) return ErrnoStatus(errno, "cannot read a descriptor's flags");
  const int wanted = nonblocking ? flags | O_NONBLOCK : flags & ~O_NONBLOCK;
  if (wanted != flags && fcntl(fd, F_SETFL, wanted) < 0) {
    return ErrnoStatus(errno, "cannot set a descriptor's flags");
  }
  return absl::OkStatus();
}

void SendNow(int fd, std::string_view bytes) {
  [[maybe_unused]] const ssize_t sent =
      send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
}

absl::StatusOr<int> OpenEvent() {
  const int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (fd < 0) return ErrnoStatus(errno, "cannot open an eventfd");
  return fd;
}

void SignalEvent(int fd) {
  const int saved = errno;
  const uint64_t one = 1;
  // Fails only when the counter is full, and then the wake stands already.
  [[maybe_unused]] const ssize_t written = write(fd, &one, sizeof one);
  errno = saved;
}

void DrainEvent(int fd) {
  uint64_t count;
  [[maybe_unused]] const ssize_t got = read(fd, &count, sizeof count);
}

}  // namespace sluice::ring
