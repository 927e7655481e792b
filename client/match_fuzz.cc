// Descriptors against rules, as a client matches them in place. Over a whole policy the plan is
// what a matcher of a few lines says; over a policy of which any bytes are wrong (a reader that
// stood still for too long) there is a plan or none, and no step outside.
//
// An input is lines `name=value`; after a NUL come changes of the policy, see fuzz::Patch.
#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "client/plan.h"
#include "client/shape.h"
#include "shm/bucket_name.h"
#include "shm/fuzz_input.h"
#include "shm/ip_prefix.h"

namespace sluice::client {
namespace {

using fuzz::Require;
using shm::ConditionView;
using shm::GroupView;
using shm::KeyForm;
using shm::KeyPartView;
using shm::MatchOp;
using shm::PolicyHeader;
using shm::RuleView;
using shm::StringRef;

constexpr uint64_t kCapacity = 64;
constexpr uint64_t kCoarseStepNs = 4'000'000;
constexpr size_t kMaxInputDescriptors = SLUICE_MAX_DESCRIPTORS + 1;
constexpr const char* kNames[] = {"user", "tenant", "route", "path",
                                  "verb", "ip",     "tier",  "a-name-of-more-than-16-bytes"};
enum Name : uint8_t { kUser, kTenant, kRoute, kPath, kVerb, kIp, kTier, kLong, kNone = 0xff };
constexpr uint64_t Bit(Name name) { return 1ull << name; }
constexpr uint8_t kV4Bits = 24;
constexpr uint8_t kV6Bits = 48;

// What stands in the buffer: five rules of the configuration, which have seven limits. Written here
// by hand, since nothing in client/ knows the daemon's compiler.
struct Policy {
  PolicyHeader header{};
  GroupView groups[5]{};
  RuleView rules[7]{};
  ConditionView conditions[4]{};
  KeyPartView keys[6]{};
  StringRef one_of[2]{};
  char strings[256]{};
  uint32_t used = 0;

