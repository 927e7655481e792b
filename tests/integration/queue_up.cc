// A client that waits for its turn, for tests of several processes: COUNT acquires of one list of
// descriptors, one after the other, each for at most MAX_WAIT_MS. Where GO is in the environment,
// each begins when a line is read from standard input. One in CANCEL_ONE_IN (of the environment) is
// cancelled after some milliseconds by a timer that can be read. Prints one JSON line for each:
//   {"result": n, "asked_ns": monotonic, "now_ns": monotonic, "turn_ns": monotonic,
//    "woken_ns": monotonic, "left_ns": monotonic}
// Where HOLD_MS is in the environment it enters in place of it, and leaves so many milliseconds
// later: left_ns is just before it does. SIGTERM and SIGINT end the acquire under way, and with it
// the program.
//
//   queue_up RUNTIME_DIR MAX_WAIT_MS COUNT NAME=VALUE...
#include <signal.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <random>
#include <vector>

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

const char* const hold_ms = getenv("HOLD_MS");

// One request, from the question to when the place is left.
void Ask(sluice::Client& client, const std::vector<sluice::Descriptor>& descriptors,
         std::chrono::milliseconds max_wait, int cancel_fd) {
  const uint64_t asked_ns = NowNs();
  std::optional<sluice::Place> place;
  sluice::Decision d;
  int error = 0;
  if (hold_ms == nullptr) {
    d = client.acquire(descriptors, max_wait, 1, cancel_fd);
    error = d.error();
  } else {
    place.emplace(client.enter(descriptors, max_wait, 1, cancel_fd));
    d = place->decision();
    error = place->error();
  }
  const uint64_t woken_ns = NowNs();
  if (d && place) usleep(static_cast<useconds_t>(1000 * strtoul(hold_ms, nullptr, 10)));
  const uint64_t left_ns = NowNs();
  place.reset();
  printf(
      "{\"result\": %d, \"asked_ns\": %lu, \"now_ns\": %lu, \"turn_ns\": %lu, "
      "\"woken_ns\": %lu, \"left_ns\": %lu}\n",
      error != 0 ? error : static_cast<int>(d.allowed()), asked_ns, d.raw().now_ns,
      d.raw().now_ns + d.raw().delay_ns, woken_ns, left_ns);
  fflush(stdout);
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
    Ask(client, *descriptors, max_wait, timer);
  }
  return 0;
}
