// Torture of the slot protocol alone: processes forked over one small crowded table check random
// keys as clients do, one harvests and sweeps as the daemon does, and all are killed at random
// moments and forked anew. Needs shm/ and the C library only, so that it compiles for any machine.
//
//   slot_torture --kills N --seed S [--kind 0|1|2|4]
//
// --kind 1, 2 or 4: the hot keys are fixed or sliding windows or sliding logs, and so is a part of
// those that come and go, among token buckets: slots pass from one kind to another.
//
// At the end it judges: no key over its bound, use counted as often as admitted (kills aside),
// every slot usable again, nobody hung. Prints the figures; the exit status is 0 if all hold.
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <iterator>

#include "shm/bucket.h"
#include "shm/clock.h"
#include "shm/hash.h"
#include "shm/log_slot.h"
#include "shm/slot_table.h"
#include "shm/take.h"
#include "shm/window_slot.h"

namespace sluice {
namespace {

using Word = std::atomic<uint64_t>;
using Table = shm::SlotTable<Word>;
using shm::MonotonicClock;

constexpr uint64_t kSlots = 64;  // one word of dirty bits
// Hot keys are always at their limit. The others come and go: a window over them moves with the
// time, so that those behind it expire and are pushed out.
constexpr uint32_t kHotKeys = 2;
constexpr uint32_t kKeys = 4096;
constexpr uint32_t kWindow = 16;
constexpr uint64_t kWindowStepNs = 50'000;
constexpr uint32_t kWorkers = 3;
constexpr uint32_t kProcesses = kWorkers + 1;  // the last one is the daemon
constexpr uint64_t kBurst = 20;
constexpr uint64_t kGraceNs = 500'000;
constexpr uint64_t kStalledClaimNs = 100'000;
constexpr int kSweepEvery = 16;      // harvests
constexpr int kStopEvery = 64;       // kills: then one is stopped for longer than the grace
constexpr int kWaitSteps = 100'000;  // of about 100 us, until who does not get on is called hung

const shm::Limit kHotLimit = shm::MakeLimit(1000, 1'000'000'000, kBurst);
const shm::Limit kRareLimit = shm::MakeLimit(100'000, 1'000'000'000, 1);
// As many at once, and about as many in the long run.
constexpr uint64_t kWindowNs = 20'000'000;
const shm::Limit kHotWindow = shm::window::MakeLimit(kBurst, kWindowNs);
const shm::Limit kRareWindow = shm::window::MakeLimit(1, 1'000'000);
constexpr uint32_t kRareWindowEvery = 16;
const shm::Limit kHotLog = shm::logs::MakeLimit(kBurst, kWindowNs);
const shm::Limit kRareLog = shm::logs::MakeLimit(1, 1'000'000);
constexpr shm::LogShape kLogs = {kSlots, 32};

struct Shared {
  shm::Slot slots[kSlots];
  Word second[kSlots];
  Word log_entries[kSlots * kLogs.entries];
  Word dirty[1];
  Word counters[2][shm::kCounters];  // of hot keys, of the others
  // What the processes did, each noted right after it was done.
  Word admitted[kKeys];
  Word overflows;  // checks that found no slot
  Word taken;      // wraps below zero
  Word taking;     // what the daemon's take may have taken that `taken` does not know yet
  Word rounds[kProcesses];
  Word stop;
};

Shared* shared;
shm::Kind hot_kind = shm::Kind::kTokenBucket;

uint64_t HashOf(uint32_t key) {
  uint64_t state = 0x5eed'0000 + key;
  return shm::SplitMix64(state);
}
bool IsHot(uint32_t key) { return key < kHotKeys; }
shm::Kind KindOf(uint32_t key) {
  return IsHot(key) || key % kRareWindowEvery == 0 ? hot_kind : shm::Kind::kTokenBucket;
}
const shm::Limit& LimitOf(uint32_t key) {
  if (shm::IsWindow(KindOf(key))) return IsHot(key) ? kHotWindow : kRareWindow;
  if (KindOf(key) == shm::Kind::kSlidingLog) return IsHot(key) ? kHotLog : kRareLog;
  return IsHot(key) ? kHotLimit : kRareLimit;
}
Table TableFor(uint32_t key) {
  Word* const counters = shared->counters[IsHot(key) ? 0 : 1];
  if (key < kKeys && KindOf(key) == shm::Kind::kSlidingLog) {
    return Table::OfLogs(shared->slots, kLogs, counters, shared->log_entries,
                         shm::logs::TermsOf(LimitOf(key)));
  }
  return {shared->slots, kSlots, counters};
}
Table::Env EnvAt(uint64_t now_ns) {
  return {now_ns, kGraceNs, kHotLimit.tau_ns + kHotLimit.debt_max_ns};
}

// As a check takes it: each fourth is of a class that leaves part of the bucket.
shm::Limit LimitFor(uint32_t key) {
  static thread_local uint32_t checks = 0;
  const bool is_floored = ++checks % 4 == 0;
  return shm::Floored(LimitOf(key), is_floored ? 0x6000 : 0, KindOf(key));
}

// One check, as a client's long way makes it.
void Check(uint32_t key) {
  const uint64_t hash = HashOf(key);
  Table table = TableFor(key);
  for (int restart = 0; restart < shm::kMaxRestarts; ++restart) {
    uint32_t slot = table.Find(hash);
    if (slot != shm::kNoSlot) {
      const uint64_t w = shared->slots[slot].word.load(std::memory_order_acquire);
      if (shm::word::IsDead(w)) {
        table.Settle(slot, w, MonotonicClock::PreciseNs());
        slot = shm::kNoSlot;
      }
    }
    const bool is_log = KindOf(key) == shm::Kind::kSlidingLog;
    if (is_log && slot != shm::kNoSlot && !table.IsAlone(hash, slot)) {
      table.ResolveDuplicates(hash, EnvAt(MonotonicClock::PreciseNs()));
      slot = shm::kNoSlot;
    }
    if (slot == shm::kNoSlot) {
      bool claimed;
      slot = table.FindOrClaim(hash, KindOf(key), 0, EnvAt(MonotonicClock::PreciseNs()), &claimed);
    }
    if (slot == shm::kNoSlot) break;
    shm::RequestTime<MonotonicClock> time(false, 0);
    shm::Seen seen;
    const shm::Limit limit = LimitFor(key);
    const shm::Charge charge{.cost_ns = limit.interval_ns,
                             .tau_ns = limit.tau_ns,
                             .debt_max_ns = limit.debt_max_ns,
                             .tokens = 1,
                             .dearer_q16 = 0,
                             .admit_always = false,
                             .commit = true,
                             .kind = KindOf(key),
                             .limit = &limit};
    const uint64_t fp = shm::FingerprintOf(hash);
    const shm::Outcome outcome =
        is_log ? shm::logs::CheckLog<Word>(table, slot, hash, nullptr, charge, restart % 2 == 0,
                                           time, &seen)
        : shm::IsWindow(charge.kind)
            ? shm::window::CheckWindow(shared->slots[slot], &shared->second[slot], fp, charge, time,
                                       table, &seen)
            : shm::CheckSlot(shared->slots[slot], fp, charge, time, table, &seen);
    if (outcome == shm::Outcome::kLost) continue;
    if (outcome == shm::Outcome::kAllowed) {
      shm::AddUse(shared->slots[slot], shared->dirty, slot, 1);
      shared->admitted[key].fetch_add(1, std::memory_order_relaxed);
    }
    return;
  }
  shared->overflows.fetch_add(1, std::memory_order_relaxed);
}

uint32_t SomeKey(uint64_t& random) {
  const uint64_t r = shm::SplitMix64(random);
  if (r % 2 == 0) return static_cast<uint32_t>((r >> 8) % kHotKeys);
  const uint64_t at = MonotonicClock::PreciseNs() / kWindowStepNs + (r >> 8) % kWindow;
  return static_cast<uint32_t>(kHotKeys + at % (kKeys - kHotKeys));
}

void Work(uint32_t self, uint64_t seed) {
  while (shared->stop.load(std::memory_order_relaxed) == 0) {
    Check(SomeKey(seed));
    shared->rounds[self].fetch_add(1, std::memory_order_relaxed);
  }
}

void Take(uint32_t slot) {
  shm::Slot& s = shared->slots[slot];
  const uint64_t key = s.key.load(std::memory_order_acquire);
  if (shm::key::Fp(key) == 0) return;
  const int64_t about = shm::used::Count(s.used.load(std::memory_order_relaxed));
  // Some more may be added until the take.
  shared->taking.store(static_cast<uint64_t>(std::max<int64_t>(about, 0)) + kBurst);
  const int64_t count = shm::TakeUse(s, key);
  shared->taken.fetch_add(static_cast<uint64_t>(count), std::memory_order_relaxed);
  shared->taking.store(0);
}

void Sweep() {
  const uint64_t now_ns = MonotonicClock::PreciseNs();
  for (uint32_t i = 0; i < kSlots; ++i) {
    shm::Slot& s = shared->slots[i];
    const uint64_t w = s.word.load(std::memory_order_acquire);
    if (shm::word::IsDead(w)) {
      if (shm::word::DeadTimeUs(w) * 1000 + kStalledClaimNs < now_ns) {
        TableFor(kKeys).Settle(i, w, now_ns);
      }
    } else if (shm::used::Count(s.used.load(std::memory_order_relaxed)) != 0) {
      shm::ClearDirty(s);
      Take(i);
    }
  }
  // The others' duplicates expire before it is their turn.
  for (uint32_t key = 0; key < kHotKeys; ++key) {
    TableFor(key).ResolveDuplicates(HashOf(key), EnvAt(now_ns));
  }
}

void Harvest(uint32_t self) {
  for (int round = 0; shared->stop.load(std::memory_order_relaxed) == 0; ++round) {
    uint64_t bits = shm::TakeDirty(shared->dirty[0]);
    for (; bits != 0; bits &= bits - 1) {
      const uint32_t slot = static_cast<uint32_t>(__builtin_ctzll(bits));
      shm::ClearDirty(shared->slots[slot]);
      Take(slot);
    }
    if (round % kSweepEvery == 0) Sweep();
    shared->rounds[self].fetch_add(1, std::memory_order_relaxed);
  }
}

class Torture {
 public:
  explicit Torture(uint64_t seed) : random_(seed) {}
  ~Torture() {
    for (uint32_t i = 0; i < kProcesses; ++i) Kill(i);
  }

  bool Run(uint64_t kills) {
    const uint64_t begun_ns = MonotonicClock::PreciseNs();
    for (uint32_t i = 0; i < kProcesses; ++i) {
      if (!Fork(i)) return false;
    }
    for (uint64_t kill = 0; kill < kills; ++kill) {
      const uint32_t victim = SomebodyAtWork();
      if (victim == kProcesses) return Fail("nobody gets on");
      if (kill % kStopEvery == 0) {
        ::kill(pids_[victim], SIGSTOP);
        usleep(2 * kGraceNs / 1000);
        ::kill(pids_[victim], SIGCONT);
      }
      Kill(victim);
      if (victim == kWorkers) {
        ++daemon_kills_;
        uncertain_ += shared->taking.exchange(0);
      } else {
        ++kills_;
      }
      if (!Fork(victim)) return false;
    }
    for (uint32_t i = 0; i < kProcesses; ++i) {
      if (!AwaitRounds(i, 2)) return false;  // nobody waits for the dead
    }
    if (!StopAll()) return false;
    elapsed_ns_ = MonotonicClock::PreciseNs() - begun_ns;
    const bool within = NoKeyIsOverItsBound();
    const bool counted = UseIsCounted();
    const bool once = EveryKeyStandsOnce();
    return EverySlotIsUsable() && within && counted && once;
  }

 private:
  bool Fork(uint32_t i) {
    const uint64_t seed = shm::SplitMix64(random_);
    const pid_t parent = getpid();
    pids_[i] = fork();
    if (pids_[i] < 0) return Fail("fork failed");
    if (pids_[i] == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
      if (getppid() != parent) _exit(1);
      if (i == kWorkers) {
        Harvest(i);
      } else {
        Work(i, seed);
      }
      _exit(0);
    }
    return true;
  }

  void Kill(uint32_t i) {
    if (pids_[i] <= 0) return;
    kill(pids_[i], SIGKILL);
    waitpid(pids_[i], nullptr, 0);
    pids_[i] = 0;
  }

  // One that runs on a processor just now, so that the kill meets it in the midst of something.
  uint32_t SomebodyAtWork() {
    for (int step = 0; step < kWaitSteps; ++step) {
      uint64_t before[kProcesses];
      for (uint32_t i = 0; i < kProcesses; ++i) before[i] = shared->rounds[i].load();
      usleep(static_cast<useconds_t>(20 + shm::SplitMix64(random_) % 200));
      const uint32_t first = static_cast<uint32_t>(shm::SplitMix64(random_) % kProcesses);
      for (uint32_t i = 0; i < kProcesses; ++i) {
        const uint32_t candidate = (first + i) % kProcesses;
        if (shared->rounds[candidate].load() != before[candidate]) return candidate;
      }
    }
    return kProcesses;
  }

  // Until the process has gone round so often. No usual wait takes more than a few steps.
  bool AwaitRounds(uint32_t i, uint64_t rounds) {
    const uint64_t end = shared->rounds[i].load(std::memory_order_relaxed) + rounds;
    for (int step = 0; step < kWaitSteps; ++step) {
      if (shared->rounds[i].load(std::memory_order_relaxed) >= end) return true;
      usleep(100);
    }
    return Fail(i == kWorkers ? "the daemon hangs" : "a check hangs");
  }

  bool StopAll() {
    shared->stop.store(1);
    for (uint32_t i = 0; i < kProcesses; ++i) {
      int status = 0;
      int step = 0;
      while (waitpid(pids_[i], &status, WNOHANG) == 0) {
        if (++step == kWaitSteps) return Fail("a process does not stop");
        usleep(100);
      }
      pids_[i] = 0;
      if (status != 0) return Fail("a process ended badly");
    }
    return true;
  }

  // Rate and burst, and one more burst for each killed duplicate insert: at most one per kill.
  bool NoKeyIsOverItsBound() {
    uint64_t hottest = 0;
    for (uint32_t i = 0; i < kHotKeys; ++i) {
      hottest = std::max(hottest, shared->admitted[i].load());
    }
    // A window that begins at the start, and one that has not ended.
    const bool is_bucket = hot_kind == shm::Kind::kTokenBucket;
    const uint64_t usual = is_bucket ? elapsed_ns_ / kHotLimit.interval_ns + kBurst
                                     : (elapsed_ns_ / kWindowNs + 2) * kBurst;
    const uint64_t bound = usual + kBurst * kills_;
    const auto hot_duplicates = static_cast<uint32_t>(shm::Counter::kDuplicates);
    const uint64_t emptied = shared->counters[0][hot_duplicates].load();
    printf(
        "%lu kills of workers, %lu of the daemon, in %.1f s; %lu claims, %lu found no slot, "
        "%lu duplicates emptied\n",
        kills_, daemon_kills_, static_cast<double>(elapsed_ns_) * 1e-9,
        CountOf(shm::Counter::kClaims), shared->overflows.load(),
        CountOf(shm::Counter::kDuplicates));
    printf("hottest key: %lu admitted; rate and burst %lu, bound %lu, %lu of its duplicates\n",
           hottest, usual, bound, emptied);
    if (hottest > bound) return Fail("a key is over its bound");
    // What a duplicate has served stays served.
    if (hot_kind == shm::Kind::kSlidingLog && hottest > usual)
      return Fail("a log is over its limit");
    // Whoever empties a duplicate counts it, unless killed just then.
    return hottest <= usual + kBurst * emptied || Fail("a hot key is over rate and burst");
  }

  // Each kill of a worker may lose its one cost or add it unseen, or lose what stood in the slot
  // that it was about to reuse or to empty: what a slot can gather between two takes, taken as a
  // burst. A kill of the daemon: what it was taking.
  bool UseIsCounted() {
    uint64_t admitted = 0;
    for (const Word& one : shared->admitted) admitted += one.load();
    int64_t left = 0;
    for (const shm::Slot& s : shared->slots) left += shm::used::Count(s.used.load());
    const uint64_t abandoned = CountOf(shm::Counter::kAbandonedUse);
    const uint64_t counted = shared->taken.load() + static_cast<uint64_t>(left) + abandoned;
    const int64_t lost = static_cast<int64_t>(admitted - counted);
    const int64_t may_lose = static_cast<int64_t>(kills_ * (1 + kBurst) + uncertain_);
    const int64_t may_gain = static_cast<int64_t>(kills_);
    printf("use: %lu admitted, %lu counted (%ld left, %lu abandoned): %ld lost; bounds -%ld, %ld\n",
           admitted, counted, left, abandoned, lost, may_gain, may_lose);
    return (lost >= -may_gain && lost <= may_lose) || Fail("use is not counted once");
  }

  bool EveryKeyStandsOnce() {
    const Table::Env env = EnvAt(MonotonicClock::PreciseNs());
    for (uint32_t key = 0; key < kKeys; ++key) {
      TableFor(key).ResolveDuplicates(HashOf(key), env);
      const uint64_t fp = shm::FingerprintOf(HashOf(key));
      const auto places =
          std::count_if(std::begin(shared->slots), std::end(shared->slots),
                        [fp](const shm::Slot& s) { return shm::key::Fp(s.key.load()) == fp; });
      if (places > 1) return Fail("a key stands in two slots");
    }
    return true;
  }

  // Long after: whatever stands in the slots has expired, and fresh keys find place in all of them.
  bool EverySlotIsUsable() {
    const uint64_t now_ns = MonotonicClock::PreciseNs() + 100 * (kHotLimit.debt_max_ns + kGraceNs);
    Table table = TableFor(kKeys);
    bool is_used[kSlots] = {};
    uint64_t usable = 0;
    for (uint32_t key = kKeys; key < kKeys + 100 * kSlots; ++key) {
      bool claimed;
      const uint32_t slot =
          table.FindOrClaim(HashOf(key), shm::Kind::kTokenBucket, 0, EnvAt(now_ns), &claimed);
      if (slot == shm::kNoSlot) continue;
      usable += is_used[slot] ? 0 : 1;
      is_used[slot] = true;
      // It is in use from now on.
      shared->slots[slot].word.store(now_ns + kHotLimit.tau_ns);
    }
    printf("%lu of %lu slots usable\n", usable, kSlots);
    return usable == kSlots || Fail("a slot is lost");
  }

  static uint64_t CountOf(shm::Counter counter) {
    const uint32_t i = static_cast<uint32_t>(counter);
    return shared->counters[0][i].load() + shared->counters[1][i].load();
  }
  static bool Fail(const char* what) {
    printf("FAILED: %s\n", what);
    return false;
  }

  uint64_t random_;
  pid_t pids_[kProcesses] = {};
  uint64_t kills_ = 0;
  uint64_t daemon_kills_ = 0;
  uint64_t uncertain_ = 0;
  uint64_t elapsed_ns_ = 0;
};

int Main(int argc, char** argv) {
  uint64_t kills = 1000;
  uint64_t seed = 1;
  for (int i = 1; i + 1 < argc; i += 2) {
    if (strcmp(argv[i], "--kills") == 0) kills = strtoull(argv[i + 1], nullptr, 10);
    if (strcmp(argv[i], "--seed") == 0) seed = strtoull(argv[i + 1], nullptr, 10);
    if (strcmp(argv[i], "--kind") == 0) {
      hot_kind = static_cast<shm::Kind>(strtoull(argv[i + 1], nullptr, 10));
    }
  }
  void* const memory =
      mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return 2;
  shared = static_cast<Shared*>(memory);
  for (shm::Slot& s : shared->slots) s.used.store(shm::used::Make(0, 0));
  setvbuf(stdout, nullptr, _IOLBF, 0);
  return Torture(seed).Run(kills) ? 0 : 1;
}

}  // namespace
}  // namespace sluice

int main(int argc, char** argv) { return sluice::Main(argc, argv); }
