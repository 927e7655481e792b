// A request, matched: what to charge where. Built on the stack from the policy in place; holds
// copies of every number it needs, so that a policy change cannot tear a decision.
#pragma once

#include <atomic>
#include <cstdint>
#include <string_view>

#include "client/attach.h"
#include "client/include/sluice.h"
#include "shm/bucket.h"
#include "shm/ip_prefix.h"
#include "shm/policy_view.h"

namespace sluice::client {

inline constexpr size_t kMaxItems = SLUICE_MAX_RULES_PER_REQUEST;
inline constexpr size_t kMaxPlanValues = 4 * kMaxItems;  // key values of one request
inline constexpr size_t kIpBytes = 64;                   // one canonical address
inline constexpr size_t kArenaBytes = kIpBytes * 16;     // those of one request

// The numbers of one rule, copied out of the policy.
using Rule = shm::RuleNumbers;

// A key value; a plain pair, since string_view's constructor would cost.
struct Text {
  const char* data;
  size_t size;
  std::string_view view() const { return {data, size}; }
};

// One matched rule and the bucket it charges.
struct Item {
  const Rule* rule;
  const Text* values;  // of the key, in order; in the caller's memory or the plan's arena
  uint64_t hash;
  uint32_t value_count;
  bool folded;         // the name is too long for its slot's text: the values are hashed into one
  uint16_t candidate;  // the rule that is tried beside it, kNoRule: none; where the plan tries any
};

// Self-referring once built (items point into rules, values and arena): never copied.
struct Plan {
  Plan() {}
  Plan(const Plan&) = delete;
  Plan& operator=(const Plan&) = delete;

  uint64_t policy;     // policy word it was built from
  uint64_t structure;  // of that policy
  size_t count;
  size_t value_count;
  size_t arena_used;
  bool coarse_serves;  // for every matched rule
  bool tries;          // a limit beside that of a matched rule
  Item items[kMaxItems];
  union {                       // a rule's numbers have initialisers
    Rule rules[kMaxItems + 1];  // of items whose rule is nobody else's; one more to look at
  };
  Text values[kMaxPlanValues];
  char arena[kArenaBytes];
};

class Shapes;

// Matches descriptors against the policy in force. Returns 0, or SLUICE_E_RULES /
// SLUICE_E_DESCRIPTORS. No policy published yet: a plan of 0 items. `shapes` may be null; else the
// plan may point into one of them, which stands for kBlockRestNs at least.
int BuildPlan(const Attachment& attachment, uint64_t coarse_step_ns,
              const sluice_descriptor_t* descriptors, size_t count, Shapes* shapes, Plan* plan);

// One rule known by its label, with what is needed to name its buckets by a single value.
struct RuleKey {
  uint64_t policy;
  uint64_t structure;  // of that policy
  uint64_t hash_seed;
  size_t label_bytes;
  uint32_t value_count;  // 0 or 1
  shm::KeyPartView part;
  uint16_t candidate;  // the rule that is tried beside it; kNoRule: none
};
// `label` may end with a class, see kClassMark. Returns 0, or SLUICE_E_NO_RULE: not in the policy,
// no such class, or a key of several values.
int FindRule(const Attachment& attachment, std::string_view label, Rule* rule, RuleKey* key);

// `value` in the form that names a bucket: canonical where the key part says ip (written to `ip`,
// kIpBytes), else itself.
Text IpValue(const shm::KeyPartView& part, Text value, char* ip);
inline Text KeyValue(const shm::KeyPartView& part, Text value, char* ip) {
  if (part.form != shm::KeyForm::kIp || shm::IsCanonicalV4(value.view(), part.v4_bits)) {
    return value;
  }
  return IpValue(part, value, ip);
}

// The longest single value with which a name of this label stands in a slot's text unfolded.
inline size_t MaxPlainValueBytes(size_t label_bytes) {
  return label_bytes + 3 < shm::kKeyTextBytes ? shm::kKeyTextBytes - label_bytes - 3 : 0;
}

// Completes item->hash and item->folded from its values, headed by the rule's seed.
void HashItem(const Attachment& attachment, uint64_t rule_seed, size_t label_bytes, Item* item);

// The rule's label in the policy `policy` of the attachment, copied; 0 when that policy is no
// longer in force.
size_t CopyLabel(const Attachment& attachment, uint64_t policy, uint16_t rule,
                 char out[shm::kMaxLabelBytes]);

inline shm::PolicyView ViewOf(const Attachment& attachment, uint64_t policy) {
  const uint32_t buffer = shm::policy_word::Buffer(policy) % shm::kPolicyBuffers;
  return shm::PolicyView(attachment.policy_buffers + uint64_t{buffer} * shm::kPolicyBufferBytes);
}

// After all that was read in place of the policy `policy`: true where it is still in force, so that
// what was read belonged together.
// Memory orders: pairs with the daemon's release store of the word. The fence keeps the reads of
// the buffer before the load, which itself orders nothing.
inline bool IsInForce(const Attachment& attachment, uint64_t policy) {
  std::atomic_thread_fence(std::memory_order_acquire);
  return attachment.control->policy.load(std::memory_order_relaxed) == policy;
}

// The numbers of a rule for requests that bring the limit `given`, 0 for none, and are of the class
// with that floor.
inline Rule NumbersOf(const shm::PolicyView& view, uint16_t rule, uint64_t given,
                      uint16_t floor_q16) {
  const Rule& numbers = view.rule(rule).numbers;
  return shm::Floored(given != 0 ? shm::Given(numbers, given) : numbers, floor_q16);
}
inline uint64_t GivenOf(const Rule& rule) { return rule.given != 0 ? rule.limit.limit : 0; }

// Reads the numbers of rules under the policy in force, for what was matched under another one of
// the same structure.
// Memory orders: the first load of the policy word pairs with the daemon's release store: the
// buffer that it names is whole. The fence keeps the reads of the buffer before the second load.
class NumbersReader {
 public:
  NumbersReader(const Attachment& a, uint64_t structure)
      : word_(a.control->policy),
        policy_(word_.load(std::memory_order_acquire)),
        view_(ViewOf(a, policy_)),
        is_same_(policy_ != 0 && view_.header().structure_hash == structure) {}

  // As those of `old`: of the same rule and class, and the limit that the request brought.
  Rule Read(const Rule& old) const { return NumbersOf(view_, old.id, GivenOf(old), old.floor_q16); }
  // After the last Read: true where the structure is the same, and all that was read belonged
  // together.
  bool IsWhole() const {
    std::atomic_thread_fence(std::memory_order_acquire);
    return is_same_ && word_.load(std::memory_order_relaxed) == policy_;
  }
  uint64_t policy() const { return policy_; }

 private:
  const std::atomic<uint64_t>& word_;
  const uint64_t policy_;
  const shm::PolicyView view_;
  const bool is_same_;
};

}  // namespace sluice::client
