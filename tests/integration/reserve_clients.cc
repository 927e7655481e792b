// Clients that reserve, settle, cancel and abandon until they are killed, at any instruction, eight
// at once, over KEYS buckets of one rule. Each writes down what it is about to do, and what has
// come of it, in a mapping that outlives it: so of a killed one only the operation under way may
// have been charged in one of two ways. Prints one JSON line:
//   {"operations": n, "reserved": n, "denied": n, "full": n, "settled": n, "cancelled": n,
//    "late": n, "abandoned": n, "kills": n, "killed_within": n, "charged_least": n,
//    "charged_most": n, "charged": n, "wrong": n}
// "charged" is what the buckets say, "wrong" whatever no client should see: a second settlement of
// one reservation that counts, an answer that is not of the rules.
//
//   reserve_clients RUNTIME_DIR OPERATIONS KILLS SEED
//
// The rule has the key `user`, and its limit never gives anything back meanwhile.
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>

#include "client/include/sluice.hpp"

namespace {

constexpr int kWorkers = 8;
constexpr int kKeys = 64;
constexpr uint32_t kMostEstimate = 40;
constexpr uint32_t kMostActual = 60;
constexpr std::chrono::seconds kDeadline(80);

// What the operation under way may have been charged.
struct Bounds {
  uint64_t least;
  uint64_t most;
};

// One worker's book. The sums of what is over stand twice: the next ones are written beside those
// in force, and one store puts them in force with the operation's end.
struct Book {
  enum Phase : uint32_t { kIdle, kReserving, kReserved, kSettling };

  std::atomic<uint64_t> charged[2];
  std::atomic<uint32_t> in_force;  // which sum, and the phase: index << 8 | phase
  std::atomic<uint32_t> estimate;
  std::atomic<uint32_t> actual;
  std::atomic<bool> is_busy;  // it has attached, and begun

  void Enter(Phase phase) { in_force.store((in_force.load() & ~0xffu) | phase); }
  void End(uint64_t tokens) {
    const uint32_t index = in_force.load() >> 8;
    charged[1 - index].store(charged[index].load() + tokens);
    in_force.store((1 - index) << 8 | kIdle);
  }
  // Of a worker that has ended: closes its last operation, and says what that may have taken.
  Bounds Close() {
    const uint64_t e = estimate.load();
    const uint64_t a = actual.load();
    const auto phase = static_cast<Phase>(in_force.load() & 0xff);
    End(0);
    switch (phase) {
      case kReserving:
        return {0, e};
      case kReserved:
        return {e, e};
      case kSettling:
        return {std::min(e, a), std::max(e, a)};
      default:
        return {0, 0};
    }
  }
};

struct Board {
  Book books[kWorkers];
  std::atomic<uint64_t> operations, reserved, denied, full, settled, cancelled, late, abandoned,
      wrong;
};

std::string UserOf(unsigned key) { return "user-" + std::to_string(key % kKeys); }

class Worker {
 public:
  Worker(const char* runtime_dir, Board* board, Book* book, unsigned seed)
      : client_({.runtime_dir = runtime_dir}), board_(*board), book_(*book), random_(seed) {}

  [[noreturn]] void Run() {
    while (!client_.wait(std::chrono::seconds(1)) && getppid() == parent_) {
    }
    book_.is_busy = true;
    while (getppid() == parent_) Once();
    _exit(1);
  }

 private:
  void Once() {
    ++board_.operations;
    // Most go on at once, so that a kill comes within an operation. Of the others some are held for
    // so short a time that it is over before they are settled.
    const bool pauses = random_() % 512 == 0;
    const auto hold = std::chrono::milliseconds(pauses && random_() % 2 == 0 ? 1 : 20);
    const auto estimate = static_cast<uint32_t>(1 + random_() % kMostEstimate);
    book_.estimate = estimate;
    book_.Enter(Book::kReserving);
    const sluice::Reservation r =
        client_.reserve({{"user", UserOf(static_cast<unsigned>(random_()))}}, estimate, hold);
    // Where no slot is free the client's default is the answer, and nothing is spent.
    if (!r || r.error() == SLUICE_E_FULL) {
      ++(r.error() == SLUICE_E_FULL ? board_.full : board_.denied);
      return book_.End(0);
    }
    book_.Enter(Book::kReserved);
    ++board_.reserved;
    if (r.decision().raw().source != SLUICE_SOURCE_RULES || r.estimate() != estimate) {
      ++board_.wrong;
    }
    if (random_() % 8 == 0) {
      ++board_.abandoned;
      return book_.End(estimate);
    }
    if (pauses) usleep(random_() % 2000);
    const auto actual = static_cast<uint32_t>(random_() % 4 == 0 ? 0 : random_() % kMostActual);
    book_.actual = actual;
    book_.Enter(Book::kSettling);
    const bool is_settled = client_.settle(r, actual);
    book_.End(is_settled ? actual : estimate);
    ++(!is_settled ? board_.late : actual == 0 ? board_.cancelled : board_.settled);
    // Nobody settles it once more.
    if (random_() % 4 == 0 && client_.settle(r, kMostActual)) ++board_.wrong;
  }

