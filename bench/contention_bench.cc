// One key that two cores check at once: threads of one process, and two processes. Beside it the
// same check of a key that nobody else checks.
#include <benchmark/benchmark.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <functional>
#include <new>
#include <string>
#include <thread>
#include <vector>

#include "bench/paired.h"
#include "bench/pinned.h"
#include "bench/stage.h"

namespace sluice::bench {
namespace {

constexpr uint64_t kUnits = 16'384;
constexpr const char* kContended = "leased";

// What the other side is told, over processes too.
struct Orders {
  std::atomic<bool> run{false};
  std::atomic<bool> end{false};
  std::atomic<uint64_t> checks{0};  // that it made

  static Orders& Get() {
    void* const page =
        mmap(nullptr, sizeof(Orders), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    Require(page != MAP_FAILED, "no memory");
    return *new (page) Orders;
  }
};

// Makes `n` checks; returns how many were allowed.
using Checks = std::function<int(uint64_t n)>;

Checks ByHandle(const char* name) {
  return [handle = Stage::Get().Handle(name)](uint64_t n) {
    int allowed = 0;
    for (uint64_t i = 0; i < n; ++i) allowed += sluice_handle_check(handle, 1, nullptr);
    return allowed;
  };
}

// A request of three rules: this side's own user and address, and a tenant.
Checks ByList(const std::string& user, const std::string& tenant, const std::string& ip) {
  return [user, tenant, ip](uint64_t n) {
    const sluice_descriptor_t descriptors[] = {{"user", 4, user.data(), user.size()},
                                               {"tenant", 6, tenant.data(), tenant.size()},
                                               {"ip", 2, ip.data(), ip.size()}};
    int allowed = 0;
    for (uint64_t i = 0; i < n; ++i) {
      allowed += sluice_check(Stage::Get().client(), descriptors, 3, 1, nullptr);
    }
    return allowed;
  };
}

void Hammer(const Checks& checks, Orders& orders) {
  while (!orders.end) {
    if (!orders.run) {
      std::this_thread::yield();
      continue;
    }
    benchmark::DoNotOptimize(checks(256));
    orders.checks += 256;
  }
}

// Runs `state` on one CPU while the other side, on another, hammers the same key on demand. `quiet`
// is beside it: the same of a key that is nobody else's, so that it is never leased.
void RunContended(benchmark::State& state, Orders& orders, const Checks& contended,
                  const Checks& quiet) {
  const Pinned pinned(1);
  std::vector<double> together_ns;
  std::vector<double> alone_ns;
  const auto slice = [](const Checks& checks, std::vector<double>* slices) {
    const uint64_t begin_ns = ThreadCpuNs();
    benchmark::DoNotOptimize(checks(kUnits));
    const uint64_t took_ns = ThreadCpuNs() - begin_ns;
    slices->push_back(static_cast<double>(took_ns) / kUnits);
    return took_ns;
  };
  for ([[maybe_unused]] auto _ : state) {
    const uint64_t seen = orders.checks;
    orders.run = true;
    while (orders.checks == seen) std::this_thread::yield();
    state.SetIterationTime(static_cast<double>(slice(contended, &together_ns)) * 1e-9);
    orders.run = false;
    slice(quiet, &alone_ns);
  }
  state.counters["ns"] = Median(together_ns);
  state.counters["beside_ns"] = Median(alone_ns);
}

void TwoThreads(benchmark::State& state, const Checks& ours, const Checks& theirs,
                const Checks& quiet) {
  Orders& orders = Orders::Get();
  std::thread other([&] {
    PinTo(0);
    Hammer(theirs, orders);
  });
  RunContended(state, orders, ours, quiet);
  orders.end = true;
  other.join();
}

void TwoThreadsOneKey(benchmark::State& state) {
  TwoThreads(state, ByHandle(kContended), ByHandle(kContended), ByHandle("id"));
}

void TwoThreadsOneTenant(benchmark::State& state) {
  TwoThreads(state, ByList("ann", "shared", "203.0.113.1"), ByList("bob", "shared", "203.0.113.2"),
             ByList("ann", "nobody-else", "203.0.113.1"));
}

void TwoProcesses(benchmark::State& state) {
  Orders& orders = Orders::Get();
  Stage::Get();  // before the fork: both are clients of the same segments
  const pid_t parent = getpid();
  const pid_t child = fork();
  Require(child >= 0, "cannot fork");
  if (child == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(1);
    PinTo(0);
    Hammer(ByHandle(kContended), orders);
    _exit(0);
  }
  RunContended(state, orders, ByHandle(kContended), ByHandle("id"));
  orders.end = true;
  waitpid(child, nullptr, 0);
}

BENCHMARK(TwoThreadsOneKey)->Name("check_two_threads_one_key")->UseManualTime();
BENCHMARK(TwoThreadsOneTenant)->Name("check_two_threads_one_tenant")->UseManualTime();
BENCHMARK(TwoProcesses)->Name("check_two_processes_one_key")->UseManualTime();

}  // namespace
}  // namespace sluice::bench
