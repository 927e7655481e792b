#include "ctl/access_log.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <random>
#include <string>

namespace sluice::ctl {
namespace {

constexpr int64_t kTimeMs = 1431857103000;  // 17/May/2015:10:05:03 +0000

class AccessLogTest : public testing::Test {
 protected:
  LineKind Parse(std::string_view line, bool is_cut = false) {
    line_ = line;
    return parser_.Parse(line_, is_cut, &entry_, &reason_);
  }
  // The usual end of a line after its time.
  LineKind ParseHead(const std::string& head) {
    return Parse(head + " [17/May/2015:10:05:03 +0000] \"GET / HTTP/1.1\" 200 12");
  }
  // The request of a line.
  LineKind ParseRequest(const std::string& request,
                        const std::string& tail = " 400 0 \"-\" \"-\"") {
    return Parse("192.0.2.1 - - [17/May/2015:10:05:03 +0000] \"" + request + "\"" + tail);
  }

  std::string line_;
  LineParser parser_;
  LogEntry entry_;
  const char* reason_ = nullptr;
};

TEST_F(AccessLogTest, ReadsEveryFieldOfACombinedLine) {
  ASSERT_EQ(Parse("192.0.2.1 - alice [17/May/2015:10:05:03 +0000] \"GET /a/b?c=d HTTP/1.1\" 404 "
                  "2326 \"http://example.com/start\" \"Mozilla/5.0 (X11; Linux)\""),
            LineKind::kEntry);
  EXPECT_EQ(entry_.address, "192.0.2.1");
  EXPECT_EQ(entry_.user, "alice");
  EXPECT_EQ(entry_.time_ms, kTimeMs);
  EXPECT_EQ(entry_.method, "GET");
  EXPECT_EQ(entry_.target, "/a/b?c=d");
  EXPECT_EQ(entry_.status, 404);
  EXPECT_EQ(entry_.referrer, "http://example.com/start");
  EXPECT_EQ(entry_.user_agent, "Mozilla/5.0 (X11; Linux)");
  EXPECT_TRUE(entry_.is_http);
}

TEST_F(AccessLogTest, ReadsALineWhoseVirtualHostIsEmpty) {
  ASSERT_EQ(ParseHead("\"\" 192.0.2.1 - alice"), LineKind::kEntry);
  EXPECT_EQ(entry_.address, "192.0.2.1");
  EXPECT_EQ(entry_.user, "alice");
}

TEST_F(AccessLogTest, ReadsACommonLineWithAHostName) {
  ASSERT_EQ(Parse("in24.example.com - - [01/Aug/1995:00:00:01 -0400] "
                  "\"GET /shuttle/sts-68-mcc-05.txt HTTP/1.0\" 200 1839"),
            LineKind::kEntry);
  EXPECT_EQ(entry_.address, "in24.example.com");
  EXPECT_EQ(entry_.user, "");
  EXPECT_EQ(entry_.time_ms, 807249601000);
  EXPECT_EQ(entry_.user_agent, "");
}

TEST_F(AccessLogTest, TakesDashesForMissingFields) {
  ASSERT_EQ(Parse("192.0.2.1 - - [17/May/2015:10:05:03 +0000] \"-\" - - \"-\" \"-\""),
            LineKind::kEntry);
  EXPECT_EQ(entry_.status, 0);
  EXPECT_EQ(entry_.referrer, "");
  EXPECT_EQ(entry_.user_agent, "");
  EXPECT_FALSE(entry_.is_http);
}

TEST_F(AccessLogTest, ReadsWhatEndsAfterAnyFieldFromTheRequestOn) {
  for (const char* tail : {"", " 200", " 200 12", " 200 12 \"-\"", " 200 12 \"-\" \"Mozilla",
                           " 200 12 \"-\" \"Mozilla\" \"203.0.113.7\" 0.012 upstream"}) {
    EXPECT_EQ(ParseRequest("GET / HTTP/1.1", tail), LineKind::kEntry) << tail;
    EXPECT_EQ(entry_.target, "/") << tail;
  }
}

TEST_F(AccessLogTest, ReadsAddressesOfAllForms) {
  const std::pair<const char*, const char*> cases[] = {
      {"2001:db8::1 - -", "2001:db8::1"},
      {"::1 - -", "::1"},
      {"::ffff:192.0.2.1 - -", "::ffff:192.0.2.1"},
      {"fe80::1%eth0 - -", "fe80::1%eth0"},
      {"[2001:db8::1] - -", "2001:db8::1"},
      {"[2001:db8::1]:4711 - -", "2001:db8::1"},
      {"192.0.2.1:4711 - -", "192.0.2.1"},
      {"\"192.0.2.1\" - -", "192.0.2.1"},
      {"www.example.com:443 192.0.2.1 - -", "192.0.2.1"},
      {"www.example.com 2001:db8::1 - -", "2001:db8::1"},
      {"- 192.0.2.1 - -", "192.0.2.1"},
      {"203.0.113.7, 10.0.0.1 - -", "203.0.113.7"},
      {"203.0.113.7,10.0.0.1 - -", "203.0.113.7"},
      {"unknown, 203.0.113.7, 10.0.0.1 - -", "203.0.113.7"},
      {"unix: - -", "unix:"},
      {"192.0.2.1", "192.0.2.1"},
  };
  for (const auto& [head, address] : cases) {
    EXPECT_EQ(ParseHead(head), LineKind::kEntry) << head;
    EXPECT_EQ(entry_.address, address) << head;
    EXPECT_EQ(entry_.user, "") << head;
  }
}

TEST_F(AccessLogTest, ReadsUsersWithSpacesBracketsAndQuotes) {
  ASSERT_EQ(ParseHead("192.0.2.1 - John Smith"), LineKind::kEntry);
  EXPECT_EQ(entry_.user, "John Smith");
  ASSERT_EQ(ParseHead("192.0.2.1 - a[1] b"), LineKind::kEntry);
  EXPECT_EQ(entry_.user, "a[1] b");
  ASSERT_EQ(ParseHead("192.0.2.1 - \"\""), LineKind::kEntry);
  EXPECT_EQ(entry_.user, "");
}

TEST_F(AccessLogTest, UndoesEscapesInARequest) {
  ASSERT_EQ(ParseRequest(R"(GET /a\"b\x22c\\d\x41 HTTP/1.1)"), LineKind::kEntry);
  EXPECT_EQ(entry_.target, "/a\"b\"c\\dA");
}

TEST_F(AccessLogTest, ReadsARequestWithBareQuotesThatAnOldServerLeft) {
  ASSERT_EQ(ParseRequest(R"(GET /say "hi" now HTTP/1.0)", " 200 12"), LineKind::kEntry);
  EXPECT_EQ(entry_.target, "/say \"hi\" now");
  EXPECT_EQ(entry_.status, 200);
}

TEST_F(AccessLogTest, ReadsARequestThatEndsInABareBackslash) {
  ASSERT_EQ(ParseRequest(R"(GET /\)", " 404 209 \"-\" \"agent\""), LineKind::kEntry);
  EXPECT_EQ(entry_.target, "/\\");
  EXPECT_EQ(entry_.status, 404);
}

TEST_F(AccessLogTest, ReadsQuotesEscapedInsideAUserAgent) {
  ASSERT_EQ(ParseRequest("GET / HTTP/1.1", R"( 200 1 "-" "Agent \"the\" 1.0")"), LineKind::kEntry);
  EXPECT_EQ(entry_.user_agent, R"(Agent \"the\" 1.0)");
}

TEST_F(AccessLogTest, KeepsSpacesInATarget) {
  ASSERT_EQ(ParseRequest("GET /my file name.txt HTTP/1.1"), LineKind::kEntry);
  EXPECT_EQ(entry_.target, "/my file name.txt");
}

TEST_F(AccessLogTest, TakesARequestWithoutAProtocolForHttp09) {
  ASSERT_EQ(ParseRequest("GET /old"), LineKind::kEntry);
  EXPECT_TRUE(entry_.is_http);
  EXPECT_EQ(entry_.target, "/old");
}

TEST_F(AccessLogTest, ReadsOtherFormsOfTargets) {
  ASSERT_EQ(ParseRequest("OPTIONS * HTTP/1.0"), LineKind::kEntry);
  EXPECT_EQ(entry_.target, "*");
  ASSERT_EQ(ParseRequest("CONNECT example.com:443 HTTP/1.1"), LineKind::kEntry);
  EXPECT_EQ(entry_.target, "example.com:443");
  ASSERT_EQ(ParseRequest("PRI * HTTP/2.0"), LineKind::kEntry);
  EXPECT_EQ(entry_.method, "PRI");
}

TEST_F(AccessLogTest, CountsWhatIsNotHttpAsARequestWithoutMethod) {
  for (const char* request :
       {"", "-", "GET", "quit", R"(\x16\x03\x01\x00\x90\x01)", "\x16\x03\x01 \x90", "\n",
        "SSH-2.0-Go", "OPTIONS / RTSP/1.0", R"(\x00\x01 /x HTTP/1.1)", "()"}) {
    EXPECT_EQ(ParseRequest(request), LineKind::kEntry) << request;
    EXPECT_FALSE(entry_.is_http) << request;
    EXPECT_EQ(entry_.method, "") << request;
    EXPECT_EQ(entry_.address, "192.0.2.1") << request;
  }
}

TEST_F(AccessLogTest, ReadsALineThatEndsInCarriageReturnOrBeginsWithNulsOrAMark) {
  const std::string good = "192.0.2.1 - - [17/May/2015:10:05:03 +0000] \"GET / HTTP/1.1\" 200 12";
  for (const std::string& line : {good + "\r", std::string(500, '\0') + good, "\xef\xbb\xbf" + good,
                                  "  " + good + "  ", good + " \r"}) {
    EXPECT_EQ(Parse(line), LineKind::kEntry);
    EXPECT_EQ(entry_.address, "192.0.2.1");
    EXPECT_EQ(entry_.status, 200);
  }
}

TEST_F(AccessLogTest, SaysWhatALineLacks) {
  const std::pair<const char*, const char*> cases[] = {
      {"alyssa.p", "no [time]"},
      {"192.0.2.1 - - [17/May/2015:10:0", "no [time]"},
      {"192.0.2.1 - - [99/May/2015:10:05:03 +0000] \"GET / HTTP/1.1\" 200 1", "no [time]"},
      {"[17/May/2015:10:05:03 +0000] \"GET / HTTP/1.1\" 200 1",
       "no client address before the [time]"},
      {"- - - [17/May/2015:10:05:03 +0000] \"GET / HTTP/1.1\" 200 1",
       "no client address before the [time]"},
      {"192.0.2.1 - - [17/May/2015:10:05:03 +0000]", "no \"request\" after the [time]"},
      {"192.0.2.1 - - [17/May/2015:10:05:03 +0000] \"GET /a HT",
       "no closing quote after the request: the line is cut"},
      {"{\"remote_addr\":\"192.0.2.1\"}", "JSON, not common or combined log format"},
  };
  for (const auto& [line, reason] : cases) {
    EXPECT_EQ(Parse(line), LineKind::kMalformed) << line;
    EXPECT_STREQ(reason_, reason) << line;
  }
}

TEST_F(AccessLogTest, TellsBlankLinesAndCommentsFromMalformedOnes) {
  EXPECT_EQ(Parse(""), LineKind::kBlank);
  EXPECT_EQ(Parse(" \r"), LineKind::kBlank);
  EXPECT_EQ(Parse(std::string(64, '\0')), LineKind::kBlank);
  EXPECT_EQ(Parse("# rotated"), LineKind::kComment);
}

TEST_F(AccessLogTest, TakesACutRequestAsFarAsItGoes) {
  const std::string line =
      "192.0.2.1 - - [17/May/2015:10:05:03 +0000] \"GET /" + std::string(kMaxLineBytes, 'a');
  EXPECT_EQ(Parse(line, /*is_cut=*/false), LineKind::kMalformed);
  ASSERT_EQ(Parse(line, /*is_cut=*/true), LineKind::kEntry);
  EXPECT_EQ(entry_.method, "GET");
}

TEST(LogTimeTest, ReadsZonesFractionsAndIso) {
  const std::pair<const char*, int64_t> cases[] = {
      {"17/May/2015:10:05:03 +0000", kTimeMs},
      {"17/May/2015:12:05:03 +0200", kTimeMs},
      {"17/may/2015:04:35:03 -0530", kTimeMs},
      {"17/May/2015:10:05:03", kTimeMs},
      {"17/May/2015:10:05:03.250 +0000", kTimeMs + 250},
      {"2015-05-17T10:05:03+00:00", kTimeMs},
      {"2015-05-17T10:05:03.5Z", kTimeMs + 500},
      {"2015-05-17 12:05:03+02:00", kTimeMs},
      {"1/Jan/1970:00:00:00 +0000", 0},
      {"29/Feb/2016:00:00:00 +0000", 1456704000000},
      {"31/Dec/2016:23:59:60 +0000", 1483228800000},
  };
  for (const auto& [text, expected] : cases) {
    int64_t time_ms = -1;
    EXPECT_TRUE(ParseLogTime(text, &time_ms)) << text;
    EXPECT_EQ(time_ms, expected) << text;
  }
}

TEST(LogTimeTest, RefusesWhatIsNoTime) {
  for (const char* text :
       {"", "-", "17/May/2015", "29/Feb/2015:00:00:00 +0000", "00/May/2015:00:00:00 +0000",
        "17/Mai/2015:00:00:00 +0000", "17/May/2015:24:00:00 +0000", "17/May/2015:10:60:00 +0000",
        "17/May/2015:10:05:03 +00", "17/May/2015:10:05:03 +0000 x", "error"}) {
    int64_t time_ms = 0;
    EXPECT_FALSE(ParseLogTime(text, &time_ms)) << text;
  }
}

// Whatever the bytes, the views stay inside the line or the parser (sanitizer builds see more).
TEST_F(AccessLogTest, SurvivesRandomDamage) {
  const std::string good =
      "192.0.2.1 - bob [17/May/2015:10:05:03 +0000] \"GET /a\\\"b HTTP/1.1\" 200 1 \"-\" \"x\\\\\"";
  std::mt19937 random(7);
  using std::string_literals::operator""s;
  const std::string spice = "\"\\[]: -/\0\n\r\t%x9"s;
  uint64_t entries = 0;
  for (int round = 0; round < 50'000; ++round) {
    std::string line = good;
    const size_t changes = random() % 6;
    for (size_t i = 0; i < changes; ++i) {
      const size_t at = random() % line.size();
      switch (random() % 3) {
        case 0:
          line[at] = spice[random() % spice.size()];
          break;
        case 1:
          line.erase(at, random() % 8);
          break;
        default:
          line.insert(at, 1 + random() % 3, static_cast<char>(random()));
      }
      if (line.empty()) line = "x";
    }
    if (Parse(line, round % 2 == 0) != LineKind::kEntry) continue;
    ++entries;
    EXPECT_FALSE(entry_.address.empty());
    size_t sum = 0;
    for (const std::string_view view : {entry_.address, entry_.user, entry_.method, entry_.target,
                                        entry_.referrer, entry_.user_agent}) {
      for (const char c : view) sum += static_cast<uint8_t>(c);
    }
    EXPECT_LT(sum, 256 * 6 * line.size());
  }
  EXPECT_GT(entries, 5'000u);  // the damage leaves many lines readable
}

// --- reading files ------------------------------------------------------------------------------

class LogReaderTest : public testing::Test {
 protected:
  void SetUp() override {
    const char* root = std::getenv("TMPDIR");
    std::string pattern = std::string(root != nullptr ? root : "/tmp") + "/sluice-log-XXXXXX";
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    directory_ = pattern;
    path_ = directory_ + "/access.log";
  }
  void TearDown() override {
    std::remove(path_.c_str());
    std::remove(directory_.c_str());
  }
  void Write(const std::string& bytes) { std::ofstream(path_, std::ios::binary) << bytes; }

  std::string directory_;
  std::string path_;
};

TEST_F(LogReaderTest, GivesEachLineAndTheLastWithoutNewline) {
  Write("one\n\ntwo\r\nthree");
  auto reader = LogReader::Open(path_);
  ASSERT_TRUE(reader.ok()) << reader.status();
  std::string_view line;
  bool is_cut = true;
  for (const char* expected : {"one", "", "two\r", "three"}) {
    ASSERT_TRUE((*reader)->Next(&line, &is_cut));
    EXPECT_EQ(line, expected);
    EXPECT_FALSE(is_cut);
  }
  EXPECT_FALSE((*reader)->Next(&line, &is_cut));
  EXPECT_TRUE((*reader)->status().ok());
}

TEST_F(LogReaderTest, CutsALongLineAndGoesOnWithTheNext) {
  Write(std::string(3'000'000, 'a') + "\nshort\n");
  auto reader = LogReader::Open(path_);
  ASSERT_TRUE(reader.ok());
  std::string_view line;
  bool is_cut = false;
  ASSERT_TRUE((*reader)->Next(&line, &is_cut));
  EXPECT_EQ(line.size(), kMaxLineBytes);
  EXPECT_TRUE(is_cut);
  ASSERT_TRUE((*reader)->Next(&line, &is_cut));
  EXPECT_EQ(line, "short");
  EXPECT_FALSE(is_cut);
}

TEST_F(LogReaderTest, RefusesCompressedFilesAndNamesTheMend) {
  Write(std::string("\x1f\x8b\x08\x00 rest", 9));
  auto reader = LogReader::Open(path_);
  ASSERT_FALSE(reader.ok());
  EXPECT_NE(reader.status().message().find("zcat " + path_), std::string::npos) << reader.status();
}

TEST_F(LogReaderTest, RefusesDirectoriesAndMissingFiles) {
  EXPECT_FALSE(LogReader::Open(directory_).ok());
  const auto missing = LogReader::Open(directory_ + "/none");
  ASSERT_FALSE(missing.ok());
  EXPECT_NE(missing.status().message().find("No such file"), std::string::npos);
}

}  // namespace
}  // namespace sluice::ctl
