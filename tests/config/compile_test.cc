#include "daemon/config/compile.h"

#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <random>
#include <string>

#include "daemon/config/crc32.h"
#include "daemon/config/parse.h"

namespace sluice::config {
namespace {

using shm::PolicyHeader;
using shm::PolicyView;

constexpr shm::HashKey kKey{{11, 13, 17, 19}};

Config Parsed(const std::string& yaml) {
  ParseResult result = ParseConfig(yaml, "t.yaml");
  EXPECT_TRUE(result.ok()) << (result.ok() ? "" : result.problems[0].ToString());
  return std::move(result.config);
}

std::string Compiled(const std::string& yaml, uint64_t seq = 1) {
  auto bytes = Compile(Parsed(yaml), kKey, seq);
  EXPECT_TRUE(bytes.ok()) << bytes.status();
  return bytes.ok() ? *bytes : "";
}

constexpr char kRules[] = R"(
rules:
  - name: tiered
    match: {route: /v1/*, method: [GET, HEAD], path: "/a?c*d", host: exact.example}
    key: [tenant, ip/24, user]
    limit: 100/s
    burst: 200
    cost: 2
    consistency: strict
    shadow: true
    tier_by: plan
    tiers:
      paid: {limit: 1000/s, burst: 2000, when_degraded: {mode: open}}
      free: {limit: 7/h, burst: 3, cost: 3}
    when_degraded: {mode: degrade, factor: 0.25, for: 60s, then: closed, alert: true}
  - name: tiers-only
    key: ["ip/20,56"]
    tiers: {gold: {limit: 1 per 366d, burst: 1}}
  - name: all
    key: []
    limit: 1000000000/s
)";

// What a rule was written as, read back from its bytes.
struct Expected {
  const char* label;
  uint64_t limit;
  uint64_t period_ns;
  uint64_t burst;
  uint32_t cost;
  shm::DegradedMode mode;
  uint32_t factor_q16;
  uint16_t group;
};

constexpr uint64_t kSecond = 1'000'000'000;
constexpr Expected kExpected[] = {
    {"tiered@paid", 1000, kSecond, 2000, 2, shm::DegradedMode::kOpen, 1 << 16, 0},
    {"tiered@free", 7, 3600 * kSecond, 3, 3, shm::DegradedMode::kDegrade, 4 << 16, 0},
    {"tiered", 100, kSecond, 200, 2, shm::DegradedMode::kDegrade, 4 << 16, 0},
    {"tiers-only@gold", 1, 366 * 86'400 * kSecond, 1, 1, shm::DegradedMode::kDegrade, 1 << 16, 1},
    {"all", 1'000'000'000, kSecond, 1'000'000'000, 1, shm::DegradedMode::kDegrade, 1 << 16, 2},
};

TEST(CompileTest, WritesLimitsAsReadersFindThem) {
  const std::string bytes = Compiled(kRules, 42);
  const PolicyView view(bytes.data());
  EXPECT_EQ(view.header().magic, shm::kPolicyMagic);
  EXPECT_EQ(view.header().bytes, bytes.size());
  EXPECT_EQ(view.header().seq, 42u);
  EXPECT_EQ(view.header().crc32, Crc32(bytes.substr(sizeof(PolicyHeader))));
  ASSERT_EQ(view.rule_count(), std::size(kExpected));
  for (uint32_t id = 0; id < view.rule_count(); ++id) {
    const Expected& expected = kExpected[id];
    const shm::RuleView& rule = view.rule(id);
    const std::string_view label = view.text(rule.label);
    EXPECT_EQ(label, expected.label);
    EXPECT_EQ(rule.numbers.limit.limit, expected.limit) << label;
    EXPECT_EQ(rule.numbers.limit.period_ns, expected.period_ns) << label;
    EXPECT_EQ(rule.numbers.limit.burst, expected.burst) << label;
    const shm::Limit limit = shm::MakeLimit(expected.limit, expected.period_ns, expected.burst);
    EXPECT_EQ(rule.numbers.limit.interval_ns, limit.interval_ns) << label;
    EXPECT_EQ(rule.numbers.limit.tau_ns, limit.tau_ns) << label;
    EXPECT_EQ(rule.numbers.limit.debt_max_ns, limit.debt_max_ns) << label;
    EXPECT_EQ(rule.numbers.cost, expected.cost) << label;
    EXPECT_EQ(rule.numbers.mode, expected.mode) << label;
    EXPECT_EQ(rule.numbers.factor_q16, expected.factor_q16) << label;
    EXPECT_EQ(rule.numbers.group, expected.group) << label;
    EXPECT_EQ(rule.hash_seed, shm::HashValue(kKey, label, 0)) << label;
  }
  EXPECT_EQ(view.text(view.rule(0).tier), "paid");
  EXPECT_EQ(view.text(view.rule(2).tier), "");
  EXPECT_EQ(view.rule(1).numbers.for_ns, 60 * kSecond);
  EXPECT_EQ(view.rule(1).numbers.then_mode, shm::DegradedMode::kClosed);
  EXPECT_EQ(view.rule(0).numbers.for_ns, 0u);
  EXPECT_EQ(view.rule(1).numbers.alert, 1);
  EXPECT_EQ(view.rule(0).numbers.alert, 0);
  EXPECT_EQ(view.rule(2).numbers.strict, 1);
  EXPECT_EQ(view.rule(2).numbers.shadow, 1);
  EXPECT_EQ(view.rule(4).numbers.shadow, 0);
}

TEST(CompileTest, AStrictRuleIsLentOutWhereThereIsARedis) {
  const std::string rules = "rules: [{name: ab, key: [u], limit: 9/s, consistency: strict}]\n";
  const auto kind = [](const std::string& yaml) {
    return CompiledRules::Load(Compiled(yaml))->rules().front().kind;
  };
  EXPECT_EQ(kind(rules), shm::Kind::kTokenBucket);
  EXPECT_EQ(kind("redis: {addresses: \"h:1\"}\n" + rules), shm::Kind::kLease);
}

TEST(CompileTest, TellsClientsAndTheDaemonHowLongCallersOfAStrictRuleWait) {
  const std::string rules =
      "rules: [{name: ab, key: [u], limit: 9/s, consistency: strict, wait: 25ms}]\n";
  const std::string bytes = Compiled("redis: {addresses: \"h:1\"}\n" + rules);
  EXPECT_EQ(CompiledRules::Load(bytes)->rules().front().wait_ns, 25'000'000u);
  std::string broken = bytes;
  const auto header = reinterpret_cast<const shm::PolicyHeader*>(bytes.data());
  broken[header->rules_offset + offsetof(shm::RuleNumbers, wait_ms) + 1] = 0x7f;
  EXPECT_FALSE(CompiledRules::Load(broken).ok());
  EXPECT_EQ(CompiledRules::Load(Compiled(rules))->rules().front().wait_ns, 0u) << "no lease";
}

TEST(CompileTest, WritesGroupsAsReadersFindThem) {
  const std::string bytes = Compiled(kRules);
  const PolicyView view(bytes.data());
  ASSERT_EQ(view.group_count(), 3u);
  const auto name = [&](std::string_view text) { return view.FindName(text); };
  const auto bit = [&](std::string_view text) { return 1ull << name(text); };

  const shm::GroupView& tiered = view.group(0);
  EXPECT_EQ(tiered.first_rule, 0);
  EXPECT_EQ(tiered.tier_count, 2);
  EXPECT_EQ(tiered.base_rule, 2);
  EXPECT_EQ(tiered.tier_name, name("plan"));
  EXPECT_EQ(tiered.needed, bit("route") | bit("method") | bit("path") | bit("host") |
                               bit("tenant") | bit("ip") | bit("user"));
  ASSERT_EQ(tiered.condition_count, 4);
  EXPECT_EQ(view.condition(tiered, 0).name, name("route"));
  EXPECT_EQ(view.condition(tiered, 0).op, shm::MatchOp::kPrefix);
  EXPECT_EQ(view.text(view.condition(tiered, 0).value), "/v1/");
  EXPECT_EQ(view.condition(tiered, 1).op, shm::MatchOp::kOneOf);
  ASSERT_EQ(view.condition(tiered, 1).count, 2);
  EXPECT_EQ(view.one_of(view.condition(tiered, 1), 0), "GET");
  EXPECT_EQ(view.one_of(view.condition(tiered, 1), 1), "HEAD");
  EXPECT_EQ(view.condition(tiered, 2).op, shm::MatchOp::kGlob);
  EXPECT_EQ(view.text(view.condition(tiered, 2).value), "/a?c*d");
  EXPECT_EQ(view.condition(tiered, 3).op, shm::MatchOp::kExact);
  EXPECT_EQ(view.text(view.condition(tiered, 3).value), "exact.example");
  ASSERT_EQ(tiered.key_count, 3);
  EXPECT_EQ(view.key_part(tiered, 0).name, name("tenant"));
  EXPECT_EQ(view.key_part(tiered, 0).form, shm::KeyForm::kRaw);
  EXPECT_EQ(view.key_part(tiered, 1).name, name("ip"));
  EXPECT_EQ(view.key_part(tiered, 1).form, shm::KeyForm::kIp);
  EXPECT_EQ(view.key_part(tiered, 1).v4_bits, 24);
  EXPECT_EQ(view.key_part(tiered, 1).v6_bits, 64);

  const shm::GroupView& tiers_only = view.group(1);
  EXPECT_EQ(tiers_only.base_rule, shm::kNoRule);
  EXPECT_EQ(tiers_only.first_rule, 3);
  EXPECT_EQ(tiers_only.tier_name, name("tier"));
  EXPECT_EQ(tiers_only.needed, bit("ip") | bit("tier"));
  EXPECT_EQ(view.key_part(tiers_only, 0).v4_bits, 20);
  EXPECT_EQ(view.key_part(tiers_only, 0).v6_bits, 56);

  const shm::GroupView& all = view.group(2);
  EXPECT_EQ(all.needed, 0u);
  EXPECT_EQ(all.key_count, 0);
  EXPECT_EQ(all.base_rule, 4);
  EXPECT_EQ(all.tier_name, shm::kNoName);
  EXPECT_EQ(name("nobody"), shm::kNoName);
  EXPECT_EQ(name(""), shm::kNoName);
}

TEST(CompileTest, FindsEachOfTheMostNames) {
  std::string yaml = "rules:\n";
  std::vector<std::string> names;
  for (int i = 0; i < 64; ++i) {
    names.push_back("n" + std::string(i % 9, 'x') + std::to_string(i));
    yaml += "  - {name: r" + std::to_string(i) + ", key: [" + names.back() + "], limit: 1/s}\n";
  }
  const std::string bytes = Compiled(yaml);
  const PolicyView view(bytes.data());
  for (size_t i = 0; i < names.size(); ++i) EXPECT_EQ(view.FindName(names[i]), i) << names[i];
}

TEST(CompileTest, GivesTheSameVersionToHostsWithTheSameLimits) {
  const auto version = [](const std::string& yaml, const shm::HashKey& key, uint64_t seq) {
    const auto bytes = Compile(Parsed(yaml), key, seq);
    return CompiledRules::Load(bytes.value()).value().version_hash();
  };
  const std::string one = "rules: [{name: aa, key: [u], limit: 1/s}]";
  const uint64_t base = version(one, kKey, 1);
  EXPECT_EQ(version("# a comment\ndaemon: {buckets: 64}\n" + one, shm::HashKey{}, 9), base);
  EXPECT_NE(version("rules: [{name: aa, key: [u], limit: 2/s}]", kKey, 1), base);
  EXPECT_NE(version("rules: [{name: aa, key: [v], limit: 1/s}]", kKey, 1), base);
  EXPECT_NE(version("rules: [{name: aa, match: {r: a}, key: [u], limit: 1/s}]", kKey, 1), base);
}

TEST(CompileTest, TheStructureChangesWithAllButNumbers) {
  const auto structure = [](const std::string& rules, const shm::HashKey& key = kKey) {
    const auto bytes = Compile(Parsed("rules: [" + rules + "]"), key, 1);
    return PolicyView(bytes.value().data()).header().structure_hash;
  };
  const uint64_t base = structure("{name: aa, key: [u], limit: 1/s}");
  EXPECT_EQ(structure("{name: aa, key: [u], limit: 1/s}", shm::HashKey{}), base);
  EXPECT_EQ(structure("{name: aa, key: [u], limit: 7 per 1h, burst: 9, cost: 2, shadow: true, "
                      "when_degraded: {mode: degrade, factor: 0.5}}"),
            base);
  EXPECT_NE(structure("{name: ab, key: [u], limit: 1/s}"), base);
  EXPECT_NE(structure("{name: aa, key: [v], limit: 1/s}"), base);
  EXPECT_NE(structure("{name: aa, key: [u, v], limit: 1/s}"), base);
  EXPECT_NE(structure("{name: aa, match: {r: a}, key: [u], limit: 1/s}"), base);
  EXPECT_NE(structure("{name: aa, key: [u], limit: 1/s, tier_by: t, tiers: {p: {limit: 2/s}}}"),
            base);
  const std::string bb = "{name: bb, key: [u], limit: 1/s}";
  EXPECT_NE(structure("{name: aa, key: [u], limit: 1/s}, " + bb),
            structure(bb + ", {name: aa, key: [u], limit: 1/s}"));
}

TEST(CompileTest, LooksRulesUpByLabelFromTheSameBytes) {
  const std::string bytes = Compiled(kRules, 5);
  const auto rules = CompiledRules::Load(bytes);
  ASSERT_TRUE(rules.ok()) << rules.status();
  EXPECT_EQ(rules->seq(), 5u);
  ASSERT_EQ(rules->rules().size(), std::size(kExpected));
  for (size_t id = 0; id < std::size(kExpected); ++id) {
    const CompiledRule* rule = rules->Find(kExpected[id].label);
    ASSERT_NE(rule, nullptr) << kExpected[id].label;
    EXPECT_EQ(rule->id, id);
    EXPECT_EQ(rule->group, kExpected[id].group);
    EXPECT_EQ(rule->cost, kExpected[id].cost);
    EXPECT_EQ(rule->limit.burst, kExpected[id].burst);
    EXPECT_EQ(rule, rules->ById(id));
  }
  EXPECT_EQ(rules->Find("tiered")->key_count, 3u);
  EXPECT_EQ(rules->Find("all")->key_count, 0u);
  EXPECT_EQ(rules->Find("tiered@gold"), nullptr);
  EXPECT_EQ(rules->Find(""), nullptr);
  EXPECT_EQ(rules->ById(5), nullptr);
  EXPECT_EQ(rules->max_debt_ns(), 2 * 366 * 86'400 * kSecond);
}

TEST(CompileTest, CompilesAFileWithoutRules) {
  const std::string bytes = Compiled("rules: []");
  EXPECT_TRUE(VerifyPolicy(bytes).ok());
  EXPECT_EQ(CompiledRules::Load(bytes).value().max_debt_ns(), 0u);
}

TEST(VerifyPolicyTest, AcceptsAWholeBufferAndAnyAlignment) {
  const std::string bytes = Compiled(kRules);
  EXPECT_TRUE(VerifyPolicy(bytes).ok()) << VerifyPolicy(bytes);
  std::string buffer = bytes;
  buffer.resize(shm::kPolicyBufferBytes, '\x5a');
  EXPECT_TRUE(VerifyPolicy(buffer).ok());
  const std::string shifted = "x" + bytes;
  EXPECT_TRUE(VerifyPolicy(std::string_view(shifted).substr(1)).ok());
  EXPECT_TRUE(CompiledRules::Load(std::string_view(shifted).substr(1)).ok());
}

TEST(VerifyPolicyTest, RefusesEveryTruncation) {
  const std::string bytes = Compiled(kRules);
  for (size_t n = 0; n < bytes.size(); ++n) {
    ASSERT_FALSE(VerifyPolicy(std::string_view(bytes).substr(0, n)).ok()) << n;
  }
}

TEST(VerifyPolicyTest, RefusesEveryFlippedByteBehindTheHeader) {
  const std::string bytes = Compiled(kRules);
  for (size_t i = sizeof(PolicyHeader); i < bytes.size(); ++i) {
    std::string bad = bytes;
    bad[i] = static_cast<char>(bad[i] ^ 0x10);
    ASSERT_FALSE(VerifyPolicy(bad).ok()) << i;
  }
}

// Sets the checksum anew, so that the checks behind it are what is tested.
std::string Resealed(std::string bytes) {
  PolicyHeader header;
  std::memcpy(&header, bytes.data(), sizeof(header));
  header.crc32 = Crc32(std::string_view(bytes).substr(sizeof(header)));
  std::memcpy(bytes.data(), &header, sizeof(header));
  return bytes;
}

TEST(VerifyPolicyTest, NamesWhatIsBrokenUnderAGoodChecksum) {
  const std::string bytes = Compiled(kRules);
  const PolicyView view(bytes.data());
  const auto refuses = [&](auto change, const char* why) {
    std::string bad = bytes;
    change(bad.data());
    EXPECT_FALSE(VerifyPolicy(Resealed(bad)).ok()) << why;
  };
  const size_t group_at = view.header().groups_offset;
  const size_t rule_at = view.header().rules_offset;
  const auto header = [](char* p) { return reinterpret_cast<PolicyHeader*>(p); };
  const auto group = [&](char* p) { return reinterpret_cast<shm::GroupView*>(p + group_at); };
  const auto rule = [&](char* p) { return reinterpret_cast<shm::RuleView*>(p + rule_at); };
  const auto condition = [&](char* p) {
    return reinterpret_cast<shm::ConditionView*>(p + view.group(0).conditions_offset);
  };
  refuses([&](char* p) { header(p)->magic = 1; }, "magic");
  refuses([&](char* p) { header(p)->seq = 0; }, "seq");
  refuses([&](char* p) { header(p)->name_count = 65; }, "names");
  refuses([&](char* p) { header(p)->name_count -= 1; }, "a slot of no name");
  refuses([&](char* p) { header(p)->names[0].offset = ~0u; }, "a name outside");
  refuses([&](char* p) { header(p)->names[0] = header(p)->names[1]; }, "a name twice");
  refuses([&](char* p) { std::memset(header(p)->name_slots, 0xff, 128); }, "an empty index");
  refuses([&](char* p) { header(p)->groups_offset += 4; }, "alignment");
  refuses([&](char* p) { header(p)->groups_offset = 0; }, "groups in the header");
  refuses([&](char* p) { header(p)->group_count = 1025; }, "groups");
  refuses([&](char* p) { header(p)->rule_count = 4097; }, "rules");
  refuses([&](char* p) { header(p)->rules_offset = ~7u; }, "rules outside");
  refuses([&](char* p) { group(p)->condition_count = 17; }, "conditions");
  refuses([&](char* p) { group(p)->conditions_offset = ~3u; }, "conditions outside");
  refuses([&](char* p) { group(p)->key_count = 9; }, "key parts");
  refuses([&](char* p) { group(p)->first_rule = 4; }, "tiers outside");
  refuses([&](char* p) { group(p)->base_rule = 5; }, "base outside");
  refuses([&](char* p) { group(p)->tier_name = 60; }, "tier name");
  refuses([&](char* p) { group(p)->needed ^= 1; }, "mask");
  refuses([&](char* p) { condition(p)->op = static_cast<shm::MatchOp>(9); }, "operator");
  refuses([&](char* p) { condition(p)->name = 64; }, "condition's name");
  refuses([&](char* p) { condition(p)->value.length = 1025; }, "pattern length");
  refuses([&](char* p) { condition(p)[1].count = 257; }, "one-of count");
  refuses([&](char* p) { condition(p)[1].value.offset = 262'140; }, "one-of outside");
  refuses([&](char* p) { rule(p)->numbers.group = 3; }, "group of a rule");
  refuses([&](char* p) { rule(p)->numbers.group = 1; }, "another group");
  refuses([&](char* p) { rule(p)->label.length = 65; }, "label");
  refuses([&](char* p) { rule(p)->label = rule(p)[1].label; }, "label twice");
  refuses([&](char* p) { ++rule(p)->numbers.unit_ns; }, "unit");
  refuses([&](char* p) { ++rule(p)->numbers.id; }, "id");
  refuses([&](char* p) { rule(p)->numbers.limit.limit = 0; }, "limit 0");
  refuses([&](char* p) { rule(p)->numbers.limit.tau_ns += 1; }, "tau");
  refuses([&](char* p) { rule(p)->numbers.limit.interval_ns = 0; }, "interval");
  refuses([&](char* p) { rule(p)->numbers.cost = 0; }, "cost 0");
  refuses([&](char* p) { rule(p)->numbers.cost = 2001; }, "cost above burst");
  refuses([&](char* p) { rule(p)->numbers.factor_q16 = 0; }, "factor");
  refuses([&](char* p) { rule(p)->numbers.mode = static_cast<shm::DegradedMode>(4); }, "mode");
  refuses([&](char* p) { rule(p)->numbers.near_percent = 0; }, "levels");
  refuses([&](char* p) { rule(p)->numbers.soft_percent = 101; }, "levels");
  refuses([&](char* p) { group(p)->metadata_count = shm::kMaxMetadata + 1; }, "metadata");
  refuses([&](char* p) { group(p)->class_count = 1; }, "priority");
  EXPECT_TRUE(VerifyPolicy(Resealed(bytes)).ok());
}

TEST(VerifyPolicyTest, LetsNoRandomDamageLeadAReaderOutside) {
  const std::string bytes = Compiled(kRules);
  std::mt19937 random(5);
  for (int i = 0; i < 20'000; ++i) {
    std::string bad = bytes;
    for (uint32_t flips = random() % 4 + 1; flips > 0; --flips) {
      bad[random() % bad.size()] = static_cast<char>(random());
    }
    // A sanitizer sees a step outside; CompiledRules reads what the check let through.
    const auto rules = CompiledRules::Load(Resealed(bad));
    if (rules.ok()) {
      ASSERT_LE(rules->rules().size(), 5u);
    }
  }
}

TEST(CompileTest, SumsAsTheStandardSays) { EXPECT_EQ(Crc32("123456789"), 0xcbf43926u); }

}  // namespace
}  // namespace sluice::config
