// Limits: of a rule, of a tier, of a candidate. Internal to the parser.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "daemon/config/config.h"
#include "daemon/config/section.h"

namespace sluice::config {

enum class Algorithm : uint8_t {
  kTokenBucket,
  kLeakyBucket,
  kFixedWindow,
  kSlidingWindow,
  kSlidingLog,
  kInFlight  // by `in_flight`, not by `algorithm`
};

// What a tier has of its rule where it says nothing.
struct OfRule {
  Algorithm algorithm = Algorithm::kTokenBucket;
  bool is_lent = false;  // by hosts to each other
  bool is_strict = false;
  uint32_t cost = 1;
  uint64_t max_delay_ns = 0;  // 0: not said
  uint64_t burst = 0;         // 0: by the limit
  bool has_calendar = false;

  bool is_leaky() const { return algorithm == Algorithm::kLeakyBucket; }
  bool is_window() const {  // or a log
    return algorithm >= Algorithm::kFixedWindow && algorithm <= Algorithm::kSlidingLog;
  }
  bool is_in_flight() const { return algorithm == Algorithm::kInFlight; }
  bool is_log() const { return algorithm == Algorithm::kSlidingLog; }
};

// The limit of a rule or of a tier; false when there is none, or a wrong one (then a problem).
bool ParseLimit(Section* section, const Config& config, const OfRule& of_rule, LimitConfig* limit);

// The `candidate` beside the limit `live` of a rule or a tier, whose label it gets with a mark
// behind it; empty when there is none, or a wrong one (then a problem).
std::optional<LimitConfig> ParseCandidate(Section* section, const Config& config,
                                          const OfRule& of_rule, const LimitConfig& live,
                                          std::string_view label, Findings* findings);

}  // namespace sluice::config
