#include "daemon/redis/codec.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <random>

namespace sluice::redis {
namespace {

// All replies in `bytes`, fed in pieces of `piece` bytes; nothing when the reader refused.
std::optional<std::vector<Reply>> Parse(const std::string& bytes, size_t piece,
                                        ReplyLimits limits = {}) {
  ReplyReader reader(limits);
  std::vector<Reply> replies;
  for (size_t at = 0; at < bytes.size(); at += piece) {
    const size_t length = std::min(piece, bytes.size() - at);
    if (!reader.Feed(std::string_view(bytes).substr(at, length)).ok()) return std::nullopt;
    while (std::optional<Reply> reply = reader.Next()) replies.push_back(*std::move(reply));
  }
  return replies;
}

TEST(EncodeTest, WritesCommandsAsArraysOfBulkStrings) {
  std::string out;
  AppendCommand(&out, {"SET", "", std::string_view("a\0b\r\n", 5)});
  EXPECT_EQ(std::string("*3\r\n$3\r\nSET\r\n$0\r\n\r\n$5\r\na\0b\r\n\r\n", 30), out);
}

TEST(EncodeTest, WritesNumbersToTheirLimits) {
  std::string out;
  AppendBulkInt(&out, 0);
  AppendBulkInt(&out, INT64_MIN);
  AppendBulkInt(&out, INT64_MAX);
  EXPECT_EQ("$1\r\n0\r\n$20\r\n-9223372036854775808\r\n$19\r\n9223372036854775807\r\n", out);
}

TEST(ReplyReaderTest, ReadsEveryKindHoweverTheBytesAreCut) {
  const std::string bytes =
      "+OK\r\n-ERR no\r\n:-42\r\n$5\r\na\r\nbc\r\n$-1\r\n*-1\r\n*0\r\n"
      "*3\r\n:1\r\n*2\r\n$1\r\nx\r\n*1\r\n:7\r\n$1\r\ny\r\n";
  for (size_t piece = 1; piece <= bytes.size(); ++piece) {
    const auto replies = Parse(bytes, piece);
    ASSERT_TRUE(replies.has_value()) << piece;
    ASSERT_EQ(8u, replies->size()) << piece;
    EXPECT_EQ(Reply::Kind::kStatus, (*replies)[0].kind);
    EXPECT_EQ("OK", (*replies)[0].text);
    EXPECT_TRUE((*replies)[1].is_error());
    EXPECT_EQ("ERR no", (*replies)[1].text);
    EXPECT_EQ(-42, (*replies)[2].integer);
    EXPECT_EQ("a\r\nbc", (*replies)[3].text);
    EXPECT_EQ(Reply::Kind::kNil, (*replies)[4].kind);
    EXPECT_EQ(Reply::Kind::kNil, (*replies)[5].kind);
    EXPECT_TRUE((*replies)[6].is_array());
    EXPECT_TRUE((*replies)[6].elements.empty());
    const Reply& nested = (*replies)[7];
    ASSERT_EQ(3u, nested.elements.size());
    EXPECT_EQ(1, nested.elements[0].integer);
    ASSERT_EQ(2u, nested.elements[1].elements.size());
    EXPECT_EQ("x", nested.elements[1].elements[0].text);
    EXPECT_EQ(7, nested.elements[1].elements[1].elements.at(0).integer);
    EXPECT_EQ("y", nested.elements[2].text);
  }
}

TEST(ReplyReaderTest, RefusesAHugeArrayWithoutAllocatingForIt) {
  rusage before{}, after{};
  getrusage(RUSAGE_SELF, &before);
  EXPECT_FALSE(Parse("*100000000\r\n", 100).has_value());
  EXPECT_FALSE(Parse("*2147483647\r\n", 100).has_value());
  EXPECT_FALSE(Parse("*99999999999999999999\r\n", 100).has_value());
  getrusage(RUSAGE_SELF, &after);
  EXPECT_LT(after.ru_maxrss - before.ru_maxrss, 8 * 1024) << "KiB";
}

TEST(ReplyReaderTest, CountsTheElementsOfAllLevelsTogether) {
  ReplyLimits limits;
  limits.max_elements = 10;
  EXPECT_TRUE(Parse(
                  "*10\r\n" +
                      [] {
                        std::string items;
                        for (int i = 0; i < 10; ++i) items += ":1\r\n";
                        return items;
                      }(),
                  7, limits)
                  .has_value());
  EXPECT_FALSE(Parse("*4\r\n*4\r\n:1\r\n:1\r\n:1\r\n:1\r\n*4\r\n", 7, limits).has_value());
}

TEST(ReplyReaderTest, TheBoundIsPerReplyNotPerConnection) {
  ReplyLimits limits;
  limits.max_elements = 4;
  limits.max_unparsed_bytes = 64;
  std::string bytes;
  for (int i = 0; i < 100; ++i) bytes += "*3\r\n:1\r\n$3\r\nabc\r\n:3\r\n";
  const auto replies = Parse(bytes, 16, limits);
  ASSERT_TRUE(replies.has_value());
  EXPECT_EQ(100u, replies->size());
}

TEST(ReplyReaderTest, RefusesAStringThatNeverEnds) {
  ReplyLimits limits;
  limits.max_unparsed_bytes = 1000;
  EXPECT_FALSE(Parse("$500000000\r\n" + std::string(2000, 'x'), 100, limits).has_value());
  EXPECT_FALSE(Parse("+" + std::string(2000, 'x'), 100, limits).has_value());
}

TEST(ReplyReaderTest, RefusesDeepNestingAndForeignProtocols) {
  std::string deep;
  for (int i = 0; i < 100; ++i) deep += "*1\r\n";
  EXPECT_FALSE(Parse(deep, 50).has_value());
  EXPECT_FALSE(Parse("HTTP/1.1 400 Bad Request\r\n\r\n", 50).has_value());
  EXPECT_FALSE(Parse("%1\r\n+a\r\n:1\r\n", 50).has_value());  // RESP3
  EXPECT_FALSE(Parse("$-7\r\n", 50).has_value());
  EXPECT_FALSE(Parse(":12a\r\n", 50).has_value());
}

TEST(ReplyReaderTest, AnErrorIsFinal) {
  ReplyReader reader;
  EXPECT_FALSE(reader.Feed("+OK\r\n?\r\n").ok());
  EXPECT_FALSE(reader.Feed("+OK\r\n").ok());
  ASSERT_TRUE(reader.Next().has_value());  // what came before the error
  EXPECT_FALSE(reader.Next().has_value());
}

TEST(ReplyReaderTest, SurvivesRandomBytes) {
  std::mt19937_64 random(20260101);
  const std::string alphabet = "*$+-:0123456789\r\nab";
  for (int round = 0; round < 5000; ++round) {
    std::string bytes;
    for (int i = 0; i < 120; ++i) {
      bytes.push_back(round % 2 == 0 ? static_cast<char>(random())
                                     : alphabet[random() % alphabet.size()]);
    }
    Parse(bytes, 1 + random() % 40);
  }
}

}  // namespace
}  // namespace sluice::redis
