#include <algorithm>
#include <cstring>

#include "client/plan.h"
#include "shm/bucket_name.h"
#include "shm/clock.h"
#include "shm/hash.h"
#include "shm/ip_prefix.h"

namespace sluice::client {
namespace {

using shm::ConditionView;
using shm::GroupView;
using shm::KeyForm;
using shm::KeyPartView;
using shm::MatchOp;
using shm::PolicyView;
using shm::RuleView;

constexpr int kPolicyReads = 4;  // the rules change far more slowly than this reads them

// The descriptors by name id. Names that no rule speaks of are dropped; the first of a name counts.
struct Present {
  uint64_t mask = 0;
  Text text[shm::kMaxNames];  // only where mask says so

  Text value(uint8_t name) const { return text[name % shm::kMaxNames]; }
};

// '*' any run, '?' any byte. Iterative with one point of return: linear in the common case, and
// bounded by pattern * text.
bool GlobMatches(std::string_view pattern, std::string_view text) {
  size_t p = 0;
  size_t t = 0;
  size_t star = std::string_view::npos;
  size_t resume = 0;
  while (t < text.size()) {
    if (p < pattern.size() && (pattern[p] == '?' || pattern[p] == text[t]) && pattern[p] != '*') {
      ++p;
      ++t;
    } else if (p < pattern.size() && pattern[p] == '*') {
      star = p++;
      resume = t;
    } else if (star != std::string_view::npos) {
      p = star + 1;
      t = ++resume;
    } else {
      return false;
    }
  }
  while (p < pattern.size() && pattern[p] == '*') ++p;
  return p == pattern.size();
}

bool Matches(const PolicyView& view, const ConditionView& condition, std::string_view value) {
  switch (condition.op) {
    case MatchOp::kExact:
      return value == view.text(condition.value);
    case MatchOp::kPrefix:
      return value.starts_with(view.text(condition.value));
    case MatchOp::kGlob:
      return GlobMatches(view.text(condition.value), value);
    case MatchOp::kOneOf:
      for (uint32_t i = 0; i < condition.count && i < shm::kMaxOneOf; ++i) {
        if (value == view.one_of(condition, i)) return true;
      }
      return false;
  }
  return false;
}

bool GroupApplies(const PolicyView& view, const GroupView& group, const Present& present) {
  if ((group.needed & ~present.mask) != 0) return false;
  for (uint32_t i = 0; i < group.condition_count && i < shm::kMaxConditions; ++i) {
    const ConditionView& condition = view.condition(group, i);
    if (!Matches(view, condition, present.value(condition.name).view())) return false;
  }
  return true;
}

uint16_t RuleOf(const PolicyView& view, const GroupView& group, const Present& present) {
  const uint8_t name = group.tier_name;
  if (name < shm::kMaxNames && (present.mask >> name & 1) != 0) {
    for (uint32_t i = 0; i < group.tier_count && i < shm::kMaxRules; ++i) {
      const uint16_t rule = static_cast<uint16_t>(group.first_rule + i);
      if (view.text(view.rule(rule).tier) == present.value(name).view()) return rule;
    }
  }
  return group.base_rule;
}

int AddItem(const Attachment& attachment, const PolicyView& view, const GroupView& group,
            const Present& present, uint64_t coarse_step_ns, Plan* plan) {
  const uint16_t id = RuleOf(view, group, present);
  if (id == shm::kNoRule) return 0;
  const uint32_t key_count = std::min<uint32_t>(group.key_count, shm::kMaxKeyParts);
  if (plan->count == kMaxItems || plan->value_count + key_count > kMaxPlanValues) {
    return SLUICE_E_RULES;
  }
  const RuleView& rule = view.rule(id);
  plan->rules[plan->count] = rule.numbers;
  Item& item = plan->items[plan->count];
  item.rule = &plan->rules[plan->count];
  item.values = plan->values + plan->value_count;
  item.value_count = key_count;
  for (uint32_t i = 0; i < key_count; ++i) {
    const KeyPartView part = view.key_part(group, i);
    if (part.form == KeyForm::kIp && plan->arena_used + kIpBytes > kArenaBytes) {
      return SLUICE_E_RULES;
    }
    char* const ip = plan->arena + plan->arena_used;
    const Text value = KeyValue(part, present.value(part.name), ip);
    if (value.data == ip) plan->arena_used += kIpBytes;
    plan->values[plan->value_count++] = value;
  }
  HashItem(attachment, rule.hash_seed, rule.label.length, &item);
  plan->coarse_serves =
      plan->coarse_serves && shm::CoarseServes(item.rule->limit.tau_ns, coarse_step_ns);
  ++plan->count;
  return 0;
}

int ReadDescriptors(const PolicyView& view, const sluice_descriptor_t* descriptors, size_t count,
                    Present* present) {
  for (size_t i = 0; i < count; ++i) {
    const sluice_descriptor_t& d = descriptors[i];
    if (d.name_len == 0 || d.name_len > SLUICE_MAX_NAME_BYTES ||
        d.value_len > SLUICE_MAX_VALUE_BYTES || d.name == nullptr ||
        (d.value == nullptr && d.value_len != 0)) {
      return SLUICE_E_DESCRIPTORS;
    }
    const uint8_t id = view.FindName({d.name, d.name_len});
    if (id == shm::kNoName || (present->mask >> id & 1) != 0) continue;
    present->mask |= 1ull << id;
    present->text[id] = {d.value_len ? d.value : "", d.value_len};
  }
  return 0;
}

int BuildFrom(const Attachment& attachment, const PolicyView& view, uint64_t coarse_step_ns,
              const sluice_descriptor_t* descriptors, size_t count, Plan* plan) {
  Present present;
  const int read = ReadDescriptors(view, descriptors, count, &present);
  if (read != 0) return read;
  uint32_t group_count;
  const GroupView* const groups = view.groups(&group_count);
  for (uint32_t g = 0; g < group_count; ++g) {
    if (!GroupApplies(view, groups[g], present)) continue;
    const int added = AddItem(attachment, view, groups[g], present, coarse_step_ns, plan);
    if (added != 0) return added;
  }
  return 0;
}

}  // namespace

int BuildPlan(const Attachment& attachment, uint64_t coarse_step_ns,
              const sluice_descriptor_t* descriptors, size_t count, Plan* plan) {
  if (count > SLUICE_MAX_DESCRIPTORS) return SLUICE_E_DESCRIPTORS;
  for (int attempt = 0; attempt < kPolicyReads; ++attempt) {
    const uint64_t policy = attachment.control->policy.load(std::memory_order_acquire);
    plan->policy = policy;
    plan->count = 0;
    plan->value_count = 0;
    plan->arena_used = 0;
    plan->coarse_serves = true;
    if (policy == 0) return 0;
    const int built =
        BuildFrom(attachment, ViewOf(attachment, policy), coarse_step_ns, descriptors, count, plan);
    // The same word again: all that was read belonged together. The fence keeps the reads of the
    // buffer before this load; it pairs with the daemon's release store of the word.
    std::atomic_thread_fence(std::memory_order_acquire);
    if (attachment.control->policy.load(std::memory_order_relaxed) == policy) return built;
  }
  plan->count = 0;
  return SLUICE_E_RULES;
}

Text KeyValue(const shm::KeyPartView& part, Text value, char* ip) {
  size_t length = 0;
  if (part.form == KeyForm::kIp &&
      shm::CanonicalPrefix(value.view(), part.v4_bits, part.v6_bits, ip, &length)) {
    return {ip, length};
  }
  return value;
}

void HashItem(const Attachment& attachment, uint64_t rule_seed, size_t label_bytes, Item* item) {
  size_t parts_bytes = 1 + label_bytes + 1;
  uint64_t h = rule_seed;
  for (uint32_t i = 0; i < item->value_count; ++i) {
    parts_bytes += 1 + item->values[i].size;
    h = shm::HashValue(attachment.hash_key, item->values[i].view(), h);
  }
  item->hash = h;
  item->folded = parts_bytes > shm::kKeyTextBytes;
  if (item->folded) [[unlikely]] {
    std::string_view values[shm::kMaxKeyParts];
    for (uint32_t i = 0; i < item->value_count; ++i) values[i] = item->values[i].view();
    char folded[shm::kKeyTextBytes];
    const size_t n = shm::FoldLong(label_bytes, values, item->value_count, folded);
    item->hash = shm::LongNameHash(attachment.hash_key, rule_seed, {folded, n});
  }
}

int FindRule(const Attachment& attachment, std::string_view label, Rule* rule, RuleKey* key) {
  for (int attempt = 0; attempt < kPolicyReads; ++attempt) {
    key->policy = attachment.control->policy.load(std::memory_order_acquire);
    if (key->policy == 0) return SLUICE_E_NO_RULE;
    const PolicyView view = ViewOf(attachment, key->policy);
    int result = SLUICE_E_NO_RULE;
    for (uint32_t id = 0; id < view.rule_count(); ++id) {
      const RuleView& candidate = view.rule(id);
      if (view.text(candidate.label) != label) continue;
      const GroupView& group = view.group(candidate.numbers.group);
      if (group.key_count > 1) break;
      *rule = candidate.numbers;
      key->hash_seed = candidate.hash_seed;
      key->label_bytes = label.size();
      key->value_count = group.key_count;
      key->part = group.key_count == 1 ? view.key_part(group, 0) : KeyPartView{};
      result = 0;
      break;
    }
    std::atomic_thread_fence(std::memory_order_acquire);
    if (attachment.control->policy.load(std::memory_order_relaxed) == key->policy) return result;
  }
  return SLUICE_E_NO_RULE;
}

size_t CopyLabel(const Attachment& attachment, uint64_t policy, uint16_t rule,
                 char out[shm::kMaxLabelBytes]) {
  if (rule == shm::kNoRule || policy == 0) return 0;
  const PolicyView view = ViewOf(attachment, policy);
  const std::string_view label = view.text(view.rule(rule).label);
  const size_t n = label.size() <= shm::kMaxLabelBytes ? label.size() : 0;
  std::memcpy(out, label.data(), n);
  std::atomic_thread_fence(std::memory_order_acquire);
  return attachment.control->policy.load(std::memory_order_relaxed) == policy ? n : 0;
}

}  // namespace sluice::client
