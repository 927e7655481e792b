#include "ctl/replay_report.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/time.h"
#include "ctl/text.h"

namespace sluice::ctl {
namespace {

// What a line of the report has room for; the summary names all.
constexpr size_t kRulesInLine = 4;

nlohmann::json RulesToJson(const std::map<std::string, RuleCount>& rules) {
  nlohmann::json json = nlohmann::json::object();
  for (const auto& [label, count] : rules) {
    json[label] = {{"asked", count.asked},
                   {"allowed", count.allowed},
                   {"denied", count.denied},
                   {"tokens", count.tokens}};
  }
  return json;
}

std::string Utc(int64_t ms) {
  return absl::FormatTime("%Y-%m-%d %H:%M:%S UTC", absl::FromUnixMillis(ms), absl::UTCTimeZone());
}

std::string Percent(uint64_t part, uint64_t whole) {
  if (whole == 0) return "-";
  return absl::StrFormat("%.1f%%", 100.0 * static_cast<double>(part) / static_cast<double>(whole));
}

}  // namespace

nlohmann::json CountsToJson(const char* type, double t_s, double interval_s,
                            const ReplayCounts& counts, const TrackNames& tracks) {
  nlohmann::json histogram = nlohmann::json::array();
  for (size_t i = 0; i < counts.check_ns.cells.size(); ++i) {
    if (counts.check_ns.cells[i] != 0) {
      histogram.push_back({Histogram::LowOf(i), counts.check_ns.cells[i]});
    }
  }
  nlohmann::json json = {
      {"type", type},
      {"t_s", t_s},
      {"interval_s", interval_s},
      {"checks", counts.checks},
      {"allowed", counts.allowed},
      {"denied", counts.denied},
      {"errors", counts.errors},
      {"no_match", counts.no_match},
      {"defaults", counts.defaults},
      {"emergency", counts.emergency},
      {"overflow", counts.overflow},
      {"behind_s", static_cast<double>(counts.behind_ns) * 1e-9},
      {"check_ns",
       {{"samples", counts.check_ns.Total()},
        {"p50", counts.check_ns.Quantile(0.5)},
        {"p99", counts.check_ns.Quantile(0.99)},
        {"histogram", histogram}}},
      {"rules", RulesToJson(counts.rules)},
  };
  if (!tracks.empty()) {
    nlohmann::json& list = json["tracks"] = nlohmann::json::array();
    for (size_t i = 0; i < tracks.size() && i < counts.tracks.size(); ++i) {
      list.push_back({{"name", tracks[i].first},
                      {"value", tracks[i].second},
                      {"checks", counts.tracks[i].checks},
                      {"allowed", counts.tracks[i].allowed},
                      {"rules", RulesToJson(counts.tracks[i].rules)}});
    }
  }
  return json;
}

std::string CountsToLine(double t_s, double interval_s, const ReplayCounts& counts) {
  const double seconds = std::max(interval_s, 1e-9);
  std::string line =
      absl::StrFormat("%6.1f s %10.0f checks/s %9d allowed %9d denied   p50 %5d ns  p99 %6d ns",
                      t_s, static_cast<double>(counts.checks) / seconds, counts.allowed,
                      counts.denied, counts.check_ns.Quantile(0.5), counts.check_ns.Quantile(0.99));
  if (counts.errors > 0) absl::StrAppend(&line, "  ", counts.errors, " errors");
  if (counts.defaults > 0) absl::StrAppend(&line, "  ", counts.defaults, " by default");
  if (counts.no_match > 0) absl::StrAppend(&line, "  ", counts.no_match, " without a rule");
  if (counts.emergency > 0) absl::StrAppend(&line, "  ", counts.emergency, " in emergency");
  if (counts.behind_ns > 0) {
    absl::StrAppend(&line, "  behind by ", FormatDuration(counts.behind_ns));
  }
  // The rules that denied most.
  std::vector<std::pair<std::string, RuleCount>> rules(counts.rules.begin(), counts.rules.end());
  std::stable_sort(rules.begin(), rules.end(),
                   [](const auto& a, const auto& b) { return a.second.denied > b.second.denied; });
  if (rules.size() > kRulesInLine) rules.resize(kRulesInLine);
  for (const auto& [label, count] : rules) {
    absl::StrAppend(&line, "  ", SafeText(label), " ", count.allowed, "/", count.denied);
  }
  return line + "\n";
}

std::string CountsToSummary(double t_s, const ReplayCounts& counts) {
  std::string text = absl::StrFormat(
      "\n%d checks in %.1f s: %d allowed, %d denied; a check took p50 %d ns, p99 %d ns "
      "(%d timed)\n",
      counts.checks, t_s, counts.allowed, counts.denied, counts.check_ns.Quantile(0.5),
      counts.check_ns.Quantile(0.99), counts.check_ns.Total());
  Table table({"rule", "asked", "allowed", "denied by it", "tokens/s"});
  for (const auto& [label, count] : counts.rules) {
    table.Row({SafeText(label), absl::StrCat(count.asked), absl::StrCat(count.allowed),
               absl::StrCat(count.denied),
               absl::StrFormat("%.1f", static_cast<double>(count.tokens) / std::max(t_s, 1e-9))});
  }
  if (!table.is_empty()) text += table.Format();
  if (counts.no_match > 0) {
    absl::StrAppend(&text, counts.no_match, " requests matched no rule\n");
  }
  return text;
}

nlohmann::json LogSummaryToJson(const LogSummary& summary) {
  nlohmann::json examples = nlohmann::json::array();
  for (const BadLine& bad : summary.examples) {
    examples.push_back({{"line", bad.number}, {"reason", bad.reason}, {"text", bad.text}});
  }
  return {
      {"type", "log"},
      {"lines", summary.lines},
      {"requests", summary.entries},
      {"not_http", summary.not_http},
      {"malformed", summary.malformed},
      {"reasons", summary.reasons},
      {"examples", examples},
      {"blank", summary.blank},
      {"comments", summary.comments},
      {"cut", summary.cut},
      {"is_over_max", summary.is_over_max},
      {"first_ms", summary.first_ms},
      {"last_ms", summary.last_ms},
  };
}

std::string LogSummaryToText(const LogSummary& summary) {
  std::string text = absl::StrCat(summary.lines, " lines: ", summary.entries, " requests from ",
                                  Utc(summary.first_ms), " to ", Utc(summary.last_ms));
  if (summary.not_http > 0) absl::StrAppend(&text, ", ", summary.not_http, " of them not HTTP");
  if (summary.blank > 0) absl::StrAppend(&text, "; ", summary.blank, " blank");
  if (summary.comments > 0) absl::StrAppend(&text, "; ", summary.comments, " comments");
  if (summary.cut > 0) {
    absl::StrAppend(&text, "; ", summary.cut, " longer than ", kMaxLineBytes, " bytes");
  }
  if (summary.malformed > 0) {
    absl::StrAppend(&text, "; ", summary.malformed, " malformed (",
                    Percent(summary.malformed, summary.lines), ")");
  }
  text += "\n";
  for (const auto& [reason, n] : summary.reasons)
    absl::StrAppend(&text, "  ", n, ": ", reason, "\n");
  for (const BadLine& bad : summary.examples) {
    absl::StrAppend(&text, "  line ", bad.number, ": ", bad.reason, ": ", bad.text, "\n");
  }
  if (summary.is_over_max) {
    absl::StrAppend(&text, "  only the first ", kMaxLogEntries, " requests are replayed\n");
  }
  return text;
}

nlohmann::json TopValuesToJson(const std::map<std::string, std::vector<ValueShare>>& top) {
  nlohmann::json json = {{"type", "top"}, {"descriptors", nlohmann::json::object()}};
  for (const auto& [name, values] : top) {
    nlohmann::json& list = json["descriptors"][name] = nlohmann::json::array();
    for (const ValueShare& value : values) {
      list.push_back({{"value", value.value}, {"share", value.share}, {"tier", value.tier}});
    }
  }
  return json;
}

std::string TopValuesToText(const std::map<std::string, std::vector<ValueShare>>& top) {
  std::string text;
  for (const auto& [name, values] : top) {
    absl::StrAppend(&text, SafeText(name), ":\n");
    for (const ValueShare& value : values) {
      absl::StrAppendFormat(&text, "  %5.1f %%  %s\n", value.share * 100, SafeText(value.value));
    }
  }
  return text;
}

}  // namespace sluice::ctl
