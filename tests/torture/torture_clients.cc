// The client processes of the torture test: each checks random keys of a crowded table as fast as
// it can, until this program kills it at an instant of chance and forks another.
//
//   torture_clients RUNTIME_DIR LEDGER_FILE KEYS SEED KILLS
//
// The ledger is what the test reads: see Ledger. After the last kill the clients go on until this
// program ends; they end with it.
#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

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
// One of eight attaches anew; the others go on with the client that they were forked with.
constexpr uint64_t kAttachOneOf = 8;
constexpr uint64_t kAcquireOneOf = 1024;
constexpr uint64_t kReserveOneOf = 64;
constexpr uint64_t kEstimate = 4;
// Less than a client may be stopped for, so that some come too late to settle.
constexpr std::chrono::milliseconds kHold(20);
constexpr uint64_t kMostBetweenKillsNs = 1'000'000;
// Now and then a client is stopped in mid-check for longer than the grace, and then goes on, or is
// killed where it stands; a few are stopped for seconds. The others are killed meanwhile.
constexpr uint64_t kStopOneOf = 64;
constexpr uint64_t kLongStopOneOf = 2048;
constexpr uint64_t kStopNs = 50'000'000;
constexpr uint64_t kLongStopNs = 2'000'000'000;
constexpr std::chrono::milliseconds kAttachMs(100);
constexpr int kTriesForChecking = 100 * kClients;
// So many may be on their way out at once: the dead wait for a CPU as the living do.
constexpr int kMostDying = 64;
// Gives up the CPU after so many checks: a new client has its first ones soon.
constexpr uint64_t kChecksPerTurn = 256;

using Cell = std::atomic<uint64_t>;
static_assert(Cell::is_always_lock_free);

enum Stage : uint64_t { kForked, kAttaching, kChecking };

// Admissions per key, then: those from overflow buckets, checks made, kills, kills of a client that
// was attaching, stops, each client's stage. An admission is written after its check, so a kill in
// between misses one: a bound from above stays a bound from above.
struct Ledger {
  Cell* admitted;  // [keys]
  uint64_t keys;

  Cell& overflow() const { return admitted[keys]; }
  Cell& checks() const { return admitted[keys + 1]; }
  Cell& kills() const { return admitted[keys + 2]; }
  Cell& kills_in_attach() const { return admitted[keys + 3]; }
  Cell& stops() const { return admitted[keys + 4]; }
  Cell& stage(int client) const { return admitted[keys + 5 + client]; }
  static size_t Bytes(uint64_t keys) { return (keys + 5 + kClients) * sizeof(Cell); }
};

uint64_t NowNs() {
  return static_cast<uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count());
}

