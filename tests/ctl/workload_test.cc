#include "ctl/workload.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <fstream>
#include <map>

#include "ctl/histogram.h"
#include "ctl/metrics_text.h"
#include "ctl/text.h"
#include "ctl/zipf.h"

namespace sluice::ctl {
namespace {

std::string Line(const std::string& address, const std::string& time, const std::string& path,
                 const std::string& user = "-") {
  return address + " - " + user + " [17/May/2015:" + time + " +0000] \"GET " + path +
         " HTTP/1.1\" 200 1 \"-\" \"agent\"\n";
}

class LogWorkloadTest : public testing::Test {
 protected:
  void SetUp() override {
    const char* root = std::getenv("TMPDIR");
    std::string pattern = std::string(root != nullptr ? root : "/tmp") + "/sluice-work-XXXXXX";
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    directory_ = pattern;
    path_ = directory_ + "/access.log";
  }
  void TearDown() override {
    std::remove(path_.c_str());
    std::remove(directory_.c_str());
  }
  std::unique_ptr<LogWorkload> Load(const std::string& text, const LogTiming& timing = {}) {
    std::ofstream(path_, std::ios::binary) << text;
    auto workload = LogWorkload::Load(path_, DefaultMapping(), timing);
    EXPECT_TRUE(workload.ok()) << workload.status();
    return workload.ok() ? std::move(*workload) : nullptr;
  }

