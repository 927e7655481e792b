// Limits that come with the request: by list and handle, bounded, each with a bucket of its own.
#include <gtest/gtest.h>

#include <string>

#include "client/include/sluice.h"
#include "client/include/sluice.hpp"
#include "shm/bucket_name.h"
#include "shm/key_text.h"
#include "shm/policy_view.h"
#include "tests/client/served_client.h"

namespace sluice::test {
namespace {

using namespace std::chrono_literals;

// Rates so low that no test is slow enough to see a token come back.
constexpr char kRules[] = R"(
rules:
  - {name: api, match: {route: /api}, key: [tenant], limit: 10 per 10h, burst: 20,
     override: {by: plan, max: 50}, tiers: {paid: {limit: 20 per 10h}}}
  - {name: costly, match: {route: /api-costly}, key: [tenant], limit: 100 per 10h, cost: 10,
     override: {max: 1000}}
  - {name: classed, match: {route: /classed}, key: [tenant], limit: 10 per 10h,
     override: {max: 1000}, priority: {classes: {high: 1, low: 0.5}}}
  - {name: plain, match: {route: /plain}, key: [tenant], limit: 10 per 10h}
  - {name: both-own, match: {route: /both}, key: [tenant], limit: 3 per 10h}
  - {name: both-given, match: {route: /both}, key: [user], limit: 3 per 10h, override: {max: 9}}
)";

class GivenTest : public ServedClient {
 protected:
  GivenTest() : ServedClient(kRules) {}

