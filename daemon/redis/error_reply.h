#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "daemon/redis/cluster_client.h"
#include "daemon/redis/endpoint.h"

namespace sluice::redis {

// What an error line asks of the client.
enum class ErrorClass : uint8_t {
  kMoved,
  kAsk,
  kNoScript,
  kRetryLater,  // patience
  kReadOnly,    // patience and a fresh map: the node was demoted
  kDenied,      // an operator
  kScript,      // the script is to blame, or a command that the server does not know
};

struct ErrorVerdict {
  ErrorClass what = ErrorClass::kScript;
  std::optional<AlarmKind> alarm;
  std::string mend;  // for the operator; empty where only patience helps
};

// Sorts an error line ("CODE message").
ErrorVerdict JudgeError(std::string_view line);

struct Redirect {
  uint32_t slot = 0;
  Endpoint endpoint;
};

// Reads "MOVED slot host:port" or "ASK slot host:port" as answered by `asked`. InvalidArgument for
// a slot out of range or a host that names nobody.
absl::StatusOr<Redirect> ParseRedirect(std::string_view line, const Endpoint& asked);

// An error line, at most 200 bytes of it, unprintable bytes as '.': fit for logs and terminals.
std::string Printable(std::string_view line);

}  // namespace sluice::redis
