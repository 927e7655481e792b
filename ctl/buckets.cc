// `sluicectl buckets`: buckets by name, on this host or over the fleet.

#include <cmath>
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "ctl/admin_client.h"
#include "ctl/command.h"
#include "ctl/text.h"

namespace sluice::ctl {
namespace {

using nlohmann::json;

constexpr uint32_t kMaxLimit = 10'000;  // the daemon's own bound

struct BucketsOptions {
  std::string prefix;
  bool is_global = false;
  uint32_t limit = 100;
};

std::string Seconds(const json& seconds) {
  return FormatDuration(static_cast<uint64_t>(seconds.get<double>() * 1e9));
}

// What is on loan of a bucket.
std::string LentText(const json& bucket, bool is_global) {
  const std::string head =
      absl::StrCat(SafeText(bucket.at("consistency").get<std::string>()), ": ");
  if (is_global) {
    return absl::StrCat(head, bucket.at("out_tokens").get<uint64_t>(), " out at ",
                        bucket.at("hosts").get<uint64_t>(), " hosts that ask for ",
                        std::llround(bucket.at("demand_per_s").get<double>()), "/s");
  }
  if (bucket.at("remaining").get<uint64_t>() != 0) {
    return absl::StrCat(head, "on loan for ", Seconds(bucket.at("held_for_s")));
  }
  const bool knows = bucket.at("more_in_s").get<double>() > 0;
  return knows ? absl::StrCat(head, "more in ", Seconds(bucket.at("more_in_s")))
               : head + "holds nothing";
}

// How many places hosts have, held or free.
std::string PlacesText(const json& bucket) {
  const auto missing = bucket.at("missing_places").get<uint64_t>();
  return absl::StrCat(bucket.at("lent_places").get<uint64_t>(), " at ",
                      bucket.at("hosts").get<uint64_t>(), " hosts",
                      missing == 0 ? "" : absl::StrCat(", ", missing, " asked for in vain"));
}

// How many places are held, and by whom.
std::string HoldersText(const json& bucket) {
  std::string text = absl::StrCat(bucket.at("held").get<uint64_t>(), " held");
  const char* before = ": ";
  for (const json& holder : bucket.at("holders")) {
    const auto pid = holder.at("pid").get<uint64_t>();
    absl::StrAppend(&text, before, holder.at("places").get<uint64_t>(), " by ",
                    pid == 0 ? std::string("a pid not seen here") : absl::StrCat("pid ", pid));
    before = ", ";
  }
  return text;
}

void PrintBuckets(const json& answer, const BucketsOptions& options) {
  Table table({"bucket", "limit", "burst", "remaining", "full in", "shard",
               options.is_global ? "counted in Redis" : "not yet reported", ""});
  for (const json& bucket : answer.at("buckets")) {
    const std::string name = SafeText(bucket.at("name").get<std::string>());
    const std::string region = bucket.value("region", std::string());
    const std::string shard =
        absl::StrCat(region, region.empty() ? "" : "/", bucket.at("shard").get<uint64_t>());
    if (!bucket.contains("limit")) {
      table.Row({name, "-", "-", "-", "-", shard, "-", "its rule is gone"});
      continue;
    }
    std::vector<std::string> notes;
    if (bucket.at("denying").get<bool>()) notes.emplace_back("denying");
    if (bucket.contains("consistency")) notes.push_back(LentText(bucket, options.is_global));
    if (bucket.contains("lent_places")) notes.push_back(PlacesText(bucket));
    if (bucket.contains("held")) notes.push_back(HoldersText(bucket));
    if (bucket.value("banned_for_s", 0.0) > 0) {
      notes.push_back("banned for another " + Seconds(bucket.at("banned_for_s")));
    }
    const double reset_s = bucket.at("reset_after_s").get<double>();
    const char* const tokens = options.is_global ? "tokens" : "unreconciled_tokens";
    table.Row(
        {name,
         FormatLimit(bucket.at("limit").get<uint64_t>(), bucket.at("period_ns").get<uint64_t>()),
         absl::StrCat(bucket.at("burst").get<uint64_t>()),
         absl::StrCat(bucket.at("remaining").get<uint64_t>()),
         FormatDuration(static_cast<uint64_t>(reset_s * 1e9)), shard,
         bucket.contains(tokens) ? absl::StrCat(bucket.at(tokens).get<int64_t>()) : "-",
         absl::StrJoin(notes, ", ")});
  }
  if (table.is_empty()) {
    std::cout << "no bucket"
              << (options.prefix.empty() ? "" : " whose name begins with " + options.prefix)
              << (options.is_global ? " in Redis" : " on this host") << "\n";
  } else {
    std::cout << table.Format();
  }
  if (answer.at("truncated").get<bool>()) {
    std::cout << "there are more: give a longer PREFIX, or a higher --limit\n";
  }
  if (const uint64_t missing = answer.value("unreachable_shards", uint64_t{0}); missing > 0) {
    std::cout << missing << " shards could not be read: their primaries do not answer\n";
  }
}

absl::Status RunBuckets(const Globals& globals, const BucketsOptions& options) {
  const absl::StatusOr<json> answer =
      AdminGetJson(globals, absl::StrCat("/buckets?prefix=", QueryEscape(options.prefix),
                                         "&scope=", options.is_global ? "global" : "local",
                                         "&limit=", options.limit));
  if (!answer.ok()) return answer.status();
  if (globals.is_json) {
    std::cout << answer->dump(2) << "\n";
  } else {
    PrintBuckets(*answer, options);
  }
  return absl::OkStatus();
}

}  // namespace

void AddBuckets(CLI::App* root, Globals* globals) {
  CLI::App* verb = AddVerb(
      root, globals, "buckets", "buckets by name: what is left in each",
      "Examples:\n"
      "  sluicectl buckets                    some of this host's buckets\n"
      "  sluicectl buckets per-tenant:acme    names begin with rule:value\n"
      "  sluicectl buckets --global generate  as Redis has them, over all hosts\n"
      "  sluicectl buckets --json --limit 10000 | jq '.buckets[] | select(.denying) | .name'");
  auto options = std::make_shared<BucketsOptions>();
  verb->add_option("PREFIX", options->prefix, "only names that begin with it (rule:value...)");
  verb->add_flag("--global", options->is_global, "ask Redis for the whole fleet's state");
  verb->add_option("--limit", options->limit, "show at most so many")
      ->check(CLI::Range(1u, kMaxLimit))
      ->capture_default_str();
  verb->callback([globals, options] {
    RunAdminVerb(globals, [&] { return RunBuckets(*globals, *options); });
  });
}

}  // namespace sluice::ctl
