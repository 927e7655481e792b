#include "ctl/metrics_text.h"

#include <cstdlib>

namespace sluice::ctl {
namespace {

// {name="value",...}: the value escapes backslash, quote and newline. False when it is not that.
bool TakeLabels(std::string_view* line, std::map<std::string, std::string>* labels) {
  line->remove_prefix(1);
  while (!line->empty() && line->front() != '}') {
    const size_t equals = line->find("=\"");
    if (equals == std::string_view::npos) return false;
    std::string& value = (*labels)[std::string(line->substr(0, equals))];
    line->remove_prefix(equals + 2);
    while (!line->empty() && line->front() != '"') {
      if (line->front() == '\\' && line->size() > 1) {
        line->remove_prefix(1);
        value.push_back(line->front() == 'n' ? '\n' : line->front());
      } else {
        value.push_back(line->front());
      }
      line->remove_prefix(1);
    }
    if (line->empty()) return false;
    line->remove_prefix(1);
    if (!line->empty() && line->front() == ',') line->remove_prefix(1);
  }
  if (line->empty()) return false;
  line->remove_prefix(1);
  return true;
}

}  // namespace

Metrics ParseMetrics(std::string_view text) {
  Metrics metrics;
  while (!text.empty()) {
    const size_t end = text.find('\n');
    std::string_view line = text.substr(0, end);
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
    if (line.empty() || line.front() == '#') continue;
    const size_t name_end = line.find_first_of("{ ");
    if (name_end == std::string_view::npos || name_end == 0) continue;
    const std::string name(line.substr(0, name_end));
    line.remove_prefix(name_end);
    Sample sample;
    if (line.front() == '{' && !TakeLabels(&line, &sample.labels)) continue;
    const std::string number(line);
    char* rest = nullptr;
    sample.value = std::strtod(number.c_str(), &rest);
    if (rest == number.c_str()) continue;
    metrics[name].push_back(std::move(sample));
  }
  return metrics;
}

}  // namespace sluice::ctl
