// Whatever the bytes: no crash, no hang, no exception; a problem, or a configuration that compiles.
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <random>
#include <string>

#include "daemon/config/compile.h"
#include "daemon/config/parse.h"

namespace sluice::config {
namespace {

std::string Example() {
  const char* root = std::getenv("SLUICE_SOURCE_ROOT");
  std::ifstream file(std::string(root != nullptr ? root : ".") + "/systemd/sluice.yaml");
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

// The example without its comments: damage then hits what is parsed.
std::string BareExample() {
  std::string bare =
      "daemon: {runtime_dir: /run/s, buckets: 4096, group: g}\n"
      "redis:\n  addresses: [\"127.0.0.1:7000\", \"[::1]:7001\"]\n  flush_interval: 100ms\n";
  const std::string example = Example();
  for (size_t at = 0; at < example.size();) {
    const size_t end = example.find('\n', at);
    const std::string line = example.substr(at, end == std::string::npos ? end : end + 1 - at);
    const size_t first = line.find_first_not_of(" \n");
    if (first != std::string::npos && line[first] != '#') bare += line;
    at = end == std::string::npos ? example.size() : end + 1;
  }
  return bare;
}

// True when it was good.
bool SurvivesIt(const std::string& text) {
  const ParseResult result = ParseConfig(text, "t.yaml");
  for (const Problem& problem : result.problems) {
    EXPECT_FALSE(problem.what.empty());
    EXPECT_GE(problem.line, 0);
  }
  if (!result.ok()) return false;
  const auto bytes = Compile(result.config, shm::HashKey{}, 1);
  EXPECT_TRUE(bytes.ok()) << bytes.status() << "\n" << text;
  EXPECT_TRUE(!bytes.ok() || VerifyPolicy(*bytes).ok()) << text;
  return true;
}

TEST(BrokenYamlTest, SurvivesACutAtEveryByte) {
  const std::string example = BareExample();
  ASSERT_GT(example.size(), 500u) << "set SLUICE_SOURCE_ROOT";
  ASSERT_TRUE(SurvivesIt(example));
  int good = 0;
  for (size_t n = 0; n < example.size(); ++n) good += SurvivesIt(example.substr(0, n)) ? 1 : 0;
  EXPECT_LT(good, static_cast<int>(example.size()) / 2);
  EXPECT_FALSE(SurvivesIt("")) << "an editor's half-written file must not lift all limits";
}

TEST(BrokenYamlTest, SurvivesEveryByteReplaced) {
  const std::string example = BareExample();
  std::mt19937 random(1);
  const std::string tricky =
      "{}[]:,&*#?|-<>=!%@\\\"'`\n\t \x01\x04\x7f\x80\xff"
      "0aZ";
  for (size_t i = 0; i < example.size(); ++i) {
    std::string bad = example;
    bad[i] = tricky[random() % tricky.size()];
    SurvivesIt(bad);
  }
}

TEST(BrokenYamlTest, SurvivesRandomDamage) {
  const std::string example = BareExample();
  std::mt19937 random(2);
  const std::string tricky = "{}[]:,&*#?|-<>=!%@\\\"'`\n\t 0aZ";
  for (int i = 0; i < 1500; ++i) {
    std::string bad = example;
    for (uint32_t edit = random() % 6 + 1; edit > 0; --edit) {
      const size_t at = random() % bad.size();
      const size_t n = random() % 20;
      switch (random() % 4) {
        case 0:
          bad.erase(at, n);
          break;
        case 1:
          bad.insert(at, n % 4 + 1, tricky[random() % tricky.size()]);
          break;
        case 2:
          bad.insert(at, example, random() % example.size(), n);
          break;
        default:
          bad[at] = static_cast<char>(random());
      }
      if (bad.empty()) bad = "x";
    }
    SurvivesIt(bad);
  }
}

TEST(BrokenYamlTest, SurvivesRandomPiecesOfYaml) {
  const char* pieces[] = {"rules:", "redis:", "- ",          "name: ", "key: ",   "[",
                          "]",      "{",      "}",           ", ",     "\n",      "\n  ",
                          "\n    ", "&a ",    "*a",          "!!str ", "limit: ", "1/s",
                          "? ",     ": ",     "|\n",         ">\n",    "\"",      "'",
                          "---\n",  "...\n",  "%YAML 1.2\n", "<<: ",   "aa",      "tiers: ",
                          "# c\n",  "~",      "!<",          "! ",     "!a!b ",   "when_degraded: ",
                          "match: "};
  std::mt19937 random(3);
  for (int i = 0; i < 20'000; ++i) {
    std::string text;
    for (uint32_t n = random() % 24; n > 0; --n) text += pieces[random() % std::size(pieces)];
    SurvivesIt(text);
  }
}

}  // namespace
}  // namespace sluice::config
