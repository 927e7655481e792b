// What was admitted, judged against one perfect bucket. Times in ns, tokens exact.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>

#include "daemon/lease/terms.h"

namespace sluice::accuracy {

// A bucket that counts in `limit` units a nanosecond; a token is unit_us * 1000 of them.
class Bucket {
 public:
  explicit Bucket(const lease::Terms& terms)
      : limit_(static_cast<int64_t>(terms.limit)),
        token_(static_cast<int64_t>(terms.unit_us) * 1000),
        full_(static_cast<int64_t>(terms.burst) * token_),
        level_(full_) {}

  bool Take(uint64_t cost, uint64_t now_ns) {
    Refill(now_ns);
    const int64_t units = static_cast<int64_t>(cost) * token_;
    if (level_ < units) return false;
    level_ -= units;
    return true;
  }
  // Below 0, too: the depth is what was admitted over burst + limit * window in the worst window of
  // any length that ends now.
  void Force(uint64_t cost, uint64_t now_ns) {
    Refill(now_ns);
    level_ -= static_cast<int64_t>(cost) * token_;
    deepest_ = std::min(deepest_, level_);
  }
  // Redis reads its clock in whole microseconds, so one microsecond of refill is no fault.
  uint64_t over_tokens() const {
    const int64_t over = -deepest_ - 1000 * limit_;
    return over <= 0 ? 0 : static_cast<uint64_t>((over + token_ - 1) / token_);
  }

 private:
  void Refill(uint64_t now_ns) {
    const int64_t passed = static_cast<int64_t>(now_ns - at_ns_);
    at_ns_ = now_ns;
    const int64_t room = full_ - level_;
    level_ = passed > room / limit_ ? full_ : level_ + passed * limit_;
  }

  int64_t limit_;
  int64_t token_;
  int64_t full_;
  int64_t level_;
  int64_t deepest_ = 0;
  uint64_t at_ns_ = 0;
};

// The most that was admitted in any window of one length.
class Window {
 public:
  explicit Window(uint64_t length_ns) : length_ns_(length_ns) {}

  void Add(uint64_t cost, uint64_t now_ns) {
    inside_.push_back({now_ns, cost});
    sum_ += cost;
    while (inside_.front().at_ns + length_ns_ <= now_ns) {
      sum_ -= inside_.front().cost;
      inside_.pop_front();
    }
    most_ = std::max(most_, sum_);
  }
  // Over limit * length + burst, in percent of limit * length.
  double over_percent(const lease::Terms& terms) const {
    const double due = terms.rate() * static_cast<double>(length_ns_) / 1e9;
    const double over = static_cast<double>(most_) - due - static_cast<double>(terms.burst);
    return std::max(0.0, 100 * over / due);
  }

 private:
  struct Admitted {
    uint64_t at_ns;
    uint64_t cost;
  };
  uint64_t length_ns_;
  std::deque<Admitted> inside_;
  uint64_t sum_ = 0;
  uint64_t most_ = 0;
};

}  // namespace sluice::accuracy
