#include "daemon/config/parse.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "tests/config/parsed.h"

namespace sluice::config {
namespace {

using shm::DegradedMode;
using shm::KeyForm;
using shm::MatchOp;

constexpr uint64_t kMs = 1'000'000;
constexpr uint64_t kSecond = 1000 * kMs;

TEST(ParseTest, FillsInEveryDefault) {
  const Config config = Good("rules: [{name: aa, key: [user], limit: 100/s}]");
  EXPECT_EQ(config.daemon.runtime_dir, "/run/sluice");
  EXPECT_EQ(config.daemon.buckets, 131'072u);
  EXPECT_EQ(config.daemon.group, "");
  EXPECT_FALSE(config.redis.has_value());
  ASSERT_EQ(config.rules.size(), 1u);
  const RuleConfig& rule = config.rules[0];
  EXPECT_EQ(rule.name, "aa");
  EXPECT_TRUE(rule.match.empty());
  ASSERT_TRUE(rule.limit.has_value());
  EXPECT_EQ(rule.limit->limit, 100u);
  EXPECT_EQ(rule.limit->period_ns, kSecond);
  EXPECT_EQ(rule.limit->burst, 100u);
  EXPECT_EQ(rule.limit->cost, 1u);
  EXPECT_EQ(rule.degraded.mode, DegradedMode::kDegrade);
  EXPECT_EQ(rule.degraded.factor, 1.0);
  EXPECT_EQ(rule.degraded.for_ns, 0u);
  EXPECT_FALSE(rule.degraded.alert);
  EXPECT_FALSE(rule.strict);
  EXPECT_FALSE(rule.shadow);
}

TEST(ParseTest, ReadsEveryKey) {
  const Config config = Good(R"(
daemon: {runtime_dir: /tmp/s/, buckets: 1000, group: sluice, log_level: debug}
redis:
  addresses: [127.0.0.1:7000, "[::1]:7001", "unix:/run/redis.sock", localhost:1]
  mode: single
  username: u
  password: p
  prefix: x.y
  shards: 8
  flush_interval: 50ms
  connect_timeout: 2s
  request_timeout: 300ms
  transport: epoll
  host_name: h1
rules:
  - name: first
    match: {route: /v1/*, method: [GET, HEAD, GET], path: "/a?c", any: "*", exact: "x", star: ["*"]}
    key: [tenant, ip/24]
    limit: 100/s
    burst: 200
    cost: 2
    algorithm: token_bucket
    consistency: approximate
    tier_by: plan
    shadow: true
    when_degraded: {mode: degrade, factor: 0.25, for: 60s, then: degrade, then_factor: 0.0001, alert: true}
    tiers:
      paid: {limit: 1000/s, burst: 2000, cost: 5, when_degraded: {mode: open}}
      free: {limit: 1 per 10s, burst: 3}
)");
  EXPECT_EQ(config.daemon.runtime_dir, "/tmp/s");
  EXPECT_EQ(config.daemon.buckets, 1024u);
  EXPECT_EQ(config.daemon.group, "sluice");
  EXPECT_EQ(config.daemon.log_level, LogLevel::kDebug);
  ASSERT_TRUE(config.redis.has_value());
  const RedisConfig& redis = *config.redis;
  EXPECT_EQ(redis.addresses, (std::vector<std::string>{"127.0.0.1:7000", "[::1]:7001",
                                                       "unix:/run/redis.sock", "localhost:1"}));
  EXPECT_EQ(redis.mode, RedisMode::kSingle);
  EXPECT_EQ(redis.username, "u");
  EXPECT_EQ(redis.password, "p");
  EXPECT_EQ(redis.prefix, "x.y");
  EXPECT_EQ(redis.shards, 8u);
  EXPECT_EQ(redis.flush_interval_ns, 50 * kMs);
  EXPECT_EQ(redis.connect_timeout_ns, 2 * kSecond);
  EXPECT_EQ(redis.request_timeout_ns, 300 * kMs);
  EXPECT_EQ(redis.transport, Transport::kEpoll);
  EXPECT_EQ(redis.host_name, "h1");

  const RuleConfig& rule = config.rules.at(0);
  ASSERT_EQ(rule.match.size(), 6u);
  EXPECT_EQ(rule.match[0].op, MatchOp::kPrefix);
  EXPECT_EQ(rule.match[0].values[0], "/v1/");
  EXPECT_EQ(rule.match[1].op, MatchOp::kOneOf);
  EXPECT_EQ(rule.match[1].values, (std::vector<std::string>{"GET", "HEAD"}));
  EXPECT_EQ(rule.match[2].op, MatchOp::kGlob);
  EXPECT_EQ(rule.match[2].values[0], "/a?c");
  EXPECT_EQ(rule.match[3].op, MatchOp::kPrefix);
  EXPECT_EQ(rule.match[3].values[0], "");
  EXPECT_EQ(rule.match[4].op, MatchOp::kExact);
  EXPECT_EQ(rule.match[5].op, MatchOp::kOneOf);
  EXPECT_EQ(rule.match[5].values[0], "*");
  ASSERT_EQ(rule.key.size(), 2u);
  EXPECT_EQ(rule.key[0].form, KeyForm::kRaw);
  EXPECT_EQ(rule.key[1].form, KeyForm::kIp);
  EXPECT_EQ(rule.key[1].v4_bits, 24);
  EXPECT_EQ(rule.key[1].v6_bits, 64);
  EXPECT_EQ(rule.limit->burst, 200u);
  EXPECT_EQ(rule.limit->cost, 2u);
  EXPECT_EQ(rule.tier_by, "plan");
  EXPECT_TRUE(rule.shadow);
  EXPECT_EQ(rule.degraded.factor, 0.25);
  EXPECT_EQ(rule.degraded.for_ns, 60 * kSecond);
  EXPECT_EQ(rule.degraded.then, DegradedMode::kDegrade);
  EXPECT_EQ(rule.degraded.then_factor, 0.0001);
  EXPECT_TRUE(rule.degraded.alert);
  ASSERT_EQ(rule.tiers.size(), 2u);
  EXPECT_EQ(rule.tiers[0].tier, "paid");
  EXPECT_EQ(rule.tiers[0].limit.cost, 5u);
  EXPECT_EQ(rule.tiers[0].degraded.mode, DegradedMode::kOpen);
  EXPECT_FALSE(rule.tiers[0].degraded.alert);
  EXPECT_EQ(rule.tiers[1].limit.period_ns, 10 * kSecond);
  EXPECT_EQ(rule.tiers[1].limit.cost, 2u) << "the rule's cost, where the tier has none";
  EXPECT_EQ(rule.tiers[1].degraded.factor, 0.25) << "the rule's word, where the tier has none";
}

TEST(ParseTest, ReadsEveryFormOfAddressKeys) {
  const auto bits = [](const std::string& key) {
    const Config config = Good("rules: [{name: aa, key: " + key + ", limit: 1/s}]");
    const KeyConfig& part = config.rules.at(0).key.at(0);
    EXPECT_EQ(part.form, KeyForm::kIp) << key;
    return std::pair<int, int>(part.v4_bits, part.v6_bits);
  };
  EXPECT_EQ(bits("[ip]"), std::make_pair(32, 64));
  EXPECT_EQ(bits("ip"), std::make_pair(32, 64));
  EXPECT_EQ(bits("[ip/24]"), std::make_pair(24, 64));
  EXPECT_EQ(bits("[ip/0]"), std::make_pair(0, 64));
  EXPECT_EQ(bits("[ip/32]"), std::make_pair(32, 64));
  EXPECT_EQ(bits("[ip/33]"), std::make_pair(32, 33));
  EXPECT_EQ(bits("[ip/64]"), std::make_pair(32, 64));
  EXPECT_EQ(bits("[ip/128]"), std::make_pair(32, 128));
  EXPECT_EQ(bits("[\"ip/24,48\"]"), std::make_pair(24, 48));
  EXPECT_EQ(bits("[{ip: {v4: 16, v6: 56}}]"), std::make_pair(16, 56));
  EXPECT_EQ(bits("[{client: {v6: 56}}]"), std::make_pair(32, 56));
  EXPECT_TRUE(Good("rules: [{name: aa, key: [], limit: 1/s}]").rules[0].key.empty());
}

// Wrong lines of a rule, and a part of what must be said about them.
struct BadLine {
  const char* line;
  const char* said;
};
class BadRuleTest : public testing::TestWithParam<BadLine> {};

TEST_P(BadRuleTest, IsAProblemWithItsPlaceAndItsMend) {
  const ParseResult result = OfRule(GetParam().line);
  ASSERT_FALSE(result.ok());
  const std::string said = Text(result.problems);
  EXPECT_NE(said.find(GetParam().said), std::string::npos) << said;
  for (const Problem& problem : result.problems) {
    EXPECT_EQ(problem.file, "t.yaml");
    EXPECT_GT(problem.line, 0) << problem.ToString();
    EXPECT_GT(problem.column, 0) << problem.ToString();
    EXPECT_FALSE(problem.path.empty()) << problem.ToString();
    EXPECT_FALSE(problem.mend.empty()) << problem.ToString();
  }
}

INSTANTIATE_TEST_SUITE_P(
    Each, BadRuleTest,
    testing::Values(
        BadLine{"limt: 1/s", "t.yaml:4:5: rules[0].limt: is no known key; did you mean `limit`?"},
        BadLine{"rate: 1/s", "did you mean `limit`?"},
        BadLine{"limit: 1/s\n    colour: red", "keys here are name, match, key"},
        BadLine{"limit: 1/s\n    limit: 2/s", "stands twice, first in line 4"},
        BadLine{"shadow: false", "rules[0].limit: is missing"},
        BadLine{"limit: 100", "write 100/s, 100/m, 100/h or 100/d"},
        BadLine{"limit: 100/fortnight",
                "t.yaml:4:12: rules[0].limit: \"100/fortnight\" is no limit"},
        BadLine{"limit: 0/s", "limits start at 1"}, BadLine{"limit: 0/s", "1 per 366d"},
        BadLine{"limit: -1/s", "is no limit"},
        BadLine{"limit: 1000000000001/s", "more than 1,000,000,000,000 tokens"},
        BadLine{"limit: 1000000001/999ms", "write a period of at least 1s"},
        BadLine{"limit: 1/401d", "is no limit"},
        BadLine{"limit: 1 per 367d", "write a period of at most 366d"},
        BadLine{"limit: [1/s]", "is a list, not a single value"},
        BadLine{"limit: {per: s}", "is a mapping, not a single value"},
        BadLine{"limit:", "has no value"}, BadLine{"limit: 1/s\n    burst: 0", "0 is out of range"},
        BadLine{"limit: 1/s\n    burst: 1000000000001", "out of range"},
        BadLine{"limit: 1/s\n    burst: ten", "\"ten\" is no whole number"},
        BadLine{"limit: 1/s\n    burst: 99999999999999999999", "is no whole number"},
        BadLine{"limit: 1/d\n    burst: 367", "write a burst of at most 366"},
        BadLine{"limit: 10/s\n    cost: 0", "0 is out of range"},
        BadLine{"limit: 10/s\n    cost: 11", "a cost of 11 never fits a burst of 10"},
        BadLine{"limit: 10/s\n    cost: 1000001", "out of range"},
        BadLine{"burst: 5", "has no limit beside it"},
        BadLine{"limit: 1/s\n    algorithm: concurrency", "write `in_flight: 100` in place of"},
        BadLine{"limit: 4097/s\n    algorithm: sliding_log", "at most 4096"},
        BadLine{"algorithm: sliding_log\n    tiers: {a: {limit: 5000/d}}", "at most 4096"},
        BadLine{"limit: 5/s\n    algorithm: sliding_log\n    burst: 9", "is not for windows"},
        BadLine{"limit: 5/s\n    algorithm: sliding_log\n    consistency: strict",
                "is for token buckets"},
        BadLine{"limit: 5/s\n    algorithm: fixed_window\n    burst: 9", "is not for windows"},
        BadLine{"limit: 5/s\n    algorithm: sliding_window\n    max_delay: 1s",
                "is not for windows"},
        BadLine{"limit: 5 per 999ms\n    algorithm: sliding_window", "steps of 8.4 ms"},
        BadLine{"algorithm: fixed_window\n    tiers: {a: {limit: 5 per 100ms}}",
                "write a period of at least 1s"},
        BadLine{"limit: 5/s\n    algorithm: fixed_window\n    cost: 6", "never fits a limit of 5"},
        BadLine{"limit: 1 per 367d\n    algorithm: fixed_window", "lasts more than 366 days"},
        BadLine{"limit: 1/s\n    algorithm: token_buckt", "write token_bucket"},
        BadLine{"limit: 1/s\n    algorithm: leaky_bucket", "write `max_delay` beside it"},
        BadLine{"limit: 1/s\n    max_delay: 1s", "write `algorithm: leaky_bucket`"},
        BadLine{"limit: 1/s\n    algorithm: leaky_bucket\n    max_delay: 2h", "from 1ms to 1h"},
        BadLine{"algorithm: leaky_bucket\n    tiers: {a: {limit: 5/s}}",
                "write `max_delay` beside it"},
        BadLine{"limit: 1/s\n    algorithm: leaky_bucket\n    max_delay: 1s\n    burst: 2\n"
                "    cost: 3",
                "never fits a burst of 2"},
        BadLine{"limit: 1/s\n    consistency: eventual", "one of approximate, strict"},
        BadLine{"limit: 1/s\n    shadow: yes", "write true"},
        BadLine{"limit: 1/s\n    shadow: 7", "write true or false"},
        BadLine{"limit: 1/s\n    match: /v1", "is a single value, not a mapping"},
        BadLine{"limit: 1/s\n    match: {route: {a: b}}", "is a mapping, not a value"},
        BadLine{"limit: 1/s\n    match: {route: []}", "is a list of 0 values"},
        BadLine{"limit: 1/s\n    match: {route: }", "is nothing"},
        BadLine{"limit: 1/s\n    match: {route: a, route: b}", "stands twice"},
        BadLine{"limit: 1/s\n    match: {\"a b\": c}", "\"a b\" is no descriptor name"},
        BadLine{"limit: 1/s\n    match: {[a]: c}", "a key is a text, not a list"},
        BadLine{"limit: 1/s\n    when_degraded: closed", "write `when_degraded: {mode: closed}`"},
        BadLine{"limit: 1/s\n    when_degraded: {mode: half}", "one of open, closed, degrade"},
        BadLine{"limit: 1/s\n    when_degraded: {mode: open, for: 5s}", "but not what follows"},
        BadLine{"limit: 1/s\n    when_degraded: {then: closed}", "but not after how long"},
        BadLine{"limit: 1/s\n    when_degraded: {factor: 0}", "0.0001 to 1"},
        BadLine{"limit: 1/s\n    when_degraded: {factor: 1.5}", "0.0001 to 1"},
        BadLine{"limit: 1/s\n    when_degraded: {factor: nan}", "is no number"},
        BadLine{"limit: 1/s\n    when_degraded: {for: 1, then: open}", "lacks a unit"},
        BadLine{"limit: 1/s\n    when_degraded: {fro: 1s}", "did you mean `for`?"},
        BadLine{"tiers: {}", "is empty"}, BadLine{"tiers: [free]", "is a list, not a mapping"},
        BadLine{"tiers: {free: 10/s}", "is a single value, not a mapping"},
        BadLine{"tiers: {free: {}}", "rules[0].tiers.free.limit: is missing"},
        BadLine{"tiers: {free: {limit: 1/s, when_degraded: {mod: open}}}", "did you mean `mode`?"},
        BadLine{"tiers: {\"a@b\": {limit: 1/s}}", "is no name of a tier"},
        BadLine{"tiers: {abcdefghijabcdefghijabcdefghijab: {limit: 1/s}}", "at most 31"},
        BadLine{"tiers: {a: {limit: 1/s}, a: {limit: 2/s}}", "stands twice"},
        BadLine{"limit: 1/s\n    tier_by: \"a=b\"\n    tiers: {a: {limit: 1/s}}",
                "is no descriptor name"}));

class BadFileTest : public testing::TestWithParam<BadFile> {};

TEST_P(BadFileTest, IsAProblemThatSaysWhatToWrite) { ExpectBad(GetParam()); }

INSTANTIATE_TEST_SUITE_P(
    Each, BadFileTest,
    testing::Values(
        BadFile{"", "rules: is missing"}, BadFile{"# nothing\n", "rules: is missing"},
        BadFile{"hello", "is a single value, not a mapping"},
        BadFile{"- a\n", "is a list, not a mapping"}, BadFile{"rules:\n", "is nothing, not a list"},
        BadFile{"rules: {}", "is a mapping, not a list"},
        BadFile{"rules: [a]", "rules[0]: is a single value, not a mapping"},
        BadFile{"rules: []\n---\nrules: []\n", "a second document begins here"},
        BadFile{"ruls: []", "t.yaml:1:1: ruls: is no known key; did you mean `rules`?"},
        BadFile{"rules: [{key: [a], limit: 1/s}]", "rules[0].name: is missing"},
        BadFile{"rules: [{name: aa, limit: 1/s}]", "rules[0].key: is missing"},
        BadFile{"rules: [{name: aa, key: , limit: 1/s}]", "write `key: []` for one bucket for all"},
        BadFile{"rules: [{name: aa, key: [a, a], limit: 1/s}]", "`a` stands twice"},
        BadFile{"rules: [{name: aa, key: [ip/24,64], limit: 1/s}]", "in quotes"},
        BadFile{"rules: [{name: aa, key: [ip/129], limit: 1/s}]", "no such prefix length"},
        BadFile{"rules: [{name: aa, key: [\"ip/33,64\"], limit: 1/s}]", "no such prefix length"},
        BadFile{"rules: [{name: aa, key: [ip/], limit: 1/s}]", "no such prefix length"},
        BadFile{"rules: [{name: aa, key: [{ip: {v5: 1}}], limit: 1/s}]",
                "`v5: 1` is none of v4, v6 and private"},
        BadFile{"rules: [{name: aa, key: [{ip: {v4: 33}}], limit: 1/s}]",
                "`v4: 33` is no prefix of IPv4 (0 to 32)"},
        BadFile{"rules: [{name: aa, key: [{ip: {}}], limit: 1/s}]", "makes no key"},
        BadFile{"rules: [{name: aa, key: [a,b,c,d,e,f,g,h,i], limit: 1/s}]", "write at most 8"},
        BadFile{"rules: [{name: a, key: [u], limit: 1/s}]", "a text of 2 to 32 bytes"},
        BadFile{"rules: [{name: Upper, key: [u], limit: 1/s}]", "is no name of a rule"},
        BadFile{"rules: [{name: 'a:b', key: [u], limit: 1/s}]", "is no name of a rule"},
        BadFile{"rules: [{name: aa, key: [u], limit: 1/s}, {name: aa, key: [u], limit: 1/s}]",
                "is already the rule of line 1"},
        BadFile{"daemon: {buckets: 63}\nrules: []", "from 64 to 67,108,864"},
        BadFile{"daemon: {buckets: 67108865}\nrules: []", "out of range"},
        BadFile{"daemon: {runtime_dir: run}\nrules: []", "no absolute path"},
        BadFile{"daemon: {group: \"a b\"}\nrules: []", "no name of a group"},
        BadFile{"daemon: {log_level: warn}\nrules: []", "one of debug, info, warning, error"},
        BadFile{"daemon: {chaos: {rules: nobody}}\nrules: []", "there is no rule \"nobody\""},
        BadFile{"daemon: {chaos: {max_share: 0}}\nrules: []", "daemon.chaos.max_share"},
        BadFile{"daemon: {chaos: {max_for: 2h}}\nrules: []", "1s to 1h"},
        BadFile{"rules:\n\t- name: aa\n", "indent with blanks, not with tabs"},
        BadFile{"rules:\n  - {name: aa, match: {route: *}, key: [u], limit: 1/s}\n", "t.yaml:2:"},
        BadFile{"rules: [{name: aa, <<: {a: b}, key: [u], limit: 1/s}]", "merge keys are not read"},
        BadFile{"rules: [*nobody]", "this is not YAML"}, BadFile{"rules: [", "this is not YAML"},
        BadFile{"rules: \"", "is a single value, not a list"},
        BadFile{"rules: []\n\x01", "t.yaml:2:1: there is a byte here"},
        BadFile{"rules: []\n# \xc3\x28", "t.yaml:2:3: there is a byte here"},
        BadFile{"rules: []\n# \x04\nnonsense", "save the file as UTF-8"}));

TEST(ParseTest, SaysAllProblemsAtOnceEachAtItsPlace) {
  const ParseResult result = ParseConfig(
      "daemon:\n"
      "  bukets: 5\n"
      "rules:\n"
      "  - name: one\n"
      "    key: [user]\n"
      "    limit: fast\n"
      "  - name: two\n"
      "    limit: 1/s\n"
      "    burst: -1\n",
      "x.yaml");
  EXPECT_EQ(Text(result.problems),
            "x.yaml:2:3: daemon.bukets: is no known key; did you mean `buckets`?\n"
            "x.yaml:6:12: rules[0].limit: \"fast\" is no limit; write tokens per time, as 100/s, "
            "5000/h, 1 per 10s or 100 per 1m30s\n"
            "x.yaml:7:5: rules[1].key: is missing; write for example `key: [tenant, user]`\n"
            "x.yaml:9:12: rules[1].burst: \"-1\" is no whole number; write a whole number from 1 "
            "to 1,000,000,000,000\n");
}

TEST(ParseTest, NamesNoPasswordInWhatItSays) {
  const std::string secret(5000, 'S');
  const ParseResult result =
      ParseConfig("redis: {addresses: \"h:1\", password: " + secret + "}\nrules: []", "t.yaml");
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(Text(result.problems).find("SSS"), std::string::npos);
}

TEST(ParseTest, SaysAProblemInOneLineWhateverTheFileNames) {
  const ParseResult result =
      OfRule("limit: 1/s\n    \"a\\x1b[2J\\nb\": 1\n    match:\n      \"c\\nd\": []\n      ? " +
             std::string(100'000, 'n') + "\n      : []");
  ASSERT_GE(result.problems.size(), 3u) << Text(result.problems);
  EXPECT_EQ(result.problems[0].path, "rules[0].a?[2J?b");
  for (const Problem& problem : result.problems) {
    const std::string line = problem.ToString();
    EXPECT_LT(line.size(), 1000u);
    EXPECT_TRUE(std::all_of(line.begin(), line.end(), [](char c) { return c >= ' '; })) << line;
  }
}

TEST(ParseTest, SaysAMendInOneLineWhateverTheFileSays) {
  const ParseResult result = ParseConfig(
      "rules: []\nredis: {addresses: [\"a\\x1bb\", \"[" + std::string(100'000, ':') + "\"]}",
      "t.yaml");
  ASSERT_EQ(result.problems.size(), 2u) << Text(result.problems);
  EXPECT_EQ(result.problems[0].mend, "write the port too, as in a?b:6379");
  EXPECT_LT(result.problems[1].ToString().size(), 3000u);
}

TEST(ParseTest, StopsListingAfterTooManyProblems) {
  std::string yaml = "rules:\n";
  for (int i = 0; i < 1000; ++i) yaml += "  - {x: 1}\n";
  const ParseResult result = ParseConfig(yaml, "t.yaml");
  ASSERT_EQ(result.problems.size(), kMaxProblems);
  EXPECT_NE(result.problems.back().what.find("more than"), std::string::npos);
}

TEST(ParseTest, RefusesFilesThatAreTooLarge) {
  const ParseResult result = ParseConfig(std::string(kMaxConfigBytes + 1, '#'), "t.yaml");
  ASSERT_EQ(result.problems.size(), 1u);
  EXPECT_NE(result.problems[0].what.find("1048577 bytes"), std::string::npos);
}

TEST(ParseTest, RefusesMoreRulesLimitsNamesOrBytesThanFitAndSaysByHowMuch) {
  const auto rules = [](int count, const auto& line) {
    std::string yaml = "rules:\n";
    for (int i = 0; i < count; ++i) yaml += "  - " + line(i) + "\n";
    return Text(ParseConfig(yaml, "t.yaml").problems);
  };
  const auto plain = [](int i) {
    return "{name: r" + std::to_string(i) + ", key: [u], limit: 1/s}";
  };
  EXPECT_EQ(rules(1024, plain), "");
  EXPECT_NE(rules(1025, plain).find("holds 1025 rules; write at most 1024"), std::string::npos);
  const auto names = [](int i) {
    return "{name: r" + std::to_string(i) + ", key: [d" + std::to_string(i) + "], limit: 1/s}";
  };
  EXPECT_EQ(rules(64, names), "");
  EXPECT_NE(rules(65, names).find("65 descriptors, 1 more than the 64"), std::string::npos);
  const auto tiers = [](int i) {
    std::string line = "{name: r" + std::to_string(i) + ", key: [u], tiers: {";
    for (int t = 0; t < 100; ++t) line += (t ? ", t" : "t") + std::to_string(t) + ": {limit: 1/s}";
    return line + "}}";
  };
  EXPECT_EQ(rules(19, tiers), "");
  EXPECT_NE(rules(30, tiers).find("more than the 262080 that fit"), std::string::npos);
  EXPECT_NE(rules(41, tiers).find("4100 limits, 4 more than the 4096"), std::string::npos);
}

TEST(ParseTest, AcceptsTheEdgesOfEveryRange) {
  for (const char* line :
       {"limit: 1 per 366d\n    burst: 1", "limit: 1/d\n    burst: 366", "limit: 1000000000/s",
        "limit: 1000000000 per 365d", "limit: 1000000/1ms\n    burst: 1000000000",
        "limit: 1000000000000/s", "limit: 1000000000000 per 366d",
        "limit: 1000000000/1ms\n    burst: 1000000000000",
        "limit: 1000000000000 per 300d\n    algorithm: sliding_window", "limit: 10/s\n    cost: 10",
        "limit: 1000000/s\n    cost: 1000000", "limit: 1/s\n    when_degraded: {factor: 0.0001}",
        "limit: 1/s\n    when_degraded: {mode: open, for: 100ms, then: closed}",
        "cost: 3\n    tiers: {a: {limit: 5/s}}"}) {
    const ParseResult result = OfRule(line);
    EXPECT_TRUE(result.ok()) << line << "\n" << Text(result.problems);
  }
}

TEST(ParseTest, WarnsOfWhatDoesNotDoWhatItsAuthorExpects) {
  const auto warns = [](const ParseResult& result, const char* said) {
    EXPECT_TRUE(result.ok()) << Text(result.problems);
    EXPECT_NE(Text(result.warnings).find(said), std::string::npos) << said << "\n--\n"
                                                                   << Text(result.warnings);
  };
  const std::string redis = "redis: {addresses: \"h:1\", flush_interval: 100ms}\n";
  warns(OfRule("limit: 300000000/s"), "counted as 4 ns");
  warns(OfRule("limit: 100/s\n    burst: 19", redis), "write a burst of at least 21");
  warns(OfRule("limit: 1/s\n    tier_by: plan"), "no effect without `tiers`");
  warns(OfRule("limit: 1/s\n    match: {r: [a, b*]}"), "plain star");
  warns(OfRule("limit: 1/s\n    when_degraded: {mode: open, factor: 0.5}"), "no effect");
  warns(OfRule("limit: 9/s\n    override: {max: 8}"), "below the rule's own limit of 9");
  const std::string quota = "algorithm: fixed_window\n    calendar: ";
  warns(OfRule("limit: 1/d\n    " + quota + "{week_start: sunday}"), "is for windows of weeks");
  warns(OfRule("limit: 1/month\n    " + quota + "{anchor_month: 4}"), "is for windows of years");
  warns(OfRule("limit: 1/week\n    " + quota + "{anchor_day: 4}"), "of months and years");
  warns(ParseConfig("rules: []", "t.yaml"), "every request is allowed");
  warns(ParseConfig("daemon: {buckets: 100}\nrules: []", "t.yaml"), "128 are kept; write 128");
  warns(ParseConfig("redis: {addresses: [\"a:1\", \"b:1\"], mode: single}\nrules: []", "t.yaml"),
        "the first address only");
}

TEST(ParseTest, HasNothingToSayAboutSoundRules) {
  const std::string redis = "redis: {addresses: \"h:1\", flush_interval: 100ms}\n";
  for (const char* line :
       {"limit: 100/s\n    burst: 20", "limit: 9/s\n    override: {max: 9}",
        "limit: 1/year\n    algorithm: fixed_window\n    calendar: {anchor_month: 4}",
        "limit: 1/week\n    algorithm: fixed_window\n    calendar: {week_start: sunday}",
        "limit: 1000000/s", "limit: 1/d", "limit: 7/h",
        "limit: 1/s\n    when_degraded: {mode: open, factor: 0.5, for: 1s, then: degrade}"}) {
    const ParseResult result = OfRule(line, redis);
    EXPECT_TRUE(result.ok()) << Text(result.problems);
    EXPECT_TRUE(result.warnings.empty()) << line << "\n" << Text(result.warnings);
  }
}

TEST(ParseTest, SharesValuesOverAnchorsAndSurvivesOnesThatHoldThemselves) {
  const Config config = Good(
      "rules:\n"
      "  - {name: aa, key: [u], limit: 1/s, when_degraded: &later {mode: closed}}\n"
      "  - {name: bb, key: [u], limit: 1/s, when_degraded: *later}\n");
  EXPECT_EQ(config.rules.at(1).degraded.mode, DegradedMode::kClosed);
  EXPECT_FALSE(ParseConfig("rules: &a [*a]", "t.yaml").ok());
  EXPECT_FALSE(ParseConfig("rules: [&a {name: *a, match: *a, key: *a}]", "t.yaml").ok());
}

TEST(ParseTest, EndsOnTextsThatTheLibraryReadsForever) {
  for (const char* text :
       {", ]|\n]>\n", ",", "]", "}", "rules: []\n]", "rules: []\n, a", ":", "- ]"}) {
    EXPECT_FALSE(ParseConfig(text, "t.yaml").ok()) << text;
  }
}

TEST(ParseTest, TakesDocumentMarksAroundTheOneDocument) {
  for (const char* text : {"---\nrules: []\n", "rules: []\n...\n", "%YAML 1.2\n---\nrules: []\n",
                           "\xef\xbb\xbfrules: []\n", "rules: []", "rules: []\r\n"}) {
    EXPECT_TRUE(ParseConfig(text, "t.yaml").ok()) << text;
  }
}

TEST(ParseTest, RefusesTowersOfBrackets) {
  for (const size_t depth : {100, 10'000, 500'000}) {
    EXPECT_FALSE(ParseConfig("rules: " + std::string(depth, '['), "t.yaml").ok());
    EXPECT_FALSE(ParseConfig("rules: " + std::string(depth, '{'), "t.yaml").ok());
  }
}

}  // namespace
}  // namespace sluice::config
