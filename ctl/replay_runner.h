// Runs a workload against the local daemon's rules through libsluice, and counts.
//
// Each thread has a stream of its own and counters that it alone writes; Read() adds them up from
// any thread while they run.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "ctl/histogram.h"
#include "ctl/workload.h"
#include "sluice.h"

namespace sluice::ctl {

inline constexpr uint32_t kMaxThreads = 64;
inline constexpr size_t kMaxTracks = 64;
// Rules (a tier counts as one) that are counted apart; what is beyond is counted as "(others)".
inline constexpr size_t kMaxLabels = 256;

struct ReplayOptions {
  uint32_t threads = 1;  // 1..kMaxThreads
  double speed = 1;      // times the workload's own pace; 0: as fast as can be
  uint64_t cost = 1;     // of each request
  // Requests with descriptor `first` = `second` are counted apart, per rule.
  std::vector<std::pair<std::string, std::string>> tracks;
};

struct RuleCount {
  uint64_t asked = 0;    // requests that this rule applied to
  uint64_t allowed = 0;  // of those, allowed (by all their rules)
  uint64_t denied = 0;   // requests that this rule denied
  uint64_t tokens = 0;   // spent under this rule
};

struct ReplayCounts {
  uint64_t checks = 0;
  uint64_t allowed = 0;
  uint64_t denied = 0;
  uint64_t errors = 0;     // checks that answered an error; they count as allowed or denied too
  uint64_t no_match = 0;   // no rule applied
  uint64_t defaults = 0;   // answered by the default: not attached
  uint64_t emergency = 0;  // decided by a degraded rule
  uint64_t overflow = 0;   // decided by a rule's overflow bucket
  uint64_t behind_ns = 0;  // how much of the pace was given up because this machine was too slow
  HistogramCounts check_ns;
  std::map<std::string, RuleCount> rules;
  struct Track {
    uint64_t checks = 0;
    uint64_t allowed = 0;
    std::map<std::string, RuleCount> rules;
  };
  std::vector<Track> tracks;  // in the order of the options

  ReplayCounts Since(const ReplayCounts& earlier) const;
};

// Rule labels and the dense ids under which they are counted. Thread-safe.
class LabelTable {
 public:
  uint32_t IdOf(const std::string& label);
  std::vector<std::string> Labels() const;

 private:
  mutable std::mutex mutex_;
  absl::flat_hash_map<std::string, uint32_t> ids_;
  std::vector<std::string> labels_;
};

class ReplayRunner {
 public:
  // Starts the threads. `client` and `workload` must outlive the runner.
  ReplayRunner(sluice_t* client, const Workload& workload, const ReplayOptions& options);
  ~ReplayRunner();  // stops and joins
  ReplayRunner(const ReplayRunner&) = delete;
  ReplayRunner& operator=(const ReplayRunner&) = delete;

  void Stop() { stop_.store(true, std::memory_order_relaxed); }
  bool IsDone() const { return running_.load(std::memory_order_acquire) == 0; }
  // Sums since the start. Thread-safe.
  ReplayCounts Read() const;

 private:
  class Worker;

  const ReplayOptions options_;
  LabelTable labels_;
  std::atomic<bool> stop_{false};
  std::atomic<uint32_t> running_;
  std::vector<std::unique_ptr<Worker>> workers_;
  std::vector<std::thread> threads_;
};

}  // namespace sluice::ctl
