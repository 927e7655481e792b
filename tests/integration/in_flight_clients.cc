// Clients that enter and leave until they are killed, at any instruction, KILLS times in all, eight
// at once; each place is checked to be nobody else's who lives. Then all are killed, and a client
// of its own waits until every place of the limit is free. Prints one JSON line:
//   {"kills": n, "entered": n, "violations": n, "most_held": n, "held_after": n, "back_ms": n}
// "violations": places that two held, or beyond the limit. LIMIT is that of the rule that the
// descriptors match.
//
//   in_flight_clients RUNTIME_DIR LIMIT KILLS SEED NAME=VALUE...
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
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "client/include/sluice.hpp"
#include "tests/support/is_running.h"

namespace {

constexpr int kWorkers = 8;
constexpr uint32_t kMostPlaces = 4096;
constexpr size_t kMostHeld = 20;  // by one worker
constexpr double kWaitS = 30;

struct Board {
  std::atomic<int32_t> owners[kMostPlaces];
  std::atomic<uint64_t> entered;
  std::atomic<uint64_t> violations;
};

double NowMs() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<double>(t.tv_sec) * 1e3 + static_cast<double>(t.tv_nsec) * 1e-6;
}

struct Request {
  const char* runtime_dir;
  uint32_t limit;
  std::vector<sluice::Descriptor> descriptors;
};

// Where a place stands in its row, as its spend says.
uint32_t PlaceOf(const sluice::Place& place) { return place.raw().decision.spends[0].floor_q16; }

[[noreturn]] void Work(const Request& request, Board* board, unsigned seed) {
  sluice::Client client({.runtime_dir = request.runtime_dir});
  if (!client.wait(std::chrono::seconds(10))) _exit(1);
  std::minstd_rand random(seed);
  const int32_t self = getpid();
  std::vector<sluice::Place> in;
  for (;;) {
    if (in.size() < kMostHeld) {
      sluice::Place place = client.enter(request.descriptors);
      if (place && place.raw().name != 0) {
        const uint32_t at = PlaceOf(place);
        const int32_t before = at < request.limit ? board->owners[at].exchange(self) : self;
        if (before != 0 && (before == self || sluice::test::IsSiblingRunning(before)))
          ++board->violations;
        ++board->entered;
        in.push_back(std::move(place));
      }
    }
    if (!in.empty() && (in.size() == kMostHeld || random() % 3 == 0)) {
      std::swap(in[random() % in.size()], in.back());
      board->owners[PlaceOf(in.back()) % kMostPlaces] = 0;
      in.pop_back();
    }
    if (random() % 8 == 0) usleep(random() % 100);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 6) return 2;
  Request request = {argv[1], static_cast<uint32_t>(atoi(argv[2])), {}};
  const int kills = atoi(argv[3]);
  const auto seed = static_cast<unsigned>(atoi(argv[4]));
  for (int i = 5; i < argc; ++i) {
    const char* const equals = strchr(argv[i], '=');
    if (equals == nullptr) return 2;
    request.descriptors.emplace_back(std::string_view(argv[i], equals), equals + 1);
  }
  auto* const board =
      new (mmap(nullptr, sizeof(Board), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0))
          Board{};
  std::minstd_rand random(seed);
  const auto begin = [&] {
    const auto own = static_cast<unsigned>(random());
    const pid_t pid = fork();
    if (pid == 0) Work(request, board, own);
    return pid;
  };
  pid_t workers[kWorkers];
  for (pid_t& worker : workers) worker = begin();
  // After the forks: no child has this one's connection.
  sluice::Client client({.runtime_dir = request.runtime_dir});
  if (!client.wait(std::chrono::seconds(10))) return 1;
  const auto held = [&] {
    const uint64_t remaining = client.peek(request.descriptors).remaining();
    return request.limit - std::min<uint64_t>(remaining, request.limit);
  };
  uint64_t most_held = 0;
  for (int k = 0; k < kills; ++k) {
    usleep(500 + random() % 4000);
    pid_t& worker = workers[random() % kWorkers];
    kill(worker, SIGKILL);
    waitpid(worker, nullptr, 0);
    worker = begin();
    most_held = std::max<uint64_t>(most_held, held());
  }
  for (const pid_t worker : workers) kill(worker, SIGKILL);
  const double last_ms = NowMs();
  for (const pid_t worker : workers) waitpid(worker, nullptr, 0);
  while (held() != 0 && NowMs() < last_ms + kWaitS * 1e3) usleep(1000);
  printf(
      "{\"kills\": %d, \"entered\": %lu, \"violations\": %lu, \"most_held\": %lu, "
      "\"held_after\": %lu, \"back_ms\": %.0f}\n",
      kills, board->entered.load(), board->violations.load(), most_held,
      static_cast<uint64_t>(held()), NowMs() - last_ms);
  return 0;
}
