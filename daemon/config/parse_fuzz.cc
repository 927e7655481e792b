// Any text as a configuration: problems that name their places, or rules that compile, that the
// daemon's check accepts and that are read back as they were written.
#include "daemon/config/parse.h"

#include "daemon/config/compile.h"
#include "daemon/config/text.h"
#include "shm/fuzz_input.h"
#include "shm/policy_buffer.h"

namespace sluice::config {
namespace {

using fuzz::Require;

void CheckFindings(const std::vector<Finding>& findings) {
  Require(findings.size() <= kMaxProblems + 1, "not more than a person reads");
  for (const Finding& finding : findings) {
    Require(!finding.what.empty() && finding.line >= 0 && finding.column >= 0,
            "a place and a word");
    for (const char c : finding.ToString()) {
      Require(static_cast<unsigned char>(c) >= ' ' && c != 0x7f, "one line, fit for terminals");
    }
  }
}

void CheckRule(const RuleConfig& rule, const TierConfig* tier, const CompiledRules& compiled) {
  const LimitConfig& limit = tier != nullptr ? tier->limit : *rule.limit;
  const CompiledRule* found = compiled.Find(RuleLabel(rule, tier));
  Require(found != nullptr, "a rule is found by its label");
  Require(found->limit.limit == limit.limit && found->limit.period_ns == limit.period_ns &&
              found->limit.burst == limit.burst && found->cost == limit.cost,
          "a limit is read back as it was written");
  Require(limit.cost <= limit.burst && found->limit.tau_ns <= shm::kMaxSpanNs, "the stated ranges");
  Require(found->key_count == rule.key.size(), "a key is read back as it was written");
}

void Check(std::string_view text) {
  const ParseResult parsed = ParseConfig(text, "fuzz.yaml");
  CheckFindings(parsed.problems);
  CheckFindings(parsed.warnings);
  if (!parsed.ok()) return;
  const absl::StatusOr<std::string> policy = Compile(parsed.config, shm::HashKey{}, 1);
  Require(policy.ok(), "what parses compiles");
  Require(VerifyPolicy(*policy).ok() && shm::IsValidPolicy(*policy), "what compiles is whole");
  const absl::StatusOr<CompiledRules> compiled = CompiledRules::Load(*policy);
  Require(compiled.ok(), "what is whole loads");
  size_t count = 0;
  for (const RuleConfig& rule : parsed.config.rules) {
    for (const TierConfig& tier : rule.tiers) CheckRule(rule, &tier, *compiled);
    if (rule.limit) CheckRule(rule, nullptr, *compiled);
    count += rule.tiers.size() + (rule.limit ? 1 : 0);
  }
  Require(compiled->rules().size() == count, "no rule more");
}

}  // namespace
}  // namespace sluice::config

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  sluice::config::Check({reinterpret_cast<const char*>(data), size});
  return 0;
}
