// `sluicectl rules`: the rules in force, with their counts.

#include <iostream>
#include <nlohmann/json.hpp>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "ctl/admin_client.h"
#include "ctl/command.h"
#include "ctl/text.h"

namespace sluice::ctl {
namespace {

using nlohmann::json;

// Longer lists of values are cut; --json has them all.
constexpr size_t kMaxValuesShown = 3;

std::string MatchText(const json& match) {
  std::string text;
  for (const json& m : match) {
    if (!text.empty()) text += " ";
    text += SafeText(m.at("descriptor").get<std::string>()) + "=";
    const json& values = m.at("values");
    for (size_t i = 0; i < values.size(); ++i) {
      if (i == kMaxValuesShown) {
        text += absl::StrCat("|...", values.size() - i, " more");
        break;
      }
      text += (i > 0 ? "|" : "") + SafeText(values[i].get<std::string>());
    }
    if (m.at("op").get<std::string>() == "prefix") text += "*";
  }
  return text.empty() ? "all" : text;
}

std::string ModeText(const std::string& mode, double factor) {
  return mode == "degrade" ? absl::StrFormat("x%g", factor) : mode;
}

std::string DegradedText(const json& degraded) {
  std::string text = ModeText(degraded.at("mode"), degraded.at("factor"));
  const uint64_t for_ns = degraded.at("for_ns").get<uint64_t>();
  if (for_ns > 0) {
    absl::StrAppend(&text, " for ", FormatDuration(for_ns), ", then ",
                    ModeText(degraded.at("then"), degraded.at("then_factor")));
  }
  if (degraded.at("alert").get<bool>()) text += ", alert";
  return text;
}

std::string PriorityText(const json& priority) {
  std::string text = absl::StrCat("priority by ", SafeText(priority.at("by").get<std::string>()));
  for (const auto& [name, part] : priority.at("classes").items()) {
    absl::StrAppend(&text, " ", SafeText(name), "=", part.get<double>());
    const json& denied = priority.at("denied");
    if (denied.contains(name)) {
      absl::StrAppend(&text, " (", denied.at(name).get<uint64_t>(), " denied)");
    }
  }
  return absl::StrCat(text, " ");
}

// What it would have denied stands beside what its rule denied: both of the same requests.
std::string CandidateText(const json& candidate, uint64_t denied) {
  std::string text = absl::StrCat(
      "candidate ",
      FormatLimit(candidate.at("limit").get<uint64_t>(), candidate.at("period_ns").get<uint64_t>()),
      " burst ", candidate.at("burst").get<uint64_t>());
  if (candidate.at("cost").get<uint64_t>() != 1) {
    absl::StrAppend(&text, " cost ", candidate.at("cost").get<uint64_t>());
  }
  return absl::StrCat(text, " would deny ", candidate.at("would_deny").get<uint64_t>(), ", not ",
                      denied, " ");
}

std::string PenaltyText(const json& penalty, uint64_t bans) {
  std::string text;
  if (penalty.at("after").get<uint64_t>() != 0) {
    absl::StrAppend(&text, "bans for ", FormatDuration(penalty.at("for_ns").get<uint64_t>()),
                    " after ", penalty.at("after").get<uint64_t>(), " denials in ",
                    FormatDuration(penalty.at("within_ns").get<uint64_t>()), ": ", bans,
                    " begun here ");
  }
  if (penalty.at("deny_costs").get<uint64_t>() != 0) {
    absl::StrAppend(&text, "a denial costs ", penalty.at("deny_costs").get<uint64_t>(), " ");
  }
  return text;
}

absl::Status RunRules(const Globals& globals) {
  const absl::StatusOr<json> rules = AdminGetJson(globals, "/rules");
  if (!rules.ok()) return rules.status();
  if (globals.is_json) {
    std::cout << rules->dump(2) << "\n";
    return absl::OkStatus();
  }
  Table table({"rule", "limit", "burst", "for requests with", "one bucket per", "without Redis",
               "allowed", "denied", ""});
  for (const json& rule : rules->at("rules")) {
    std::string match = MatchText(rule.at("match"));
    const std::string tier = rule.at("tier").get<std::string>();
    if (!tier.empty()) match += " tier=" + tier;
    std::string key;
    for (const json& part : rule.at("key")) {
      key += (key.empty() ? "" : " + ") + SafeText(part.get<std::string>());
    }
    std::string notes;
    if (rule.at("priority").is_object()) notes += PriorityText(rule.at("priority"));
    if (const json& candidate = rule.at("candidate"); candidate.is_object()) {
      notes += CandidateText(candidate, rule.at("denied").get<uint64_t>());
    }
    if (const json& penalty = rule.at("penalty"); penalty.is_object()) {
      notes += PenaltyText(penalty, rule.at("bans").get<uint64_t>());
    }
    if (const json& override = rule.at("override"); override.is_object()) {
      absl::StrAppend(&notes, "or the request's ", SafeText(override.at("by").get<std::string>()),
                      ", at most ", override.at("max").get<uint64_t>(), " ");
    }
    if (rule.at("shadow").get<bool>()) notes += "shadow ";
    const auto consistency = rule.at("consistency").get<std::string>();
    if (consistency != "approximate") notes += consistency + " ";
    if (rule.at("wait_ns").get<uint64_t>() != 0) {
      absl::StrAppend(&notes, "callers wait up to ",
                      FormatDuration(rule.at("wait_ns").get<uint64_t>()), " ");
    }
    if (const auto algorithm = rule.at("algorithm").get<std::string>();
        algorithm == "sliding_log" || algorithm.ends_with("_window")) {
      absl::StrAppend(&notes, absl::StrReplaceAll(algorithm, {{"_", " "}}), " ");
    }
    if (rule.at("max_delay_ns").get<uint64_t>() != 0) {
      absl::StrAppend(&notes, "leaky, waits up to ",
                      FormatDuration(rule.at("max_delay_ns").get<uint64_t>()), " ");
    }
    if (rule.at("cost").get<uint64_t>() != 1) {
      absl::StrAppend(&notes, "cost ", rule.at("cost").get<uint64_t>());
    }
    table.Row({rule.at("label").get<std::string>(),
               FormatLimit(rule.at("limit").get<uint64_t>(), rule.at("period_ns").get<uint64_t>()),
               absl::StrCat(rule.at("burst").get<uint64_t>()), match, key.empty() ? "(one)" : key,
               DegradedText(rule.at("when_degraded")),
               absl::StrCat(rule.at("allowed").get<uint64_t>()),
               absl::StrCat(rule.at("denied").get<uint64_t>()), notes});
  }
  if (table.is_empty()) {
    std::cout << "no rules: every request is allowed\n";
  } else {
    std::cout << table.Format();
  }
  return absl::OkStatus();
}

}  // namespace

void AddRules(CLI::App* root, Globals* globals) {
  CLI::App* verb = AddVerb(root, globals, "rules", "the rules in force, and how often each decided",
                           "Examples:\n"
                           "  sluicectl rules\n"
                           "  sluicectl rules --json | jq '.rules[] | {label, limit, denied}'");
  verb->callback([globals] { RunAdminVerb(globals, [&] { return RunRules(*globals); }); });
}

}  // namespace sluice::ctl
