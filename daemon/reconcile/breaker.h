// One breaker per Redis primary, so that one dead node degrades only its shards.
//
// closed --3 failures in a row, or half of 2 s failed, or 4 of 5 slow, or a hard error--> open
// open --after the back-off--> half-open: one trial --success--> closed, --failure--> open, longer
//
// Single-threaded; time and randomness come in.
#pragma once

#include <algorithm>
#include <cstdint>

namespace sluice::reconcile {

inline constexpr uint64_t kBackoffMinNs = 250'000'000;
inline constexpr uint64_t kBackoffMaxNs = 10'000'000'000;
// The longest back-off of a small fleet: until a host is back it goes on by its share, beside
// others that have all of the limit again.
inline constexpr uint64_t kBackoffFewNs = 1'000'000'000;
// Of a larger one: so many trials a second, of all hosts together, are little to any Redis.
inline constexpr uint64_t kTrialsPerSecond = 1'000;
inline constexpr uint64_t kTrialNs = 2'000'000'000;  // a trial without a verdict is repeated
inline constexpr uint64_t kBreakerWindowNs = 2'000'000'000;
inline constexpr uint32_t kFailuresInARow = 3;
inline constexpr uint32_t kMinSamples = 5;             // before a ratio says anything
inline constexpr uint64_t kSlowNs = 100'000'000;       // a reply later than this is slow
inline constexpr uint64_t kFarSlowNs = 1'000'000'000;  // of another region
inline constexpr uint64_t kCalmNs = 2'000'000'000;     // emergency is left after so much of calm
inline constexpr uint32_t kCalmSuccesses = 3;          // and so many successes

inline constexpr uint64_t LongestBackoffNs(uint64_t hosts) {
  return std::clamp(std::min<uint64_t>(hosts, 1 << 20) * (1'000'000'000 / kTrialsPerSecond),
                    kBackoffFewNs, kBackoffMaxNs);
}

class Breaker {
 public:
  enum class State : uint8_t { kClosed, kOpen, kHalfOpen };

  State state() const { return state_; }

  // May a call go out now? In an open breaker whose back-off is over, the first to ask gets the
  // trial.
  bool Allow(uint64_t now_ns) {
    if (state_ == State::kClosed) return true;
    if (!WantsTrial(now_ns)) return false;
    state_ = State::kHalfOpen;
    trial_ns_ = now_ns;
    return true;
  }
  bool WantsTrial(uint64_t now_ns) const {
    if (state_ == State::kOpen) return now_ns >= reopen_ns_;
    // A trial may have been redirected and answered by another node.
    return state_ == State::kHalfOpen && now_ns >= trial_ns_ + kTrialNs;
  }

  void OnSuccess(uint64_t now_ns, uint64_t latency_ns, uint64_t slow_ns = kSlowNs) {
    Sample(now_ns, /*failed=*/false, latency_ns > slow_ns);
    in_a_row_ = 0;
    if (successes_ == 0) well_since_ns_ = now_ns;
    ++successes_;
    if (state_ != State::kClosed) {
      state_ = State::kClosed;
      backoff_ns_ = 0;
      ForgetWindow(now_ns);
    } else if (samples_ >= kMinSamples && slow_ * 5 >= samples_ * 4) {
      Open(now_ns, 0.5);
    }
  }

  // `hard`: nothing but a person mends it. `random` is uniform in [0, 1).
  void OnFailure(uint64_t now_ns, bool hard, double random) {
    Sample(now_ns, /*failed=*/true, /*slow=*/false);
    ++in_a_row_;
    successes_ = 0;
    if (hard || state_ == State::kHalfOpen || in_a_row_ >= kFailuresInARow ||
        (samples_ >= kMinSamples && failures_ * 2 >= samples_)) {
      Open(now_ns, random);
    }
  }

  // The longest back-off from the next failure on; at least kBackoffMinNs.
  void set_longest_ns(uint64_t longest_ns) { longest_ns_ = longest_ns; }
  // The node was reached anew: that is no verdict, but worth a trial at once.
  void OnReached(uint64_t now_ns) {
    if (state_ == State::kOpen) reopen_ns_ = std::min(reopen_ns_, now_ns);
  }

  // Closed, and calm for long enough that an emergency may end.
  bool IsCalm(uint64_t now_ns) const {
    return state_ == State::kClosed && successes_ >= kCalmSuccesses &&
           now_ns >= well_since_ns_ + kCalmNs;
  }
  bool HasSucceeded() const { return successes_ > 0; }

 private:
  void Open(uint64_t now_ns, double random) {
    if (state_ == State::kOpen && now_ns < reopen_ns_) return;
    backoff_ns_ = std::clamp(backoff_ns_ * 2, kBackoffMinNs, longest_ns_);
    // Full jitter: hosts that saw the same death must not return together.
    reopen_ns_ = now_ns + static_cast<uint64_t>(static_cast<double>(backoff_ns_) * random);
    state_ = State::kOpen;
    successes_ = 0;
    ForgetWindow(now_ns);
  }
  void Sample(uint64_t now_ns, bool failed, bool slow) {
    if (now_ns >= window_ns_ + kBreakerWindowNs) ForgetWindow(now_ns);
    ++samples_;
    failures_ += failed ? 1 : 0;
    slow_ += slow ? 1 : 0;
  }
  void ForgetWindow(uint64_t now_ns) {
    window_ns_ = now_ns;
    samples_ = failures_ = slow_ = 0;
  }

  State state_ = State::kClosed;
  uint32_t in_a_row_ = 0;
  uint32_t successes_ = 0;  // since the last failure
  uint64_t well_since_ns_ = 0;
  uint64_t longest_ns_ = kBackoffMaxNs;
  uint64_t backoff_ns_ = 0;
  uint64_t reopen_ns_ = 0;
  uint64_t trial_ns_ = 0;
  uint64_t window_ns_ = 0;
  uint32_t samples_ = 0;
  uint32_t failures_ = 0;
  uint32_t slow_ = 0;
};

}  // namespace sluice::reconcile
