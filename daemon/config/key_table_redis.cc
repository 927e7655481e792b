// The keys of the section `redis`, see key_table.cc.
#include "daemon/config/config.h"
#include "daemon/config/keys.h"
#include "daemon/config/units.h"
#include "shm/layout.h"

namespace sluice::config {
namespace {

constexpr int64_t kMs = 1'000'000;
constexpr int64_t kSecond = 1000 * kMs;

constexpr KeySpec kKeys[] = {
    {.path = "redis",
     .type = KeyType::kSection,
     .doc = "The Redis over which hosts share their limits. Without this section each host "
            "limits by itself, and needs nothing else."},
    {.path = "redis.addresses",
     .type = KeyType::kTextList,
     .min = 1,
     .max = 64,
     .doc = "Required, but where there are `regions`. Nodes to ask first, each as host:port, "
            "[ipv6]:port or unix:/path. In a cluster two "
            "or three are enough, the others are found from them. In mode sentinel: all sentinels.",
     .example = "[\"10.0.0.1:6379\", \"[2001:db8::7]:6379\"]"},
    {.path = "redis.mode",
     .type = KeyType::kChoice,
     .fallback = "cluster",
     .choices = "cluster|single|sentinel",
     .doc = "Redis Cluster, or one server that holds everything, or such a one with replicas that "
            "sentinels watch: they are the addresses then.",
     .example = "single"},
    {.path = "redis.username",
     .type = KeyType::kText,
     .min = 1,
     .max = 256,
     .doc = "The ACL user. Left out: the default user.",
     .example = "sluice"},
    {.path = "redis.password",
     .type = KeyType::kText,
     .min = 1,
     .max = 4096,
     .doc = "The password itself. Better: password_file.",
     .example = "\"...\""},
    {.path = "redis.password_file",
     .type = KeyType::kText,
     .min = 2,
     .max = 4096,
     .doc = "Absolute path of a file whose first line is the password, or credential:NAME of "
            "systemd's LoadCredential=. Read again at each connect: a new password needs no "
            "restart.",
     .example = "/etc/sluice/redis.password"},
    {.path = "redis.sentinel",
     .type = KeyType::kSection,
     .doc = "How to ask sentinels for the primary. Only with `mode: sentinel`, and needed there."},
    {.path = "redis.sentinel.master",
     .type = KeyType::kText,
     .required = true,
     .min = 1,
     .max = 256,
     .doc = "The name under which sentinels watch the primary: `sentinel monitor NAME` in their "
            "configuration.",
     .example = "mymaster"},
    {.path = "redis.sentinel.username",
     .type = KeyType::kText,
     .min = 1,
     .max = 256,
     .doc = "The ACL user on the sentinels. Left out: the default user.",
     .example = "sluice"},
    {.path = "redis.sentinel.password",
     .type = KeyType::kText,
     .min = 1,
     .max = 4096,
     .doc = "The password for the sentinels; that of the primary is not sent to them. Better: "
            "password_file.",
     .example = "\"...\""},
    {.path = "redis.sentinel.password_file",
     .type = KeyType::kText,
     .min = 2,
     .max = 4096,
     .doc = "The same for the sentinels: absolute path, or credential:NAME.",
     .example = "/etc/sluice/sentinel.password"},
    {.path = "redis.tls",
     .type = KeyType::kSection,
     .doc = "Written, even empty: every connection to Redis is under TLS 1.2 or newer, and the "
            "server's certificate is checked; see [TLS](redis.md#tls). The files are read again "
            "when they change."},
    {.path = "redis.tls.ca_file",
     .type = KeyType::kText,
     .min = 2,
     .max = 4096,
     .doc = "Absolute path of the certificates of the authorities that may sign a server's. Left "
            "out: those that this machine trusts.",
     .example = "/etc/sluice/redis-ca.pem"},
    {.path = "redis.tls.certificate_file",
     .type = KeyType::kText,
     .min = 2,
     .max = 4096,
     .doc = "Absolute path of the daemon's own certificate and those that lead to its authority, "
            "for servers that ask for one. Only with key_file.",
     .example = "/etc/sluice/redis-client.pem"},
    {.path = "redis.tls.key_file",
     .type = KeyType::kText,
     .min = 2,
     .max = 4096,
     .doc = "Absolute path (or credential:NAME) of the private key of that certificate, without a "
            "passphrase, readable by the daemon's user only.",
     .example = "/etc/sluice/redis-client.key"},
    {.path = "redis.tls.server_name",
     .type = KeyType::kText,
     .min = 1,
     .max = 253,
     .doc = "The name that every server's certificate must have. Left out: each node's own, as it "
            "is written in addresses or announced by the cluster.",
     .example = "redis.example.net"},
    {.path = "redis.prefix",
     .type = KeyType::kText,
     .fallback = "rl",
     .min = 1,
     .max = 64,
     .doc = "Head of every key in Redis. Hosts that share limits have the same prefix and the "
            "same number of shards.",
     .example = "rl"},
    {.path = "redis.shards",
     .type = KeyType::kInteger,
     .fallback = "64",
     .min = 1,
     .max = shm::kMaxShards,
     .doc = "Into how many keys of Redis the buckets are spread. Some twenty per primary spread "
            "well. A change starts all limits afresh, so choose once.",
     .example = "64"},
    {.path = "redis.flush_interval",
     .type = KeyType::kDuration,
     .fallback = "100ms",
     .min = 10 * kMs,
     .max = 10 * kSecond,
     .doc = "How often use is told to Redis. Shorter means closer to the limit over all hosts, "
            "and more calls. It grows by itself where Redis would get too many.",
     .example = "100ms"},
    {.path = "redis.connect_timeout",
     .type = KeyType::kDuration,
     .fallback = "1s",
     .min = 10 * kMs,
     .max = 60 * kSecond,
     .doc = "The most that a new connection may take, its greeting included.",
     .example = "1s"},
    {.path = "redis.request_timeout",
     .type = KeyType::kDuration,
     .fallback = "250ms",
     .min = 25 * kMs,
     .max = 10 * kSecond,
     .doc = "The most that one call may take. The time-out in force is four times the slowest "
            "percent of late, and never more than this. No check ever waits for it.",
     .example = "250ms"},
    {.path = "redis.transport",
     .type = KeyType::kChoice,
     .fallback = "auto",
     .choices = "auto|io_uring|epoll",
     .doc = "How to talk to the network. auto takes io_uring where the kernel allows it, else "
            "epoll.",
     .example = "epoll"},
    {.path = "redis.host_name",
     .type = KeyType::kText,
     .min = 1,
     .max = 64,
     .doc = "Under which name Redis lists this host's connections. Left out: the machine's own.",
     .example = "api-7"},

    {.path = "redis.region",
     .type = KeyType::kText,
     .min = 1,
     .max = 32,
     .doc = "In which of `regions` this host is. Needed with them.",
     .example = "us"},
    {.path = "redis.exchange",
     .type = KeyType::kDuration,
     .fallback = "1s",
     .min = 100 * kMs,
     .max = 2 * kSecond,
     .doc = "How often the clusters of other regions are told what was used here, of rules that "
            "each region counts by itself; see [regions](regions.md#local-limits).",
     .example = "1s"},
    {.path = "redis.regions",
     .type = KeyType::kSections,
     .max = kMaxRegions,
     .doc = "Several clusters, one for each region, in place of `addresses`: the same list on all "
            "hosts; see [regions](regions.md). Each has these keys of `redis`, and what it leaves "
            "out it "
            "has of there.",
     .example = "{eu: {addresses: [\"10.1.0.1:6379\"]}, us: {addresses: [\"10.2.0.1:6379\"]}}"},
};

}  // namespace

absl::Span<const KeySpec> RedisKeys() { return kKeys; }

}  // namespace sluice::config
