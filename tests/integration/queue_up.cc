// A client that waits for its turn, for tests of several processes: COUNT acquires of one list of
// descriptors, one after the other, each for at most MAX_WAIT_MS. Where GO is in the environment,
// each begins when a line is read from standard input. One in CANCEL_ONE_IN (of the environment) is
// cancelled after some milliseconds by a timer that can be read. Prints one JSON line for each:
//   {"result": n, "now_ns": monotonic, "turn_ns": monotonic, "woken_ns": monotonic}
// SIGTERM and SIGINT end the acquire under way, and with it the program.
//
//   queue_up RUNTIME_DIR MAX_WAIT_MS COUNT NAME=VALUE...
#include <signal.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>

#include "client/include/sluice.hpp"
#include "tests/integration/descriptors.h"

namespace {

volatile sig_atomic_t ended = 0;

// A signal handler that lets a sleep end: without SA_RESTART.
void HandleSignals() {
  struct sigaction action = {};
  action.sa_handler = [](int) { ended = 1; };
  sigaction(SIGTERM, &action, nullptr);
  sigaction(SIGINT, &action, nullptr);
}

uint64_t NowNs() {
  return static_cast<uint64_t>(
      std::chrono::nanoseconds(std::chrono::steady_clock::now().time_since_epoch()).count());
}

bool ReadLine() {
  char byte = 0;
  while (ended == 0 && read(STDIN_FILENO, &byte, 1) == 1) {
    if (byte == '\n') return true;
  }
  return false;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 5) return 2;
  const std::chrono::milliseconds max_wait{strtol(argv[2], nullptr, 10)};
  const long count = strtol(argv[3], nullptr, 10);
  const auto descriptors = sluice::test::ReadDescriptors(argc, argv, 4);
  if (!descriptors) return 2;
  sluice::Client client({.runtime_dir = argv[1], .label = "queue-up"});
  if (!client.wait(std::chrono::seconds(20))) {
    fprintf(stderr, "%s\n", client.info().message);
    return 1;
  }
  HandleSignals();
  const bool waits_for_go = getenv("GO") != nullptr;
  const char* const one_in = getenv("CANCEL_ONE_IN");
  const unsigned long cancel_one_in = one_in == nullptr ? 0 : strtoul(one_in, nullptr, 10);
  const int timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
  std::mt19937 random(static_cast<unsigned>(getpid()));
  printf("{\"ready\": true}\n");
  fflush(stdout);
  for (long i = 0; i < count && ended == 0; ++i) {
    if (waits_for_go && !ReadLine()) break;
    const bool cancels = cancel_one_in != 0 && random() % cancel_one_in == 0;
    const itimerspec off = {};
    const itimerspec soon = {.it_interval = {},
                             .it_value = {0, 1'000 + static_cast<long>(random() % 100'000'000)}};
    timerfd_settime(timer, 0, cancels ? &soon : &off, nullptr);
    const sluice::Decision d = client.acquire(*descriptors, max_wait, 1, timer);
    const int result = d.error() != 0 ? d.error() : static_cast<int>(d.allowed());
    printf("{\"result\": %d, \"now_ns\": %lu, \"turn_ns\": %lu, \"woken_ns\": %lu}\n", result,
           d.raw().now_ns, d.raw().now_ns + d.raw().delay_ns, NowNs());
    fflush(stdout);
  }
  return 0;
}
