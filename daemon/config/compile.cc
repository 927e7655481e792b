#include "daemon/config/compile.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "daemon/config/crc32.h"
#include "daemon/config/text.h"
#include "shm/hash.h"
#include "shm/log.h"
#include "shm/places.h"
#include "shm/policy_buffer.h"
#include "shm/window.h"

namespace sluice::config {
namespace {

using shm::ClassView;
using shm::ConditionView;
using shm::GroupView;
using shm::KeyPartView;
using shm::PolicyHeader;
using shm::RuleView;
using shm::StringRef;

uint32_t FactorQ16(double factor) { return static_cast<uint32_t>(std::llround(65536.0 / factor)); }

// Gathers the arrays of a policy; Finish() lays them out. String offsets count from the beginning
// of the string bytes, and one-of offsets from the beginning of the references, until then.
class Builder {
 public:
  Builder(const shm::HashKey& salt_key, const Config& config)
      : salt_key_(salt_key), has_redis_(config.redis.has_value()), calendars_(config.calendars) {}

  absl::Status Add(const RuleConfig& rule);
  absl::StatusOr<std::string> Finish(uint64_t seq);

 private:
  uint8_t NameId(const std::string& name);
  StringRef Text(const std::string& text);
  void AddConditions(const RuleConfig& rule, GroupView* group);
  void AddKey(const RuleConfig& rule, GroupView* group);
  void AddPriority(const RuleConfig& rule, GroupView* group);
  void AddRule(const RuleConfig& rule, const TierConfig* tier);
  RuleView MakeRule(const RuleConfig& rule, const TierConfig* tier, const LimitConfig& limit,
                    const std::string& label);
  void AddNameIndex(PolicyHeader* header) const;

