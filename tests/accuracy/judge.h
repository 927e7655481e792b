// What all hosts admitted of one key, against one perfect bucket under the same arrivals.
#pragma once

#include <cstdint>

#include "tests/accuracy/meter.h"
#include "tests/accuracy/scenario.h"

namespace sluice::accuracy {

class Judge {
 public:
  explicit Judge(const lease::Terms& terms) : terms_(terms), perfect_(terms), shadow_(terms) {}

  // A check comes; true where the perfect bucket admits it.
  bool Ask(uint64_t cost, uint64_t now_ns) {
    const bool admits = perfect_.Take(cost, now_ns);
    if (admits) perfect_tokens_ += cost;
    return admits;
  }
  // The fleet has admitted one.
  void Admit(uint64_t cost, uint64_t now_ns) {
    tokens_ += cost;
    shadow_.Force(cost, now_ns);
    second_.Add(cost, now_ns);
    ten_seconds_.Add(cost, now_ns);
  }

  uint64_t tokens() const { return tokens_; }
  uint64_t perfect_tokens() const { return perfect_tokens_; }
  uint64_t over_tokens() const { return shadow_.over_tokens(); }
  double over_1s_percent() const { return second_.over_percent(terms_); }
  double over_10s_percent() const { return ten_seconds_.over_percent(terms_); }

 private:
  lease::Terms terms_;
  Bucket perfect_;
  Bucket shadow_;
  Window second_{kSecondNs};
  Window ten_seconds_{10 * kSecondNs};
  uint64_t tokens_ = 0;
  uint64_t perfect_tokens_ = 0;
};

}  // namespace sluice::accuracy
