#include <vector>

#include "daemon/config/config.h"
#include "daemon/config/keys.h"
#include "daemon/config/units.h"
#include "shm/layout.h"
#include "shm/policy_view.h"

namespace sluice::config {
namespace {

constexpr int64_t kMs = 1'000'000;
constexpr int64_t kSecond = 1000 * kMs;
constexpr int64_t kDay = 86'400 * kSecond;
constexpr int64_t kMillion = 1'000'000;

// Shared by a rule's own limit and those of its tiers.
constexpr std::string_view kBurstDoc =
    "How many tokens may be spent at once after a rest. burst x period / limit is at most 366 "
    "days.";
constexpr std::string_view kMaxDelayDoc =
    "For leaky_bucket, which needs it: how long a request may wait for its turn. One that would "
    "wait "
    "longer is denied. `burst` requests pass at once; left out, it is one.";
constexpr std::string_view kCostDoc =
    "Tokens that one unit of a request's cost takes. At most the burst, else nothing would ever "
    "be allowed.";
constexpr std::string_view kLimitDoc =
    "Tokens per period. Units are s, m, h and d; any duration from 1ms to 400d does for a period. "
    "With `calendar`: per day, week, month or year.";

constexpr std::string_view kInFlightDoc =
    "In place of `limit`: how many requests of a key may be under way at once, each from `enter` "
    "to "
    "`leave`: over all hosts where there is a Redis, else on this one. See [in "
    "flight](in-flight.md).";

constexpr KeySpec kDaemonKeys[] = {
    {.path = "daemon",
     .type = KeyType::kSection,
     .doc = "The process itself. All of it may be left out."},
    {.path = "daemon.runtime_dir",
     .type = KeyType::kText,
     .fallback = "/run/sluice",
     .min = 1,
     .max = 90,  // "/attach.sock" behind it still fits a socket's address
     .doc = "Absolute path of the folder of attach.sock (for clients) and admin.sock (for "
            "operators).",
     .example = "/run/sluice"},
    {.path = "daemon.buckets",
     .type = KeyType::kInteger,
     .fallback = "131072",
     .min = static_cast<int64_t>(shm::kMinCapacity),
     .max = static_cast<int64_t>(shm::kMaxCapacity),
     .doc = "How many buckets this host keeps, rounded up to a power of two. Plan twice as many "
            "as are live at once; each takes about 180 bytes of shared memory. Read at start: a "
            "reload does not change it.",
     .example = "1048576"},
    {.path = "daemon.log_keys",
     .type = KeyType::kInteger,
     .fallback = "1024",
     .min = static_cast<int64_t>(shm::kMinLogRows),
     .max = static_cast<int64_t>(shm::kMaxLogRows),
     .doc =
         "How many buckets of `sliding_log` and `in_flight` rules this host keeps, rounded up to a "
         "power of two: the first of `buckets`, with 8 bytes for each token or place of the "
         "largest "
         "limit of such a rule. Plan twice as many as are live at once. Read at start, as that "
         "limit is: a "
         "larger one needs a restart, with fresh buckets.",
     .example = "4096"},
    {.path = "daemon.checkpoints",
     .type = KeyType::kText,
     .min = 2,
     .max = 4096,
     .doc = "Absolute path of a file in which the used part of quotas by the calendar is kept, for "
            "when Redis has lost its data: see "
            "[checkpoints](choosing.md#when-redis-loses-its-data). Left out: none is kept. Read at "
            "start.",
     .example = "/var/lib/sluice/quotas.db"},
    {.path = "daemon.group",
     .type = KeyType::kText,
     .min = 1,
     .max = 32,
     .doc = "Group that may attach: it becomes the group of attach.sock. Left out, the socket "
            "keeps the daemon's own group.",
     .example = "sluice"},
    {.path = "daemon.log_level",
     .type = KeyType::kChoice,
     .fallback = "info",
     .choices = "debug|info|warning|error",
     .doc = "The least severe messages that are written.",
     .example = "warning"},
    {.path = "daemon.chaos",
     .type = KeyType::kSection,
     .doc = "Faults on purpose, for staging: what `sluicectl chaos` may do here."},
    {.path = "daemon.chaos.allow",
     .type = KeyType::kBool,
     .fallback = "false",
     .doc = "Whether faults may be injected at all. A reload that forbids it ends one that is on.",
     .example = "true"},
    {.path = "daemon.chaos.max_for",
     .type = KeyType::kDuration,
     .fallback = "5m",
     .min = kSecond,
     .max = 3600 * kSecond,
     .doc = "The longest that one fault may last.",
     .example = "1m"},
    {.path = "daemon.chaos.max_share",
     .type = KeyType::kNumber,
     .fallback = "1",
     .min = kMillion / 10'000,
     .max = kMillion,
     .doc = "The most of the calls, shards or buckets that one fault may touch; 0.1 is a tenth. "
            "Below 1, faults of the whole daemon are refused.",
     .example = "0.1"},
    {.path = "daemon.chaos.rules",
     .type = KeyType::kTextList,
     .min = 1,
     .max = shm::kMaxGroups,
     .doc = "Names of the rules that may be put in emergency. Then only that fault is allowed, "
            "since all others touch every rule. Left out: all.",
     .example = "[generate, search]"},
};

constexpr KeySpec kPrivacyKeys[] = {
    {.path = "privacy",
     .type = KeyType::kSection,
     .doc = "For keys with `private: true`, which need it: see [privacy](privacy.md)."},
    {.path = "privacy.keys_file",
     .type = KeyType::kText,
     .required = true,
     .min = 1,
     .max = 4096,
     .doc = "Absolute path of a file with the secrets that private values are hashed with, or "
            "credential:NAME of systemd's LoadCredential=. A line for each, `ID HEX`, the one in "
            "use first; the same on all hosts. Read with the configuration, so a change of the "
            "file alone needs a reload.",
     .example = "/etc/sluice/private.keys"},
};

constexpr KeySpec kRuleKeys[] = {
    {.path = "rules",
     .type = KeyType::kSections,
     .required = true,
     .max = shm::kMaxGroups,
     .doc = "The limits. All rules that match a request apply, the strictest decides, and a "
            "request that one of them rejects spends nothing in any. `rules: []` limits nothing."},
    {.path = "rules[].name",
     .type = KeyType::kText,
     .required = true,
     .min = 2,
     .max = 32,
     .doc = "Names the rule in answers, metrics, logs and Redis. Lower-case letters, digits and "
            "_ . - only. A rule that changes its name starts with fresh buckets.",
     .example = "user-default"},
    {.path = "rules[].match",
     .type = KeyType::kMatch,
     .fallback = "{}",
     .max = shm::kMaxConditions,
     .doc = "What a request's descriptors must be for the rule to apply; see [match](#match). "
            "Left out: the rule applies to each request that has the descriptors of its key.",
     .example = "{route: /v1/*, method: [GET, HEAD]}"},
    {.path = "rules[].key",
     .type = KeyType::kKey,
     .required = true,
     .max = shm::kMaxKeyParts,
     .doc = "The descriptors whose values make the bucket; see [key](#key). A request that lacks "
            "one of them is not subject to the rule. `key: []` is one bucket for all.",
     .example = "[tenant, user]"},
    {.path = "rules[].limit",
     .type = KeyType::kRate,
     .min = 1,
     .max = static_cast<int64_t>(shm::kMaxTokens),
     .doc = kLimitDoc,
     .example = "100/s"},
    {.path = "rules[].in_flight",
     .type = KeyType::kInteger,
     .min = 1,
     .max = shm::kMaxLogEntries,
     .doc = kInFlightDoc,
     .example = "100"},
    {.path = "rules[].burst",
     .type = KeyType::kInteger,
     .fallback = "the limit's tokens",
     .min = 1,
     .max = static_cast<int64_t>(shm::kMaxTokens),
     .doc = kBurstDoc,
     .example = "200"},
    {.path = "rules[].cost",
     .type = KeyType::kInteger,
     .fallback = "1",
     .min = 1,
     .max = kMillion,
     .doc = kCostDoc,
     .example = "1"},
    {.path = "rules[].algorithm",
     .type = KeyType::kChoice,
     .fallback = "token_bucket",
     .choices = "token_bucket|leaky_bucket|fixed_window|sliding_window|sliding_log",
     .doc =
         "Buckets: tokens come back steadily, up to the burst; a token bucket denies a request "
         "that comes too early, a leaky bucket lets it wait for its turn, up to `max_delay`. "
         "Windows of the limit's period, at least 1s, and without a burst: a fixed one begins with "
         "the first request and gives all back at its end, a sliding one as it moves on. A sliding "
         "log remembers each token: exact on a host, for limits up to 4096 and any period. See "
         "[choosing](choosing.md#the-algorithm).",
     .example = "leaky_bucket"},
    {.path = "rules[].calendar",
     .type = KeyType::kSection,
     .doc =
         "For fixed_window: windows of a day, a week, a month or a year that begin and end where "
         "the calendar says, the same for all buckets and on all hosts. The limits are `N/day`, "
         "`N/week`, `N/month` or `N/year`. See [calendars](choosing.md#by-the-calendar)."},
    {.path = "rules[].calendar.time_zone",
     .type = KeyType::kText,
     .fallback = "UTC",
     .min = 1,
     .max = 64,
     .doc =
         "The IANA name of the zone whose calendar it is. All hosts need the same time zone data.",
     .example = "Europe/Berlin"},
    {.path = "rules[].calendar.anchor_day",
     .type = KeyType::kInteger,
     .fallback = "1",
     .min = 1,
     .max = 31,
     .doc = "Of the month on which months and years begin; in a shorter month on its last day.",
     .example = "31"},
    {.path = "rules[].calendar.anchor_month",
     .type = KeyType::kInteger,
     .fallback = "1",
     .min = 1,
     .max = 12,
     .doc = "In which years begin.",
     .example = "4"},
    {.path = "rules[].calendar.anchor_time",
     .type = KeyType::kText,
     .fallback = "00:00",
     .min = 5,
     .max = 5,
     .doc =
         "Of the day at which all begin, hours and minutes in that zone. Where summer time skips "
         "it, the change itself; where it comes twice, the first.",
     .example = "\"06:00\""},
    {.path = "rules[].calendar.week_start",
     .type = KeyType::kChoice,
     .fallback = "monday",
     .choices = "monday|tuesday|wednesday|thursday|friday|saturday|sunday",
     .doc = "On which weeks begin.",
     .example = "saturday"},
    {.path = "rules[].max_delay",
     .type = KeyType::kDuration,
     .min = kMs,
     .max = kMaxDelayNs,
     .doc = kMaxDelayDoc,
     .example = "500ms"},
    {.path = "rules[].consistency",
     .type = KeyType::kChoice,
     .fallback = "approximate",
     .choices = "approximate|strict|overdraft",
     .doc =
         "How hosts share the limit. strict never admits more than the limit and the burst over "
         "all hosts, in a window of any length. overdraft lets a host that holds nothing admit a "
         "little more, and pays it back. See "
         "[accuracy](accuracy.md). Without redis all are the same. Or a section, where there are "
         "[regions](regions.md).",
     .example = "strict"},
    {.path = "rules[].consistency.mode",
     .type = KeyType::kChoice,
     .required = true,
     .choices = "approximate|strict|overdraft",
     .doc = "As `consistency` alone.",
     .example = "strict"},
    {.path = "rules[].consistency.home",
     .type = KeyType::kHome,
     .fallback = "rendezvous",
     .doc = "For strict limits: the region whose cluster holds a bucket. By the values of a "
            "descriptor of the key, `default` for all others; or `rendezvous`, by a hash of the "
            "bucket's name; see [homes](regions.md#homes).",
     .example = "{tenant: {acme: eu, bolt: us}, default: us}"},
    {.path = "rules[].consistency.epoch",
     .type = KeyType::kInteger,
     .fallback = "0",
     .max = 1'000'000'000,
     .doc = "One higher with each change of `home` or of the names of redis.regions: so that the "
            "former home stops before the new one begins; see "
            "[moves](regions.md#moving-a-home).",
     .example = "1"},
    {.path = "rules[].wait",
     .type = KeyType::kDuration,
     .min = kMs,
     .max = kMaxWaitNs,
     .doc = "For a rule that lends (`strict`, `overdraft`): its callers may wait, and do for so "
            "long at most, see "
            "[check_wait](client.md#waiting-for-what-is-lent). A limit that brings less than a "
            "token in 50ms, or of more hosts than a third of the burst, is then passed through to "
            "Redis check by check, so that no host keeps a token that another needs. At least two "
            "round trips to Redis, or it serves nothing.",
     .example = "20ms"},
    {.path = "rules[].tier_by",
     .type = KeyType::kText,
     .fallback = "tier",
     .min = 1,
     .max = 64,
     .doc = "The descriptor whose value chooses among the tiers.",
     .example = "plan"},
    {.path = "rules[].tiers",
     .type = KeyType::kSections,
     .max = shm::kMaxRules,
     .doc = "Limits by the value of the `tier_by` descriptor. A request of no listed tier has the "
            "rule's own limit; a rule without a limit of its own does not apply to it. Each tier "
            "has buckets of its own. Tier names have letters, digits and _ . - and at most 31 of "
            "them.",
     .example = "{free: {limit: 10/s}, paid: {limit: 1000/s, burst: 2000}}"},
    {.path = "rules[].tiers.*.limit",
     .type = KeyType::kRate,
     .min = 1,
     .max = static_cast<int64_t>(shm::kMaxTokens),
     .doc = kLimitDoc,
     .example = "1000/s"},
    {.path = "rules[].tiers.*.in_flight",
     .type = KeyType::kInteger,
     .min = 1,
     .max = shm::kMaxLogEntries,
     .doc = kInFlightDoc,
     .example = "100"},
    {.path = "rules[].tiers.*.burst",
     .type = KeyType::kInteger,
     .fallback = "the limit's tokens",
     .min = 1,
     .max = static_cast<int64_t>(shm::kMaxTokens),
     .doc = kBurstDoc,
     .example = "2000"},
    {.path = "rules[].tiers.*.cost",
     .type = KeyType::kInteger,
     .fallback = "the rule's",
     .min = 1,
     .max = kMillion,
     .doc = kCostDoc,
     .example = "1"},
    {.path = "rules[].tiers.*.max_delay",
     .type = KeyType::kDuration,
     .fallback = "the rule's",
     .min = kMs,
     .max = kMaxDelayNs,
     .doc = kMaxDelayDoc,
     .example = "500ms"},
    {.path = "rules[].tiers.*.when_degraded",
     .type = KeyType::kSection,
     .fallback = "the rule's",
     .doc = "As the rule's own, and in its stead: keys left out have their defaults, not the "
            "rule's values.",
     .example = "{mode: closed}"},
    {.path = "rules[].priority",
     .type = KeyType::kSection,
     .doc = "Keeps part of each bucket for requests that matter more: see [priority](priority.md). "
            "For all limits per time; tiers have it too."},
    {.path = "rules[].priority.by",
     .type = KeyType::kText,
     .fallback = "class",
     .min = 1,
     .max = 64,
     .doc = "The descriptor whose value names a request's class.",
     .example = "importance"},
    {.path = "rules[].priority.classes",
     .type = KeyType::kParts,
     .required = true,
     .max = shm::kMaxClasses - 1,
     .doc = "The part of the burst, of a window or a log the part of the limit, that requests of a "
            "class may use; the rest stays for those of a larger part.",
     .example = "{critical: 1, normal: 0.8, sheddable: 0.5}"},
    {.path = "rules[].priority.otherwise",
     .type = KeyType::kText,
     .fallback = "the one that may use least",
     .min = 1,
     .max = 31,
     .doc = "The class of requests that bring none, or one that is not listed.",
     .example = "normal"},
    {.path = "rules[].near",
     .type = KeyType::kNumber,
     .fallback = "0.8 of soft.at, or of all",
     .min = kMillion / 100,
     .max = kMillion,
     .doc =
         "The part of what may be used from which on an answer's level is `near`, in hundredths; "
         "see [levels](client.md#levels).",
     .example = "0.75"},
    {.path = "rules[].soft",
     .type = KeyType::kSection,
     .doc = "A level between `near` and a denial: the request is allowed, and its answer says "
            "`soft`."},
    {.path = "rules[].soft.at",
     .type = KeyType::kNumber,
     .required = true,
     .min = kMillion / 100,
     .max = kMillion,
     .doc =
         "The part of what may be used from which on an answer's level is `soft`, in hundredths.",
     .example = "0.9"},
    {.path = "rules[].retry_spread",
     .type = KeyType::kDuration,
     .min = kSecond,
     .max = 480 * kSecond,
     .doc = "Whoever is denied together is told to come back one after the other, as fast as the "
            "limit "
            "lets them pass, spread over so long at most. Never earlier than there is a token. See "
            "[retries](client.md#retries).",
     .example = "30s"},
    {.path = "rules[].metadata",
     .type = KeyType::kTexts,
     .max = shm::kMaxMetadata,
     .doc = "Texts that answers of the rule carry to whoever asks for them by name: a plan, the "
            "page that explains the limit. Names have at most 31 bytes, values at most 255.",
     .example = "{plan: free, docs: /limits.html}"},
    {.path = "rules[].shadow",
     .type = KeyType::kBool,
     .fallback = "false",
     .doc = "Count and show what the rule would reject, but reject nothing: for trying a limit.",
     .example = "true"},
    {.path = "rules[].when_degraded",
     .type = KeyType::kSection,
     .doc = "What happens while Redis cannot be reached, or answers too late; see "
            "[when_degraded](#when_degraded). Left out: each host goes on with its last share of "
            "the limit; with `in_flight` nobody new is let in."},
    {.path = "rules[].when_degraded.mode",
     .type = KeyType::kChoice,
     .fallback = "degrade",
     .choices = "open|closed|degrade",
     .doc = "open allows all, closed rejects all, degrade goes on with the host's last share of "
            "the limit times `factor`.",
     .example = "degrade"},
    {.path = "rules[].when_degraded.factor",
     .type = KeyType::kNumber,
     .fallback = "1",
     .min = 100,
     .max = kMillion,
     .doc = "For mode degrade: the part of the share that is still allowed.",
     .example = "0.25"},
    {.path = "rules[].when_degraded.for",
     .type = KeyType::kDuration,
     .min = 100 * kMs,
     .max = 400 * kDay,
     .doc = "How long `mode` holds; `then` follows. Left out: as long as the outage.",
     .example = "60s"},
    {.path = "rules[].when_degraded.then",
     .type = KeyType::kChoice,
     .choices = "open|closed|degrade",
     .doc = "What follows when `for` is over, until the outage ends. Needed with `for`.",
     .example = "closed"},
    {.path = "rules[].when_degraded.then_factor",
     .type = KeyType::kNumber,
     .fallback = "the value of factor",
     .min = 100,
     .max = kMillion,
     .doc = "`factor` for `then: degrade`.",
     .example = "0.1"},
    {.path = "rules[].when_degraded.alert",
     .type = KeyType::kBool,
     .fallback = "false",
     .doc = "Raise an alert when this rule degrades and clear it when it has recovered, once "
            "each.",
     .example = "true"},
};

}  // namespace

absl::Span<const KeySpec> AllKeys() {
  static const std::vector<KeySpec> all = [] {
    std::vector<KeySpec> keys;
    for (const absl::Span<const KeySpec> part :
         {absl::Span<const KeySpec>(kDaemonKeys), RedisKeys(),
          absl::Span<const KeySpec>(kPrivacyKeys), absl::Span<const KeySpec>(kRuleKeys),
          DenialKeys(), RequestKeys()}) {
      keys.insert(keys.end(), part.begin(), part.end());
    }
    return keys;
  }();
  return all;
}

}  // namespace sluice::config
