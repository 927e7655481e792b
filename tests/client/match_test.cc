// Which rules a request meets and which buckets it names, against a matcher of a few lines.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "client/include/sluice.hpp"
#include "tests/support/served_segments.h"

namespace sluice::test {
namespace {

using namespace std::chrono_literals;
using Pairs = std::vector<std::pair<std::string, std::string>>;

// "z" is in no rule; the longest is beyond what a shape keeps.
const std::vector<std::string> kNames = {
    "a", "bb", "ccc", "dddd", "tenant", "a-name-of-more-than-16-bytes", "tier", "route", "z"};
const std::vector<std::string> kValues = {"", "x", "xy", "free", "paid", "/v1/a", "/v1/b"};

struct Spec {
  std::string name;
  Pairs match;  // exact, or a prefix where it ends with '*'
  std::vector<std::string> key;
  bool base = true;
  std::vector<std::string> tiers;

  std::string Yaml() const {
    std::string yaml = "  - name: " + name + "\n    key: [";
    for (size_t i = 0; i < key.size(); ++i) yaml += (i ? ", " : "") + key[i];
    yaml += "]\n";
    if (base) yaml += "    limit: 1000000/s\n";
    if (!match.empty()) {
      yaml += "    match: {";
      for (size_t i = 0; i < match.size(); ++i) {
        yaml += (i ? ", " : "") + match[i].first + ": \"" + match[i].second + "\"";
      }
      yaml += "}\n";
    }
    if (!tiers.empty()) {
      yaml += "    tiers: {";
      for (size_t i = 0; i < tiers.size(); ++i) {
        yaml += (i ? ", " : "") + tiers[i] + ": {limit: 2000000/s}";
      }
      yaml += "}\n";
    }
    return yaml;
  }

  // The bucket's name, or "" where the rule does not apply.
  std::string BucketOf(const std::map<std::string, std::string>& request) const {
    for (const auto& [descriptor, pattern] : match) {
      const auto at = request.find(descriptor);
      if (at == request.end()) return "";
      const bool prefix = pattern.ends_with('*');
      if (prefix ? !at->second.starts_with(pattern.substr(0, pattern.size() - 1))
                 : at->second != pattern) {
        return "";
      }
    }
    const auto tier = request.find("tier");
    const bool tiered =
        tier != request.end() && std::find(tiers.begin(), tiers.end(), tier->second) != tiers.end();
    if (!tiered && !base) return "";
    std::string bucket = name + (tiered ? "@" + tier->second : "");
    for (const std::string& part : key) {
      const auto at = request.find(part);
      if (at == request.end()) return "";
      bucket += '\n' + at->second;
    }
    return bucket;
  }
};

class Draw {
 public:
  explicit Draw(uint64_t seed) : random_(seed) {}
  size_t Below(size_t n) { return random_() % n; }
  const std::string& Of(const std::vector<std::string>& from) { return from[Below(from.size())]; }

