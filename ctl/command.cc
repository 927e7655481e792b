#include "ctl/command.h"

#include <iostream>
#include <nlohmann/json.hpp>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace sluice::ctl {

int Fail(const absl::Status& status) {
  std::cerr << "sluicectl: " << std::string(status.message()) << '\n';
  return absl::IsUnavailable(status) || absl::IsPermissionDenied(status) ? kExitNoDaemon
                                                                         : kExitUsage;
}

void Conclude(Globals* globals, const absl::Status& status) {
  if (!status.ok()) globals->exit_code = Fail(status);
}

void RunAdminVerb(Globals* globals, const std::function<absl::Status()>& verb) {
  absl::Status status;
  try {
    status = verb();
  } catch (const nlohmann::json::exception& error) {
    status = absl::UnavailableError(
        absl::StrCat("what answers at ", globals->AdminSocketPath(),
                     " is not a sluice daemon of this version: ", error.what()));
  }
  Conclude(globals, status);
}

CLI::App* AddVerb(CLI::App* root, Globals* globals, const std::string& name,
                  const std::string& description, const std::string& examples) {
  CLI::App* verb = root->add_subcommand(name, description);
  verb->add_flag("--json", globals->is_json, "print JSON");
  verb->add_option("--runtime-dir", globals->runtime_dir,
                   "the daemon's folder (also SLUICE_RUNTIME_DIR)")
      ->envname("SLUICE_RUNTIME_DIR")
      ->default_str(kDefaultRuntimeDir)
      ->type_name("DIR");
  verb->footer(examples);
  return verb;
}

absl::StatusOr<absl::Duration> ParseTime(const std::string& option, const std::string& text,
                                         absl::Duration most) {
  absl::Duration time;
  double seconds = 0;
  if (absl::SimpleAtod(text, &seconds)) {
    time = absl::Seconds(seconds);
  } else if (!absl::ParseDuration(text, &time)) {
    time = -absl::InfiniteDuration();
  }
  if (time >= absl::ZeroDuration() && time <= most) return time;
  return absl::InvalidArgumentError(absl::StrCat(
      option, " ", text, ": write how long, such as 30s, at most ", absl::FormatDuration(most)));
}

}  // namespace sluice::ctl
