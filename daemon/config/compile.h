// Compiles the rules of a configuration into the bytes of a policy buffer, exactly as
// shm/policy_view.h reads them, and into a table that the daemon looks rules up in by label.
//
// Order: groups stand in the order of the file; a group's rules are its tiers in the order of the
// file, then its base; candidates stand behind all of them. Everything here is pure and
// thread-compatible.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "daemon/config/calendar.h"
#include "daemon/config/config.h"
#include "daemon/config/home.h"
#include "daemon/config/private_keys.h"
#include "shm/bucket_name.h"
#include "shm/gcra.h"
#include "shm/hash.h"
#include "shm/kinds.h"
#include "shm/policy_view.h"

namespace sluice::config {

// The bytes of a policy, at most kPolicyBufferBytes of them. `seq` is the policy's own (>= 1).
// ResourceExhausted, saying by how much, when there are more rules, descriptor names or bytes than
// a policy holds; ParseConfig reports the same as a problem of the file.
absl::StatusOr<std::string> Compile(const Config& config, const shm::HashKey& salt_key,
                                    uint64_t seq);

// Ok when `bytes` (a copy of a policy buffer, or its beginning) is a whole policy: magic, checksum,
// every count and offset in range and aligned, every index of a table valid, every limit sound.
// For policies that a former daemon left; the salt is not needed.
absl::Status VerifyPolicy(std::string_view bytes);

// One compiled rule as the daemon sees it.
struct CompiledRule {
  uint16_t id = 0;     // index of its RuleView
  uint16_t group = 0;  // index of its GroupView and of Config::rules
  std::string label;   // "name" or "name@tier"; of a candidate with kCandidateMark behind it
  uint64_t hash_seed = 0;
  shm::Limit limit;
  uint32_t cost = 1;          // tokens per unit of a request's cost
  uint64_t max_delay_ns = 0;  // 0: a token bucket
  uint64_t wait_ns = 0;       // kLease: how long its callers may wait; 0: not said
  shm::Kind kind = shm::Kind::kTokenBucket;
  shm::DegradedMode mode = shm::DegradedMode::kDegrade;
  uint32_t factor_q16 = 0;  // 1/factor, 16 fraction bits
  uint64_t for_ns = 0;      // 0: `mode` for good
  shm::DegradedMode then_mode = shm::DegradedMode::kDegrade;
  uint32_t then_factor_q16 = 0;
  bool strict = false;  // kInFlight: the limit holds over all hosts
  bool shadow = false;
  bool alert = false;
  bool classed = false;  // requests have classes
  uint8_t near_percent = 80;
  uint32_t key_count = 0;  // values that a bucket name of this rule has
  // Where its buckets are at home. Null: in the host's own cluster.
  std::shared_ptr<const Home> home = nullptr;
  bool exchanged = false;             // its use is told to the clusters of all regions
  PenaltyConfig penalty;              // none of a candidate
  uint32_t calendar_place = 0;        // of a fixed window, from 1; 0: it follows none
  uint16_t candidate = shm::kNoRule;  // the id of its candidate; kNoRule: none
  uint16_t beside = shm::kNoRule;     // of a candidate: the id of the rule in force
  // What is published of it; null without one.
  std::shared_ptr<const CalendarTable> calendar = nullptr;
  std::shared_ptr<const Privacy> privacy = nullptr;  // null: nothing of its key is private

  // Hosts ask Redis for what its requests were denied for want of.
  bool is_lent() const {
    return kind == shm::Kind::kLease || (kind == shm::Kind::kInFlight && strict);
  }
  bool is_candidate() const { return beside != shm::kNoRule; }
  uint64_t given_max = 0;  // the largest limit that a request may bring; 0: none may
  shm::Limit most = {};    // no bucket of the rule reaches further or is refilled faster

  // The limit that came with the requests of a bucket, by its label: 0 where it is the rule's own.
  uint64_t GivenOf(std::string_view bucket_label) const;
  shm::Limit LimitOf(std::string_view bucket_label) const {
    const uint64_t given = GivenOf(bucket_label);
    return given != 0 ? shm::Given(limit, given, cost) : limit;
  }

  // Under which a bucket of this name stands in the table.
  uint64_t HashOf(const shm::ParsedName& name, const shm::HashKey& key) const {
    const bool is_given = name.label.size() != label.size();
    const uint64_t seed = is_given ? shm::HashValue(key, name.label, 0) : hash_seed;
    return shm::HashOfKind(name.Hash(key, seed), kind);
  }
};

// A class of a rule with priority, and where its denials are counted. Of classes with equal parts
// the first alone: they are told apart by nothing else.
struct CompiledClass {
  uint32_t cell = 0;  // in the bucket segment
  uint16_t tag = 0;   // of its counts there
  std::string rule;   // the name, without a tier
  std::string value;  // of the descriptor
};

// The largest of all limits that a rule's buckets can have, by parts.
shm::Limit MostOf(const shm::Limit& limit, uint32_t cost, uint64_t given_max);

// The rules of one policy, read back from its bytes, so that it cannot differ from what clients
// read. Immutable after Load: safe to share between threads.
class CompiledRules {
 public:
  CompiledRules() = default;

  // InvalidArgument when VerifyPolicy refuses the bytes.
  static absl::StatusOr<CompiledRules> Load(std::string_view policy_bytes);

  // What a policy's bytes do not say, since clients need none of it: of the rules of `config` that
  // have these names.
  void AddRegions(const Config& config);
  void AddPrivacy(const Config& config);
  void AddPenalties(const Config& config);
  // `tables`: by place, from 0.
  void AddCalendars(const std::vector<std::shared_ptr<const CalendarTable>>& tables);

  // nullptr when no rule has this label, or a limit stands behind it that no request may bring.
  // Valid as long as this object stays where it is.
  const CompiledRule* Find(std::string_view label) const;
  const CompiledRule* ById(uint16_t id) const { return id < rules_.size() ? &rules_[id] : nullptr; }

  const std::vector<CompiledRule>& rules() const { return rules_; }  // by id
  const std::vector<CompiledClass>& classes() const { return classes_; }
  uint64_t seq() const { return seq_; }
  uint64_t version_hash() const { return version_hash_; }  // equal where the limits are equal
  uint64_t max_debt_ns() const { return max_debt_ns_; }    // largest tau + debt_max; 0: no rules

 private:
  std::vector<CompiledRule> rules_;
  std::vector<CompiledClass> classes_;
  absl::flat_hash_map<std::string, uint16_t> by_label_;
  uint64_t seq_ = 0;
  uint64_t version_hash_ = 0;
  uint64_t max_debt_ns_ = 0;
};

}  // namespace sluice::config
