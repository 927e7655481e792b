// What a host may spend beyond its lease, where its terms allow that.
#include <algorithm>
#include <cmath>

#include "daemon/lease/lease.h"

namespace sluice::lease {
namespace {

// What may be spent beyond the lease: a part of what nobody holds, and of one second's limit.
constexpr double kOfLevel = 0.5;
constexpr double kOfLimit = 0.01;
constexpr uint64_t kViewNs = 1'000'000'000;  // so long Redis' word on a bucket tells of it
constexpr uint64_t kOverdueSyncs = 3;        // without a reply: this host is alone
constexpr double kLastingNs = 1e9;           // over so long a share is a lasting one
constexpr double kUnknownPart = 0.01;        // of the burst, where nobody knows of other hosts

double Seconds(double ns) { return ns / 1e9; }

}  // namespace

Lease::Lease(const Options& options)
    : terms_(options.terms), sync_ns_(options.sync_ns), factor_(options.factor) {
  if (!terms_.may_overdraw()) return;
  share_ = options.hosts != 0 ? 1 / static_cast<double>(options.hosts) : kUnknownPart;
  lasting_share_ = share_;
}

// What is spent beyond the credits.
void Lease::Overdraw(uint64_t tokens) {
  allowance_ -= std::min(tokens, allowance_);
  (alone_ ? alone_spent_ : over_) += tokens;
}

// Whole tokens, and one more with the chance of the rest.
void Lease::Allow(double tokens) {
  allowance_ = static_cast<uint64_t>(tokens);
  if (dice_ < tokens - static_cast<double>(allowance_)) ++allowance_;
}

double Lease::AloneMost() const {
  return std::max(1.0, lasting_share_ * static_cast<double>(terms_.burst));
}

// Replies are overdue: from what was allowed on, a bucket of its share of burst and rate.
void Lease::BeginAlone(uint64_t now_ns) {
  alone_ = true;
  alone_tokens_ = 0;
  alone_spent_ = 0;
  alone_ns_ = alone_begin_ns_ = now_ns;
}

// Whether Redis was away for all or this host alone was not heard, the script tells.
void Lease::EndAlone() {
  if (!alone_) return;
  if (alone_since_ns_ == 0) {
    alone_since_ns_ = alone_begin_ns_;
    alone_share_ = lasting_share_;
  }
  alone_over_ += alone_spent_;
  alone_ = false;
}

void Lease::SpendAlone(uint64_t tokens, uint64_t now_ns) {
  if (!terms_.may_overdraw()) return;
  if (!alone_) BeginAlone(now_ns);
  (void)Allowance(now_ns);
  allowance_ -= std::min(tokens, allowance_);
  alone_spent_ += tokens;
  NoteAttempts(tokens, now_ns - std::min(now_ns, kEarlyGapNs), now_ns);
}

uint64_t Lease::Allowance(uint64_t now_ns) {
  if (!terms_.may_overdraw()) return 0;
  if (in_flight_ && !alone_ && now_ns >= sent_ns_ + kOverdueSyncs * sync_ns_) BeginAlone(now_ns);
  if (alone_) {
    const double passed = static_cast<double>(now_ns - std::min(now_ns, alone_ns_));
    alone_ns_ = now_ns;
    alone_tokens_ =
        std::min(alone_tokens_ + factor_ * lasting_share_ * terms_.rate() * Seconds(passed),
                 std::max(0.0, AloneMost() - static_cast<double>(allowance_)));
    const auto whole = static_cast<uint64_t>(alone_tokens_);
    alone_tokens_ -= static_cast<double>(whole);
    allowance_ += whole;
    return allowance_;
  }
  if (!in_flight_ && now_ns >= renew_ns_) {
    const bool old = viewed_ns_ == 0 || now_ns >= viewed_ns_ + kViewNs;
    const double burst = static_cast<double>(terms_.burst);
    // Of a bucket that was short, the little that lets a host that is not heard go on. A host's
    // part of a low limit is less than a token: a whole one each would be far over.
    const double part = share_ * burst;
    Allow(old ? (viewed_ns_ == 0 ? std::max(1.0, part) : part)
              : kOfLimit * terms_.rate() / static_cast<double>(hosts_));
    renew_ns_ = old ? UINT64_MAX : viewed_ns_ + kViewNs;
  }
  return allowance_;
}

void Lease::Restore(uint64_t tokens) {
  const uint64_t beyond = std::min(tokens, over_);
  over_ -= beyond;
  allowance_ += beyond;
  credits_ += tokens - beyond;
}

// By what Redis has told just now.
void Lease::View(uint64_t now_ns) {
  if (!terms_.may_overdraw()) return;
  const double part = kOfLevel * share_ * static_cast<double>(level_) +
                      kOfLimit * terms_.rate() / static_cast<double>(hosts_);
  // After an outage, and in it where a call gets through, Redis knows of few hosts: that raises no
  // share.
  const uint64_t old_ns = now_ns - std::min(viewed_ns_, now_ns);
  const bool is_part = old_ns > kViewNs && hosts_ < viewed_hosts_;
  if (!is_part) viewed_hosts_ = hosts_;
  if (!is_part || share_ < lasting_share_) {
    const double weight = static_cast<double>(std::min(old_ns, 2 * sync_ns_)) / kLastingNs;
    lasting_share_ += (share_ - lasting_share_) * (1 - std::exp(-weight));
  }
  viewed_ns_ = now_ns;
  Allow(short_ ? 0 : part);
  renew_ns_ = short_ ? std::min(retry_ns_ + sync_ns_, now_ns + kViewNs) : now_ns + kViewNs;
}

}  // namespace sluice::lease
