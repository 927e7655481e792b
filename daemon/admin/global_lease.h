// Buckets that are lent out as lua/lease.lua and lua/places.lua keep them, for people.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string_view>

#include "daemon/config/compile.h"

namespace sluice::admin {

// Adds {algorithm, consistency, remaining, limit, period_ns, burst, reset_after_s, denying,
// out_tokens, hosts, demand_per_s} to *out: tokens that nobody holds, those that hosts hold or have
// not reported as spent, the hosts that came in this second or the last, and what they ask for.
// `field`: the bucket's in the hash; `now_us` by the clock of its Redis. False, and nothing is
// added, where it is not of the script's form. Pure.
bool AddLentState(const config::CompiledRule& rule, std::string_view field, int64_t now_us,
                  nlohmann::ordered_json* out);

// Of requests in flight, the same: {algorithm, remaining, limit, period_ns: 0, burst,
// reset_after_s: 0, denying, lent_places, hosts, missing_places}: places that no host has, those
// that hosts have (held, or free for what comes there next), the hosts that have any, and what was
// asked for in vain in the last second.
bool AddLentPlaces(const config::CompiledRule& rule, std::string_view field, int64_t now_us,
                   nlohmann::ordered_json* out);

}  // namespace sluice::admin