  const pid_t parent_ = getppid();
  sluice::Client client_;
  Board& board_;
  Book& book_;
  std::minstd_rand random_;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5) return 2;
  const char* const runtime_dir = argv[1];
  const uint64_t operations = strtoull(argv[2], nullptr, 10);
  const uint64_t kills = strtoull(argv[3], nullptr, 10);
  std::minstd_rand random(static_cast<unsigned>(atoi(argv[4])));
  auto* const board =
      new (mmap(nullptr, sizeof(Board), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0))
          Board{};
  const auto begin = [&](int index) {
    const auto seed = static_cast<unsigned>(random());
    const pid_t pid = fork();
    if (pid == 0) Worker(runtime_dir, board, &board->books[index], seed).Run();
    return pid;
  };
  {
    // Each bucket has its slot before they come: so no key has two for a while.
    sluice::Client first({.runtime_dir = runtime_dir});
    if (!first.wait(std::chrono::seconds(10))) return 1;
    for (unsigned key = 0; key < kKeys; ++key) {
      if (!first.check({{"user", UserOf(key)}})) return 1;
    }
  }
  pid_t workers[kWorkers];
  for (int i = 0; i < kWorkers; ++i) workers[i] = begin(i);
  Bounds killed = {0, 0};
  uint64_t killed_within = 0;
  const auto end = [&](int index) {
    kill(workers[index], SIGKILL);
    waitpid(workers[index], nullptr, 0);
    const Bounds last = board->books[index].Close();
    killed.least += last.least;
    killed.most += last.most;
    killed_within += last.least != last.most ? 1 : 0;
  };
  uint64_t ended = 0;
  const auto until = std::chrono::steady_clock::now() + kDeadline;
  while (board->operations < operations || ended < kills) {
    if (std::chrono::steady_clock::now() > until) break;  // what is missing is seen in what is told
    usleep(100 + random() % 400);
    if (board->operations * kills < (ended + 1) * operations) continue;
    const auto index = static_cast<int>(random() % kWorkers);
    if (!board->books[index].is_busy.exchange(false)) continue;
    end(index);
    workers[index] = begin(index);
    ++ended;
  }
  for (int i = 0; i < kWorkers; ++i) end(i);

  sluice::Client client({.runtime_dir = runtime_dir});
  if (!client.wait(std::chrono::seconds(10))) return 1;
  uint64_t charged = 0;
  for (unsigned key = 0; key < kKeys; ++key) {
    const sluice::Decision d = client.peek({{"user", UserOf(key)}}, 0);
    charged += d.limit() - d.remaining() - 1;  // the first check's
  }
  uint64_t sum = 0;
  for (const Book& book : board->books) sum += book.charged[book.in_force.load() >> 8];
  printf(
      "{\"operations\": %lu, \"reserved\": %lu, \"denied\": %lu, \"full\": %lu, \"settled\": %lu, "
      "\"cancelled\": %lu, \"late\": %lu, \"abandoned\": %lu, \"kills\": %lu, "
      "\"killed_within\": %lu, \"charged_least\": %lu, \"charged_most\": %lu, \"charged\": %lu, "
      "\"wrong\": %lu}\n",
      board->operations.load(), board->reserved.load(), board->denied.load(), board->full.load(),
      board->settled.load(), board->cancelled.load(), board->late.load(), board->abandoned.load(),
      ended + kWorkers, killed_within, sum + killed.least, sum + killed.most, charged,
      board->wrong.load());
  return 0;
}
