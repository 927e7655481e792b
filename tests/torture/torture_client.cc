// One client process of the torture test: checks random keys of a crowded table as fast as it can
// until it is killed, and writes down what it was admitted in a file that it shares with the test.
//
//   torture_client RUNTIME_DIR LEDGER_FILE KEYS SEED
//
// The ledger is KEYS + 2 words: admissions per key, those from overflow buckets, and checks made.
// It is written after the check, so a kill in between misses one admission: a bound from above
// stays a bound from above.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>

#include "client/include/sluice.hpp"

int main(int argc, char** argv) {
  if (argc != 5) return 2;
  const uint64_t keys = strtoull(argv[3], nullptr, 10);
  const int fd = open(argv[2], O_RDWR | O_CLOEXEC);
  if (fd < 0 || keys == 0) return 2;
  void* const mapped = mmap(nullptr, (keys + 2) * 8, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (mapped == MAP_FAILED) return 2;
  auto* const ledger = static_cast<std::atomic<uint64_t>*>(mapped);
  std::mt19937_64 random(strtoull(argv[4], nullptr, 10));

  sluice::Client client({.default_allowed = false, .runtime_dir = argv[1], .label = "torture"});
  for (;;) {
    // A few keys are hot, most are rare: the first are always at their limit, the rest come and go
    // and push each other out of the table.
    const double u = std::uniform_real_distribution<double>(0, 1)(random);
    const uint64_t key = static_cast<uint64_t>(static_cast<double>(keys) * u * u * u * u);
    const std::string text = "key-" + std::to_string(key);
    sluice::Decision d = client.check({{"key", text}});
    ledger[keys + 1].fetch_add(1, std::memory_order_relaxed);
    if (!d || d.is_default()) continue;
    // Refunds are given back before anything was done with them, so they count as not admitted.
    if (random() % 16 == 0 && client.refund(d) > 0) continue;
    const bool overflow = d.raw().source == SLUICE_SOURCE_OVERFLOW;
    ledger[overflow ? keys : key].fetch_add(1, std::memory_order_relaxed);
  }
}
