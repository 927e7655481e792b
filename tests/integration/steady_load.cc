// A client with a steady demand, for tests of several hosts: RATE checks a second of one list of
// descriptors, spread evenly, for SECONDS or until SIGTERM. Prints one JSON line for each tenth of
// a second (or REPORT_MS of the environment), with the times of its slowest checks:
//   {"t_ns": monotonic, "checks": n, "allowed": n, "denied": n, "emergency": n, "max_ns": n,
//    "slowest_ns": [n, ...]}
// and at the end one with "p50_ns" and "p99_ns" of the time that checks took. Where WAIT_MS is in
// the environment, a check may wait for so long (check_wait).
//
//   steady_load RUNTIME_DIR RATE SECONDS NAME=VALUE...
#include <signal.h>
#include <time.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "client/include/sluice.hpp"
#include "tests/integration/descriptors.h"

namespace {

constexpr uint64_t kSecond = 1'000'000'000;
constexpr size_t kMaxSamples = 4'000'000;

uint64_t Now() {
  timespec ts;
  clock_gettime(CLOCK_MONOTONIC, &ts);
  return static_cast<uint64_t>(ts.tv_sec) * kSecond + static_cast<uint64_t>(ts.tv_nsec);
}

struct Interval {
  uint64_t checks = 0;
  uint64_t allowed = 0;
  uint64_t denied = 0;
  uint64_t emergency = 0;
  uint64_t max_ns = 0;
  std::array<uint64_t, 8> slowest_ns = {};  // falling

  void Add(uint64_t took_ns) {
    max_ns = std::max(max_ns, took_ns);
    if (took_ns <= slowest_ns.back()) return;
    slowest_ns.back() = took_ns;
    std::sort(slowest_ns.rbegin(), slowest_ns.rend());
  }
};

volatile sig_atomic_t ended = 0;

uint64_t MsOf(const char* name, uint64_t fallback_ns) {
  const char* const ms = getenv(name);
  return ms == nullptr ? fallback_ns : strtoull(ms, nullptr, 10) * 1'000'000;
}

void Print(uint64_t now, const Interval& interval) {
  printf(
      "{\"t_ns\": %lu, \"checks\": %lu, \"allowed\": %lu, \"denied\": %lu, "
      "\"emergency\": %lu, \"max_ns\": %lu, \"slowest_ns\": [",
      now, interval.checks, interval.allowed, interval.denied, interval.emergency, interval.max_ns);
  for (size_t i = 0; i < interval.slowest_ns.size(); ++i) {
    printf(i == 0 ? "%lu" : ", %lu", interval.slowest_ns[i]);
  }
  printf("]}\n");
  fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 5) return 2;
  const double rate = strtod(argv[2], nullptr);
  const double seconds = strtod(argv[3], nullptr);
  const auto descriptors = sluice::test::ReadDescriptors(argc, argv, 4);
  if (!descriptors) return 2;
  sluice::Client client({.runtime_dir = argv[1], .label = "steady-load"});
  if (!client.wait(std::chrono::seconds(20))) {
    fprintf(stderr, "%s\n", client.info().message);
    return 1;
  }
  signal(SIGTERM, [](int) { ended = 1; });
  const uint64_t start = Now();
  const uint64_t end = start + static_cast<uint64_t>(seconds * 1e9);
  const uint64_t report_ns = MsOf("REPORT_MS", kSecond / 10);
  const std::chrono::nanoseconds wait{MsOf("WAIT_MS", 0)};
  uint64_t report = start + report_ns;
  uint64_t sent = 0;
  Interval interval;
  std::vector<uint32_t> samples;
  samples.reserve(1 << 20);
  for (uint64_t now = start; now < end && ended == 0; now = Now()) {
    const uint64_t due = static_cast<uint64_t>(static_cast<double>(now - start) / 1e9 * rate);
    for (; sent < due; ++sent) {
      const uint64_t before = Now();
      const sluice::Decision d =
          wait.count() == 0 ? client.check(*descriptors) : client.check_wait(*descriptors, wait);
      const uint64_t took = Now() - before;
      if (samples.size() < kMaxSamples) {
        samples.push_back(static_cast<uint32_t>(std::min<uint64_t>(took, UINT32_MAX)));
      }
      ++interval.checks;
      ++(d ? interval.allowed : interval.denied);
      interval.emergency += d.is_emergency() ? 1 : 0;
      interval.Add(took);
    }
    if (now >= report) {
      Print(now, interval);
      interval = {};
      report += report_ns;
    }
    const timespec pause = {0, 200'000};
    nanosleep(&pause, nullptr);
  }
  Print(Now(), interval);
  if (samples.empty()) return 0;
  std::sort(samples.begin(), samples.end());
  printf("{\"p50_ns\": %u, \"p99_ns\": %u}\n", samples[samples.size() / 2],
         samples[samples.size() * 99 / 100]);
  return 0;
}
