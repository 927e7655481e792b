// Runs scenarios and prints one JSON object a line for each run. scripts/accuracy makes the table.
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <string_view>

#include "lua_scripts.h"
#include "tests/accuracy/fleet.h"

namespace sluice::accuracy {
namespace {

struct Words {
  uint64_t seeds = 1;
  uint64_t seed = 1;
  std::string scenario;
  std::string script = lua::kLease;
  bool list = false;
};

bool Parse(int argc, char** argv, Words* words) {
  for (int i = 1; i < argc; ++i) {
    const std::string_view name = argv[i];
    if (name == "--list") {
      words->list = true;
      continue;
    }
    if (i + 1 == argc) return false;
    const char* const value = argv[++i];
    if (name == "--seeds") {
      words->seeds = strtoull(value, nullptr, 10);
    } else if (name == "--seed") {
      words->seed = strtoull(value, nullptr, 10);
    } else if (name == "--scenario") {
      words->scenario = value;
    } else if (name == "--script") {
      std::ifstream in(value);
      words->script.assign(std::istreambuf_iterator<char>(in), {});
    } else {
      return false;
    }
  }
  return words->seeds > 0 && !words->script.empty();
}

void Print(const Scenario& scenario, uint64_t seed, const Result& r) {
  printf(
      "{\"scenario\": \"%s\", \"seed\": %llu, \"over_1s_percent\": %.4f, \"over_10s_percent\": "
      "%.4f, \"over_tokens\": %llu, \"used_percent\": %.4f, \"calls_per_s_host\": %.4f, "
      "\"admitted\": %llu, \"executed\": %llu}\n",
      scenario.name.c_str(), static_cast<unsigned long long>(seed), r.over_1s_percent,
      r.over_10s_percent, static_cast<unsigned long long>(r.over_tokens), r.used_percent,
      r.calls_per_s_host, static_cast<unsigned long long>(r.admitted),
      static_cast<unsigned long long>(r.executed));
  fflush(stdout);
}

int Main(int argc, char** argv) {
  Words words;
  if (!Parse(argc, argv, &words)) {
    fprintf(stderr, "accuracy [--list] [--seeds N] [--seed S] [--scenario NAME] [--script FILE]\n");
    return 2;
  }
  bool known = false;
  for (const Scenario& scenario : Scenarios()) {
    if (words.list) {
      printf("%s\n", scenario.name.c_str());
      continue;
    }
    if (!words.scenario.empty() && words.scenario != scenario.name) continue;
    known = true;
    for (uint64_t seed = words.seed; seed < words.seed + words.seeds; ++seed) {
      const Result result = Fleet(scenario, seed, words.script).Run();
      if (!result.fault.empty()) {
        fprintf(stderr, "%s, seed %llu: %s\n", scenario.name.c_str(),
                static_cast<unsigned long long>(seed), result.fault.c_str());
        return 1;
      }
      Print(scenario, seed, result);
    }
  }
  if (!known && !words.list) fprintf(stderr, "no scenario is named %s\n", words.scenario.c_str());
  return known || words.list ? 0 : 2;
}

}  // namespace
}  // namespace sluice::accuracy

int main(int argc, char** argv) { return sluice::accuracy::Main(argc, argv); }