  std::string directory_;
  std::string path_;
};

std::map<std::string, std::string> ToMap(const Request& request) {
  std::map<std::string, std::string> values;
  for (size_t i = 0; i < request.count; ++i) {
    const sluice_descriptor_t& d = request.descriptors[i];
    values[std::string(d.name, d.name_len)] = std::string(d.value, d.value_len);
  }
  return values;
}

TEST_F(LogWorkloadTest, MapsALineToDescriptors) {
  const auto workload = Load(Line("83.149.9.216", "10:00:00", "/v1/generate/x?y=1", "alice"));
  Request request;
  ASSERT_TRUE(workload->NewStream(0, 1)->Next(&request));
  const auto stream = workload->NewStream(0, 1);
  ASSERT_TRUE(stream->Next(&request));
  const auto values = ToMap(request);
  EXPECT_EQ(values.at("ip"), "83.149.9.216");
  EXPECT_EQ(values.at("route"), "/v1/generate");
  EXPECT_EQ(values.at("method"), "GET");
  EXPECT_EQ(values.at("user"), "alice");
  EXPECT_EQ(values.at("tenant"), "net-83.149");
  EXPECT_TRUE(values.at("tier") == "free" || values.at("tier") == "paid");
  EXPECT_FALSE(stream->Next(&request));
}

TEST_F(LogWorkloadTest, SortsByTimeAndSpreadsASecondsRequestsOverIt) {
  const auto workload =
      Load(Line("192.0.2.3", "10:00:02", "/c") + Line("192.0.2.1", "10:00:00", "/a") +
           Line("192.0.2.2", "10:00:00", "/b"));
  const auto stream = workload->NewStream(0, 1);
  Request request;
  const std::pair<const char*, uint64_t> expected[] = {
      {"/a", 0}, {"/b", 500'000'000}, {"/c", 2'000'000'000}};
  for (const auto& [route, due_ns] : expected) {
    ASSERT_TRUE(stream->Next(&request));
    EXPECT_EQ(ToMap(request).at("route"), route);
    EXPECT_EQ(request.due_ns, due_ns);
  }
}

TEST_F(LogWorkloadTest, SharesTheLinesBetweenStreamsOnceEach) {
  std::string text;
  for (int i = 0; i < 100; ++i) text += Line("192.0.2.1", "10:00:00", "/p" + std::to_string(i));
  const auto workload = Load(text);
  std::map<std::string, int> seen;
  for (uint32_t index = 0; index < 3; ++index) {
    const auto stream = workload->NewStream(index, 3);
    Request request;
    while (stream->Next(&request)) ++seen[ToMap(request).at("route")];
  }
  EXPECT_EQ(seen.size(), 100u);
  for (const auto& [route, n] : seen) EXPECT_EQ(n, 1) << route;
}

TEST_F(LogWorkloadTest, LoopsWithTimesThatNeverFall) {
  const auto workload = Load(
      Line("192.0.2.1", "10:00:00", "/a") + Line("192.0.2.1", "10:00:07", "/b"), {.loop = true});
  const auto stream = workload->NewStream(0, 1);
  Request request;
  uint64_t last_ns = 0;
  for (int i = 0; i < 1000; ++i) {
    ASSERT_TRUE(stream->Next(&request));
    EXPECT_GE(request.due_ns, last_ns);
    last_ns = request.due_ns;
  }
  EXPECT_EQ(last_ns, 499u * 8'000'000'000 + 7'000'000'000);
}

TEST_F(LogWorkloadTest, ARateTakesThePlaceOfTheLogsTimes) {
  const auto workload =
      Load(Line("192.0.2.1", "10:00:00", "/a") + Line("192.0.2.1", "23:00:00", "/b"),
           {.loop = true, .rate = 1000});
  const auto stream = workload->NewStream(1, 2);
  Request request;
  for (uint64_t i = 0; i < 10; ++i) {
    ASSERT_TRUE(stream->Next(&request));
    EXPECT_EQ(request.due_ns, (2 * i + 1) * 1'000'000);
  }
}

TEST_F(LogWorkloadTest, CountsMalformedLinesAndKeepsTheFirstExamples) {
  std::string text = Line("192.0.2.1", "10:00:00", "/a");
  for (int i = 0; i < 20; ++i) text += "garbage \x01 " + std::to_string(i) + "\n";
  text += "\n# comment\n";
  const auto workload = Load(text);
  const LogSummary& summary = workload->summary();
  EXPECT_EQ(summary.lines, 23u);
  EXPECT_EQ(summary.entries, 1u);
  EXPECT_EQ(summary.malformed, 20u);
  EXPECT_EQ(summary.blank, 1u);
  EXPECT_EQ(summary.comments, 1u);
  EXPECT_EQ(summary.reasons.at("no [time]"), 20u);
  ASSERT_EQ(summary.examples.size(), kMaxBadExamples);
  EXPECT_EQ(summary.examples[0].number, 2u);
  EXPECT_EQ(summary.examples[0].text, "garbage \\x01 0");
}

TEST_F(LogWorkloadTest, RefusesAFileWithoutAnyRequestAndShowsWhy) {
  std::ofstream(path_) << "what is this\n";
  const auto workload = LogWorkload::Load(path_, DefaultMapping(), {});
  ASSERT_FALSE(workload.ok());
  EXPECT_NE(workload.status().message().find("what is this"), std::string::npos);
}

// The path of a real log comes from the environment; the product brings none along.
TEST_F(LogWorkloadTest, ReadsARealLogWithoutAMalformedLine) {
  const char* path = std::getenv("SLUICE_SAMPLE_LOG");
  if (path == nullptr || access(path, R_OK) != 0) {
    GTEST_SKIP() << "SLUICE_SAMPLE_LOG names no readable access log";
  }
  const auto workload = LogWorkload::Load(path, DefaultMapping(), {});
  ASSERT_TRUE(workload.ok()) << workload.status();
  EXPECT_GT((*workload)->summary().entries, 0u);
  EXPECT_EQ((*workload)->summary().malformed, 0u);
}

TEST(MappingTest, NormalisesPaths) {
  const struct {
    const char* target;
    int depth;
    const char* expected;
  } cases[] = {
      {"/a/b/c?d=e", 2, "/a/b"},
      {"/a/b/c", 0, "/a/b/c"},
      {"//a///b/", 2, "/a/b"},
      {"/a/./b/../c", 0, "/a/c"},
      {"/../../etc/passwd", 0, "/etc/passwd"},
      {"/", 2, "/"},
      {"/?q", 2, "/"},
      {"/a;jsessionid=1?x", 2, "/a"},
      {"/a#b", 2, "/a"},
      {"http://example.com/a/b", 1, "/a"},
      {"http://example.com", 2, "/"},
      {"*", 2, "*"},
      {"example.com:443", 2, "example.com:443"},
  };
  for (const auto& c : cases) EXPECT_EQ(NormalisePath(c.target, c.depth), c.expected) << c.target;
  EXPECT_LE(NormalisePath("/" + std::string(5000, 'x'), 2).size(), kMaxRouteBytes);
}

TEST(MappingTest, NamesTheNetworkOfAnAddress) {
  EXPECT_EQ(NetworkOf("83.149.9.216"), "net-83.149");
  EXPECT_EQ(NetworkOf("2001:db8:1::5"), "net-2001:db8");
  EXPECT_EQ(NetworkOf("::ffff:83.149.9.216"), "net-83.149");
  EXPECT_EQ(NetworkOf("a.b.example.com"), "net-example.com");
  EXPECT_EQ(NetworkOf("localhost"), "net-localhost");
}

TEST(MappingTest, GivesThePaidTierToTheAskedShareOfKeys) {
  int paid = 0;
  for (int i = 0; i < 10'000; ++i) paid += TierOf("net-" + std::to_string(i), 0.25) == "paid";
  EXPECT_NEAR(paid, 2'500, 150);
  EXPECT_EQ(TierOf("x", 0), "free");
  EXPECT_EQ(TierOf("x", 1), "paid");
}

TEST(MappingTest, OptionsAddReplaceAndTakeOutDescriptors) {
  Mapping mapping = DefaultMapping();
  EXPECT_TRUE(ApplyMapOption("tenant=path1", &mapping).ok());
  EXPECT_TRUE(ApplyMapOption("region=const:eu=west", &mapping).ok());
  EXPECT_TRUE(ApplyMapOption("user=", &mapping).ok());
  EXPECT_FALSE(ApplyMapOption("user", &mapping).ok());
  EXPECT_FALSE(ApplyMapOption("=ip", &mapping).ok());
  EXPECT_FALSE(ApplyMapOption("user=nonsense", &mapping).ok());
  std::map<std::string, Source> sources;
  for (const MappedName& m : mapping.names) sources[m.name] = m.source;
  EXPECT_EQ(sources.at("tenant"), Source::kFirstSegment);
  EXPECT_EQ(sources.count("user"), 0u);
  EXPECT_EQ(mapping.names.back().constant, "eu=west");
}

TEST(ZipfTest, DrawsRanksInProportionToTheirWeight) {
  for (const double skew : {0.0, 0.5, 1.0, 1.3, 2.5}) {
    constexpr uint64_t kKeys = 50;
    constexpr int kDraws = 200'000;
    const Zipf zipf(kKeys, skew);
    uint64_t state = 1;
    const auto uniform = [&] {
      state = state * 6364136223846793005 + 1442695040888963407;
      return static_cast<double>(state >> 11) * 0x1p-53;
    };
    std::vector<int> seen(kKeys + 1);
    for (int i = 0; i < kDraws; ++i) {
      const uint64_t rank = zipf.Draw(uniform);
      ASSERT_GE(rank, 1u);
      ASSERT_LE(rank, kKeys);
      ++seen[rank];
    }
    double total = 0;
    for (uint64_t k = 1; k <= kKeys; ++k) total += std::pow(k, -skew);
    for (const uint64_t rank : {1, 2, 10, 50}) {
      const double expected = kDraws * std::pow(rank, -skew) / total;
      EXPECT_NEAR(seen[rank], expected, 5 * std::sqrt(expected) + 1) << skew << " " << rank;
    }
  }
}

TEST(ZipfTest, KnowsASingleKey) {
  const Zipf zipf(1, 1.2);
  EXPECT_EQ(zipf.Draw([] { return 0.7; }), 1u);
}

TEST(GeneratorTest, MakesTheSameRequestsForTheSameSeed) {
  const auto options = ParseGeneratorOptions("keys=1000,skew=1.1,rate=100,seed=5");
  ASSERT_TRUE(options.ok()) << options.status();
  const GeneratedWorkload workload(*options);
  const auto a = workload.NewStream(1, 2);
  const auto b = workload.NewStream(1, 2);
  Request x;
  Request y;
  for (uint64_t i = 0; i < 1000; ++i) {
    ASSERT_TRUE(a->Next(&x));
    ASSERT_TRUE(b->Next(&y));
    EXPECT_EQ(ToMap(x), ToMap(y));
    EXPECT_EQ(x.due_ns, (2 * i + 1) * 10'000'000);
  }
}

TEST(GeneratorTest, KeepsAUsersTenantTierAndAddress) {
  const GeneratedWorkload workload(*ParseGeneratorOptions("keys=200,skew=0.5"));
  const auto stream = workload.NewStream(0, 1);
  Request request;
  std::map<std::string, std::string> traits;
  for (int i = 0; i < 20'000; ++i) {
    ASSERT_TRUE(stream->Next(&request));
    auto values = ToMap(request);
    const std::string trait = values["tenant"] + values["tier"] + values["ip"];
    EXPECT_EQ(traits.emplace(values["user"], trait).first->second, trait);
    EXPECT_TRUE(IsIpAddress(values["ip"])) << values["ip"];
  }
  EXPECT_EQ(traits.size(), 200u);
}

TEST(GeneratorTest, RefusesSettingsOutOfRangeAndNamesTheRange) {
  for (const char* text :
       {"keys=0", "keys=x", "skew=9", "skew=nan", "rate=-1", "tenants=0", "colour=red", "keys"}) {
    EXPECT_FALSE(ParseGeneratorOptions(text).ok()) << text;
  }
  EXPECT_NE(ParseGeneratorOptions("skew=9").status().message().find("0 to 4"), std::string::npos);
}

TEST(HistogramTest, KeepsValuesWithinAThirtySecond) {
  for (uint64_t value = 0; value < (1ull << 40); value = value * 9 / 8 + 1) {
    const size_t cell = Histogram::CellOf(value);
    ASSERT_LT(cell, Histogram::kCells);
    EXPECT_LE(Histogram::LowOf(cell), value);
    EXPECT_LE(value - Histogram::LowOf(cell), value / 32);
    if (cell + 1 < Histogram::kCells) {
      EXPECT_GT(Histogram::LowOf(cell + 1), value);
    }
  }
  EXPECT_EQ(Histogram::CellOf(~0ull), Histogram::kCells - 1);
}

TEST(HistogramTest, GivesQuantilesOfAnInterval) {
  Histogram histogram;
  for (int i = 0; i < 1000; ++i) histogram.Add(5);
  HistogramCounts before;
  before.Add(histogram);
  for (int i = 0; i < 98; ++i) histogram.Add(10);
  for (int i = 0; i < 2; ++i) histogram.Add(4096);
  HistogramCounts after;
  after.Add(histogram);
  const HistogramCounts interval = after.Since(before);
  EXPECT_EQ(interval.Total(), 100u);
  EXPECT_EQ(interval.Quantile(0.5), 10u);
  EXPECT_EQ(interval.Quantile(0.99), 4096u);
  EXPECT_EQ(HistogramCounts().Quantile(0.5), 0u);
}

TEST(MetricsTextTest, ReadsSamplesWithAndWithoutLabels) {
  const Metrics metrics = ParseMetrics(
      "# HELP a_total something\n# TYPE a_total counter\n"
      "a_total{rule=\"x,y\",decision=\"a\\\"b\\\\c\\nd\"} 12\na_total{} 3\nb 1.5e3\n"
      "c{le=\"+Inf\"} NaN\nbroken{x 1\n\n");
  ASSERT_EQ(metrics.at("a_total").size(), 2u);
  EXPECT_EQ(metrics.at("a_total")[0].Label("rule"), "x,y");
  EXPECT_EQ(metrics.at("a_total")[0].Label("decision"), "a\"b\\c\nd");
  EXPECT_EQ(metrics.at("a_total")[0].value, 12);
  EXPECT_EQ(metrics.at("a_total")[1].value, 3);
  EXPECT_EQ(metrics.at("b")[0].value, 1500);
  EXPECT_EQ(metrics.at("c")[0].Label("le"), "+Inf");
  EXPECT_EQ(metrics.count("broken"), 0u);
}

TEST(TextTest, FormatsForPeople) {
  EXPECT_EQ(FormatDuration(0), "0 s");
  EXPECT_EQ(FormatDuration(850), "850 ns");
  EXPECT_EQ(FormatDuration(12'300'000), "12.3 ms");
  EXPECT_EQ(FormatDuration(60'000'000'000), "1 min");
  EXPECT_EQ(FormatDuration(SLUICE_NEVER), "never");
  EXPECT_EQ(FormatLimit(100, 1'000'000'000), "100/s");
  EXPECT_EQ(FormatLimit(1, 10'000'000'000), "1 per 10 s");
  EXPECT_EQ(SafeText("a\x1b[31mb\n"), "a\\x1b[31mb\\x0a");
  Table table({"name", "n"});
  table.Row({"alpha", "5"});
  table.Row({"b", "123"});
  EXPECT_EQ(table.Format(), "name     n\nalpha    5\nb      123\n");
}

}  // namespace
}  // namespace sluice::ctl
