// The `redis` section of the file.

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "daemon/config/parse.h"
#include "tests/config/parsed.h"

namespace sluice::config {
namespace {

TEST(RedisSectionTest, TlsIsOffUnlessItsSectionStandsThereEvenEmpty) {
  const std::string head = "redis:\n  addresses: \"h:1\"\n";
  EXPECT_FALSE(Good(head + "rules: []").redis->tls.has_value());
  for (const std::string empty : {"  tls:\n", "  tls: {}\n"}) {
    const Config config = Good(head + empty + "rules: []");
    ASSERT_TRUE(config.redis->tls.has_value());
    EXPECT_EQ(config.redis->tls, TlsConfig{});
  }
  const Config config = Good(head +
                             "  tls: {ca_file: /ca, certificate_file: /c, key_file: /k, "
                             "server_name: n.example}\nrules: []");
  EXPECT_EQ(config.redis->tls, (TlsConfig{"/ca", "/c", "/k", "n.example"}));
}

TEST(RedisSectionTest, SentinelsHaveAUserAndAPasswordOfTheirOwn) {
  const Config config = Good(
      "redis: {addresses: [\"s:26379\"], mode: sentinel, username: u, password: p, sentinel: "
      "{master: mymaster, username: su, password_file: /sp}}\nrules: []");
  ASSERT_TRUE(config.redis->sentinel.has_value());
  EXPECT_EQ(config.redis->sentinel, (SentinelConfig{"mymaster", "su", "", "/sp"}));
  EXPECT_EQ(config.redis->password, "p");
}

class BadRedisTest : public testing::TestWithParam<BadFile> {};

TEST_P(BadRedisTest, IsAProblemThatSaysWhatToWrite) { ExpectBad(GetParam()); }

INSTANTIATE_TEST_SUITE_P(
    Each, BadRedisTest,
    testing::Values(
        BadFile{"redis:\nrules: []", "redis.addresses: is missing"},
        BadFile{"redis: {addresses: []}\nrules: []", "is a list of 0"},
        BadFile{"redis: {addresses: [\"h\"]}\nrules: []", "as in h:6379"},
        BadFile{"redis: {addresses: [\"h:0\"]}\nrules: []", "a port from 1 to 65535"},
        BadFile{"redis: {addresses: [\"h:65536\"]}\nrules: []", "a port from 1 to 65535"},
        BadFile{"redis: {addresses: [\":1\"]}\nrules: []", "the host's name"},
        BadFile{"redis: {addresses: [\"::1:6379\"]}\nrules: []", "in brackets"},
        BadFile{"redis: {addresses: [\"[::1]\"]}\nrules: []", "[::1]:6379"},
        BadFile{"redis: {addresses: [[::1]:7000]}\nrules: []", "put texts with ':', '['"},
        BadFile{"redis: {addresses: [\"redis://h:1\"]}\nrules: []", "host:port alone"},
        BadFile{"redis: {addresses: [\"unix:x\"]}\nrules: []", "absolute path"},
        BadFile{"redis: {addresses: \"h:1\", shards: 4097}\nrules: []", "from 1 to 4096"},
        BadFile{"redis: {addresses: \"h:1\", prefix: \"{a}\"}\nrules: []", "is no prefix"},
        BadFile{"redis: {addresses: \"h:1\", flush_interval: 5ms}\nrules: []", "from 10ms to 10s"},
        BadFile{"redis: {addresses: \"h:1\", password: a, password_file: /b}\nrules: []",
                "keep one of the two"},
        BadFile{"redis: {addresses: \"h:1\", password_file: \"credential:../x\"}\nrules: []",
                "is no name of a credential"},
        BadFile{"redis: {addresses: \"h:1\", password_file: \"credential:\"}\nrules: []",
                "is no name of a credential"},
        BadFile{"redis: {addresses: \"h:1\", password_file: etc/b}\nrules: []", "no absolute path"},
        BadFile{"redis: {addresses: \"h:1\", mode: sentinel}\nrules: []",
                "write `sentinel: {master: NAME}`"},
        BadFile{"redis: {addresses: \"h:1\", mode: sentinel, sentinel: {}}\nrules: []",
                "redis.sentinel.master: is missing"},
        BadFile{"redis: {addresses: \"h:1\", sentinel: {master: m}}\nrules: []",
                "write `mode: sentinel`"},
        BadFile{"redis: {addresses: \"h:1\", tls: {ca_file: ca.pem}}\nrules: []",
                "no absolute path"},
        BadFile{"redis: {addresses: \"h:1\", tls: {key_file: /k}}\nrules: []",
                "write `certificate_file` too"},
        BadFile{"redis: {addresses: \"h:1\", tls: {certificate_file: /c}}\nrules: []",
                "write `key_file` too"},
        BadFile{"redis: {addresses: \"h:1\", tls: {server_name: \"a b\"}}\nrules: []",
                "a DNS name or an IP address"},
        BadFile{"redis: {addresses: [\"h:1\", \"unix:/s\"], tls: {}}\nrules: []",
                "there is no TLS over \"unix:/s\""},
        BadFile{"redis: {addresses: \"h:1\", transport: iouring}\nrules: []", "write io_uring"}));

}  // namespace
}  // namespace sluice::config
