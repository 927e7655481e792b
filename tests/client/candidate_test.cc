// Candidates: a limit that is tried beside the one in force never touches an answer, and counts
// what would have been denied with it in force, request for request and by every way to check.
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

#include "client/include/sluice.h"
#include "client/include/sluice.hpp"
#include "shm/gcra.h"
#include "tests/client/served_client.h"

namespace sluice::test {
namespace {

using namespace std::chrono_literals;

// %: the limit that is in force and what stands beside it, #: with a burst in both. Rates so low
// that no test is slow enough to see a token come back.
constexpr char kAlgorithms[] = R"(
rules:
  - name: bucket
    match: {route: /bucket}
    key: [user]
    %
  - name: queue
    match: {route: /queue}
    key: [user]
    algorithm: leaky_bucket
    max_delay: 1s
    #
  - name: fixed
    match: {route: /fixed}
    key: [user]
    algorithm: fixed_window
    %
  - name: sliding
    match: {route: /sliding}
    key: [user]
    algorithm: sliding_window
    %
  - name: log
    match: {route: /log}
    key: [user]
    algorithm: sliding_log
    %
)";
constexpr const char* kRoutes[] = {"/bucket", "/queue", "/fixed", "/sliding", "/log"};
constexpr const char* kLabels[] = {"bucket", "queue", "fixed", "sliding", "log"};
constexpr size_t kKinds = std::size(kRoutes);

// `tried` 0: without a candidate.
std::string Rules(int live, int tried) {
  const auto lines = [&](bool has_burst) {
    const auto limit = [&](int tokens, const char* between) {
      const std::string n = std::to_string(tokens);
      return "limit: " + n + " per 100h" + (has_burst ? between + ("burst: " + n) : "");
    };
    return limit(live, "\n    ") +
           (tried == 0 ? "" : "\n    candidate: {" + limit(tried, ", ") + "}");
  };
  std::string text = kAlgorithms;
  for (size_t at; (at = text.find('%')) != std::string::npos;) text.replace(at, 1, lines(false));
  text.replace(text.find('#'), 1, lines(true));
  return text;
}

// A client and its segments.
struct Host {
  explicit Host(const std::string& rules, uint64_t capacity = 4096)
      : served(rules, {.capacity = capacity}), client({.runtime_dir = served.dir().c_str()}) {
    EXPECT_TRUE(client.wait(5s)) << client.info().message;
  }

  // Tokens used in the buckets of a rule.
  int64_t UseOf(const std::string& label) const {
    const config::CompiledRule* const rule = served.rules().Find(label);
    const shm::MappedBuckets& b = served.buckets();
    int64_t use = 0;
    for (uint64_t i = 0; rule != nullptr && i < b.capacity(); ++i) {
      const shm::Slot& slot = b.slots()[i];
      const uint64_t u = slot.used.load();
      if (shm::aux::Rule(slot.aux.load()) == rule->id &&
          shm::used::Gen(u) == shm::key::Gen(slot.key.load())) {
        use += shm::used::Count(u);
      }
    }
    return use;
  }