  StringRef Text(const char* text) {
    const auto n = static_cast<uint32_t>(std::strlen(text));
    Require(used + n <= sizeof strings, "room for the texts");
    std::memcpy(strings + used, text, n);
    used += n;
    return {At(strings) + used - n, n};
  }
  uint32_t At(const void* part) const {
    return static_cast<uint32_t>(static_cast<const char*>(part) -
                                 reinterpret_cast<const char*>(this));
  }
  Policy();
};

Policy::Policy() {
  header.magic = shm::kPolicyMagic;
  header.bytes = sizeof(Policy);
  header.seq = 1;
  header.name_count = std::size(kNames);
  header.group_count = std::size(groups);
  header.groups_offset = At(groups);
  header.rule_count = std::size(rules);
  header.rules_offset = At(rules);
  std::memset(header.name_slots, shm::kNoName, sizeof header.name_slots);
  for (uint8_t i = 0; i < std::size(kNames); ++i) {
    header.names[i] = Text(kNames[i]);
    uint32_t slot = shm::NameSlot(kNames[i]);
    while (header.name_slots[slot] != shm::kNoName) slot = (slot + 1) % shm::kNameSlots;
    header.name_slots[slot] = i;
  }
  const struct {
    const char* label;
    uint16_t group;
    const char* tier;
  } limits[] = {{"per-user", 0, ""},      {"api@free", 1, "free"}, {"api@paid", 1, "paid"},
                {"api", 1, ""},           {"page", 2, ""},         {"write", 3, ""},
                {"guest@free", 4, "free"}};
  for (uint16_t i = 0; i < std::size(limits); ++i) {
    rules[i].numbers.limit = shm::MakeLimit(10, 1'000'000'000, 10);
    rules[i].numbers.id = i;
    rules[i].numbers.group = limits[i].group;
    rules[i].hash_seed = shm::HashValue({}, limits[i].label, 0);
    rules[i].label = Text(limits[i].label);
    rules[i].tier = Text(limits[i].tier);
  }
  conditions[0] = {kRoute, MatchOp::kPrefix, 0, Text("/v1/")};
  conditions[1] = {kPath, MatchOp::kGlob, 0, Text("*.a?c*")};
  conditions[2] = {kVerb, MatchOp::kOneOf, 2, {At(one_of), sizeof one_of}};
  conditions[3] = {kTenant, MatchOp::kExact, 0, Text("acme")};
  one_of[0] = Text("PUT");
  one_of[1] = Text("POST");
  const KeyPartView ip = {kIp, KeyForm::kIp, kV4Bits, kV6Bits};
  keys[0] = {kUser, KeyForm::kRaw, 0, 0};
  keys[1] = {kTenant, KeyForm::kRaw, 0, 0};
  keys[2] = ip;
  keys[3] = {kUser, KeyForm::kRaw, 0, 0};
  keys[4] = ip;
  keys[5] = {kLong, KeyForm::kRaw, 0, 0};
  // needed, conditions and key by place and count, first tier and count, base, tier's name
  groups[0] = {Bit(kUser), 0, At(&keys[0]), 0, 1, 0, 0, 0, kNone, 0, 0};
  groups[1] = {
      Bit(kRoute) | Bit(kTenant), At(&conditions[0]), At(&keys[1]), 1, 1, 1, 2, 3, kTier, 0, 0};
  groups[2] = {Bit(kPath), At(&conditions[1]), 0, 1, 0, 0, 0, 4, kNone, 0, 0};
  groups[3] = {Bit(kVerb) | Bit(kIp) | Bit(kUser),
               At(&conditions[2]),
               At(&keys[2]),
               1,
               2,
               0,
               0,
               5,
               kNone,
               0,
               0};
  groups[4] = {Bit(kTenant) | Bit(kTier) | Bit(kIp) | Bit(kLong),
               At(&conditions[3]),
               At(&keys[4]),
               1,
               2,
               6,
               1,
               shm::kNoRule,
               kTier,
               0,
               0};
}

// A client's attachment over memory of its own: the last policy buffer with the zeros behind it, so
// that a read beyond what a client has mapped is seen.
struct Host {
  static constexpr size_t kBytes = shm::kPolicyBufferBytes + shm::kControlTailBytes;

  Host() : buffer(new uint64_t[kBytes / 8]()), slots(new shm::Slot[kCapacity]()) {
    Restore();
    control.policy = shm::policy_word::Make(1, 0);
    attachment.control = &control;
    attachment.policy_buffers = reinterpret_cast<const char*>(buffer.get());
    attachment.slots = slots.get();
    attachment.capacity = kCapacity;
    attachment.group_mask = kCapacity / shm::kGroupSlots - 1;
  }
  char* bytes() { return reinterpret_cast<char*>(buffer.get()); }
  void Restore() { std::memcpy(bytes(), &policy, sizeof policy); }

  const Policy policy;
  const std::unique_ptr<uint64_t[]> buffer;
  const std::unique_ptr<shm::Slot[]> slots;
  shm::ControlHeader control{};
  Attachment attachment;
};

// Descriptors, each text in memory of its own.
class Descriptors {
 public:
  explicit Descriptors(std::string_view lines) {
    fuzz::Input input(lines);
    while (!input.empty() && list_.size() < kMaxInputDescriptors) {
      const std::string_view line = input.Until('\n');
      const size_t equals = std::min(line.find('='), line.size());
      const std::string_view name = Keep(line.substr(0, equals));
      const std::string_view value = Keep(line.substr(std::min(equals + 1, line.size())));
      list_.push_back({name.data(), name.size(), value.data(), value.size()});
    }
  }
  const std::vector<sluice_descriptor_t>& list() const { return list_; }
  bool AreValid() const {
    if (list_.size() > SLUICE_MAX_DESCRIPTORS) return false;
    for (const sluice_descriptor_t& d : list_) {
      if (d.name_len == 0 || d.name_len > SLUICE_MAX_NAME_BYTES) return false;
      if (d.value_len > SLUICE_MAX_VALUE_BYTES) return false;
    }
    return true;
  }
  // The first of a name counts.
  std::optional<std::string_view> ValueOf(Name name) const {
    for (const sluice_descriptor_t& d : list_) {
      if (std::string_view(d.name, d.name_len) == kNames[name]) return {{d.value, d.value_len}};
    }
    return std::nullopt;
  }

 private:
  std::string_view Keep(std::string_view text) {
    texts_.emplace_back(new char[text.size()]);
    std::copy(text.begin(), text.end(), texts_.back().get());
    return {texts_.back().get(), text.size()};
  }
  std::vector<std::unique_ptr<char[]>> texts_;
  std::vector<sluice_descriptor_t> list_;
};

// By the definition: '*' any run, '?' any byte.
bool Globs(std::string_view pattern, std::string_view text) {
  if (pattern.empty()) return text.empty();
  if (pattern[0] == '*') {
    return Globs(pattern.substr(1), text) || (!text.empty() && Globs(pattern, text.substr(1)));
  }
  return !text.empty() && (pattern[0] == '?' || pattern[0] == text[0]) &&
         Globs(pattern.substr(1), text.substr(1));
}

struct Expected {
  uint16_t rule;
  std::vector<std::string> values;
};

std::vector<Expected> ExpectedOf(const Descriptors& descriptors) {
  const auto value = [&](Name name) { return descriptors.ValueOf(name); };
  const auto text = [&](Name name) { return std::string(*value(name)); };
  const auto network = [&] {
    char ip[kIpBytes];
    const std::string_view canonical = shm::CanonicalPrefix(*value(kIp), kV4Bits, kV6Bits, ip);
    return canonical.data() != nullptr ? std::string(canonical) : text(kIp);
  };
  std::vector<Expected> expected;
  if (value(kUser)) expected.push_back({0, {text(kUser)}});
  if (value(kRoute) && value(kTenant) && value(kRoute)->starts_with("/v1/")) {
    const std::string_view tier = value(kTier).value_or("");
    expected.push_back({static_cast<uint16_t>(tier == "free"   ? 1
                                              : tier == "paid" ? 2
                                                               : 3),
                        {text(kTenant)}});
  }
  if (value(kPath) && Globs("*.a?c*", *value(kPath))) expected.push_back({4, {}});
  if (value(kVerb) && value(kIp) && value(kUser) &&
      (*value(kVerb) == "PUT" || *value(kVerb) == "POST")) {
    expected.push_back({5, {network(), text(kUser)}});
  }
  if (value(kTenant) == "acme" && value(kTier) == "free" && value(kIp) && value(kLong)) {
    expected.push_back({6, {network(), text(kLong)}});
  }
  return expected;
}

void CheckHash(const Host& host, const Item& item) {
  const RuleView& rule = host.policy.rules[item.rule->id];
  std::string_view values[shm::kMaxKeyParts];
  for (uint32_t i = 0; i < item.value_count; ++i) values[i] = item.values[i].view();
  const bool is_long = shm::IsLongName(rule.label.length, values, item.value_count);
  Require(item.folded == is_long, "a long name is folded");
  if (is_long) {
    char folded[shm::kKeyTextBytes];
    const size_t n = shm::FoldLong(rule.label.length, values, item.value_count, folded);
    Require(item.hash == shm::LongNameHash({}, rule.hash_seed, {folded, n}), "a long name's hash");
  } else {
    Require(item.hash == shm::ShortNameHash({}, rule.hash_seed, values, item.value_count),
            "a name's hash");
  }
}

void CheckPlan(const Host& host, const Descriptors& descriptors, const Plan& plan) {
  const std::vector<Expected> expected = ExpectedOf(descriptors);
  Require(plan.count == expected.size(), "as many rules as match");
  for (size_t i = 0; i < plan.count; ++i) {
    const Item& item = plan.items[i];
    Require(item.rule->id == expected[i].rule, "the rule that matches");
    Require(item.value_count == expected[i].values.size(), "the key's values");
    for (uint32_t v = 0; v < item.value_count; ++v) {
      Require(item.values[v].view() == expected[i].values[v], "the key's value");
    }
    CheckHash(host, item);
  }
}

// The three ways to a plan: with a shape that is made, with one that stands, and without.
void Match(const Host& host, const Descriptors& descriptors, bool whole) {
  const std::vector<sluice_descriptor_t>& list = descriptors.list();
  const auto shapes = std::make_unique<Shapes>();
  Plan plain;
  const int result =
      BuildPlan(host.attachment, kCoarseStepNs, list.data(), list.size(), nullptr, &plain);
  for (int time = 0; time < 2; ++time) {
    Plan plan;
    const int shaped =
        BuildPlan(host.attachment, kCoarseStepNs, list.data(), list.size(), shapes.get(), &plan);
    if (!whole) continue;
    Require(shaped == result, "a shape answers as the long way does");
    if (result == 0) CheckPlan(host, descriptors, plan);
  }
  if (!whole) return;
  Require(result == (descriptors.AreValid() ? 0 : SLUICE_E_DESCRIPTORS), "what may be asked");
  if (result == 0) CheckPlan(host, descriptors, plain);
}

void LookUpRules(const Host& host) {
  for (const char* label : {"per-user", "api@free", "", "x"}) {
    Rule rule;
    RuleKey key;
    FindRule(host.attachment, label, &rule, &key);
  }
  for (const uint16_t id : {0, 6, 7, 0x7fff, 0xfffe}) {
    char label[shm::kMaxLabelBytes];
    CopyLabel(host.attachment, host.control.policy, id, label);
  }
}

}  // namespace
}  // namespace sluice::client

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using sluice::client::Host;
  static Host* const host = new Host;
  sluice::fuzz::Input input(data, size);
  const sluice::client::Descriptors descriptors(input.Until('\0'));
  const bool whole = input.empty();
  sluice::fuzz::Patch(&input, host->bytes(), sizeof host->policy);
  sluice::client::Match(*host, descriptors, whole);
  sluice::client::LookUpRules(*host);
  if (!whole) host->Restore();
  return 0;
}
