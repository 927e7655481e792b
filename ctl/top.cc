// `sluicectl top`: what is being asked for now, rule by rule, and the busiest buckets.

#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "ctl/admin_client.h"
#include "ctl/command.h"
#include "ctl/metrics_text.h"
#include "ctl/text.h"

namespace sluice::ctl {
namespace {

using nlohmann::json;

constexpr size_t kRowsWithoutTerminal = 24;
constexpr size_t kMaxBuckets = 10'000;  // looked at per refresh: the daemon's own bound

struct TopOptions {
  double interval_s = 1;
  bool is_once = false;
  size_t count = 0;  // buckets shown; 0: what fits
};

struct BucketUse {
  std::string name;
  double tokens_per_s = 0;
  double used_share = 0;  // of the burst, 0..1 and above in debt
  bool is_denying = false;
};

// All that is known at one moment.
struct Look {
  double at_s = 0;
  Metrics metrics;
  std::map<std::string, double> reset_after_s;  // by bucket name
  std::map<std::string, double> remaining;      // by bucket name
  json buckets;

  double Sum(const std::string& name, const std::string& label = "",
             const std::string& value = "") const {
    double sum = 0;
    const auto found = metrics.find(name);
    if (found == metrics.end()) return 0;
    for (const Sample& sample : found->second) {
      if (label.empty() || sample.Label(label) == value) sum += sample.value;
    }
    return sum;
  }
};

double NowS() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
}

absl::StatusOr<Look> LookNow(const Globals& globals) {
  Look look;
  const absl::StatusOr<std::string> page = AdminGet(globals, "/metrics");
  if (!page.ok()) return page.status();
  look.metrics = ParseMetrics(*page);
  absl::StatusOr<json> buckets =
      AdminGetJson(globals, absl::StrCat("/buckets?limit=", kMaxBuckets));
  if (!buckets.ok()) return buckets.status();
  look.at_s = NowS();
  look.buckets = std::move(*buckets);
  for (const json& bucket : look.buckets.at("buckets")) {
    if (bucket.contains("reset_after_s")) {
      look.reset_after_s[bucket.at("name").get<std::string>()] =
          bucket.at("reset_after_s").get<double>();
      look.remaining[bucket.at("name").get<std::string>()] = bucket.at("remaining").get<double>();
    }
  }
  return look;
}

// How far the bucket's time went ahead, beyond the time that passed, tells what was spent (by all
// hosts, since the daemon folds the others' use in). What has refilled in between is not seen.
std::vector<BucketUse> Busiest(const Look& before, const Look& now, size_t count) {
  const double passed_s = std::max(now.at_s - before.at_s, 1e-3);
  std::vector<BucketUse> uses;
  for (const json& bucket : now.buckets.at("buckets")) {
    if (!bucket.contains("limit")) continue;
    BucketUse use;
    use.name = bucket.at("name").get<std::string>();
    const double period_s = bucket.at("period_ns").get<double>() * 1e-9;
    const double rate = period_s > 0 ? bucket.at("limit").get<double>() / period_s : 0;
    const double reset_s = bucket.at("reset_after_s").get<double>();
    const auto earlier = before.reset_after_s.find(use.name);
    const double earlier_s = earlier == before.reset_after_s.end() ? 0 : earlier->second;
    if (reset_s > 0) {
      // From a bucket that was full meanwhile only what stands now is known.
      const double spent_s = earlier_s > passed_s ? reset_s - (earlier_s - passed_s) : reset_s;
      use.tokens_per_s = std::max(spent_s, 0.0) * rate / passed_s;
    }
    const double burst = std::max(bucket.at("burst").get<double>(), 1.0);
    use.used_share = reset_s * rate / burst;
    const std::string algorithm = bucket.at("algorithm").get<std::string>();
    if (algorithm.ends_with("_window") || algorithm == "in_flight") {
      // Its reset tells when the window ends, not how much was spent; of places there is none.
      const double remaining = bucket.at("remaining").get<double>();
      const auto was = before.remaining.find(use.name);
      const double spent = (was == before.remaining.end() ? burst : was->second) - remaining;
      use.tokens_per_s = std::max(spent, 0.0) / passed_s;
      use.used_share = (burst - remaining) / burst;
    }
    use.is_denying = bucket.at("denying").get<bool>();
    uses.push_back(std::move(use));
  }
  std::sort(uses.begin(), uses.end(), [](const BucketUse& a, const BucketUse& b) {
    return a.tokens_per_s != b.tokens_per_s ? a.tokens_per_s > b.tokens_per_s : a.name < b.name;
  });
  if (uses.size() > count) uses.resize(count);
  return uses;
}

struct RuleRates {
  double allowed = 0;
  double denied = 0;
};

std::map<std::string, RuleRates> Rates(const Look& before, const Look& now) {
  const double passed_s = std::max(now.at_s - before.at_s, 1e-3);
  std::map<std::string, RuleRates> rates;
  const auto add = [&](const Look& look, double sign) {
    const auto found = look.metrics.find("sluice_checks_total");
    if (found == look.metrics.end()) return;
    for (const Sample& sample : found->second) {
      RuleRates& rule = rates[sample.Label("rule")];
      (sample.Label("result") == "allowed" ? rule.allowed : rule.denied) +=
          sign * sample.value / passed_s;
    }
  };
  add(now, 1);
  add(before, -1);
  for (auto& [label, rule] : rates) {  // a restarted daemon counts from 0
    rule.allowed = std::max(rule.allowed, 0.0);
    rule.denied = std::max(rule.denied, 0.0);
  }
  return rates;
}

json ToJson(const Look& before, const Look& now, size_t count) {
  json rules = json::object();
  for (const auto& [label, rule] : Rates(before, now)) {
    rules[label] = {{"allowed_per_s", rule.allowed}, {"denied_per_s", rule.denied}};
  }
  json buckets = json::array();
  for (const BucketUse& use : Busiest(before, now, count)) {
    buckets.push_back({{"name", use.name},
                       {"tokens_per_s", use.tokens_per_s},
                       {"used_share", use.used_share},
                       {"denying", use.is_denying}});
  }
  return {{"interval_s", now.at_s - before.at_s},
          {"unreconciled_age_s", now.Sum("sluice_unreconciled_age_seconds")},
          {"shards",
           {{"healthy", now.Sum("sluice_shards", "mode", "healthy")},
            {"stale", now.Sum("sluice_shards", "mode", "stale")},
            {"emergency", now.Sum("sluice_shards", "mode", "emergency")}}},
          {"clients", now.Sum("sluice_clients_attached")},
          {"rules", rules},
          {"buckets", buckets}};
}

std::string ToText(const Look& before, const Look& now, size_t rows) {
  const std::map<std::string, RuleRates> rates = Rates(before, now);
  RuleRates all;
  for (const auto& [label, rule] : rates) {
    all.allowed += rule.allowed;
    all.denied += rule.denied;
  }
  std::string text = absl::StrFormat(
      "%.0f tokens/s allowed, %.0f denied (summed over rules)   %.0f clients   oldest use %s   "
      "shards %.0f healthy, %.0f stale, %.0f emergency\n",
      all.allowed, all.denied, now.Sum("sluice_clients_attached"),
      FormatDuration(static_cast<uint64_t>(now.Sum("sluice_unreconciled_age_seconds") * 1e9)),
      now.Sum("sluice_shards", "mode", "healthy"), now.Sum("sluice_shards", "mode", "stale"),
      now.Sum("sluice_shards", "mode", "emergency"));
  const auto alarms = now.metrics.find("sluice_alarm");
  if (alarms != now.metrics.end()) {
    for (const Sample& alarm : alarms->second) {
      absl::StrAppend(&text, "ALARM ", SafeText(alarm.Label("id")), ": see sluicectl status\n");
    }
  }
  Table rule_table({"rule", "allowed/s", "denied/s"});
  for (const auto& [label, rule] : rates) {
    rule_table.Row({SafeText(label), absl::StrFormat("%.0f", rule.allowed),
                    absl::StrFormat("%.0f", rule.denied)});
  }
  absl::StrAppend(&text, "\n", rule_table.Format(), "\n");
  const size_t used_rows = static_cast<size_t>(std::count(text.begin(), text.end(), '\n')) + 2;
  Table bucket_table({"busiest bucket", "tokens/s", "of burst used", ""});
  for (const BucketUse& use :
       Busiest(before, now, std::max<size_t>(rows > used_rows ? rows - used_rows : 0, 5))) {
    if (use.tokens_per_s <= 0) break;
    bucket_table.Row({SafeText(use.name), absl::StrFormat("%.0f", use.tokens_per_s),
                      absl::StrFormat("%.0f%%", std::min(use.used_share, 9.99) * 100),
                      use.is_denying ? "denying" : ""});
  }
  return text + bucket_table.Format();
}

size_t TerminalRows() {
  winsize size{};
  if (isatty(STDOUT_FILENO) && ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_row > 0) {
    return size.ws_row;
  }
  return kRowsWithoutTerminal;
}

absl::Status RunTop(const Globals& globals, const TopOptions& options) {
  absl::StatusOr<Look> before = LookNow(globals);
  if (!before.ok()) return before.status();
  // Each round ends by Ctrl-C, a closed pipe or a daemon that is gone.
  do {
    const timespec pause = {
        static_cast<time_t>(options.interval_s),
        static_cast<long>((options.interval_s - std::floor(options.interval_s)) * 1e9)};
    nanosleep(&pause, nullptr);
    absl::StatusOr<Look> now = LookNow(globals);
    if (!now.ok()) return now.status();
    if (globals.is_json) {
      std::cout << ToJson(*before, *now, options.count == 0 ? 20 : options.count).dump() << "\n";
    } else {
      const size_t rows =
          options.count == 0 ? TerminalRows() : options.count + kRowsWithoutTerminal;
      const bool is_screen = isatty(STDOUT_FILENO) && !options.is_once;
      std::cout << (is_screen ? "\x1b[H\x1b[J" : "") << ToText(*before, *now, rows)
                << (is_screen || options.is_once ? "" : "\n");
    }
    std::cout << std::flush;
    before = std::move(now);
  } while (!options.is_once && std::cout);
  return absl::OkStatus();
}

}  // namespace

void AddTop(CLI::App* root, Globals* globals) {
  CLI::App* verb =
      AddVerb(root, globals, "top", "live: checks per rule, and the busiest buckets",
              "Examples:\n"
              "  sluicectl top                  refreshes each second; Ctrl-C ends it\n"
              "  sluicectl top --once           one look over one second\n"
              "  sluicectl top --once --json | jq '.buckets[0]'\n\n"
              "A bucket's tokens/s are those of all hosts that share it.");
  auto options = std::make_shared<TopOptions>();
  verb->add_option("--interval", options->interval_s, "seconds between looks")
      ->check(CLI::Range(0.1, 3600.0))
      ->capture_default_str();
  verb->add_option("--count", options->count, "buckets shown (default: what fits)")
      ->check(CLI::Range(size_t{1}, kMaxBuckets));
  verb->add_flag("--once", options->is_once, "look once and end");
  verb->callback(
      [globals, options] { RunAdminVerb(globals, [&] { return RunTop(*globals, *options); }); });
}

}  // namespace sluice::ctl
