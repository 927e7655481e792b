// Compiled rules, read in place from a policy buffer of the control segment.
//
// The daemon writes a whole policy into a buffer that was superseded at least kPolicyRestNs ago,
// then release-stores the policy word {seq | buffer}. A reader loads the word (acquire), matches in
// place, and loads the word again: equal means that all it read belonged together, since no seq is
// ever used twice. A reader that stood still for longer than the rest may read torn bytes before it
// finds the word changed, so every offset and count is masked to a bound here, and nothing read in
// place is used as a pointer. The rest only makes that rare; five buffers that rest this long let
// the limits change ten times a second.
//
//   buffer:  PolicyHeader | GroupView[group_count] | RuleView[rule_count] | OutcomeView[] |
//            ConditionView[] | KeyPartView[] | ClassView[] | StringRef[] (one-of lists) | string
//            bytes
//
// A *group* is one rule of the configuration: its conditions and key. A *rule* is a group at one
// tier: a limit. The group without tiers has one rule, its base. Behind the rules of all groups
// stand their *candidates*: limits that are tried beside theirs, and matched by way of them. Rule
// ids index RuleView[] and are
// valid within one policy only; across policies a rule is known by its label, "name" or
// "name@tier". Policies of equal structure_hash match alike and name alike: what was matched under
// one holds under the other, at the same rule ids, and only RuleNumbers are to be read anew.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <type_traits>

#include "shm/clock.h"
#include "shm/gcra.h"
#include "shm/layout.h"

