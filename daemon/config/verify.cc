// Is this a whole policy? Asked of bytes that a former daemon left in the control segment. Only
// daemons write there, so this finds torn writes and other versions, and proves every offset.
#include <algorithm>
#include <cstring>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "daemon/config/compile.h"
#include "daemon/config/crc32.h"
#include "daemon/config/text.h"
#include "shm/log.h"
#include "shm/places.h"
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

absl::Status Bad(std::string_view what) {
  return absl::InvalidArgumentError(Cat("this is no whole policy: ", what));
}

class Verifier {
 public:
  // `aligned` holds the whole policy, `bytes` of them.
  Verifier(const char* aligned, uint32_t bytes) : view_(aligned), bytes_(bytes) {}

  absl::Status Names() const;
  absl::Status Groups() const;
  absl::Status Rules() const;

 private:
  bool TextFits(StringRef ref, uint32_t min, uint32_t max) const {
    return ref.length >= min && ref.length <= max && ref.offset >= sizeof(PolicyHeader) &&
           uint64_t{ref.offset} + ref.length <= bytes_;
  }
  template <class T>
  bool ArrayFits(uint32_t offset, uint64_t count) const {
    return offset % alignof(T) == 0 && offset >= sizeof(PolicyHeader) &&
           offset + count * sizeof(T) <= bytes_;
  }
  bool IsName(uint8_t id) const { return id < view_.name_count(); }
  bool ConditionFits(const ConditionView& condition) const;
  bool TextsFit(uint32_t offset, uint32_t count) const;
  bool MetadataFits(const GroupView& group) const;
  bool PriorityFits(const GroupView& group) const;
  bool OutcomesFit(const GroupView& group) const;
  absl::Status Group(const GroupView& group) const;
  // Whether it is the one of a rule of the same group and kind of word.
  bool IsCandidate(const RuleView& rule, uint32_t id) const {
    if (rule.beside >= view_.rule_count()) return false;
    const RuleView& beside = view_.rule(rule.beside);
    return beside.candidate == id && beside.beside == shm::kNoRule &&
           rule.candidate == shm::kNoRule && beside.numbers.group == rule.numbers.group &&
           beside.numbers.kind == rule.numbers.kind;
  }
  absl::Status Rule(const RuleView& rule, uint32_t id) const;

  shm::PolicyView view_;
  uint32_t bytes_;
};

absl::Status Verifier::Names() const {
  const PolicyHeader& header = view_.header();
  if (header.name_count > shm::kMaxNames) return Bad("too many descriptors");
  for (const uint8_t slot : header.name_slots) {
    if (slot != shm::kNoName && !IsName(slot)) return Bad("the index of descriptors is broken");
  }
  for (uint32_t i = 0; i < header.name_count; ++i) {
    if (!TextFits(header.names[i], 1, shm::kMaxPatternBytes)) {
      return Bad("a descriptor's name lies outside");
    }
  }
  for (uint32_t i = 0; i < header.name_count; ++i) {
    if (view_.FindName(view_.text(header.names[i])) != i) {
      return Bad("a descriptor is not in the index");
    }
  }
  return absl::OkStatus();
}

bool Verifier::ConditionFits(const ConditionView& condition) const {
  if (!IsName(condition.name)) return false;
  switch (condition.op) {
    case shm::MatchOp::kExact:
    case shm::MatchOp::kPrefix:
    case shm::MatchOp::kGlob:
      return TextFits(condition.value, 0, shm::kMaxPatternBytes);
    case shm::MatchOp::kOneOf:
      break;
    default:
      return false;
  }
  return condition.count != 0 && condition.count <= shm::kMaxOneOf &&
         TextsFit(condition.value.offset, condition.count);
}

// Whether `count` references stand there, and what they speak of.
bool Verifier::TextsFit(uint32_t offset, uint32_t count) const {
  if (!ArrayFits<StringRef>(offset, count)) return false;
  const char* const refs = reinterpret_cast<const char*>(&view_.header()) + offset;
  for (uint32_t i = 0; i < count; ++i) {
    StringRef ref;
    std::memcpy(&ref, refs + i * sizeof(ref), sizeof(ref));
    if (!TextFits(ref, 0, shm::kMaxPatternBytes)) return false;
  }
  return true;
}

bool Verifier::MetadataFits(const GroupView& group) const {
  return group.metadata_count <= shm::kMaxMetadata &&
         (group.metadata_count == 0 || TextsFit(group.metadata_offset, 2u * group.metadata_count));
}

bool Verifier::PriorityFits(const GroupView& group) const {
  if (group.class_count == 0) return true;
  if (group.class_count < 2 || group.class_count > shm::kMaxClasses ||
      !ArrayFits<ClassView>(group.classes_offset, group.class_count)) {
    return false;
  }
  for (uint32_t i = 0; i < group.class_count; ++i) {
    const ClassView& c = view_.class_of(group, i);
    if (!IsName(c.name) || c.name != view_.class_of(group, 0).name ||
        !TextFits(c.value, i == 0 ? 0 : 1, shm::kMaxPatternBytes)) {
      return false;
    }
  }
  return true;
}

