#include "daemon/redis/sentinel.h"

#include <algorithm>
#include <charconv>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace sluice::redis {
namespace {

absl::Status Wrong(const char* what) {
  return absl::InvalidArgumentError(absl::StrCat("SENTINEL MASTER: ", what));
}

bool ReadWhole(std::string_view text, int64_t most, int64_t* out) {
  const char* const last = text.data() + text.size();
  const auto [end, error] = std::from_chars(text.data(), last, *out);
  return error == std::errc() && end == last && *out >= 0 && *out <= most;
}

}  // namespace

absl::StatusOr<SentinelReply> ParseSentinelMaster(const Reply& reply) {
  if (!reply.is_array()) return Wrong("not an array");
  SentinelReply out;
  int64_t port = 0;
  bool has_epoch = false;
  for (size_t i = 0; i + 1 < reply.elements.size(); i += 2) {
    const std::string& key = reply.elements[i].text;
    const std::string& value = reply.elements[i + 1].text;
    if (key == "ip") {
      out.primary.host = value;
    } else if (key == "port") {
      if (!ReadWhole(value, 65535, &port)) return Wrong("a port is not in 1 to 65535");
    } else if (key == "config-epoch") {
      if (!ReadWhole(value, INT64_MAX, &out.epoch)) return Wrong("an epoch is no number");
      has_epoch = true;
    }
  }
  const std::string& host = out.primary.host;
  const bool is_host =
      !host.empty() && host.size() <= kMaxHostBytes &&
      std::all_of(host.begin(), host.end(), [](char c) { return c > ' ' && c <= '~'; });
  if (!is_host || port == 0) return Wrong("no address");
  if (!has_epoch) return Wrong("no epoch");
  out.primary.port = static_cast<uint16_t>(port);
  return out;
}

bool IsUnknownMaster(std::string_view line) {
  return line.starts_with("ERR") && line.find("No such master") != std::string_view::npos;
}

}  // namespace sluice::redis