  const shm::HashKey& salt_key_;
  const bool has_redis_;
  const std::vector<CalendarConfig>& calendars_;
  std::vector<std::string> names_;
  std::vector<GroupView> groups_;
  std::vector<RuleView> rules_;
  std::vector<RuleView> candidates_;  // behind rules_, once those are whole
  std::vector<ConditionView> conditions_;
  std::vector<KeyPartView> key_parts_;
  std::vector<ClassView> classes_;
  std::vector<shm::OutcomeView> outcomes_;
  std::vector<StringRef> refs_;
  std::string strings_;
  absl::flat_hash_map<std::string, StringRef> interned_;
};

uint8_t Builder::NameId(const std::string& name) {
  for (size_t i = 0; i < names_.size(); ++i) {
    if (names_[i] == name) return static_cast<uint8_t>(i);
  }
  names_.push_back(name);
  return static_cast<uint8_t>(names_.size() - 1);
}

StringRef Builder::Text(const std::string& text) {
  const auto [at, is_new] = interned_.try_emplace(text);
  if (is_new) {
    at->second = {static_cast<uint32_t>(strings_.size()), static_cast<uint32_t>(text.size())};
    strings_ += text;
  }
  return at->second;
}

void Builder::AddConditions(const RuleConfig& rule, GroupView* group) {
  group->conditions_offset = static_cast<uint32_t>(conditions_.size());
  group->condition_count = static_cast<uint16_t>(rule.match.size());
  for (const MatchConfig& match : rule.match) {
    ConditionView condition{};
    condition.name = NameId(match.descriptor);
    condition.op = match.op;
    if (match.op == shm::MatchOp::kOneOf) {
      condition.count = static_cast<uint16_t>(match.values.size());
      condition.value = {static_cast<uint32_t>(refs_.size()),
                         static_cast<uint32_t>(match.values.size() * sizeof(StringRef))};
      for (const std::string& value : match.values) refs_.push_back(Text(value));
    } else {
      condition.value = Text(match.values.front());
    }
    conditions_.push_back(condition);
    group->needed |= 1ull << (condition.name % shm::kMaxNames);
  }
}

void Builder::AddKey(const RuleConfig& rule, GroupView* group) {
  group->key_offset = static_cast<uint32_t>(key_parts_.size());
  group->key_count = static_cast<uint16_t>(rule.key.size());
  for (const KeyConfig& key : rule.key) {
    key_parts_.push_back({.name = NameId(key.descriptor),
                          .form = key.form,
                          .v4_bits = key.v4_bits,
                          .v6_bits = key.v6_bits});
    group->needed |= 1ull << (key_parts_.back().name % shm::kMaxNames);
  }
}

// Rounded down, so that a class never has less than what is written.
uint16_t FloorQ16(double part) { return static_cast<uint16_t>((1 - part) * 65536); }

// Tells a class of one rule from those of others, that of no class included.
uint16_t ClassTag(const std::string& rule, const std::string& value) {
  return static_cast<uint16_t>(shm::Fnv1a(Cat(rule, ":", value)));
}

void Builder::AddPriority(const RuleConfig& rule, GroupView* group) {
  const PriorityConfig& priority = *rule.priority;
  const uint8_t name = NameId(priority.descriptor);
  group->classes_offset = static_cast<uint32_t>(classes_.size());
  group->class_count = static_cast<uint8_t>(priority.classes.size() + 1);
  const auto add = [&](const std::string& value, double part) {
    classes_.push_back({.value = Text(value),
                        .floor_q16 = FloorQ16(part),
                        .tag = ClassTag(rule.name, value),
                        .name = name,
                        .reserved = {}});
  };
  add("", priority.otherwise);
  for (const PriorityConfig::Class& c : priority.classes) add(c.value, c.part);
}

// Its place among the rules is not known yet.
RuleView Builder::MakeRule(const RuleConfig& rule, const TierConfig* tier, const LimitConfig& limit,
                           const std::string& label) {
  const DegradedConfig& degraded = tier == nullptr ? rule.degraded : tier->degraded;
  RuleView view{};
  shm::RuleNumbers& numbers = view.numbers;
  const bool is_window = shm::IsWindow(rule.kind);
  numbers.limit =
      is_window                             ? shm::window::MakeLimit(limit.limit, limit.period_ns)
      : rule.kind == shm::Kind::kSlidingLog ? shm::logs::MakeLimit(limit.limit, limit.period_ns)
      : rule.kind == shm::Kind::kInFlight
          ? shm::places::MakeLimit(limit.limit)
          : shm::MakeLimit(limit.limit, limit.period_ns, limit.burst, limit.max_delay_ns);
  numbers.unit_ns = shm::CostNs(limit.cost, limit.period_ns, limit.limit);
  numbers.for_ns = degraded.for_ns;
  numbers.spread_s = rule.retry_spread_ns / 1'000'000'000;
  numbers.cost = limit.cost;
  numbers.max_delay_ns = limit.max_delay_ns;
  // One host alone is exact as it is, and nobody would lend to it.
  const bool is_lent = rule.strict || rule.overdraft;
  numbers.kind = is_lent && has_redis_ ? shm::Kind::kLease : rule.kind;
  numbers.wait_ms = numbers.kind == shm::Kind::kLease
                        ? static_cast<uint16_t>(rule.wait_ns / 1'000'000)
                        : limit.calendar;
  numbers.factor_q16 = FactorQ16(degraded.factor);
  numbers.then_factor_q16 = FactorQ16(degraded.then_factor);
  numbers.group = static_cast<uint16_t>(groups_.size());
  numbers.mode = degraded.mode;
  numbers.then_mode = degraded.then;
  const bool lends_places = rule.kind == shm::Kind::kInFlight && has_redis_;
  numbers.strict = rule.strict || lends_places ? 1 : 0;
  numbers.alert = degraded.alert ? 1 : 0;
  numbers.shadow = rule.shadow ? 1 : 0;
  numbers.classed = rule.priority ? 1 : 0;
  if (rule.penalty.is_any()) {
    numbers.penal = 1;
    numbers.limit.debt_max_ns = std::max(numbers.limit.debt_max_ns, rule.penalty.for_ns);
    Text(rule.penalty.ToString());  // stands in no other way in what hosts compare
  }
  numbers.near_percent = rule.near_percent;
  numbers.soft_percent = rule.soft_percent;
  uint64_t seed = is_window ? shm::window::HashSeed(limit.limit, limit.period_ns) : 0;
  if (limit.calendar != 0) {
    // Stands in no other way in what hosts compare: with another calendar its buckets begin anew.
    const std::string calendar = calendars_[limit.calendar - 1].ToString();
    Text(calendar);
    seed ^= shm::Fnv1a(calendar);
  }
  view.hash_seed = shm::HashValue(salt_key_, label, seed);
  view.label = Text(label);
  view.tier = Text(tier == nullptr ? std::string() : tier->tier);
  view.candidate = view.beside = shm::kNoRule;
  return view;
}

void Builder::AddRule(const RuleConfig& rule, const TierConfig* tier) {
  const std::string label = RuleLabel(rule, tier);
  const std::optional<LimitConfig>& tried = tier == nullptr ? rule.candidate : tier->candidate;
  rules_.push_back(MakeRule(rule, tier, tier == nullptr ? *rule.limit : tier->limit, label));
  rules_.back().numbers.id = static_cast<uint16_t>(rules_.size() - 1);
  if (!tried) return;
  candidates_.push_back(MakeRule(rule, tier, *tried, label + std::string(kCandidateMark)));
  RuleView& candidate = candidates_.back();
  candidate.beside = rules_.back().numbers.id;
  // Others than its rule's: an alarm is of what is in force, and retries are told by it. Classes
  // are counted by it as well.
  candidate.numbers.shadow = 1;
  candidate.numbers.alert = 0;
  candidate.numbers.spread_s = 0;
  candidate.numbers.penal = 0;
  candidate.numbers.classed = 0;
  candidate.numbers.limit.debt_max_ns =
      rule.penalty.is_any()
          ? shm::MakeLimit(tried->limit, tried->period_ns, tried->burst).debt_max_ns
          : candidate.numbers.limit.debt_max_ns;
}

absl::Status Builder::Add(const RuleConfig& rule) {
  size_t rule_count = rules_.size() + candidates_.size();
  ForEachLimit(rule, [&](const LimitConfig*) { ++rule_count; });
  if (rule_count > shm::kMaxRules) {
    return absl::ResourceExhaustedError(Cat("with rule `", rule.name, "` there are ", rule_count,
                                            " limits, ", rule_count - shm::kMaxRules,
                                            " more than the ", shm::kMaxRules, " that fit"));
  }
  GroupView group{};
  group.tier_name = shm::kNoName;
  group.base_rule = shm::kNoRule;
  AddConditions(rule, &group);
  AddKey(rule, &group);
  if (rule.priority) AddPriority(rule, &group);
  group.outcomes_offset = static_cast<uint32_t>(outcomes_.size());
  group.outcome_count = static_cast<uint8_t>(rule.outcomes.size());
  for (const OutcomeConfig& outcome : rule.outcomes) {
    outcomes_.push_back({.first_status = outcome.first_status,
                         .last_status = outcome.last_status,
                         .tokens = outcome.tokens});
  }
  if (rule.override) {
    group.given_name = NameId(rule.override->descriptor);
    group.given_max = rule.override->max;
  }
  // Counts from the beginning of the references, as the lists of conditions.
  group.metadata_offset = static_cast<uint32_t>(refs_.size());
  group.metadata_count = static_cast<uint8_t>(rule.metadata.size());
  for (const auto& [name, value] : rule.metadata) {
    refs_.push_back(Text(name));
    refs_.push_back(Text(value));
  }
  group.first_rule = static_cast<uint16_t>(rules_.size());
  group.tier_count = static_cast<uint16_t>(rule.tiers.size());
  for (const TierConfig& tier : rule.tiers) AddRule(rule, &tier);
  if (rule.limit) {
    group.base_rule = static_cast<uint16_t>(rules_.size());
    AddRule(rule, nullptr);
  }
  if (!rule.tiers.empty()) {
    group.tier_name = NameId(rule.tier_by);
    if (!rule.limit) group.needed |= 1ull << (group.tier_name % shm::kMaxNames);
  }
  if (names_.size() > shm::kMaxNames) {
    return absl::ResourceExhaustedError(
        Cat("with rule `", rule.name, "` the rules speak of ", names_.size(), " descriptors, ",
            names_.size() - shm::kMaxNames, " more than the ", shm::kMaxNames, " that fit"));
  }
  groups_.push_back(group);
  return absl::OkStatus();
}

void Builder::AddNameIndex(PolicyHeader* header) const {
  std::memset(header->name_slots, shm::kNoName, sizeof(header->name_slots));
  for (size_t i = 0; i < names_.size(); ++i) {
    uint32_t slot = shm::NameSlot(names_[i]);
    while (header->name_slots[slot] != shm::kNoName) slot = (slot + 1) % shm::kNameSlots;
    header->name_slots[slot] = static_cast<uint8_t>(i);
  }
}

template <class T>
void Append(const std::vector<T>& items, std::string* bytes) {
  if (!items.empty()) {
    bytes->append(reinterpret_cast<const char*>(items.data()), items.size() * sizeof(T));
  }
}

absl::StatusOr<std::string> Builder::Finish(uint64_t seq) {
  for (RuleView& candidate : candidates_) {
    candidate.numbers.id = static_cast<uint16_t>(rules_.size());
    rules_[candidate.beside].candidate = candidate.numbers.id;
    rules_.push_back(candidate);
  }
  std::vector<StringRef> name_refs;
  for (const std::string& name : names_) name_refs.push_back(Text(name));

  // 64-bit sums: what does not fit must not wrap.
  const uint64_t groups_at = sizeof(PolicyHeader);
  const uint64_t rules_at = groups_at + groups_.size() * sizeof(GroupView);
  const uint64_t outcomes_at = rules_at + rules_.size() * sizeof(RuleView);
  const uint64_t conditions_at = outcomes_at + outcomes_.size() * sizeof(shm::OutcomeView);
  const uint64_t key_parts_at = conditions_at + conditions_.size() * sizeof(ConditionView);
  const uint64_t classes_at = key_parts_at + key_parts_.size() * sizeof(KeyPartView);
  const uint64_t refs_at = classes_at + classes_.size() * sizeof(ClassView);
  const uint64_t strings_at = refs_at + refs_.size() * sizeof(StringRef);
  const uint64_t total = strings_at + strings_.size();
  if (total > shm::kMaxPolicyBytes) {
    return absl::ResourceExhaustedError(Cat("the rules take ", total, " bytes compiled, ",
                                            total - shm::kMaxPolicyBytes, " more than the ",
                                            shm::kMaxPolicyBytes, " that fit"));
  }
  const auto move_text = [&](StringRef* ref) { ref->offset += static_cast<uint32_t>(strings_at); };

  PolicyHeader header{};
  header.magic = shm::kPolicyMagic;
  header.bytes = static_cast<uint32_t>(total);
  header.name_count = static_cast<uint32_t>(names_.size());
  header.group_count = static_cast<uint32_t>(groups_.size());
  header.groups_offset = static_cast<uint32_t>(groups_at);
  header.rule_count = static_cast<uint32_t>(rules_.size());
  header.rules_offset = static_cast<uint32_t>(rules_at);
  AddNameIndex(&header);
  for (size_t i = 0; i < name_refs.size(); ++i) {
    header.names[i] = name_refs[i];
    move_text(&header.names[i]);
  }
  for (GroupView& group : groups_) {
    group.conditions_offset =
        static_cast<uint32_t>(conditions_at + group.conditions_offset * sizeof(ConditionView));
    group.key_offset = static_cast<uint32_t>(key_parts_at + group.key_offset * sizeof(KeyPartView));
    group.classes_offset =
        static_cast<uint32_t>(classes_at + group.classes_offset * sizeof(ClassView));
    group.outcomes_offset =
        static_cast<uint32_t>(outcomes_at + group.outcomes_offset * sizeof(shm::OutcomeView));
    group.metadata_offset =
        static_cast<uint32_t>(refs_at + group.metadata_offset * sizeof(StringRef));
  }
  for (RuleView& rule : rules_) {
    move_text(&rule.label);
    move_text(&rule.tier);
  }
  for (ClassView& c : classes_) move_text(&c.value);
  for (ConditionView& condition : conditions_) {
    if (condition.op == shm::MatchOp::kOneOf) {
      condition.value.offset =
          static_cast<uint32_t>(refs_at + condition.value.offset * sizeof(StringRef));
    } else {
      move_text(&condition.value);
    }
  }
  for (StringRef& ref : refs_) move_text(&ref);

  const auto assemble = [&] {
    std::string bytes(reinterpret_cast<const char*>(&header), sizeof(header));
    Append(groups_, &bytes);
    Append(rules_, &bytes);
    Append(outcomes_, &bytes);  // of whole words, as those before
    Append(conditions_, &bytes);
    Append(key_parts_, &bytes);
    Append(classes_, &bytes);
    Append(refs_, &bytes);
    return bytes + strings_;
  };
  // Neither must depend on this host's salt or on how often it has reloaded.
  const std::vector<RuleView> rules = rules_;
  for (RuleView& rule : rules_) {
    rule.hash_seed = 0;
    if (shm::IsWindow(rule.numbers.kind)) rule.numbers.wait_ms = 0;  // a place, by history
  }
  const uint64_t version = shm::Fnv1a(assemble());
  for (RuleView& rule : rules_) {
    rule.numbers = {.id = rule.numbers.id, .group = rule.numbers.group};
  }
  const uint64_t structure = shm::Fnv1a(assemble());
  rules_ = rules;

  header.version_hash = version;
  header.structure_hash = structure;
  header.seq = seq;
  std::string bytes = assemble();
  header.crc32 = Crc32(std::string_view(bytes).substr(sizeof(PolicyHeader)));
  std::memcpy(bytes.data(), &header, sizeof(header));
  return bytes;
}

}  // namespace

absl::StatusOr<std::string> Compile(const Config& config, const shm::HashKey& salt_key,
                                    uint64_t seq) {
  if (config.rules.size() > shm::kMaxGroups) {
    return absl::ResourceExhaustedError(Cat("there are ", config.rules.size(), " rules, ",
                                            config.rules.size() - shm::kMaxGroups,
                                            " more than the ", shm::kMaxGroups, " that fit"));
  }
  Builder builder(salt_key, config);
  for (const RuleConfig& rule : config.rules) {
    const absl::Status added = builder.Add(rule);
    if (!added.ok()) return added;
  }
  return builder.Finish(seq);
}

namespace {

// The classes of a rule, whose first limit has that label.
void AddClasses(const shm::PolicyView& view, uint32_t group_id, const std::string& label,
                std::vector<CompiledClass>* classes) {
  const GroupView& group = view.group(group_id);
  std::vector<uint16_t> floors;
  for (uint32_t i = 1; i < group.class_count; ++i) {
    const ClassView& c = view.class_of(group, i);
    if (std::find(floors.begin(), floors.end(), c.floor_q16) != floors.end()) continue;
    floors.push_back(c.floor_q16);
    classes->push_back({.cell = shm::ClassCellOf(group_id, i),
                        .tag = c.tag,
                        .rule = RuleName(label),
                        .value = std::string(view.text(c.value))});
  }
}

}  // namespace

absl::StatusOr<CompiledRules> CompiledRules::Load(std::string_view policy_bytes) {
  const absl::Status verified = VerifyPolicy(policy_bytes);
  if (!verified.ok()) return verified;
  // A copy that is aligned as the views need it.
  std::vector<uint64_t> copy((policy_bytes.size() + 7) / 8);
  std::memcpy(copy.data(), policy_bytes.data(), policy_bytes.size());
  const shm::PolicyView view(reinterpret_cast<const char*>(copy.data()));

  CompiledRules compiled;
  compiled.seq_ = view.header().seq;
  compiled.version_hash_ = view.header().version_hash;
  for (uint32_t id = 0; id < view.rule_count(); ++id) {
    const RuleView& rule = view.rule(id);
    const shm::RuleNumbers& n = rule.numbers;
    compiled.rules_.push_back({.id = static_cast<uint16_t>(id),
                               .group = n.group,
                               .label = std::string(view.text(rule.label)),
                               .hash_seed = rule.hash_seed,
                               .limit = n.limit,
                               .cost = n.cost,
                               .max_delay_ns = n.max_delay_ns,
                               .wait_ns = shm::WaitMsOf(n) * 1'000'000,
                               .kind = n.kind,
                               .mode = n.mode,
                               .factor_q16 = n.factor_q16,
                               .for_ns = n.for_ns,
                               .then_mode = n.then_mode,
                               .then_factor_q16 = n.then_factor_q16,
                               .strict = n.strict != 0,
                               .shadow = n.shadow != 0,
                               .alert = n.alert != 0,
                               .classed = n.classed != 0,
                               .near_percent = n.near_percent,
                               .key_count = view.group(n.group).key_count,
                               .calendar_place = shm::CalendarOf(n),
                               .candidate = rule.candidate,
                               .beside = rule.beside});
    CompiledRule& made = compiled.rules_.back();
    made.given_max = view.group(n.group).given_max;
    made.most = MostOf(n.limit, n.cost, made.given_max);
    compiled.by_label_.emplace(made.label, static_cast<uint16_t>(id));
    compiled.max_debt_ns_ =
        std::max(compiled.max_debt_ns_, made.most.tau_ns + made.most.debt_max_ns);
    const GroupView& group = view.group(n.group);
    const bool is_first = id == (group.tier_count != 0 ? group.first_rule : group.base_rule);
    if (is_first) AddClasses(view, n.group, made.label, &compiled.classes_);
  }
  return compiled;
}

const CompiledRule* CompiledRules::Find(std::string_view label) const {
  const size_t mark = label.find(shm::kGivenMark);
  const auto at = by_label_.find(ToAbsl(label.substr(0, mark)));
  if (at == by_label_.end()) return nullptr;
  const CompiledRule* const rule = &rules_[at->second];
  if (mark != std::string_view::npos && rule->GivenOf(label) == 0) return nullptr;
  return rule;
}

// What came with the request as the client writes it: no more than may come, and in one spelling.
uint64_t CompiledRule::GivenOf(std::string_view bucket_label) const {
  if (bucket_label.size() <= label.size() || given_max == 0) return 0;
  const uint64_t given = shm::ReadGiven(bucket_label.substr(label.size() + 1), shm::kMostGiven);
  return given <= given_max ? given : 0;
}

shm::Limit MostOf(const shm::Limit& limit, uint32_t cost, uint64_t given_max) {
  if (given_max == 0) return limit;
  shm::Limit most = shm::Given(limit, given_max, cost);
  // The lower the limit, the longer a bucket takes that holds whole tokens. One second for what
  // rounding adds to the largest burst.
  const shm::Limit least = shm::Given(limit, 1, cost);
  most.tau_ns = std::max({limit.tau_ns, most.tau_ns, least.tau_ns}) + shm::kMinDebtNs;
  most.interval_ns = std::min(most.interval_ns, limit.interval_ns);
  most.debt_max_ns = most.tau_ns;
  return most;
}

}  // namespace sluice::config
