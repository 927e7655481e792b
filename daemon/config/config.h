// The configuration as plain values: what sluice.yaml says, parsed, checked and with every default
// filled in. No YAML, no I/O. Made by ParseConfig; what it returns without problems keeps every
// range stated here, so nobody downstream checks them again.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "daemon/config/private_keys.h"
#include "shm/layout.h"
#include "shm/policy_view.h"

namespace sluice::config {

enum class LogLevel : uint8_t { kDebug, kInfo, kWarning, kError };
std::string_view LogLevelName(LogLevel level);  // as in the file: "debug", "info", ...

// What sluicectl chaos may do here.
struct ChaosConfig {
  bool allow = false;
  uint64_t max_for_ns = 300'000'000'000;  // 1 s..1 h
  double max_share = 1;                   // above 0, up to 1
  std::vector<std::string> rules;         // names; empty: all, and faults that touch all
};

struct DaemonConfig {
  std::string runtime_dir = "/run/sluice";  // absolute, at most 90 bytes; holds the two sockets
  std::string group;                        // of the attach socket; empty: leave as it is
  uint64_t buckets = 131'072;               // capacity, always a valid one (power of two)
  uint64_t log_keys = 1024;                 // rows for sliding logs: a power of two, <= buckets
  std::string checkpoints;  // absolute path of the file of quotas; empty: none is kept
  LogLevel log_level = LogLevel::kInfo;
  ChaosConfig chaos;

