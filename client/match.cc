#include <algorithm>
#include <cstring>

#include "client/conditions.h"
#include "client/plan.h"
#include "client/priority.h"
#include "client/shape.h"
#include "shm/bucket_name.h"
#include "shm/clock.h"
#include "shm/hash.h"
#include "shm/ip_prefix.h"
#include "shm/slot_table.h"

namespace sluice::client {
namespace {

using shm::ConditionView;
using shm::GroupView;
using shm::KeyForm;
using shm::KeyPartView;
using shm::PolicyView;
using shm::RuleView;

constexpr int kPolicyReads = 4;  // the rules change far more slowly than this reads them

// A request's descriptors, as conditions and tiers speak of them.
struct Request {
  const sluice_descriptor_t* descriptors;
  const Present& present;

  bool has(uint8_t name) const { return name < shm::kMaxNames && (present.mask >> name & 1) != 0; }
  std::string_view value(uint8_t name) const {
    return has(name) ? ValueAt(descriptors, present.at[name]).view() : std::string_view();
  }
};

bool ConditionsHold(const PolicyView& view, const GroupView& group, const Request& request) {
  for (uint32_t i = 0; i < group.condition_count && i < shm::kMaxConditions; ++i) {
    const ConditionView& condition = view.condition(group, i);
    if (!Matches(view, condition, request.value(condition.name))) return false;
  }
  return true;
}

uint16_t TierOf(const PolicyView& view, const GroupView& group, const Request& request) {
  if (!request.has(group.tier_name)) return shm::kNoRule;
  const std::string_view tier = request.value(group.tier_name);
  for (uint32_t i = 0; i < group.tier_count && i < shm::kMaxRules; ++i) {
    const uint16_t rule = static_cast<uint16_t>(group.first_rule + i);
    if (view.text(view.rule(rule).tier) == tier) return rule;
  }
  return shm::kNoRule;
}

// What the values of a request say of a rule.
struct Asked {
  uint16_t tier = shm::kNoRule;
  uint16_t floor_q16 = 0;
  uint64_t given = 0;  // the limit that it brings; 0: none
};

// Where the values have a say in which rule it is, or how much of it. False: the rule does not
// apply.
[[gnu::noinline]] bool Applies(const PolicyView& view, const Candidate& candidate,
                               const Request& request, Asked* asked) {
  const GroupView& group = view.group(candidate.group);
  if (!ConditionsHold(view, group, request)) return false;
  asked->tier = TierOf(view, group, request);
  if (group.class_count != 0) {
    bool is_listed;
    asked->floor_q16 =
        FloorOf(view, group, request.value(view.class_of(group, 0).name), &is_listed);
  }
  if (group.given_max != 0) {
    asked->given = shm::ReadGiven(request.value(group.given_name), group.given_max);
  }
  return asked->tier != shm::kNoRule || candidate.rule != nullptr;
}

// The seed of the buckets of a rule under a limit that a request brought: their label says it.
uint64_t GivenSeed(const Attachment& attachment, const PolicyView& view, const Rule& rule,
                   uint32_t* label_bytes) {
  char label[shm::kMaxLabelBytes];
  const std::string_view own = view.text(view.rule(rule.id).label).substr(0, sizeof label);
  std::memcpy(label, own.data(), own.size());
  const size_t n = shm::AppendGiven(label, own.size(), GivenOf(rule));
  *label_bytes = static_cast<uint32_t>(n);
  return shm::HashValue(attachment.hash_key, {label, n}, 0);
}

// All slots are on their way to the cache before the first is looked at.
void PrefetchItem(const Attachment& a, const Item& item) {
  shm::SlotTable<std::atomic<uint64_t>>(a.slots, a.capacity, a.counters).PrefetchFirst(item.hash);
}

// `storage` receives the numbers that candidate->rule points to.
void MakeCandidate(const PolicyView& view, uint32_t index, const Present& present,
                   uint64_t coarse_step_ns, Rule* storage, Candidate* candidate) {
  const GroupView& group = view.group(index);
  candidate->group = static_cast<uint16_t>(index);
  candidate->asks_values =
      group.condition_count != 0 || group.tier_count != 0 || group.class_count != 0 ||
      group.base_rule == shm::kNoRule ||
      (group.given_max != 0 && (present.mask >> group.given_name % shm::kMaxNames & 1) != 0);
  candidate->key_count = static_cast<uint8_t>(std::min<size_t>(group.key_count, shm::kMaxKeyParts));
  for (uint32_t i = 0; i < candidate->key_count; ++i) {
    const KeyPartView part = view.key_part(group, i);
    const uint32_t name = part.name % shm::kMaxNames;
    if ((present.mask >> name & 1) == 0) {  // only in what was torn while it was read
      candidate->key_count = static_cast<uint8_t>(i);
      break;
    }
    candidate->key[i] = part;
    candidate->key_at[i] = present.at[name];
  }
  candidate->rule = nullptr;
  candidate->tried = shm::kNoRule;
  candidate->coarse_serves = true;
  if (group.base_rule == shm::kNoRule) return;
  const RuleView& rule = view.rule(group.base_rule);
  *storage = rule.numbers;
  candidate->rule = storage;
  candidate->tried = rule.candidate;
  candidate->hash_seed = rule.hash_seed;
  candidate->label_bytes = rule.label.length;
  candidate->plain_bytes = static_cast<uint32_t>(MaxPlainValueBytes(rule.label.length));
  candidate->coarse_serves = shm::CoarseServes(*storage, coarse_step_ns);
}

// The value of one part of a key. False where the plan has no room for another address.
bool AddKeyValue(const KeyPartView& part, Text value, Plan* plan) {
  if (part.form == KeyForm::kIp) {
    if (plan->arena_used + kIpBytes > kArenaBytes) return false;
    char* const ip = plan->arena + plan->arena_used;
    value = KeyValue(part, value, ip);
    if (value.data == ip) plan->arena_used += kIpBytes;
  }
  plan->values[plan->value_count++] = value;
  return true;
}

// Adds the candidate's item to the plan where the values match.
int Match(const Attachment& attachment, const PolicyView& view, uint64_t coarse_step_ns,
          const Candidate& candidate, const Request& request, Plan* plan) {
  const Rule* rule = candidate.rule;
  uint64_t hash_seed = candidate.hash_seed;
  uint32_t label_bytes = candidate.label_bytes;
  bool coarse_serves = candidate.coarse_serves;
  uint16_t tried = candidate.tried;
  Asked asked;
  if (candidate.asks_values && !Applies(view, candidate, request, &asked)) return 0;
  if (plan->count == kMaxItems || plan->value_count + candidate.key_count > kMaxPlanValues) {
    return SLUICE_E_RULES;
  }
  if (asked.tier != shm::kNoRule) {
    const RuleView& r = view.rule(asked.tier);
    plan->rules[plan->count] = r.numbers;
    rule = &plan->rules[plan->count];
    hash_seed = r.hash_seed;
    label_bytes = r.label.length;
    tried = r.candidate;
    coarse_serves = shm::CoarseServes(*rule, coarse_step_ns);
  }
  if (asked.given != 0) {
    plan->rules[plan->count] = shm::Given(*rule, asked.given);
    rule = &plan->rules[plan->count];
    hash_seed = GivenSeed(attachment, view, *rule, &label_bytes);
    coarse_serves = shm::CoarseServes(*rule, coarse_step_ns);
  }
  if (asked.floor_q16 != 0) {
    plan->rules[plan->count] = shm::Floored(*rule, asked.floor_q16);
    rule = &plan->rules[plan->count];
  }
  Item& item = plan->items[plan->count];
  item.rule = rule;
  item.values = plan->values + plan->value_count;
  item.value_count = candidate.key_count;
  item.candidate = tried;
  plan->tries = plan->tries || tried != shm::kNoRule;
  for (uint32_t i = 0; i < candidate.key_count; ++i) {
    const Text value = ValueAt(request.descriptors, candidate.key_at[i]);
    if (!AddKeyValue(candidate.key[i], value, plan)) return SLUICE_E_RULES;
  }
  HashItem(attachment, hash_seed, label_bytes, &item);
  PrefetchItem(attachment, item);
  plan->coarse_serves = plan->coarse_serves && coarse_serves;
  ++plan->count;
  return 0;
}

bool IsDescriptor(const sluice_descriptor_t& d) {
  return d.name_len != 0 && d.name_len <= SLUICE_MAX_NAME_BYTES && d.name != nullptr && IsValue(d);
}

// Names that no rule speaks of are dropped.
void ReadNames(const PolicyView& view, const sluice_descriptor_t* descriptors, size_t count,
               Present* present) {
  for (size_t i = 0; i < count; ++i) {
    const uint8_t id = view.FindName({descriptors[i].name, descriptors[i].name_len});
    if (id == shm::kNoName || (present->mask >> id & 1) != 0) continue;
    present->mask |= 1ull << id;
    present->at[id] = static_cast<uint8_t>(i);
  }
}

// Matches the names: all of a shape but what the numbers decide.
void MatchNames(const PolicyView& view, uint64_t coarse_step_ns,
                const sluice_descriptor_t* descriptors, size_t count, Shape* shape) {
  shape->name_count = count;
  for (size_t i = 0; i < count; ++i) {
    shape->name_bytes[i] = descriptors[i].name_len;
    shape->names[i] = NameWords::Of(descriptors[i].name, descriptors[i].name_len);
  }
  shape->present = {};
  ReadNames(view, descriptors, count, &shape->present);
  shape->too_many = false;
  shape->candidate_count = 0;
  uint32_t group_count;
  const GroupView* const groups = view.groups(&group_count);
  for (uint32_t g = 0; g < group_count; ++g) {
    if ((groups[g].needed & ~shape->present.mask) != 0) continue;
    if (shape->candidate_count == kMaxItems) {
      shape->too_many = true;
      return;
    }
    const size_t n = shape->candidate_count++;
    MakeCandidate(view, g, shape->present, coarse_step_ns, &shape->rules[n], &shape->candidates[n]);
  }
}

// The same where only numbers changed since `old`: its match holds.
void FollowNumbers(const PolicyView& view, uint64_t coarse_step_ns, const Shape& old,
                   Shape* shape) {
  shape->name_count = old.name_count;
  std::copy_n(old.name_bytes, old.name_count, shape->name_bytes);
  std::copy_n(old.names, old.name_count, shape->names);
  shape->present = old.present;
  shape->too_many = old.too_many;
  shape->candidate_count = old.candidate_count;
  for (size_t i = 0; i < old.candidate_count; ++i) {
    Candidate& candidate = shape->candidates[i];
    candidate = old.candidates[i];
    if (candidate.rule == nullptr) continue;
    shape->rules[i] = view.rule(candidate.rule->id).numbers;
    candidate.rule = &shape->rules[i];
    candidate.coarse_serves = shm::CoarseServes(*candidate.rule, coarse_step_ns);
  }
}

// `old`: another block of the same place, or null.
bool MakeShape(const Attachment& attachment, const PolicyView& view, uint64_t policy,
               uint64_t coarse_step_ns, const sluice_descriptor_t* descriptors, size_t count,
               const Shape* old, Shape* shape) {
  shape->attachment = &attachment;
  shape->policy = policy;
  shape->structure = view.header().structure_hash;
  if (old != nullptr && old->structure == shape->structure &&
      old->IsOf(attachment, old->policy, descriptors, count)) {
    FollowNumbers(view, coarse_step_ns, *old, shape);
  } else {
    MatchNames(view, coarse_step_ns, descriptors, count, shape);
  }
  shape->is_direct = !shape->too_many;
  shape->coarse_serves = true;
  for (size_t i = 0; i < shape->candidate_count; ++i) {
    const Candidate& made = shape->candidates[i];
    shape->coarse_serves = shape->coarse_serves && made.coarse_serves;
    shape->is_direct =
        shape->is_direct && !made.asks_values && made.key_count == 1 && made.tried == shm::kNoRule;
    if (!shape->is_direct) continue;
    shape->direct[i] = {.hash_seed = made.hash_seed,
                        .cost_ns = made.rule->unit_ns,
                        .tau_ns = made.rule->limit.tau_ns,
                        .tokens = made.rule->cost,
                        .plain_bytes = made.plain_bytes,
                        .key = made.key[0],
                        .key_at = made.key_at[0]};
  }
  return IsInForce(attachment, policy);
}

// The shape of these descriptors under this policy; null where they have none that can be kept.
[[gnu::noinline]] const Shape* MadeShape(const Attachment& attachment, const PolicyView& view,
                                         uint64_t policy, uint64_t coarse_step_ns,
                                         const sluice_descriptor_t* descriptors, size_t count,
                                         Blocks<Shape>& place) {
  for (size_t i = 0; i < count; ++i) {
    if (descriptors[i].name_len > kShapeNameBytes) return nullptr;
  }
  return place.Rebuild(shm::MonotonicClock::CoarseNs(), [&](const Shape* old, Shape* next) {
    return MakeShape(attachment, view, policy, coarse_step_ns, descriptors, count, old, next);
  });
}

[[gnu::noinline]] int BuildUnshaped(const Attachment& attachment, const PolicyView& view,
                                    uint64_t coarse_step_ns, const sluice_descriptor_t* descriptors,
                                    size_t count, Plan* plan) {
  Present present;
  ReadNames(view, descriptors, count, &present);
  const Request request = {descriptors, present};
  uint32_t group_count;
  const GroupView* const groups = view.groups(&group_count);
  for (uint32_t g = 0; g < group_count; ++g) {
    if ((groups[g].needed & ~present.mask) != 0) continue;
    Candidate candidate;
    MakeCandidate(view, g, present, coarse_step_ns, &plan->rules[plan->count], &candidate);
    const int added = Match(attachment, view, coarse_step_ns, candidate, request, plan);
    if (added != 0) return added;
  }
  return 0;
}

// By matching, in place: what is left where no direct shape serves. `shape`: the descriptors', or
// null.
int BuildFrom(const Attachment& attachment, const PolicyView& view, uint64_t coarse_step_ns,
              const sluice_descriptor_t* descriptors, size_t count, const Shape* shape,
              Blocks<Shape>* place, Plan* plan) {
  if (shape != nullptr && shape->policy != plan->policy) shape = nullptr;
  if (shape == nullptr && place != nullptr) {
    shape = MadeShape(attachment, view, plan->policy, coarse_step_ns, descriptors, count, *place);
  }
  if (shape == nullptr || shape->too_many) {
    return BuildUnshaped(attachment, view, coarse_step_ns, descriptors, count, plan);
  }
  const Request request = {descriptors, shape->present};
  for (size_t i = 0; i < shape->candidate_count; ++i) {
    const int added = Match(attachment, view, coarse_step_ns, shape->candidates[i], request, plan);
    if (added != 0) return added;
  }
  return 0;
}

[[gnu::noinline]] int BuildLong(const Attachment& attachment, uint64_t coarse_step_ns,
                                const sluice_descriptor_t* descriptors, size_t count,
                                const Shape* shape, Blocks<Shape>* place, Plan* plan) {
  if (count > SLUICE_MAX_DESCRIPTORS) return SLUICE_E_DESCRIPTORS;
  for (size_t i = 0; i < count && shape == nullptr; ++i) {  // a shape has looked already
    if (!IsDescriptor(descriptors[i])) return SLUICE_E_DESCRIPTORS;
  }
  for (int attempt = 0; attempt < kPolicyReads; ++attempt) {
    // Pairs with the daemon's release store: the buffer that it names is whole.
    const uint64_t policy = attachment.control->policy.load(std::memory_order_acquire);
    plan->policy = policy;
    plan->count = 0;
    plan->value_count = 0;
    plan->arena_used = 0;
    plan->coarse_serves = true;
    plan->tries = false;
    if (policy == 0) return 0;
    const PolicyView view = ViewOf(attachment, policy);
    plan->structure = view.header().structure_hash;
    const int built =
        BuildFrom(attachment, view, coarse_step_ns, descriptors, count, shape, place, plan);
    if (IsInForce(attachment, policy)) return built;
  }
  plan->count = 0;
  return SLUICE_E_RULES;
}

// The plan of a direct shape: nothing is left to match.
void BuildDirect(const Attachment& attachment, const Shape& shape,
                 const sluice_descriptor_t* descriptors, Plan* plan) {
  static_assert(kMaxItems * kIpBytes <= kArenaBytes && kMaxItems <= kMaxPlanValues);
  for (size_t i = 0; i < shape.candidate_count; ++i) {
    const Candidate& candidate = shape.candidates[i];
    const Text value = KeyValue(candidate.key[0], ValueAt(descriptors, candidate.key_at[0]),
                                plan->arena + i * kIpBytes);
    plan->values[i] = value;
    Item& item = plan->items[i];
    item.rule = candidate.rule;
    item.values = &plan->values[i];
    item.hash = shm::HashValue(attachment.hash_key, value.view(), candidate.hash_seed);
    item.value_count = 1;
    item.folded = value.size > candidate.plain_bytes;
    if (item.folded) [[unlikely]] {
      HashItem(attachment, candidate.hash_seed, candidate.label_bytes, &item);
    }
    PrefetchItem(attachment, item);
  }
  plan->policy = shape.policy;
  plan->structure = shape.structure;
  plan->count = plan->value_count = shape.candidate_count;
  plan->arena_used = kArenaBytes;
  plan->coarse_serves = shape.coarse_serves;
  plan->tries = false;
}

}  // namespace

int BuildPlan(const Attachment& attachment, uint64_t coarse_step_ns,
              const sluice_descriptor_t* descriptors, size_t count, Shapes* shapes, Plan* plan) {
  Blocks<Shape>* place = nullptr;
  const Shape* shape = nullptr;
  if (shapes != nullptr && count - 1 < kShapeNames) [[likely]] {
    place = &shapes->PlaceOf(descriptors, count);
    shape = place->current();
    // Pairs with the daemon's release store, though only the word itself is looked at.
    const uint64_t policy = attachment.control->policy.load(std::memory_order_acquire);
    if (shape != nullptr && !shape->IsOf(attachment, policy, descriptors, count)) shape = nullptr;
    if (shape != nullptr && shape->is_direct) [[likely]] {
      BuildDirect(attachment, *shape, descriptors, plan);
      return 0;
    }
  }
  return BuildLong(attachment, coarse_step_ns, descriptors, count, shape, place, plan);
}

Text IpValue(const shm::KeyPartView& part, Text value, char* ip) {
  const std::string_view network =
      shm::CanonicalPrefix(value.view(), part.v4_bits, part.v6_bits, ip);
  return network.data() != nullptr ? Text{network.data(), network.size()} : value;
}

namespace {

// A name that is too long for its slot's text: its values become one.
[[gnu::noinline]] void FoldItem(const Attachment& attachment, uint64_t rule_seed,
                                size_t label_bytes, Item* item) {
  std::string_view values[shm::kMaxKeyParts];
  for (uint32_t i = 0; i < item->value_count; ++i) values[i] = item->values[i].view();
  char folded[shm::kKeyTextBytes];
  const size_t n = shm::FoldLong(label_bytes, values, item->value_count, folded);
  item->hash = shm::LongNameHash(attachment.hash_key, rule_seed, {folded, n});
}

}  // namespace

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
    FoldItem(attachment, rule_seed, label_bytes, item);
  }
}

