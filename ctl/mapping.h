// From a line of an access log to the descriptors of a check.
//
// The map is a list NAME=SOURCE. Sources:
//   ip          the client's address or host name, as logged
//   route       the path without query and parameters, normalised, its first segments (route_depth)
//   path        the whole normalised path
//   path1       its first segment, "/" for the root
//   method      GET, POST, ...; "-" for a request line that is not HTTP
//   status      the logged status
//   remote-user the logged user; no descriptor where none was logged
//   user        the logged user, else "u-" and a hash of address and user agent: one visitor
//   network     "net-" and the address's /16 (IPv6: /32); of a host name its last two labels
//   tenant      the same as network: who shares a network is taken for one customer
//   tier        "paid" for a stable share (paid_share) of the tenants, "free" for the others
//   const:TEXT  always TEXT
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "ctl/access_log.h"

namespace sluice::ctl {

inline constexpr size_t kMaxRouteBytes = 256;  // a longer path is cut: rules match on its start
inline constexpr int kMaxRouteDepth = 32;

enum class Source {
  kIp,
  kRoute,
  kPath,
  kFirstSegment,
  kMethod,
  kStatus,
  kRemoteUser,
  kUser,
  kNetwork,
  kTier,
  kConstant,
};

struct MappedName {
  std::string name;
  Source source = Source::kIp;
  std::string constant;
};

struct Mapping {
  std::vector<MappedName> names;
  int route_depth = 2;
  double paid_share = 0.25;  // 0..1
};

// ip, route, method, user, tenant, tier: each from the source of that name.
Mapping DefaultMapping();

// Adds or replaces one descriptor ("tenant=path1"), or takes it out ("tenant=").
absl::Status ApplyMapOption(std::string_view option, Mapping* mapping);

// Writes the value of one descriptor into `*value`; false when the line has none.
bool MapValue(const Mapping& mapping, const MappedName& mapped, const LogEntry& entry,
              std::string* value);

// "/a//b/./c/../d;p=1?q=2" with depth 2 gives "/a/b"; depth 0 keeps all segments.
std::string NormalisePath(std::string_view target, int depth);

std::string NetworkOf(std::string_view address);

// "paid" or "free", the same for the same key everywhere.
std::string_view TierOf(std::string_view key, double paid_share);

}  // namespace sluice::ctl
