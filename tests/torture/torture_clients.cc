// The client processes of the torture test: each checks random keys of a crowded table as fast as
// it can, until this program kills it at an instant of chance and forks another.
//
//   torture_clients RUNTIME_DIR LEDGER_FILE KEYS SEED KILLS
//
// The ledger is what the test reads: see Ledger. After the last kill the clients go on until this
// program ends; they end with it.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>

#include "client/include/sluice.hpp"

namespace {

constexpr int kClients = 4;
constexpr uint64_t kMostBetweenKillsNs = 4'000'000;
// Now and then a client is stopped in mid-check for longer than the grace, and then goes on, or is
// killed where it stands; a few are stopped for seconds.
constexpr uint64_t kStopOneOf = 64;
constexpr uint64_t kLongStopOneOf = 2048;
constexpr uint64_t kStopNs = 50'000'000;
constexpr uint64_t kLongStopNs = 2'000'000'000;
constexpr std::chrono::milliseconds kAttachMs(100);
constexpr int kTriesForAttached = 100 * kClients;

using Cell = std::atomic<uint64_t>;
static_assert(Cell::is_always_lock_free);

// Admissions per key, then: those from overflow buckets, checks made, kills, kills of a client that
// was attaching, stops. An admission is written after its check, so a kill in between misses one: a
// bound from above stays a bound from above.
struct Ledger {
  Cell* admitted;  // [keys]
  uint64_t keys;

  Cell& overflow() const { return admitted[keys]; }
  Cell& checks() const { return admitted[keys + 1]; }
  Cell& kills() const { return admitted[keys + 2]; }
  Cell& kills_in_attach() const { return admitted[keys + 3]; }
  Cell& stops() const { return admitted[keys + 4]; }
  Cell& is_attaching(int client) const { return admitted[keys + 5 + client]; }
  static size_t Bytes(uint64_t keys) { return (keys + 5 + kClients) * sizeof(Cell); }
};

[[noreturn]] void Check(const Ledger& ledger, const char* runtime_dir, int client_number,
                        uint64_t seed) {
  std::mt19937_64 random(seed);
  Cell& is_attaching = ledger.is_attaching(client_number);
  is_attaching = 1;
  sluice::Client client({.default_allowed = false, .runtime_dir = runtime_dir, .label = "torture"});
  client.wait(kAttachMs);
  for (;;) {
    // A few keys are hot, most are rare: the first are always at their limit, the rest come and go
    // and push each other out of the table.
    const double u = std::uniform_real_distribution<double>(0, 1)(random);
    const auto key = static_cast<uint64_t>(static_cast<double>(ledger.keys) * u * u * u * u);
    const std::string text = "key-" + std::to_string(key);
    sluice::Decision d = client.check({{"key", text}});
    ledger.checks().fetch_add(1, std::memory_order_relaxed);
    if (!d || d.is_default()) continue;
    is_attaching = 0;
    // Refunds are given back before anything was done with them, so they count as not admitted.
    if (random() % 16 == 0 && client.refund(d) > 0) continue;
    const bool overflow = d.raw().source == SLUICE_SOURCE_OVERFLOW;
    (overflow ? ledger.overflow() : ledger.admitted[key]).fetch_add(1, std::memory_order_relaxed);
  }
}

class Clients {
 public:
  Clients(const Ledger& ledger, const char* runtime_dir, uint64_t seed)
      : ledger_(ledger), runtime_dir_(runtime_dir), random_(seed) {
    for (int i = 0; i < kClients; ++i) Start(i);
  }

  void Kill() {
    Sleep(random_() % kMostBetweenKillsNs);
    const int victim = Victim();
    if (random_() % kStopOneOf == 0) {
      const bool is_long = random_() % (kLongStopOneOf / kStopOneOf) == 0;
      kill(pids_[victim], SIGSTOP);
      Sleep(is_long ? kLongStopNs : kStopNs);
      ++ledger_.stops();
      if (random_() % 2 == 0) {
        kill(pids_[victim], SIGCONT);
        Sleep(random_() % kMostBetweenKillsNs);
      }
    }
    kill(pids_[victim], SIGKILL);
    waitpid(pids_[victim], nullptr, 0);
    if (ledger_.is_attaching(victim) != 0) ++ledger_.kills_in_attach();
    ++ledger_.kills();
    Start(victim);
  }

 private:
  // One of eight is anybody, the others are beyond attaching: that takes as long as a client lives
  // here, and none gets there while the daemon is away.
  int Victim() {
    const bool any = random_() % 8 == 0;
    int victim = static_cast<int>(random_() % kClients);
    for (int tries = 0; tries < kTriesForAttached && !any; ++tries) {
      if (ledger_.is_attaching(victim) == 0) break;
      victim = (victim + 1) % kClients;
      if (tries % kClients == kClients - 1) Sleep(1'000'000);
    }
    return victim;
  }

  void Start(int i) {
    const uint64_t seed = random_();
    const pid_t parent = getpid();
    pids_[i] = fork();
    if (pids_[i] < 0) {
      std::perror("torture_clients: fork");
      std::exit(1);
    }
    if (pids_[i] != 0) return;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(1);
    (void)nice(10);  // the daemon is to answer them while they check
    Check(ledger_, runtime_dir_, i, seed);
  }

  static void Sleep(uint64_t ns) {
    const timespec ts = {static_cast<time_t>(ns / 1'000'000'000),
                         static_cast<long>(ns % 1'000'000'000)};
    nanosleep(&ts, nullptr);
  }

  const Ledger ledger_;
  const char* const runtime_dir_;
  std::mt19937_64 random_;
  pid_t pids_[kClients];
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 6) return 2;
  const uint64_t keys = strtoull(argv[3], nullptr, 10);
  const uint64_t kills = strtoull(argv[5], nullptr, 10);
  const int fd = open(argv[2], O_RDWR | O_CLOEXEC);
  if (fd < 0 || keys == 0 || ftruncate(fd, static_cast<off_t>(Ledger::Bytes(keys))) != 0) return 2;
  void* const mapped =
      mmap(nullptr, Ledger::Bytes(keys), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (mapped == MAP_FAILED) return 2;
  const Ledger ledger = {static_cast<Cell*>(mapped), keys};
  Clients clients(ledger, argv[1], strtoull(argv[4], nullptr, 10));
  for (uint64_t i = 0; i < kills; ++i) clients.Kill();
  pause();
  return 0;
}
