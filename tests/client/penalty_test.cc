// Rules with a penalty: each denial is counted at once, and a ban is told.
#include <gtest/gtest.h>

#include <string>

#include "client/include/sluice.h"
#include "client/include/sluice.hpp"
#include "shm/bucket.h"
#include "shm/clock.h"
#include "tests/client/served_client.h"

namespace sluice::test {
namespace {

using namespace std::chrono_literals;

constexpr char kRules[] = R"(
rules:
  - name: api
    key: [user]
    limit: 3 per 100h
    penalty: {after: 20 per 10s, for: 10m}
  - name: tried
    key: [ip]
    limit: 3 per 100h
    shadow: true
    penalty: {after: 20 per 10s, for: 10m}
  - name: plain
    key: [tenant]
    limit: 3 per 100h
)";

class PenaltyClientTest : public ServedClient {
 protected:
  PenaltyClientTest() : ServedClient(kRules) {}

  // Denials that the daemon would take now, of all buckets of a rule.
  uint64_t Denied(const char* label) {
    const shm::MappedBuckets& b = served_.buckets();
    uint64_t denied = 0;
    for (uint64_t i = 0; i < b.capacity(); ++i) {
      if (shm::aux::Rule(b.slots()[i].aux.load()) != served_.rules().Find(label)->id) continue;
      denied += shm::denied::Count(b.denied()[i].load());
    }
    return denied;
  }
  // As the daemon does.
  void Ban(const char* label, uint64_t for_ns) {
    const config::CompiledRule& rule = *served_.rules().Find(label);
    const shm::MappedBuckets& b = served_.buckets();
    for (uint64_t i = 0; i < b.capacity(); ++i) {
      shm::Slot& slot = b.slots()[i];
      if (shm::key::Fp(slot.key.load()) == 0 || shm::aux::Rule(slot.aux.load()) != rule.id)
        continue;
      slot.word.store(shm::MonotonicClock::PreciseNs() + for_ns + rule.limit.tau_ns -
                      rule.limit.interval_ns);
      slot.aux.fetch_or(shm::aux::kBanned);
    }
  }
};

TEST_F(PenaltyClientTest, EachDenialIsCountedAtOnceByEveryWayToCheck) {
  auto handle = *client_.bind({{"user", "u"}});
  auto rule = *client_.bind_rule("api");
  EXPECT_EQ(Allowed(5, [&] { return handle.allow(); }), 3);
  EXPECT_EQ(Denied("api"), 2u);
  EXPECT_EQ(Allowed(4, [&] { return handle.allow(); }), 0);
  EXPECT_EQ(Allowed(4, [&] { return handle.check().allowed(); }), 0);
  EXPECT_EQ(Denied("api"), 10u);
  EXPECT_EQ(Allowed(4, [&] { return rule.allow("u"); }), 0);
  EXPECT_EQ(Allowed(4, [&] { return rule.check("u").allowed(); }), 0);
  EXPECT_EQ(Denied("api"), 18u);
  EXPECT_EQ(Allowed(4, [&] { return client_.allow({{"user", "u"}}); }), 0);
  EXPECT_EQ(Allowed(4,
                    [&] {
                      return client_.check({{"user", "u"}, {"tenant", "t"}}).allowed();
                    }),
            0);
  EXPECT_EQ(Denied("api"), 26u);
  sluice_rule_t* bound = nullptr;
  ASSERT_EQ(sluice_rule_bind(client_.raw(), "api", &bound), 0);
  const sluice_key_t keys[] = {{"u", 1}, {"u", 1}, {"u", 1}};
  int results[3];
  EXPECT_EQ(sluice_rule_check_many(bound, keys, 3, 1, results, nullptr), 0);
  sluice_rule_free(bound);
  EXPECT_EQ(Denied("api"), 29u);
  EXPECT_EQ(served_.TotalUse(), 3) << "and a request that is denied spends nothing anywhere";
  // A look counts nothing.
  client_.peek({{"user", "u"}});
  EXPECT_EQ(Denied("api"), 29u);
}

TEST_F(PenaltyClientTest, ABanIsToldAndDebtOfALimitIsNone) {
  EXPECT_EQ(Allowed(4, [&] { return client_.check({{"user", "u"}}).allowed(); }), 3);
  const Decision denied = client_.check({{"user", "u"}});
  EXPECT_FALSE(denied.is_banned());
  EXPECT_EQ(client_.problem_json(denied).find("banned"), std::string::npos);
  Ban("api", 600'000'000'000);
  auto handle = *client_.bind({{"user", "u"}});
  for (int way = 0; way < 3; ++way) {
    const Decision d = way == 0   ? client_.check({{"user", "u"}})
                       : way == 1 ? handle.check()
                                  : client_.check({{"user", "u"}, {"tenant", "t"}});
    EXPECT_FALSE(d);
    EXPECT_TRUE(d.is_banned()) << way;
    EXPECT_EQ(d.http_status(), 429);
    EXPECT_EQ(client_.rule_of(d), "api");
    ASSERT_TRUE(d.retry_after());
    EXPECT_GT(*d.retry_after(), 500s);
    EXPECT_LE(*d.retry_after(), 600s);
    EXPECT_NE(client_.problem_json(d).find("\"banned\":true}"), std::string::npos);
  }
  EXPECT_FALSE(client_.check({{"user", "other"}}).is_banned());
  EXPECT_EQ(served_.TotalUse(), 3 + 1);
}

TEST_F(PenaltyClientTest, ARuleThatIsOnlyTriedBansNobody) {
  EXPECT_TRUE(client_.check({{"ip", "i"}}));
  Ban("tried", 600'000'000'000);
  const Decision d = client_.check({{"ip", "i"}});
  EXPECT_TRUE(d);
  EXPECT_TRUE(d.shadow_denied());
  EXPECT_FALSE(d.is_banned());
}

// A heal takes what lies beyond the bound of debt for wild: a ban does not.
TEST_F(PenaltyClientTest, ABanIsNotHealed) {
  EXPECT_TRUE(client_.check({{"user", "u"}}));
  Ban("api", 600'000'000'000);
  for (int i = 0; i < 100; ++i) EXPECT_FALSE(client_.check({{"user", "u"}}));
  EXPECT_GT(*client_.check({{"user", "u"}}).retry_after(), 500s);
}

}  // namespace
}  // namespace sluice::test