bool Verifier::OutcomesFit(const GroupView& group) const {
  if (group.outcome_count > shm::kMaxOutcomes ||
      !ArrayFits<shm::OutcomeView>(group.outcomes_offset, group.outcome_count)) {
    return false;
  }
  for (uint32_t i = 0; i < group.outcome_count; ++i) {
    const shm::OutcomeView& outcome = view_.outcome(group, i);
    if (outcome.first_status > outcome.last_status || outcome.tokens > shm::kMaxTokens)
      return false;
  }
  return true;
}

absl::Status Verifier::Group(const GroupView& group) const {
  if (group.condition_count > shm::kMaxConditions || group.key_count > shm::kMaxKeyParts ||
      !ArrayFits<ConditionView>(group.conditions_offset, group.condition_count) ||
      !ArrayFits<KeyPartView>(group.key_offset, group.key_count)) {
    return Bad("a rule's conditions or key lie outside");
  }
  uint64_t needed = 0;
  for (uint32_t i = 0; i < group.condition_count; ++i) {
    const ConditionView& condition = view_.condition(group, i);
    if (!ConditionFits(condition)) return Bad("a condition is broken");
    needed |= 1ull << condition.name;
  }
  for (uint32_t i = 0; i < group.key_count; ++i) {
    const KeyPartView& part = view_.key_part(group, i);
    if (!IsName(part.name) || part.form > shm::KeyForm::kIp || part.v4_bits > 32 ||
        part.v6_bits > 128) {
      return Bad("a key is broken");
    }
    needed |= 1ull << part.name;
  }
  if (!MetadataFits(group)) return Bad("a rule's metadata lie outside");
  if (!PriorityFits(group)) return Bad("a priority is broken");
  if (!OutcomesFit(group)) return Bad("a rule's outcomes are broken");
  if (group.given_max > shm::kMaxTokens || (group.given_max != 0 && !IsName(group.given_name))) {
    return Bad("an override is broken");
  }
  const bool has_base = group.base_rule != shm::kNoRule;
  if (uint32_t{group.first_rule} + group.tier_count > view_.rule_count() ||
      (has_base && group.base_rule >= view_.rule_count()) || (!has_base && group.tier_count == 0) ||
      (group.tier_count > 0) != IsName(group.tier_name) ||
      (group.tier_count == 0 && group.tier_name != shm::kNoName)) {
    return Bad("a rule's limits lie outside");
  }
  if (!has_base) needed |= 1ull << group.tier_name;
  if (group.needed != needed) return Bad("a rule's mask of descriptors is wrong");
  return absl::OkStatus();
}

