#include "ctl/replay_runner.h"

#include <time.h>

#include <algorithm>

namespace sluice::ctl {
namespace {

// One check in so many is timed, on the average: reading the clock twice costs more than a check.
// The distance varies, else it could fall in step with the pace and time only the first check
// after each sleep.
constexpr uint64_t kSampleEvery = 16;
// A paced thread wakes at multiples of this and sends what is due: waking for each request would
// measure the scheduler and the cold caches after a sleep, not the checks.
constexpr uint64_t kTickNs = 5'000'000;
// The longest sleep: how soon Stop() is heard.
constexpr uint64_t kMaxSleepNs = 50'000'000;
// Further behind than this, a thread gives the lost time up instead of catching up in a burst.
constexpr uint64_t kMaxBehindNs = 1'000'000'000;
constexpr int kOverheadProbes = 1000;
constexpr uint16_t kNoId = 0xffff;

uint64_t NowNs() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<uint64_t>(t.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(t.tv_nsec);
}

void SleepUntil(uint64_t at_ns) {
  const timespec t = {static_cast<time_t>(at_ns / 1'000'000'000),
                      static_cast<long>(at_ns % 1'000'000'000)};
  clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, nullptr);
}

// What two clock reads in a row cost: the least seen, since anything more was an interruption.
uint64_t ClockOverheadNs() {
  uint64_t least = ~0ull;
  for (int i = 0; i < kOverheadProbes; ++i) {
    const uint64_t t0 = NowNs();
    least = std::min(least, NowNs() - t0);
  }
  return least;
}

// Counters with one writer: no locked instruction.
using Cell = std::atomic<uint64_t>;
void Add(Cell& cell, uint64_t n) {
  cell.store(cell.load(std::memory_order_relaxed) + n, std::memory_order_relaxed);
}
uint64_t Get(const Cell& cell) { return cell.load(std::memory_order_relaxed); }

struct RuleCells {
  Cell asked{0};
  Cell allowed{0};
  Cell denied{0};
  Cell tokens{0};
};
struct TrackCells {
  Cell checks{0};
  Cell allowed{0};
  std::vector<RuleCells> rules = std::vector<RuleCells>(kMaxLabels);
};

void AddRules(const std::vector<RuleCells>& cells, const std::vector<std::string>& labels,
              std::map<std::string, RuleCount>* out) {
  for (size_t i = 0; i < labels.size(); ++i) {
    const RuleCount count = {Get(cells[i].asked), Get(cells[i].allowed), Get(cells[i].denied),
                             Get(cells[i].tokens)};
    if (count.asked == 0) continue;
    RuleCount& sum = (*out)[labels[i]];
    sum.asked += count.asked;
    sum.allowed += count.allowed;
    sum.denied += count.denied;
    sum.tokens += count.tokens;
  }
}

std::map<std::string, RuleCount> RulesSince(const std::map<std::string, RuleCount>& now,
                                            const std::map<std::string, RuleCount>& earlier) {
  std::map<std::string, RuleCount> difference;
  for (const auto& [label, count] : now) {
    RuleCount& d = difference[label] = count;
    const auto found = earlier.find(label);
    if (found == earlier.end()) continue;
    d.asked -= found->second.asked;
    d.allowed -= found->second.allowed;
    d.denied -= found->second.denied;
    d.tokens -= found->second.tokens;
  }
  return difference;
}

}  // namespace

uint32_t LabelTable::IdOf(const std::string& label) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = ids_.find(label);
  if (found != ids_.end()) return found->second;
  const bool is_full = labels_.size() == kMaxLabels - 1;
  const std::string& name = is_full || labels_.size() == kMaxLabels ? "(others)" : label;
  if (labels_.size() < kMaxLabels) labels_.push_back(name);
  const uint32_t id = static_cast<uint32_t>(labels_.size() - 1);
  ids_.emplace(label, id);
  return id;
}

std::vector<std::string> LabelTable::Labels() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return labels_;
}

class ReplayRunner::Worker {
 public:
  Worker(sluice_t* client, std::unique_ptr<Stream> stream, const ReplayOptions& options,
         LabelTable* labels)
      : client_(client),
        stream_(std::move(stream)),
        options_(options),
        labels_(labels),
        rules_(kMaxLabels),
        tracks_(options.tracks.size()) {}

