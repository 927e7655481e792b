// Private keys: the file of secrets, what the configuration says of them, and the names they make.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "daemon/config/compile.h"
#include "daemon/config/private_keys.h"
#include "tests/config/parsed.h"

namespace sluice::config {
namespace {

const std::string kOld = "1 000102030405060708090a0b0c0d0e0f\n";
const std::string kNew = "2b 101112131415161718191A1B1C1D1E1F\n";

PrivateKeys Keys(const std::string& text) {
  auto keys = PrivateKeys::Parse(text);
  EXPECT_TRUE(keys.ok()) << keys.status();
  return *std::move(keys);
}

// As `printf 'user\0alice' | openssl dgst -sha256 -mac HMAC -macopt hexkey:0001...` has it.
TEST(PrivateKeysTest, AHashIsAnHmacOfDescriptorAndValue) {
  const PrivateKeys keys = Keys("# of the fleet\n\n  " + kNew + "\t" + kOld);
  ASSERT_EQ(keys.size(), 2u);
  EXPECT_EQ(keys.Hash(1, "user", "alice"), "#1.d4f351cedf570198a0812a1ab5a789cf");
  EXPECT_NE(keys.Hash(0, "user", "alice").substr(3), keys.Hash(1, "user", "alice").substr(3));
  EXPECT_TRUE(keys.Hash(0, "user", "alice").starts_with("#2b."));
  EXPECT_NE(keys.Hash(1, "ip", "alice"), keys.Hash(1, "user", "alice"));
  EXPECT_NE(keys.Hash(1, "user", "bob"), keys.Hash(1, "user", "alice"));
}

TEST(PrivateKeysTest, WhatIsNoFileOfKeysSaysWhereAndShowsNoSecret) {
  struct Case {
    const char* text;
    const char* what;
  };
  for (const Case& bad : {
           Case{"", "has no key"},
           Case{"# none\n", "has no key"},
           Case{"\n000102030405060708090a0b0c0d0e0f", "line 2: is no key"},
           Case{"a-b 000102030405060708090a0b0c0d0e0f", "line 1: the ID"},
           Case{"123456789 000102030405060708090a0b0c0d0e0f", "line 1: the ID"},
           Case{"1 000102030405060708090a0b0c0d0e", "line 1: the secret"},
           Case{"1 000102030405060708090a0b0c0d0e0", "line 1: the secret"},
           Case{"1 000102030405060708090a0b0c0d0e0g", "line 1: the secret"},
           Case{"1 000102030405060708090a0b0c0d0e0f and more", "line 1: the secret"},
           Case{"1 000102030405060708090a0b0c0d0e0f\n1 000102030405060708090a0b0c0d0e10",
                "line 2: that ID stands twice"},
       }) {
    const auto keys = PrivateKeys::Parse(bad.text);
    ASSERT_FALSE(keys.ok()) << bad.text;
    const std::string message(keys.status().message());
    EXPECT_EQ(message.rfind(bad.what, 0), 0u) << message;
    EXPECT_NE(message.find("; "), std::string::npos) << message;
    EXPECT_EQ(message.find("0001020304"), std::string::npos) << message;
  }
  std::string many;
  for (size_t i = 0; i <= kMaxPrivateKeys; ++i) {
    many += std::to_string(i) + " 000102030405060708090a0b0c0d0e0f\n";
  }
  EXPECT_FALSE(PrivateKeys::Parse(many).ok());
}

constexpr char kFile[] = R"(
privacy: {keys_file: /etc/sluice/private.keys}
rules:
  - {name: plain, key: [user], limit: 10/s}
  - {name: of-user, key: [tenant, {user: {private: true}}], limit: 10/s}
  - {name: of-ip, key: [{ip: {private: true}}], limit: 10/s}
  - {name: of-net, key: [{ip: {v4: 24, private: true}}], limit: 10/s, tiers: {paid: {limit: 20/s}}}
  - {name: not-so, key: [{user: {private: false}}], limit: 10/s}
)";

TEST(PrivacyConfigTest, APartOfAKeyIsPrivateWhereItSaysSo) {
  const Config config = Good(kFile);
  EXPECT_EQ(config.privacy.keys_file, "/etc/sluice/private.keys");
  const auto& rules = config.rules;
  EXPECT_FALSE(rules[0].IsPrivate());
  EXPECT_FALSE(rules[1].key[0].is_private);
  EXPECT_TRUE(rules[1].key[1].is_private);
  EXPECT_EQ(rules[1].key[1].form, shm::KeyForm::kRaw);
  EXPECT_TRUE(rules[2].key[0].is_private);
  EXPECT_EQ(rules[2].key[0].form, shm::KeyForm::kIp);
  EXPECT_EQ(rules[3].key[0].v4_bits, 24);
  EXPECT_FALSE(rules[4].IsPrivate());
}

TEST(PrivacyConfigTest, BadPrivacyIsSaidWithItsMend) {
  const auto problem_of = [](const std::string& text) {
    const ParseResult result = ParseConfig(text, "s.yaml");
    return result.problems.empty() ? "" : result.problems.front().ToString();
  };
  const std::string rules = "rules:\n  - {name: it, key: [{user: {private: true}}], limit: 1/s}\n";
  EXPECT_NE(problem_of(rules).find("privacy: is missing, and the key of rule \"it\" is private; "
                                   "write `privacy: {keys_file: /etc/sluice/private.keys}`"),
            std::string::npos)
      << problem_of(rules);
  EXPECT_NE(problem_of("privacy: {}\n" + rules).find("keys_file"), std::string::npos);
  EXPECT_NE(problem_of("privacy: {keys_file: keys}\n" + rules).find("no absolute path"),
            std::string::npos);
  EXPECT_NE(problem_of("privacy: {keys_file: /k}\nrules:\n"
                       "  - {name: it, key: [{user: {private: perhaps}}], limit: 1/s}\n")
                .find("`private: perhaps` is neither true nor false"),
            std::string::npos);
}

class NamesTest : public testing::Test {
 protected:
  // Of a bucket with these values, by the rule of that label.
  std::string Wire(const std::string& label, const std::vector<std::string_view>& values,
                   bool is_folded = false) {
    Config config = Good(kFile);
    config.privacy.keys = std::make_shared<const PrivateKeys>(Keys(keys_));
    const auto bytes = Compile(config, shm::HashKey{}, 1);
    EXPECT_TRUE(bytes.ok());
    auto rules = CompiledRules::Load(*bytes);
    EXPECT_TRUE(rules.ok());
    rules->AddPrivacy(config);
    const CompiledRule* rule = rules->Find(label);
    if (rule == nullptr || rule->privacy == nullptr) return "none";
    shm::ParsedName name{.label = label, .count = values.size(), .is_folded = is_folded};
    std::copy(values.begin(), values.end(), name.values);
    return WireName(name, *rule->privacy);
  }
  std::string keys_ = kNew + kOld;
};

TEST_F(NamesTest, OnlyPrivatePartsAreHashedAndOfTiersToo) {
  const PrivateKeys keys = Keys(keys_);
  EXPECT_EQ(Wire("plain", {"alice"}), "none");
  EXPECT_EQ(Wire("not-so", {"alice"}), "none");
  const std::string nul(1, '\0');
  EXPECT_EQ(Wire("of-user", {"ac:me", "alice"}),
            "of-user:ac%3Ame:" + keys.Hash(0, "user", "alice") + nul +
                "of-user:ac%3Ame:" + keys.Hash(1, "user", "alice"));
  keys_ = kOld;
  EXPECT_EQ(Wire("of-net@paid", {"10.1.2.0/24"}),
            "of-net@paid:" + Keys(kOld).Hash(0, "ip", "10.1.2.0/24"));
}

TEST_F(NamesTest, OfAFoldedNameNothingIsShown) {
  const std::string wire = Wire("of-user", {"acme-alice~0123"}, true);
  EXPECT_EQ(wire.find("acme"), std::string::npos) << wire;
  EXPECT_EQ(wire.find("0123"), std::string::npos) << wire;
}

}  // namespace
}  // namespace sluice::config