void Sleep(uint64_t ns) {
  const timespec ts = {static_cast<time_t>(ns / 1'000'000'000),
                       static_cast<long>(ns % 1'000'000'000)};
  nanosleep(&ts, nullptr);
}

sluice::Client Open(const char* runtime_dir) {
  return sluice::Client({.default_allowed = false, .runtime_dir = runtime_dir, .label = "torture"});
}

// Reserves an estimate, settles it for as much or less, and writes down what the key was charged.
// Killed in between, it has charged the estimate.
void Reserve(const Ledger& ledger, sluice::Client& client, uint64_t key, uint64_t actual) {
  const sluice::Reservation r =
      client.reserve({{"key", "key-" + std::to_string(key)}}, kEstimate, kHold);
  if (!r || r.decision().is_default()) return;
  const uint64_t charged = client.settle(r, static_cast<uint32_t>(actual)) ? actual : kEstimate;
  const bool overflow = r.decision().raw().source == SLUICE_SOURCE_OVERFLOW;
  Cell& admitted = overflow ? ledger.overflow() : ledger.admitted[key];
  admitted.fetch_add(charged, std::memory_order_relaxed);
}

[[noreturn]] void Check(const Ledger& ledger, sluice::Client& client, Cell& stage, uint64_t seed) {
  std::mt19937_64 random(seed);
  for (uint64_t checks = 1;; ++checks) {
    if (checks % kChecksPerTurn == 0) sched_yield();
    // A few keys are hot, most are rare: the first are always at their limit, the rest come and go
    // and push each other out of the table.
    const double u = std::uniform_real_distribution<double>(0, 1)(random);
    const auto key = static_cast<uint64_t>(static_cast<double>(ledger.keys) * u * u * u * u);
    const std::string text = "key-" + std::to_string(key);
    if (random() % kReserveOneOf == 0) Reserve(ledger, client, key, random() % (kEstimate + 1));
    // Some wait for their turn: killed then, they have spent it.
    sluice::Decision d = random() % kAcquireOneOf == 0
                             ? client.acquire({{"key", text}}, std::chrono::milliseconds(1))
                             : client.check({{"key", text}});
    ledger.checks().fetch_add(1, std::memory_order_relaxed);
    if (d.is_default()) continue;
    stage.store(kChecking, std::memory_order_relaxed);
    if (!d) continue;
    // Refunds are given back before anything was done with them, so they count as not admitted.
    if (random() % 16 == 0 && client.refund(d) > 0) continue;
    const bool overflow = d.raw().source == SLUICE_SOURCE_OVERFLOW;
    (overflow ? ledger.overflow() : ledger.admitted[key]).fetch_add(1, std::memory_order_relaxed);
  }
}

class Clients {
 public:
  Clients(const Ledger& ledger, const char* runtime_dir, uint64_t seed)
      : ledger_(ledger), runtime_dir_(runtime_dir), random_(seed), client_(Open(runtime_dir)) {
    client_.wait(kAttachMs * 50);
    for (int i = 0; i < kClients; ++i) Start(i);
  }

  void Kill() {
    Sleep(random_() % kMostBetweenKillsNs);
    EndStop(NowNs());
    const int victim = Victim();
    if (stopped_ < 0 && random_() % kStopOneOf == 0) {
      kill(pids_[victim], SIGSTOP);
      stopped_ = victim;
      const bool is_long = random_() % (kLongStopOneOf / kStopOneOf) == 0;
      stopped_until_ns_ = NowNs() + (is_long ? kLongStopNs : kStopNs);
      ++ledger_.stops();
      return;
    }
    Replace(victim);
  }

 private:
  // Half of those that were stopped go on, and half die where they stand.
  void EndStop(uint64_t now_ns) {
    if (stopped_ < 0 || now_ns < stopped_until_ns_) return;
    if (random_() % 2 == 0) {
      kill(pids_[stopped_], SIGCONT);
    } else {
      Replace(stopped_);
    }
    stopped_ = -1;
  }

  // One of eight is anybody, the others have begun to check: none gets there anew while the daemon
  // is away.
  int Victim() {
    const bool any = random_() % 8 == 0;
    int victim = static_cast<int>(random_() % kClients);
    for (int tries = 0; tries < kTriesForChecking; ++tries) {
      if (victim != stopped_ && (any || ledger_.stage(victim) == kChecking)) return victim;
      victim = (victim + 1) % kClients;
      if (tries % kClients == kClients - 1) Sleep(200'000);
    }
    return victim == stopped_ ? (victim + 1) % kClients : victim;
  }

  void Replace(int victim) {
    kill(pids_[victim], SIGKILL);
    if (ledger_.stage(victim) == kAttaching) ++ledger_.kills_in_attach();
    ++ledger_.kills();
    ++dying_;
    Reap();
    Start(victim);
  }

  // Waits only where too many are dying.
  void Reap() {
    while (dying_ > 0 && waitpid(-1, nullptr, dying_ < kMostDying ? WNOHANG : 0) > 0) --dying_;
  }

  void Start(int i) {
    const uint64_t seed = random_();
    const bool attaches = random_() % kAttachOneOf == 0;
    ledger_.stage(i) = kForked;
    const pid_t parent = getpid();
    pids_[i] = fork();
    if (pids_[i] < 0) {
      std::perror("torture_clients: fork");
      std::exit(1);
    }
    if (pids_[i] != 0) return;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(1);
    if (!attaches) Check(ledger_, client_, ledger_.stage(i), seed);
    ledger_.stage(i) = kAttaching;
    sluice::Client own = Open(runtime_dir_);
    own.wait(kAttachMs);
    Check(ledger_, own, ledger_.stage(i), seed);
  }

  const Ledger ledger_;
  const char* const runtime_dir_;
  std::mt19937_64 random_;
  sluice::Client client_;  // this process attaches and never checks; its children do
  pid_t pids_[kClients];
  int stopped_ = -1;  // which of them is stopped, if any
  uint64_t stopped_until_ns_ = 0;
  int dying_ = 0;
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
  while (ledger.kills() < kills) clients.Kill();
  pause();
  return 0;
}