absl::Status Verifier::Groups() const {
  const PolicyHeader& header = view_.header();
  if (header.group_count > shm::kMaxGroups || header.rule_count > shm::kMaxRules ||
      !ArrayFits<GroupView>(header.groups_offset, header.group_count) ||
      !ArrayFits<RuleView>(header.rules_offset, header.rule_count)) {
    return Bad("the tables of rules lie outside");
  }
  for (uint32_t i = 0; i < header.group_count; ++i) {
    absl::Status status = Group(view_.group(i));
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status Verifier::Rule(const RuleView& rule, uint32_t id) const {
  const shm::RuleNumbers& n = rule.numbers;
  if (n.id != id) return Bad("a limit has another's number");
  if (n.group >= view_.group_count()) return Bad("a limit is of no rule");
  const GroupView& group = view_.group(n.group);
  const bool is_tier = id >= group.first_rule && id < uint32_t{group.first_rule} + group.tier_count;
  if (!is_tier && id != group.base_rule && !IsCandidate(rule, id)) {
    return Bad("a limit is of another rule");
  }
  if (rule.candidate != shm::kNoRule &&
      (rule.candidate >= view_.rule_count() || view_.rule(rule.candidate).beside != id)) {
    return Bad("a candidate is of another limit");
  }
  if (!TextFits(rule.label, 1, shm::kMaxLabelBytes) ||
      !TextFits(rule.tier, is_tier ? 1 : 0, shm::kMaxLabelBytes)) {
    return Bad("a label lies outside");
  }
  if (view_.text(rule.label).find(shm::kGivenMark) != std::string_view::npos) {
    return Bad("a label holds the mark of a limit that comes with a request");
  }
  const shm::Limit& limit = n.limit;
  if (limit.limit == 0 || limit.limit > shm::kMaxTokens || limit.burst == 0 ||
      limit.burst > shm::kMaxTokens || limit.period_ns == 0 || limit.period_ns > shm::kMaxSpanNs ||
      n.cost == 0 || n.cost > limit.burst || n.max_delay_ns > kMaxDelayNs) {
    return Bad("a limit is out of range");
  }
  const uint64_t most = n.kind == shm::Kind::kLease         ? kMaxWaitNs / 1'000'000
                        : n.kind == shm::Kind::kFixedWindow ? shm::kMaxCalendars
                                                            : 0;
  if (n.wait_ms > most) {
    return Bad("a wait is out of range");
  }
  if (n.floor_q16 != 0 || (n.classed != 0 && group.class_count == 0) ||
      (group.class_count != 0 && n.kind == shm::Kind::kInFlight)) {
    return Bad("a limit has a priority that it cannot have");
  }
  const bool is_given = group.given_max != 0;
  if (n.given != 0 ||
      (is_given && (n.kind != shm::Kind::kTokenBucket || n.max_delay_ns != 0 ||
                    rule.label.length + shm::kMaxGivenBytes > shm::kMaxLabelBytes ||
                    MostOf(limit, n.cost, group.given_max).tau_ns > shm::kMaxSpanNs))) {
    return Bad("a limit is overridden that cannot be");
  }
  const bool is_window = shm::IsWindow(n.kind);
  if (is_window && (limit.period_ns < shm::window::kMinPeriodNs || n.max_delay_ns != 0)) {
    return Bad("a window is out of range");
  }
  const bool is_log = n.kind == shm::Kind::kSlidingLog;
  const bool is_in_flight = n.kind == shm::Kind::kInFlight;
  if (shm::HasRow(n.kind) && (limit.limit > shm::kMaxLogEntries || n.max_delay_ns != 0)) {
    return Bad("a log is out of range");
  }
  constexpr uint64_t kMaxSpanOfBan = std::max(kMaxBanNs, kMaxTauNs);
  const shm::Limit expected =
      is_window      ? shm::window::MakeLimit(limit.limit, limit.period_ns)
      : is_log       ? shm::logs::MakeLimit(limit.limit, limit.period_ns)
      : is_in_flight ? shm::places::MakeLimit(limit.limit)
                     : shm::MakeLimit(limit.limit, limit.period_ns, limit.burst, n.max_delay_ns);
  if (limit.interval_ns != expected.interval_ns ||
      ((is_window || shm::HasRow(n.kind)) && limit.burst != limit.limit) ||
      limit.tau_ns != expected.tau_ns ||
      (n.penal ? limit.debt_max_ns < expected.debt_max_ns || limit.debt_max_ns > kMaxSpanOfBan
               : limit.debt_max_ns != expected.debt_max_ns) ||
      limit.period_ns != expected.period_ns || limit.tau_ns > shm::kMaxSpanNs ||
      n.unit_ns != shm::CostNs(n.cost, limit.period_ns, limit.limit)) {
    return Bad("a limit was computed otherwise");
  }
  constexpr uint32_t kOne = 1u << 16;
  if (n.mode > shm::DegradedMode::kNormal || n.then_mode > shm::DegradedMode::kNormal ||
      n.factor_q16 < kOne || n.then_factor_q16 < kOne || n.for_ns > shm::kMaxSpanNs ||
      n.kind > shm::Kind::kInFlight) {
    return Bad("a rule's degraded mode or kind is broken");
  }
  if (n.penal && (n.kind != shm::Kind::kTokenBucket || n.max_delay_ns != 0 ||
                  group.class_count != 0 || rule.beside != shm::kNoRule)) {
    return Bad("a rule has a penalty that it cannot have");
  }
  if (n.spread_s != 0 && n.kind != shm::Kind::kTokenBucket) {
    return Bad("a rule spreads retries that it cannot");
  }
  if (n.near_percent == 0 || n.near_percent > 100 || n.soft_percent > 100) {
    return Bad("a rule's levels are out of range");
  }
  return absl::OkStatus();
}

absl::Status Verifier::Rules() const {
  absl::flat_hash_set<std::string> labels;
  for (uint32_t id = 0; id < view_.rule_count(); ++id) {
    const RuleView& rule = view_.rule(id);
    absl::Status status = Rule(rule, id);
    if (!status.ok()) return status;
    if (!labels.insert(std::string(view_.text(rule.label))).second) {
      return Bad("two limits have one label");
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status VerifyPolicy(std::string_view bytes) {
  PolicyHeader header;
  if (bytes.size() < sizeof(header)) return Bad("it is too short");
  std::memcpy(&header, bytes.data(), sizeof(header));
  if (header.magic != shm::kPolicyMagic) return Bad("its magic number is missing");
  if (header.bytes < sizeof(header) || header.bytes > bytes.size() ||
      header.bytes > shm::kPolicyBufferBytes) {
    return Bad("its length is wrong");
  }
  if (header.seq == 0) return Bad("it has no number");
  const std::string_view body = bytes.substr(sizeof(header), header.bytes - sizeof(header));
  if (Crc32(body) != header.crc32) return Bad("its checksum does not match");
  // PolicyView's masks would read within a whole buffer, so it gets one.
  std::vector<uint64_t> copy(shm::kPolicyBufferBytes / 8);
  std::memcpy(copy.data(), bytes.data(), header.bytes);
  const Verifier verifier(reinterpret_cast<const char*>(copy.data()), header.bytes);
  absl::Status status = verifier.Names();
  if (status.ok()) status = verifier.Groups();
  if (status.ok()) status = verifier.Rules();
  return status;
}

}  // namespace sluice::config
