// Asks the daemon's admin socket: HTTP over a Unix socket.
#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "ctl/command.h"

namespace sluice::ctl {

// The daemon answers from its own memory, or after one round of its primaries for global buckets.
inline constexpr int kAdminTimeoutMs = 10'000;

// GETs `path` (with its query). Errors name the socket and the mend: kUnavailable when nobody
// answers, kPermissionDenied, else what the daemon said.
absl::StatusOr<std::string> AdminGet(const Globals& globals, const std::string& path);
absl::StatusOr<nlohmann::json> AdminGetJson(const Globals& globals, const std::string& path);

// POSTs to `path`, and hands over each line of the answer as it comes, until the daemon ends it.
absl::Status AdminLines(const Globals& globals, const std::string& path,
                        const std::function<void(const std::string& line)>& on_line);

// A query value with everything but letters, digits and "-_.~" percent-encoded.
std::string QueryEscape(std::string_view text);

}  // namespace sluice::ctl
