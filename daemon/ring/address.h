#pragma once

#include <sys/socket.h>

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace sluice::ring {

// A socket address that a ring can connect to: IPv4, IPv6 or a unix path. A plain value.
struct Address {
  sockaddr_storage storage{};
  socklen_t length = 0;

  int family() const { return storage.ss_family; }
};

// "127.0.0.1" or "::1" with a port. Numeric only: it never asks a name server, so it never blocks.
// InvalidArgument for anything that is not a numeric address.
absl::StatusOr<Address> NumericAddress(std::string_view host, uint16_t port);

// A path of a unix stream socket. InvalidArgument for an empty path or one that does not fit.
absl::StatusOr<Address> UnixAddress(std::string_view path);

// "127.0.0.1:7000", "[::1]:7000" or "unix:/path", for people to read.
std::string ToString(const Address& address);

}  // namespace sluice::ring
