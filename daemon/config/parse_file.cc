// What of the configuration comes from files.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <optional>

#include "absl/cleanup/cleanup.h"
#include "absl/status/status.h"
#include "daemon/config/parse.h"
#include "daemon/config/text.h"

namespace sluice::config {
namespace {

struct FileText {
  std::string text;
  mode_t mode = 0;
};

// Reads a regular file of at most `max_bytes`. Errors are a sentence without the file's name.
absl::StatusOr<FileText> ReadFile(const std::string& path, size_t max_bytes) {
  // O_NONBLOCK: a pipe in the place of the file must not stop the daemon.
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) {
    const int error = errno;
    return absl::NotFoundError(Cat("cannot be opened: ", strerror(error)));
  }
  const absl::Cleanup close_fd = [fd] { close(fd); };
  struct stat status {};
  if (fstat(fd, &status) != 0) return absl::InternalError("cannot be examined");
  if (!S_ISREG(status.st_mode)) return absl::InvalidArgumentError("is not a regular file");
  FileText file{.mode = status.st_mode};
  char buffer[16 * 1024];
  while (file.text.size() <= max_bytes) {
    const ssize_t n = read(fd, buffer, sizeof(buffer));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) {
      const int error = errno;
      return absl::InternalError(Cat("cannot be read: ", strerror(error)));
    }
    if (n == 0) return file;
    file.text.append(buffer, static_cast<size_t>(n));
  }
  return absl::ResourceExhaustedError(Cat("is larger than ", max_bytes, " bytes"));
}

// `key` names `path` in messages.
absl::StatusOr<FileText> ReadSecret(std::string_view key, const std::string& path,
                                    size_t max_bytes) {
  auto file = ReadFile(FileOf(path), max_bytes);
  if (file.ok()) return file;
  const std::string_view mend = path.starts_with(kCredentialPrefix)
                                    ? "add LoadCredential=NAME:FILE to the service's [Service]"
                                    : "name a file that the daemon's user can read";
  return absl::Status(
      file.status().code(),
      ToAbsl(Cat(key, " ", path, " ", std::string(file.status().message()), "; ", mend)));
}

absl::StatusOr<std::string> PasswordOf(std::string_view key, const std::string& password,
                                       const std::string& path) {
  if (path.empty()) return password;
  const auto file = ReadSecret(key, path, kMaxPasswordBytes);
  if (!file.ok()) return file.status();
  std::string line = file->text.substr(0, file->text.find('\n'));
  if (!line.empty() && line.back() == '\r') line.pop_back();
  if (line.empty()) {
    return absl::InvalidArgumentError(
        Cat(key, " ", path, " has an empty first line; write the password there"));
  }
  return line;
}

}  // namespace

ParseResult ParseConfigFile(const std::string& path) {
  const auto file = ReadFile(path, kMaxConfigBytes);
  if (!file.ok()) {
    ParseResult result;
    result.problems.push_back({.file = path,
                               .what = std::string(file.status().message()),
                               .mend = "name a file that the daemon's user can read, as in "
                                       "`sluiced --config /etc/sluice/sluice.yaml`"});
    return result;
  }
  ParseResult result = ParseConfig(file->text, path);
  if (const absl::Status keys = ReadPrivateKeys(&result.config); result.ok() && !keys.ok()) {
    result.problems.push_back({.file = path, .what = std::string(keys.message())});
  }
  const auto& redis = result.config.redis;
  const bool secret = redis && (!redis->password.empty() ||
                                (redis->sentinel && !redis->sentinel->password.empty()));
  if (secret && (file->mode & S_IROTH) != 0) {
    result.warnings.push_back({.file = path,
                               .path = "redis.password",
                               .what = "every user of this host can read the password",
                               .mend = "write `password_file`, or take the right away: chmod o-r"});
  }
  return result;
}

absl::Status ReadPrivateKeys(Config* config) {
  PrivacyConfig& privacy = config->privacy;
  if (privacy.keys_file.empty()) return absl::OkStatus();
  const auto file = ReadSecret("privacy.keys_file", privacy.keys_file, kMaxKeysFileBytes);
  if (!file.ok()) return file.status();
  auto keys = PrivateKeys::Parse(file->text);
  if (!keys.ok()) {
    return absl::InvalidArgumentError(ToAbsl(
        Cat("privacy.keys_file ", privacy.keys_file, " ", std::string(keys.status().message()))));
  }
  privacy.keys = std::make_shared<const PrivateKeys>(*std::move(keys));
  return absl::OkStatus();
}

std::string FileOf(const std::string& path) {
  const char* const directory = std::getenv("CREDENTIALS_DIRECTORY");
  if (directory == nullptr || !path.starts_with(kCredentialPrefix)) return path;
  return Cat(directory, "/", path.substr(kCredentialPrefix.size()));
}

absl::StatusOr<std::string> ReadPassword(const RedisConfig& redis) {
  return PasswordOf("redis.password_file", redis.password, redis.password_file);
}

absl::StatusOr<std::string> ReadPassword(const SentinelConfig& sentinel) {
  return PasswordOf("redis.sentinel.password_file", sentinel.password, sentinel.password_file);
}

}  // namespace sluice::config
