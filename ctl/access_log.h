// Lines of web servers' access logs: Apache's and nginx's "common" and "combined" formats, and
// what real files of that kind hold besides.
//
//   address ident user [time] "request" status bytes "referrer" "user agent" anything
//
// Also read: a virtual host before the address, a list of forwarded addresses, addresses with a
// port or in brackets, host names, users with spaces, ISO 8601 times, requests with escaped or bare
// quotes, binary requests, missing fields at the end, CRLF, NULs that log rotation left, a BOM.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace sluice::ctl {

// A longer line is cut here (a request line of 8 KiB is the usual server limit; escaped as \xNN it
// takes four times that, and referrer and user agent come on top).
inline constexpr size_t kMaxLineBytes = 64 * 1024;

// One request. The views are valid until the parser's next line.
struct LogEntry {
  std::string_view address;  // of the client: an IP address or a host name, without a port
  std::string_view user;     // empty: not logged
  int64_t time_ms = 0;       // since 1970, UTC
  std::string_view method;   // empty: the request line is not HTTP
  std::string_view target;   // as sent, escapes of the log undone; empty: not HTTP
  int status = 0;            // 0: not logged
  std::string_view referrer;
  std::string_view user_agent;
  bool is_http = false;
};

enum class LineKind { kEntry, kBlank, kComment, kMalformed };

// Parses line by line. Not thread-safe; keeps nothing between lines but scratch memory.
class LineParser {
 public:
  // `line` without its newline. `is_cut`: its end is missing (see kMaxLineBytes), so a request
  // without a closing quote is taken as far as it goes. On kMalformed, `*reason` says in a few
  // words what was missed; it is a string constant.
  LineKind Parse(std::string_view line, bool is_cut, LogEntry* entry, const char** reason);

 private:
  std::string request_;
};

// Parses "17/May/2015:10:05:03 +0000" or ISO 8601; a fraction of the second is kept as ms. False
// when it is neither, or no such day or hour exists.
bool ParseLogTime(std::string_view text, int64_t* time_ms);

// True for an IPv4 or IPv6 address, an IPv6 zone ("%eth0") allowed.
bool IsIpAddress(std::string_view text);

// Reads lines of any length from a file or standard input ("-"), cut at kMaxLineBytes.
class LogReader {
 public:
  // Refuses directories, and compressed or UTF-16 files, with the command that mends it.
  static absl::StatusOr<std::unique_ptr<LogReader>> Open(const std::string& path);
  ~LogReader();
  LogReader(const LogReader&) = delete;
  LogReader& operator=(const LogReader&) = delete;

  // False at the end, or on a read error (see status()). The view is valid until the next call.
  bool Next(std::string_view* line, bool* is_cut);
  const absl::Status& status() const { return status_; }

 private:
  LogReader(int fd, std::string path);
  bool Fill();

  int fd_;
  std::string path_;
  absl::Status status_;
  std::string buffer_;  // bytes read and not yet handed out start at `at_`
  size_t at_ = 0;
  bool is_end_ = false;
  std::string line_;
};

}  // namespace sluice::ctl
