// What `sluicectl replay` prints: one line per interval and a summary, as text or JSON lines.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "ctl/replay_runner.h"

namespace sluice::ctl {

using TrackNames = std::vector<std::pair<std::string, std::string>>;

// `t_s`: end of the interval, since the start. `interval_s`: its length.
nlohmann::json CountsToJson(const char* type, double t_s, double interval_s,
                            const ReplayCounts& counts, const TrackNames& tracks);

// "     1s   20000/s  allowed 15000  denied 5000  ..."
std::string CountsToLine(double t_s, double interval_s, const ReplayCounts& counts);

// The table over rules at the end.
std::string CountsToSummary(double t_s, const ReplayCounts& counts);

nlohmann::json LogSummaryToJson(const LogSummary& summary);

// "10,000 lines: 9,990 requests, 8 malformed (...)"; the first malformed lines follow.
std::string LogSummaryToText(const LogSummary& summary);

nlohmann::json TopValuesToJson(const std::map<std::string, std::vector<ValueShare>>& top);
std::string TopValuesToText(const std::map<std::string, std::vector<ValueShare>>& top);

}  // namespace sluice::ctl
