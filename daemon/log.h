// One line a message, to stderr. Under systemd each line carries its priority ("<4>..."), the
// journal adds the time; elsewhere the line begins with the time and the level.
//
// Threads: all functions may be called from any thread; a line is one write, so lines never mix.
#pragma once

#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <string>
#include <string_view>

#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace sluice::log {

// The numbers are syslog's.
enum class Level : int { kError = 3, kWarning = 4, kInfo = 6, kDebug = 7 };

// A line is cut after this many bytes, so that one write to a pipe stays whole (PIPE_BUF).
inline constexpr size_t kMaxLineBytes = 4000;

namespace internal {
inline std::atomic<int> max_level{static_cast<int>(Level::kInfo)};
inline std::atomic<bool> for_systemd{false};

inline std::string_view LevelName(Level level) {
  switch (level) {
    case Level::kError:
      return "error";
    case Level::kWarning:
      return "warning";
    case Level::kInfo:
      return "info";
    case Level::kDebug:
      return "debug";
  }
  return "?";
}
}  // namespace internal

// True when stderr is the journal's own stream; the variable alone may be inherited.
inline bool StderrIsJournal() {
  const char* stream = getenv("JOURNAL_STREAM");  // "device:inode"
  struct stat st;
  if (stream == nullptr || fstat(STDERR_FILENO, &st) != 0) return false;
  return absl::StrFormat("%d:%d", st.st_dev, st.st_ino) == stream;
}

// Settings: relaxed here and below orders nothing.
// What is less urgent than `level` is left out. `for_systemd`: priorities, no times.
inline void Configure(Level level, bool for_systemd) {
  internal::max_level.store(static_cast<int>(level), std::memory_order_relaxed);
  internal::for_systemd.store(for_systemd, std::memory_order_relaxed);
}

inline void Write(Level level, std::string_view text) {
  if (static_cast<int>(level) > internal::max_level.load(std::memory_order_relaxed)) return;
  std::string line;
  if (internal::for_systemd.load(std::memory_order_relaxed)) {
    line = absl::StrFormat("<%d>", static_cast<int>(level));
  } else {
    line = absl::FormatTime("%Y-%m-%dT%H:%M:%E3SZ ", absl::Now(), absl::UTCTimeZone());
    absl::StrAppendFormat(&line, "%s ", internal::LevelName(level));
  }
  for (const char c : text.substr(0, kMaxLineBytes)) {
    line.push_back(c >= ' ' || c == '\t' ? c : static_cast<unsigned char>(c) >= 0x80 ? c : ' ');
  }
  line.push_back('\n');
  // A log that nobody takes is no reason to stop.
  [[maybe_unused]] const ssize_t n = write(STDERR_FILENO, line.data(), line.size());
}

template <class... Args>
void Error(const absl::FormatSpec<Args...>& format, const Args&... args) {
  Write(Level::kError, absl::StrFormat(format, args...));
}
template <class... Args>
void Warning(const absl::FormatSpec<Args...>& format, const Args&... args) {
  Write(Level::kWarning, absl::StrFormat(format, args...));
}
template <class... Args>
void Info(const absl::FormatSpec<Args...>& format, const Args&... args) {
  Write(Level::kInfo, absl::StrFormat(format, args...));
}
template <class... Args>
void Debug(const absl::FormatSpec<Args...>& format, const Args&... args) {
  Write(Level::kDebug, absl::StrFormat(format, args...));
}

}  // namespace sluice::log
