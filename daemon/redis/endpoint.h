#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace sluice::redis {

// Longest host name that the DNS allows; longer ones are somebody's noise.
inline constexpr size_t kMaxHostBytes = 255;

// Where a node listens, as people and clusters write it: a name, a numeric address or a unix path
// (port 0).
struct Endpoint {
  std::string host;
  uint16_t port = 0;

  bool is_unix() const { return port == 0 && host.starts_with('/'); }
  friend bool operator==(const Endpoint&, const Endpoint&) = default;
};

// "host:port", "[v6]:port" or "unix:/path". InvalidArgument says what is wrong with it.
absl::StatusOr<Endpoint> ParseEndpoint(std::string_view text);

// The same, as a cluster writes it in redirects: the last colon parts host and port, an IPv6
// address has no brackets, and an empty host stands for `asked`, the node that answered.
// InvalidArgument for "?" (a node that does not know its name) too.
absl::StatusOr<Endpoint> ParseRedirectEndpoint(std::string_view text, const Endpoint& asked);

std::string ToString(const Endpoint& endpoint);

}  // namespace sluice::redis
