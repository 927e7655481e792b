// The rules in force: from the file, compiled, published to the clients and told to the engine.
// A bad file changes nothing, and says so.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "daemon/admin/status.h"
#include "daemon/config/calendars.h"
#include "daemon/config/compile.h"
#include "daemon/config/config.h"
#include "daemon/config/parse.h"
#include "daemon/engine.h"
#include "daemon/wall_clock.h"
#include "shm/segment.h"

namespace sluice {

// What a good file said, kept to start again when the file has become bad meanwhile.
struct LoadedConfig {
  config::Config config;
  std::string text;
  std::vector<std::string> problems;  // of the file, where `config` comes from `fallback` instead
  std::vector<std::string> warnings;
};

// Reads and checks the file; where it is bad, `fallback` (the text of the last good one) serves,
// if there is any. InvalidArgument with all problems, a line each, when neither is good.
absl::StatusOr<LoadedConfig> LoadConfig(const std::string& path, const std::string& fallback);

// Reads the file as it is, at most config::kMaxConfigBytes; empty when it cannot be read.
std::string ReadConfigText(const std::string& path);

// Any thread, but for the constructor, PublishFirst and former.
class RuleBook {
 public:
  // `control` outlives the book. `offset_us` as WallOffsetUs.
  RuleBook(std::string path, LoadedConfig loaded, shm::ControlWriter* control,
           std::function<int64_t()> offset_us = WallOffsetUs);

  // Puts the first rules in force, before the segments are published.
  absl::Status PublishFirst(uint64_t now_ns);
  // Those that stood in the segment before the first; null: none.
  std::shared_ptr<const config::CompiledRules> former() const { return former_; }
  // What the file says; before PublishFirst only.
  const config::Config& wanted() const { return wanted_; }
  // Who is told of new rules; outlives the book's use.
  void SetEngine(Engine* engine);

  // Loads the file anew. `only_if_changed`: a file with the same text as before is left alone.
  admin::ReloadResult Reload(uint64_t now_ns, bool only_if_changed);
  // Publishes what had to wait for a policy buffer. Cheap when nothing waits.
  void RetryPending(uint64_t now_ns);
  // Publishes where windows by the calendar end, where that has changed. Cheap when it has not.
  void RenewCalendars(uint64_t now_ns);

  admin::RulesInForce InForce() const;
  admin::ConfigState State() const;
  // The text of the configuration in force.
  std::string text() const;

 private:
  absl::Status Publish(uint64_t now_ns);
  void TakeOver(const config::Config& fresh, std::vector<std::string>* warnings);

  mutable std::mutex mutex_;
  shm::ControlWriter* control_;
  config::Calendars calendars_;
  Engine* engine_ = nullptr;
  std::string text_;
  config::Config wanted_;  // as the file says; differs from what is in force while it waits
  bool is_pending_ = false;
  uint64_t retry_ns_ = 0;
  admin::RulesInForce in_force_;
  std::shared_ptr<const config::CompiledRules> former_;
  admin::ConfigState state_;
};

}  // namespace sluice
