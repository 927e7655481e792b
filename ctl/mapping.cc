#include "ctl/mapping.h"

#include <arpa/inet.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "shm/hash.h"

namespace sluice::ctl {
namespace {

constexpr std::pair<std::string_view, Source> kSources[] = {
    {"ip", Source::kIp},           {"route", Source::kRoute},
    {"path", Source::kPath},       {"path1", Source::kFirstSegment},
    {"method", Source::kMethod},   {"status", Source::kStatus},
    {"user", Source::kUser},       {"remote-user", Source::kRemoteUser},
    {"network", Source::kNetwork}, {"tenant", Source::kNetwork},
    {"tier", Source::kTier},
};

// FNV-1a with a finaliser. Stable for ever: the same log gives the same users and tiers.
uint64_t StableHash(std::string_view text, uint64_t h = 0xcbf29ce484222325) {
  h = shm::Fnv1a(text, h);
  h = (h ^ (h >> 30)) * 0xbf58476d1ce4e5b9;
  h = (h ^ (h >> 27)) * 0x94d049bb133111eb;
  return h ^ (h >> 31);
}

// "http://host/path" is what a proxy is asked for; the rest stays as it is.
std::string_view StripAuthority(std::string_view target) {
  const size_t scheme = target.find("://");
  if (scheme == std::string_view::npos || target.find('/') != scheme + 1) return target;
  const size_t slash = target.find('/', scheme + 3);
  return slash == std::string_view::npos ? std::string_view("/") : target.substr(slash);
}

}  // namespace

Mapping DefaultMapping() {
  Mapping mapping;
  for (const char* name : {"ip", "route", "method", "user", "tenant", "tier"}) {
    const absl::Status status = ApplyMapOption(absl::StrCat(name, "=", name), &mapping);
    static_cast<void>(status);  // the names are sources
  }
  return mapping;
}

absl::Status ApplyMapOption(std::string_view option, Mapping* mapping) {
  const size_t equals = option.find('=');
  if (equals == 0 || equals == std::string_view::npos) {
    return absl::InvalidArgumentError(
        absl::StrCat("--map ", std::string(option), ": write NAME=SOURCE, such as tenant=path1"));
  }
  MappedName mapped;
  mapped.name = std::string(option.substr(0, equals));
  const std::string_view source = option.substr(equals + 1);
  auto& names = mapping->names;
  const auto old = std::find_if(names.begin(), names.end(),
                                [&](const MappedName& m) { return m.name == mapped.name; });
  if (source.empty()) {
    if (old != names.end()) names.erase(old);
    return absl::OkStatus();
  }
  if (source.substr(0, 6) == "const:") {
    mapped.source = Source::kConstant;
    mapped.constant = std::string(source.substr(6));
  } else {
    const auto* found = std::find_if(std::begin(kSources), std::end(kSources),
                                     [&](const auto& s) { return s.first == source; });
    if (found == std::end(kSources)) {
      std::vector<std::string> known;
      for (const auto& s : kSources) known.emplace_back(s.first);
      return absl::InvalidArgumentError(absl::StrCat("--map ", std::string(option),
                                                     ": no source of that name; known are ",
                                                     absl::StrJoin(known, ", "), ", const:TEXT"));
    }
    mapped.source = found->second;
  }
  if (old != names.end()) {
    *old = std::move(mapped);
  } else {
    names.push_back(std::move(mapped));
  }
  return absl::OkStatus();
}

std::string NormalisePath(std::string_view target, int depth) {
  target = StripAuthority(target);
  target = target.substr(0, target.find_first_of("?#;"));
  if (target.empty() || target[0] != '/') {
    return std::string(target.substr(0, kMaxRouteBytes));  // "*", or CONNECT's host:port
  }
  std::vector<std::string_view> segments;
  for (size_t at = 0; at < target.size();) {
    const size_t end = std::min(target.find('/', at), target.size());
    const std::string_view segment = target.substr(at, end - at);
    at = end + 1;
    if (segment.empty() || segment == ".") continue;
    if (segment == "..") {
      if (!segments.empty()) segments.pop_back();
      continue;
    }
    segments.push_back(segment);
  }
  if (depth > 0 && segments.size() > static_cast<size_t>(depth)) {
    segments.resize(static_cast<size_t>(depth));
  }
  std::string path;
  for (const std::string_view segment : segments) {
    path.push_back('/');
    path.append(segment);
    if (path.size() >= kMaxRouteBytes) break;
  }
  if (path.empty()) path = "/";
  if (path.size() > kMaxRouteBytes) path.resize(kMaxRouteBytes);
  return path;
}

std::string NetworkOf(std::string_view address) {
  const std::string text(address.substr(0, address.find('%')));
  in_addr v4;
  if (inet_pton(AF_INET, text.c_str(), &v4) == 1) {
    const uint32_t bits = ntohl(v4.s_addr);
    return absl::StrFormat("net-%d.%d", bits >> 24, (bits >> 16) & 0xff);
  }
  in6_addr v6;
  if (inet_pton(AF_INET6, text.c_str(), &v6) == 1) {
    const auto& b = v6.s6_addr;
    if (IN6_IS_ADDR_V4MAPPED(&v6)) return absl::StrFormat("net-%d.%d", b[12], b[13]);
    return absl::StrFormat("net-%x:%x", (b[0] << 8) | b[1], (b[2] << 8) | b[3]);
  }
  const size_t last = text.rfind('.');
  const size_t before = last == std::string::npos || last == 0 ? last : text.rfind('.', last - 1);
  return absl::StrCat("net-", before == std::string::npos ? text : text.substr(before + 1));
}

std::string_view TierOf(std::string_view key, double paid_share) {
  // 53 bits make an exact double; the seed keeps tiers apart from other uses of the hash.
  const double share = static_cast<double>(StableHash(key, 0x7469657273) >> 11) * 0x1p-53;
  return share < paid_share ? "paid" : "free";
}

bool MapValue(const Mapping& mapping, const MappedName& mapped, const LogEntry& entry,
              std::string* value) {
  switch (mapped.source) {
    case Source::kIp:
      value->assign(entry.address);
      return true;
    case Source::kRoute:
      *value = entry.is_http ? NormalisePath(entry.target, mapping.route_depth) : "-";
      return true;
    case Source::kPath:
      *value = entry.is_http ? NormalisePath(entry.target, 0) : "-";
      return true;
    case Source::kFirstSegment:
      *value = entry.is_http ? NormalisePath(entry.target, 1) : "-";
      return true;
    case Source::kMethod:
      value->assign(entry.is_http ? entry.method : "-");
      return true;
    case Source::kStatus:
      *value = absl::StrCat(entry.status);
      return entry.status != 0;
    case Source::kRemoteUser:
      value->assign(entry.user);
      return !entry.user.empty();
    case Source::kUser:
      if (!entry.user.empty()) {
        value->assign(entry.user);
      } else {
        *value = absl::StrFormat("u-%012x",
                                 StableHash(entry.user_agent, StableHash(entry.address)) >> 16);
      }
      return true;
    case Source::kNetwork:
      *value = NetworkOf(entry.address);
      return true;
    case Source::kTier:
      value->assign(TierOf(NetworkOf(entry.address), mapping.paid_share));
      return true;
    case Source::kConstant:
      *value = mapped.constant;
      return true;
  }
  return false;
}

}  // namespace sluice::ctl