  std::string AttachSocketPath() const { return runtime_dir + "/attach.sock"; }
  std::string AdminSocketPath() const { return runtime_dir + "/admin.sock"; }
};

enum class RedisMode : uint8_t { kCluster, kSingle, kSentinel };
enum class Transport : uint8_t { kAuto, kIoUring, kEpoll };
std::string_view RedisModeName(RedisMode mode);       // "cluster", "single", "sentinel"
std::string_view TransportName(Transport transport);  // "auto", "io_uring", "epoll"

// All paths are absolute; certificate_file and key_file are both set or both empty.
struct TlsConfig {
  std::string ca_file;  // empty: the authorities that this machine trusts
  std::string certificate_file;
  std::string key_file;
  std::string server_name;  // empty: each node's own
  friend bool operator==(const TlsConfig&, const TlsConfig&) = default;
};

struct SentinelConfig {
  std::string master;         // the name under which sentinels watch the primary
  std::string username;       // empty: the default user
  std::string password;       // at most one of password and password_file is set
  std::string password_file;  // absolute; see ReadPassword in parse.h
  friend bool operator==(const SentinelConfig&, const SentinelConfig&) = default;
};

struct RedisConfig {
  std::vector<std::string> addresses;  // 1..64 of "host:port", "[v6]:port", "unix:/path"
  RedisMode mode = RedisMode::kCluster;
  std::string username;                         // empty: the default user
  std::string password;                         // at most one of password and password_file is set
  std::string password_file;                    // absolute; see ReadPassword in parse.h
  std::optional<SentinelConfig> sentinel;       // set if and only if mode is kSentinel
  std::optional<TlsConfig> tls;                 // absent: plain TCP; no address is a unix socket's
  std::string prefix = "rl";                    // [A-Za-z0-9_.-]{1,64}
  uint32_t shards = 64;                         // 1..kMaxShards
  uint64_t flush_interval_ns = 100'000'000;     // 10 ms..10 s
  uint64_t connect_timeout_ns = 1'000'000'000;  // 10 ms..60 s
  uint64_t request_timeout_ns = 250'000'000;    // the most a request may take; 25 ms..10 s
  Transport transport = Transport::kAuto;
  std::string host_name;  // empty: the machine's own (gethostname)
  std::string region;     // this host's, one of `regions`; empty: there are none
  // Each with its `region`, by name; none, or 2..kMaxRegions. What stands above is the own one's.
  std::vector<RedisConfig> regions;
  uint64_t exchange_ns = 1'000'000'000;  // 100 ms..2 s
  friend bool operator==(const RedisConfig&, const RedisConfig&) = default;
};

inline constexpr size_t kMaxRegions = 8;
// The own one first, then the others by name; empty without regions. The position in it is the
// index of a region everywhere in a daemon.
std::vector<std::string> RegionNames(const RedisConfig& redis);

// Whether what is used in windows so long is told to other regions. Shorter ones would be over
// before it is heard, and nobody could say in which of theirs it was.
inline bool IsWindowExchanged(const RedisConfig& redis, uint64_t period_ns) {
  return period_ns >= 4 * redis.exchange_ns;
}

enum class HomeBy : uint8_t { kNone, kRendezvous, kMap };

// In which region a strict rule's buckets are at home.
struct HomeConfig {
  HomeBy by = HomeBy::kNone;  // kNone: there are no regions, or the rule is not strict
  std::string descriptor;     // kMap: one of the key's, whose value decides
  std::vector<std::pair<std::string, std::string>> regions;  // kMap: value, region
  std::string fallback;                                      // kMap: region of all other values
  uint64_t epoch = 0;  // 0..10^9; higher with each change of the above or of the regions
};

// One condition of a rule. kExact and kPrefix and kGlob have one value; kOneOf has 1..kMaxOneOf.
// The value of kPrefix stands without its trailing '*'.
struct MatchConfig {
  std::string descriptor;
  shm::MatchOp op = shm::MatchOp::kExact;
  std::vector<std::string> values;
};

struct KeyConfig {
  std::string descriptor;
  shm::KeyForm form = shm::KeyForm::kRaw;
  uint8_t v4_bits = 32;     // kIp only
  uint8_t v6_bits = 64;     // kIp only
  bool is_private = false;  // its values leave the daemon as keyed hashes only
};

enum class CalendarUnit : uint8_t { kDay, kWeek, kMonth, kYear };
// The longest that a window of the unit lasts, but for changes of summer time.
uint64_t CalendarPeriodNs(CalendarUnit unit);

// Where the windows of a calendar begin.
struct CalendarConfig {
  CalendarUnit unit = CalendarUnit::kDay;
  std::string time_zone = "UTC";  // of the IANA data of this machine
  int month = 1;                  // 1..12; of years
  int day = 1;                    // 1..31, the last where a month has fewer; of months and years
  int minute = 0;                 // of the day, 0..1439
  int weekday = 0;                // 0: Monday..6: Sunday; of weeks
  // Equal for equal calendars.
  std::string ToString() const;
  friend bool operator==(const CalendarConfig&, const CalendarConfig&) = default;
};

// Invariant: cost <= burst, and burst * period / limit + max_delay <= kMaxTauNs.
struct LimitConfig {
  uint64_t limit = 0;         // tokens per period, 1..10^12
  uint64_t period_ns = 0;     // 1 ms..400 days
  uint64_t burst = 0;         // tokens, 1..10^12
  uint32_t cost = 1;          // tokens per unit of a request's cost, 1..10^6
  uint64_t max_delay_ns = 0;  // leaky_bucket: 1 ms..1 h; 0: a token bucket
  uint16_t calendar = 0;      // fixed_window: from 1, the place in Config::calendars; 0: none
};
inline constexpr uint64_t kMaxDelayNs = 3'600'000'000'000;  // of a leaky bucket
inline constexpr uint64_t kMaxWaitNs = 1'000'000'000;       // of callers of a strict rule
inline constexpr uint64_t kMaxTauNs = 366ull * 86'400'000'000'000;

// What a rule does while its shard is in emergency. `mode` holds for `for_ns`, then `then`.
struct DegradedConfig {
  shm::DegradedMode mode = shm::DegradedMode::kDegrade;  // open, closed or degrade
  double factor = 1.0;                                   // kDegrade: 0.0001..1, of the host's share
  uint64_t for_ns = 0;                                   // 0: `mode` holds for good
  shm::DegradedMode then = shm::DegradedMode::kDegrade;  // used when for_ns > 0
  double then_factor = 1.0;
  bool alert = false;
};

// Who may use how much of a rule's buckets, by the value of a descriptor.
struct PriorityConfig {
  std::string descriptor = "class";
  struct Class {
    std::string value;  // 1..31 bytes, unique
    double part = 1;    // of a bucket that requests of the class may use; above 0, up to 1
  };
  std::vector<Class> classes;  // 1..kMaxClasses - 1, in the order of the file
  double otherwise = 1;        // the part of requests of no class, or of one that is not listed
};

// What follows denials: each costs, and many in a while are followed by a ban.
struct PenaltyConfig {
  uint64_t after = 0;       // so many denials of one bucket, 1..10^9; 0: no ban
  uint64_t within_ns = 0;   // from the first of them on, 1 s..1 d
  uint64_t for_ns = 0;      // the ban lasts, 1 s..kMaxBanNs
  uint32_t deny_costs = 0;  // tokens, 0..10^6
  bool is_any() const { return after != 0 || deny_costs != 0; }
  // Equal for equal penalties.
  std::string ToString() const;
};
inline constexpr uint64_t kMaxBanNs = 30ull * 86'400'000'000'000;

struct TierConfig {
  std::string tier;  // [A-Za-z0-9_.-]{1,31}
  LimitConfig limit;
  std::optional<LimitConfig> candidate;
  DegradedConfig degraded;  // the rule's own unless the tier says otherwise
};

// What a request costs that ended with one of these statuses.
struct OutcomeConfig {
  uint16_t first_status = 0;
  uint16_t last_status = 0;
  uint64_t tokens = 0;
};

// Callers may bring a limit of their own.
struct OverrideConfig {
  std::string descriptor = "limit";
  uint64_t max = 0;  // tokens per the rule's period, 1..10^12
};

struct RuleConfig {
  std::string name;  // [a-z0-9_.-]{2,32}, unique
  std::vector<MatchConfig> match;
  std::vector<KeyConfig> key;        // empty: one bucket for all that matches
  std::optional<LimitConfig> limit;  // absent: the rule applies to its tiers only
  // Tried beside `limit`: counted, never enforced. Not of strict rules.
  std::optional<LimitConfig> candidate;
  DegradedConfig degraded;
  std::string tier_by = "tier";
  std::vector<TierConfig> tiers;             // in the order of the file; tier values are unique
  shm::Kind kind = shm::Kind::kTokenBucket;  // of word, by algorithm and consistency
  HomeConfig home;
  // consistency: strict or overdraft; its kind is kLease where there is a Redis.
  bool strict = false;
  bool overdraft = false;
  uint64_t wait_ns = 0;  // where it lends: 1 ms..kMaxWaitNs that its callers may wait; 0: not said
  std::vector<OutcomeConfig> outcomes;     // 0..shm::kMaxOutcomes; the first that holds counts
  std::optional<OverrideConfig> override;  // of token buckets that are not lent
  std::optional<PriorityConfig> priority;  // of limits per time
  uint8_t near_percent = 80;  // of what may be used: from there on answers say `near`, 1..100
  uint8_t soft_percent = 0;   // likewise, `soft`; 0: the rule has no such level
  std::vector<std::pair<std::string, std::string>> metadata;  // 0..kMaxMetadata, names are unique
  PenaltyConfig penalty;         // of token buckets that are neither lent nor have a priority
  uint64_t retry_spread_ns = 0;  // of token and leaky buckets: whole seconds, 1..8 min; 0: not said
  bool shadow = false;
  int line = 0;  // where it stands in the file, from 1; 0: not from a file