  Decision Check(const char* plan, const char* tenant = "t", uint32_t cost = 1) {
    return client_.check({{"route", "/api"}, {"tenant", tenant}, {"plan", plan}}, cost);
  }
  uint64_t LimitOf(const char* plan) { return Check(plan, "unique").limit(); }
  // The names of all buckets that stand, as the daemon reads them.
  std::string Names() {
    std::string names;
    for (uint32_t i = 0; i < served_.buckets().capacity(); ++i) {
      const uint64_t key = served_.buckets().slots()[i].key;
      char parts[shm::kKeyTextBytes];
      shm::ParsedName name;
      if (shm::key::Fp(key) == 0 || !shm::LoadText(served_.buckets().texts()[i], key, parts) ||
          !shm::ParseParts(parts, &name)) {
        continue;
      }
      names += std::string(name.label) + " ";
      const config::CompiledRule* const rule = served_.rules().Find(name.label);
      EXPECT_NE(rule, nullptr) << name.label;
      const uint64_t hash = rule->HashOf(name, served_.control().info().hash_key);
      EXPECT_EQ(shm::FingerprintOf(hash), shm::key::Fp(key)) << "found by its name: " << name.label;
    }
    return names;
  }
};

TEST_F(GivenTest, TheLimitOfTheRequestHoldsAndTheBurstGrowsAndShrinksWithIt) {
  const Decision d = Check("30");
  EXPECT_EQ(d.limit(), 30u);
  EXPECT_EQ(d.raw().burst, 60u);
  EXPECT_EQ(d.remaining(), 59u);
  EXPECT_EQ(Allowed(100, [&] { return Check("30"); }), 59);
  EXPECT_EQ(Allowed(100, [&] { return Check("5"); }), 10) << "another limit, another bucket";
  EXPECT_EQ(Allowed(100,
                    [&] {
                      return client_.check({{"route", "/api"}, {"tenant", "t"}});
                    }),
            20)
      << "and the rule's own";
  EXPECT_NE(Names().find("api=30 "), std::string::npos) << Names();
  EXPECT_EQ(client_.rule_of(Check("30")), "api");
}

TEST_F(GivenTest, MoreThanMayComeCountsAsThatAndWhatIsNoNumberAsTheRulesOwn) {
  EXPECT_EQ(LimitOf("50"), 50u);
  EXPECT_EQ(LimitOf("51"), 50u);
  EXPECT_EQ(LimitOf("18446744073709551617"), 50u);
  for (const char* text : {"", "0", "05", "-5", "5.0", "5 ", "0x5", "ten", "000000000000000000000",
                           "111111111111111111111"}) {
    EXPECT_EQ(LimitOf(text), 10u) << text;
  }
  EXPECT_EQ(client_.check({{"route", "/plain"}, {"tenant", "t"}, {"limit", "99"}}).limit(), 10u)
      << "a rule that does not allow it does not look";
}

TEST_F(GivenTest, ATierIsOverriddenToo) {
  const auto check = [&](const char* plan) {
    return client_.check({{"route", "/api"}, {"tenant", "t"}, {"tier", "paid"}, {"plan", plan}});
  };
  EXPECT_EQ(check("40").limit(), 40u);
  EXPECT_EQ(check("40").raw().burst, 40u) << "a tier's own proportion";
  EXPECT_NE(Names().find("api@paid=40 "), std::string::npos) << Names();
  EXPECT_EQ(client_.rule_of(check("40")), "api@paid");
}

TEST_F(GivenTest, ABurstHoldsOneRequestAtLeast) {
  const auto check = [&] {
    return client_.check({{"route", "/api-costly"}, {"tenant", "t"}, {"limit", "1"}});
  };
  EXPECT_EQ(check().raw().burst, 10u);
  EXPECT_FALSE(check());
}

TEST_F(GivenTest, AClassMayUseItsPartOfIt) {
  const auto check = [&](const char* name) {
    return client_.check(
        {{"route", "/classed"}, {"tenant", "t"}, {"limit", "100"}, {"class", name}});
  };
  EXPECT_EQ(Allowed(200, [&] { return check("low"); }), 50);
  EXPECT_EQ(Allowed(200, [&] { return check("high"); }), 50);
}

TEST_F(GivenTest, AHandleKeepsItAndFollowsTheRule) {
  auto handle = client_.bind({{"route", "/api"}, {"tenant", "h"}, {"plan", "30"}});
  ASSERT_TRUE(handle);
  EXPECT_EQ(Allowed(20, [&] { return handle->allow(); }), 20);
  EXPECT_EQ(handle->check().remaining(), 39u) << "60 in all";
  EXPECT_EQ(Check("30", "h").remaining(), 38u) << "the same bucket by a list";
  std::string changed = kRules;
  changed.replace(changed.find("burst: 20"), 9, "burst: 10");
  served_.Publish(changed);
  EXPECT_EQ(handle->check().raw().burst, 30u);
  EXPECT_EQ(handle->check().limit(), 30u);
  changed.replace(changed.find("max: 50"), 7, "max: 15");
  served_.Publish(changed);
  EXPECT_EQ(handle->check().limit(), 15u);
}

TEST_F(GivenTest, RefundsReservationsAndTheFieldsOfHttpKnowIt) {
  Decision d = Check("30", "r", 10);
  const std::string fields = client_.http_fields(d);
  EXPECT_NE(fields.find("\"api\";q=60;w=72000"), std::string::npos) << fields;
  EXPECT_NE(fields.find("\"api\";r=50;"), std::string::npos) << fields;
  EXPECT_EQ(client_.refund(d), 1);
  EXPECT_EQ(Check("30", "r").remaining(), 59u);
  const Reservation r =
      client_.reserve({{"route", "/api"}, {"tenant", "r"}, {"plan", "30"}}, 100, 1min);
  EXPECT_EQ(r.estimate(), 60u);
  EXPECT_FALSE(r) << "one is used";
  const Reservation less =
      client_.reserve({{"route", "/api"}, {"tenant", "r"}, {"plan", "30"}}, 20, 1min);
  ASSERT_TRUE(less);
  EXPECT_TRUE(client_.settle(less, 70)) << "into debt, as far as its own burst";
  EXPECT_EQ(Check("30", "r").remaining(), 0u);
}

TEST_F(GivenTest, ALongNameIsFoldedAndStillSaysItsLimit) {
  const std::string tenant(300, 'x');
  const Decision d = Check("30", tenant.c_str());
  EXPECT_EQ(d.limit(), 30u);
  EXPECT_EQ(Check("30", tenant.c_str()).remaining(), 58u);
  EXPECT_EQ(Check("5", tenant.c_str()).remaining(), 9u);
  EXPECT_NE(Names().find("api=30 "), std::string::npos) << Names();
}

TEST_F(GivenTest, ARequestThatOneRuleRejectsSpendsNothingInTheOther) {
  const auto check = [&] {
    return client_.check({{"route", "/both"}, {"tenant", "t"}, {"user", "u"}, {"limit", "9"}});
  };
  EXPECT_EQ(Allowed(9, check), 3);
  EXPECT_EQ(served_.TotalUse(), 6);
}

}  // namespace
}  // namespace sluice::test