  void Run(const std::atomic<bool>& stop) {
    const uint64_t overhead_ns = ClockOverheadNs();
    start_ns_ = NowNs();
    now_ns_ = start_ns_;
    Request request;
    uint64_t until_sample = 0;
    while (!stop.load(std::memory_order_relaxed) && stream_->Next(&request)) {
      if (options_.speed > 0 && !Pace(request.due_ns, stop)) break;
      const bool is_sample = until_sample-- == 0;
      const uint64_t t0 = is_sample ? NowNs() : 0;
      const int result =
          sluice_check(client_, request.descriptors, request.count, options_.cost, &decision_);
      if (is_sample) {
        const uint64_t took_ns = NowNs() - t0;
        check_ns_.Add(took_ns > overhead_ns ? took_ns - overhead_ns : 0);
        random_ = random_ * 6364136223846793005 + 1442695040888963407;
        until_sample = (random_ >> 33) % (2 * kSampleEvery - 1);
      }
      Count(result, request);
    }
  }

  void AddTo(const std::vector<std::string>& labels, ReplayCounts* sum) const {
    sum->checks += Get(allowed_) + Get(denied_);
    sum->allowed += Get(allowed_);
    sum->denied += Get(denied_);
    sum->errors += Get(errors_);
    sum->no_match += Get(sources_[SLUICE_SOURCE_NO_MATCH]);
    sum->defaults += Get(sources_[SLUICE_SOURCE_DEFAULT]);
    sum->emergency += Get(sources_[SLUICE_SOURCE_EMERGENCY]);
    sum->overflow += Get(sources_[SLUICE_SOURCE_OVERFLOW]);
    sum->behind_ns += Get(behind_ns_);
    sum->check_ns.Add(check_ns_);
    AddRules(rules_, labels, &sum->rules);
    for (size_t i = 0; i < tracks_.size(); ++i) {
      sum->tracks[i].checks += Get(tracks_[i].checks);
      sum->tracks[i].allowed += Get(tracks_[i].allowed);
      AddRules(tracks_[i].rules, labels, &sum->tracks[i].rules);
    }
  }

 private:
  static constexpr size_t kSources = 8;

  // Waits until a request is due; false when stopped meanwhile.
  bool Pace(uint64_t due_ns, const std::atomic<bool>& stop) {
    const uint64_t at_ns =
        start_ns_ + static_cast<uint64_t>(static_cast<double>(due_ns) / options_.speed);
    if (at_ns <= now_ns_) return true;
    now_ns_ = NowNs();
    if (now_ns_ > at_ns + kMaxBehindNs) {
      const uint64_t behind_ns = now_ns_ - at_ns;
      start_ns_ += behind_ns;
      Add(behind_ns_, behind_ns);
      return true;
    }
    const uint64_t wake_ns = (at_ns + kTickNs - 1) / kTickNs * kTickNs;
    while (now_ns_ < at_ns) {
      if (stop.load(std::memory_order_relaxed)) return false;
      SleepUntil(std::min(wake_ns, now_ns_ + kMaxSleepNs));
      now_ns_ = NowNs();
    }
    return true;
  }

  void Count(int result, const Request& request) {
    const sluice_decision_t& d = decision_;
    const bool is_allowed = d.allowed != 0;
    Add(is_allowed ? allowed_ : denied_, 1);
    if (result < 0) Add(errors_, 1);
    Add(sources_[std::min<size_t>(d.source, kSources - 1)], 1);
    if (d.policy != policy_) {
      policy_ = d.policy;
      ids_.clear();
    }
    CountRules(is_allowed, rules_);
    for (size_t i = 0; i < tracks_.size(); ++i) {
      if (!Matches(options_.tracks[i], request)) continue;
      Add(tracks_[i].checks, 1);
      if (is_allowed) Add(tracks_[i].allowed, 1);
      CountRules(is_allowed, tracks_[i].rules);
    }
  }

