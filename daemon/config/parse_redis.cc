#include "daemon/config/parse_redis.h"

#include <algorithm>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "daemon/config/parse.h"
#include "daemon/config/text.h"
#include "daemon/config/units.h"

namespace sluice::config {
namespace {

constexpr size_t kMaxRegionNameBytes = 32;

// What is wrong with an address, or "".
std::string AddressFault(std::string_view address) {
  if (address.find("://") != std::string_view::npos) {
    return "write host:port alone; user and password have keys of their own";
  }
  if (address.substr(0, 5) == "unix:") {
    const std::string_view path = address.substr(5);
    if (path.empty() || path.front() != '/') return "write an absolute path, as in unix:/run/redis";
    return path.size() > 107 ? "a socket's path has at most 107 bytes" : "";
  }
  const size_t colon = address.rfind(':');
  const bool in_brackets = address.substr(0, 1) == "[";
  if (in_brackets && (colon == std::string_view::npos || colon < 1 || address[colon - 1] != ']')) {
    return Cat("write the port behind it, as in ", address.back() == ']' ? address : "[::1]",
               ":6379");
  }
  if (colon == std::string_view::npos) return Cat("write the port too, as in ", address, ":6379");
  const std::string_view host = address.substr(0, colon);
  if (!in_brackets && host.find(':') != std::string_view::npos) {
    return Cat("put an IPv6 address in brackets, as in \"[", host, "]:6379\"");
  }
  const auto port = ParseWhole(address.substr(colon + 1));
  if (!port.ok() || *port == 0 || *port > 65535) return "write a port from 1 to 65535";
  if (host.empty() || host.size() > 255) return "write the host's name or address first";
  return HasOnly(host, "._-:[]%") ? "" : "write the host's name or address and its port";
}

void ParseAddresses(Section* section, RedisConfig* redis, Findings* findings) {
  std::vector<std::pair<std::string, YAML::Mark>> addresses;
  if (!section->ReadTexts("addresses", &addresses)) return;
  for (auto& [address, mark] : addresses) {
    const std::string fault = AddressFault(address);
    if (!fault.empty()) {
      findings->Problem(mark, section->PathOf("addresses"),
                        Cat(Shown(address), " is no address of a node"), fault);
    } else if (std::find(redis->addresses.begin(), redis->addresses.end(), address) ==
               redis->addresses.end()) {
      redis->addresses.push_back(std::move(address));
    }
  }
  if (redis->mode == RedisMode::kSingle && addresses.size() > 1) {
    section->Warning("addresses", "mode single uses the first address only",
                     "write `mode: cluster`, or one address");
  }
}

// What redis and redis.sentinel both have.
template <class HasLogin>
void ParseLogin(Section* section, HasLogin* login, std::string_view example) {
  section->Read("username", &login->username);
  section->Read("password", &login->password);
  section->ReadPath("password_file", &login->password_file, example);
  if (section->Has("password") && section->Has("password_file")) {
    section->Problem("password_file", "there is a password as well", "keep one of the two");
  }
  if (section->Has("username") && !section->Has("password") && !section->Has("password_file")) {
    section->Warning("username", "is not sent without a password", "write `password_file`");
  }
}

void ParseSentinel(Section* redis_section, RedisConfig* redis, Findings* findings) {
  const bool wanted = redis->mode == RedisMode::kSentinel;
  if (!redis_section->Has("sentinel")) {
    if (!wanted || redis_section->Has("regions")) return;
    redis_section->Problem("mode", "sentinel needs the name of the primary",
                           "write `sentinel: {master: NAME}` under redis");
    return;
  }
  if (!wanted) {
    redis_section->Problem("sentinel", "has no effect in this mode",
                           "write `mode: sentinel`, or take it out");
  }
  Section section(redis_section->Value("sentinel"), redis_section->MarkOf("sentinel"),
                  redis_section->PathOf("sentinel"), redis_section->SpecPathOf("sentinel"),
                  findings);
  SentinelConfig& sentinel = redis->sentinel.emplace();
  section.Read("master", &sentinel.master);
  ParseLogin(&section, &sentinel, "/etc/sluice/sentinel.password");
}

void ParseTls(Section* redis_section, RedisConfig* redis, Findings* findings) {
  if (!redis_section->Has("tls")) return;
  Section section(redis_section->Value("tls"), redis_section->MarkOf("tls"),
                  redis_section->PathOf("tls"), redis_section->SpecPathOf("tls"), findings);
  TlsConfig& tls = redis->tls.emplace();
  section.ReadPath("ca_file", &tls.ca_file, "/etc/sluice/redis-ca.pem");
  section.ReadPath("certificate_file", &tls.certificate_file, "/etc/sluice/redis-client.pem");
  section.ReadPath("key_file", &tls.key_file, "/etc/sluice/redis-client.key");
  if (section.Has("certificate_file") != section.Has("key_file")) {
    const bool has_key = section.Has("key_file");
    section.Problem(has_key ? "key_file" : "certificate_file", "stands alone",
                    has_key ? "write `certificate_file` too" : "write `key_file` too");
  }
  if (section.Read("server_name", &tls.server_name) && !HasOnly(tls.server_name, "_-.:")) {
    section.Problem("server_name", Cat(Shown(tls.server_name), " is no name of a host"),
                    "write a DNS name or an IP address, without a port");
  }
}

void CheckTls(Section* section, const RedisConfig& redis) {
  for (const std::string& address : redis.addresses) {
    if (!redis.tls || !address.starts_with("unix:")) continue;
    section->Problem("tls", Cat("there is no TLS over ", Shown(address)),
                     "write host:port, or take `tls` out");
  }
}

// What each region has of its own, and where there are none `redis` itself.
void ParseServers(Section* section, RedisConfig* redis, Findings* findings) {
  if (size_t mode = 0; section->ReadChoice("mode", &mode)) {
    redis->mode = static_cast<RedisMode>(mode);
  }
  ParseAddresses(section, redis, findings);
  ParseLogin(section, redis, "/etc/sluice/redis.password");
  ParseSentinel(section, redis, findings);
  ParseTls(section, redis, findings);
  CheckTls(section, *redis);
  section->ReadDuration("connect_timeout", &redis->connect_timeout_ns);
  section->ReadDuration("request_timeout", &redis->request_timeout_ns);
}

bool IsRegionName(std::string_view name) {
  return !name.empty() && name.size() <= kMaxRegionNameBytes && HasOnly(name, "_-");
}

// `redis` has all that stands outside of `regions` already; the regions take it over.
void ParseRegions(Section* section, RedisConfig* redis, Findings* findings) {
  if (!section->Has("regions")) {
    if (section->Has("region")) {
      section->Problem("region", "has no effect: there are no regions",
                       "write `regions` beside it, or remove the line");
    }
    if (section->Has("exchange")) {
      section->Warning("exchange", "has no effect: there are no regions", "remove the line");
    }
    if (!section->Has("addresses")) {
      section->Problem("addresses", "is missing",
                       "write for example `addresses: [\"10.0.0.1:6379\"]`, or `regions`");
    }
    return;
  }
  for (const char* const key : {"addresses", "sentinel"}) {
    if (section->Has(key)) {
      section->Problem(key, "has no place beside `regions`", "write it under each region");
    }
  }
  section->ReadDuration("exchange", &redis->exchange_ns);
  const YAML::Node node = section->Value("regions");
  if (!node.IsMap() || node.size() < 2 || node.size() > kMaxRegions) {
    section->Problem(
        "regions",
        node.IsMap() ? Cat("holds ", node.size()) : Cat("is ", KindOf(node), ", not a mapping"),
        Cat("write 2 to ", kMaxRegions,
            " of them, as in `{eu: {addresses: [...]}, us: {addresses: [...]}}`"));
    return;
  }
  const RedisConfig common = *redis;
  const std::string path = section->PathOf("regions");
  for (const Entry& entry : ReadEntries(node, path, findings)) {
    if (!IsRegionName(entry.name)) {
      findings->Problem(entry.mark, path, Cat(Shown(entry.name), " is no name of a region"),
                        Cat("write letters, digits and _ -, at most ", kMaxRegionNameBytes));
      continue;
    }
    RedisConfig region = common;
    region.region = entry.name;
    Section own(entry.value, entry.mark, Cat(path, ".", entry.name), "redis.regions.*", findings);
    // A password of its own takes the place of the common one, wherever that stands.
    if (own.Has("password") || own.Has("password_file")) {
      region.password.clear();
      region.password_file.clear();
    }
    if (!own.Has("addresses")) {
      own.Problem("addresses", "is missing", "write for example `addresses: [\"10.1.0.1:6379\"]`");
    }
    ParseServers(&own, &region, findings);
    redis->regions.push_back(std::move(region));
  }
  std::sort(redis->regions.begin(), redis->regions.end(),
            [](const RedisConfig& a, const RedisConfig& b) { return a.region < b.region; });
  if (!section->Has("region")) {
    section->Problem("region", "is missing",
                     "write in which of `regions` this host is, as in `region: us`");
    return;
  }
  std::string name;
  if (!section->Read("region", &name)) return;
  const auto own = std::find_if(redis->regions.begin(), redis->regions.end(),
                                [&](const RedisConfig& region) { return region.region == name; });
  if (own == redis->regions.end()) {
    section->Problem("region", Cat(Shown(name), " is none of redis.regions"),
                     "write the name of the region in which this host is");
    return;
  }
  std::vector<RedisConfig> regions = std::move(redis->regions);
  const RedisConfig mine = *own;
  *redis = mine;
  redis->regions = std::move(regions);
}

// All shards of all regions have a state in memory that clients see.
void CheckShards(Section* section, const RedisConfig& redis) {
  if (redis.regions.size() * redis.shards < shm::kForcedShard || redis.regions.empty()) return;
  section->Problem(
      section->Has("shards") ? "shards" : "regions",
      Cat(redis.regions.size(), " regions of ", redis.shards,
          " shards are more than a host can watch"),
      Cat("write at most ", (shm::kForcedShard - 1) / redis.regions.size(), " shards"));
}

}  // namespace

void ParseRedis(Section* top, Config* config, Findings* findings) {
  if (!top->Has("redis")) return;
  Section section(top->Value("redis"), top->MarkOf("redis"), "redis", "redis", findings);
  RedisConfig& redis = config->redis.emplace();
  if (section.Read("prefix", &redis.prefix) && !HasOnly(redis.prefix, "_.-")) {
    section.Problem("prefix", Cat(Shown(redis.prefix), " is no prefix of keys"),
                    "write letters, digits and _ . - only");
  }
  if (uint64_t shards = 0; section.Read("shards", &shards)) {
    redis.shards = static_cast<uint32_t>(shards);
  }
  section.ReadDuration("flush_interval", &redis.flush_interval_ns);
  if (size_t transport = 0; section.ReadChoice("transport", &transport)) {
    redis.transport = static_cast<Transport>(transport);
  }
  if (section.Read("host_name", &redis.host_name) && !HasOnly(redis.host_name, "_.-")) {
    section.Problem("host_name", Cat(Shown(redis.host_name), " is no name of a host"),
                    "write letters, digits and _ . - only");
  }
  ParseServers(&section, &redis, findings);
  ParseRegions(&section, &redis, findings);
  CheckShards(&section, redis);
}

}  // namespace sluice::config
