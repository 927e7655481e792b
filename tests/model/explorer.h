// An exhaustive explorer for the slot protocol: runs the production code on its own type of memory
// cell, with every interleaving of the processes' shared accesses and a kill possible before each.
//
// Each access to a Cell is a scheduling point. A process is deterministic but for what it reads, so
// a state is: the memory, and per process a hash of all that it has read, and whether it was
// killed. States seen before are not gone into again. The Cell here is sequentially consistent;
// tests/weak has another, whose accesses may have several results. With MODEL_TRACE in the
// environment a failing schedule prints what each of its steps changed.
#pragma once

#include <atomic>
#include <boost/context/detail/fcontext.hpp>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <unordered_set>
#include <vector>

namespace sluice::model {

class Explorer;

// Stands where production has std::atomic<uint64_t>. A quiet cell is read by all and changed by
// nobody in the scenario: no scheduling point.
class Cell {
 public:
  uint64_t load(std::memory_order = std::memory_order_seq_cst) const;
  void store(uint64_t v, std::memory_order = std::memory_order_seq_cst);
  bool compare_exchange_strong(uint64_t& expected, uint64_t desired,
                               std::memory_order = std::memory_order_seq_cst);
  bool compare_exchange_weak(uint64_t& expected, uint64_t desired,
                             std::memory_order = std::memory_order_seq_cst) {
    return compare_exchange_strong(expected, desired);
  }
  uint64_t fetch_add(uint64_t v, std::memory_order = std::memory_order_seq_cst);
  uint64_t fetch_or(uint64_t v, std::memory_order = std::memory_order_seq_cst);
  uint64_t fetch_and(uint64_t v, std::memory_order = std::memory_order_seq_cst);
  uint64_t exchange(uint64_t v, std::memory_order = std::memory_order_seq_cst);

  uint64_t value = 0;  // by the scenario, outside the processes
  bool quiet = false;

 private:
  uint64_t Step() const;
  void Saw(uint64_t v) const;
};

struct Scenario {
  std::vector<Cell*> memory;  // all that processes share
  // Of the memory where it is more than those cells' values.
  std::function<uint64_t()> hash;
  std::function<void()> reset;  // writes the first state into the memory
  std::vector<std::function<void()>> processes;
  // Called when every process has ended or was killed; says what is wrong, or nothing. May run
  // production code: outside processes, cells are plain.
  std::function<std::string(const std::vector<bool>& killed)> check;
  uint32_t max_kills = 1;
};

struct Exploration {
  uint64_t states = 0;
  uint64_t ends = 0;    // final states checked
  std::string failure;  // the first; empty: none
  // That led to it: process numbers; 'x' before one is a kill, 'a' and so on after one is its
  // access's second result and so on.
  std::string schedule;
  bool complete = false;  // every state within the bound was visited
};

class Explorer {
 public:
  explicit Explorer(Scenario scenario) : scenario_(std::move(scenario)) {}
  Exploration Run(uint64_t max_states);

  // For cells. The explorer of the process that runs now; null: no process runs, cells are plain.
  static Explorer* Current() {
    return current_ != nullptr && current_->running_ >= 0 ? current_ : nullptr;
  }
  size_t process() const { return static_cast<size_t>(running_); }
  // A scheduling point before an access with `results()` results by then; returns which.
  size_t AtStep(std::function<size_t()> results = nullptr);
  // What the access read is part of the process's state.
  void Saw(uint64_t v);

 private:
  struct Fiber {
    boost::context::detail::fcontext_t context = nullptr;
    std::unique_ptr<char[]> stack;
    uint64_t history = 0;
    std::function<size_t()> results;  // of the access that it stands before; null: one
    size_t result = 0;                // to be had now
    bool ended = false;
    bool killed = false;
  };
  struct Choice {
    uint8_t process;
    bool kill;
    uint8_t result = 0;
  };

  void Restart();
  void Apply(Choice choice);
  std::vector<Choice> Choices() const;
  uint64_t StateHash() const;
  static void Enter(boost::context::detail::transfer_t from);
  void Resume(size_t process);
  void Trace(const std::vector<Choice>& path);

  static constexpr size_t kStackBytes = 64 * 1024;
  static constexpr size_t kMaxDepth = 2000;  // longer means that a process does not end

  Scenario scenario_;
  std::vector<Fiber> fibers_;
  boost::context::detail::fcontext_t scheduler_ = nullptr;
  int running_ = -1;  // process now on the processor; -1: none, cells are plain
  static inline Explorer* current_ = nullptr;
};

// Each process has read the time at its own moment, and reads the same again.
struct ClockOfEach {
  static inline uint64_t now_ns[3] = {};
  static uint64_t PreciseNs() {
    const Explorer* const explorer = Explorer::Current();
    return now_ns[explorer != nullptr ? explorer->process() : 2];
  }
  static uint64_t CoarseNs() { return PreciseNs(); }
};

}  // namespace sluice::model
