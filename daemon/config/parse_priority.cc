// `priority`: who may use how much of a rule's buckets.
#include <algorithm>

#include "absl/strings/numbers.h"
#include "daemon/config/parse_rules.h"
#include "daemon/config/text.h"
#include "shm/kinds.h"

namespace sluice::config {
namespace {

constexpr double kLeastPart = 0.0001;

// A part of a bucket, or 0 and a problem.
double ReadPart(const Entry& entry, const std::string& path, Findings* findings) {
  const std::string mend = "write a number from 0.0001 to 1, the part of a bucket it may use";
  if (!entry.value.IsScalar()) {
    findings->Problem(entry.mark, path, Cat("is ", KindOf(entry.value), ", not a number"), mend);
    return 0;
  }
  const std::string text = entry.value.Scalar();
  double part = 0;
  const bool is_plain = text.find_first_not_of("0123456789.") == std::string::npos;
  if (!is_plain || !absl::SimpleAtod(text, &part) || !(part >= kLeastPart) || !(part <= 1)) {
    findings->Problem(entry.mark, path, Cat(Shown(text), " is no part of a bucket"), mend);
    return 0;
  }
  return part;
}

void ReadClasses(Section* section, PriorityConfig* priority, Findings* findings) {
  const YAML::Node node = section->Value("classes");
  if (!node.IsDefined()) return;
  const std::string path = section->PathOf("classes");
  if (!node.IsMap() || node.size() == 0 || node.size() >= shm::kMaxClasses) {
    section->Problem("classes",
                     node.IsMap() ? Cat("holds ", node.size(), " classes")
                                  : Cat("is ", KindOf(node), ", not a mapping"),
                     Cat("write 1 to ", shm::kMaxClasses - 1,
                         ", as in `{critical: 1, normal: 0.8, sheddable: 0.5}`"));
    return;
  }
  for (const Entry& entry : ReadEntries(node, path, findings)) {
    if (entry.name.empty() || entry.name.size() > kMaxClassBytes) {
      findings->Problem(entry.mark, path, Cat(Shown(entry.name), " is no name of a class"),
                        Cat("write 1 to ", kMaxClassBytes, " bytes"));
      continue;
    }
    const double part = ReadPart(entry, Cat(path, ".", entry.name), findings);
    if (part > 0) priority->classes.push_back({entry.name, part});
  }
}

// Who says nothing of a class gets no priority by that: the least part, unless the rule says other.
void ReadOtherwise(Section* section, PriorityConfig* priority) {
  for (const PriorityConfig::Class& c : priority->classes) {
    priority->otherwise = std::min(priority->otherwise, c.part);
  }
  std::string name;
  if (!section->Read("otherwise", &name)) return;
  for (const PriorityConfig::Class& c : priority->classes) {
    if (c.value != name) continue;
    priority->otherwise = c.part;
    return;
  }
  section->Problem("otherwise", Cat(Shown(name), " is none of the classes"),
                   "write one of `classes`, or remove the line for the one that may use least");
}

// Whether a class may use less than a request takes. `bucket`: what a whole one is called.
void CheckLimit(Section* rule, std::string_view tier, const LimitConfig& limit,
                std::string_view bucket, const PriorityConfig& priority) {
  for (const PriorityConfig::Class& c : priority.classes) {
    if (c.part * static_cast<double>(limit.burst) >= static_cast<double>(limit.cost)) continue;
    const std::string of_tier = tier.empty() ? "" : Cat(" of tier ", tier);
    rule->Problem(
        "priority",
        Cat("the part ", c.part, " of class ", Shown(c.value), " is less than a request", of_tier,
            " takes: the ", bucket, " is ", limit.burst, ", the cost ", limit.cost),
        Cat("write a larger part, or a larger ", bucket));
  }
}

}  // namespace

void ParsePriority(Section* rule, RuleConfig* out, Findings* findings) {
  if (!rule->Has("priority")) return;
  if (out->kind == shm::Kind::kInFlight) {
    rule->Problem("priority", "is for limits per time, and this rule is of requests in flight",
                  "remove the line, or write `limit: 100/s` in place of `in_flight`");
    return;
  }
  Section section(rule->Value("priority"), rule->MarkOf("priority"), rule->PathOf("priority"),
                  rule->SpecPathOf("priority"), findings);
  const size_t problems_before = findings->problem_count();
  PriorityConfig priority;
  if (section.Read("by", &priority.descriptor)) {
    CheckDescriptorName(priority.descriptor, section.MarkOf("by"), section.PathOf("by"), findings);
  }
  ReadClasses(&section, &priority, findings);
  ReadOtherwise(&section, &priority);
  if (findings->problem_count() != problems_before) return;
  const std::string_view bucket = shm::IsCountedInWindows(out->kind) ? "limit" : "burst";
  if (out->limit) CheckLimit(rule, "", *out->limit, bucket, priority);
  for (const TierConfig& tier : out->tiers) {
    CheckLimit(rule, tier.tier, tier.limit, bucket, priority);
  }
  out->priority = std::move(priority);
}

}  // namespace sluice::config
