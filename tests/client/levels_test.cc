// What an answer tells beside yes and no: levels, texts of the rule, status and body for HTTP; and
// looks that change nothing.
#include <gtest/gtest.h>

#include <cstring>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "client/include/sluice.h"
#include "client/include/sluice.hpp"
#include "shm/clock.h"
#include "shm/layout.h"
#include "tests/client/served_client.h"
#include "tests/support/served_segments.h"

namespace sluice::test {
namespace {

using namespace std::chrono_literals;
using nlohmann::json;

// Rates so low that no test is slow enough to see a token come back.
constexpr char kRules[] = R"(
rules:
  - name: plain
    match: {route: /plain}
    key: [user]
    limit: 10 per 10h
  - name: soft
    match: {route: /soft}
    key: [user]
    limit: 20 per 20h
    near: 0.5
    soft: {at: 0.75}
    metadata: {plan: free, docs: "https://example.org/limits?a=1"}
    tiers: {paid: {limit: 40 per 40h}}
  - name: window
    match: {route: /window}
    key: [user]
    limit: 10 per 10h
    algorithm: fixed_window
    soft: {at: 1}
  - name: both-user
    match: {route: /both}
    key: [user]
    limit: 10 per 10h
  - name: both-tenant
    match: {route: /both}
    key: [tenant]
    limit: 100 per 100h
    soft: {at: 0.02}
  - name: tried
    match: {route: /tried}
    key: [user]
    limit: 1 per 1h
    shadow: true
  - name: closed
    match: {route: /closed}
    key: [user]
    limit: 10 per 10h
    when_degraded: {mode: closed}
)";

class LevelsTest : public ServedClient {
 protected:
  explicit LevelsTest(ServedSegments::Options options = {}) : ServedClient(kRules, options) {}

  // The levels of checks until the first denial, as letters.
  template <class Check>
  static std::string Levels(const Check& check) {
    std::string levels;
    for (int i = 0; i < 100; ++i) {
      const Decision d = check();
      levels += "onsh"[static_cast<int>(d.level())];
      EXPECT_EQ(d.level() == Level::kHard, !d.allowed());
      if (!d) return levels;
    }
    return levels;
  }

