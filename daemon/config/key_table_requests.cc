// The keys of rules that let a request say more than what it costs: `outcomes`, how it ended, and
// `override`, under which limit.
#include "daemon/config/config.h"
#include "daemon/config/keys.h"

namespace sluice::config {
namespace {

constexpr KeySpec kRequestKeys[] = {
    {.path = "rules[].outcomes",
     .type = KeyType::kTexts,
     .max = shm::kMaxOutcomes,
     .doc = "What a request costs by how it ended, once that is reported: see [costs by "
            "outcome](outcomes.md). A status of three digits, or its first digit with xx, and "
            "`refund` or a number of tokens; a single status goes before its hundred.",
     .example = "{401: 5, 5xx: refund}"},
    {.path = "rules[].override",
     .type = KeyType::kSection,
     .doc = "Lets a request bring a limit of its own: see [limits that come with the "
            "request](given.md). For token buckets with `consistency: approximate`; tiers have it "
            "too."},
    {.path = "rules[].override.by",
     .type = KeyType::kText,
     .fallback = "limit",
     .min = 1,
     .max = 64,
     .doc = "The descriptor whose value is the limit, in tokens per the rule's period.",
     .example = "plan_limit"},
    {.path = "rules[].override.max",
     .type = KeyType::kInteger,
     .required = true,
     .min = 1,
     .max = static_cast<int64_t>(shm::kMaxTokens),
     .doc = "The largest limit that a request may bring; what is more counts as this.",
     .example = "1000"},
};

}  // namespace

absl::Span<const KeySpec> RequestKeys() { return kRequestKeys; }

}  // namespace sluice::config
