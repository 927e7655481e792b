// A client whose requests end in random ways, each of which it reports. Prints one JSON line:
//   {"denied": n, "unreported": n, "ended": {"200": n, ...}}
// "unreported": those whose report changed nothing.
//
//   report_outcomes RUNTIME_DIR REQUESTS SEED NAME=VALUE...
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>

#include "client/include/sluice.hpp"
#include "tests/integration/descriptors.h"

int main(int argc, char** argv) {
  constexpr uint32_t kStatuses[] = {200, 201, 401, 404, 429, 500, 503};
  if (argc < 5) return 2;
  const uint64_t requests = strtoull(argv[2], nullptr, 10);
  std::minstd_rand random(static_cast<unsigned>(atoi(argv[3])));
  const auto descriptors = sluice::test::ReadDescriptors(argc, argv, 4);
  if (!descriptors) return 2;
  sluice::Client client({.runtime_dir = argv[1]});
  if (!client.wait(std::chrono::seconds(10))) return 1;
  uint64_t ended[std::size(kStatuses)] = {};
  uint64_t denied = 0;
  uint64_t unreported = 0;
  for (uint64_t i = 0; i < requests; ++i) {
    sluice::Decision d = client.check(*descriptors);
    if (!d) {
      ++denied;
      continue;
    }
    const size_t at = random() % std::size(kStatuses);
    ++ended[at];
    if (client.report(d, kStatuses[at]) <= 0) ++unreported;
  }
  printf("{\"denied\": %lu, \"unreported\": %lu, \"ended\": {", denied, unreported);
  for (size_t i = 0; i < std::size(kStatuses); ++i) {
    printf("%s\"%u\": %lu", i == 0 ? "" : ", ", kStatuses[i], ended[i]);
  }
  printf("}}\n");
  return 0;
}
