#include "daemon/lock_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "daemon/log.h"

namespace sluice {
namespace {

constexpr int kRetryMs = 50;

absl::Status Errno(const std::string& what, const std::string& mend) {
  const int error = errno;
  return absl::ErrnoToStatus(error, absl::StrCat(what, ": ", strerror(error), "; ", mend));
}

std::string HolderOf(int fd) {
  char text[32] = {};
  const ssize_t n = pread(fd, text, sizeof text - 1, 0);
  const std::string pid(absl::StripAsciiWhitespace(std::string(text, n > 0 ? n : 0)));
  return pid.empty() ? "an unknown process" : absl::StrCat("pid ", pid);
}

}  // namespace

absl::Status LockFile::Acquire(const std::string& runtime_dir) {
  // Clients of other users pass through it; its sockets have modes of their own.
  if (mkdir(runtime_dir.c_str(), 0755) == 0) {
    chmod(runtime_dir.c_str(), 0755);
  } else if (errno != EEXIST) {
    return Errno(absl::StrCat("cannot make ", runtime_dir), "make it, or choose --runtime-dir");
  }
  const std::string path = absl::StrCat(runtime_dir, "/sluiced.lock");
  fd_.Reset(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0640));
  if (fd_.get() < 0) return Errno(path, "the daemon's user must be able to write there");
  for (int waited_ms = 0; flock(fd_.get(), LOCK_EX | LOCK_NB) != 0; waited_ms += kRetryMs) {
    if (errno != EWOULDBLOCK && errno != EINTR) return Errno(path, "flock must work there");
    if (waited_ms >= kLockWaitMs) {
      return absl::AlreadyExistsError(absl::StrCat("another sluiced runs in ", runtime_dir, " as ",
                                                   HolderOf(fd_.get()),
                                                   "; stop it, or choose another --runtime-dir"));
    }
    usleep(kRetryMs * 1000);
  }
  // For the message above alone: a full disk is no reason not to start.
  const std::string pid = absl::StrCat(getpid(), "\n");
  if (ftruncate(fd_.get(), 0) != 0 ||
      pwrite(fd_.get(), pid.data(), pid.size(), 0) != static_cast<ssize_t>(pid.size())) {
    log::Warning("%s does not name this process: %s", path, strerror(errno));
  }
  return absl::OkStatus();
}

}  // namespace sluice
