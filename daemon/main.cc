// sluiced: the command line. Without a supervisor it becomes the keeper, which starts it again as
// its worker; see keeper.h.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "daemon/admin/metrics.h"
#include "daemon/app.h"
#include "daemon/config/keys.h"
#include "daemon/config/parse.h"
#include "daemon/keeper.h"

namespace {

constexpr char kDefaultConfig[] = "/etc/sluice/sluice.yaml";
constexpr int kExitUsage = 64;  // EX_USAGE

int CheckConfig(const std::string& path) {
  const sluice::config::ParseResult result = sluice::config::ParseConfigFile(path);
  for (const auto& problem : result.problems) std::printf("%s\n", problem.ToString().c_str());
  for (const auto& warning : result.warnings) {
    std::printf("%s (warning)\n", warning.ToString().c_str());
  }
  if (!result.ok()) {
    std::printf("%s: %zu problem%s\n", path.c_str(), result.problems.size(),
                result.problems.size() == 1 ? "" : "s");
    return sluice::kExitConfig;
  }
  std::printf("%s: good, %zu rules, %s\n", path.c_str(), result.config.rules.size(),
              result.config.redis.has_value() ? "with Redis" : "for this host alone");
  if (const auto logs = sluice::config::LogsFor(result.config); logs.rows != 0) {
    std::printf("%s: rows for %u keys of logs and places, %u entries each, take %llu KiB\n",
                path.c_str(), logs.rows, logs.entries,
                static_cast<unsigned long long>(logs.bytes() >> 10));
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App cli(
      "sluiced: the daemon of the sluice rate limiter. Publishes the rules to the clients of this\n"
      "host in shared memory, and shares their use with other hosts through Redis.");
  std::string config_path = kDefaultConfig;
  std::string runtime_dir;
  bool check_config = false;
  bool print_reference = false;
  bool print_metrics = false;
  bool no_keeper = false;
  cli.add_option("--config", config_path, "the configuration file")->capture_default_str();
  cli.add_option("--runtime-dir", runtime_dir,
                 "where the sockets stand (default: daemon.runtime_dir of the configuration)");
  cli.add_flag("--check-config", check_config, "say what is wrong with the configuration, and end");
  cli.add_flag("--print-config-reference", print_reference, "print docs/configuration.md");
  cli.add_flag("--print-metrics-reference", print_metrics, "print docs/metrics.md");
  cli.add_flag("--no-keeper", no_keeper,
               "do not start a keeper: buckets are lost when the daemon ends");
  cli.set_version_flag("--version", std::string("sluiced ") + SLUICE_VERSION);
  cli.footer(
      "Signals: SIGHUP reloads the configuration (a changed file is seen without), SIGTERM ends "
      "in\n"
      "order, SIGUSR2 replaces the worker by the binary on disk, keeping all buckets.\n"
      "Exit codes: 0 ended in order, 64 usage, 69 already running there, 78 bad configuration.");
  try {
    cli.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return cli.exit(error) == 0 ? 0 : kExitUsage;
  }
  if (print_reference) {
    std::fputs(sluice::config::RenderConfigReference().c_str(), stdout);
    return 0;
  }
  if (print_metrics) {
    std::fputs(sluice::admin::MetricsReference().c_str(), stdout);
    return 0;
  }
  if (check_config) return CheckConfig(config_path);
  if (!no_keeper && std::getenv("NOTIFY_SOCKET") == nullptr) {
    return sluice::Keeper(std::vector<std::string>(argv, argv + argc)).Run();
  }
  sluice::App::BlockSignals();
  return sluice::App({config_path, runtime_dir, SLUICE_VERSION}).Run();
}
