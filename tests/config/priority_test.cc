// `priority` of a rule: what is read, what is refused, and what is compiled.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>

#include <set>
#include <string>
#include <vector>

#include "daemon/config/compile.h"
#include "daemon/config/parse.h"
#include "shm/policy_view.h"
#include "tests/config/parsed.h"

namespace sluice::config {
namespace {

constexpr char kClasses[] = "{critical: 1, normal: 0.8, sheddable: 0.5}";

std::string With(const std::string& priority, const std::string& rest = "limit: 100/s") {
  return rest + "\n    priority: " + priority;
}

TEST(PriorityConfigTest, OfNoClassIsTheLeastUnlessTheRuleSaysOther) {
  const ParseResult least = OfRule(With(std::string("{classes: ") + kClasses + "}"));
  ASSERT_TRUE(least.ok()) << Text(least.problems);
  const PriorityConfig& priority = *least.config.rules.front().priority;
  EXPECT_EQ(priority.descriptor, "class");
  ASSERT_EQ(priority.classes.size(), 3u);
  EXPECT_EQ(priority.classes[1].value, "normal");
  EXPECT_EQ(priority.classes[1].part, 0.8);
  EXPECT_EQ(priority.otherwise, 0.5);
  const ParseResult said =
      OfRule(With(std::string("{by: importance, otherwise: normal, classes: ") + kClasses + "}"));
  ASSERT_TRUE(said.ok()) << Text(said.problems);
  EXPECT_EQ(said.config.rules.front().priority->descriptor, "importance");
  EXPECT_EQ(said.config.rules.front().priority->otherwise, 0.8);
}

TEST(PriorityConfigTest, EachMistakeIsToldOnceWithItsMend) {
  ExpectMistakes({
      {With("{by: class}"), "classes"},
      {With("{classes: {}}"), "holds 0 classes"},
      {With("{classes: [critical]}"), "is a list, not a mapping"},
      {With("{classes: {a: 0}}"), "\"0\" is no part of a bucket"},
      {With("{classes: {a: 1.01}}"), "\"1.01\" is no part of a bucket"},
      {With("{classes: {a: -1}}"), "\"-1\" is no part of a bucket"},
      {With("{classes: {a: much}}"), "\"much\" is no part of a bucket"},
      {With("{classes: {a: [1]}}"), "is a list, not a number"},
      {With("{classes: {a: 1}, otherwise: b}"), "\"b\" is none of the classes"},
      {With("{by: 1x, classes: {a: 1}}"), "1x"},
      {With("{classes: {a: 1, b: 0.1}}", "limit: 9/s"), "class \"b\" is less than a request"},
      {With("{classes: {a: 1, b: 0.1}}", "tiers: {t: {limit: 9/s}}"), "of tier t"},
      {With("{classes: {a: 1, b: 0.5}}", "limit: 9/s\n    cost: 5"), "the cost 5"},
      {With("{classes: {a: 1, b: 0.1}}", "limit: 9/s\n    algorithm: fixed_window"),
       "the limit is 9, the cost 1"},
      {With("{classes: {a: 1, b: 0.1}}", "limit: 9/s\n    algorithm: sliding_log"),
       "the limit is 9, the cost 1"},
      {With("{classes: {a: 1}}", "in_flight: 9"), "this rule is of requests in flight"},
  });
}

TEST(PriorityConfigTest, IsCompiledAsFloorsWhichTheVerifierKnows) {
  const ParseResult result =
      OfRule(With(std::string("{otherwise: normal, classes: ") + kClasses + "}",
                  "limit: 10/s\n    tiers: {free: {limit: 4/s}}"));
  ASSERT_TRUE(result.ok()) << Text(result.problems);
  const auto bytes = Compile(result.config, shm::HashKey{1, 2}, 7);
  ASSERT_TRUE(bytes.ok()) << bytes.status();
  ASSERT_TRUE(VerifyPolicy(*bytes).ok()) << VerifyPolicy(*bytes);
  std::string whole = *bytes;
  whole.resize(shm::kPolicyBufferBytes + shm::kControlTailBytes);
  const shm::PolicyView view(whole.data());
  const shm::GroupView& group = view.group(0);
  ASSERT_EQ(group.class_count, 4u);
  EXPECT_EQ(view.class_of(group, 0).floor_q16, 13107u);
  EXPECT_EQ(view.text(view.class_of(group, 1).value), "critical");
  EXPECT_EQ(view.class_of(group, 1).floor_q16, 0u);
  EXPECT_EQ(view.text(view.class_of(group, 3).value), "sheddable");
  EXPECT_EQ(view.class_of(group, 3).floor_q16, 32768u);
  EXPECT_EQ(view.text(view.header().names[view.class_of(group, 3).name]), "class");
  // A class does not have to be there for the rule to apply.
  EXPECT_EQ(std::popcount(group.needed), 1);
}

TEST(PriorityConfigTest, WindowsAndLogsHaveClassesToo) {
  for (const char* const algorithm : {"fixed_window", "sliding_window", "sliding_log"}) {
    const ParseResult result =
        OfRule(With(std::string("{classes: ") + kClasses + "}",
                    std::string("limit: 10/s\n    algorithm: ") + algorithm));
    ASSERT_TRUE(result.ok()) << Text(result.problems);
    const auto bytes = Compile(result.config, shm::HashKey{1, 2}, 7);
    ASSERT_TRUE(bytes.ok()) << bytes.status();
    ASSERT_TRUE(VerifyPolicy(*bytes).ok()) << VerifyPolicy(*bytes);
  }
}

TEST(PriorityConfigTest, SoDoesWhatIsLent) {
  for (const char* const consistency : {"strict", "overdraft"}) {
    const ParseResult result =
        OfRule(With(std::string("{classes: ") + kClasses + "}",
                    std::string("limit: 10/s\n    consistency: ") + consistency),
               "redis: {addresses: \"h:1\"}\n");
    ASSERT_TRUE(result.ok()) << Text(result.problems);
    const auto bytes = Compile(result.config, shm::HashKey{1, 2}, 7);
    ASSERT_TRUE(bytes.ok()) << bytes.status();
    const auto rules = CompiledRules::Load(*bytes);
    ASSERT_TRUE(rules.ok()) << rules.status();
    EXPECT_TRUE(rules->rules().front().classed);
    EXPECT_EQ(rules->rules().front().kind, shm::Kind::kLease);
  }
}

TEST(PriorityConfigTest, EachClassHasACellForItsDenialsButEqualPartsHaveOne) {
  const Config config = Good(R"(
rules:
  - {name: plain, key: [user], limit: 10/s}
  - name: api
    key: [user]
    limit: 10/s
    priority: {classes: {critical: 1, system: 1, low: 0.5}}
    tiers: {big: {limit: 100/s}}
  - {name: web, key: [user], limit: 10/s, priority: {classes: {critical: 1, low: 0.5}}}
)");
  const auto bytes = Compile(config, shm::HashKey{1, 2}, 7);
  ASSERT_TRUE(bytes.ok()) << bytes.status();
  const auto rules = CompiledRules::Load(*bytes);
  ASSERT_TRUE(rules.ok()) << rules.status();
  std::vector<std::string> names;
  std::set<uint32_t> cells;
  std::set<uint16_t> tags;
  for (const CompiledClass& c : rules->classes()) {
    names.push_back(c.rule + ":" + c.value);
    cells.insert(c.cell);
    tags.insert(c.tag);
    EXPECT_LT(c.cell, shm::kClassCells);
  }
  EXPECT_EQ(names,
            (std::vector<std::string>{"api:critical", "api:low", "web:critical", "web:low"}));
  EXPECT_EQ(cells.size(), 4u);
  EXPECT_EQ(tags.size(), 4u);
}

TEST(PriorityConfigTest, AClassOfAWindowMayUseWholeTokensOfTheLimit) {
  for (const uint64_t limit : {1u, 3u, 10u, 4096u, 1'000'003u}) {
    for (const double part : {0.1, 0.25, 0.3, 0.5, 0.7, 0.8, 0.9, 1.0}) {
      const shm::Limit whole{.limit = limit, .period_ns = 1'000'000'000, .burst = limit};
      const auto floor_q16 = static_cast<uint16_t>((1 - part) * 65536);
      const uint64_t most = shm::Floored(whole, floor_q16, shm::Kind::kFixedWindow).burst;
      const double wanted = part * static_cast<double>(limit);
      EXPECT_GE(static_cast<double>(most), std::floor(wanted + 1e-9)) << limit << " " << part;
      EXPECT_LE(static_cast<double>(most), wanted + static_cast<double>(limit) / 65536 + 1e-6);
    }
  }
  EXPECT_EQ(shm::PartAbove(1'000'000'000'000, 0x8000), 500'000'000'000u);
}

TEST(PriorityConfigTest, AFloorLeavesAWholeNumberOfTokens) {
  for (const uint64_t burst : {10u, 100u, 1'000u, 65'536u}) {
    for (const uint64_t limit : {3u, 7u, 10u, 1'000u}) {
      for (const double part : {0.1, 0.3, 0.5, 0.7, 0.8, 0.9}) {
        const shm::Limit whole = shm::MakeLimit(limit, 1'000'000'000, burst);
        const auto floor_q16 = static_cast<uint16_t>((1 - part) * 65536);
        const shm::Limit floored = shm::Floored(whole, floor_q16);
        const double wanted = part * static_cast<double>(burst);
        const double tokens =
            static_cast<double>(floored.tau_ns) / static_cast<double>(floored.interval_ns);
        EXPECT_GE(tokens + 1e-6, std::floor(wanted + 1e-9)) << burst << " " << limit << " " << part;
        EXPECT_LT(tokens, wanted + 1 + wanted / 65536) << burst << " " << limit << " " << part;
        // What is wild for a class is what is wild for the bucket.
        EXPECT_EQ(floored.tau_ns + floored.debt_max_ns, whole.tau_ns + whole.debt_max_ns);
      }
    }
  }
}

}  // namespace
}  // namespace sluice::config
