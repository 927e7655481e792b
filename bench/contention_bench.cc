// One key that two cores check at once: threads of one process, and two processes. Beside it the
// same check of a key that nobody else checks.
#include <benchmark/benchmark.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <new>
#include <thread>

#include "bench/paired.h"
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

void PinTo(int nth) {
  cpu_set_t all;
  sched_getaffinity(getpid(), sizeof all, &all);
  cpu_set_t one;
  CPU_ZERO(&one);
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &all)) continue;
    if (nth-- == 0) CPU_SET(cpu, &one);
  }
  Require(sched_setaffinity(0, sizeof one, &one) == 0, "needs two CPUs");
}

void Hammer(sluice_handle_t* handle, Orders& orders) {
  while (!orders.end) {
    if (!orders.run) {
      std::this_thread::yield();
      continue;
    }
    int allowed = 0;
    for (int i = 0; i < 256; ++i) allowed += sluice_handle_check(handle, 1, nullptr);
    benchmark::DoNotOptimize(allowed);
    orders.checks += 256;
  }
}

// Runs `state` on one CPU while the other side, on another, hammers the same key on demand.
void RunContended(benchmark::State& state, Orders& orders) {
  cpu_set_t before;
  sched_getaffinity(0, sizeof before, &before);
  PinTo(1);
  sluice_handle_t* const contended = Stage::Get().Handle(kContended);
  sluice_handle_t* const quiet = Stage::Get().Handle("id");  // nobody else's, so it is never leased
  std::vector<double> together_ns;
  std::vector<double> alone_ns;
  const auto slice = [](sluice_handle_t* handle, std::vector<double>* slices) {
    const uint64_t begin_ns = ThreadCpuNs();
    int allowed = 0;
    for (uint64_t i = 0; i < kUnits; ++i) allowed += sluice_handle_check(handle, 1, nullptr);
    benchmark::DoNotOptimize(allowed);
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
  sched_setaffinity(0, sizeof before, &before);
  state.counters["ns"] = Median(together_ns);
  state.counters["beside_ns"] = Median(alone_ns);
}

void TwoThreads(benchmark::State& state) {
  Orders& orders = Orders::Get();
  std::thread other([&] {
    PinTo(0);
    Hammer(Stage::Get().Handle(kContended), orders);
  });
  RunContended(state, orders);
  orders.end = true;
  other.join();
}

void TwoProcesses(benchmark::State& state) {
  Orders& orders = Orders::Get();
  Stage& stage = Stage::Get();
  const pid_t parent = getpid();
  const pid_t child = fork();
  Require(child >= 0, "cannot fork");
  if (child == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(1);
    PinTo(0);
    Hammer(stage.Handle(kContended), orders);
    _exit(0);
  }
  RunContended(state, orders);
  orders.end = true;
  waitpid(child, nullptr, 0);
}

BENCHMARK(TwoThreads)->Name("check_two_threads_one_key")->UseManualTime();
BENCHMARK(TwoProcesses)->Name("check_two_processes_one_key")->UseManualTime();

}  // namespace
}  // namespace sluice::bench
