// `sluicectl chaos`: faults on purpose, to see in staging what an outage does.

#include <iostream>
#include <nlohmann/json.hpp>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "ctl/admin_client.h"
#include "ctl/command.h"
#include "ctl/text.h"

namespace sluice::ctl {
namespace {

using nlohmann::json;

struct ChaosOptions {
  std::string fault;
  std::string by;
  std::string length;
  std::string share;
  std::string rules;
};

std::string PathOf(const ChaosOptions& options) {
  std::string path = "/chaos?fault=" + QueryEscape(options.fault);
  const auto add = [&](const char* name, const std::string& value) {
    if (!value.empty()) absl::StrAppend(&path, "&", name, "=", QueryEscape(value));
  };
  add("by", options.by);
  add("for", options.length);
  add("share", options.share);
  add("rules", options.rules);
  return path;
}

std::string TextOf(const json& line) {
  return absl::StrFormat(
      "%4.0f s left  %-9s  %3d shards in emergency, oldest use unknown to Redis %4.0f ms, "
      "%d calls touched, %d tokens decided degraded",
      line.at("left_s").get<double>(), SafeText(line.at("mode").get<std::string>()),
      line.at("emergency").get<int64_t>(), line.at("unreconciled_age_s").get<double>() * 1e3,
      line.at("calls").get<int64_t>(), line.at("degraded").get<int64_t>());
}

absl::Status RunChaos(const Globals& globals, const ChaosOptions& options) {
  bool is_first = true;
  absl::Status status = AdminLines(globals, PathOf(options), [&](const std::string& text) {
    const json line = json::parse(text, nullptr, /*allow_exceptions=*/false);
    if (globals.is_json) {
      std::cout << text << std::endl;
      return;
    }
    if (!line.is_object()) return;
    if (is_first) {
      std::cout << SafeText(line.at("chaos").get<std::string>()) << "; Ctrl-C ends it at once\n";
    }
    is_first = false;
    std::cout << TextOf(line) << std::endl;
  });
  if (status.ok() && !globals.is_json) std::cout << "over\n";
  return status;
}

}  // namespace

void AddChaos(CLI::App* root, Globals* globals) {
  CLI::App* verb = AddVerb(
      root, globals, "chaos", "inject a fault for a while, where daemon.chaos.allow says so",
      "Faults:\n"
      "  redis-delay DURATION  a share of the replies comes later, or as a time-out\n"
      "  redis-error           a share of the calls is refused\n"
      "  redis-cut             a share of the calls fails as on a lost connection\n"
      "  daemon-pause          the daemon stands still, its heartbeat too\n"
      "  clock-lag DURATION    the daemon's clock is behind\n"
      "  emergency             a share of the shards is in emergency, or of some rules' buckets\n"
      "It ends after --for, with this command, and with the daemon.\n\n"
      "Examples:\n"
      "  sluicectl chaos redis-delay 200ms --for 30s --share 10%\n"
      "  sluicectl chaos redis-cut --for 1m\n"
      "  sluicectl chaos emergency --for 30s --rules generate --share 50%");
  auto options = std::make_shared<ChaosOptions>();
  verb->add_option("FAULT", options->fault, "which fault")->required();
  verb->add_option("BY", options->by, "by how much, for redis-delay and clock-lag");
  verb->add_option("--for", options->length, "how long, as in 30s")->required();
  verb->add_option("--share", options->share, "of calls, shards or buckets, in percent (100)");
  verb->add_option("--rules", options->rules, "emergency: of these rules only, comma-separated");
  verb->callback(
      [globals, options] { RunAdminVerb(globals, [&] { return RunChaos(*globals, *options); }); });
}

}  // namespace sluice::ctl
