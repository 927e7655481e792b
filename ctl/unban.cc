// `sluicectl unban`: ends the ban of a bucket before its time.

#include <iostream>
#include <nlohmann/json.hpp>
#include <string>

#include "ctl/admin_client.h"
#include "ctl/command.h"
#include "ctl/text.h"

namespace sluice::ctl {
namespace {

using nlohmann::json;

absl::Status RunUnban(const Globals& globals, const std::string& bucket) {
  std::string text;
  absl::Status status = AdminLines(globals, "/unban?bucket=" + QueryEscape(bucket),
                                   [&](const std::string& line) { text += line; });
  if (!status.ok()) return status;
  if (globals.is_json) {
    std::cout << text << "\n";
    return absl::OkStatus();
  }
  const bool is_over_all = json::parse(text).at("over_all_hosts").get<bool>();
  std::cout << SafeText(bucket)
            << " has no ban and a full bucket, and its denials are forgotten: on this host now"
            << (is_over_all ? ", on each other with its next report of the bucket" : "") << "\n";
  return absl::OkStatus();
}

}  // namespace

void AddUnban(CLI::App* root, Globals* globals) {
  CLI::App* verb = AddVerb(
      root, globals, "unban", "ends the ban of a bucket before its time",
      "Fills the bucket and forgets its denials. On any host, for all of them: each other host "
      "hears\n"
      "of it with its next report of the bucket, for which a request there may still be denied.\n\n"
      "Examples:\n"
      "  sluicectl unban per-user:acme:42\n"
      "  sluicectl buckets --global --json | jq -r '.buckets[] | select(.banned_for_s > 0) | "
      ".name'");
  auto bucket = std::make_shared<std::string>();
  verb->add_option("BUCKET", *bucket, "its name, as sluicectl buckets shows it")->required();
  verb->callback(
      [globals, bucket] { RunAdminVerb(globals, [&] { return RunUnban(*globals, *bucket); }); });
}

}  // namespace sluice::ctl
