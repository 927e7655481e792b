#include "ctl/admin_client.h"

#include <httplib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"

namespace sluice::ctl {
namespace {

// Says why nobody answers at `path`, and what to do about it.
absl::Status WhyUnreachable(const Globals& globals, const std::string& path) {
  sockaddr_un address{};
  if (path.size() >= sizeof(address.sun_path)) {
    return absl::InvalidArgumentError(
        absl::StrCat("the socket's path is too long for the kernel (", path.size(), " bytes of ",
                     sizeof(address.sun_path) - 1, "): ", path, ": use a shorter --runtime-dir"));
  }
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, path.size());
  const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const bool is_up =
      fd >= 0 && connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0;
  const int error = errno;
  if (fd >= 0) close(fd);
  if (is_up) {
    return absl::UnavailableError(
        absl::StrCat("the daemon at ", path, " took the connection and did not answer within ",
                     kAdminTimeoutMs / 1000,
                     " s: it hangs or is overloaded; see its log (journalctl -u sluiced)"));
  }
  const std::string tried =
      absl::StrCat("no daemon answers at ", path, " (", std::strerror(error), ")");
  if (error == EACCES || error == EPERM) {
    return absl::PermissionDeniedError(absl::StrCat(
        tried, ": this user may not use it: be a member of the socket's group, or use sudo"));
  }
  const std::string other = globals.runtime_dir == kDefaultRuntimeDir
                                ? "if it runs with another runtime_dir, name it with --runtime-dir"
                                : "check --runtime-dir (or SLUICE_RUNTIME_DIR)";
  return absl::UnavailableError(absl::StrCat(
      tried, ": start it (systemctl start sluiced, or sluiced --config FILE); ", other));
}

void Prepare(httplib::Client* client) {
  client->set_address_family(AF_UNIX);
  // The Host field would be the socket's path, which is no host.
  client->set_default_headers({{"Host", "localhost"}});
  client->set_connection_timeout(kAdminTimeoutMs / 1000);
  client->set_read_timeout(kAdminTimeoutMs / 1000);
  client->set_write_timeout(kAdminTimeoutMs / 1000);
}

absl::Status Refused(const std::string& path, int code, std::string body) {
  body.resize(std::min<size_t>(body.size(), 1000));
  while (!body.empty() && body.back() == '\n') body.pop_back();
  const nlohmann::json parsed = nlohmann::json::parse(body, nullptr, /*allow_exceptions=*/false);
  if (parsed.is_object() && parsed.contains("error") && parsed["error"].is_string()) {
    body = parsed["error"].get<std::string>();
  }
  return absl::FailedPreconditionError(
      absl::StrCat("the daemon refused ", path, " (", code, "): ", body));
}

}  // namespace

absl::StatusOr<std::string> AdminGet(const Globals& globals, const std::string& path) {
  const std::string socket_path = globals.AdminSocketPath();
  httplib::Client client(socket_path, 80);
  Prepare(&client);
  const httplib::Result result = client.Get(path);
  if (!result) return WhyUnreachable(globals, socket_path);
  if (result->status != 200) return Refused(path, result->status, result->body);
  return result->body;
}

absl::Status AdminLines(const Globals& globals, const std::string& path,
                        const std::function<void(const std::string& line)>& on_line) {
  const std::string socket_path = globals.AdminSocketPath();
  httplib::Client client(socket_path, 80);
  Prepare(&client);
  int code = 0;
  std::string text;  // that is no whole line yet
  httplib::Request request;
  request.method = "POST";
  request.path = path;
  request.response_handler = [&code](const httplib::Response& response) {
    code = response.status;
    return true;
  };
  request.content_receiver = [&](const char* data, size_t size, uint64_t, uint64_t) {
    text.append(data, size);
    for (size_t end = text.find('\n'); code == 200 && end != std::string::npos;
         end = text.find('\n')) {
      on_line(text.substr(0, end));
      text.erase(0, end + 1);
    }
    return true;
  };
  const httplib::Result result = client.send(request);
  if (code != 0 && code != 200) return Refused(path, code, text);
  if (result) return absl::OkStatus();
  if (code == 200) return absl::UnavailableError("the daemon has ended the connection");
  return WhyUnreachable(globals, socket_path);
}

absl::StatusOr<nlohmann::json> AdminGetJson(const Globals& globals, const std::string& path) {
  const absl::StatusOr<std::string> body = AdminGet(globals, path);
  if (!body.ok()) return body.status();
  nlohmann::json json = nlohmann::json::parse(*body, nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded()) {
    return absl::UnavailableError(
        absl::StrCat("what answers at ", globals.AdminSocketPath(),
                     " is not a sluice daemon of this version: ", body->substr(0, 100)));
  }
  return json;
}

std::string QueryEscape(std::string_view text) {
  static constexpr char kHex[] = "0123456789ABCDEF";
  std::string out;
  for (const char c : text) {
    const bool is_plain = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') ||
                          (c >= 'A' && c <= 'Z') || c == '-' || c == '_' || c == '.' || c == '~';
    if (is_plain) {
      out.push_back(c);
    } else {
      out.push_back('%');
      out.push_back(kHex[(static_cast<uint8_t>(c) >> 4) & 15]);
      out.push_back(kHex[static_cast<uint8_t>(c) & 15]);
    }
  }
  return out;
}

}  // namespace sluice::ctl
