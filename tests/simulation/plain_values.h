// Whether a value that is private leaves its host as it is, in any byte that is sent.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <utility>

#include "tests/simulation/network.h"

namespace sluice::simulation {

class PlainValues {
 public:
  // `mark`: what each of them begins with. `on_violation` hears of what is wrong.
  PlainValues(std::string mark, std::function<void(const std::string&)> on_violation)
      : mark_(std::move(mark)), on_violation_(std::move(on_violation)) {}

  void OnSent(WireId wire, std::string_view bytes) {
    std::string& end = ends_[wire];  // of what was sent before, where a mark may begin
    end += bytes;
    if (end.find(mark_) != std::string::npos) on_violation_("private: a value was sent as it is");
    if (end.size() >= mark_.size()) end.erase(0, end.size() + 1 - mark_.size());
  }

 private:
  const std::string mark_;
  const std::function<void(const std::string&)> on_violation_;
  std::map<WireId, std::string> ends_;
};

}  // namespace sluice::simulation
