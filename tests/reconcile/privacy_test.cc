// Private keys over hosts in virtual time: nothing of a value leaves the host, and a change of
// keys, host by host, loses nothing of what is counted.
#include <gtest/gtest.h>

#include <memory>
#include <set>
#include <string>
#include <vector>

#include "tests/config/parsed.h"
#include "tests/reconcile/fleet.h"

namespace sluice::test {
namespace {

constexpr char kRules[] = R"(
redis: {addresses: "h:1", mode: single}
privacy: {keys_file: /etc/sluice/private.keys}
rules:
  - {name: bucket, key: [{user: {private: true}}], limit: 100 per 600s}
  - {name: fixed, key: [{user: {private: true}}], limit: 100 per 600s, algorithm: fixed_window}
  - {name: sliding, key: [{user: {private: true}}], limit: 100 per 600s, algorithm: sliding_window}
  - {name: log, key: [{user: {private: true}}], limit: 100 per 600s, algorithm: sliding_log}
)";
const std::string kOld = "old 000102030405060708090a0b0c0d0e0f\n";
const std::string kNew = "new 101112131415161718191a1b1c1d1e1f\n";

config::Config ConfigOf(const std::string& keys) {
  config::Config config = config::Good(kRules);
  config.privacy.keys =
      std::make_shared<const config::PrivateKeys>(*config::PrivateKeys::Parse(keys));
  return config;
}

class PrivacyTest : public testing::TestWithParam<std::string> {
 protected:
  struct Change {
    int at;  // before the check of that number
    size_t host;
    std::string keys;
  };

  // What two hosts decide in turn about one user.
  std::vector<bool> Decisions(const std::vector<Change>& changes) {
    Fleet fleet(2, ConfigOf(kOld));
    std::vector<bool> decisions;
    uint64_t seq = 1;
    for (int i = 0; i < 160; ++i) {
      for (const Change& change : changes) {
        if (change.at == i) fleet.host(change.host).SetConfig(ConfigOf(change.keys), ++seq);
      }
      decisions.push_back(fleet.host(static_cast<size_t>(i % 2)).Check(GetParam(), "alice"));
      fleet.Run(150 * kMs);
    }
    names_.clear();
    for (const auto& [key, hash] : fleet.redis.data) {
      for (const auto& [name, value] : hash) {
        EXPECT_EQ((name + value).find("alice"), std::string::npos);
        if (name.starts_with(GetParam())) names_.insert(name);
      }
    }
    return decisions;
  }

  std::set<std::string> names_;
};

TEST_P(PrivacyTest, AChangeOfKeysHostByHostChangesNoDecision) {
  const std::vector<bool> unchanged = Decisions({});
  ASSERT_EQ(names_.size(), 1u);
  EXPECT_TRUE(names_.begin()->starts_with(GetParam() + ":#old.")) << *names_.begin();
  EXPECT_GT(std::count(unchanged.begin(), unchanged.end(), true), 90);
  EXPECT_FALSE(unchanged.back());

  // Each host learns both keys before the first turns to the new one.
  const std::vector<bool> changed = Decisions({{40, 0, kOld + kNew},
                                               {43, 1, kOld + kNew},
                                               {60, 0, kNew + kOld},
                                               {75, 1, kNew + kOld},
                                               {90, 0, kNew},
                                               {93, 1, kNew}});
  EXPECT_EQ(changed, unchanged);
  ASSERT_EQ(names_.size(), 1u);
  EXPECT_TRUE(names_.begin()->starts_with(GetParam() + ":#new.")) << *names_.begin();

  // Without that, what was counted is left behind: so the test can tell. Logs stand on their hosts.
  const std::vector<bool> lost = Decisions({{60, 0, kNew}, {60, 1, kNew}});
  EXPECT_EQ(names_.size(), 2u);
  if (GetParam() != "log") {
    EXPECT_NE(lost, unchanged);
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, PrivacyTest, testing::Values("bucket", "fixed", "sliding", "log"));

}  // namespace
}  // namespace sluice::test
