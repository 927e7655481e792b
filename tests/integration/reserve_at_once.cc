// Five processes that reserve of one bucket at the same instant, in ROUNDS rounds with a key each:
// 58, 80, 175, 175 and 175 tokens of a limit of 100. Each that has something takes it into the sum
// of all that is reserved, and out of it before it cancels, and tries again. Prints one JSON line:
//   {"rounds": n, "reserved": n, "most": n, "first": [n, n, n, n, n]}
// "most": the largest of those sums that was ever seen; "first": how often each was the one that
// had a new bucket's tokens.
//
//   reserve_at_once RUNTIME_DIR ROUNDS
//
// The rule has the key `user`, and its limit never gives anything back meanwhile.
#include <sched.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "client/include/sluice.hpp"

namespace {

constexpr uint32_t kEstimates[] = {58, 80, 175, 175, 175};
constexpr uint64_t kProcesses = std::size(kEstimates);
constexpr int kTries = 20;

struct Board {
  std::atomic<uint64_t> arrived, held, most, reserved;
  std::atomic<uint64_t> first[kProcesses];
};

// Returns when all have come to the `n`-th meeting.
void Meet(Board& board, uint64_t n) {
  ++board.arrived;
  while (board.arrived.load() < n * kProcesses) sched_yield();
}

void Reserve(sluice::Client& client, Board& board, size_t self, uint64_t round) {
  const std::string user = "round-" + std::to_string(round);
  for (int i = 0; i < kTries; ++i) {
    const sluice::Reservation r =
        client.reserve({{"user", user}}, kEstimates[self], std::chrono::seconds(60));
    if (i == 0 && r) ++board.first[self];
    if (!r) {
      usleep(20 * (self + 1));
      continue;
    }
    ++board.reserved;
    const uint64_t held = board.held.fetch_add(r.estimate()) + r.estimate();
    uint64_t most = board.most.load();
    while (most < held && !board.most.compare_exchange_weak(most, held)) {
    }
    usleep(100);
    board.held -= r.estimate();
    if (!client.settle(r, 0)) _exit(1);
  }
}

[[noreturn]] void Work(const char* runtime_dir, uint64_t rounds, Board& board, size_t self) {
  sluice::Client client({.runtime_dir = runtime_dir});
  if (!client.wait(std::chrono::seconds(10))) _exit(1);
  for (uint64_t round = 0; round < rounds; ++round) {
    Meet(board, round + 1);
    Reserve(client, board, self, round);
  }
  _exit(0);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  const uint64_t rounds = strtoull(argv[2], nullptr, 10);
  auto* const board =
      new (mmap(nullptr, sizeof(Board), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0))
          Board{};
  pid_t pids[kProcesses];
  for (size_t i = 0; i < kProcesses; ++i) {
    pids[i] = fork();
    if (pids[i] == 0) Work(argv[1], rounds, *board, i);
  }
  bool is_good = true;
  for (const pid_t pid : pids) {
    int status = 0;
    waitpid(pid, &status, 0);
    is_good = is_good && WIFEXITED(status) && WEXITSTATUS(status) == 0;
  }
  printf(
      "{\"rounds\": %lu, \"reserved\": %lu, \"most\": %lu, \"first\": [%lu, %lu, %lu, %lu, %lu]}\n",
      rounds, board->reserved.load(), board->most.load(), board->first[0].load(),
      board->first[1].load(), board->first[2].load(), board->first[3].load(),
      board->first[4].load());
  return is_good ? 0 : 1;
}
