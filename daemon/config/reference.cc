// docs/configuration.md, from the key table. A test compares the file with what stands here.
#include "daemon/config/config.h"
#include "daemon/config/keys.h"
#include "daemon/config/text.h"

namespace sluice::config {
namespace {

constexpr std::string_view kHead = R"(# Configuration reference

<!-- Made by `sluiced --print-config-reference`. Change daemon/config/, not this file. -->

`sluiced --config FILE` reads one YAML file. `sluiced --config FILE --check-config` reads it and says
what is wrong, each problem with its line, its column and what to write instead. A changed file, or
SIGHUP, is read anew; a file with problems changes nothing: the limits in force stay, and the log
says so. Keys that are not listed here are errors.

The smallest useful file:

```yaml
rules:
  - name: per-user
    key: [user]
    limit: 100/s
```

**Limits** are tokens per time: `100/s`, `10/m`, `5000/h`, `1/d`, `1 per 10s`, `100 per 1m30s`.
**Durations** are whole numbers with the units d, h, m, s and ms, the largest first: `100ms`, `10s`,
`1m30s`, `7d`. Whole numbers may be grouped: `1_000_000`.

)";

constexpr std::string_view kMatch = R"(## match

A mapping of descriptor names to what their values must be. All conditions must hold, and a
descriptor that the request does not have fails its condition.

| written | holds for |
| --- | --- |
| `route: /v1/login` | this value exactly |
| `route: /v1/*` | values that begin with `/v1/` |
| `route: "*"` | any value, as long as there is one |
| `route: /v?/*/search` | a pattern: `*` is any text (`/` too), `?` any one byte |
| `method: [GET, HEAD]` | one of these, compared exactly |
| `path: ["/a*b"]` | exactly `/a*b`: in a list `*` and `?` are plain |

Values that begin with `*` need quotes in YAML. Upper and lower case differ.

)";

constexpr std::string_view kKey = R"(## key

Each different combination of these descriptors' values has a bucket of its own.

| written | one bucket for each |
| --- | --- |
| `[user]` | user |
| `[tenant, user]` | user of a tenant |
| `[ip]` | IPv4 address, and IPv6 network of 64 bits: what one subscriber gets |
| `[ip/24]` | IPv4 network of 24 bits (0 to 32 bits are IPv4), IPv6 as above |
| `[ip/48]` | IPv6 network of 48 bits (33 to 128 bits are IPv6), IPv4 as above |
| `["ip/24,48"]` or `[{ip: {v4: 24, v6: 48}}]` | both |
| `[tenant, {user: {private: true}}]` | user of a tenant, named outside the host by a hash: [privacy](privacy.md) |
| `[]` | the rule itself: all requests that match share one bucket |

A descriptor of any name takes a prefix length: `[client/24]`; only `ip` has one by itself. Addresses
are written one way before they are compared: `[2001:DB8::1]:443` and `2001:db8:0::2` are the same
network, `::ffff:203.0.113.7` is `203.0.113.7`, and ports and zones are left out. A value that is no
address makes a bucket as it stands.

)";

constexpr std::string_view kAlgorithms = R"(## Algorithms

```yaml
rules:
  - name: user          # a token bucket: 200 at once after a rest, then 100 a second
    key: [user]
    limit: 100/s
    burst: 200
  - name: partner       # a leaky bucket: one each 50 ms, who comes too early waits up to 2 s
    key: [account]
    algorithm: leaky_bucket
    limit: 20/s
    max_delay: 2s
  - name: quota         # a fixed window: 10,000 from an account's first request on, for an hour
    key: [account]
    algorithm: fixed_window
    limit: 10000/h
  - name: minute        # a sliding window: about 100 tokens in any minute, two a request
    key: [account]
    algorithm: sliding_window
    limit: 100/m
    cost: 2
  - name: exports       # a sliding log: never more than 20 in an hour, wherever it begins
    key: [account]
    algorithm: sliding_log
    limit: 20/h
  - name: at-once       # requests in flight: never more than 10 of an account's under way
    key: [account]
    in_flight: 10
```

Which one for what: [choosing](choosing.md#the-algorithm).

)";

constexpr std::string_view kDegraded = R"(## when_degraded

