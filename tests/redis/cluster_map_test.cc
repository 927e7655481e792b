#include "daemon/redis/cluster_map.h"

#include <gtest/gtest.h>

#include <optional>
#include <random>
#include <set>

#include "daemon/redis/codec.h"
#include "daemon/redis/error_reply.h"
#include "daemon/redis/slot.h"

namespace sluice::redis {
namespace {

const Endpoint kAsked{"10.0.0.9", 7009};

Reply Int(int64_t value) {
  Reply reply;
  reply.kind = Reply::Kind::kInteger;
  reply.integer = value;
  return reply;
}
Reply Text(std::string text) {
  Reply reply;
  reply.kind = Reply::Kind::kString;
  reply.text = std::move(text);
  return reply;
}
Reply List(std::vector<Reply> elements) {
  Reply reply;
  reply.kind = Reply::Kind::kArray;
  reply.elements = std::move(elements);
  return reply;
}
Reply Range(int64_t first, int64_t last, const std::string& host, int64_t port,
            const std::string& id) {
  return List({Int(first), Int(last), List({Text(host), Int(port), Text(id)})});
}

SlotsReply Good(const Reply& reply) {
  absl::StatusOr<SlotsReply> slots = ParseClusterSlots(reply, kAsked);
  EXPECT_TRUE(slots.ok()) << slots.status();
  return slots.ok() ? *slots : SlotsReply{};
}

TEST(KeySlotTest, AgreesWithThePublishedVectors) {
  EXPECT_EQ(12739u, KeySlot("123456789"));
  EXPECT_EQ(12182u, KeySlot("foo"));
  EXPECT_EQ(5061u, KeySlot("bar"));
  EXPECT_EQ(0u, KeySlot(""));
}

TEST(KeySlotTest, HashesTheTagOnly) {
  EXPECT_EQ(KeySlot("user1000"), KeySlot("{user1000}.following"));
  EXPECT_EQ(KeySlot("{bar"), KeySlot("foo{{bar}}zap"));
  EXPECT_EQ(KeySlot("bar"), KeySlot("foo{bar}{zap}"));
  EXPECT_NE(KeySlot("bar"), KeySlot("foo{}{bar}"));  // an empty tag is none: all is hashed
}

TEST(ShardKeysTest, EachKeyLiesInItsShardsRunOfSlotsAndUsesTheSmallestNumber) {
  for (uint32_t shards : {1u, 2u, 3u, 64u, 100u, 256u, 1000u}) {
    const std::vector<std::string> keys = ShardKeys("rl", shards);
    ASSERT_EQ(shards, keys.size());
    for (uint32_t i = 0; i < shards; ++i) {
      char head[64];
      snprintf(head, sizeof head, "rl:%u:{%03u.", shards, i);
      ASSERT_TRUE(keys[i].starts_with(head)) << keys[i];
      const auto inside = [&](const std::string& key) {
        return KeySlot(key) >= i * kSlots / shards && KeySlot(key) < (i + 1) * kSlots / shards;
      };
      EXPECT_TRUE(inside(keys[i])) << keys[i];
      const int k = std::stoi(keys[i].substr(std::string(head).size()));
      for (int smaller = 0; smaller < k; ++smaller) {
        EXPECT_FALSE(inside(head + std::to_string(smaller) + "}")) << keys[i];
      }
    }
  }
}

TEST(ShardKeysTest, SpreadsEvenlyOverEqualPrimaries) {
  const std::vector<std::string> keys = ShardKeys("rl", 64);
  for (uint32_t primaries : {2u, 3u, 4u, 6u, 16u}) {
    std::vector<int> held(primaries, 0);
    for (const std::string& key : keys) ++held[KeySlot(key) * primaries / kSlots];
    const auto [least, most] = std::minmax_element(held.begin(), held.end());
    EXPECT_LE(*most - *least, 1) << primaries;
  }
}

TEST(ShardKeysTest, NeverChanges) {
  // These are names of data in Redis: another rule would orphan all of it.
  const std::vector<std::string> keys = ShardKeys("rl", 64);
  EXPECT_EQ("rl:64:{000.159}", keys[0]);
  EXPECT_EQ("rl:64:{001.0}", keys[1]);
  EXPECT_EQ("rl:64:{063.79}", keys[63]);
}

TEST(ShardKeysTest, FindsKeysForTheLargestNumberOfShards) {
  const std::vector<std::string> keys = ShardKeys("rl", kMaxShards);
  EXPECT_EQ(size_t{kMaxShards}, std::set<std::string>(keys.begin(), keys.end()).size());
  for (const std::string& key : keys) EXPECT_TRUE(key.ends_with("}"));
}

TEST(ParseClusterSlotsTest, ReadsPrimariesAndLeavesReplicasOut) {
  Reply reply =
      List({Range(0, 8191, "10.0.0.1", 7001, "a"), Range(8192, 16383, "10.0.0.2", 7002, "b")});
  reply.elements[0].elements.push_back(List({Text("10.0.0.7"), Int(7007), Text("r")}));
  const SlotsReply slots = Good(reply);
  ASSERT_EQ(2u, slots.nodes.size());
  EXPECT_EQ((Endpoint{"10.0.0.1", 7001}), slots.nodes[0].endpoint);
  EXPECT_EQ("b", slots.nodes[1].node_id);
  EXPECT_EQ(8192u, slots.ranges[1].first);
}

TEST(ParseClusterSlotsTest, AnEmptyOrNilHostIsTheAddressThatWasAsked) {
  EXPECT_EQ("10.0.0.9", Good(List({Range(0, 16383, "", 7001, "a")})).nodes[0].endpoint.host);
  Reply nil = List({Range(0, 16383, "x", 7001, "a")});
  nil.elements[0].elements[2].elements[0] = Reply{};
  EXPECT_EQ((Endpoint{"10.0.0.9", 7001}), Good(nil).nodes[0].endpoint);
}

TEST(ParseClusterSlotsTest, AnUnknownHostFallsBackToTheMetadatasIp) {
  Reply reply = List({Range(0, 16383, "?", 7001, "a")});
  EXPECT_FALSE(ParseClusterSlots(reply, kAsked).ok());
  reply.elements[0].elements[2].elements.push_back(List({Text("ip"), Text("10.0.0.5")}));
  EXPECT_EQ("10.0.0.5", Good(reply).nodes[0].endpoint.host);
}

TEST(ParseClusterSlotsTest, RefusesWhatNoClusterSays) {
  const std::vector<Reply> bad = {
      Int(1),
      List({Int(1)}),
      List({List({})}),
      List({Range(-1, 5, "h", 1, "a")}),
      List({Range(0, 16384, "h", 1, "a")}),
      List({Range(9, 5, "h", 1, "a")}),
      List({Range(0, 5, "h", 0, "a")}),
      List({Range(0, 5, "h", 65536, "a")}),
      List({Range(0, 5, "h", 1, "")}),
      List({Range(0, 5, "h", 1, std::string(100, 'a'))}),
      List({Range(0, 5, "h h", 1, "a")}),
      List({Range(0, 5, std::string(300, 'h'), 1, "a")}),
      List({List({Text("0"), Text("5"), List({Text("h"), Int(1), Text("a")})})}),
      List({List({Int(0), Int(5), Int(7)})}),
  };
  for (size_t i = 0; i < bad.size(); ++i) {
    EXPECT_EQ(absl::StatusCode::kInvalidArgument, ParseClusterSlots(bad[i], kAsked).status().code())
        << i;
  }
  EXPECT_EQ(absl::StatusCode::kUnavailable, ParseClusterSlots(List({}), kAsked).status().code());
}

TEST(ParseClusterSlotsTest, RefusesMorePrimariesThanItsBound) {
  std::vector<Reply> ranges;
  for (uint32_t i = 0; i <= kMaxPrimaries; ++i) {
    ranges.push_back(Range(i, i, "h", 1 + i, "node" + std::to_string(i)));
  }
  EXPECT_FALSE(ParseClusterSlots(List(ranges), kAsked).ok());
  ranges.pop_back();
  EXPECT_TRUE(ParseClusterSlots(List(ranges), kAsked).ok());
}

TEST(ClusterMapTest, ANodeKeepsItsIndexOverFailoverAndReturn) {
  ClusterMap map;
  EXPECT_FALSE(map.known());
  EXPECT_EQ(kNoPrimary, map.Owner(0));
  EXPECT_TRUE(
      map.Apply(Good(List({Range(0, 8191, "h", 1, "a"), Range(8192, 16383, "h", 2, "b")}))));
  EXPECT_EQ(0u, map.Owner(0));
  EXPECT_EQ(1u, map.Owner(16383));
  EXPECT_TRUE(
      map.Apply(Good(List({Range(0, 8191, "h", 3, "c"), Range(8192, 16383, "h", 2, "b")}))));
  EXPECT_EQ(2u, map.Owner(0));
  EXPECT_EQ(1u, map.Owner(16383));
  EXPECT_FALSE(map.node(0).in_map);
  // The node returns under another address: same index.
  EXPECT_TRUE(
      map.Apply(Good(List({Range(0, 8191, "h", 9, "a"), Range(8192, 16383, "h", 2, "b")}))));
  EXPECT_EQ(0u, map.Owner(0));
  EXPECT_EQ(9, map.node(0).endpoint.port);
  EXPECT_EQ(3u, map.size());
}

TEST(ClusterMapTest, TheSameMapChangesNothing) {
  ClusterMap map;
  const SlotsReply slots = Good(List({Range(0, 16383, "h", 1, "a")}));
  EXPECT_TRUE(map.Apply(slots));
  EXPECT_FALSE(map.Apply(slots));
}

TEST(ClusterMapTest, ANodeKnownByRedirectGetsItsIdFromTheNextMap) {
  ClusterMap map;
  map.Apply(Good(List({Range(0, 16383, "h", 1, "a")})));
  EXPECT_EQ(1u, map.Patch(5, {"h", 2}));
  EXPECT_EQ(1u, map.Owner(5));
  EXPECT_EQ(0u, map.Owner(6));
  EXPECT_TRUE(map.node(1).node_id.empty());
  map.Apply(Good(List({Range(0, 5, "h", 2, "b"), Range(6, 16383, "h", 1, "a")})));
  EXPECT_EQ("b", map.node(1).node_id);
  EXPECT_EQ(2u, map.size());
}

TEST(ClusterMapTest, AskAddsANodeThatOwnsNothing) {
  ClusterMap map;
  map.Apply(Good(List({Range(0, 16383, "h", 1, "a")})));
  const PrimaryIndex node = map.FindOrAdd({"h", 2});
  EXPECT_EQ(1u, node);
  EXPECT_FALSE(map.node(node).in_map);
  EXPECT_EQ(0u, map.Owner(5));
  EXPECT_EQ(0u, map.FindOrAdd({"h", 1}));
}

TEST(ClusterMapTest, StaysBoundedWhenRedirectsInventNodes) {
  ClusterMap map;
  map.Apply(Good(List({Range(0, 16383, "h", 1, "a")})));
  for (uint16_t port = 2; port < 2000; ++port) map.Patch(port % kSlots, {"h", port});
  EXPECT_LE(map.size(), size_t{kMaxPrimaries});
  EXPECT_TRUE(map.Apply(Good(List({Range(0, 16383, "h", 1, "a")}))));
  EXPECT_EQ(0u, map.Owner(7));
  // Full of departed nodes: a new one takes a departed one's place.
  map.Apply(Good(List({Range(0, 9, "g", 1, "z"), Range(10, 16383, "h", 1, "a")})));
  EXPECT_NE(kNoPrimary, map.Owner(0));
  EXPECT_EQ("z", map.node(map.Owner(0)).node_id);
  EXPECT_LE(map.size(), size_t{kMaxPrimaries});
}

TEST(ClusterMapTest, SurvivesRandomReplies) {
  std::mt19937_64 random(7);
  const std::string alphabet = "*$+:0123456789\r\n?h";
  const std::string good = "*1\r\n*3\r\n:0\r\n:16383\r\n*3\r\n$1\r\nh\r\n:7000\r\n$1\r\na\r\n";
  for (int round = 0; round < 20000; ++round) {
    std::string bytes = good;
    for (int i = 0; i < 3; ++i) bytes[random() % bytes.size()] = alphabet[random() % 18];
    ReplyReader reader;
    if (!reader.Feed(bytes).ok()) continue;
    std::optional<Reply> reply = reader.Next();
    if (!reply) continue;
    absl::StatusOr<SlotsReply> slots = ParseClusterSlots(*reply, kAsked);
    ClusterMap map;
    if (slots.ok()) map.Apply(*slots);
  }
}

TEST(ParseRedirectTest, ReadsNamesIPv6AndTheEmptyHost) {
  EXPECT_EQ((Endpoint{"10.1.1.1", 7000}), ParseRedirect("MOVED 5 10.1.1.1:7000", kAsked)->endpoint);
  EXPECT_EQ((Endpoint{"::1", 7000}), ParseRedirect("ASK 5 ::1:7000", kAsked)->endpoint);
  EXPECT_EQ((Endpoint{"10.0.0.9", 7000}), ParseRedirect("MOVED 5 :7000", kAsked)->endpoint);
  EXPECT_EQ(16383u, ParseRedirect("MOVED 16383 h:1", kAsked)->slot);
}

TEST(ParseRedirectTest, RefusesWhatNamesNobody) {
  for (const char* line : {"MOVED", "MOVED 5", "MOVED 5 h", "MOVED 5 h:", "MOVED 5 h:0",
                           "MOVED 5 h:65536", "MOVED 16384 h:1", "MOVED -1 h:1", "MOVED x h:1",
                           "MOVED 5 ?:7000", "MOVED 5 h h:1", "MOVED  h:1"}) {
    EXPECT_FALSE(ParseRedirect(line, kAsked).ok()) << line;
  }
}

TEST(EndpointTest, ReadsWhatPeopleWriteAndSaysWhatIsWrong) {
  EXPECT_EQ((Endpoint{"redis.internal", 6379}), *ParseEndpoint("redis.internal:6379"));
  EXPECT_EQ((Endpoint{"::1", 6379}), *ParseEndpoint("[::1]:6379"));
  EXPECT_TRUE(ParseEndpoint("unix:/run/redis.sock")->is_unix());
  EXPECT_EQ("[::1]:6379", ToString(Endpoint{"::1", 6379}));
  for (const char* text : {"", "host", "host:", ":6379", "host:0", "host:70000", "host:1x",
                           "::1:6379", "[::1]6379", "a b:1", "unix:relative"}) {
    EXPECT_FALSE(ParseEndpoint(text).ok()) << text;
  }
}

TEST(JudgeErrorTest, SortsWhatAServerMaySay) {
  const auto what = [](const char* line) { return JudgeError(line).what; };
  EXPECT_EQ(ErrorClass::kMoved, what("MOVED 1 h:1"));
  EXPECT_EQ(ErrorClass::kAsk, what("ASK 1 h:1"));
  EXPECT_EQ(ErrorClass::kNoScript, what("NOSCRIPT No matching script."));
  for (const char* line : {"TRYAGAIN x", "LOADING x", "BUSY x", "CLUSTERDOWN x", "MASTERDOWN x"}) {
    EXPECT_EQ(ErrorClass::kRetryLater, what(line)) << line;
  }
  EXPECT_EQ(ErrorClass::kReadOnly, what("READONLY You can't write against a read only replica."));
  EXPECT_EQ(ErrorClass::kScript, what("ERR user_script:1: boom script: abc"));
  EXPECT_EQ(ErrorClass::kScript, what(""));
  for (const char* line :
       {"NOAUTH x", "WRONGPASS x", "NOPERM x", "OOM x", "MISCONF x", "CROSSSLOT x",
        "ERR This instance has cluster support disabled", "ERR unknown command 'HELLO'"}) {
    EXPECT_EQ(ErrorClass::kDenied, what(line)) << line;
    EXPECT_FALSE(JudgeError(line).mend.empty()) << line;
    EXPECT_TRUE(JudgeError(line).alarm.has_value()) << line;
  }
}

}  // namespace
}  // namespace sluice::redis