  ServedSegments served;
  Client client;
};

// What an answer tells, but for the times, which are of two clocks.
void ExpectSame(Host& a, const Decision& x, Host& b, const Decision& y) {
  EXPECT_EQ(x.allowed(), y.allowed());
  EXPECT_EQ(x.error(), y.error());
  EXPECT_EQ(x.level(), y.level());
  EXPECT_EQ(x.raw().source, y.raw().source);
  EXPECT_EQ(x.shadow_denied(), y.shadow_denied());
  EXPECT_EQ(x.limit(), y.limit());
  EXPECT_EQ(x.raw().burst, y.raw().burst);
  EXPECT_EQ(x.remaining(), y.remaining());
  EXPECT_EQ(x.raw().rule, y.raw().rule);
  EXPECT_EQ(x.raw().spend_count, y.raw().spend_count);
  EXPECT_EQ(a.client.rule_of(x), b.client.rule_of(y));
  EXPECT_EQ(a.client.problem_json(x), b.client.problem_json(y));
  EXPECT_EQ(x.retry_after().has_value(), y.retry_after().has_value());
  for (size_t i = 0; i < x.raw().spend_count; ++i) {
    EXPECT_EQ(x.raw().spends[i].tokens, y.raw().spends[i].tokens);
    EXPECT_EQ(x.raw().spends[i].rule, y.raw().spends[i].rule);
    EXPECT_EQ(x.raw().spends[i].flags, y.raw().spends[i].flags);
  }
}

// Three hosts with the same requests: the limit in force with a candidate, without one, and the
// candidate in force.
class CandidateTest : public testing::TestWithParam<int> {
 protected:
  Host tried_{Rules(20, GetParam())};
  Host plain_{Rules(20, 0)};
  Host replay_{Rules(GetParam(), 0)};
};

// A way to check, of the same request on all hosts; whether it was allowed.
enum class Way { kList, kListAllow, kHandle, kHandleAllow, kRule, kRuleAllow, kMany, kRuleMany };
constexpr Way kWays[] = {Way::kList, Way::kListAllow, Way::kHandle, Way::kHandleAllow,
                         Way::kRule, Way::kRuleAllow, Way::kMany,   Way::kRuleMany};

Decision CheckBy(Way way, Host& host, size_t kind, const std::string& user, uint32_t cost) {
  const Descriptor descriptors[] = {{"route", kRoutes[kind]}, {"user", user}};
  auto handle = *host.client.bind({descriptors[0], descriptors[1]});
  auto rule = *host.client.bind_rule(kLabels[kind]);
  Decision d;
  d.raw() = {};
  switch (way) {
    case Way::kList:
      return host.client.check(descriptors, cost);
    case Way::kListAllow:
      d.raw().allowed = host.client.allow(descriptors, cost) ? 1 : 0;
      return d;
    case Way::kHandle:
      return handle.check(cost);
    case Way::kHandleAllow:
      d.raw().allowed = handle.allow(cost) ? 1 : 0;
      return d;
    case Way::kRule:
      return rule.check(user, cost);
    case Way::kRuleAllow:
      d.raw().allowed = rule.allow(user, cost) ? 1 : 0;
      return d;
    case Way::kMany: {
      const sluice_descriptor_t raw[] = {{"route", 5, kRoutes[kind], strlen(kRoutes[kind])},
                                         {"user", 4, user.data(), user.size()}};
      const sluice_request_t request = {raw, 2, cost};
      int result = 0;
      sluice_check_many(host.client.raw(), &request, 1, &result, &d.raw());
      return d;
    }
    case Way::kRuleMany: {
      sluice_rule_t* bound = nullptr;
      EXPECT_EQ(sluice_rule_bind(host.client.raw(), kLabels[kind], &bound), 0);
      const sluice_key_t key = {user.data(), user.size()};
      int result = 0;
      sluice_rule_check_many(bound, &key, 1, cost, &result, nullptr);
      d.raw().allowed = result;
      sluice_rule_free(bound);
      return d;
    }
  }
  return d;
}

TEST_P(CandidateTest, AnswersAreAsWithoutItAndItsCountsAsWithItInForce) {
  uint64_t seed = 20261130;
  int would_deny = 0;
  int denied = 0;
  for (int i = 0; i < 3000; ++i) {
    const size_t kind = shm::SplitMix64(seed) % kKinds;
    const std::string user = "u" + std::to_string(shm::SplitMix64(seed) % 8);
    const Way way = kWays[shm::SplitMix64(seed) % std::size(kWays)];
    const auto cost = static_cast<uint32_t>(1 + shm::SplitMix64(seed) % 3);
    const std::string trace = "request " + std::to_string(i) + " of " + kRoutes[kind];
    SCOPED_TRACE(trace);
    const std::string label = kLabels[kind] + std::string("?candidate");
    const int64_t before = tried_.UseOf(label);
    Decision with = CheckBy(way, tried_, kind, user, cost);
    Decision without = CheckBy(way, plain_, kind, user, cost);
    Decision other = CheckBy(way, replay_, kind, user, cost);
    ExpectSame(tried_, with, plain_, without);
    const bool would_allow = tried_.UseOf(label) != before;
    ASSERT_EQ(would_allow, other.allowed());
    would_deny += would_allow ? 0 : 1;
    denied += with.allowed() ? 0 : 1;
    const bool has_decision = way == Way::kList || way == Way::kHandle || way == Way::kRule;
    if (has_decision) {
      EXPECT_EQ(with.raw().candidate_count, would_allow ? 1 : 0);
    }
    // What is given back is given back to both.
    if (!has_decision || !with.allowed() || shm::SplitMix64(seed) % 4 != 0) continue;
    EXPECT_EQ(tried_.client.refund(with), plain_.client.refund(without));
    if (other.allowed()) replay_.client.refund(other);
  }
  EXPECT_GT(would_deny, 300);
  EXPECT_GT(denied, 300);
  for (const char* label : kLabels) {
    EXPECT_EQ(tried_.UseOf(label), plain_.UseOf(label)) << label;
    EXPECT_EQ(tried_.UseOf(label + std::string("?candidate")), replay_.UseOf(label)) << label;
  }
}

TEST_P(CandidateTest, ReservationsAreSettledInBoth) {
  for (const char* route : kRoutes) {
    const auto reserve = [&](Host& host, uint32_t estimate) {
      return host.client.reserve({{"route", route}, {"user", "r"}}, estimate, 1h);
    };
    const Reservation with = reserve(tried_, 8);
    const Reservation without = reserve(plain_, 8);
    const Reservation other = reserve(replay_, 8);
    ASSERT_TRUE(with && without && other) << route;
    EXPECT_TRUE(tried_.client.settle(with, 3));
    EXPECT_TRUE(plain_.client.settle(without, 3));
    EXPECT_TRUE(replay_.client.settle(other, 3));
  }
  for (const char* label : kLabels) {
    EXPECT_EQ(tried_.UseOf(label), plain_.UseOf(label)) << label;
    EXPECT_EQ(tried_.UseOf(label + std::string("?candidate")), replay_.UseOf(label)) << label;
  }
}

INSTANTIATE_TEST_SUITE_P(Limits, CandidateTest, testing::Values(10, 40),
                         [](const auto& of) { return of.index == 0 ? "Lower" : "Higher"; });

TEST(CandidateLogTest, ARealLogWouldBeDeniedWhatTheCandidateInForceDenies) {
  const char* const root = std::getenv("SLUICE_SOURCE_ROOT");
  std::ifstream log(std::string(root == nullptr ? "." : root) +
                    "/../shared/data/apache_access.log");
  if (!log) GTEST_SKIP() << "no ../shared/data/apache_access.log beside the source: no real log";
  Host tried(Rules(50, 20), 1 << 14);  // room for each key twice
  Host replay(Rules(20, 0), 1 << 14);
  int requests = 0;
  int would_deny = 0;
  for (std::string line; std::getline(log, line); ++requests) {
    const std::string ip = line.substr(0, line.find(' '));
    const Decision with = tried.client.check({{"route", "/bucket"}, {"user", ip}});
    const Decision other = replay.client.check({{"route", "/bucket"}, {"user", ip}});
    ASSERT_EQ(with.raw().candidate_count != 0, other.allowed()) << "line " << requests + 1;
    would_deny += with.raw().candidate_count == 0 ? 1 : 0;
  }
  EXPECT_GT(requests, 0);
  EXPECT_GT(would_deny, 0);
}

// Where tokens come back meanwhile: by the times of the answers, in whole nanoseconds.
TEST(CandidateTimeTest, ItIsJudgedAtTheTimeOfTheAnswer) {
  Host host(
      "rules:\n  - name: api\n    key: [user]\n    limit: 5000/s\n    burst: 20\n"
      "    candidate: {limit: 2000/s, burst: 10}\n");
  const shm::Limit limit = host.served.rules().Find("api?candidate")->limit;
  uint64_t word_ns = 0;
  int allowed = 0;
  for (int i = 0; i < 20'000; ++i) {
    const Decision d = host.client.check({{"user", "u"}});
    const shm::Verdict verdict =
        shm::Decide(word_ns, d.raw().now_ns, limit.interval_ns, limit.tau_ns);
    if (i == 0) {
      // The first claims its slot, and begins with the time of the claim.
      ASSERT_EQ(d.raw().candidate_count, 1);
      word_ns = d.raw().spends[1].new_ns;
      continue;
    }
    ASSERT_EQ(d.raw().candidate_count != 0, verdict.allowed) << "request " << i;
    if (!verdict.allowed) continue;
    word_ns = verdict.new_ns;
    ++allowed;
  }
  EXPECT_GE(allowed, 9);
}

constexpr char kSeveral[] = R"(
rules:
  - name: own
    key: [user]
    limit: 20 per 100h
    candidate: {limit: 5 per 100h}
  - name: all
    key: [tenant]
    limit: 8 per 100h
    candidate: {limit: 100 per 100h}
  - name: watched
    key: [route]
    limit: 3 per 100h
    shadow: true
    candidate: {limit: 4 per 100h}
)";

