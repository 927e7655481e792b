// The memory orders of the slot protocol: every scenario is clean as the code stands, and each
// order that carries a promise is missed when it is weaker.
#include <gtest/gtest.h>

#include <cstdio>

#include "tests/weak/scenarios.h"

namespace sluice::weak {
namespace {

using model::Exploration;

constexpr uint64_t kMaxStates = 6'000'000;
constexpr auto kRelaxed = std::memory_order_relaxed;
constexpr auto kAcquire = std::memory_order_acquire;
constexpr auto kRelease = std::memory_order_release;
constexpr auto kAcqRel = std::memory_order_acq_rel;
constexpr auto kSeqCst = std::memory_order_seq_cst;

Exploration Explore(const Named& named, uint64_t max_states) {
  Staged staged = named.make();
  return model::Explorer(std::move(staged.scenario)).Run(max_states);
}

// With one site's order weakened.
Exploration ExploreWeakened(const Named& named, Site& site, std::memory_order order,
                            uint64_t max_states) {
  site.weakened = order;
  Exploration e = Explore(named, max_states);
  site.weakened.reset();
  return e;
}

const Named& ScenarioOf(const std::string& name) {
  for (const Named& named : kScenarios) {
    if (named.name == name) return named;
  }
  ADD_FAILURE() << "no scenario " << name;
  return kScenarios.front();
}

class SlotOrders : public testing::TestWithParam<Named> {};

TEST_P(SlotOrders, AreStrongEnough) {
  const Exploration e = Explore(GetParam(), kMaxStates);
  EXPECT_EQ(e.failure, "") << "schedule " << e.schedule;
  EXPECT_TRUE(e.complete) << "bound reached";
  EXPECT_GT(e.ends, 1u) << "nothing was left to chance";
  printf("%s: %lu states, %lu ends\n", GetParam().name, e.states, e.ends);
}

std::string TestName(const testing::TestParamInfo<Named>& info) {
  std::string name = info.param.name;
  for (char& c : name) c = c == ' ' ? '_' : c;
  return name;
}

INSTANTIATE_TEST_SUITE_P(All, SlotOrders, testing::ValuesIn(kScenarios), TestName);

// One step weaker than the code has it (a read-modify-write that is acq_rel has two), and where
// that is found.
struct Mutant {
  const char* site;
  std::memory_order order;
  const char* scenario;
};
constexpr Mutant kMutants[] = {
    // I2: word, then key; step 4 publishes the key.
    {"LookSlot word.load", kRelaxed, "eviction under a spender"},
    {"Finish word.cas", kAcquire, "eviction under a spender"},
    {"Finish word.cas", kRelaxed, "eviction under a spender"},
    {"RefundSlot word.load", kRelaxed, "late refund"},
    {"FoldWord word.load", kRelaxed, "late fold"},
    // I5: of two claimers one sees the other.
    {"Claim key.cas", kAcqRel, "two claimers of one key"},
    {"WinnerOf key.load", kAcquire, "two claimers of one key"},
    // Use and its flag against the take.
    {"CountUse used.add", kAcqRel, "take against spend"},
    {"CountUse aux.load", kAcquire, "take against spend"},
    {"ClearDirty aux.and", kAcqRel, "take against spend"},
    {"TakeUse used.load", kAcquire, "take against spend"},
    {"CountDenied denied.cas", kAcqRel, "take against denial"},
    {"CountDenied aux.load", kAcquire, "take against denial"},
    {"ClearDirty aux.and", kAcqRel, "take against denial"},
    {"TakeDenied denied.load", kAcquire, "take against denial"},
    // A tenancy is handed on with the mark of whoever marks its slot.
    {"SetAux aux.cas", kAcquire, "take after a foreign mark"},
    // The text before its tag.
    {"StoreText tag.store", kRelaxed, "text under its tag"},
    {"LoadText tag.load", kRelaxed, "text under its tag"},
    // W2: the second word, then the word.
    {"ReadPair word.load", kRelaxed, "two begin a window"},
    {"Commit word.cas", kAcquire, "two begin a window"},
    // L3: who takes sees the other's name, or the other sees what was taken.
    {"Take entry.cas", kAcqRel, "duplicate log"},
    {"IsAlone key.load", kAcquire, "duplicate log"},
    {"MoveEntries entry.load", kAcquire, "duplicate log"},
};

TEST(SlotOrderMutants, EachIsFound) {
  for (const Mutant& mutant : kMutants) {
    const Named& named = ScenarioOf(mutant.scenario);
    const Exploration as_it_is = Explore(named, 1000);  // meets the scenario's sites
    ASSERT_EQ(as_it_is.failure, "");
    const auto site = Sites().find(mutant.site);
    ASSERT_NE(site, Sites().end()) << mutant.site << " is not there any more";
    ASSERT_NE(site->second.order, mutant.order) << mutant.site << " is as weak as its mutant";
    const Exploration e = ExploreWeakened(named, site->second, mutant.order, kMaxStates);
    EXPECT_NE(e.failure, "") << mutant.site << " survived";
  }
}

// For people, with --gtest_also_run_disabled_tests: every order of the protocol weakened, one at a
// time, and who finds it. Those that nobody finds may be stronger than they need be, or promise
// something that no scenario looks at.
constexpr uint64_t kSweepStates = 400'000;

const char* NameOf(std::memory_order order) {
  switch (order) {
    case kRelaxed:
      return "relaxed";
    case kAcquire:
      return "acquire";
    case kRelease:
      return "release";
    case kAcqRel:
      return "acq_rel";
    default:
      return "seq_cst";
  }
}

std::vector<std::memory_order> WeakerThan(const Site& site) {
  if (site.order == kRelaxed) return {};
  if (site.name.ends_with(".load")) {
    return site.order == kSeqCst ? std::vector{kAcquire, kRelaxed} : std::vector{kRelaxed};
  }
  if (site.name.ends_with(".store")) {
    return site.order == kSeqCst ? std::vector{kRelease, kRelaxed} : std::vector{kRelaxed};
  }
  return site.order == kSeqCst ? std::vector{kAcqRel, kAcquire, kRelease, kRelaxed}
                               : std::vector{kAcquire, kRelease, kRelaxed};
}

TEST(SlotOrderMutants, DISABLED_Sweep) {
  for (const Named& named : kScenarios) Explore(named, kSweepStates);
  for (auto& [name, site] : Sites()) {
    if (!site.is_production) continue;
    for (const std::memory_order order : WeakerThan(site)) {
      std::string found;
      for (const Named& named : kScenarios) {
        const Exploration e = ExploreWeakened(named, site, order, kSweepStates);
        if (!e.failure.empty()) found += std::string("; ") + named.name + ": " + e.failure;
      }
      printf("%s %s -> %s%s\n", name.c_str(), NameOf(site.order), NameOf(order),
             found.empty() ? "; nobody" : found.c_str());
    }
  }
}

}  // namespace
}  // namespace sluice::weak
