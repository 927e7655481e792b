// What the clients of the features' torture test write down, in memory that outlives them, and what
// can be told from it of one that was killed: all but the operation under way.
#pragma once

#include <algorithm>
#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <vector>

#include "tests/torture/victims.h"

namespace sluice::torture {

inline constexpr int kClients = 8;
inline constexpr int kMostInRequest = 32;  // books of one request

// What a bucket was charged in tokens. `sum` is of operations that are over, by one atomic addition
// each; `least` and `most` of those that a kill came into, written by the parent alone.
struct Book {
  std::atomic<int64_t> sum;
  int64_t least;
  int64_t most;
};

// What a client is about to do: how much more, or less, each of these books may be charged by it.
// The bounds hold zero, so they hold too between the addition to a book and the end.
class UnderWay {
 public:
  struct Item {
    uint32_t book;
    int64_t least;
    int64_t most;
  };

  void Add(int book, int64_t least, int64_t most) {
    items_[next_++ % kMostInRequest] = {static_cast<uint32_t>(book), least, most};
  }
  void Begin() { count_.store(next_); }
  void End() {
    count_.store(0);
    next_ = 0;
  }
  // Of a client that is gone: true where a kill came into an operation.
  bool Close(Book* books) {
    const uint32_t count = count_.load();
    for (uint32_t i = 0; i < count && i < kMostInRequest; ++i) {
      books[items_[i].book].least += items_[i].least;
      books[items_[i].book].most += items_[i].most;
    }
    End();
    return count != 0;
  }

 private:
  std::atomic<uint32_t> count_;
  uint32_t next_;
  Item items_[kMostInRequest];
};

// Every admission of a bucket by its own clock; one that a kill came into may be missing, and what
// comes when it is full. So a bound from above stays a bound from above.
class Trace {
 public:
  static constexpr uint64_t kMost = 1 << 18;
  struct Entry {
    uint64_t at_ns;
    uint64_t cost;
    uint64_t rank;
  };

  // `at_ns` since the ledger's beginning, below 2^44; `cost` below 2^8 and not 0, `rank` below 2^8.
  void Add(uint64_t at_ns, uint64_t cost, uint64_t rank) {
    const uint64_t n = count_.fetch_add(1);
    if (n < kMost) entries_[n].store(at_ns << 16 | cost << 8 | rank);
  }
  // Of ranks from `least_rank` on, by time.
  std::vector<Entry> Sorted(uint64_t least_rank) const {
    std::vector<Entry> sorted;
    for (uint64_t n = 0; n < std::min(count_.load(), kMost); ++n) {
      const uint64_t e = entries_[n].load();
      if (e != 0 && (e & 0xff) >= least_rank) sorted.push_back({e >> 16, e >> 8 & 0xff, e & 0xff});
    }
    std::sort(sorted.begin(), sorted.end(),
              [](const Entry& a, const Entry& b) { return a.at_ns < b.at_ns; });
    return sorted;
  }

 private:
  Cell count_;
  Cell entries_[kMost];
};

// How far an exact bucket is ahead of an admission at most, with its cost, in tokens.
inline double MostAtOnce(const std::vector<Trace::Entry>& trace, uint64_t per_token_ns) {
  uint64_t tat_ns = 0;
  uint64_t most_ns = 0;
  for (const Trace::Entry& e : trace) {
    tat_ns = std::max(tat_ns, e.at_ns) + e.cost * per_token_ns;
    most_ns = std::max(most_ns, tat_ns - e.at_ns);
  }
  return static_cast<double>(most_ns) / static_cast<double>(per_token_ns);
}

// The most that came within any time of that length.
inline uint64_t MostWithin(const std::vector<Trace::Entry>& trace, uint64_t length_ns) {
  uint64_t within = 0;
  uint64_t most = 0;
  size_t first = 0;
  for (const Trace::Entry& e : trace) {
    within += e.cost;
    while (trace[first].at_ns + length_ns <= e.at_ns) within -= trace[first++].cost;
    most = std::max(most, within);
  }
  return most;
}

// What no client should see: how often, and the first time in words.
class Wrong {
 public:
  explicit Wrong(const char* name) : name_(name) {}
  [[gnu::format(printf, 2, 3)]] void Note(const char* format, ...) {
    if (count_.fetch_add(1) != 0) return;
    va_list words;
    va_start(words, format);
    vsnprintf(first_, sizeof first_, format, words);
    va_end(words);
  }
  uint64_t count() const { return count_.load(); }
  const char* name() const { return name_; }
  const char* first() const { return first_; }

 private:
  Cell count_ = 0;
  const char* name_;  // a literal: the same in each child
  char first_[200] = {};
};

}  // namespace sluice::torture
