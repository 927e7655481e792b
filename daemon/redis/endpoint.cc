#include "daemon/redis/endpoint.h"

#include <charconv>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace sluice::redis {
namespace {

absl::StatusOr<uint16_t> ParsePort(std::string_view text) {
  uint32_t port = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), port);
  if (error != std::errc() || end != text.data() + text.size() || port == 0 || port > 65535) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", std::string(text), "\" is not a port (1 to 65535)"));
  }
  return static_cast<uint16_t>(port);
}

absl::StatusOr<Endpoint> Make(std::string_view host, std::string_view port_text) {
  absl::StatusOr<uint16_t> port = ParsePort(port_text);
  if (!port.ok()) return port.status();
  if (host.empty()) return absl::InvalidArgumentError("the host is empty");
  if (host.size() > kMaxHostBytes) return absl::InvalidArgumentError("the host is too long");
  for (char c : host) {
    if (c <= ' ' || c > '~') {
      return absl::InvalidArgumentError("the host holds a space or a control character");
    }
  }
  return Endpoint{std::string(host), *port};
}

}  // namespace

absl::StatusOr<Endpoint> ParseEndpoint(std::string_view text) {
  if (text.starts_with("unix:")) {
    const std::string path(text.substr(5));
    if (!path.starts_with('/')) {
      return absl::InvalidArgumentError("a unix socket needs an absolute path: unix:/path");
    }
    return Endpoint{path, 0};
  }
  if (text.starts_with('[')) {
    const size_t close = text.find("]:");
    if (close == std::string_view::npos) {
      return absl::InvalidArgumentError("an IPv6 address is written [address]:port");
    }
    return Make(text.substr(1, close - 1), text.substr(close + 2));
  }
  const size_t colon = text.find(':');
  if (colon == std::string_view::npos) {
    return absl::InvalidArgumentError("the port is missing: write host:port");
  }
  if (text.find(':', colon + 1) != std::string_view::npos) {
    return absl::InvalidArgumentError("an IPv6 address is written [address]:port");
  }
  return Make(text.substr(0, colon), text.substr(colon + 1));
}

absl::StatusOr<Endpoint> ParseRedirectEndpoint(std::string_view text, const Endpoint& asked) {
  const size_t colon = text.rfind(':');
  if (colon == std::string_view::npos) {
    return absl::InvalidArgumentError("a redirect without a port");
  }
  const std::string_view host = text.substr(0, colon);
  if (host == "?") return absl::InvalidArgumentError("a redirect to a node without a name");
  return Make(host.empty() ? std::string_view(asked.host) : host, text.substr(colon + 1));
}

std::string ToString(const Endpoint& endpoint) {
  if (endpoint.is_unix()) return absl::StrCat("unix:", endpoint.host);
  if (endpoint.host.find(':') != std::string::npos) {
    return absl::StrCat("[", endpoint.host, "]:", endpoint.port);
  }
  return absl::StrCat(endpoint.host, ":", endpoint.port);
}

}  // namespace sluice::redis
