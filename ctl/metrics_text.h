// The Prometheus text format, as much of it as one daemon's page needs.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace sluice::ctl {

struct Sample {
  std::map<std::string, std::string> labels;
  double value = 0;

  std::string Label(const std::string& name) const {
    const auto found = labels.find(name);
    return found == labels.end() ? std::string() : found->second;
  }
};

// Metric name -> samples, in the order of the page. Comments and lines that are none are skipped.
using Metrics = std::map<std::string, std::vector<Sample>>;
Metrics ParseMetrics(std::string_view text);

}  // namespace sluice::ctl
