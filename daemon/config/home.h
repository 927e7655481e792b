// Which region is a bucket's home: its cluster lends the tokens of a strict limit. From the
// bucket's text alone, since every host must agree. See docs/regions.md.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "daemon/config/config.h"

namespace sluice::config {

// Immutable: safe to share between threads.
class Home {
 public:
  // `rule` has a home (HomeBy is not kNone); `label` is one of its labels. `regions`: all of them,
  // the host's own first.
  Home(const RuleConfig& rule, const std::string& label, const std::vector<std::string>& regions);

  // An index into those. `text` is the bucket's, "label:value:...". Values too long to be kept
  // whole, and unknown ones, have the map's default.
  uint32_t RegionOf(std::string_view text) const;

  // "LABEL EPOCH MAP" as lua/lease.lua and lua/home.lua take it; MAP is a hash of the map and the
  // names of the regions, 16 hex digits.
  const std::string& mark() const { return mark_; }

 private:
  uint32_t RendezvousOf(std::string_view text) const;

  std::vector<std::string> regions_;
  std::string mark_;
  size_t part_ = 0;  // of the key, of a map; SIZE_MAX: rendezvous
  absl::flat_hash_map<std::string, uint32_t> by_value_;
  uint32_t fallback_ = 0;
};

}  // namespace sluice::config
