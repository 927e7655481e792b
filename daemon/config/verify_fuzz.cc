// A policy that a former daemon left, changed at any place, its checksum right all the same: it is
// refused, or every number of it is one that clients may use. An input is a list of changes; see
// fuzz::Patch.
#include <algorithm>
#include <cstring>

#include "daemon/config/compile.h"
#include "daemon/config/crc32.h"
#include "daemon/config/parse.h"
#include "shm/fuzz_input.h"
#include "shm/policy_buffer.h"

namespace sluice::config {
namespace {

using fuzz::Require;
using shm::PolicyHeader;

constexpr char kRules[] =
    "rules:\n"
    "  - {name: user, key: [user], limit: 10/s, burst: 20}\n"
    "  - name: route\n"
    "    match: {route: \"/v1/*\", method: [GET, PUT], path: \"/a?c*\", tenant: acme}\n"
    "    key: [tenant, ip/24]\n"
    "    limit: 1/m\n"
    "    tiers: {paid: {limit: 100/s, cost: 5}}\n";

std::string Compiled() {
  const ParseResult parsed = ParseConfig(kRules, "fuzz.yaml");
  for (const Problem& problem : parsed.problems) {
    std::fprintf(stderr, "%s\n", problem.ToString().c_str());
  }
  Require(parsed.ok(), "the rules of this file");
  absl::StatusOr<std::string> policy = Compile(parsed.config, shm::HashKey{}, 1);
  Require(policy.ok() && VerifyPolicy(*policy).ok(), "the rules of this file compile");
  return *std::move(policy);
}

void Check(const std::string& policy) {
  const bool whole = VerifyPolicy(policy).ok();
  const absl::StatusOr<CompiledRules> compiled = CompiledRules::Load(policy);
  Require(compiled.ok() == whole, "only what is whole loads");
  if (!whole) return;
  for (const CompiledRule& rule : compiled->rules()) {
    Require(compiled->ById(rule.id) == &rule && compiled->Find(rule.label) == &rule,
            "a rule is found by its number and its label");
    Require(rule.limit.limit > 0 && rule.limit.interval_ns > 0 && rule.cost > 0, "nothing is 0");
    Require(rule.cost <= rule.limit.burst, "a cost fits its burst");
    Require(rule.limit.tau_ns <= shm::kMaxSpanNs && rule.limit.debt_max_ns <= shm::kMaxSpanNs,
            "no sum of times overflows");
    Require(rule.factor_q16 >= 1u << 16 && rule.then_factor_q16 >= 1u << 16,
            "a factor makes dearer");
    Require(rule.key_count <= shm::kMaxKeyParts, "a key of its bound");
  }
}

}  // namespace
}  // namespace sluice::config

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using sluice::config::PolicyHeader;
  static const std::string compiled = sluice::config::Compiled();
  std::string policy = compiled;
  sluice::fuzz::Input input(data, size);
  sluice::fuzz::Patch(&input, policy.data(), policy.size());
  PolicyHeader header;
  std::memcpy(&header, policy.data(), sizeof header);
  if (header.bytes >= sizeof header && header.bytes <= policy.size()) {
    const std::string_view body(policy.data() + sizeof header, header.bytes - sizeof header);
    header.crc32 = sluice::config::Crc32(body);
    std::memcpy(policy.data(), &header, sizeof header);
  }
  sluice::config::Check(policy);
  return 0;
}