int FindRule(const Attachment& attachment, std::string_view label, Rule* rule, RuleKey* key) {
  const size_t mark = std::min(label.find(kClassMark), label.size());
  const std::string_view of_class = label.substr(std::min(mark + 1, label.size()));
  const bool has_class = mark != label.size();
  label = label.substr(0, mark);
  for (int attempt = 0; attempt < kPolicyReads; ++attempt) {
    // Pairs with the daemon's release store, see BuildLong.
    key->policy = attachment.control->policy.load(std::memory_order_acquire);
    if (key->policy == 0) return SLUICE_E_NO_RULE;
    const PolicyView view = ViewOf(attachment, key->policy);
    key->structure = view.header().structure_hash;
    int result = SLUICE_E_NO_RULE;
    for (uint32_t id = 0; id < view.rule_count(); ++id) {
      const RuleView& candidate = view.rule(id);
      if (view.text(candidate.label) != label || candidate.beside != shm::kNoRule) continue;
      const GroupView& group = view.group(candidate.numbers.group);
      if (group.key_count > 1 || (has_class && group.class_count == 0)) break;
      *rule = candidate.numbers;
      if (group.class_count != 0) {
        bool is_listed;
        const uint16_t floor_q16 = FloorOf(view, group, of_class, &is_listed);
        if (has_class && !is_listed) break;
        *rule = shm::Floored(*rule, floor_q16);
      }
      key->hash_seed = candidate.hash_seed;
      key->label_bytes = label.size();
      key->value_count = group.key_count;
      key->part = group.key_count == 1 ? view.key_part(group, 0) : KeyPartView{};
      key->candidate = candidate.candidate;
      result = 0;
      break;
    }
    if (IsInForce(attachment, key->policy)) return result;
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
  return IsInForce(attachment, policy) ? n : 0;
}

}  // namespace sluice::client
