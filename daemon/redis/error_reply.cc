#include "daemon/redis/error_reply.h"

#include <charconv>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "acl_lines.h"
#include "daemon/redis/slot.h"

namespace sluice::redis {
namespace {

struct Rule {
  std::string_view code;  // first word of the line
  ErrorClass what;
};

constexpr Rule kPatience[] = {
    {"TRYAGAIN", ErrorClass::kRetryLater},
    {"LOADING", ErrorClass::kRetryLater},
    {"BUSY", ErrorClass::kRetryLater},
    {"CLUSTERDOWN", ErrorClass::kRetryLater},
    {"MASTERDOWN", ErrorClass::kRetryLater},
    {"NOREPLICAS", ErrorClass::kRetryLater},
    {"UNKILLABLE", ErrorClass::kRetryLater},
    {"READONLY", ErrorClass::kReadOnly},
    {"NOSCRIPT", ErrorClass::kNoScript},
    {"MOVED", ErrorClass::kMoved},
    {"ASK", ErrorClass::kAsk},
};

ErrorVerdict Denied(AlarmKind alarm, std::string mend) {
  return {ErrorClass::kDenied, alarm, std::move(mend)};
}

std::string PermissionMend() {
  return absl::StrCat("give the user its rights: ACL SETUSER ", std::string(kUserAcl));
}

bool Contains(std::string_view line, std::string_view part) {
  return line.find(part) != std::string_view::npos;
}

}  // namespace

ErrorVerdict JudgeError(std::string_view line) {
  const std::string_view code = line.substr(0, line.find(' '));
  for (const Rule& rule : kPatience) {
    if (code == rule.code) return {rule.what, std::nullopt, ""};
  }
  if (code == "NOAUTH") {
    return Denied(AlarmKind::kWrongPassword,
                  "the server wants a password: set redis.password (and redis.username)");
  }
  if (code == "WRONGPASS" || Contains(line, "Client sent AUTH, but no password is set") ||
      Contains(line, "AUTH <password> called without any password")) {
    return Denied(AlarmKind::kWrongPassword, "correct redis.username and redis.password");
  }
  // The second and third form come from commands inside a script.
  if (code == "NOPERM" || Contains(line, "can't run this command") ||
      Contains(line, "can't access at least one of the keys")) {
    return Denied(AlarmKind::kMissingPermission, PermissionMend());
  }
  if (code == "OOM") {
    return Denied(AlarmKind::kRefusesWrites, "raise maxmemory of the server, or free memory there");
  }
  if (code == "MISCONF") {
    return Denied(AlarmKind::kRefusesWrites,
                  "the server cannot save its data and refuses writes: mend its disk, or set "
                  "stop-writes-on-bgsave-error no");
  }
  if (code == "CROSSSLOT") {
    return Denied(AlarmKind::kUnsupported,
                  "the server sees keys of two slots in one call; is a proxy in between?");
  }
  if (Contains(line, "cluster support disabled")) {
    return Denied(AlarmKind::kWrongMode,
                  "the server is not part of a cluster: set redis.mode: single");
  }
  if (Contains(line, "unknown command") || Contains(line, "unknown subcommand") ||
      code == "NOPROTO") {
    return Denied(AlarmKind::kUnsupported, "sluice needs Redis 7.0 or newer");
  }
  return {ErrorClass::kScript, std::nullopt, ""};
}

absl::StatusOr<Redirect> ParseRedirect(std::string_view line, const Endpoint& asked) {
  const size_t first = line.find(' ');
  const size_t second = first == std::string_view::npos ? first : line.find(' ', first + 1);
  if (second == std::string_view::npos) {
    return absl::InvalidArgumentError("a redirect without slot or address");
  }
  const std::string_view slot_text = line.substr(first + 1, second - first - 1);
  Redirect redirect;
  const auto [end, error] =
      std::from_chars(slot_text.data(), slot_text.data() + slot_text.size(), redirect.slot);
  if (error != std::errc() || end != slot_text.data() + slot_text.size() ||
      redirect.slot >= kSlots) {
    return absl::InvalidArgumentError("a redirect with a slot out of range");
  }
  absl::StatusOr<Endpoint> endpoint = ParseRedirectEndpoint(line.substr(second + 1), asked);
  if (!endpoint.ok()) return endpoint.status();
  redirect.endpoint = *std::move(endpoint);
  return redirect;
}

std::string Printable(std::string_view line) {
  constexpr size_t kMaxBytes = 200;
  std::string text(line.substr(0, kMaxBytes));
  for (char& c : text) {
    if (c < ' ' || c > '~') c = '.';
  }
  return text;
}

}  // namespace sluice::redis
