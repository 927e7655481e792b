// Decides a trace with shm::Decide and, through a pipe, with another implementation; explains each
// decision in which either differs from a token bucket without rounding.
//
//   replay [--checks N] [--seed S] [--mutant NAME] ORACLE
//
// Three deciders see each check at the same state. The trace follows the oracle's decisions: what
// it allowed is spent in the exact bucket and in ours. Where ours said otherwise, our word is set
// to where the exact bucket stands, so no difference is the consequence of an earlier one. Beside
// that our side runs alone, on decisions of its own, against an exact bucket of its own.
//
// Prints one JSON object. Exits with 0 when all is explained, 1 when not, 2 when it could not run.
#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cinttypes>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string_view>
#include <vector>

#include "shm/gcra.h"
#include "tests/oracle/exact.h"
#include "tests/oracle/trace.h"

namespace sluice::oracle {
namespace {

constexpr uint32_t kKeys = 4096;
constexpr uint64_t kShownProblems = 10;
constexpr uint64_t kEdgeNs = 3;

// Seeded bugs on our side, to see that they are found.
enum class Mutant { kNone, kTauOfBurstPlusOne, kTauPlusOneNs, kCostPlusOneNs, kCostRoundedDown };
constexpr const char* kMutants[] = {"none", "tau_of_burst_plus_one", "tau_plus_one_ns",
                                    "cost_plus_one_ns", "cost_rounded_down"};

[[noreturn]] void Fail(const char* what) {
  fprintf(stderr, "replay: %s: %s\n", what, strerror(errno));
  _exit(2);
}

// The other implementation, as a child that ends when our end of its pipe closes.
class Oracle {
 public:
  explicit Oracle(const char* path) {
    int to[2];
    int from[2];
    if (pipe2(to, O_CLOEXEC) != 0 || pipe2(from, O_CLOEXEC) != 0) Fail("pipe");
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, to[0], STDIN_FILENO);
    posix_spawn_file_actions_adddup2(&actions, from[1], STDOUT_FILENO);
    char* const argv[] = {const_cast<char*>(path), nullptr};
    errno = posix_spawn(&pid_, path, &actions, nullptr, argv, environ);
    if (errno != 0) Fail(path);
    posix_spawn_file_actions_destroy(&actions);
    close(to[0]);
    close(from[1]);
    to_ = to[1];
    from_ = from[0];
  }
  Oracle(const Oracle&) = delete;
  Oracle& operator=(const Oracle&) = delete;
  ~Oracle() {
    close(to_);
    close(from_);
    waitpid(pid_, nullptr, 0);
  }

  void Send(const void* data, size_t size) {
    const char* at = static_cast<const char*>(data);
    while (size > 0) {
      const ssize_t n = write(to_, at, size);
      if (n <= 0) Fail("the oracle reads no more");
      at += n;
      size -= static_cast<size_t>(n);
    }
  }
  void Receive(uint8_t* data, size_t size) {
    while (size > 0) {
      const ssize_t n = read(from_, data, size);
      if (n <= 0) Fail("the oracle answers no more");
      data += n;
      size -= static_cast<size_t>(n);
    }
  }

 private:
  pid_t pid_ = 0;
  int to_ = -1;
  int from_ = -1;
};

// The production arithmetic on one word, and by how much it may be behind an exact bucket.
class Ours {
 public:
  Ours(const Numbers& numbers, Mutant mutant)
      : limit_(shm::MakeLimit(numbers.limit, numbers.period_ns, numbers.burst)), mutant_(mutant) {
    if (mutant == Mutant::kTauOfBurstPlusOne) {
      limit_.tau_ns = shm::MakeLimit(numbers.limit, numbers.period_ns, numbers.burst + 1).tau_ns;
    }
    if (mutant == Mutant::kTauPlusOneNs) ++limit_.tau_ns;
  }

