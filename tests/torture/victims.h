// The children of a torture program: forked, killed and stopped at instants of chance, and
// replaced.
#pragma once

#include <sched.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <random>
#include <utility>
#include <vector>

namespace sluice::torture {

using Cell = std::atomic<uint64_t>;
static_assert(Cell::is_always_lock_free);

enum Stage : uint64_t { kForked, kAttaching, kChecking };

// What others see of the work: in memory that outlives each child.
struct Counts {
  Cell* kills;
  Cell* kills_in_attach;
  Cell* stops;
  Cell* stages;  // of each child; kChecking: it has begun to check
};

// CLOCK_MONOTONIC.
inline uint64_t NowNs() {
  return static_cast<uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count());
}

inline void SleepNs(uint64_t ns) {
  const timespec ts = {static_cast<time_t>(ns / 1'000'000'000),
                       static_cast<long>(ns % 1'000'000'000)};
  nanosleep(&ts, nullptr);
}

// One thread only. The children end with it.
class Victims {
 public:
  struct Options {
    int count;
    uint64_t most_between_kills_ns;
    // What a child does for good; it makes a client of its own where `attaches`, and goes on with
    // its parent's where not.
    std::function<void(int child, bool attaches, uint64_t seed)> run;
    // Told once a killed child is gone, before the next one begins. Null: nobody waits for that.
    std::function<void(int child)> on_gone;
  };

  Victims(Options options, Counts counts, uint64_t seed)
      : options_(std::move(options)),
        counts_(counts),
        random_(seed),
        pids_(static_cast<size_t>(options_.count)) {
    for (int i = 0; i < options_.count; ++i) Start(i);
  }

  // Kills one after a while, or stops it.
  void Kill() {
    SleepNs(random_() % options_.most_between_kills_ns);
    EndStop(NowNs());
    const int victim = Victim();
    if (stopped_ < 0 && random_() % kStopOneOf == 0) {
      kill(pids_[victim], SIGSTOP);
      stopped_ = victim;
      const bool is_long = random_() % (kLongStopOneOf / kStopOneOf) == 0;
      stopped_until_ns_ = NowNs() + (is_long ? kLongStopNs : kStopNs);
      ++*counts_.stops;
      return;
    }
    Replace(victim);
  }

  // Kills all, and starts none anew.
  void End() {
    for (int i = 0; i < options_.count; ++i) {
      kill(pids_[i], SIGKILL);
      waitpid(pids_[i], nullptr, 0);
      if (options_.on_gone) options_.on_gone(i);
    }
  }

 private:
  // One of eight attaches anew; the others go on with the client that they were forked with.
  static constexpr uint64_t kAttachOneOf = 8;
  // Now and then a client is stopped in mid-check for longer than the grace, and then goes on, or
  // is killed where it stands; a few are stopped for seconds. The others are killed meanwhile.
  static constexpr uint64_t kStopOneOf = 64;
  static constexpr uint64_t kLongStopOneOf = 2048;
  static constexpr uint64_t kStopNs = 50'000'000;
  static constexpr uint64_t kLongStopNs = 2'000'000'000;
  // So many may be on their way out at once: the dead wait for a CPU as the living do.
  static constexpr int kMostDying = 64;
  static constexpr int kTriesEach = 100;

  // Half of those that were stopped go on, and half die where they stand.
  void EndStop(uint64_t now_ns) {
    if (stopped_ < 0 || now_ns < stopped_until_ns_) return;
    if (random_() % 2 == 0) {
      kill(pids_[stopped_], SIGCONT);
    } else {
      Replace(stopped_);
    }
    stopped_ = -1;
  }

  // One of eight is anybody, the others have begun to check: none gets there anew while the daemon
  // is away.
  int Victim() {
    const int count = options_.count;
    const bool any = random_() % 8 == 0;
    int victim = static_cast<int>(random_() % static_cast<uint64_t>(count));
    for (int tries = 0; tries < kTriesEach * count; ++tries) {
      if (victim != stopped_ && (any || counts_.stages[victim] == kChecking)) return victim;
      victim = (victim + 1) % count;
      if (tries % count == count - 1) SleepNs(200'000);
    }
    return victim == stopped_ ? (victim + 1) % count : victim;
  }

  void Replace(int victim) {
    kill(pids_[victim], SIGKILL);
    if (counts_.stages[victim] == kAttaching) ++*counts_.kills_in_attach;
    ++*counts_.kills;
    if (options_.on_gone) {
      waitpid(pids_[victim], nullptr, 0);
      options_.on_gone(victim);
    } else {
      ++dying_;
      Reap();
    }
    Start(victim);
  }

  // Waits only where too many are dying.
  void Reap() {
    while (dying_ > 0 && waitpid(-1, nullptr, dying_ < kMostDying ? WNOHANG : 0) > 0) --dying_;
  }

  void Start(int i) {
    const uint64_t seed = random_();
    const bool attaches = random_() % kAttachOneOf == 0;
    counts_.stages[i] = kForked;
    const pid_t parent = getpid();
    pids_[i] = fork();
    if (pids_[i] < 0) {
      std::perror("fork");
      std::exit(1);
    }
    if (pids_[i] != 0) return;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(1);
    if (attaches) counts_.stages[i] = kAttaching;
    options_.run(i, attaches, seed);
    _exit(1);
  }

  const Options options_;
  const Counts counts_;
  std::mt19937_64 random_;
  std::vector<pid_t> pids_;
  int stopped_ = -1;  // which of them is stopped, if any
  uint64_t stopped_until_ns_ = 0;
  int dying_ = 0;
};

}  // namespace sluice::torture