  std::string Memory() const {
    const shm::MappedBuckets& b = served_.buckets();
    return std::string(reinterpret_cast<const char*>(b.slots()),
                       shm::GeometryFor(b.capacity()).bytes);
  }
};

TEST_F(LevelsTest, RiseWithWhatIsUsed) {
  const auto list = [&](const char* route) {
    return Levels([&] { return client_.check({{"route", route}, {"user", "u"}}); });
  };
  EXPECT_EQ(list("/plain"), "ooooooonnnh");
  EXPECT_EQ(list("/soft"), "ooooooooonnnnnssssssh");
  EXPECT_EQ(list("/window"), "ooooooonnsh");
}

TEST_F(LevelsTest, AreTheSameByEveryWayToCheck) {
  const std::string want = "ooooooooonnnnnssssssh";
  auto handle = client_.bind({{"route", "/soft"}, {"user", "handle"}});
  EXPECT_EQ(Levels([&] { return handle->check(); }), want);
  auto rule = client_.bind_rule("soft");
  EXPECT_EQ(Levels([&] { return rule->check("rule"); }), want);
  EXPECT_EQ(Levels([&] {
              const Descriptor d[] = {{"route", "/soft"}, {"user", "many"}};
              const sluice_request_t request = {d, 2, 1};
              int result = 0;
              Decision decision;
              EXPECT_GE(sluice_check_many(client_.raw(), &request, 1, &result, &decision.raw()), 0);
              return decision;
            }),
            want);
}

TEST_F(LevelsTest, OfSeveralRulesTheHighestIsTold) {
  const auto check = [&] {
    return client_.check({{"route", "/both"}, {"user", "u"}, {"tenant", "t"}});
  };
  EXPECT_EQ(check().level(), Level::kOk);
  const Decision d = check();
  EXPECT_EQ(client_.rule_of(d), "both-user");  // the strictest
  EXPECT_EQ(d.level(), Level::kSoft);          // the other one's
}

TEST_F(LevelsTest, AShadowRulesDenialIsHardThoughAllowed) {
  const auto check = [&] { return client_.check({{"route", "/tried"}, {"user", "u"}}); };
  EXPECT_EQ(check().level(), Level::kNear);
  const Decision d = check();
  EXPECT_TRUE(d);
  EXPECT_EQ(d.level(), Level::kHard);
}

TEST_F(LevelsTest, MetadataIsFoundByName) {
  Decision d = client_.check({{"route", "/soft"}, {"user", "m"}});
  EXPECT_EQ(client_.metadata_of(d, "plan"), "free");
  EXPECT_EQ(client_.metadata_of(d, "docs"), "https://example.org/limits?a=1");
  EXPECT_EQ(client_.metadata_of(d, "other"), "");
  d = client_.check({{"route", "/soft"}, {"user", "m"}, {"tier", "paid"}});
  EXPECT_EQ(client_.metadata_of(d, "plan"), "free");
  d = client_.check({{"route", "/plain"}, {"user", "m"}});
  EXPECT_EQ(client_.metadata_of(d, "plan"), "");
  d = client_.check({{"route", "/soft"}, {"user", "m"}});
  char small[4];
  EXPECT_EQ(sluice_decision_metadata(client_.raw(), &d.raw(), "plan", small, sizeof small),
            SLUICE_E_BUFFER);
  served_.Publish("rules: [{name: soft, key: [user], limit: 1/s, metadata: {plan: free}}]");
  EXPECT_EQ(client_.metadata_of(d, "plan"), "");  // of rules that are no longer in force
}

TEST_F(LevelsTest, ADenialHasAStatusAndABody) {
  const auto check = [&] {
    return client_.check({{"route", "/both"}, {"user", "p"}, {"tenant", "p"}});
  };
  Decision d = check();
  EXPECT_EQ(d.http_status(), 200);
  EXPECT_EQ(client_.problem_json(d), "");
  while (d) d = check();
  EXPECT_EQ(d.http_status(), 429);
  const json body = json::parse(client_.problem_json(d));
  EXPECT_EQ(body.at("type"), "https://iana.org/assignments/http-problem-types#quota-exceeded");
  EXPECT_EQ(body.at("status"), 429);
  EXPECT_EQ(body.at("violated-policies"), json({"both-user"}));
  EXPECT_FALSE(body.at("title").get<std::string>().empty());
  char small[32];
  EXPECT_EQ(sluice_problem_json(client_.raw(), &d.raw(), small, sizeof small), SLUICE_E_BUFFER);
  EXPECT_EQ(sluice_http_status(nullptr), 0);
}

TEST_F(LevelsTest, WithoutADaemonADenialIsOfReducedCapacity) {
  Client alone({.default_allowed = false, .runtime_dir = "/nonexistent"});
  const Decision d = alone.check({{"user", "u"}});
  ASSERT_FALSE(d);
  EXPECT_EQ(d.level(), Level::kHard);
  EXPECT_EQ(d.http_status(), 503);
  const json body = json::parse(alone.problem_json(d));
  EXPECT_EQ(body.at("type"),
            "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity");
  EXPECT_TRUE(body.at("violated-policies").empty());
}

class EmergencyLevelsTest : public LevelsTest {
 protected:
  EmergencyLevelsTest() : LevelsTest({.reconciling = true}) {}
};

TEST_F(EmergencyLevelsTest, ADenialInAnEmergencyIs503) {
  const uint64_t now_ns = shm::MonotonicClock::PreciseNs();
  for (uint32_t shard = 0; shard < served_.control().info().shard_count; ++shard) {
    served_.control().SetShard(shard, shm::ShardMode::kEmergency, now_ns);
  }
  const Decision d = client_.check({{"route", "/closed"}, {"user", "e"}});
  ASSERT_FALSE(d);
  EXPECT_EQ(d.http_status(), 503);
  EXPECT_EQ(json::parse(client_.problem_json(d)).at("violated-policies"), json({"closed"}));
}

TEST_F(LevelsTest, APeekAnswersAsACheckAndChangesNoByte) {
  const std::vector<Descriptor> kRequests[] = {
      {{"route", "/plain"}, {"user", "peeked"}},
      {{"route", "/window"}, {"user", "peeked"}},
      {{"route", "/both"}, {"user", "peeked"}, {"tenant", "peeked"}},
      {{"route", "/tried"}, {"user", "peeked"}},
  };
  for (const auto& request : kRequests) {
    for (int i = 0; i < 12; ++i) {
      const std::string before = Memory();
      const Decision peeked = client_.peek(request);
      const Decision two = client_.peek(request, 2);
      const Decision none = client_.check(request, 0);
      ASSERT_TRUE(Memory() == before) << i;
      const Decision d = client_.check(request);
      EXPECT_EQ(peeked.allowed(), d.allowed()) << i;
      EXPECT_EQ(peeked.remaining(), d.remaining()) << i;
      EXPECT_EQ(peeked.level(), d.level()) << i;
      EXPECT_EQ(peeked.raw().source, d.raw().source) << i;
      EXPECT_EQ(peeked.raw().spend_count, d.raw().spend_count) << i;
      EXPECT_NEAR(static_cast<double>(peeked.reset_after().count()),
                  static_cast<double>(d.reset_after().count()), 1e9);
      EXPECT_EQ(two.shadow_denied() || !two, d.remaining() == 0) << i;
      EXPECT_TRUE(none) << i;
    }
  }
}

TEST_F(LevelsTest, LooksByHandleAndRuleChangeNoByteEither) {
  auto handle = client_.bind({{"route", "/plain"}, {"user", "look"}});
  auto rule = client_.bind_rule("plain");
  sluice_rule_t* many = nullptr;
  ASSERT_EQ(sluice_rule_bind(client_.raw(), "plain", &many), 0);
  for (int round = 0; round < 3; ++round) {
    const std::string before = Memory();
    EXPECT_TRUE(handle->check(0));
    EXPECT_TRUE(handle->allow(0));
    EXPECT_TRUE(rule->check("look", 0));
    EXPECT_TRUE(rule->allow("look", 0));
    const sluice_key_t keys[] = {{"look", 4}, {"unseen", 6}};
    int results[2];
    EXPECT_EQ(sluice_rule_check_many(many, keys, 2, 0, results, nullptr), 2);
    ASSERT_TRUE(Memory() == before) << round;
    while (round == 1 && handle->allow()) {
    }
    EXPECT_EQ(handle->allow(), round == 0);
  }
  sluice_rule_free(many);
}

}  // namespace
}  // namespace sluice::test
