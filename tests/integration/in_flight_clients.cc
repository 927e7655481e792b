// Clients that enter, some of them waiting for a place, and leave until they are killed, at any
// instruction, KILLS times in all, eight at once; each place is checked to be nobody else's who
// lives. Then all are killed, and a client of its own waits until every place of the limit is free.
// Prints one JSON line:
//   {"kills": n, "entered": n, "violations": n, "most_held": n, "held_after": n, "back_ms": n}
// "violations": places that two held, or beyond the limit. LIMIT is that of the rule that the
// descriptors match.
//
// With several directories, of hosts that share the limit, all processes are stopped at once from
// time to time, and "most_held" is what they hold together then; nobody waits for all to be free.
//
//   in_flight_clients RUNTIME_DIR[,RUNTIME_DIR...] LIMIT KILLS SEED NAME=VALUE...
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "client/include/sluice.hpp"
#include "tests/integration/descriptors.h"
#include "tests/support/is_running.h"

namespace {

constexpr int kWorkers = 8;
constexpr uint32_t kMostPlaces = 4096;
constexpr size_t kMostHeld = 20;  // by one worker
constexpr double kWaitS = 30;

constexpr uint32_t kMostHosts = 4;

struct Board {
  std::atomic<int32_t> owners[kMostHosts][kMostPlaces];
  std::atomic<uint32_t> holds[kWorkers];  // no more than it truly does
  std::atomic<uint64_t> entered;
  std::atomic<uint64_t> violations;
};

double NowMs() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<double>(t.tv_sec) * 1e3 + static_cast<double>(t.tv_nsec) * 1e-6;
}

struct Request {
  std::vector<std::string> runtime_dirs;
  uint32_t limit;
  std::vector<sluice::Descriptor> descriptors;
};

// Where a place stands in its row, as its spend says.
uint32_t PlaceOf(const sluice::Place& place) { return place.raw().decision.spends[0].floor_q16; }

[[noreturn]] void Work(const Request& request, Board* board, int worker, unsigned seed) {
  const size_t host = static_cast<size_t>(worker) % request.runtime_dirs.size();
  std::atomic<int32_t>* const owners = board->owners[host];
  sluice::Client client({.runtime_dir = request.runtime_dirs[host].c_str()});
  if (!client.wait(std::chrono::seconds(10))) _exit(1);
  std::minstd_rand random(seed);
  const int32_t self = getpid();
  std::vector<sluice::Place> in;
  for (;;) {
    if (in.size() < kMostHeld) {
      sluice::Place place = random() % 64 == 0
                                ? client.enter(request.descriptors, std::chrono::milliseconds(2))
                                : client.enter(request.descriptors);
      if (place && place.raw().name != 0) {
        const uint32_t at = PlaceOf(place);
        const int32_t before = at < request.limit ? owners[at].exchange(self) : self;
        if (before != 0 && (before == self || sluice::test::IsSiblingRunning(before)))
          ++board->violations;
        ++board->entered;
        ++board->holds[worker];
        in.push_back(std::move(place));
      }
    }
    if (!in.empty() && (in.size() == kMostHeld || random() % 3 == 0)) {
      std::swap(in[random() % in.size()], in.back());
      owners[PlaceOf(in.back()) % kMostPlaces] = 0;
      --board->holds[worker];
      in.pop_back();
    }
    if (random() % 8 == 0) usleep(random() % 100);
  }
}

// What all hold at one instant, in which each of them stands still.
uint64_t HeldAtOnce(const pid_t (&workers)[kWorkers], Board* board) {
  for (const pid_t worker : workers) kill(worker, SIGSTOP);
  for (const pid_t worker : workers) waitpid(worker, nullptr, WUNTRACED);
  uint64_t held = 0;
  for (const std::atomic<uint32_t>& holds : board->holds) held += holds;
  for (const pid_t worker : workers) kill(worker, SIGCONT);
  return held;
}

std::vector<std::string> Split(const std::string& text) {
  std::vector<std::string> parts;
  for (size_t at = 0; at <= text.size();) {
    const size_t end = std::min(text.find(',', at), text.size());
    parts.push_back(text.substr(at, end - at));
    at = end + 1;
  }
  return parts;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 6) return 2;
  Request request = {Split(argv[1]), static_cast<uint32_t>(atoi(argv[2])), {}};
  if (request.runtime_dirs.size() > kMostHosts) return 2;
  const bool is_fleet = request.runtime_dirs.size() > 1;
  const int kills = atoi(argv[3]);
  const auto seed = static_cast<unsigned>(atoi(argv[4]));
  auto descriptors = sluice::test::ReadDescriptors(argc, argv, 5);
  if (!descriptors) return 2;
  request.descriptors = *std::move(descriptors);
  auto* const board =
      new (mmap(nullptr, sizeof(Board), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0))
          Board{};
  std::minstd_rand random(seed);
  const auto begin = [&](int worker) {
    const auto own = static_cast<unsigned>(random());
    const pid_t pid = fork();
    if (pid == 0) Work(request, board, worker, own);
    return pid;
  };
  pid_t workers[kWorkers];
  for (int i = 0; i < kWorkers; ++i) workers[i] = begin(i);
  // After the forks: no child has this one's connection.
  sluice::Client client({.runtime_dir = request.runtime_dirs[0].c_str()});
  if (!client.wait(std::chrono::seconds(10))) return 1;
  const auto held = [&] {
    const uint64_t remaining = client.peek(request.descriptors).remaining();
    return request.limit - std::min<uint64_t>(remaining, request.limit);
  };
  uint64_t most_held = 0;
  for (int k = 0; k < kills; ++k) {
    usleep(500 + random() % 4000);
    const int which = static_cast<int>(random() % kWorkers);
    kill(workers[which], SIGKILL);
    waitpid(workers[which], nullptr, 0);
    board->holds[which] = 0;
    workers[which] = begin(which);
    most_held = std::max<uint64_t>(most_held, is_fleet ? HeldAtOnce(workers, board) : held());
  }
  for (const pid_t worker : workers) kill(worker, SIGKILL);
  const double last_ms = NowMs();
  for (const pid_t worker : workers) waitpid(worker, nullptr, 0);
  while (!is_fleet && held() != 0 && NowMs() < last_ms + kWaitS * 1e3) usleep(1000);
  printf(
      "{\"kills\": %d, \"entered\": %lu, \"violations\": %lu, \"most_held\": %lu, "
      "\"held_after\": %lu, \"back_ms\": %.0f}\n",
      kills, board->entered.load(), board->violations.load(), most_held,
      static_cast<uint64_t>(held()), NowMs() - last_ms);
  return 0;
}
