// Rules that change again and again: what a handle, a bound rule and a list of descriptors know by
// heart follows, whether only numbers changed or what is matched too.
#include <gtest/gtest.h>

#include <random>
#include <set>
#include <string>

#include "client/blocks.h"
#include "client/include/sluice.hpp"
#include "daemon/config/compile.h"
#include "daemon/config/parse.h"
#include "shm/clock.h"
#include "tests/support/served_segments.h"

namespace sluice::test {
namespace {

using namespace std::chrono_literals;

constexpr int kForms = 5;

// The same limits for the same requests, matched in other ways: other ids, other conditions, other
// names in the policy.
std::string Rules(int form, uint64_t user, uint64_t tenant, uint64_t paid) {
  const auto per_s = [](uint64_t limit) { return std::to_string(limit) + "/s"; };
  const std::string by_user = "  - {name: per-user, key: [user], limit: " + per_s(user) + "}\n";
  const std::string by_tenant =
      "  - {name: per-tenant, key: [tenant], tier_by: tier, limit: " + per_s(tenant) +
      ", tiers: {paid: {limit: " + per_s(paid) + "}}}\n";
  const std::string other =
      "  - {name: aa, match: {route: [/a, /b]}, key: [account], limit: 1/s}\n";
  switch (form) {
    case 0:
      return "rules:\n" + by_user + by_tenant;
    case 1:
      return "rules:\n" + by_tenant + by_user;
    case 2:
      return "rules:\n" + other + by_user + by_tenant;
    case 3:
      return "rules:\n" + by_user + other + by_tenant;
    default:
      return "rules:\n" + by_tenant + other + by_user;
  }
}

// Publishes at once, however soon after the last change: by a clock of its own.
class Publisher {
 public:
  explicit Publisher(ServedSegments& served)
      : served_(served), now_ns_(shm::MonotonicClock::PreciseNs()) {}
  void Publish(const std::string& yaml) {
    const auto policy = config::Compile(config::ParseConfig(yaml, "test.yaml").config,
                                        served_.control().info().hash_key, /*seq=*/1);
    ASSERT_TRUE(policy.ok()) << policy.status();
    now_ns_ += shm::kPolicyRestNs;
    ASSERT_TRUE(served_.control().PublishPolicy(*policy, now_ns_, nullptr).ok());
  }

