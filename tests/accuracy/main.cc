// Runs scenarios and prints one JSON object a line for each run. scripts/accuracy makes the table.
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <string_view>
#include <vector>

#include "lua_scripts.h"
#include "tests/accuracy/fleet.h"

namespace sluice::accuracy {
namespace {

struct Words {
  uint64_t seeds = 1;
  uint64_t seed = 1;
  std::string scenario;
  std::string script;  // empty: the scheme's
  std::vector<Scheme> schemes = {Scheme::kStrict};
  bool list = false;
  bool series = false;
};

bool ParseScheme(std::string_view value, std::vector<Scheme>* schemes) {
  if (value == "all") {
    *schemes = {Scheme::kStrict, Scheme::kOverdraft, Scheme::kApproximate};
  } else if (value == "strict") {
    *schemes = {Scheme::kStrict};
  } else if (value == "approximate") {
    *schemes = {Scheme::kApproximate};
  } else if (value == "overdraft") {
    *schemes = {Scheme::kOverdraft};
  } else {
    return false;
  }
  return true;
}

bool Parse(int argc, char** argv, Words* words) {
  for (int i = 1; i < argc; ++i) {
    const std::string_view name = argv[i];
    if (name == "--list" || name == "--series") {
      (name == "--list" ? words->list : words->series) = true;
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
    } else if (name == "--scheme") {
      if (!ParseScheme(value, &words->schemes)) return false;
    } else if (name == "--script") {
      std::ifstream in(value);
      words->script.assign(std::istreambuf_iterator<char>(in), {});
      if (words->script.empty()) return false;
    } else {
      return false;
    }
  }
  return words->seeds > 0;
}

const char* NameOf(Scheme scheme) {
  switch (scheme) {
    case Scheme::kStrict:
      return "strict";
    case Scheme::kOverdraft:
      return "overdraft";
    case Scheme::kApproximate:
      break;
  }
  return "approximate";
}

std::string ScriptOf(const Words& words, Scheme scheme) {
  if (!words.script.empty()) return words.script;
  return scheme == Scheme::kApproximate ? lua::kFold : lua::kLease;
}

unsigned long long Wide(uint64_t n) { return n; }

void PrintBins(const char* name, const std::vector<Bin>& bins, uint64_t Bin::*of) {
  printf(", \"%s\": [", name);
  for (size_t i = 0; i < bins.size(); ++i) printf("%s%llu", i == 0 ? "" : ", ", Wide(bins[i].*of));
  printf("]");
}

void Print(const Scenario& scenario, Scheme scheme, uint64_t seed, const Result& r, bool series) {
  printf(
      "{\"scenario\": \"%s\", \"scheme\": \"%s\", \"seed\": %llu, \"over_1s_percent\": %.4f, "
      "\"over_10s_percent\": %.4f, \"over_tokens\": %llu, \"used_percent\": %.4f, "
      "\"calls_per_s_host\": %.4f, \"admitted\": %llu, \"executed\": %llu, "
      "\"may_be_over\": %llu",
      scenario.name.c_str(), NameOf(scheme), Wide(seed), r.over_1s_percent, r.over_10s_percent,
      Wide(r.over_tokens), r.used_percent, r.calls_per_s_host, Wide(r.admitted), Wide(r.executed),
      Wide(scenario.limit_per_s * (r.set_forward_ns / kMilliNs) / 1000));
  if (series) {
    printf(", \"limit_per_s\": %llu, \"burst\": %llu, \"bin_ms\": %llu", Wide(scenario.limit_per_s),
           Wide(scenario.burst), Wide(kBinNs / kMilliNs));
    PrintBins("asked", r.bins, &Bin::asked);
    PrintBins("allowed", r.bins, &Bin::admitted);
    PrintBins("perfect", r.bins, &Bin::perfect);
  }
  printf("}\n");
  fflush(stdout);
}

// False where the run itself is at fault.
bool RunOne(const Scenario& scenario, uint64_t seed, const Words& words) {
  for (const Scheme scheme : words.schemes) {
    const Result result = Fleet(scenario, scheme, seed, ScriptOf(words, scheme)).Run();
    if (!result.fault.empty()) {
      fprintf(stderr, "%s, %s, seed %llu: %s\n", scenario.name.c_str(), NameOf(scheme), Wide(seed),
              result.fault.c_str());
      return false;
    }
    Print(scenario, scheme, seed, result, words.series);
  }
  return true;
}

int Main(int argc, char** argv) {
  Words words;
  if (!Parse(argc, argv, &words)) {
    fprintf(stderr,
            "accuracy [--list] [--scheme strict|approximate|overdraft|all] [--seeds N] [--seed S] "
            "[--scenario NAME] [--script FILE] [--series]\n");
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
      if (!RunOne(scenario, seed, words)) return 1;
    }
  }
  if (!known && !words.list) fprintf(stderr, "no scenario is named %s\n", words.scenario.c_str());
  return known || words.list ? 0 : 2;
}

}  // namespace
}  // namespace sluice::accuracy

int main(int argc, char** argv) { return sluice::accuracy::Main(argc, argv); }
