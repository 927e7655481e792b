// What is read from files, and the files of the tree that are made from the configuration's table.
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <sstream>
#include <string>

#include "daemon/config/keys.h"
#include "daemon/config/parse.h"

namespace sluice::config {
namespace {

std::string Root() {
  const char* root = std::getenv("SLUICE_SOURCE_ROOT");
  return root != nullptr ? root : ".";
}

std::string ReadAll(const std::string& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

class FilesTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = testing::TempDir() + "sluice-config-XXXXXX";
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    directory_ = name;
  }
  void TearDown() override {
    for (const std::string& file : files_) unlink(file.c_str());
    rmdir(directory_.c_str());
  }
  std::string Write(const std::string& name, const std::string& text, mode_t mode = 0600) {
    std::string path = directory_ + "/" + name;
    std::ofstream(path) << text;
    EXPECT_EQ(chmod(path.c_str(), mode), 0);
    files_.push_back(path);
    return path;
  }

  std::string directory_;
  std::vector<std::string> files_;
};

TEST_F(FilesTest, ReadsAConfigurationAndNamesItInProblems) {
  EXPECT_TRUE(ParseConfigFile(Write("a.yaml", "rules: []\n")).ok());
  const std::string path = Write("b.yaml", "rules: 1\n");
  const ParseResult result = ParseConfigFile(path);
  ASSERT_EQ(result.problems.size(), 1u);
  EXPECT_EQ(result.problems[0].ToString().find(path + ":1:8: rules: "), 0u);
}

TEST_F(FilesTest, SaysWhyAFileIsNotRead) {
  const auto said = [](const std::string& path) {
    const ParseResult result = ParseConfigFile(path);
    EXPECT_EQ(result.problems.size(), 1u);
    return result.problems.empty() ? "" : result.problems[0].ToString();
  };
  EXPECT_NE(said(directory_ + "/none").find("No such file"), std::string::npos);
  EXPECT_NE(said(directory_).find("is not a regular file"), std::string::npos);
  const std::string pipe = directory_ + "/pipe";
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  files_.push_back(pipe);
  EXPECT_NE(said(pipe).find("is not a regular file"), std::string::npos);
  const std::string large = Write("large.yaml", std::string(kMaxConfigBytes + 1, '#'));
  EXPECT_NE(said(large).find("is larger than"), std::string::npos);
}

TEST_F(FilesTest, WarnsOfAPasswordThatEverybodyCanRead) {
  const std::string yaml = "redis: {addresses: \"h:1\", password: p}\nrules: []\n";
  const auto warned = [](const std::string& path) {
    for (const Warning& warning : ParseConfigFile(path).warnings) {
      if (warning.path == "redis.password") return true;
    }
    return false;
  };
  EXPECT_TRUE(warned(Write("open.yaml", yaml, 0644)));
  EXPECT_FALSE(warned(Write("closed.yaml", yaml, 0640)));
}

TEST_F(FilesTest, TakesThePasswordFromItsFileAnewEachTime) {
  RedisConfig redis;
  EXPECT_EQ(ReadPassword(redis).value(), "");
  redis.password = "inline";
  EXPECT_EQ(ReadPassword(redis).value(), "inline");
  redis.password.clear();
  redis.password_file = Write("password", "first\nsecond\n");
  EXPECT_EQ(ReadPassword(redis).value(), "first");
  Write("password", "changed\r\n");
  EXPECT_EQ(ReadPassword(redis).value(), "changed");
  Write("password", "\n");
  EXPECT_NE(ReadPassword(redis).status().message().find("empty first line"),
            absl::string_view::npos);
  Write("password", std::string(kMaxPasswordBytes + 1, 'x'));
  EXPECT_FALSE(ReadPassword(redis).ok());
  Write("redis.pass", "of systemd\n");
  redis.password_file = "credential:redis.pass";
  unsetenv("CREDENTIALS_DIRECTORY");
  EXPECT_NE(ReadPassword(redis).status().message().find("LoadCredential="),
            absl::string_view::npos);
  setenv("CREDENTIALS_DIRECTORY", directory_.c_str(), 1);
  EXPECT_EQ(ReadPassword(redis).value(), "of systemd");
  unsetenv("CREDENTIALS_DIRECTORY");
  redis.password_file = directory_ + "/none";
  EXPECT_NE(ReadPassword(redis).status().message().find("No such file"), absl::string_view::npos);
}

TEST(ExampleFileTest, ParsesWithoutAProblemOrAWarning) {
  const ParseResult result = ParseConfigFile(Root() + "/systemd/sluice.yaml");
  for (const Finding& finding : result.problems) ADD_FAILURE() << finding.ToString();
  for (const Finding& finding : result.warnings) ADD_FAILURE() << finding.ToString();
}

TEST(ExampleFileTest, ParsesWithItsRedisSectionToo) {
  // "# redis:" and the indented lines that follow it, without their comment marks.
  std::istringstream example(ReadAll(Root() + "/systemd/sluice.yaml"));
  std::string text;
  bool in_redis = false;
  for (std::string line; std::getline(example, line);) {
    in_redis = line.rfind("# redis:", 0) == 0 || (in_redis && line.rfind("#   ", 0) == 0);
    text += (in_redis ? line.substr(2) : line) + "\n";
  }
  const ParseResult result = ParseConfig(text, "sluice.yaml");
  for (const Finding& finding : result.problems) ADD_FAILURE() << finding.ToString();
  for (const Finding& finding : result.warnings) ADD_FAILURE() << finding.ToString();
  EXPECT_TRUE(result.config.redis.has_value());
}

TEST(ExampleFileTest, ShowsTheRoutesThatFailOpenAndThatCloseInSteps) {
  const Config config = ParseConfigFile(Root() + "/systemd/sluice.yaml").config;
  int open = 0;
  int steps = 0;
  for (const RuleConfig& rule : config.rules) {
    const DegradedConfig& degraded = rule.degraded;
    open += degraded.mode == shm::DegradedMode::kOpen && degraded.alert ? 1 : 0;
    steps += degraded.mode == shm::DegradedMode::kDegrade && degraded.factor == 0.25 &&
                     degraded.for_ns == 60'000'000'000 &&
                     degraded.then == shm::DegradedMode::kClosed
                 ? 1
                 : 0;
  }
  EXPECT_GE(open, 1);
  EXPECT_GE(steps, 1);
}

TEST(ReferenceTest, IsTheFileInDocs) {
  EXPECT_EQ(RenderConfigReference(), ReadAll(Root() + "/docs/configuration.md"))
      << "make it anew: sluiced --print-config-reference > docs/configuration.md";
}

// The defaults that the table shows are the ones that the parser fills in.
TEST(ReferenceTest, ShowsTheDefaultsThatAreInForce) {
  std::string written =
      "redis:\n  addresses: \"h:1\"\n#redis\n"
      "daemon:\n#daemon\n"
      "rules:\n  - name: aa\n    key: [u]\n    limit: 5/s\n#rules[]\n"
      "    when_degraded:\n      alert: false\n#rules[].when_degraded\n";
  const ParseResult minimal = ParseConfig(written, "minimal");
  ASSERT_TRUE(minimal.ok()) << minimal.problems[0].ToString();
  int count = 0;
  for (const KeySpec& spec : AllKeys()) {
    if (spec.fallback.empty() || spec.fallback.find(' ') != std::string_view::npos) continue;
    const size_t dot = spec.path.rfind('.');
    const std::string section(spec.path.substr(0, dot));
    const std::string mark = "#" + section + "\n";
    const size_t at = written.find(mark);
    if (at == std::string::npos || spec.path == "rules[].when_degraded.alert") continue;
    const size_t depth = section == "rules[]" ? 4 : section == "rules[].when_degraded" ? 6 : 2;
    written.insert(at, std::string(depth, ' ') + std::string(spec.path.substr(dot + 1)) + ": " +
                           std::string(spec.fallback) + "\n");
    ++count;
  }
  EXPECT_GE(count, 15);
  const ParseResult full = ParseConfig(written, "full");
  ASSERT_TRUE(full.ok()) << full.problems[0].ToString() << "\n" << written;
  const Config& a = minimal.config;
  const Config& b = full.config;
  EXPECT_EQ(a.daemon.runtime_dir, b.daemon.runtime_dir);
  EXPECT_EQ(a.daemon.buckets, b.daemon.buckets);
  EXPECT_EQ(a.daemon.log_level, b.daemon.log_level);
  EXPECT_EQ(a.redis->mode, b.redis->mode);
  EXPECT_EQ(a.redis->prefix, b.redis->prefix);
  EXPECT_EQ(a.redis->shards, b.redis->shards);
  EXPECT_EQ(a.redis->flush_interval_ns, b.redis->flush_interval_ns);
  EXPECT_EQ(a.redis->connect_timeout_ns, b.redis->connect_timeout_ns);
  EXPECT_EQ(a.redis->request_timeout_ns, b.redis->request_timeout_ns);
  EXPECT_EQ(a.redis->transport, b.redis->transport);
  EXPECT_EQ(a.rules[0].limit->cost, b.rules[0].limit->cost);
  EXPECT_EQ(a.rules[0].tier_by, b.rules[0].tier_by);
  EXPECT_EQ(a.rules[0].strict, b.rules[0].strict);
  EXPECT_EQ(a.rules[0].shadow, b.rules[0].shadow);
  EXPECT_EQ(a.rules[0].degraded.mode, b.rules[0].degraded.mode);
  EXPECT_EQ(a.rules[0].degraded.factor, b.rules[0].degraded.factor);
}

// A file that holds the key with its example.
std::string TextWith(const KeySpec& spec) {
  const std::string value(spec.example);
  const size_t dot = spec.path.rfind('.');
  const std::string section(dot == std::string_view::npos ? "" : spec.path.substr(0, dot));
  const std::string key(spec.path.substr(dot == std::string_view::npos ? 0 : dot + 1));
  const std::string pair = key + ": " + value;
  std::string text;
  const std::string named = "rules:\n  - name: aa\n    key: [u]\n    ";
  if (section == "daemon") {
    text = "daemon: {" + pair + "}\nrules: []";
  } else if (section == "privacy") {
    text = "privacy: {" + pair + "}\nrules: []";
  } else if (section == "daemon.chaos") {
    text = "daemon: {chaos: {" + pair + "}}\nrules:\n  - {name: generate, key: [u], limit: 1/s}\n" +
           "  - {name: search, key: [u], limit: 1/s}\n";
  } else if (key == "region" || key == "exchange") {
    text = "redis: {" + (key == "region" ? "" : std::string("region: us, ")) + pair +
           ", regions: {eu: {addresses: \"e:1\"}, us: {addresses: \"u:1\"}}}\nrules: []";
  } else if (key == "regions") {
    text = "redis: {region: us, " + pair + "}\nrules: []";
  } else if (section == "rules[].consistency") {
    text =
        "redis: {region: us, regions: {eu: {addresses: \"e:1\"}, us: {addresses: \"u:1\"}}}\n"
        "rules:\n  - name: aa\n    key: [tenant]\n    limit: 1/s\n    consistency: {" +
        (key == "mode" ? "" : std::string("mode: strict, ")) + pair + "}\n";
  } else if (section == "redis") {
    text = "redis: {" + (key == "addresses" ? "" : std::string("addresses: \"h:1\", ")) + pair +
           "}\nrules: []";
  } else if (section == "redis.sentinel") {
    text = "redis: {addresses: \"h:1\", mode: sentinel, sentinel: {" +
           (key == "master" ? "" : std::string("master: m, ")) + pair + "}}\nrules: []";
  } else if (section == "redis.tls") {
    const std::string also = key == "certificate_file" ? ", key_file: /k"
                             : key == "key_file"       ? ", certificate_file: /c"
                                                       : "";
    text = "redis: {addresses: \"h:1\", tls: {" + pair + also + "}}\nrules: []";
  } else if (section == "rules[]" && (key == "name" || key == "key")) {
    text = "rules:\n  - " + pair + "\n    limit: 1/s\n    " +
           (key == "name" ? "key: [u]" : "name: aa");
  } else if (section == "rules[]") {
    const std::string also = key == "max_delay"   ? "\n    algorithm: leaky_bucket"
                             : key == "algorithm" ? "\n    max_delay: 1s"
                             : key == "wait"      ? "\n    consistency: strict"
                             : key == "candidate" ? "\n    burst: 1"
                                                  : "";
    const bool is_limit = key == "limit" || key == "in_flight";
    text = named + (is_limit ? "" : "limit: 1/s\n    ") + pair + also;
  } else if (section == "rules[].calendar") {
    const std::string per = key == "anchor_month" ? "year" : key == "week_start" ? "week" : "month";
    text =
        named + "limit: 10/" + per + "\n    algorithm: fixed_window\n    calendar: {" + pair + "}";
  } else if (section == "rules[].soft") {
    text = named + "limit: 10/s\n    soft: {" + pair + "}";
  } else if (section == "rules[].priority") {
    const std::string classes =
        key == "classes" ? "" : "classes: {critical: 1, normal: 0.8, sheddable: 0.5}, ";
    text = named + "limit: 10/s\n    priority: {" + classes + pair + "}";
  } else if (section == "rules[].candidate") {
    const std::string leaky =
        key == "max_delay" ? "algorithm: leaky_bucket\n    max_delay: 1s\n    " : "";
    text = named + leaky + "limit: 9999/s\n    burst: 9999\n    cost: 1\n    candidate: {" +
           (key == "limit" ? "" : "limit: 9999/s, ") + pair + "}";
  } else if (section == "rules[].override") {
    const std::string also = key == "max" ? "" : ", max: 1000";
    text = named + "limit: 10/s\n    override: {" + pair + also + "}";
  } else if (section == "rules[].penalty") {
    const std::string also = key == "after" ? ", for: 1h"
                             : key == "for" ? ", after: 20 per 10s"
                                            : "";
    text = named + "limit: 10/s\n    penalty: {" + pair + also + "}";
  } else if (section == "rules[].tiers.*") {
    text = named + (key == "max_delay" ? "algorithm: leaky_bucket\n    " : "") + "tiers: {t: {" +
           (key == "limit" || key == "in_flight" ? "" : "limit: 9999/s, ") +
           (key == "candidate" ? "burst: 9999, " : "") + pair + "}}";
  } else if (section == "rules[].when_degraded") {
    const std::string also = key == "for" ? ", then: open" : key == "then" ? ", for: 1s" : "";
    text = named + "limit: 1/s\n    when_degraded: {" + pair + also + "}";
  } else {
    ADD_FAILURE() << spec.path;
  }
  return text;
}

TEST(ReferenceTest, ExamplesAreValuesThatTheParserTakes) {
  for (const KeySpec& spec : AllKeys()) {
    if (spec.example.empty()) continue;
    const std::string text = TextWith(spec);
    const ParseResult result = ParseConfig(text, "t.yaml");
    EXPECT_TRUE(result.ok()) << text << "\n" << result.problems[0].ToString();
  }
}

}  // namespace
}  // namespace sluice::config
