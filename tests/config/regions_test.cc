// Regions, and the homes of strict rules in them.

#include <gtest/gtest.h>

#include <map>
#include <string>
#include <vector>

#include "daemon/config/compile.h"
#include "daemon/config/home.h"
#include "daemon/config/parse.h"
#include "shm/hash.h"
#include "tests/config/parsed.h"

namespace sluice::config {
namespace {

#define HEAD "redis: {region: us, regions: {us: {addresses: \"u:1\"}, eu: {addresses: \"e:1\"}}}\n"
#define RULE "rules:\n  - name: rr\n    key: [tenant, user]\n    limit: 10/s\n    consistency: "

TEST(RegionsTest, EachHasWhatRedisHasUnlessItSaysSo) {
  const Config config = Good(
      "redis:\n  region: us\n  username: a\n  password: p\n  mode: single\n  exchange: 2s\n"
      "  request_timeout: 300ms\n  regions:\n"
      "    us: {addresses: \"u:1\"}\n"
      "    eu: {addresses: [\"e:1\", \"e:2\"], mode: cluster, password_file: /p, tls: {},\n"
      "         request_timeout: 1s}\n"
      "    ap: {addresses: \"a:1\", mode: sentinel, sentinel: {master: m}}\nrules: []");
  const RedisConfig& redis = *config.redis;
  EXPECT_EQ(redis.region, "us");
  EXPECT_EQ(redis.addresses, std::vector<std::string>{"u:1"});
  EXPECT_EQ(redis.exchange_ns, 2'000'000'000u);
  ASSERT_EQ(redis.regions.size(), 3u);
  const RedisConfig& ap = redis.regions[0];
  const RedisConfig& eu = redis.regions[1];
  const RedisConfig& us = redis.regions[2];
  EXPECT_EQ(eu.region, "eu");
  EXPECT_EQ(eu.mode, RedisMode::kCluster);
  EXPECT_EQ(eu.username, "a");
  EXPECT_EQ(eu.password, "");
  EXPECT_EQ(eu.password_file, "/p");
  EXPECT_TRUE(eu.tls.has_value());
  EXPECT_EQ(eu.request_timeout_ns, 1'000'000'000u);
  EXPECT_EQ(us.mode, RedisMode::kSingle);
  EXPECT_EQ(us.password, "p");
  EXPECT_EQ(us.request_timeout_ns, 300'000'000u);
  EXPECT_EQ(ap.sentinel->master, "m");
  EXPECT_EQ(RegionNames(redis), (std::vector<std::string>{"us", "ap", "eu"}));
}

TEST(RegionsTest, StrictRulesAreAtHomeByRendezvousUnlessTheySayOtherwise) {
  EXPECT_EQ(Good(HEAD RULE "strict").rules[0].home.by, HomeBy::kRendezvous);
  EXPECT_EQ(Good(HEAD RULE "{mode: strict, home: rendezvous}").rules[0].home.by,
            HomeBy::kRendezvous);
  EXPECT_EQ(Good(HEAD RULE "approximate").rules[0].home.by, HomeBy::kNone);
  EXPECT_EQ(Good("redis: {addresses: \"h:1\"}\n" RULE "strict").rules[0].home.by, HomeBy::kNone);
  const Config config =
      Good(HEAD RULE "{mode: strict, epoch: 7, home: {tenant: {acme: eu}, default: us}}");
  const HomeConfig& home = config.rules[0].home;
  EXPECT_EQ(home.by, HomeBy::kMap);
  EXPECT_EQ(home.descriptor, "tenant");
  EXPECT_EQ(home.fallback, "us");
  EXPECT_EQ(home.epoch, 7u);
}

Home HomeOf(const std::string& consistency, const std::vector<std::string>& regions) {
  return Home(Good(HEAD RULE + consistency).rules[0], "rr", regions);
}

TEST(RegionsTest, AHomeGoesByTheValueInTheBucketsName) {
  const Home home =
      HomeOf("{mode: strict, home: {tenant: {acme: eu, \"a:b\": eu, \"50%\": eu}, default: us}}",
             {"us", "eu"});
  EXPECT_EQ(home.RegionOf("rr:acme:10.0.0.1"), 1u);
  EXPECT_EQ(home.RegionOf("rr:a%3Ab:10.0.0.1"), 1u);
  EXPECT_EQ(home.RegionOf("rr:50%25:x"), 1u);
  EXPECT_EQ(home.RegionOf("rr:other:acme"), 0u);
  EXPECT_EQ(home.RegionOf("rr:folded~0123"), 0u);
  EXPECT_EQ(home.RegionOf("rr"), 0u);
  const Home by_last =
      HomeOf("{mode: strict, home: {user: {\"::1\": eu}, default: us}}", {"us", "eu"});
  EXPECT_EQ(by_last.RegionOf("rr:acme:::1"), 1u);
  EXPECT_EQ(by_last.RegionOf("rr:acme:::2"), 0u);
}

TEST(RegionsTest, HostsOfAllRegionsAgreeOnHomesAndMaps) {
  const std::vector<std::string> from_us = {"us", "ap", "eu"};
  const std::vector<std::string> from_eu = {"eu", "ap", "us"};
  const Home us = HomeOf("strict", from_us);
  const Home eu = HomeOf("strict", from_eu);
  EXPECT_EQ(us.mark(), eu.mark());
  std::map<std::string, int> of_region;
  for (int i = 0; i < 3000; ++i) {
    const std::string text = "rr:t" + std::to_string(i) + ":x";
    ASSERT_EQ(from_us[us.RegionOf(text)], from_eu[eu.RegionOf(text)]);
    ++of_region[from_us[us.RegionOf(text)]];
  }
  for (const auto& [name, n] : of_region) EXPECT_NEAR(n, 1000, 150) << name;
}

TEST(RegionsTest, ARegionThatGoesMovesItsOwnBucketsOnly) {
  const std::vector<std::string> three = {"us", "ap", "eu"};
  const std::vector<std::string> two = {"us", "eu"};
  const Home before = HomeOf("strict", three);
  const Home after = HomeOf("strict", two);
  EXPECT_NE(before.mark(), after.mark());
  for (int i = 0; i < 1000; ++i) {
    const std::string text = "rr:t" + std::to_string(i) + ":x";
    const std::string& was = three[before.RegionOf(text)];
    if (was == "ap") continue;
    EXPECT_EQ(two[after.RegionOf(text)], was);
  }
}

TEST(RegionsTest, AnotherMapHasAnotherMark) {
  const std::vector<std::string> names = {"us", "eu"};
  const std::string head = "{mode: strict, home: {tenant: ";
  const std::string mark = HomeOf(head + "{a: eu, b: us}, default: us}}", names).mark();
  EXPECT_EQ(HomeOf(head + "{b: us, a: eu}, default: us}}", names).mark(), mark);
  EXPECT_NE(HomeOf(head + "{a: us, b: us}, default: us}}", names).mark(), mark);
  EXPECT_NE(HomeOf(head + "{a: eu, b: us}, default: eu}}", names).mark(), mark);
  EXPECT_NE(HomeOf("{mode: strict, home: {user: {a: eu, b: us}, default: us}}", names).mark(),
            mark);
  EXPECT_EQ(mark.substr(0, 5), "rr 0 ");
}

TEST(RegionsTest, CompiledRulesKnowTheirHomes) {
  const Config config =
      Good(HEAD RULE
           "{mode: strict, home: {tenant: {acme: eu}, default: us}}\n"
           "  - {name: near, key: [], limit: 1/s}\n"
           "  - {name: brief, key: [], limit: 1 per 3s, algorithm: fixed_window}\n"
           "  - {name: win, key: [], limit: 1 per 4s, algorithm: fixed_window}\n");
  const auto bytes = Compile(config, shm::HashKey{}, 1);
  ASSERT_TRUE(bytes.ok());
  auto rules = CompiledRules::Load(*bytes);
  ASSERT_TRUE(rules.ok());
  EXPECT_EQ(rules->Find("rr")->home, nullptr);
  rules->AddRegions(config);
  ASSERT_NE(rules->Find("rr")->home, nullptr);
  EXPECT_EQ(rules->Find("rr")->home->RegionOf("rr:acme:x"), 1u);
  EXPECT_EQ(rules->Find("near")->home, nullptr);
  EXPECT_TRUE(rules->Find("near")->exchanged);
  EXPECT_FALSE(rules->Find("rr")->exchanged);
  EXPECT_FALSE(rules->Find("brief")->exchanged);
  EXPECT_TRUE(rules->Find("win")->exchanged);
}

TEST(RegionsTest, AWindowThatIsOverBeforeOtherRegionsHearOfItIsAWarning) {
  const auto warnings = [](const std::string& limits) {
    const ParseResult result = ParseConfig(
        HEAD "rules: [{name: rr, key: [], algorithm: sliding_window, " + limits + "}]", "t.yaml");
    EXPECT_TRUE(result.ok());
    return Text(result.warnings);
  };
  EXPECT_NE(warnings("limit: 9/s").find("hears of no other"), std::string::npos);
  EXPECT_NE(warnings("limit: 9/m, tiers: {a: {limit: 9 per 3s}}").find("hears of no other"),
            std::string::npos);
  EXPECT_EQ(warnings("limit: 9/m, tiers: {a: {limit: 9 per 4s}}").find("hears of no other"),
            std::string::npos);
}

class BadRegionsTest : public testing::TestWithParam<BadFile> {};

TEST_P(BadRegionsTest, IsAProblemThatSaysWhatToWrite) {
  ExpectBad(GetParam());
  EXPECT_EQ(ParseConfig(GetParam().yaml, "t.yaml").problems.size(), 1u)
      << Text(ParseConfig(GetParam().yaml, "t.yaml").problems);
}

INSTANTIATE_TEST_SUITE_P(
    Each, BadRegionsTest,
    testing::Values(
        BadFile{"redis: {region: us, addresses: \"h:1\"}\nrules: []", "there are no regions"},
        BadFile{"redis: {region: us, regions: {us: {addresses: \"h:1\"}}}\nrules: []",
                "holds 1; write 2 to 8"},
        BadFile{"redis: {region: us, regions: [us, eu]}\nrules: []", "is a list, not a mapping"},
        BadFile{"redis: {regions: {us: {addresses: \"u:1\"}, eu: {addresses: \"e:1\"}}}\nrules: []",
                "redis.region: is missing"},
        BadFile{"redis: {region: ap, regions: {us: {addresses: \"u:1\"}, eu: {addresses: "
                "\"e:1\"}}}\nrules: []",
                "is none of redis.regions"},
        BadFile{"redis: {region: us, regions: {us: {addresses: \"u:1\"}, eu: {}}}\nrules: []",
                "redis.regions.eu.addresses: is missing"},
        BadFile{"redis: {region: us, regions: {us: {addresses: \"u:1\"}, \"e u\": {addresses: "
                "\"e:1\"}}}\nrules: []",
                "is no name of a region"},
        BadFile{"redis: {region: us, shards: 2048, regions: {us: {addresses: \"u:1\"}, eu: "
                "{addresses: \"e:1\"}}}\nrules: []",
                "write at most 2047 shards"},
        BadFile{"redis: {region: us, addresses: \"h:1\", regions: {us: {addresses: \"u:1\"}, eu: "
                "{addresses: \"e:1\"}}}\nrules: []",
                "write it under each region"},
        BadFile{"redis: {region: us, regions: {us: {addresses: \"u:1\"}, eu: {addresses: \"e:1\", "
                "mode: sentinel}}}\nrules: []",
                "redis.regions.eu.mode: sentinel needs the name of the primary"},
        BadFile{"redis: {region: us, tls: {}, regions: {us: {addresses: \"u:1\"}, eu: {addresses: "
                "\"unix:/r\"}}}\nrules: []",
                "there is no TLS over"},
        BadFile{HEAD RULE "{home: rendezvous}", "consistency.mode: is missing"},
        BadFile{HEAD RULE "{mode: approximate, home: rendezvous}", "is for strict limits"},
        BadFile{RULE "{mode: strict, home: rendezvous}", "has no regions to choose from"},
        BadFile{RULE "{mode: strict, epoch: 1}", "has no regions to choose from"},
        BadFile{HEAD RULE "{mode: strict, home: eu}", "write `rendezvous`, or `{tenant"},
        BadFile{HEAD RULE "{mode: strict, home: [eu]}", "is a list, not a mapping"},
        BadFile{HEAD RULE "{mode: strict, home: {default: us}}", "names no descriptor"},
        BadFile{HEAD RULE "{mode: strict, home: {tenant: {acme: eu}}}", "write `default: us`"},
        BadFile{HEAD RULE "{mode: strict, home: {tenant: {acme: ap}, default: us}}",
                "is none of redis.regions; write one of eu, us"},
        BadFile{HEAD RULE "{mode: strict, home: {plan: {acme: eu}, default: us}}",
                "which is not in the rule's key"},
        BadFile{HEAD RULE "{mode: strict, home: {tenant: eu, default: us}}",
                "is a single value, not a mapping"},
        BadFile{HEAD RULE "{mode: strict, home: {tenant: {a: eu}, user: {b: eu}, default: us}}",
                "goes by more than one descriptor"},
        BadFile{HEAD RULE "{mode: strict, home: {tenant: {a: eu, a: us}, default: us}}",
                "stands twice"}));

}  // namespace
}  // namespace sluice::config
