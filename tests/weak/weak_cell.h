// Memory as C++ promises it, no stronger, for the explorer of tests/model: an access may have
// several results, and all are explored.
//
// Each cell keeps all that was ever stored in it, in modification order, as messages. A process has
// a view: per cell, the oldest message that it may still read. A message carries a view too, if it
// was stored with release; whoever reads it with acquire takes that view over.
//
//   load               any message that the view allows; seq_cst: none older than the cell's last
//                      seq_cst store
//   read-modify-write  the last message, and its own goes right after it; it hands the view of
//                      that one on (a release sequence)
//   failed CAS         as a load, of a message with another value than the expected one
//
// Left out, so that runs in which they show are not seen: loads that read from stores which the
// program's order puts behind them (load buffering), a compare_exchange_weak that fails for no
// reason, a seq_cst order other than that of execution, and plain stores that race: those are
// refused, since their modification order would have to be explored as well. All of a slot is
// changed by read-modify-writes.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "tests/model/explorer.h"

namespace sluice::weak {

inline constexpr size_t kMaxCells = 24;
using View = std::array<uint8_t, kMaxCells>;  // by cell: the first message that may be read

// The function that accesses a cell, as a default argument tells it.
struct Where {
  const char* function;
  const char* file;
  static constexpr Where Here(const char* function = __builtin_FUNCTION(),
                              const char* file = __builtin_FILE()) {
    return {function, file};
  }
};

// Where the code accesses a cell: all accesses of one kind to one kind of cell in one function.
struct Site {
  std::string name;                           // "LookSlot word.load"
  std::memory_order order;                    // as the code has it
  std::optional<std::memory_order> weakened;  // what it is to be instead
  bool is_production = false;
};

class Memory;

// Stands where production has std::atomic<uint64_t>; see model::Cell.
class Cell {
 public:
  uint64_t load(std::memory_order order = std::memory_order_seq_cst,
                Where where = Where::Here()) const;
  void store(uint64_t v, std::memory_order order = std::memory_order_seq_cst,
             Where where = Where::Here());
  bool compare_exchange_strong(uint64_t& expected, uint64_t desired,
                               std::memory_order order = std::memory_order_seq_cst,
                               Where where = Where::Here());
  bool compare_exchange_weak(uint64_t& expected, uint64_t desired,
                             std::memory_order order = std::memory_order_seq_cst,
                             Where where = Where::Here()) {
    return compare_exchange_strong(expected, desired, order, where);
  }
  uint64_t fetch_add(uint64_t v, std::memory_order order = std::memory_order_seq_cst,
                     Where where = Where::Here());
  uint64_t fetch_or(uint64_t v, std::memory_order order = std::memory_order_seq_cst,
                    Where where = Where::Here());
  uint64_t fetch_and(uint64_t v, std::memory_order order = std::memory_order_seq_cst,
                     Where where = Where::Here());
  uint64_t exchange(uint64_t v, std::memory_order order = std::memory_order_seq_cst,
                    Where where = Where::Here());

  uint64_t value = 0;  // the last message's; by the scenario, outside the processes
  bool quiet = false;  // sequentially consistent and no scheduling point
  const char* name = "cell";

 private:
  friend class Memory;
  struct Message {
    uint64_t value;
    View view;
  };

  // The messages that a load may read, as offsets from the last one back.
  size_t Readable(size_t process, std::memory_order order) const;
  // Of those, the ones that a CAS may have met: the last, and older ones with other values.
  std::vector<size_t> Met(size_t process, std::memory_order failure, uint64_t expected) const;
  uint64_t Read(size_t process, size_t back, std::memory_order order) const;
  void Append(size_t process, uint64_t v, std::memory_order order, bool after_read);
  template <class Change>
  uint64_t Modify(std::memory_order order, Change change);

  Memory* memory_ = nullptr;
  size_t index_ = 0;
  std::vector<Message> messages_;
  size_t last_seq_cst_ = 0;
};

// The cells of a scenario, and what each process has seen of them.
class Memory {
 public:
  explicit Memory(std::vector<Cell*> cells) : cells_(std::move(cells)) {}

  // The cells that are not quiet begin with the values they have now, known to all.
  void Reset(size_t processes);
  uint64_t Hash() const;
  // The model cannot judge the run; empty: it can.
  const std::string& refused() const { return refused_; }

 private:
  friend class Cell;

  std::vector<Cell*> cells_;
  std::vector<View> views_;  // by process
  std::string refused_;
};

// All sites that were met so far in this program, by name.
std::map<std::string, Site>& Sites();

}  // namespace sluice::weak
