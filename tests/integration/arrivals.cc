// The same arrivals against several rules at once: what each lets go on, and when. Requests come
// evenly, at one rate after the other; each is checked against a bucket of every rule. Prints a
// JSON line for each rule, with how many went on in each tenth of a second from the first arrival
// on (a leaky bucket's when their turn had come), and one for the arrivals themselves:
//   {"rule": "...", "tenths": [n, ...]}
//
//   arrivals RUNTIME_DIR RATE:SECONDS[,RATE:SECONDS...] RULE...
//
// A rule's key must be one descriptor. Rates are per second; the sum of the seconds is at most 600.
#include <time.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <string>
#include <vector>

#include "client/include/sluice.hpp"

namespace {

constexpr uint64_t kSecond = 1'000'000'000;
constexpr uint64_t kTenth = kSecond / 10;
constexpr double kMaxSeconds = 600;

struct Phase {
  double rate;
  double seconds;
};

std::vector<Phase> ParsePhases(const char* text) {
  std::vector<Phase> phases;
  for (char* at = const_cast<char*>(text); *at != '\0';) {
    Phase phase;
    phase.rate = strtod(at, &at);
    if (*at++ != ':') return {};
    phase.seconds = strtod(at, &at);
    if (*at == ',') ++at;
    phases.push_back(phase);
  }
  return phases;
}

void SleepUntil(uint64_t at_ns) {
  const timespec at = {static_cast<time_t>(at_ns / kSecond), static_cast<long>(at_ns % kSecond)};
  while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, nullptr) != 0) {
  }
}

void Print(const char* name, const std::vector<uint64_t>& tenths) {
  printf("{\"rule\": \"%s\", \"tenths\": [", name);
  for (size_t i = 0; i < tenths.size(); ++i) printf(i == 0 ? "%lu" : ", %lu", tenths[i]);
  printf("]}\n");
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4) return 2;
  const std::vector<Phase> phases = ParsePhases(argv[2]);
  double seconds = 0;
  for (const Phase& phase : phases) seconds += phase.seconds;
  if (phases.empty() || seconds > kMaxSeconds) return 2;
  sluice::Client client({.runtime_dir = argv[1], .label = "arrivals"});
  if (!client.wait(std::chrono::seconds(20))) return 1;
  std::vector<sluice::Rule> rules;
  for (int i = 3; i < argc; ++i) {
    auto rule = client.bind_rule(argv[i]);
    if (!rule) return 1;
    rules.push_back(std::move(*rule));
  }
  const auto tenth_count = static_cast<size_t>(seconds * 10) + 1;
  std::vector<std::vector<uint64_t>> went_on(rules.size(), std::vector<uint64_t>(tenth_count));
  std::vector<uint64_t> arrived(tenth_count);
  uint64_t start = 0;
  double at_s = 0;
  for (const Phase& phase : phases) {
    for (double in_s = 0; in_s < phase.seconds; in_s += 1 / phase.rate) {
      const auto due = static_cast<uint64_t>((at_s + in_s) * 1e9);
      if (start != 0) SleepUntil(start + due);
      for (size_t i = 0; i < rules.size(); ++i) {
        const sluice::Decision d = rules[i].check("all");
        if (start == 0) start = d.raw().now_ns;
        const uint64_t turn = (d.raw().now_ns - start + d.raw().delay_ns) / kTenth;
        if (d && turn < tenth_count) ++went_on[i][turn];
      }
      if (due / kTenth < tenth_count) ++arrived[due / kTenth];
    }
    at_s += phase.seconds;
  }
  Print("arrivals", arrived);
  for (size_t i = 0; i < rules.size(); ++i) Print(argv[3 + i], went_on[i]);
  return 0;
}
