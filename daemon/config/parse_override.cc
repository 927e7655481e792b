// `override`: limits that requests bring.
#include "daemon/config/compile.h"
#include "daemon/config/parse_rules.h"
#include "daemon/config/text.h"
#include "shm/window.h"

namespace sluice::config {
namespace {

// Whether a limit of one token leaves a bucket that fills within what times are kept for, and a
// label has room for a limit behind it.
void CheckLimit(Section* rule, const std::string& label, const LimitConfig& limit, uint64_t max) {
  if (label.size() + shm::kMaxGivenBytes > shm::kMaxLabelBytes) {
    rule->Problem("override", Cat("has no room behind ", Shown(label), " in the names of buckets"),
                  Cat("write names of the rule and the tier with at most ",
                      shm::kMaxLabelBytes - shm::kMaxGivenBytes - 1, " bytes together"));
    return;
  }
  if (max > shm::kFineTokens && limit.period_ns < shm::window::kMinPeriodNs) {
    rule->Problem(
        "override",
        Cat("lets a request bring more tokens per ", FormatDuration(limit.period_ns),
            " than a host can count"),
        Cat("write a period of at least 1s, or a `max` of at most ", Grouped(shm::kFineTokens)));
    return;
  }
  const shm::Limit made = shm::MakeLimit(limit.limit, limit.period_ns, limit.burst);
  if (MostOf(made, limit.cost, max).tau_ns <= shm::kMaxSpanNs) return;
  rule->Problem("override",
                Cat("lets a request bring a limit of 1, whose bucket would take more than ",
                    FormatDuration(shm::kMaxSpanNs), " to fill"),
                "write a shorter period, a lower burst or a lower cost");
}

}  // namespace

void ParseOverride(Section* rule, RuleConfig* out, Findings* findings) {
  if (!rule->Has("override")) return;
  const auto is_leaky = [&] {
    bool leaky = out->limit && out->limit->max_delay_ns != 0;
    for (const TierConfig& tier : out->tiers) leaky = leaky || tier.limit.max_delay_ns != 0;
    return leaky;
  };
  if (out->kind != shm::Kind::kTokenBucket || out->strict || out->overdraft || is_leaky()) {
    rule->Problem(
        "override",
        Cat("is for token buckets that hosts do not lend to each other, and this rule is ",
            out->strict                            ? "strict"
            : out->overdraft                       ? "an overdraft"
            : out->kind == shm::Kind::kTokenBucket ? "a leaky bucket"
            : out->kind == shm::Kind::kSlidingLog  ? "a log"
            : out->kind == shm::Kind::kInFlight    ? "of requests in flight"
                                                   : "a window"),
        MendOfKind(*out, "override"));
    return;
  }
  bool tries = out->candidate.has_value();
  for (const TierConfig& tier : out->tiers) tries = tries || tier.candidate;
  if (tries || out->penalty.is_any()) {
    rule->Problem("override",
                  tries ? "stands beside `candidate`, which tries one limit alone"
                        : "stands beside `penalty`, whose bans are of one limit",
                  "remove one of the two");
    return;
  }
  Section section(rule->Value("override"), rule->MarkOf("override"), rule->PathOf("override"),
                  rule->SpecPathOf("override"), findings);
  const size_t problems_before = findings->problem_count();
  OverrideConfig override;
  if (section.Read("by", &override.descriptor)) {
    CheckDescriptorName(override.descriptor, section.MarkOf("by"), section.PathOf("by"), findings);
  }
  section.Read("max", &override.max);
  if (findings->problem_count() != problems_before) return;
  if (out->limit && override.max < out->limit->limit) {
    section.Warning("max",
                    Cat("is below the rule's own limit of ", out->limit->limit,
                        ", which requests without one have"),
                    "write the highest limit that a plan has");
  }
  if (out->limit) CheckLimit(rule, out->name, *out->limit, override.max);
  for (const TierConfig& tier : out->tiers) {
    CheckLimit(rule, Cat(out->name, "@", tier.tier), tier.limit, override.max);
  }
  out->override = std::move(override);
}

}  // namespace sluice::config
