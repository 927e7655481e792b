// Every metric of GET /metrics, in one table: the page and docs/metrics.md are made from it.
#pragma once

#include <string>

#include "absl/types/span.h"
#include "daemon/admin/status.h"

namespace sluice::admin {

enum class MetricType { kCounter, kGauge, kHistogram };

struct MetricSpec {
  const char* name;
  MetricType type;
  const char* help;    // one sentence, the unit in it where the name has none
  const char* labels;  // comma-separated; empty: none
};

absl::Span<const MetricSpec> AllMetrics();

// The page in the Prometheus text format, version 0.0.4.
std::string RenderMetrics(const DaemonStatus& status);

// docs/metrics.md.
std::string MetricsReference();

}  // namespace sluice::admin