namespace sluice::shm {

inline constexpr uint32_t kPolicyMagic = 0x59434c50;  // "PLCY"
inline constexpr uint64_t kPolicyRestNs = 400'000'000;
inline constexpr uint32_t kMaxGroups = 1024;
inline constexpr uint32_t kMaxNames = 64;           // distinct descriptor names, one mask bit each
inline constexpr uint32_t kNameSlots = 128;         // open-addressed index of names
inline constexpr uint32_t kMaxConditions = 16;      // of one group
inline constexpr uint32_t kMaxKeyParts = 8;         // of one group
inline constexpr uint32_t kMaxOneOf = 256;          // values of one one-of condition
inline constexpr uint32_t kMaxClasses = 16;         // of one group's priority
inline constexpr uint32_t kMaxMetadata = 8;         // pairs of one group
inline constexpr uint32_t kMaxOutcomes = 16;        // of one group
inline constexpr uint32_t kMaxLabelBytes = 64;      // "name@tier"
inline constexpr uint32_t kMaxPatternBytes = 1024;  // one match value
inline constexpr uint16_t kNoRule = 0xffff;
inline constexpr uint8_t kNoName = 0xff;

struct StringRef {
  uint32_t offset;
  uint32_t length;
};

struct PolicyHeader {
  uint32_t magic;
  uint32_t bytes;  // whole policy, header included
  uint32_t crc32;  // IEEE, over [sizeof(PolicyHeader), bytes); checked by the daemon on adoption
  uint32_t name_count;
  uint64_t seq;
  uint32_t group_count;
  uint32_t groups_offset;
  uint32_t rule_count;
  uint32_t rules_offset;
  uint64_t version_hash;           // of the configuration's text: equal on hosts with equal limits
  uint64_t structure_hash;         // of all but the limits' numbers, see below
  uint8_t name_slots[kNameSlots];  // NameSlot() -> name id, kNoName: empty; linear probing
  StringRef names[kMaxNames];
};
static_assert(sizeof(PolicyHeader) == 56 + kNameSlots + kMaxNames * 8);

enum class MatchOp : uint8_t { kExact = 0, kPrefix = 1, kGlob = 2, kOneOf = 3 };

struct ConditionView {
  uint8_t name;  // name id
  MatchOp op;
  uint16_t count;   // kOneOf: how many StringRefs stand at value.offset
  StringRef value;  // kPrefix: without the trailing '*'
};
static_assert(sizeof(ConditionView) == 12);

enum class KeyForm : uint8_t {
  kRaw = 0,
  kIp = 1,  // canonical network address with v4_bits / v6_bits kept; not an address: kept raw
};

struct KeyPartView {
  uint8_t name;
  KeyForm form;
  uint8_t v4_bits;
  uint8_t v6_bits;
};
static_assert(sizeof(KeyPartView) == 4);

// One class of a group's priority. The first is of requests of no class that is listed: its value
// is empty, and never compared.
struct ClassView {
  StringRef value;     // of the descriptor
  uint16_t floor_q16;  // of the whole bucket, with 16 fraction bits: the class leaves so much in it
  uint16_t tag;        // tells its denials from those of another policy's class, see CountClass()
  uint8_t name;        // id of the descriptor, the same in all classes of a group
  uint8_t reserved[3];
};
static_assert(sizeof(ClassView) == 16);
static_assert(kMaxGroups * kMaxClasses == kClassCells);
// Where denials of a group's class are counted in the bucket segment. The classes are those after
// the first.
inline uint32_t ClassCellOf(uint32_t group, uint32_t c) {
  return group % kMaxGroups * kMaxClasses + c % kMaxClasses;
}

// What a request costs in the end, by how it ended: the first row that holds its status counts.
struct OutcomeView {
  uint16_t first_status;
  uint16_t last_status;
  uint32_t reserved;
  uint64_t tokens;  // 0: nothing, what was spent is given back
};
static_assert(sizeof(OutcomeView) == 16);

struct GroupView {
  uint64_t needed;  // bit per name id that must be present (conditions and key)
  uint32_t conditions_offset;
  uint32_t key_offset;
  uint16_t condition_count;
  uint16_t key_count;
  uint16_t first_rule;  // tiers: rules [first_rule, first_rule + tier_count), matched by `tier`
  uint16_t tier_count;
  uint16_t base_rule;   // no tier matched, or no tiers; kNoRule: then the group does not apply
  uint8_t tier_name;    // name id of the descriptor that selects the tier; kNoName: none
  uint8_t class_count;  // 0: the group has no priority; else 2..kMaxClasses
  uint32_t classes_offset;
  uint32_t metadata_offset;  // StringRefs: a name, its value, the next name...
  uint8_t metadata_count;    // pairs, 0..kMaxMetadata
  uint8_t given_name;        // name id of the descriptor that brings a limit; 0 where none may
  uint8_t outcome_count;     // 0..kMaxOutcomes
  uint8_t reserved;
  uint32_t outcomes_offset;
  uint32_t more_reserved;
  uint64_t given_max;  // the largest such limit, in tokens per the rule's period; 0: none may
};
static_assert(sizeof(GroupView) == 56);
// Hosts compare hashes of the bytes: none may be left to chance.
static_assert(std::has_unique_object_representations_v<GroupView> &&
              std::has_unique_object_representations_v<ClassView> &&
              std::has_unique_object_representations_v<OutcomeView>);

enum class DegradedMode : uint8_t {
  kOpen = 0,     // admit all, go on counting
  kClosed = 1,   // deny all
  kDegrade = 2,  // the host's share of the limit, times factor
  kNormal = 3,   // go on as if healthy (local decisions at the last share)
};

// What a check needs of a rule: readers copy it whole, so that a change cannot tear a decision.
struct RuleNumbers {
  Limit limit;            // 48 bytes
  uint64_t unit_ns;       // what one unit of a request's cost takes: `cost` tokens
  uint64_t for_ns : 55;   // the first mode holds so long in an emergency, then `then`; 0: for good
  uint64_t spread_s : 9;  // retries are spread over so long at most; 0: not at all
  uint32_t cost;          // tokens per unit of the request's cost, 1..10^6
  uint32_t factor_q16;    // kDegrade: 1/factor with 16 fraction bits (factor 0.25 -> 4 << 16)
  uint32_t then_factor_q16;
  uint16_t id;  // its place among the rules
  DegradedMode mode;
  DegradedMode then_mode;
  // consistency: strict; a lease without it may overdraw. kInFlight: places are lent, the limit
  // holds over all hosts.
  uint8_t strict : 1;
  uint8_t alert : 1;     // raise an alert when this rule degrades
  uint8_t shadow : 1;    // count, never deny
  uint8_t penal : 1;     // denials are counted towards a ban, which limit.debt_max_ns has room for
  uint8_t given : 1;     // the limit came with the request, see Given(); in a policy 0
  uint8_t classed : 1;   // denials are counted by class
  uint8_t near_percent;  // of what may be used, from which on an answer says `near`, 1..100
  uint8_t soft_percent;  // likewise, `soft`; 0: the rule has no such level
  Kind kind;
  // kLease: how long callers that may wait do, 0..1,000; 0: not said. kFixedWindow: the calendar
  // that it follows, from 1; 0: none.
  uint16_t wait_ms;
  uint16_t group;
  // Together 64 bits, so that a policy holds as many rules as it can.
  uint64_t max_delay_ns : 48;  // of a leaky bucket, part of limit.tau_ns; 0: a token bucket
  uint64_t floor_q16 : 16;     // of the class of a request, see Floored(); in a policy 0
};
static_assert(sizeof(RuleNumbers) == 96);

// The numbers of a rule for requests of a class. A leaky bucket's place to wait is what is above
// the floor.
inline RuleNumbers Floored(const RuleNumbers& rule, uint16_t floor_q16) {
  RuleNumbers floored = rule;
  floored.floor_q16 = floor_q16;
  floored.limit = Floored(rule.limit, floor_q16, rule.kind);
  floored.max_delay_ns -=
      std::min<uint64_t>(rule.max_delay_ns, rule.limit.tau_ns - floored.limit.tau_ns);
  return floored;
}

// The numbers of a rule for a request that brings its own limit.
inline RuleNumbers Given(const RuleNumbers& rule, uint64_t limit) {
  RuleNumbers given = rule;
  given.given = 1;
  given.limit = Given(rule.limit, limit, rule.cost);
  given.unit_ns = CostNs(rule.cost, given.limit.period_ns, given.limit.limit);
  return given;
}

// What stands between a label and the limit that a request brought, in names of buckets: no label
// of a configuration holds it.
inline constexpr char kGivenMark = '=';
inline constexpr uint32_t kMaxGivenBytes = 14;  // with the mark

// Torn, a limit may be anything; a text that says more than there may be is to be told from one
// that says just that.
inline constexpr uint64_t kMostGiven = 10 * kMaxTokens;

// Appends the mark and the limit to a label of `bytes` bytes; returns the bytes then, or `bytes`
// where there is no room.
inline size_t AppendGiven(char (&label)[kMaxLabelBytes], size_t bytes, uint64_t limit) {
  char digits[kMaxGivenBytes];
  size_t n = 0;
  limit = std::min(limit, kMostGiven);
  for (uint64_t left = limit; n == 0 || left != 0; left /= 10) {
    digits[n++] = static_cast<char>('0' + left % 10);
  }
  if (bytes + 1 + n > kMaxLabelBytes) return bytes;
  label[bytes++] = kGivenMark;
  while (n != 0) label[bytes++] = digits[--n];
  return bytes;
}

// The limit that a text says: digits alone, none of them a leading 0; what is more than `max` is
// `max`. 0: it says none.
inline uint64_t ReadGiven(std::string_view text, uint64_t max) {
  if (text.empty() || text.size() > 20 || text.front() == '0') return 0;
  max = std::min(max, kMostGiven);
  uint64_t limit = 0;
  for (const char c : text) {
    if (c < '0' || c > '9') return 0;
    limit = std::min<uint64_t>(limit * 10 + static_cast<uint64_t>(c - '0'), max);
  }
  return limit;
}

inline uint64_t WaitMsOf(const RuleNumbers& rule) {
  return rule.kind == Kind::kLease ? rule.wait_ms : 0;
}
// From 1; 0: none.
inline uint32_t CalendarOf(const RuleNumbers& rule) {
  return rule.kind == Kind::kFixedWindow ? rule.wait_ms : 0;
}
// The ends of the windows that a rule follows; null: it has no calendar.
inline const std::atomic<uint64_t>* EndsOf(const ControlHeader& control, const RuleNumbers& rule) {
  const uint32_t calendar = CalendarOf(rule);
  return calendar == 0 ? nullptr : control.calendar_ends[(calendar - 1) % kMaxCalendars];
}

// Whether the coarse clock serves a rule, see clock.h. A leaky bucket's answer is an instant, told
// by the precise one; so is the end of a window or a strict lease. One that is not strict has no
// end. What the lag admits is a part of the whole bucket, whatever the class.
inline bool CoarseServes(const RuleNumbers& rule, uint64_t step_ns) {
  const bool loose = rule.kind == Kind::kLease && rule.strict == 0;
  const uint64_t parts = (1u << 16) - rule.floor_q16;
  return (rule.kind == Kind::kTokenBucket || loose) && rule.max_delay_ns == 0 &&
         CoarseServes((rule.limit.tau_ns / parts) << 16, step_ns);
}

struct RuleView {
  RuleNumbers numbers;
  uint64_t hash_seed;  // HashValue(salt, label, 0): heads the chain over the key's values
  StringRef label;     // "name" or "name@tier"; of a candidate with its mark behind it
  StringRef tier;      // the tier's value
  uint16_t candidate;  // the rule that is tried beside this one; kNoRule: none
  uint16_t beside;     // of a candidate: the rule that is in force; else kNoRule
  uint8_t reserved[4];
};
static_assert(sizeof(RuleView) == 128);

// Cheap index of descriptor names; not a defence, names come from the configuration.
inline uint32_t NameSlot(std::string_view name) {
  const uint32_t n = static_cast<uint32_t>(name.size());
  const uint32_t first = n ? static_cast<uint8_t>(name.front()) : 0;
  const uint32_t last = n ? static_cast<uint8_t>(name.back()) : 0;
  const uint32_t mid = n ? static_cast<uint8_t>(name[n / 2]) : 0;
  return (n * 37 + first * 5 + last * 17 + mid * 3) % kNameSlots;
}

// Bounds-masking accessors over one buffer. Valid as long as the segment is mapped; what they
// return is meaningful only if the policy word is unchanged afterwards.
class PolicyView {
 public:
  explicit PolicyView(const char* buffer) : buffer_(buffer) {}

