#include "daemon/ring/address.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/un.h>

#include <cstddef>
#include <cstring>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace sluice::ring {

absl::StatusOr<Address> NumericAddress(std::string_view host, uint16_t port) {
  const std::string text(host);  // inet_pton wants a terminator
  Address address;
  sockaddr_in v4{};
  if (inet_pton(AF_INET, text.c_str(), &v4.sin_addr) == 1) {
    v4.sin_family = AF_INET;
    v4.sin_port = htons(port);
    std::memcpy(&address.storage, &v4, sizeof v4);
    address.length = sizeof v4;
    return address;
  }
  sockaddr_in6 v6{};
  if (inet_pton(AF_INET6, text.c_str(), &v6.sin6_addr) == 1) {
    v6.sin6_family = AF_INET6;
    v6.sin6_port = htons(port);
    std::memcpy(&address.storage, &v6, sizeof v6);
    address.length = sizeof v6;
    return address;
  }
  return absl::InvalidArgumentError(absl::StrCat("\"", text, "\" is not a numeric address"));
}

absl::StatusOr<Address> UnixAddress(std::string_view path) {
  sockaddr_un un{};
  if (path.empty()) return absl::InvalidArgumentError("the path of a unix socket is empty");
  if (path.size() >= sizeof un.sun_path) {
    return absl::InvalidArgumentError(absl::StrCat("the path of a unix socket has ", path.size(),
                                                   " bytes, at most ", sizeof un.sun_path - 1,
                                                   " fit"));
  }
  un.sun_family = AF_UNIX;
  std::memcpy(un.sun_path, path.data(), path.size());
  Address address;
  std::memcpy(&address.storage, &un, sizeof un);
  address.length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + path.size() + 1);
  return address;
}

std::string ToString(const Address& address) {
  char text[INET6_ADDRSTRLEN] = {};
  switch (address.family()) {
    case AF_INET: {
      sockaddr_in v4;
      std::memcpy(&v4, &address.storage, sizeof v4);
      inet_ntop(AF_INET, &v4.sin_addr, text, sizeof text);
      return absl::StrCat(text, ":", ntohs(v4.sin_port));
    }
    case AF_INET6: {
      sockaddr_in6 v6;
      std::memcpy(&v6, &address.storage, sizeof v6);
      inet_ntop(AF_INET6, &v6.sin6_addr, text, sizeof text);
      return absl::StrCat("[", text, "]:", ntohs(v6.sin6_port));
    }
    case AF_UNIX: {
      sockaddr_un un;
      std::memcpy(&un, &address.storage, sizeof un);
      un.sun_path[sizeof un.sun_path - 1] = '\0';
      return absl::StrCat("unix:", un.sun_path);
    }
    default:
      return absl::StrCat("address family ", address.family());
  }
}

}  // namespace sluice::ring
