#include "shm/bucket_name.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>
#include <string>
#include <vector>

namespace sluice::shm {
namespace {

std::string Text(std::string_view label, const std::vector<std::string_view>& values) {
  char out[1024];
  const size_t n = WriteNameText(label, values.data(), values.size(), out, sizeof out);
  return {out, std::min(n, sizeof out)};
}

TEST(BucketNameTest, ReadsLikeItsLabelAndValues) {
  EXPECT_EQ(Text("per-user", {"acme", "42"}), "per-user:acme:42");
  EXPECT_EQ(Text("global", {}), "global");
}

TEST(BucketNameTest, TheLastValueKeepsItsColons) {
  EXPECT_EQ(Text("per-ip", {"2001:db8::/64"}), "per-ip:2001:db8::/64");
  EXPECT_EQ(Text("x", {"a:b", "c"}), "x:a%3Ab:c");
}

TEST(BucketNameTest, DifferentKeysHaveDifferentTexts) {
  std::set<std::string> texts;
  const std::vector<std::string> parts = {"", "a", ":", "a:", ":a", "%", "%3A", "a%", "::"};
  for (const std::string& a : parts) {
    for (const std::string& b : parts) texts.insert(Text("r", {a, b}));
  }
  EXPECT_EQ(texts.size(), parts.size() * parts.size());
}

TEST(BucketNameTest, NulBytesAreText) {
  EXPECT_EQ(Text("r", {std::string_view("a\0b", 3)}), "r:a%00b");
}

TEST(BucketNameTest, PartsComeBackAsTheyWere) {
  const std::string_view values[] = {"acme", "", std::string_view("x\0y", 3)};
  char parts[kKeyTextBytes];
  WriteParts("per-user@paid", values, 3, false, parts);
  ParsedName name;
  ASSERT_TRUE(ParseParts(parts, &name));
  EXPECT_EQ(name.label, "per-user@paid");
  ASSERT_EQ(name.count, 3u);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(name.values[i], values[i]);
  EXPECT_FALSE(name.is_folded);
}

TEST(BucketNameTest, AFoldedNameFitsAndHashesToTheSameSlot) {
  const HashKey key = ExpandSalt((const uint64_t[]){1, 2});
  for (const size_t length : {110u, 111u, 200u, 5000u, 65536u}) {
    const std::string value(length, 'v');
    const std::string_view values[] = {value};
    const bool is_long = IsLongName(8, values, 1);
    EXPECT_EQ(is_long, length + 11 > kKeyTextBytes) << length;
    if (!is_long) continue;
    char folded[kKeyTextBytes];
    const size_t n = FoldLong(8, values, 1, folded);
    const std::string_view one[] = {{folded, n}};
    char parts[kKeyTextBytes];
    WriteParts("per-user", one, 1, true, parts);
    ParsedName name;
    ASSERT_TRUE(ParseParts(parts, &name)) << length;
    EXPECT_TRUE(name.is_folded);
    EXPECT_EQ(name.Hash(key, 99), LongNameHash(key, 99, {folded, n}));
  }
}

TEST(BucketNameTest, LongNamesThatDifferOnlyAtTheEndStayApart) {
  const std::string a(300, 'a');
  std::string b = a;
  b.back() = 'b';
  const std::string_view va[] = {a};
  const std::string_view vb[] = {b};
  char fa[kKeyTextBytes];
  char fb[kKeyTextBytes];
  const size_t na = FoldLong(8, va, 1, fa);
  const size_t nb = FoldLong(8, vb, 1, fb);
  EXPECT_NE(std::string(fa, na), std::string(fb, nb));
}

TEST(BucketNameTest, RandomPartsNeverReadOutOfBounds) {
  std::mt19937_64 random(3);
  for (int i = 0; i < 20'000; ++i) {
    std::vector<char> parts(kKeyTextBytes);  // on the heap: ASan sees every step beyond
    for (char& c : parts) c = static_cast<char>(random() % (i % 2 != 0 ? 256 : 16));
    ParsedName name;
    if (!ParseParts(parts.data(), &name)) continue;
    size_t bytes = name.label.size();
    for (size_t v = 0; v < name.count; ++v) bytes += name.values[v].size();
    EXPECT_LT(bytes, kKeyTextBytes);
  }
}

TEST(Sha256Test, MatchesTheStandardsVectors) {
  const auto hex = [](std::string_view text) {
    Sha256 sha;
    sha.Update(text);
    uint8_t digest[32];
    sha.Finish(digest);
    std::string out;
    for (const uint8_t byte : digest) {
      constexpr char kHex[] = "0123456789abcdef";
      out += kHex[byte >> 4];
      out += kHex[byte & 15];
    }
    return out;
  };
  EXPECT_EQ(hex(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(hex("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(hex("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  EXPECT_EQ(hex(std::string(1'000'000, 'a')),
            "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST(HashTest, IsKeyedByTheSaltAndChainsByLength) {
  const HashKey a = ExpandSalt((const uint64_t[]){1, 2});
  const HashKey b = ExpandSalt((const uint64_t[]){1, 3});
  EXPECT_NE(HashValue(a, "203.0.113.7", 0), HashValue(b, "203.0.113.7", 0));
  const std::string_view ab_c[] = {"ab", "c"};
  const std::string_view a_bc[] = {"a", "bc"};
  EXPECT_NE(ShortNameHash(a, 5, ab_c, 2), ShortNameHash(a, 5, a_bc, 2));
}

TEST(HashTest, SpreadsSimilarKeysOverGroupsEvenly) {
  const HashKey key = ExpandSalt((const uint64_t[]){17, 18});
  std::vector<int> groups(1024);
  for (int i = 0; i < 102'400; ++i) {
    ++groups[HashValue(key, "user-" + std::to_string(i), 77) & 1023];
  }
  double chi = 0;
  for (const int n : groups) chi += (n - 100.0) * (n - 100.0) / 100.0;
  EXPECT_LT(chi, 1023 + 5 * 45.2) << "five sigma";
  EXPECT_GT(chi, 1023 - 5 * 45.2);
}

TEST(HashTest, EveryByteOfTheValueCounts) {
  const HashKey key = ExpandSalt((const uint64_t[]){5, 6});
  for (size_t length = 1; length < 70; ++length) {
    const std::string value(length, 'x');
    const uint64_t h = HashValue(key, value, 1);
    for (size_t i = 0; i < length; ++i) {
      std::string other = value;
      other[i] = 'y';
      EXPECT_NE(HashValue(key, other, 1), h) << length << " at " << i;
    }
  }
}

TEST(ShardTest, IsTheSameOnEveryHostAndSpreads) {
  EXPECT_EQ(ShardOf("per-user:acme:42", 64), ShardOf("per-user:acme:42", 64));
  std::vector<int> shards(64);
  for (int i = 0; i < 64'000; ++i) ++shards[ShardOf("per-ip:10.0." + std::to_string(i), 64)];
  for (const int n : shards) {
    EXPECT_GT(n, 800);
    EXPECT_LT(n, 1200);
  }
}

}  // namespace
}  // namespace sluice::shm
