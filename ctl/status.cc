// `sluicectl status`: the daemon's health in words.

#include <cmath>
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

// Beyond this a new key may find its neighbourhood full.
constexpr double kHighLoad = 0.55;

std::string Seconds(const json& seconds) {
  const double value = seconds.get<double>();
  return FormatDuration(value <= 0 ? 0 : static_cast<uint64_t>(std::min(value * 1e9, 1e18)));
}

std::string HealthWord(const json& status) {
  const std::string mode = status.at("mode").get<std::string>();
  const json& shards = status.at("shards");
  if (status.at("redis").is_null())
    return "healthy: a limiter for this host alone (no redis: section)";
  if (mode == "healthy") return "healthy: every limit is shared with the other hosts";
  const std::string of = absl::StrCat(" of ", shards.at("count").get<uint64_t>(), " shards ");
  if (mode == "stale") {
    return absl::StrCat("stale: ", shards.at("stale").get<uint64_t>(), of,
                        "wait longer than usual for Redis; decisions go on unchanged");
  }
  return absl::StrCat("EMERGENCY: ", shards.at("emergency").get<uint64_t>(), of,
                      "are cut off from Redis; their buckets follow each rule's when_degraded");
}

void PrintRedis(const json& redis) {
  std::cout << "redis    oldest use that it does not know: "
            << Seconds(redis.at("unreconciled_age_s")) << "; "
            << redis.at("batches").get<uint64_t>() << " batches, "
            << redis.at("resends").get<uint64_t>() << " sent again, "
            << redis.at("script_errors").get<uint64_t>() << " script errors; "
            << redis.at("transport").get<std::string>() << "\n";
  Table table({"         primary", "connected", "breaker", "shards", "p50", "p99", "failures",
               "last error"});
  for (const json& p : redis.at("primaries")) {
    const auto us = [&](const char* name) {
      const auto ns = static_cast<uint64_t>(p.at(name).get<double>() * 1e3);
      return ns == 0 ? std::string("-") : FormatDuration(ns);  // too few calls of late
    };
    table.Row({"         " + SafeText(p.at("address").get<std::string>()),
               p.at("connected").get<bool>() ? "yes" : "NO", p.at("breaker").get<std::string>(),
               absl::StrCat(p.at("shards").get<uint64_t>()), us("p50_us"), us("p99_us"),
               absl::StrCat(p.at("failures").get<uint64_t>()),
               SafeText(p.at("last_error").get<std::string>())});
  }
  if (!table.is_empty()) std::cout << table.Format();
}

void PrintLeases(const json& leases) {
  if (leases.at("buckets").get<uint64_t>() == 0) return;
  std::cout << "leases   " << leases.at("held_tokens").get<uint64_t>() << " tokens held, of "
            << leases.at("buckets").get<uint64_t>() << " strict buckets; "
            << leases.at("lent_tokens").get<uint64_t>() << " lent, "
            << leases.at("returned_tokens").get<uint64_t>() << " returned, "
            << leases.at("lost_tokens").get<uint64_t>() << " lost; "
            << leases.at("calls").get<uint64_t>() << " calls, "
            << leases.at("resends").get<uint64_t>() << " sent again\n";
}

void PrintConfig(const json& status) {
  const json& config = status.at("config");
  std::cout << "rules    " << status.at("policy").at("rules").get<uint64_t>() << " in force from "
            << SafeText(config.at("path").get<std::string>());
  if (!config.at("ok").get<bool>()) std::cout << "; the file is BAD: the limits before it hold";
  std::cout << "\n";
  for (const char* kind : {"problems", "warnings"}) {
    for (const json& line : config.at(kind)) {
      std::cout << "         " << SafeText(line.get<std::string>()) << "\n";
    }
  }
  const std::string pending = config.at("pending").get<std::string>();
  if (!pending.empty()) std::cout << "         not in force yet: " << SafeText(pending) << "\n";
}

void PrintTable(const json& table) {
  const double load = table.at("load").get<double>();
  std::cout << absl::StrFormat(
      "table    %d of %d slots held a bucket at the last sweep (%.1f %%)%s; %d evictions, "
      "%d overflows\n",
      table.at("live").get<uint64_t>(), table.at("capacity").get<uint64_t>(), load * 100,
      load > kHighLoad ? ": raise daemon.buckets" : "", table.at("evictions").get<uint64_t>(),
      table.at("overflows").get<uint64_t>());
  const auto log_keys = table.value<uint64_t>("log_keys", 0);
  if (log_keys == 0) return;
  std::cout << absl::StrFormat("rows     for %d keys of logs and places, %d entries each, %d KiB\n",
                               log_keys, table.at("log_tokens").get<uint64_t>(),
                               table.at("log_bytes").get<uint64_t>() >> 10);
}

void PrintClients(const json& clients) {
  const uint64_t same_user = clients.at("same_user").get<uint64_t>();
  std::cout << "clients  " << clients.at("attached").get<uint64_t>() << " attached";
  if (same_user > 0) {
    std::cout << ", " << same_user
              << " of them as the daemon's own user (they could harm it: use another user)";
  }
  std::cout << "\n";
}

void PrintAlarms(const json& alarms) {
  if (alarms.empty()) {
    std::cout << "alarms   none\n";
    return;
  }
  for (const json& alarm : alarms) {
    std::cout << "ALARM    " << SafeText(alarm.at("id").get<std::string>()) << ", for "
              << Seconds(alarm.at("since_s")) << ": "
              << SafeText(alarm.at("text").get<std::string>()) << "\n";
    const std::string mend = alarm.at("mend").get<std::string>();
    if (!mend.empty()) std::cout << "         mend: " << SafeText(mend) << "\n";
  }
}

absl::Status RunStatus(const Globals& globals) {
  const absl::StatusOr<json> status = AdminGetJson(globals, "/status");
  if (!status.ok()) return status.status();
  if (globals.is_json) {
    std::cout << status->dump(2) << "\n";
    return absl::OkStatus();
  }
  std::cout << HealthWord(*status) << "\n"
            << "daemon   " << status->at("version").get<std::string>() << ", pid "
            << status->at("pid").get<int64_t>() << ", up " << Seconds(status->at("uptime_s"))
            << (status->at("adopted").get<bool>() ? ", with the buckets of the daemon before it"
                                                  : "")
            << "\n";
  PrintConfig(*status);
  if (!status->at("redis").is_null()) {
    const json& shards = status->at("shards");
    std::cout << "shards   " << shards.at("healthy").get<uint64_t>() << " healthy, "
              << shards.at("stale").get<uint64_t>() << " stale, "
              << shards.at("emergency").get<uint64_t>() << " in emergency\n";
    PrintRedis(status->at("redis"));
    PrintLeases(status->at("leases"));
  }
  PrintTable(status->at("table"));
  PrintClients(status->at("clients"));
  PrintAlarms(status->at("alarms"));
  return absl::OkStatus();
}

}  // namespace

void AddStatus(CLI::App* root, Globals* globals) {
  CLI::App* verb =
      AddVerb(root, globals, "status", "is the daemon well: shards, Redis, table, clients, alarms",
              "Examples:\n"
              "  sluicectl status\n"
              "  sluicectl status --json | jq .mode\n"
              "  sluicectl status --json | jq -r '.alarms[] | .text + \"; mend: \" + .mend'\n"
              "  sluicectl status --runtime-dir /run/sluice-test");
  verb->callback([globals] { RunAdminVerb(globals, [&] { return RunStatus(*globals); }); });
}

}  // namespace sluice::ctl
