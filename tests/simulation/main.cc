// Runs seeds in as many processes as asked for; see scripts/simulate.
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cinttypes>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "daemon/log.h"
#include "tests/simulation/simulation.h"

namespace sluice::simulation {
namespace {

struct Options {
  uint64_t first = 1;
  uint64_t seeds = 1;
  int jobs = 1;
  bool trace = false;
  bool fail_fast = false;
};

// What a process adds up, in memory that outlives it.
struct Sum {
  uint64_t running = 0;  // the seed
  uint64_t runs = 0, failed = 0;
  uint64_t checks = 0, batches = 0, failovers = 0, forgotten = 0, killed_clients = 0, events = 0;
  uint64_t rule_changes = 0, bans_seen = 0, entered = 0, seats_judged = 0, strict_judged = 0;
  uint64_t classes_judged = 0, quotas_judged = 0, tried = 0;
  int64_t admitted = 0, given_back = 0, counted = 0, lost_by_kills = 0, lost_by_redis = 0;
  uint64_t settled_most_ns = 0, settled_ns = 0, hash = 0;
};

void Print(const Report& report) {
  printf("seed %" PRIu64 " (%zu faults):\n", report.seed, report.faults.size());
  for (const std::string& what : report.wrong) printf("  %s\n", what.c_str());
  printf("  replay: scripts/simulate --seed %" PRIu64 " --trace\n", report.seed);
  fflush(stdout);
}

void Add(Sum* all, const Sum& one) {
  all->runs += one.runs;
  all->failed += one.failed;
  all->checks += one.checks;
  all->batches += one.batches;
  all->failovers += one.failovers;
  all->forgotten += one.forgotten;
  all->killed_clients += one.killed_clients;
  all->events += one.events;
  all->rule_changes += one.rule_changes;
  all->bans_seen += one.bans_seen;
  all->entered += one.entered;
  all->seats_judged += one.seats_judged;
  all->strict_judged += one.strict_judged;
  all->classes_judged += one.classes_judged;
  all->quotas_judged += one.quotas_judged;
  all->tried += one.tried;
  all->admitted += one.admitted;
  all->given_back += one.given_back;
  all->counted += one.counted;
  all->lost_by_kills += one.lost_by_kills;
  all->lost_by_redis += one.lost_by_redis;
  all->settled_ns += one.settled_ns;
  all->settled_most_ns = std::max(all->settled_most_ns, one.settled_most_ns);
  all->hash ^= one.hash;
}

void RunOne(uint64_t seed, bool trace, Sum* sum) {
  sum->running = seed;
  const Report report = Run(seed, trace);
  if (trace) {
    printf("faults:");
    for (const std::string& name : report.faults) printf(" [%s]", name.c_str());
    printf("\n");
  }
  if (!report.wrong.empty()) Print(report);
  Add(sum, {.runs = 1,
            .failed = report.wrong.empty() ? 0u : 1u,
            .checks = report.checks,
            .batches = report.totals.batches,
            .failovers = report.failovers,
            .forgotten = report.totals.forgotten,
            .killed_clients = report.killed_clients,
            .events = report.events,
            .rule_changes = report.rule_changes,
            .bans_seen = report.bans_seen,
            .entered = report.entered,
            .seats_judged = report.seats_judged,
            .strict_judged = report.strict_judged,
            .classes_judged = report.classes_judged,
            .quotas_judged = report.quotas_judged,
            .tried = report.tried,
            .admitted = report.totals.admitted,
            .given_back = report.totals.given_back,
            .counted = report.totals.counted,
            .lost_by_kills = report.totals.lost_by_kills,
            .lost_by_redis = report.totals.lost_by_redis,
            .settled_most_ns = report.settled_ns,
            .settled_ns = report.settled_ns,
            .hash = report.hash});
}

int RunAll(const Options& options) {
  void* const memory = mmap(nullptr, sizeof(Sum) * static_cast<size_t>(options.jobs),
                            PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return 2;
  Sum* const sums = static_cast<Sum*>(memory);
  std::map<pid_t, int> children;
  for (int job = 0; job < options.jobs; ++job) {
    const pid_t child = options.jobs == 1 ? 0 : fork();
    if (child > 0) {
      children[child] = job;
      continue;
    }
    for (uint64_t i = static_cast<uint64_t>(job); i < options.seeds;
         i += static_cast<uint64_t>(options.jobs)) {
      RunOne(options.first + i, options.trace, &sums[job]);
      const auto has_failed = [](const Sum& sum) { return sum.failed != 0; };
      if (options.fail_fast && std::any_of(sums, sums + options.jobs, has_failed)) break;
    }
    if (options.jobs > 1) _exit(0);
  }
  Sum all;
  for (; !children.empty();) {
    int status = 0;
    const pid_t child = wait(&status);
    if (child < 0) return 2;
    const Sum& sum = sums[children[child]];
    if (status != 0) {
      printf("seed %" PRIu64 ": its process ended with %d\n", sum.running,
             WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
      printf("  replay: scripts/simulate --seed %" PRIu64 " --trace\n", sum.running);
      ++all.failed;
    }
    children.erase(child);
  }
  for (int job = 0; job < options.jobs; ++job) Add(&all, sums[job]);
  const double runs = static_cast<double>(std::max<uint64_t>(all.runs, 1));
  printf("%" PRIu64 " seeds, %" PRIu64 " failed; hash %016" PRIx64 "\n", all.runs, all.failed,
         all.hash);
  printf("%" PRIu64 " checks, %" PRIu64 " batches, %" PRIu64 " failovers, %" PRIu64
         " clients killed, %" PRIu64 " rule changes, %" PRIu64 " looks at bans, %" PRIu64
         " events\n",
         all.checks, all.batches, all.failovers, all.killed_clients, all.rule_changes,
         all.bans_seen, all.events);
  printf("%" PRIu64 " places entered, %" PRIu64
         " times one where the limit had to hold, and %" PRIu64 " strict tokens\n",
         all.entered, all.seats_judged, all.strict_judged);
  printf("%" PRIu64 " tokens of classes that may not use all, %" PRIu64 " of quotas, and %" PRIu64
         " requests that a candidate was asked about\n",
         all.classes_judged, all.quotas_judged, all.tried);
  printf("%" PRId64 " tokens admitted, %" PRId64 " given back, %" PRId64
         " counted, at most %" PRId64 " lost with killed daemons and %" PRId64 " in %" PRIu64
         " batches that Redis acknowledged and forgot\n",
         all.admitted, all.given_back, all.counted, all.lost_by_kills, all.lost_by_redis,
         all.forgotten);
  printf("well again after the last fault: %.1f s in the mean, %.1f s at most\n",
         static_cast<double>(all.settled_ns) / 1e9 / runs,
         static_cast<double>(all.settled_most_ns) / 1e9);
  return all.failed == 0 && all.runs == options.seeds ? 0 : 1;
}

int Main(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    const uint64_t value = i + 1 < argc ? strtoull(argv[i + 1], nullptr, 10) : 0;
    if (name == "--trace" || name == "--fail-fast") {
      (name == "--trace" ? options.trace : options.fail_fast) = true;
      continue;
    }
    if (value == 0) return 2;
    ++i;
    if (name == "--seed") {
      options.first = value;
    } else if (name == "--seeds") {
      options.seeds = value;
    } else if (name == "--jobs") {
      options.jobs = static_cast<int>(std::min<uint64_t>(value, 64));
    } else {
      return 2;
    }
  }
  if (options.trace) setvbuf(stdout, nullptr, _IOLBF, 0);
  // A daemon's own lines would be those of hundreds of outages.
  log::Configure(options.trace ? log::Level::kDebug : static_cast<log::Level>(0), false);
  return RunAll(options);
}

}  // namespace
}  // namespace sluice::simulation

int main(int argc, char** argv) { return sluice::simulation::Main(argc, argv); }
