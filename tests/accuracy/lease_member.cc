#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "daemon/lease/session.h"
#include "tests/accuracy/member.h"

namespace sluice::accuracy {
namespace {

class LeaseMember final : public Member {
 public:
  LeaseMember(const MemberOptions& options, uint64_t spare_us)
      : scenario_(options.scenario),
        host_(options.host),
        wire_(options.wire),
        random_(options.random),
        terms_(*lease::MakeTerms(scenario_.limit_per_s, 1'000'000, scenario_.burst,
                                 scenario_.wait_ns, spare_us)) {}

  lease::Verdict Check(uint32_t key, uint64_t cost, uint64_t ticket, uint64_t now_ns) override {
    const lease::Verdict verdict = leases_[key].Check(cost, now_ns, ticket);
    changed_ = key;
    return verdict;
  }

  void Poll(uint64_t now_ns) override {
    if (up_ && session_->Resend(now_ns)) Send();
    if (up_ && session_->call() == nullptr && now_ns >= session_->NextStartNs()) Ask(now_ns);
    if (changed_) NoteNext(*changed_);
    changed_.reset();
  }

  uint64_t NextNs() const override {
    uint64_t next_ns = *std::min_element(deadline_ns_.begin(), deadline_ns_.end());
    if (!up_) return next_ns;
    if (session_->call() != nullptr) return std::min(next_ns, session_->NextResendNs());
    return std::min(next_ns, std::max(session_->NextStartNs(),
                                      *std::min_element(tick_ns_.begin(), tick_ns_.end())));
  }

  void OnReply(const Message& message, uint64_t now_ns) override {
    if (!up_) return;
    const lease::Call* const call = session_->call();
    const uint64_t first_sent_ns = call != nullptr ? call->first_sent_ns : 0;
    const auto grants = session_->OnReply(message.token, message.reply, now_ns);
    if (!grants.ok()) {
      fault_ = std::string(grants.status().message());
      return;
    }
    if (!grants->has_value()) return;
    for (size_t i = 0; i < asked_.size(); ++i) {
      leases_[asked_[i]].OnGrant((**grants)[i], first_sent_ns, now_ns, session_->rtt());
      NoteNext(asked_[i]);
    }
  }

  std::vector<lease::Lease::Answer> Answered(uint64_t now_ns) override {
    std::vector<lease::Lease::Answer> all;
    for (uint32_t key = 0; key < leases_.size(); ++key) {
      std::vector<lease::Lease::Answer> some = leases_[key].Answered(now_ns);
      if (some.empty()) continue;
      all.insert(all.end(), some.begin(), some.end());
      NoteNext(key);
    }
    return all;
  }

  void KillDaemon(uint64_t) override { up_ = false; }

  // What stood in the segment is forfeited before the new one asks: it is counted as out, under the
  // instance that is gone, until it ends.
  void StartDaemon(uint64_t) override {
    up_ = true;
    leases_.clear();
    for (uint32_t key = 0; key < scenario_.keys; ++key) {
      leases_.emplace_back(lease::Lease::Options{terms_, kSyncNs});
    }
    session_.emplace(lease::Instance{random_.Next(), random_.Next()}, kSyncNs / 1000);
    asked_.clear();
    tick_ns_.assign(scenario_.keys, 0);
    deadline_ns_.assign(scenario_.keys, UINT64_MAX);
    changed_.reset();
  }

  std::string fault() const override { return fault_; }

 private:
  void Ask(uint64_t now_ns) {
    std::vector<lease::Asked> asked;
    asked_.clear();
    for (uint32_t key = 0; key < leases_.size(); ++key) {
      if (tick_ns_[key] > now_ns && changed_ != key) continue;
      lease::Lease& lease = leases_[key];
      if (lease.Tick(now_ns, session_->rtt(), random_.Unit())) {
        asked.push_back({absl::StrCat("b", key), terms_,
                         lease.Freeze(now_ns, session_->rtt(), random_.Unit())});
        asked_.push_back(key);
      }
      NoteNext(key);
    }
    if (asked.empty()) return;
    session_->Start(asked, 0, now_ns);
    Send();
  }

  void Send() {
    const lease::Call& call = *session_->call();
    wire_->Send(host_, {.token = call.seq,
                        .args = std::make_shared<std::vector<std::string>>(call.args),
                        .buckets = call.buckets});
  }

  void NoteNext(uint32_t key) {
    tick_ns_[key] = leases_[key].NextTickNs();
    const uint64_t deadline_ns = leases_[key].NextDeadlineNs();
    deadline_ns_[key] = deadline_ns == UINT64_MAX ? UINT64_MAX : deadline_ns + 1;
  }

  const Scenario scenario_;
  uint32_t host_;
  Wire* wire_;
  simulation::Random random_;
  lease::Terms terms_;
  bool up_ = false;
  std::vector<lease::Lease> leases_;  // by key
  std::optional<lease::Session> session_;
  std::vector<uint32_t> asked_;                  // keys of the call on its way
  std::vector<uint64_t> tick_ns_, deadline_ns_;  // by key
  std::optional<uint32_t> changed_;              // checked since the last Poll
  std::string fault_;
};

}  // namespace

std::unique_ptr<Member> NewLeaseMember(const MemberOptions& options, uint64_t spare_us,
                                       uint64_t now_ns) {
  auto member = std::make_unique<LeaseMember>(options, spare_us);
  member->StartDaemon(now_ns);
  return member;
}

}  // namespace sluice::accuracy
