// The keys of rules that say what is denied beside the limit: `candidate`, which only would, and
// `penalty`.
#include "daemon/config/config.h"
#include "daemon/config/keys.h"

namespace sluice::config {
namespace {

constexpr int64_t kMs = 1'000'000;
constexpr int64_t kSecond = 1000 * kMs;
constexpr int64_t kMillion = 1'000'000;

constexpr KeySpec kDenialKeys[] = {
    {.path = "rules[].candidate",
     .type = KeyType::kSection,
     .doc =
         "A limit that is tried beside the one in force: it counts what it would deny, and never "
         "denies. What it leaves out is as in the limit beside it, and what it says that limit "
         "says too: `sluicectl promote` exchanges them. Not for `consistency: strict`. See "
         "[candidates](candidate.md).",
     .example = "{limit: 50/s, burst: 100}"},
    {.path = "rules[].candidate.limit",
     .type = KeyType::kRate,
     .required = true,
     .min = 1,
     .max = static_cast<int64_t>(shm::kMaxTokens),
     .doc = "As `limit`.",
     .example = "50/s"},
    {.path = "rules[].candidate.burst",
     .type = KeyType::kInteger,
     .fallback = "the burst beside it",
     .min = 1,
     .max = static_cast<int64_t>(shm::kMaxTokens),
     .doc = "As `burst`.",
     .example = "100"},
    {.path = "rules[].candidate.cost",
     .type = KeyType::kInteger,
     .fallback = "the cost beside it",
     .min = 1,
     .max = kMillion,
     .doc = "As `cost`.",
     .example = "2"},
    {.path = "rules[].candidate.max_delay",
     .type = KeyType::kDuration,
     .fallback = "the max_delay beside it",
     .min = kMs,
     .max = kMaxDelayNs,
     .doc = "As `max_delay`.",
     .example = "500ms"},
    {.path = "rules[].tiers.*.candidate",
     .type = KeyType::kSection,
     .doc = "As the rule's own, of this tier: a rule's candidate is not its tiers'.",
     .example = "{limit: 2000/s}"},
    {.path = "rules[].penalty",
     .type = KeyType::kSection,
     .doc = "What follows denials, over all hosts: see [penalties](penalty.md). For token buckets "
            "with `consistency: approximate` and without `priority`; tiers have it too.",
     .example = "{after: 20 per 10s, for: 1h}"},
    {.path = "rules[].penalty.after",
     .type = KeyType::kRate,
     .min = 1,
     .max = 1'000'000'000,
     .doc = "So many denials of one bucket, within so long from the first of them (1s to "
            "1d), and its key is banned: all it asks is denied.",
     .example = "20 per 10s"},
    {.path = "rules[].penalty.for",
     .type = KeyType::kDuration,
     .min = kSecond,
     .max = kMaxBanNs,
     .doc = "How long a ban lasts. Needed with `after`.",
     .example = "1h"},
    {.path = "rules[].penalty.deny_costs",
     .type = KeyType::kInteger,
     .fallback = "0",
     .max = kMillion,
     .doc = "Tokens that each denial costs, so that who goes on asking waits for longer; the debt "
            "ends at twice the burst, or a second beyond it.",
     .example = "1"},
};

}  // namespace

absl::Span<const KeySpec> DenialKeys() { return kDenialKeys; }

}  // namespace sluice::config