  void CountRules(bool is_allowed, std::vector<RuleCells>& cells) {
    if (!is_allowed && decision_.rule != 0xffff) Add(cells[IdOf(decision_.rule)].denied, 1);
    const size_t n = std::min<size_t>(decision_.spend_count, SLUICE_MAX_RULES_PER_REQUEST);
    for (size_t i = 0; i < n; ++i) {
      RuleCells& rule = cells[IdOf(decision_.spends[i].rule)];
      Add(rule.asked, 1);
      if (!is_allowed) continue;
      Add(rule.allowed, 1);
      Add(rule.tokens, decision_.spends[i].tokens);
    }
  }

  // Rule indices are valid within one policy only; labels are for good.
  uint32_t IdOf(uint16_t rule) {
    if (rule >= ids_.size()) ids_.resize(size_t{rule} + 1, kNoId);
    if (ids_[rule] == kNoId) {
      sluice_decision_t asked = decision_;
      asked.rule = rule;
      char label[256];
      const int bytes = sluice_decision_rule(client_, &asked, label, sizeof(label));
      // The rules changed between the check and this call: the next check starts afresh.
      if (bytes <= 0) return labels_->IdOf("(changed)");
      ids_[rule] = static_cast<uint16_t>(labels_->IdOf(label));
    }
    return ids_[rule];
  }

  static bool Matches(const std::pair<std::string, std::string>& track, const Request& request) {
    for (size_t i = 0; i < request.count; ++i) {
      const sluice_descriptor_t& d = request.descriptors[i];
      if (d.value_len == track.second.size() && d.name_len == track.first.size() &&
          track.second.compare(0, d.value_len, d.value, d.value_len) == 0 &&
          track.first.compare(0, d.name_len, d.name, d.name_len) == 0) {
        return true;
      }
    }
    return false;
  }

  sluice_t* const client_;
  const std::unique_ptr<Stream> stream_;
  const ReplayOptions& options_;
  LabelTable* const labels_;
  uint64_t start_ns_ = 0;
  uint64_t now_ns_ = 0;
  uint64_t policy_ = 0;
  uint64_t random_ = 1;
  std::vector<uint16_t> ids_;  // rule index of the current policy -> label id
  sluice_decision_t decision_{};

  Cell allowed_{0};
  Cell denied_{0};
  Cell errors_{0};
  Cell behind_ns_{0};
  Cell sources_[kSources] = {};
  Histogram check_ns_;
  std::vector<RuleCells> rules_;
  std::vector<TrackCells> tracks_;
};

ReplayCounts ReplayCounts::Since(const ReplayCounts& earlier) const {
  ReplayCounts d = *this;
  d.checks -= earlier.checks;
  d.allowed -= earlier.allowed;
  d.denied -= earlier.denied;
  d.errors -= earlier.errors;
  d.no_match -= earlier.no_match;
  d.defaults -= earlier.defaults;
  d.emergency -= earlier.emergency;
  d.overflow -= earlier.overflow;
  d.behind_ns -= earlier.behind_ns;
  d.check_ns = check_ns.Since(earlier.check_ns);
  d.rules = RulesSince(rules, earlier.rules);
  for (size_t i = 0; i < d.tracks.size() && i < earlier.tracks.size(); ++i) {
    d.tracks[i].checks -= earlier.tracks[i].checks;
    d.tracks[i].allowed -= earlier.tracks[i].allowed;
    d.tracks[i].rules = RulesSince(tracks[i].rules, earlier.tracks[i].rules);
  }
  return d;
}

ReplayRunner::ReplayRunner(sluice_t* client, const Workload& workload, const ReplayOptions& options)
    : options_(options), running_(options.threads) {
  for (uint32_t i = 0; i < options_.threads; ++i) {
    workers_.push_back(std::make_unique<Worker>(client, workload.NewStream(i, options_.threads),
                                                options_, &labels_));
  }
  for (const auto& worker : workers_) {
    threads_.emplace_back([this, w = worker.get()] {
      w->Run(stop_);
      running_.fetch_sub(1, std::memory_order_release);
    });
  }
}

ReplayRunner::~ReplayRunner() {
  Stop();
  for (std::thread& thread : threads_) thread.join();
}

ReplayCounts ReplayRunner::Read() const {
  ReplayCounts sum;
  sum.tracks.resize(options_.tracks.size());
  const std::vector<std::string> labels = labels_.Labels();
  for (const auto& worker : workers_) worker->AddTo(labels, &sum);
  return sum;
}

}  // namespace sluice::ctl
