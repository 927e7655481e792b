// The buckets of the whole fleet by name, read from Redis: HSCAN over the shard hashes.
//
// For people, not for the check's way: it blocks its thread on connections of its own, with a
// time-out for each command and a bound over all.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "daemon/admin/bucket_list.h"
#include "daemon/admin/redis_node.h"
#include "daemon/config/compile.h"
#include "daemon/config/config.h"

namespace sluice::admin {

inline constexpr int kGlobalTotalMs = 8'000;
// Redirects from node to node for one shard; a map that moves under us ends the look.
inline constexpr int kGlobalRedirects = 3;

// {"scope": "global", "truncated": bool, "unreachable_shards": n, "buckets": [{name, rule, shard,
// algorithm, remaining, limit, period_ns, burst, reset_after_s, denying, tokens}]}; a strict bucket
// has what AddLentState says instead of tokens, one of places what AddLentPlaces says. Where there
// are regions all are asked, the own one first, and each bucket tells its `region`; those of a
// region that does not answer are unreachable. `primaries`: addresses to begin at; the configured
// ones serve too. Unavailable when none answers.
absl::StatusOr<nlohmann::ordered_json> GlobalBuckets(const BucketQuery& query,
                                                     const config::RedisConfig& redis,
                                                     const std::vector<NodeAddress>& primaries,
                                                     const config::CompiledRules& rules);

}  // namespace sluice::admin