TEST(CandidateRequestTest, EachIsTriedInThePlaceOfItsOwnRuleAlone) {
  Host host(kSeveral);
  const auto check = [&] {
    return host.client.check({{"user", "u"}, {"tenant", "t"}, {"route", "/r"}});
  };
  for (int i = 0; i < 12; ++i) {
    const Decision d = check();
    EXPECT_EQ(d.allowed(), i < 8) << i;
    EXPECT_EQ(host.client.rule_of(d), i < 8 ? "all" : "all");
    EXPECT_EQ(d.shadow_denied(), i >= 3);
  }
  // Its own rule's denials do not hold a candidate back, but another's do: it spends nothing then.
  EXPECT_EQ(host.UseOf("own"), 8);
  EXPECT_EQ(host.UseOf("own?candidate"), 5);
  EXPECT_EQ(host.UseOf("all"), 8);
  EXPECT_EQ(host.UseOf("all?candidate"), 12);
  EXPECT_EQ(host.UseOf("watched"), 3);
  EXPECT_EQ(host.UseOf("watched?candidate"), 4);
}

TEST(CandidateRequestTest, ALookTriesNothingAndNoLabelBindsIt) {
  Host host(kSeveral);
  EXPECT_TRUE(host.client.peek({{"user", "u"}}));
  EXPECT_TRUE(host.client.check({{"user", "u"}}, 0));
  EXPECT_EQ(host.served.TotalUse(), 0);
  EXPECT_FALSE(host.client.bind_rule("own?candidate"));
}

