#pragma once

#include <set>
#include <string>
#include <utility>
#include <vector>

#include "daemon/redis/cluster_client.h"

namespace sluice::redis {

// Remembers which alarms stand, so that each is told once when it is raised and once when it is
// cleared. Events are collected here until somebody takes them. One thread.
class AlarmBoard {
 public:
  void Raise(AlarmKind kind, const std::string& subject, const std::string& text,
             const std::string& mend) {
    if (standing_.size() >= kMaxStanding) return;
    if (!standing_.emplace(subject, kind).second) return;
    events_.push_back({kind, subject, true, text, mend});
  }

  void Clear(AlarmKind kind, const std::string& subject) {
    if (standing_.erase({subject, kind}) == 0) return;
    events_.push_back({kind, subject, false, "", ""});
  }

  bool has_events() const { return !events_.empty(); }
  std::vector<Alarm> TakeEvents() { return std::exchange(events_, {}); }

 private:
  // Every kind for every node; beyond it something invents subjects.
  static constexpr size_t kMaxStanding = 8 * kMaxPrimaries;

  std::set<std::pair<std::string, AlarmKind>> standing_;
  std::vector<Alarm> events_;
};

}  // namespace sluice::redis