 private:
  std::mt19937_64 random_;
};

std::vector<Spec> RandomRules(Draw& draw, size_t count) {
  std::vector<Spec> rules;
  for (size_t i = 0; i < count; ++i) {
    Spec spec;
    spec.name = "rule-" + std::to_string(i);
    std::set<std::string> names;
    for (size_t n = draw.Below(3); n > 0; --n) names.insert(kNames[draw.Below(kNames.size() - 1)]);
    spec.key.assign(names.begin(), names.end());
    if (draw.Below(3) == 0) {
      spec.match = {{draw.Of({"route", "dddd", "a"}), draw.Of({"x", "/v1/*", "/v1/a", "*"})}};
    }
    if (draw.Below(4) == 0) {
      spec.tiers = {"free", "paid"};
      spec.base = draw.Below(2) == 0;
    }
    rules.push_back(std::move(spec));
  }
  return rules;
}

Pairs RandomRequest(Draw& draw) {
  Pairs request;
  for (size_t n = draw.Below(12); n > 0; --n) {  // some more than a shape keeps, some names twice
    request.emplace_back(draw.Of(kNames), draw.Of(kValues));
  }
  return request;
}

// Checks one request against `rules`, and that one bucket is always one slot.
void ExpectMatches(const ServedSegments& served, sluice_t* client, const std::vector<Spec>& rules,
                   const Pairs& request, std::map<std::string, uint32_t>* slots) {
  std::map<std::string, std::string> first;
  std::vector<sluice_descriptor_t> descriptors;
  for (const auto& [name, value] : request) {
    first.emplace(name, value);
    descriptors.push_back({name.data(), name.size(), value.data(), value.size()});
  }
  std::vector<std::string> expected;
  for (const Spec& spec : rules) {
    const std::string bucket = spec.BucketOf(first);
    if (!bucket.empty()) expected.push_back(bucket);
  }
  sluice_decision_t decision;
  const int answer = sluice_check(client, descriptors.data(), descriptors.size(), 1, &decision);
  if (expected.size() > SLUICE_MAX_RULES_PER_REQUEST) {
    EXPECT_EQ(answer, SLUICE_E_RULES);
    return;
  }
  ASSERT_EQ(answer, 1);
  ASSERT_EQ(decision.spend_count, expected.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    const sluice_spend_t& spend = decision.spends[i];
    const std::string label = expected[i].substr(0, expected[i].find('\n'));
    EXPECT_EQ(served.rules().ById(spend.rule)->label, label);
    const auto [at, is_new] = slots->emplace(expected[i], spend.slot);
    EXPECT_EQ(at->second, spend.slot) << "a bucket in two slots: " << expected[i];
  }
}

void ExpectDistinct(const std::map<std::string, uint32_t>& slots) {
  std::set<uint32_t> distinct;
  for (const auto& [bucket, slot] : slots) distinct.insert(slot);
  EXPECT_EQ(distinct.size(), slots.size()) << "two buckets in one slot";
}

TEST(MatchTest, RandomRequestsMeetTheRulesThatAMatcherOfAFewLinesFinds) {
  for (uint64_t seed = 1; seed <= 8; ++seed) {
    Draw draw(seed);
    // The later ones have more candidates for a request than a shape keeps.
    const std::vector<Spec> rules = RandomRules(draw, seed <= 6 ? 8 : 60);
    std::string yaml = "rules:\n";
    for (const Spec& spec : rules) yaml += spec.Yaml();
    ServedSegments served(yaml, {.capacity = 65536});
    Client client({.runtime_dir = served.dir().c_str()});
    ASSERT_TRUE(client.wait(5000ms));
    std::map<std::string, uint32_t> slots;
    for (int i = 0; i < 3000; ++i) {
      ExpectMatches(served, client.raw(), rules, RandomRequest(draw), &slots);
      if (testing::Test::HasFailure())
        FAIL() << "seed " << seed << " request " << i << "\n" << yaml;
    }
    ExpectDistinct(slots);
  }
}

// One shape is known by heart when the rules change: the next check goes by the new ones.
TEST(MatchTest, AShapeFollowsAChangeOfTheRules) {
  ServedSegments served("rules:\n  - {name: rule-0, key: [a], limit: 10/s}\n");
  Client client({.runtime_dir = served.dir().c_str()});
  ASSERT_TRUE(client.wait(5000ms));
  for (int i = 1; i <= 3; ++i) {  // more often than a place has shapes
    ASSERT_EQ(client.check({{"a", "x"}, {"bb", "y"}}).raw().limit, static_cast<uint64_t>(10 * i));
    served.Publish("rules:\n  - {name: rule-0, key: [bb], limit: " + std::to_string(10 * i + 10) +
                   "/s}\n");
  }
  EXPECT_EQ(client.check({{"a", "x"}, {"bb", "y"}}).raw().limit, 40u);
}

}  // namespace
}  // namespace sluice::test
