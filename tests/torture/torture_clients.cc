// The client processes of the torture test: each checks random keys of a crowded table as fast as
// it can, until this program kills it at an instant of chance and forks another.
//
//   torture_clients RUNTIME_DIR LEDGER_FILE KEYS SEED KILLS
//
// The ledger is what the test reads: see Ledger. After the last kill the clients go on until this
// program ends; they end with it.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <random>
#include <string>

#include "client/include/sluice.hpp"
#include "tests/torture/victims.h"

namespace sluice::torture {
namespace {

constexpr int kClients = 4;
constexpr uint64_t kAcquireOneOf = 1024;
constexpr uint64_t kReserveOneOf = 64;
constexpr uint64_t kEstimate = 4;
// Less than a client may be stopped for, so that some come too late to settle.
constexpr std::chrono::milliseconds kHold(20);
constexpr uint64_t kMostBetweenKillsNs = 1'000'000;
constexpr std::chrono::milliseconds kAttachMs(100);
// Gives up the CPU after so many checks: a new client has its first ones soon.
constexpr uint64_t kChecksPerTurn = 256;

// Admissions per key, then: those from overflow buckets, checks made, kills, kills of a client that
// was attaching, stops, each client's stage. An admission is written after its check, so a kill in
// between misses one: a bound from above stays a bound from above.
struct Ledger {
  Cell* admitted;  // [keys]
  uint64_t keys;

  Cell& overflow() const { return admitted[keys]; }
  Cell& checks() const { return admitted[keys + 1]; }
  Counts counts() const {
    Cell* const first = &admitted[keys + 2];
    return {.kills = first, .kills_in_attach = first + 1, .stops = first + 2, .stages = first + 3};
  }
  static size_t Bytes(uint64_t keys) { return (keys + 5 + kClients) * sizeof(Cell); }
};

Client Open(const char* runtime_dir) {
  return Client({.default_allowed = false, .runtime_dir = runtime_dir, .label = "torture"});
}

// Reserves an estimate, settles it for as much or less, and writes down what the key was charged.
// Killed in between, it has charged the estimate.
void Reserve(const Ledger& ledger, Client& client, uint64_t key, uint64_t actual) {
  const Reservation r = client.reserve({{"key", "key-" + std::to_string(key)}}, kEstimate, kHold);
  if (!r || r.decision().is_default()) return;
  const uint64_t charged = client.settle(r, static_cast<uint32_t>(actual)) ? actual : kEstimate;
  const bool overflow = r.decision().raw().source == SLUICE_SOURCE_OVERFLOW;
  Cell& admitted = overflow ? ledger.overflow() : ledger.admitted[key];
  admitted.fetch_add(charged, std::memory_order_relaxed);
}

[[noreturn]] void Check(const Ledger& ledger, Client& client, Cell& stage, uint64_t seed) {
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
    Decision d = random() % kAcquireOneOf == 0
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

int Main(char** argv) {
  const char* const runtime_dir = argv[1];
  const uint64_t keys = strtoull(argv[3], nullptr, 10);
  const uint64_t kills = strtoull(argv[5], nullptr, 10);
  const int fd = open(argv[2], O_RDWR | O_CLOEXEC);
  if (fd < 0 || keys == 0 || ftruncate(fd, static_cast<off_t>(Ledger::Bytes(keys))) != 0) return 2;
  void* const mapped =
      mmap(nullptr, Ledger::Bytes(keys), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (mapped == MAP_FAILED) return 2;
  const Ledger ledger = {static_cast<Cell*>(mapped), keys};
  const Counts counts = ledger.counts();
  Client shared = Open(runtime_dir);  // this process attaches and never checks; its children do
  shared.wait(kAttachMs * 50);
  const auto run = [&](int child, bool attaches, uint64_t seed) {
    if (!attaches) Check(ledger, shared, counts.stages[child], seed);
    Client own = Open(runtime_dir);
    own.wait(kAttachMs);
    Check(ledger, own, counts.stages[child], seed);
  };
  Victims victims({.count = kClients,
                   .most_between_kills_ns = kMostBetweenKillsNs,
                   .run = run,
                   .on_gone = nullptr},
                  counts, strtoull(argv[4], nullptr, 10));
  while (*counts.kills < kills) victims.Kill();
  pause();
  return 0;
}

}  // namespace
}  // namespace sluice::torture

int main(int argc, char** argv) { return argc == 6 ? sluice::torture::Main(argv) : 2; }
