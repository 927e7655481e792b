// The weak memory itself, by the litmus tests that everybody knows: what the standard allows must
// be seen, what it forbids must not.
#include <gtest/gtest.h>

#include <set>

#include "tests/weak/weak_cell.h"

namespace sluice::weak {
namespace {

constexpr auto kRelaxed = std::memory_order_relaxed;
constexpr auto kAcquire = std::memory_order_acquire;
constexpr auto kRelease = std::memory_order_release;
constexpr auto kAcqRel = std::memory_order_acq_rel;
constexpr auto kSeqCst = std::memory_order_seq_cst;

struct Litmus {
  Cell x, y, z;
  uint64_t r[4] = {};
  std::string refused;

  // All outcomes of the registers, as "0101".
  std::set<std::string> Outcomes(std::vector<std::function<void()>> processes) {
    Memory memory({&x, &y, &z});
    std::set<std::string> outcomes;
    model::Scenario s;
    const size_t count = processes.size();
    s.processes = std::move(processes);
    s.max_kills = 0;
    s.reset = [&, count] {
      for (Cell* const cell : {&x, &y, &z}) cell->value = 0;
      for (uint64_t& value : r) value = 0;
      memory.Reset(count);
    };
    s.hash = [&] { return memory.Hash(); };
    s.check = [&](const std::vector<bool>&) -> std::string {
      std::string outcome;
      for (const uint64_t value : r) outcome += std::to_string(value);
      outcomes.insert(outcome);
      if (!memory.refused().empty()) refused = memory.refused();
      return "";
    };
    EXPECT_TRUE(model::Explorer(std::move(s)).Run(1'000'000).complete);
    return outcomes;
  }
};

using Strings = std::set<std::string>;

Strings MessagePassing(std::memory_order store, std::memory_order load) {
  Litmus l;
  return l.Outcomes({[&l, store] {
                       l.x.store(1, kRelaxed);
                       l.y.store(1, store);
                     },
                     [&l, load] {
                       l.r[0] = l.y.load(load);
                       l.r[1] = l.x.load(kRelaxed);
                     }});
}

TEST(WeakMemory, PassesMessagesByReleaseAndAcquireOnly) {
  EXPECT_EQ(MessagePassing(kRelease, kAcquire), (Strings{"0000", "0100", "1100"}));
  const Strings all = {"0000", "0100", "1000", "1100"};
  EXPECT_EQ(MessagePassing(kRelaxed, kAcquire), all);
  EXPECT_EQ(MessagePassing(kRelease, kRelaxed), all);
}

// Through a read-modify-write of a third process, relaxed: a release sequence.
TEST(WeakMemory, AReadModifyWriteHandsTheReleaseOn) {
  Litmus l;
  const Strings seen = l.Outcomes({[&l] {
                                     l.x.store(1, kRelaxed);
                                     l.y.store(1, kRelease);
                                   },
                                   [&l] { l.y.fetch_add(1, kRelaxed); },
                                   [&l] {
                                     l.r[0] = l.y.load(kAcquire);
                                     l.r[1] = l.x.load(kRelaxed);
                                   }});
  EXPECT_TRUE(seen.contains("2100"));
  EXPECT_FALSE(seen.contains("2000"));
  EXPECT_TRUE(seen.contains("1000")) << "the third process's own, before the release";
}

// Each adds to its own cell, then loads the other's: the shape of take against spend.
Strings StoreBuffer(std::memory_order add, std::memory_order load) {
  Litmus l;
  return l.Outcomes({[&l, add, load] {
                       l.x.fetch_add(1, add);
                       l.r[0] = l.y.load(load);
                     },
                     [&l, add, load] {
                       l.y.fetch_add(1, add);
                       l.r[1] = l.x.load(load);
                     }});
}

TEST(WeakMemory, BothMayMissEachOtherUnlessAllIsSeqCst) {
  EXPECT_EQ(StoreBuffer(kSeqCst, kSeqCst), (Strings{"0100", "1000", "1100"}));
  EXPECT_TRUE(StoreBuffer(kAcqRel, kSeqCst).contains("0000"));
  EXPECT_TRUE(StoreBuffer(kSeqCst, kAcquire).contains("0000"));
}

Strings IndependentReads(std::memory_order store, std::memory_order load) {
  Litmus l;
  return l.Outcomes({[&l, store] { l.x.store(1, store); }, [&l, store] { l.y.store(1, store); },
                     [&l, load] {
                       l.r[0] = l.x.load(load);
                       l.r[1] = l.y.load(load);
                     },
                     [&l, load] {
                       l.r[2] = l.y.load(load);
                       l.r[3] = l.x.load(load);
                     }});
}

TEST(WeakMemory, TwoReadersMayDisagreeUnlessAllIsSeqCst) {
  EXPECT_TRUE(IndependentReads(kRelease, kAcquire).contains("1010"));
  EXPECT_FALSE(IndependentReads(kSeqCst, kSeqCst).contains("1010"));
}

TEST(WeakMemory, WhatCausedAMessageComesWithIt) {
  Litmus l;
  const Strings seen = l.Outcomes({[&l] { l.x.store(1, kRelaxed); },
                                   [&l] {
                                     l.r[0] = l.x.load(kRelaxed);
                                     l.y.store(1, kRelease);
                                   },
                                   [&l] {
                                     l.r[1] = l.y.load(kAcquire);
                                     l.r[2] = l.x.load(kRelaxed);
                                   }});
  EXPECT_TRUE(seen.contains("1110"));
  EXPECT_FALSE(seen.contains("1100"));
}

TEST(WeakMemory, OneCellNeverGoesBack) {
  Litmus l;
  const Strings seen = l.Outcomes({[&l] {
                                     l.x.store(1, kRelaxed);
                                     l.x.store(2, kRelaxed);
                                   },
                                   [&l] {
                                     l.r[0] = l.x.load(kRelaxed);
                                     l.r[1] = l.x.load(kRelaxed);
                                   }});
  EXPECT_EQ(seen, (Strings{"0000", "0100", "0200", "1100", "1200", "2200"}));
}

TEST(WeakMemory, ReadModifyWritesLoseNothing) {
  Litmus l;
  const Strings seen = l.Outcomes({[&l] { l.r[0] = l.x.fetch_add(1, kRelaxed); },
                                   [&l] { l.r[1] = l.x.fetch_add(1, kRelaxed); }});
  EXPECT_EQ(seen, (Strings{"0100", "1000"}));
}

// A CAS that succeeds is the newest; one that fails may have read something old.
TEST(WeakMemory, AFailedCasMayHaveReadAnOldValue) {
  Litmus l;
  const Strings seen = l.Outcomes({[&l] { l.x.fetch_add(1, kRelease); },
                                   [&l] {
                                     uint64_t expected = 1;
                                     const bool done =
                                         l.x.compare_exchange_strong(expected, 5, kAcqRel);
                                     l.r[0] = expected;
                                     l.r[1] = done ? 1 : 0;
                                     l.r[2] = l.x.load(kRelaxed);
                                   }});
  EXPECT_EQ(seen, (Strings{"0000", "0010", "1150"}));
}

TEST(WeakMemory, RefusesWhatItCannotJudge) {
  Litmus l;
  l.Outcomes({[&l] { l.x.store(1, kRelaxed); }, [&l] { l.x.store(2, kRelaxed); }});
  EXPECT_EQ(l.refused, "plain stores race");
}

}  // namespace
}  // namespace sluice::weak