What a rule does while the Redis primary of its bucket cannot be reached, or answers so late that
use older than half a second (or than five flush intervals, where that is longer) is not reconciled.

| written | what happens |
| --- | --- |
| nothing | each host goes on with its last share of the limit |
| `{mode: open, alert: true}` | everything is allowed, and an alert is raised |
| `{mode: closed}` | everything is rejected |
| `{mode: degrade, factor: 0.25}` | a quarter of the host's share is allowed |
| `{mode: degrade, factor: 0.25, for: 60s, then: closed}` | a quarter for a minute, then nothing |

)";

constexpr std::string_view kEdges = R"(## Bounds and edges

- `limit: 0/s` is an error: limits start at 1. To all but block write `1 per 366d` with `burst: 1`.
- A `cost` of 0, or above the burst, is an error: it would admit everything, or nothing. A request may
  bring a larger cost of its own; one that no full bucket covers is denied, and is told that no wait
  helps.
- `1/d` with `burst: 1` and periods up to a year and a day are good; burst x period / limit is at
  most 366 days.
- A window's period is at least 1s: where it ends is kept in steps of 8.4 ms. `burst` and `max_delay` are
  not for windows and logs, where all of the limit may be used at once. A sliding log's limit is at most
  4,096; above what the running daemon has room for, a larger one needs a restart.
- A limit is kept in whole nanoseconds, rounded to the strict side. Where that costs more than 0.1 %
  (above some millions per second) loading says so.
- Over several hosts a limit is used in full when its burst covers two flush intervals; where it does
  not, loading says so.
- At most )";

std::string Cell(std::string_view text) {
  std::string cell;
  for (const char c : text) {
    if (c == '|') cell += '\\';
    cell += c;
  }
  return cell;
}

std::string Default(const KeySpec& spec) {
  if (spec.required) return "required";
  if (spec.fallback.empty()) return "none";
  return spec.fallback.find(' ') == std::string_view::npos ? Cat("`", spec.fallback, "`")
                                                           : std::string(spec.fallback);
}

std::string ValueOf(const KeySpec& spec) {
  if (spec.type == KeyType::kSections && spec.path != "rules") return "a mapping of sections";
  return DescribeType(spec);
}

void AppendSection(const KeySpec& section, std::string* out) {
  *out += Cat("### ", section.path, "\n\n", section.doc, "\n\n");
  *out += "| key | value | default | meaning | example |\n| --- | --- | --- | --- | --- |\n";
  std::string within(section.path);
  if (section.type == KeyType::kSections) within += section.path == "rules" ? "[]" : ".*";
  for (const std::string_view name : KeysWithin(within)) {
    const KeySpec* spec = FindKey(Cat(within, ".", name));
    if (spec == nullptr) continue;
    const std::string example =
        spec->example.empty() ? "" : Cat("`", Cell(Cat(name, ": ", spec->example)), "`");
    *out += Cat("| `", name, "` | ", Cell(ValueOf(*spec)), " | ", Cell(Default(*spec)), " | ",
                Cell(spec->doc), " | ", example, " |\n");
  }
  *out += "\n";
}

}  // namespace

std::string RenderConfigReference() {
  std::string out(kHead);
  out +=
      "## Keys\n\nAt the top of the file stand `daemon`, `redis`, `privacy` and `rules`; only "
      "`rules` is "
      "required.\n\n";
  for (const KeySpec& spec : AllKeys()) {
    const bool has_keys = spec.type == KeyType::kSection || spec.type == KeyType::kSections ||
                          spec.path == "rules[].consistency";
    // Sections under a name of the file's choice are those of the same name without.
    const bool is_alias = spec.type == KeyType::kSection && spec.path.find("*.") != spec.path.npos;
    if (has_keys && !is_alias) AppendSection(spec, &out);
  }
  out += kMatch;
  out += kKey;
  out += kAlgorithms;
  out += kDegraded;
  out += kEdges;
  out += Cat(Grouped(shm::kMaxGroups), " rules, ", Grouped(shm::kMaxRules),
             " limits (a tier counts as one), ", shm::kMaxNames, " different descriptors, and ",
             shm::kPolicyBufferBytes / 1024,
             " KiB of them compiled: about 1,900 limits. A rule with a key serves any number of "
             "users.\n");
  return out;
}

}  // namespace sluice::config
