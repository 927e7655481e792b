// sluicectl: looks at a running sluiced, checks by hand, and replays traffic against it.

#include <CLI/CLI.hpp>

#include "ctl/command.h"

int main(int argc, char** argv) {
  using namespace sluice::ctl;  // NOLINT(google-build-using-namespace): this file is the command
  Globals globals;
  globals.runtime_dir = kDefaultRuntimeDir;

  CLI::App app("Looks at a running sluiced, checks by hand, and replays traffic against it.",
               "sluicectl");
  app.require_subcommand(1);
  app.set_version_flag("--version", "sluicectl " SLUICE_VERSION);
  app.footer(
      "Examples:\n"
      "  sluicectl status\n"
      "  sluicectl check route=/v1/generate tenant=acme tier=paid --peek\n"
      "  sluicectl replay access.log --speed 10\n"
      "  sluicectl replay --generate keys=10000,skew=1.1,rate=5000 --seconds 30\n"
      "Each verb has its own --help.\n\n"
      "Exit codes: 0 done or allowed, 1 denied, 2 wrong arguments or unreadable file, 3 no "
      "daemon.");
  AddStatus(&app, &globals);
  AddRules(&app, &globals);
  AddCheck(&app, &globals);
  AddReserve(&app, &globals);
  AddSettle(&app, &globals);
  AddBuckets(&app, &globals);
  AddTop(&app, &globals);
  AddChaos(&app, &globals);
  AddPromote(&app, &globals);
  AddUnban(&app, &globals);
  AddReplay(&app, &globals);
  AddCompletion(&app, &globals);

  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    const int code = app.exit(error);
    return code == 0 ? kExitOk : kExitUsage;
  }
  return globals.exit_code;
}
