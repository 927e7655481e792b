#include "tests/simulation/classes.h"

#include <algorithm>
#include <cmath>

#include "shm/credits.h"
#include "shm/window.h"

namespace sluice::simulation::classes {
namespace {

double UsedOfBucket(const Found& f) {
  const uint64_t debt_ns = f.word > f.now_ns ? f.word - f.now_ns : 0;
  return static_cast<double>(debt_ns) * static_cast<double>(f.limit.limit) /
         static_cast<double>(f.limit.period_ns);
}

// Units are whole parts of a token here: no limit of a run is so large that one is more.
double TokensOf(const Found& f, uint64_t units) {
  return std::ldexp(static_cast<double>(units), -shm::window::ScaleOf(f.limit.limit));
}

double UsedOfFixed(const Found& f) {
  return shm::window::TimeNs(f.word) <= f.now_ns ? 0 : TokensOf(f, shm::window::Count(f.word));
}

// The word's time is a length after the open window's end.
double UsedOfSliding(const Found& f) {
  const uint64_t length_ns = shm::window::LengthNs(f.limit.period_ns);
  const uint64_t until_ns = shm::window::TimeNs(f.word);
  if (until_ns <= f.now_ns) return 0;
  const double counted = TokensOf(f, shm::window::Count(f.word));
  const auto part_left = [&](uint64_t end_ns) {
    return static_cast<double>(end_ns - f.now_ns) / static_cast<double>(length_ns);
  };
  const uint64_t end_ns = until_ns - length_ns;
  if (end_ns <= f.now_ns) return counted * part_left(until_ns);
  return counted + TokensOf(f, shm::window::second::Closed(f.second)) * part_left(end_ns);
}

// What is neither at Redis nor with any host, as Redis told last.
double UsedOfLent(const Found& f) {
  const uint32_t told = shm::aux::InvShare(f.aux) & shm::credits::fill::kMask;
  if (told == 0) return 0;
  const auto burst = static_cast<double>(f.limit.burst);
  return burst - (told - 1) * burst / static_cast<double>(shm::credits::fill::kParts);
}

double UsedOf(const Found& f) {
  switch (f.kind) {
    case shm::Kind::kFixedWindow:
      return UsedOfFixed(f);
    case shm::Kind::kSlidingWindow:
      return UsedOfSliding(f);
    case shm::Kind::kSlidingLog:
      return f.logged;
    case shm::Kind::kLease:
      return UsedOfLent(f);
    default:
      return UsedOfBucket(f);
  }
}

}  // namespace

double TakenOfOthers(const Found& found, double part, uint32_t tokens) {
  const double whole = static_cast<double>(
      found.kind == shm::Kind::kTokenBucket || found.kind == shm::Kind::kLease ? found.limit.burst
                                                                               : found.limit.limit);
  return UsedOf(found) + tokens - part * whole;
}

}  // namespace sluice::simulation::classes