  shm::Verdict Decide(const Check& check) const {
    return shm::Decide(word_ns_, check.now_ns, CostNs(check.cost), limit_.tau_ns);
  }
  void Store(const shm::Verdict& verdict, const Numbers& numbers, uint64_t cost) {
    word_ns_ = verdict.new_ns;
    behind_.Spend(numbers, cost);
  }
  // The word of the exact bucket, but for the rounding to whole ns.
  void Resync(const Numbers& numbers, const Bucket& exact) {
    const Units missing = FullUnits(numbers) - exact.level;
    const Units ahead_ns = CeilNs(numbers, missing);
    word_ns_ = exact.at_ns + static_cast<uint64_t>(ahead_ns);
    behind_.units = ahead_ns * numbers.limit - missing;
  }

  Behind& behind() { return behind_; }

 private:
  uint64_t CostNs(uint64_t tokens) const {
    const uint64_t cost_ns = tokens == 1
                                 ? limit_.interval_ns  // as the client has it: computed before
                                 : shm::CostNs(tokens, limit_.period_ns, limit_.limit);
    if (mutant_ == Mutant::kCostPlusOneNs) return cost_ns + 1;
    if (mutant_ == Mutant::kCostRoundedDown) {
      return static_cast<uint64_t>(static_cast<Units>(tokens) * limit_.period_ns / limit_.limit);
    }
    return cost_ns;
  }

  shm::Limit limit_;
  Mutant mutant_;
  uint64_t word_ns_ = 0;
  Behind behind_;
};

// How a decision stands to the exact one.
enum class Against { kRight, kStrict, kLenient, kFloat, kUnexplained };

// `margin` is what the exact bucket would be left with: it allows from 0 on.
Against JudgeOurs(bool allowed, Units margin, const Numbers& numbers, uint64_t cost,
                  const Behind& behind) {
  if (allowed == (margin >= 0)) return Against::kRight;
  if (allowed) return -margin <= WidestTau(numbers) ? Against::kLenient : Against::kUnexplained;
  // Behind, and this cost is rounded up too.
  const Units strict = behind.units + Behind::Rounding(numbers, cost);
  return margin < strict ? Against::kStrict : Against::kUnexplained;
}

// x/time/rate turns what is missing into a duration, cuts that to whole ns, and allows when it is
// 0: up to a nanosecond early. It keeps the debt, so this does not add up.
Against JudgeTheirs(bool allowed, Units margin, const Numbers& numbers, Units float_error) {
  if (allowed == (margin >= 0)) return Against::kRight;
  const Units ns = NsInUnits(numbers, 1);
  if (allowed && -margin < ns) return Against::kLenient;
  const bool within = allowed ? -margin <= ns + float_error : margin + ns <= float_error;
  return within ? Against::kFloat : Against::kUnexplained;
}

struct Key {
  Numbers numbers;
  Traffic traffic;
  Check check{};
  // The history of the oracle's decisions.
  Bucket exact;
  FloatError float_error;
  Ours ours;
  // The history of our own decisions.
  Bucket exact_alone;
  Ours alone;

