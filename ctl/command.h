// What the verbs of sluicectl share: the options of all, the exit codes, and how they end.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace sluice::ctl {

// Exit codes; `sluicectl --help` lists them.
inline constexpr int kExitOk = 0;
inline constexpr int kExitDenied = 1;    // check: the request was denied
inline constexpr int kExitUsage = 2;     // wrong arguments, or a file that cannot be read
inline constexpr int kExitNoDaemon = 3;  // no daemon answers, or it is of another version

inline constexpr const char* kDefaultRuntimeDir = "/run/sluice";

struct Globals {
  std::string runtime_dir;
  bool is_json = false;
  int exit_code = kExitOk;  // set by the verb that ran

  std::string AdminSocketPath() const { return runtime_dir + "/admin.sock"; }
};

// Prints "sluicectl: message" to standard error; returns the exit code for the status.
int Fail(const absl::Status& status);

// How a verb ends: what went wrong is printed, and decides the exit code.
void Conclude(Globals* globals, const absl::Status& status);

// Runs a verb that reads the daemon's JSON and sets globals->exit_code: what does not have the
// expected shape is a daemon of another version.
void RunAdminVerb(Globals* globals, const std::function<absl::Status()>& verb);

// A verb with the options of all verbs; `examples` close its --help.
CLI::App* AddVerb(CLI::App* root, Globals* globals, const std::string& name,
                  const std::string& description, const std::string& examples);

// A length of time as 30s or 1m30s, or in plain seconds, from 0 to `most`; else the error names the
// option.
absl::StatusOr<absl::Duration> ParseTime(const std::string& option, const std::string& text,
                                         absl::Duration most);

void AddStatus(CLI::App* root, Globals* globals);
void AddRules(CLI::App* root, Globals* globals);
void AddCheck(CLI::App* root, Globals* globals);
void AddBuckets(CLI::App* root, Globals* globals);
void AddTop(CLI::App* root, Globals* globals);
void AddChaos(CLI::App* root, Globals* globals);
void AddPromote(CLI::App* root, Globals* globals);
void AddUnban(CLI::App* root, Globals* globals);
void AddReserve(CLI::App* root, Globals* globals);
void AddSettle(CLI::App* root, Globals* globals);
void AddReplay(CLI::App* root, Globals* globals);
void AddCompletion(CLI::App* root, Globals* globals);

}  // namespace sluice::ctl
