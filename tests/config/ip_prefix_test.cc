#include "shm/ip_prefix.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <string>

namespace sluice::shm {
namespace {

// The canonical text, or "" for no address.
std::string Canonical(std::string_view text, int v4_bits, int v6_bits) {
  // Exactly as long as the text: a sanitizer sees a read beyond it.
  const std::string copy(text);
  char out[kPrefixTextBytes];
  const std::string_view network =
      CanonicalPrefix(copy, static_cast<uint8_t>(v4_bits), static_cast<uint8_t>(v6_bits), out);
  EXPECT_LE(network.size(), kPrefixTextBytes);
  return std::string(network);
}

TEST(IpPrefixTest, NamesTheNetworkOfAnAddress) {
  EXPECT_EQ(Canonical("203.0.113.7", 24, 64), "203.0.113.0/24");
  EXPECT_EQ(Canonical("203.0.113.7", 32, 64), "203.0.113.7");
  EXPECT_EQ(Canonical("203.0.113.255", 25, 64), "203.0.113.128/25");
  EXPECT_EQ(Canonical("203.0.113.7", 0, 64), "0.0.0.0/0");
  EXPECT_EQ(Canonical("255.255.255.255", 17, 64), "255.255.128.0/17");
  EXPECT_EQ(Canonical("203.0.113.7", 200, 64), "203.0.113.7");
  EXPECT_EQ(Canonical("2001:DB8:0:0:1:2:3:4", 24, 64), "2001:db8::/64");
  EXPECT_EQ(Canonical("2001:db8::1", 24, 128), "2001:db8::1");
  EXPECT_EQ(Canonical("2001:db8::1", 24, 255), "2001:db8::1");
  EXPECT_EQ(Canonical("2001:db8:ffff::", 24, 33), "2001:db8:8000::/33");
  EXPECT_EQ(Canonical("::1", 24, 0), "::/0");
}

TEST(IpPrefixTest, WritesIpv6InTheOneFormOfRfc5952) {
  EXPECT_EQ(Canonical("2001:0DB8:0000:0000:0000:0000:0000:0001", 32, 128), "2001:db8::1");
  EXPECT_EQ(Canonical("2001:db8:0:1:1:1:1:1", 32, 128), "2001:db8:0:1:1:1:1:1");
  EXPECT_EQ(Canonical("2001:0:0:1:0:0:0:1", 32, 128), "2001:0:0:1::1");
  EXPECT_EQ(Canonical("2001:db8:0:0:1:0:0:1", 32, 128), "2001:db8::1:0:0:1");
  EXPECT_EQ(Canonical("1:0:0:0:0:0:0:0", 32, 128), "1::");
  EXPECT_EQ(Canonical("0:0:0:0:0:0:0:0", 32, 128), "::");
}

TEST(IpPrefixTest, GivesOneSubscriberOneNameWhateverClothesTheAddressWears) {
  const std::string v4 = Canonical("203.0.113.7", 32, 64);
  for (const char* same : {"::ffff:203.0.113.7", "::FFFF:cb00:7107", "203.0.113.7:8080",
                           "[::ffff:203.0.113.7]:443", "0:0:0:0:0:ffff:203.0.113.7"}) {
    EXPECT_EQ(Canonical(same, 32, 64), v4) << same;
  }
  const std::string v6 = Canonical("2001:db8::1", 32, 64);
  for (const char* same : {"2001:db8:0:0::2", "[2001:db8::3]", "[2001:db8::3]:443",
                           "2001:DB8::ffff", "2001:db8::5%eth0", "[2001:db8::5%eth0]:1"}) {
    EXPECT_EQ(Canonical(same, 32, 64), v6) << same;
  }
}

TEST(IpPrefixTest, RefusesWhatIsNoAddress) {
  using namespace std::string_view_literals;
  const std::string long_text(100'000, '1');
  for (const std::string_view text : {""sv,           "."sv,
                                      ":"sv,          "1.2.3"sv,
                                      "1.2.3.4.5"sv,  "256.1.1.1"sv,
                                      "01.2.3.4"sv,   "1.2.3.04"sv,
                                      "1.2.3.4 "sv,   " 1.2.3.4"sv,
                                      "1.2.3.4:"sv,   "1.2.3.4:123456"sv,
                                      "1.2.3.4:a"sv,  "1..2.3"sv,
                                      "1.2.3.4/24"sv, "0x1.2.3.4"sv,
                                      "1.2.3.4\0"sv,  "::1\0"sv,
                                      "::1\0junk"sv,  "[::1"sv,
                                      "::1]"sv,       "[]"sv,
                                      "[::1]x"sv,     "[::1]:"sv,
                                      "[1.2.3.4]"sv,  ":::"sv,
                                      "1::2::3"sv,    "12345::"sv,
                                      "g::"sv,        "fe80::1%"sv,
                                      "%eth0"sv,      "localhost"sv,
                                      "\xff\xfe"sv,   "1.2.3.\xc2\xb2"sv,
                                      "1234567890"sv, std::string_view(long_text)}) {
    EXPECT_EQ(Canonical(text, 24, 64), "") << text.substr(0, 60);
  }
}

TEST(IpPrefixTest, AgreesWithTheLibraryOnEveryIpv4) {
  std::mt19937 random(1);
  for (int i = 0; i < 100'000; ++i) {
    // Few and many digits alike.
    in_addr address{};
    uint8_t octets[4];
    for (uint8_t& octet : octets) octet = static_cast<uint8_t>(random() >> (random() % 9 + 23));
    std::memcpy(&address, octets, 4);
    char text[INET_ADDRSTRLEN];
    ASSERT_NE(inet_ntop(AF_INET, &address, text, sizeof(text)), nullptr);
    const int bits = static_cast<int>(random() % 33);
    const uint32_t mask = bits == 0 ? 0 : ~0u << (32 - bits);
    in_addr network{htonl(ntohl(address.s_addr) & mask)};
    char expected[INET_ADDRSTRLEN + 4];
    ASSERT_NE(inet_ntop(AF_INET, &network, expected, INET_ADDRSTRLEN), nullptr);
    const std::string suffix = bits == 32 ? "" : "/" + std::to_string(bits);
    ASSERT_EQ(Canonical(text, bits, 64), expected + suffix) << text << " " << bits;
    ASSERT_EQ(Canonical(std::string("::ffff:") + text, bits, 64), expected + suffix) << text;
  }
}

TEST(IpPrefixTest, AgreesWithTheLibraryOnEveryIpv6) {
  std::mt19937_64 random(2);
  for (int i = 0; i < 100'000; ++i) {
    uint8_t bytes[16];
    for (int group = 0; group < 8; ++group) {
      // Zero groups often, short ones often: that is where the form is decided.
      const uint64_t value = random() % 2 != 0 ? 0 : random() >> (random() % 16 + 48);
      bytes[2 * group] = static_cast<uint8_t>(value >> 8);
      bytes[2 * group + 1] = static_cast<uint8_t>(value);
    }
    bytes[0] |= 0x20;  // neither mapped nor one that the library writes with dots
    const int bits = static_cast<int>(random() % 129);
    uint8_t network[16];
    for (int byte = 0; byte < 16; ++byte) {
      const int kept = bits - 8 * byte;
      const int mask = kept >= 8 ? 0xff : kept <= 0 ? 0 : 0xff00 >> kept;
      network[byte] = static_cast<uint8_t>(bytes[byte] & mask);
    }
    char text[INET6_ADDRSTRLEN];
    char expected[INET6_ADDRSTRLEN];
    ASSERT_NE(inet_ntop(AF_INET6, bytes, text, sizeof(text)), nullptr);
    ASSERT_NE(inet_ntop(AF_INET6, network, expected, sizeof(expected)), nullptr);
    const std::string suffix = bits == 128 ? "" : "/" + std::to_string(bits);
    ASSERT_EQ(Canonical(text, 32, bits), expected + suffix) << text;
  }
}

TEST(IpPrefixTest, TakesExactlyWhatTheLibraryTakesAsAnAddress) {
  std::mt19937 random(3);
  const char alphabet[] = "0123456789.:abF";
  for (int i = 0; i < 300'000; ++i) {
    std::string text = random() % 2 != 0 ? "10.20.30.40" : "2001:db8::1:2";
    for (int edit = 0; edit < 2; ++edit) {
      text[random() % text.size()] = alphabet[random() % (sizeof(alphabet) - 1)];
    }
    uint8_t bytes[16];
    const bool is_v4 = inet_pton(AF_INET, text.c_str(), bytes) == 1;
    const bool is_v6 = inet_pton(AF_INET6, text.c_str(), bytes) == 1;
    const size_t colon = text.find(':');
    const bool may_have_port = colon != std::string::npos && colon == text.rfind(':');
    if (may_have_port) continue;  // "1.2.3.4:5" is ours alone
    ASSERT_EQ(!Canonical(text, 24, 64).empty(), is_v4 || is_v6) << text;
  }
}

TEST(IpPrefixTest, IsItsOwnCanonicalFormWhenWhole) {
  std::mt19937_64 random(4);
  for (int i = 0; i < 20'000; ++i) {
    uint8_t bytes[16];
    for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random() % 3 == 0 ? random() : 0);
    char text[INET6_ADDRSTRLEN];
    ASSERT_NE(inet_ntop(AF_INET6, bytes, text, sizeof(text)), nullptr);
    const std::string once = Canonical(text, 32, 128);
    ASSERT_FALSE(once.empty()) << text;
    ASSERT_EQ(Canonical(once, 32, 128), once) << text;
  }
}

}  // namespace
}  // namespace sluice::shm