// Sixteen rules match, and each has a candidate: the answer has no room for theirs.
TEST(CandidateRequestTest, AsManyRulesMatchAsWithout) {
  std::string rules = "rules:\n";
  for (int i = 0; i < 16; ++i) {
    rules += "  - name: rule-" + std::to_string(i) + "\n    key: [user]\n" +
             "    limit: 5 per 100h\n    candidate: {limit: 3 per 100h}\n";
  }
  Host host(rules);
  int allowed = 0;
  for (int i = 0; i < 7; ++i) {
    Decision d = host.client.check({{"user", "u"}});
    EXPECT_EQ(d.error(), 0);
    EXPECT_EQ(d.raw().spend_count, 16);
    EXPECT_EQ(d.raw().candidate_count, 0);
    allowed += d.allowed() ? 1 : 0;
  }
  EXPECT_EQ(allowed, 5);
  EXPECT_EQ(host.UseOf("rule-0?candidate"), 3);
}

// Its slot cannot be had: the answer is the same.
TEST(CandidateRequestTest, ATableWithoutRoomFailsNoCheck) {
  ServedSegments::Options options;
  options.capacity = 64;
  ServedSegments served(
      "rules:\n  - name: own\n    key: [user]\n    limit: 2 per 100h\n"
      "    candidate: {limit: 1 per 100h}\n",
      options);
  Client client({.runtime_dir = served.dir().c_str()});
  ASSERT_TRUE(client.wait(5s)) << client.info().message;
  for (int i = 0; i < 400; ++i) {
    const std::string user = "user-" + std::to_string(i);
    const Decision d = client.check({{"user", user}});
    EXPECT_EQ(d.error(), 0);
    EXPECT_TRUE(d.allowed() || d.raw().source != SLUICE_SOURCE_RULES);
  }
}

TEST(CandidateRequestTest, ItFollowsChangesOfTheNumbers) {
  Host host(
      "rules:\n  - name: own\n    key: [user]\n    limit: 20 per 100h\n"
      "    candidate: {limit: 2 per 100h}\n");
  auto handle = *host.client.bind({{"user", "u"}});
  auto rule = *host.client.bind_rule("own");
  for (int i = 0; i < 4; ++i) EXPECT_TRUE(handle.allow() && rule.allow("u"));
  EXPECT_EQ(host.UseOf("own?candidate"), 2);
  host.served.Publish(
      "rules:\n  - name: own\n    key: [user]\n    limit: 20 per 100h\n"
      "    candidate: {limit: 20 per 100h}\n");
  const int64_t before = host.UseOf("own?candidate");
  for (int i = 0; i < 2; ++i) EXPECT_TRUE(handle.allow() && rule.allow("u"));
  EXPECT_EQ(host.UseOf("own?candidate"), before) << "all of its time is spent";
  for (int i = 0; i < 4; ++i) EXPECT_TRUE(rule.allow("other"));
  EXPECT_EQ(host.UseOf("own?candidate"), before + 4);
  host.served.Publish("rules:\n  - name: own\n    key: [user]\n    limit: 20 per 100h\n");
  for (int i = 0; i < 2; ++i) EXPECT_TRUE(handle.allow() && rule.allow("u"));
  EXPECT_EQ(host.UseOf("own"), 20);
}

}  // namespace
}  // namespace sluice::test
