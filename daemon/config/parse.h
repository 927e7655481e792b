// sluice.yaml -> Config. Never throws and never stops at the first problem: a person mends a file
// in one go. All keys, their types, ranges and defaults stand in one table, keys.h.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "daemon/config/config.h"

namespace sluice::config {

// A configuration larger than this is refused unread: 1,024 rules take a tenth of it.
inline constexpr size_t kMaxConfigBytes = 1u << 20;
// More problems than this are not listed; the last one says so.
inline constexpr size_t kMaxProblems = 200;
inline constexpr size_t kMaxPasswordBytes = 4096;
inline constexpr size_t kMaxKeysFileBytes = 64 * 1024;

// One thing to say about one place of the file.
struct Finding {
  std::string file;
  int line = 0;      // from 1; 0: the file as a whole
  int column = 0;    // from 1; 0: the file as a whole
  std::string path;  // "rules[2].limit", as one would say it; may be empty
  std::string what;  // what is wrong
  std::string mend;  // what to write instead; may be empty

  // "sluice.yaml:12:10: rules[2].limit: <what>; <mend>"
  std::string ToString() const;
};
using Problem = Finding;  // the file is not to be used
using Warning = Finding;  // it is used, yet may not do what its author expects

struct ParseResult {
  Config config;  // complete only when ok()
  std::vector<Problem> problems;
  std::vector<Warning> warnings;

  bool ok() const { return problems.empty(); }
};

// Parses and checks `text`; `filename` is only shown. Deterministic, no I/O.
ParseResult ParseConfig(std::string_view text, std::string_view filename);

// Reads the file and parses it. A file that cannot be read, or is no regular file, or is larger
// than kMaxConfigBytes, is one problem. Reads privacy.keys_file too. Warns of a password that
// everybody on the host can read.
ParseResult ParseConfigFile(const std::string& path);

// Reads config->privacy.keys_file, where one is named, into config->privacy.keys. InvalidArgument
// or another status names the file and the mend.
absl::Status ReadPrivateKeys(Config* config);

// Before the name of one of the credentials that systemd gives to the service (LoadCredential=), in
// the place of a path.
inline constexpr std::string_view kCredentialPrefix = "credential:";

// The file that a path of the configuration names: itself, or for a credential the file in
// $CREDENTIALS_DIRECTORY. Without that directory it names nothing that could be opened.
std::string FileOf(const std::string& path);

// The password to use: the configured one, or the first line of password_file, read anew at each
// call. Empty when neither is configured. Errors name the file and the mend.
absl::StatusOr<std::string> ReadPassword(const RedisConfig& redis);
// The same for the sentinels.
absl::StatusOr<std::string> ReadPassword(const SentinelConfig& sentinel);

}  // namespace sluice::config
