// `near`, `soft`, `metadata` and `retry_spread`: what answers tell beside yes and no.
#include <cmath>

#include "daemon/config/parse_rules.h"
#include "daemon/config/text.h"

namespace sluice::config {
namespace {

constexpr size_t kMaxMetadataName = 31;
constexpr size_t kMaxMetadataValue = 255;
constexpr double kNearOfNext = 0.8;
constexpr uint64_t kSecondNs = 1'000'000'000;

uint8_t Percent(double part) { return static_cast<uint8_t>(std::lround(part * 100)); }

void ParseLevels(Section* rule, RuleConfig* out, Findings* findings) {
  double next = 1;
  const YAML::Node node = rule->Value("soft");
  if (node.IsDefined() && node.IsScalar()) {
    rule->Problem("soft", Cat(Shown(node.Scalar()), " is a single value, not a mapping"),
                  "write `soft: {at: 0.9}`");
  } else if (node.IsDefined()) {
    Section soft(node, rule->MarkOf("soft"), rule->PathOf("soft"), rule->SpecPathOf("soft"),
                 findings);
    if (soft.ReadNumber("at", &next)) out->soft_percent = Percent(next);
  }
  double near = kNearOfNext * next;
  if (rule->ReadNumber("near", &near) && near >= next && out->soft_percent != 0) {
    rule->Problem("near", "is not below `soft.at`: no answer would say it",
                  "write a lower number, or remove the line for 0.8 of `soft.at`");
  }
  out->near_percent = std::max<uint8_t>(Percent(near), 1);
}

void ParseMetadata(Section* rule, RuleConfig* out, Findings* findings) {
  const YAML::Node node = rule->Value("metadata");
  if (!node.IsDefined()) return;
  const std::string path = rule->PathOf("metadata");
  if (!node.IsMap() || node.size() > shm::kMaxMetadata) {
    rule->Problem("metadata",
                  node.IsMap() ? Cat("holds ", node.size(), " texts")
                               : Cat("is ", KindOf(node), ", not a mapping"),
                  Cat("write at most ", shm::kMaxMetadata, ", as in `{plan: free}`"));
    return;
  }
  for (const Entry& entry : ReadEntries(node, path, findings)) {
    const bool is_text = entry.value.IsScalar();
    if (entry.name.empty() || entry.name.size() > kMaxMetadataName || !is_text ||
        entry.value.Scalar().size() > kMaxMetadataValue) {
      findings->Problem(
          entry.mark, Cat(path, ".", entry.name),
          is_text ? "is too long, or has no name" : Cat("is ", KindOf(entry.value), ", not a text"),
          Cat("write a name of 1 to ", kMaxMetadataName, " bytes and a text of at most ",
              kMaxMetadataValue));
      continue;
    }
    out->metadata.emplace_back(entry.name, entry.value.Scalar());
  }
}

void ParseSpread(Section* rule, RuleConfig* out) {
  uint64_t said_ns = 0;
  if (!rule->ReadDuration("retry_spread", &said_ns)) return;
  if (out->kind != shm::Kind::kTokenBucket || out->strict || out->overdraft) {
    rule->Problem("retry_spread",
                  "is for token and leaky buckets that hosts do not lend to each other",
                  MendOfKind(*out, "retry_spread"));
  } else if (said_ns % kSecondNs != 0) {
    rule->Problem("retry_spread", "is told in whole seconds", "write for example 30s");
  } else {
    out->retry_spread_ns = said_ns;
  }
}

}  // namespace

void ParseAnswers(Section* rule, RuleConfig* out, Findings* findings) {
  ParseLevels(rule, out, findings);
  ParseMetadata(rule, out, findings);
  ParseSpread(rule, out);
}

}  // namespace sluice::config
