#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "ctl/access_log.h"

namespace sluice::ctl {
namespace {

constexpr size_t kReadBytes = 256 * 1024;

// What a file that is not plain text begins with, and what makes text of it.
struct Magic {
  std::string_view bytes;
  const char* what;
  const char* mend;
};
constexpr Magic kMagics[] = {
    {{"\x1f\x8b", 2}, "compressed with gzip", "zcat"},
    {{"\x28\xb5\x2f\xfd", 4}, "compressed with zstd", "zstdcat"},
    {{"\xfd"
      "7zXZ",
      5},
     "compressed with xz",
     "xzcat"},
    {{"BZh", 3}, "compressed with bzip2", "bzcat"},
    {{"PK\x03\x04", 4}, "a zip archive", "unzip -p"},
    {{"\xff\xfe", 2}, "UTF-16 text", "iconv -f UTF-16 -t UTF-8"},
    {{"\xfe\xff", 2}, "UTF-16 text", "iconv -f UTF-16 -t UTF-8"},
};

}  // namespace

absl::StatusOr<std::unique_ptr<LogReader>> LogReader::Open(const std::string& path) {
  const bool is_stdin = path == "-";
  const int fd = is_stdin ? dup(STDIN_FILENO) : open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) {
    return absl::NotFoundError(absl::StrCat("cannot read ", path, ": ", std::strerror(errno)));
  }
  auto reader = std::unique_ptr<LogReader>(new LogReader(fd, is_stdin ? "standard input" : path));
  struct stat info;
  if (fstat(fd, &info) == 0 && S_ISDIR(info.st_mode)) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, " is a directory: name one log file in it, or pipe several: cat ", path,
                     "/*.log | sluicectl replay -"));
  }
  // A pipe may hand over its first bytes one by one.
  while (reader->buffer_.size() < 8 && reader->Fill()) {
  }
  if (!reader->status_.ok()) return reader->status_;
  for (const Magic& magic : kMagics) {
    if (std::string_view(reader->buffer_).substr(0, magic.bytes.size()) == magic.bytes) {
      return absl::InvalidArgumentError(
          absl::StrCat(reader->path_, " is ", magic.what, ": unpack it first: ", magic.mend, " ",
                       is_stdin ? "FILE" : path, " | sluicectl replay -"));
    }
  }
  return reader;
}

LogReader::LogReader(int fd, std::string path) : fd_(fd), path_(std::move(path)) {}
LogReader::~LogReader() { close(fd_); }

// Appends what one read gives; false at the end.
bool LogReader::Fill() {
  if (is_end_) return false;
  buffer_.erase(0, at_);
  at_ = 0;
  const size_t before = buffer_.size();
  buffer_.resize(before + kReadBytes);
  ssize_t got = 0;
  do {
    got = read(fd_, buffer_.data() + before, kReadBytes);
  } while (got < 0 && errno == EINTR);
  if (got < 0) {
    status_ =
        absl::UnavailableError(absl::StrCat("reading ", path_, " failed: ", std::strerror(errno)));
  }
  buffer_.resize(before + (got > 0 ? static_cast<size_t>(got) : 0));
  is_end_ = got <= 0;
  return !is_end_;
}

bool LogReader::Next(std::string_view* line, bool* is_cut) {
  *is_cut = false;
  line_.clear();
  for (;;) {
    const size_t newline = buffer_.find('\n', at_);
    const size_t end = newline == std::string::npos ? buffer_.size() : newline;
    const size_t room = kMaxLineBytes - line_.size();
    const size_t take = std::min(end - at_, room);
    *is_cut = *is_cut || take < end - at_;
    const size_t from = at_;
    at_ = newline == std::string::npos ? end : newline + 1;
    if (newline != std::string::npos && line_.empty()) {
      *line = std::string_view(buffer_).substr(from, take);  // the usual case: no copy
      return true;
    }
    line_.append(buffer_, from, take);
    if (newline != std::string::npos) {
      *line = line_;
      return true;
    }
    if (!Fill()) {
      *line = line_;
      return !line_.empty() && status_.ok();
    }
  }
}

}  // namespace sluice::ctl
