// What has to be so of each answer, whatever the others do; what is not is noted on the board.
#pragma once

#include <cstdint>

#include "tests/torture/features_board.h"

namespace sluice::torture {

class Judge {
 public:
  explicit Judge(Board& board) : board_(board) {}

  // Of any answer, and of one to a request of one rule.
  void Any(const Request& request, const Decision& d);
  void Alone(const Request& request, uint64_t cost, const Decision& d);
  // `d` is of a look at one rule's bucket from which nobody has ever got anything, and the call is
  // over.
  void Full(Rule rule, int key, const Decision& d);
  // Until when anybody has been told that it is banned; to be read before it is asked.
  uint64_t BannedUntil(const Request& request) const;
  void Ban(const Request& request, uint64_t banned_until_ns, const Decision& d);

 private:
  double SinceBegin(uint64_t ns) const;

  Board& board_;
};

}  // namespace sluice::torture