 private:
  ServedSegments& served_;
  uint64_t now_ns_;
};

TEST(ChangesTest, EveryWayToCheckFollowsEveryChange) {
  ServedSegments served(Rules(0, 1000, 2000, 3000));
  Publisher publisher(served);
  Client client({.runtime_dir = served.dir().c_str()});
  ASSERT_TRUE(client.wait(5000ms));
  auto rule = client.bind_rule("per-user");
  auto one = client.bind({{"user", "u"}});
  auto two = client.bind({{"user", "v"}, {"tenant", "t"}, {"tier", "paid"}});
  ASSERT_TRUE(rule && one && two);
  std::mt19937_64 random(7);
  int form = 0;
  for (int i = 0; i < 300; ++i) {
    const uint64_t user = 1000 + random() % 1000;  // the smallest: it decides
    const uint64_t tenant = 2000 + random() % 1000;
    const uint64_t paid = 3000 + random() % 1000;
    if (random() % 4 == 0) form = static_cast<int>(random() % kForms);
    publisher.Publish(Rules(form, user, tenant, paid));
    for (int again = 0; again < 2; ++again) {
      ASSERT_EQ(rule->check("w").raw().limit, user) << i << " form " << form;
      ASSERT_EQ(one->check().raw().limit, user) << i << " form " << form;
      ASSERT_EQ(two->check().raw().limit, user) << i << " form " << form;
      ASSERT_EQ(client.check({{"tenant", "t"}}).raw().limit, tenant) << i << " form " << form;
      ASSERT_EQ(client.check({{"tenant", "t"}, {"tier", "paid"}}).raw().limit, paid)
          << i << " form " << form;
      ASSERT_EQ(client.check({{"tenant", "o"}, {"tier", "free"}}).raw().limit, tenant)
          << i << " form " << form;
    }
  }
}

// Its slot stays its slot: a change of numbers costs a handle no bucket, and no use is lost.
TEST(ChangesTest, UseGoesToTheSameBucketsOverChanges) {
  ServedSegments served(Rules(0, 1000, 2000, 3000));
  Publisher publisher(served);
  Client client({.runtime_dir = served.dir().c_str()});
  ASSERT_TRUE(client.wait(5000ms));
  auto handle = client.bind({{"user", "u"}});
  auto rule = client.bind_rule("per-user");
  ASSERT_TRUE(handle && rule);
  for (uint64_t i = 0; i < 100; ++i) {
    ASSERT_TRUE(handle->allow() && rule->allow("u"));
    publisher.Publish(Rules(static_cast<int>(i / 10) % kForms, 1000 + i, 2000, 3000));
  }
  EXPECT_EQ(served.TotalUse(), 200);
  std::set<uint64_t> buckets;
  for (uint64_t i = 0; i < served.buckets().capacity(); ++i) {
    const uint64_t key = served.buckets().slots()[i].key.load();
    if (shm::key::Fp(key) != 0) buckets.insert(key);
  }
  EXPECT_EQ(buckets.size(), 1u);
}

struct Numbered {
  int number;
};

TEST(BlocksTest, ABlockIsNotWrittenBeforeItHasRested) {
  client::Blocks<Numbered> blocks;
  const auto rebuild = [&](uint64_t now_ns, int number) {
    return blocks.Rebuild(now_ns, [&](const Numbered*, Numbered* block) {
      block->number = number;
      return true;
    });
  };
  std::vector<Numbered*> built;
  for (int i = 0; i < 50; ++i) built.push_back(rebuild(1'000, i));
  for (int i = 0; i < 50; ++i) EXPECT_EQ(built[i]->number, i);
  EXPECT_EQ(blocks.current(), built.back());
  EXPECT_GT(client::extra_block_bytes.load(), 47 * sizeof(Numbered));
  // The one superseded first is the first to be written again; by and by the rest is given back.
  EXPECT_EQ(rebuild(client::kBlockRestNs + 1'000, 50)->number, 50);
  EXPECT_NE(blocks.current(), built.front()) << "not yet";
  for (uint64_t i = 2; i < 100; ++i) {
    EXPECT_EQ(rebuild(i * (client::kBlockRestNs + 1'000), 50 + static_cast<int>(i))->number,
              50 + static_cast<int>(i));
  }
  EXPECT_EQ(client::extra_block_bytes.load(), 0u) << "two are left";
}

TEST(BlocksTest, ABlockThatCouldNotBeBuiltChangesNothing) {
  client::Blocks<Numbered> blocks;
  const auto no = [](const Numbered*, Numbered*) { return false; };
  EXPECT_EQ(blocks.Rebuild(1, no), nullptr);
  EXPECT_EQ(blocks.current(), nullptr);
  Numbered* const first = blocks.Rebuild(2, [](const Numbered* old, Numbered* block) {
    EXPECT_EQ(old, nullptr);
    block->number = 1;
    return true;
  });
  EXPECT_EQ(blocks.Rebuild(3, no), nullptr);
  EXPECT_EQ(blocks.current(), first);
}

TEST(BlocksTest, TheAllowanceHolds) {
  struct Large {
    char bytes[1 << 20];
  };
  client::Blocks<Large> blocks;
  const auto yes = [](const Large*, Large*) { return true; };
  int built = 0;
  while (built < 1000 && blocks.Rebuild(1, yes) != nullptr) ++built;
  EXPECT_GT(built, 30);
  EXPECT_LT(built, 40);
  EXPECT_NE(blocks.Rebuild(1 + client::kBlockRestNs + 1, yes), nullptr);
}

}  // namespace
}  // namespace sluice::test
