// Whether a class of requests ever takes what is kept for those above it, by what its host knew:
// what the bucket's words said before the take, read here once more and reckoned in another way.
#pragma once

#include <cstdint>
#include <string>

#include "shm/gcra.h"
#include "shm/kinds.h"

namespace sluice::simulation::classes {

// A bucket before a request of so many tokens took from it.
struct Found {
  shm::Kind kind = shm::Kind::kTokenBucket;
  shm::Limit limit;  // of the whole bucket
  uint64_t now_ns = 0;
  uint64_t word = 0, second = 0, aux = 0;
  uint32_t logged = 0;  // tokens of a log that count
};

// The tokens that it took of what is kept for others, where its class may use `part` of the whole;
// 0 or less: none. Never more than rounding says.
double TakenOfOthers(const Found& found, double part, uint32_t tokens);

// What of `used` tokens and the request's own is too much by more than rounding.
inline constexpr double kRounding = 0.02;  // tokens

}  // namespace sluice::simulation::classes
