// The buckets of this host by name, read from the bucket segment.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

#include "daemon/admin/status.h"

namespace sluice::admin {

inline constexpr uint64_t kDefaultBuckets = 100;
inline constexpr uint64_t kMaxBucketsListed = 10'000;
// A scan of 64 M slots takes longer; then the answer says that it is cut short.
inline constexpr uint64_t kBucketScanNs = 2'000'000'000;

struct BucketQuery {
  std::string prefix;  // of the name; empty: all
  uint64_t limit = kDefaultBuckets;
};

// {"scope": "local", "truncated": bool, "buckets": [{name, rule, shard, algorithm, remaining,
// limit, period_ns, burst, reset_after_s, denying, unreconciled_tokens, denied_pending}]}. A bucket
// of tokens on loan also has consistency, held_for_s (what remains is on loan for so long) and
// more_in_s (before which nothing more comes); one of requests in flight held and holders, [{pid,
// places}], the pid 0 where it is not seen from here (`holders` null: none are listed); one
// under a penalty banned_for_s. A bucket whose rule is gone has only name, rule and shard.
// Thread-safe.
nlohmann::ordered_json LocalBuckets(const BucketQuery& query, const shm::MappedBuckets& buckets,
                                    const shm::SegmentInfo& info, const shm::HolderCell* holders,
                                    const config::CompiledRules& rules, uint64_t now_ns);

// Adds what all lists tell of a bucket under a rule: {algorithm, remaining, limit, period_ns (0: of
// requests in flight), burst, denying}. `limit`: the rule's, or the one that the bucket was given.
void AddTerms(const config::CompiledRule& rule, const shm::Limit& limit, uint64_t remaining,
              nlohmann::ordered_json* out);

}  // namespace sluice::admin