  const PolicyHeader& header() const { return *reinterpret_cast<const PolicyHeader*>(buffer_); }
  uint32_t group_count() const { return std::min(header().group_count, kMaxGroups); }
  uint32_t rule_count() const { return std::min(header().rule_count, kMaxRules); }
  uint32_t name_count() const { return std::min(header().name_count, kMaxNames); }

  // The groups as they stand, `*count` of them within bounds.
  const GroupView* groups(uint32_t* count) const {
    const uint32_t at = Mask(header().groups_offset) & ~7u;
    const uint32_t fit = (kPolicyBufferBytes - at) / sizeof(GroupView);
    *count = std::min(group_count(), fit);
    return reinterpret_cast<const GroupView*>(buffer_ + at);
  }
  const GroupView& group(uint32_t i) const {
    return *At<GroupView>(header().groups_offset, i % kMaxGroups);
  }
  const RuleView& rule(uint32_t i) const {
    return *At<RuleView>(header().rules_offset, i % kMaxRules);
  }
  const ConditionView& condition(const GroupView& g, uint32_t i) const {
    return *At<ConditionView>(g.conditions_offset, i);
  }
  const KeyPartView& key_part(const GroupView& g, uint32_t i) const {
    return *At<KeyPartView>(g.key_offset, i);
  }
  const ClassView& class_of(const GroupView& g, uint32_t i) const {
    return *At<ClassView>(g.classes_offset, i % kMaxClasses);
  }
  const OutcomeView& outcome(const GroupView& g, uint32_t i) const {
    return *At<OutcomeView>(g.outcomes_offset, i % kMaxOutcomes);
  }
  // The i-th text of the pairs of metadata.
  std::string_view metadata(const GroupView& g, uint32_t i) const {
    return text(*At<StringRef>(g.metadata_offset, i % (2 * kMaxMetadata)));
  }
  std::string_view one_of(const ConditionView& c, uint32_t i) const {
    return text(*At<StringRef>(c.value.offset, i));
  }
  std::string_view text(StringRef ref) const {
    return {buffer_ + Mask(ref.offset), std::min(ref.length, kMaxPatternBytes)};
  }