  bool IsPrivate() const {
    return std::any_of(key.begin(), key.end(),
                       [](const KeyConfig& part) { return part.is_private; });
  }
};

struct PrivacyConfig {
  std::string keys_file;                    // absolute, or a credential's; empty: no key is private
  std::shared_ptr<const PrivateKeys> keys;  // as read; null: not read
};

struct Config {
  DaemonConfig daemon;
  std::optional<RedisConfig> redis;  // absent: a complete limiter for this host alone
  PrivacyConfig privacy;
  std::vector<RuleConfig> rules;          // 0..kMaxGroups
  std::vector<CalendarConfig> calendars;  // of the limits, each once; 0..shm::kMaxCalendars
};

// Gives the calendars of `fresh` the places that they have in `former`; what stands in others may
// be gone from the rules.
void KeepCalendarPlaces(const std::vector<CalendarConfig>& former, Config* fresh);

// The rows that its sliding logs need, of the largest of their limits, rounded up to a power of
// two; none where no rule has one.
shm::LogShape LogsFor(const Config& config);

// As in the file: "token_bucket", "leaky_bucket", "fixed_window", "sliding_window", "sliding_log".
std::string_view AlgorithmName(shm::Kind kind, uint64_t max_delay_ns);

// The label under which a rule's limit is known everywhere: "name" or "name@tier".
std::string RuleLabel(const RuleConfig& rule, const TierConfig* tier);
// Behind such a label: its candidate. No name of a rule or a tier holds it.
inline constexpr std::string_view kCandidateMark = "?candidate";
// The name in such a label, or in a candidate's.
inline std::string RuleName(const std::string& label) {
  return label.substr(0, label.find_first_of("@?"));
}
// Every limit of a rule, candidates too.
template <class Rule, class Call>
void ForEachLimit(Rule& rule, const Call& call) {
  if (rule.limit) call(&*rule.limit);
  if (rule.candidate) call(&*rule.candidate);
  for (auto& tier : rule.tiers) {
    call(&tier.limit);
    if (tier.candidate) call(&*tier.candidate);
  }
}

}  // namespace sluice::config