  Key(Random& random, const Numbers& drawn, Mutant mutant)
      : numbers(drawn),
        traffic(random),
        exact{.level = FullUnits(drawn), .at_ns = traffic.now_ns()},
        float_error(drawn, traffic.now_ns()),
        ours(drawn, mutant),
        exact_alone(exact),
        alone(drawn, mutant) {}
};

struct Counts {
  uint64_t checks, allowed, near_edge;
  uint64_t equal_right, equal_off;
  uint64_t ours_strict, ours_lenient, theirs_early, theirs_float;
  uint64_t unexplained;
  uint64_t alone_allowed, alone_strict, alone_lenient, alone_unexplained;
  double most_behind_ns, most_float_error_ns;
  double most_of_float_error;  // the part of the bound that a difference needed
};

double ToNs(Units units, const Numbers& numbers) {
  return static_cast<double>(units) / static_cast<double>(numbers.limit);
}

// `theirs` is null where our side runs alone.
void Show(const Key& key, bool ours, const bool* theirs, Units margin) {
  fprintf(stderr,
          "unexplained: limit %" PRIu64 " per %" PRIu64 " ns, burst %" PRIu64 ", cost %" PRIu64
          " at %" PRIu64 " ns: ours %d, theirs %s, exact %d by %.6g ns (%.6g tokens)\n",
          key.numbers.limit, key.numbers.period_ns, key.numbers.burst, key.check.cost,
          key.check.now_ns, ours, theirs == nullptr ? "not asked" : (*theirs ? "1" : "0"),
          margin >= 0, ToNs(margin, key.numbers),
          static_cast<double>(margin) / static_cast<double>(key.numbers.period_ns));
}

void Compare(Key& key, bool theirs, Counts& counts) {
  const Numbers& numbers = key.numbers;
  const Check& check = key.check;
  const Units float_error = key.float_error.At(numbers, check.now_ns);
  key.ours.behind().Advance(key.exact.Advance(numbers, check.now_ns));
  const Units margin = key.exact.level - TokensInUnits(numbers, check.cost);
  const shm::Verdict verdict = key.ours.Decide(check);
  const Against our = JudgeOurs(verdict.allowed, margin, numbers, check.cost, key.ours.behind());
  const Against their = JudgeTheirs(theirs, margin, numbers, float_error);

  ++counts.checks;
  counts.allowed += theirs;
  counts.near_edge += std::max(margin, -margin) <= NsInUnits(numbers, kEdgeNs);
  counts.most_behind_ns = std::max(counts.most_behind_ns, ToNs(key.ours.behind().units, numbers));
  counts.most_float_error_ns = std::max(counts.most_float_error_ns, ToNs(float_error, numbers));
  if (our == Against::kUnexplained || their == Against::kUnexplained) {
    if (++counts.unexplained <= kShownProblems) {
      Show(key, verdict.allowed, &theirs, margin);
    }
  } else if (verdict.allowed == theirs) {
    ++(our == Against::kRight ? counts.equal_right : counts.equal_off);
  } else if (our != Against::kRight) {
    ++(our == Against::kStrict ? counts.ours_strict : counts.ours_lenient);
  } else if (their == Against::kLenient) {
    ++counts.theirs_early;
  } else {
    ++counts.theirs_float;
    const Units ns = NsInUnits(numbers, 1);
    const Units needed = theirs ? -margin - ns : margin + ns;
    counts.most_of_float_error = std::max(
        counts.most_of_float_error, static_cast<double>(needed) / static_cast<double>(float_error));
  }

  if (theirs) {
    key.exact.level = margin;
    key.float_error.Store(key.exact);
  }
  if (verdict.allowed != theirs) {
    key.ours.Resync(numbers, key.exact);
  } else if (theirs) {
    key.ours.Store(verdict, numbers, check.cost);
  }
}

void RunAlone(Key& key, Counts& counts) {
  const Numbers& numbers = key.numbers;
  const Check& check = key.check;
  key.alone.behind().Advance(key.exact_alone.Advance(numbers, check.now_ns));
  const Units margin = key.exact_alone.level - TokensInUnits(numbers, check.cost);
  const shm::Verdict verdict = key.alone.Decide(check);
  const Against our = JudgeOurs(verdict.allowed, margin, numbers, check.cost, key.alone.behind());
  counts.alone_allowed += verdict.allowed;
  counts.alone_strict += our == Against::kStrict;
  counts.alone_lenient += our == Against::kLenient;
  if (our == Against::kUnexplained && ++counts.alone_unexplained <= kShownProblems) {
    Show(key, verdict.allowed, nullptr, margin);
  }
  if (!verdict.allowed) return;
  key.exact_alone.level = margin;
  key.alone.Store(verdict, numbers, check.cost);
}

Counts Run(uint64_t checks, uint64_t seed, Mutant mutant, const char* path) {
  static_assert(sizeof(Numbers) == 24 && sizeof(Check) == 16, "as the oracle reads them");
  Random random(seed);
  std::vector<Key> keys;
  std::vector<Numbers> limits;
  keys.reserve(kKeys);
  for (uint32_t i = 0; i < kKeys; ++i) {
    limits.push_back(AnyLimit(random));
    keys.emplace_back(random, limits.back(), mutant);
  }
  Oracle oracle(path);
  const uint32_t count = kKeys;
  oracle.Send(&count, sizeof count);
  oracle.Send(limits.data(), limits.size() * sizeof(Numbers));

  Counts counts{};
  std::vector<Check> round(kKeys);
  std::vector<uint8_t> answers(kKeys);
  while (counts.checks < checks) {
    for (uint32_t i = 0; i < kKeys; ++i) {
      Key& key = keys[i];
      round[i] = key.check = key.traffic.Next(random, key.numbers, key.exact);
    }
    oracle.Send(round.data(), round.size() * sizeof(Check));
    // While the oracle decides.
    for (Key& key : keys) RunAlone(key, counts);
    oracle.Receive(answers.data(), answers.size());
    for (uint32_t i = 0; i < kKeys; ++i) Compare(keys[i], answers[i] != 0, counts);
  }
  return counts;
}

void Print(const Counts& c) {
  const struct {
    const char* name;
    uint64_t count;
  } rows[] = {
      {"checks", c.checks},
      {"allowed", c.allowed},
      {"within_3_ns_of_the_edge", c.near_edge},
      {"equal", c.equal_right + c.equal_off},
      {"equal_and_both_off", c.equal_off},
      {"differ_ours_denies_by_rounding_up", c.ours_strict},
      {"differ_ours_allows_by_wider_tau", c.ours_lenient},
      {"differ_theirs_allows_under_1_ns_early", c.theirs_early},
      {"differ_theirs_by_float64", c.theirs_float},
      {"unexplained", c.unexplained},
      {"alone_allowed", c.alone_allowed},
      {"alone_denied_by_rounding_up", c.alone_strict},
      {"alone_allowed_by_wider_tau", c.alone_lenient},
      {"alone_unexplained", c.alone_unexplained},
  };
  printf("{\n");
  for (const auto& row : rows) printf("  \"%s\": %" PRIu64 ",\n", row.name, row.count);
  printf("  \"most_ours_is_behind_ns\": %.3f,\n  \"most_float64_error_ns\": %.3f,\n",
         c.most_behind_ns, c.most_float_error_ns);
  printf("  \"most_of_the_float64_error_needed\": %.3f\n}\n", c.most_of_float_error);
}

Mutant MutantOf(std::string_view name) {
  for (size_t i = 0; i < std::size(kMutants); ++i) {
    if (name == kMutants[i]) return static_cast<Mutant>(i);
  }
  fprintf(stderr, "replay: no mutant of this name\n");
  exit(2);
}

}  // namespace
}  // namespace sluice::oracle

int main(int argc, char** argv) {
  namespace oracle = sluice::oracle;
  uint64_t checks = 1'000'000;
  uint64_t seed = 1;
  auto mutant = oracle::Mutant::kNone;
  int at = 1;
  for (; at + 1 < argc && strncmp(argv[at], "--", 2) == 0; at += 2) {
    const std::string_view option = argv[at];
    if (option == "--checks") {
      checks = strtoull(argv[at + 1], nullptr, 10);
    } else if (option == "--seed") {
      seed = strtoull(argv[at + 1], nullptr, 10);
    } else if (option == "--mutant") {
      mutant = oracle::MutantOf(argv[at + 1]);
    } else {
      break;
    }
  }
  if (at + 1 != argc) {
    fprintf(stderr, "replay [--checks N] [--seed S] [--mutant NAME] ORACLE\n");
    return 2;
  }
  signal(SIGPIPE, SIG_IGN);  // an oracle that ends early is told by the write
  const oracle::Counts counts = oracle::Run(checks, seed, mutant, argv[at]);
  oracle::Print(counts);
  return counts.unexplained + counts.alone_unexplained == 0 ? 0 : 1;
}
