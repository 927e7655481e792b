// A reference for sliding logs that remembers every request, and what tests of logs share. For
// requests of a class, a part of the limit is asked for.
#pragma once

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstdint>
#include <deque>
#include <utility>
#include <vector>

#include "shm/clock.h"
#include "shm/log.h"
#include "shm/log_slot.h"
#include "shm/slot_table.h"
#include "tests/shm/window_reference.h"

namespace sluice::shm {

using Cell = std::atomic<uint64_t>;
using Table = SlotTable<Cell>;

inline constexpr uint64_t kGraceNs = 2 * kSecond;
inline constexpr uint64_t kHash = 0x1234'5678'9abc'def0;

struct TestClock {
  static inline uint64_t now_ns = 0;
  static uint64_t PreciseNs() { return now_ns; }
  static uint64_t CoarseNs() { return now_ns; }
};

// What a request of so many tokens asks of a log.
inline Charge LogCharge(const Limit& limit, uint64_t tokens, uint32_t dearer_q16 = 0,
                        bool commit = true) {
  return {.cost_ns = 0,
          .tau_ns = limit.tau_ns,
          .debt_max_ns = limit.debt_max_ns,
          .tokens = tokens,
          .dearer_q16 = dearer_q16,
          .admit_always = false,
          .commit = commit,
          .kind = Kind::kSlidingLog,
          .limit = &limit};
}

// A small table of logs, and checks of one rule in it.
class Logs {
 public:
  Logs(uint64_t tokens, uint64_t period_ns, LogShape shape)
      : limit(logs::MakeLimit(tokens, period_ns)),
        shape_(shape),
        slots_(shape.rows),
        entries_(uint64_t{shape.rows} * shape.entries) {
    for (Slot& slot : slots_) slot.used = used::Make(0, 0);
  }

  Table table() {
    return Table::OfLogs(slots_.data(), shape_, counters_, entries_.data(), logs::TermsOf(limit));
  }
  Table::Env EnvAt(uint64_t now_ns) const {
    return {now_ns, kGraceNs, limit.tau_ns + limit.debt_max_ns};
  }

  // Finds or claims, and checks; what it said last is in `seen`.
  template <class Clock = TestClock>
  Outcome Ask(uint64_t tokens, uint64_t hash = kHash, bool brief = false, bool commit = true,
              Seen* out = nullptr) {
    Limit of_class = limit;
    of_class.burst = std::min(limit.burst, most);
    const Charge charge = LogCharge(of_class, tokens, dearer_q16, commit);
    Seen& s = out != nullptr ? *out : seen;
    for (int i = 0; i < kMaxRestarts; ++i) {
      RequestTime<Clock> time(false, 0);
      bool claimed = false;
      const Table t = table();
      index = table().FindOrClaim(hash, Kind::kSlidingLog, 0, EnvAt(time.now_ns()), &claimed);
      if (index == kNoSlot) return Outcome::kGaveUp;
      if (!t.IsAlone(hash, index)) {
        table().ResolveDuplicates(hash, EnvAt(time.now_ns()));
        continue;
      }
      const Outcome outcome = logs::CheckLog(t, index, hash, &second, charge, brief, time, &s);
      if (outcome != Outcome::kLost) return outcome;
    }
    return Outcome::kGaveUp;
  }
  bool Allows(uint64_t tokens) { return Ask(tokens) == Outcome::kAllowed; }
  bool Refund(uint64_t tokens, uint64_t spent_ns) {
    return logs::RefundLog(slots_[index], table().log_rows().of(index), 0,
                           key::Gen(slots_[index].key), spent_ns, static_cast<uint32_t>(tokens),
                           limit.period_ns, TestClock::now_ns);
  }

  Limit limit;
  uint64_t most = kNever;  // what the class of the requests may use
  uint32_t dearer_q16 = 0;
  uint32_t index = kNoSlot;
  Seen seen{};
  Cell second{0};
  LogShape shape_;
  std::vector<Slot> slots_;
  std::vector<Cell> entries_;
  Cell counters_[kCounters] = {};
};

inline uint32_t EntriesFor(uint64_t limit) {
  return std::max<uint32_t>(kMinLogEntries, std::bit_ceil(static_cast<uint32_t>(limit)));
}

// Remembers all that was taken and when, as the log rounds it.
struct Reference {
  uint64_t limit, period_ns;
  std::deque<std::pair<uint64_t, uint64_t>> taken;  // free again at, tokens

  uint64_t Live(uint64_t now) const {
    uint64_t live = 0;
    for (const auto& [free_ns, tokens] : taken) live += free_ns > now ? tokens : 0;
    return live;
  }
  uint64_t FreeNs(uint64_t now) const {
    return ((now + 999) / 1000 + (period_ns + 999) / 1000) * 1000;
  }
  // `most`: what the request's class may use.
  bool Ask(uint64_t tokens, uint64_t now, uint64_t most = kNever) {
    while (!taken.empty() && taken.front().first <= now) taken.pop_front();
    if (Live(now) + tokens > std::min(most, limit)) return false;
    taken.emplace_back(FreeNs(now), tokens);
    return true;
  }
};

}  // namespace sluice::shm
