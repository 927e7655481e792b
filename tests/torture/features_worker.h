// What one client of the features' torture test does until it is killed.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <random>
#include <span>
#include <vector>

#include "client/include/sluice.hpp"
#include "tests/torture/features_board.h"
#include "tests/torture/features_judge.h"

namespace sluice::torture {

class Worker {
 public:
  Worker(Board& board, Client& client, int index, Cell& stage, uint64_t seed);

  [[noreturn]] void Run();

 private:
  struct Bound {
    Handle handle;
    Request request;
  };
  struct Held {
    Place place;
    uint32_t at;
  };

  uint64_t Any(uint64_t below) { return random_() % below; }
  void AddAnyClass(Request& request);
  int RollingKey();
  void AddAny(Request& request, Rule rule);
  Request Alone();
  Request Together();
  Request Loose();

  void Once();
  void Ask(Request request);
  void AskHandle();
  void AskLoosely();
  void ReserveLoosely(Request request, uint64_t estimate);
  void Race();
  void ReturnLate();
  void AcquireTurn();
  void EnterTogether();
  void LeaveOne();
  void AskInVain();
  void Look();
  void LookForKept();
  void ComeBackAlone();

  // Before and after an operation that costs as much in each of the request's buckets.
  void Begin(const Request& request, uint64_t cost);
  bool End(const Request& request, uint64_t cost, const Decision& d);
  void GiveBack(const Request& request, uint64_t tokens);
  Board& board_;
  Judge judge_;
  Client& client_;
  const int index_;
  Cell& stage_;
  UnderWay& under_way_;
  std::mt19937_64 random_;
  uint64_t began_ns_ = 0;  // the operation under way
  std::vector<Bound> handles_;
  std::optional<sluice::Rule> critical_;
  std::vector<Held> held_;
};

}  // namespace sluice::torture
