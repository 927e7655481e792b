#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "daemon/redis/latency.h"
#include "tests/accuracy/member.h"
#include "tests/reconcile/fleet.h"

namespace sluice::accuracy {
namespace {

constexpr char kRule[] = "rule";
// As the daemon's Redis client has them.
constexpr int64_t kTimeoutMinNs = 25'000'000;
constexpr int64_t kTimeoutMaxNs = 250'000'000;
constexpr uint64_t kCapacity = 256;
constexpr int kNumberMost = 1 << 30;

config::Config ConfigOf(const Scenario& scenario) {
  config::RuleConfig rule;
  rule.name = kRule;
  rule.key = {{.descriptor = "key"}};
  rule.limit = config::LimitConfig{
      .limit = scenario.limit_per_s, .period_ns = kSecondNs, .burst = scenario.burst};
  config::Config config;
  config.redis.emplace();
  config.rules = {rule};
  return config;
}

// The segments and the reconciler as they are, one shard, and messages by Wire.
class ApproximateMember final : public Member, private test::Host {
 public:
  explicit ApproximateMember(const MemberOptions& options)
      : Host(static_cast<int>(options.number % kNumberMost), ConfigOf(options.scenario), nullptr,
             nullptr, {.capacity = kCapacity, .shards = 1, .flush_interval_ns = kSyncNs}),
        host_(options.host),
        wire_(options.wire),
        random_(options.random) {
    for (uint32_t key = 0; key < options.scenario.keys; ++key) {
      names_.push_back(absl::StrCat("k", key));
    }
  }

  lease::Verdict Check(uint32_t key, uint64_t cost, uint64_t, uint64_t now_ns) override {
    test::VirtualClock::now_ns = now_ns;
    const bool silent = !up_ && now_ns > killed_ns_ + shm::kHeartbeatFreshNs;
    const bool degraded = silent || Mode(0) == shm::ShardMode::kEmergency;
    return Host::Check(kRule, names_[key], static_cast<uint32_t>(cost), degraded)
               ? lease::Verdict::kAllow
               : lease::Verdict::kDeny;
  }

  void Poll(uint64_t now_ns) override {
    if (!up_ || now_ns < NextNs()) return;
    test::VirtualClock::now_ns = now_ns;
    if (call_ && now_ns >= call_->until_ns) {
      const uint64_t token = call_->token;
      call_.reset();
      reconciler().OnFailure(0, token, reconcile::CallOutcome::kRetry, 0, now_ns);
    }
    if (ping_ && now_ns >= ping_->until_ns) {
      ping_.reset();
      reconciler().OnPong(0, false, false, now_ns);
    }
    if (now_ns < tick_ns_) return;
    reconciler().Tick(now_ns);
    tick_ns_ =
        now_ns + (reconciler().IsQuiet(now_ns) ? reconcile::kQuietTickNs : reconcile::kTickNs);
  }

  uint64_t NextNs() const override {
    if (!up_) return UINT64_MAX;
    uint64_t next_ns = tick_ns_;
    if (call_) next_ns = std::min(next_ns, call_->until_ns);
    if (ping_) next_ns = std::min(next_ns, ping_->until_ns);
    return next_ns;
  }

  void OnReply(const Message& message, uint64_t now_ns) override {
    if (!up_) return;
    test::VirtualClock::now_ns = now_ns;
    if (message.args == nullptr) {
      if (!ping_ || ping_->token != message.token) return;
      ping_.reset();
      reconciler().OnPong(0, true, false, now_ns);
      return;
    }
    if (!call_ || call_->token != message.token) return;
    latency_.Add(static_cast<int64_t>(now_ns - call_->sent_ns), static_cast<int64_t>(now_ns));
    call_.reset();
    reconciler().OnReply(0, message.token, message.reply, 0, now_ns);
  }

  std::vector<lease::Lease::Answer> Answered(uint64_t) override { return {}; }

  void KillDaemon(uint64_t now_ns) override {
    up_ = false;
    killed_ns_ = now_ns;
  }

  void StartDaemon(uint64_t now_ns) override {
    test::VirtualClock::now_ns = now_ns;
    if (killed_ns_ != 0) StartReconciler(random_.Next(), killed_ns_);
    up_ = true;
    call_.reset();
    ping_.reset();
    tick_ns_ = now_ns + random_.Below(reconcile::kTickNs);
  }

  // Transport
  void Call(uint32_t, std::string_view args, uint32_t, uint64_t token) override {
    call_ = Sent(token);
    wire_->Send(host_, {.token = token,
                        .args = std::make_shared<std::vector<std::string>>(test::DecodeBulks(args)),
                        .buckets = names_.size()});
  }
  void Ping(uint32_t, uint64_t token) override {
    ping_ = Sent(token);
    wire_->Send(host_, {.token = token});
  }

 private:
  struct Waiting {
    uint64_t token;
    uint64_t sent_ns;
    uint64_t until_ns;
  };

  Waiting Sent(uint64_t token) const {
    const uint64_t now_ns = test::VirtualClock::now_ns;
    const int64_t timeout_ns =
        redis::RequestTimeoutNs(latency_.P99Ns(), kTimeoutMinNs, kTimeoutMaxNs);
    return {token, now_ns, now_ns + static_cast<uint64_t>(timeout_ns)};
  }

  uint32_t host_;
  Wire* wire_;
  simulation::Random random_;
  std::vector<std::string> names_;  // by key
  bool up_ = false;
  uint64_t killed_ns_ = 0;
  uint64_t tick_ns_ = 0;
  redis::QuantileEstimator latency_;
  std::optional<Waiting> call_, ping_;
};

}  // namespace

std::unique_ptr<Member> NewApproximateMember(const MemberOptions& options, uint64_t now_ns) {
  test::VirtualClock::now_ns = now_ns;
  auto member = std::make_unique<ApproximateMember>(options);
  member->StartDaemon(now_ns);
  return member;
}

}  // namespace sluice::accuracy