  // The id of a descriptor name, or kNoName when no rule speaks of it.
  uint8_t FindName(std::string_view name) const {
    const PolicyHeader& h = header();
    uint32_t slot = NameSlot(name);
    for (uint32_t probe = 0; probe < kNameSlots; ++probe, slot = (slot + 1) % kNameSlots) {
      const uint8_t id = h.name_slots[slot];
      if (id >= kMaxNames) return kNoName;
      const std::string_view candidate = text(h.names[id]);
      if (candidate.size() == name.size() &&
          std::memcmp(candidate.data(), name.data(), name.size()) == 0) {
        return id;
      }
    }
    return kNoName;
  }

 private:
  // Down to what T is aligned to, whatever a torn offset says. The tail of the control segment
  // covers what a masked offset plus a bounded index can reach beyond the last buffer.
  static uint32_t Mask(uint32_t offset) { return offset & (kPolicyBufferBytes - 1); }
  template <class T>
  const T* At(uint32_t offset, uint64_t index) const {
    const uint64_t at = Mask(offset) + index * sizeof(T);
    const uint64_t bounded = at + sizeof(T) <= kPolicyBufferBytes ? at : 0;
    return reinterpret_cast<const T*>(buffer_ + (bounded & ~uint64_t{alignof(T) - 1}));
  }

  const char* buffer_;
};
static_assert(kMaxPatternBytes <= kControlTailBytes);

}  // namespace sluice::shm
