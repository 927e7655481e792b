// The map of the cluster: when to ask for it, whom, and what to do with the answer.

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "daemon/redis/client_core.h"
#include "daemon/redis/codec.h"

namespace sluice::redis {
namespace {

// Refreshes in trouble: at least this far apart, and up to half as much more.
constexpr int64_t kRefreshGapNs = 1'000'000'000;
// Refreshes in peace: 30 s +- 50 %.
constexpr int64_t kPeriodicNs = 45'000'000'000;
// The same while a seed is known to be wrong: 6 s +- 50 %.
constexpr int64_t kAlarmedNs = 9'000'000'000;
// Sentinel mode: 2 s +- 50 %, over a connection that is kept so long to one sentinel. So a failover
// is followed soon, too, where the former primary still answers.
constexpr int64_t kSentinelPollNs = 2'000'000'000;
constexpr int64_t kSameSentinelNs = 30'000'000'000;
// Connected primaries that are asked before the seeds are.
constexpr size_t kMaxPeersAsked = 4;

}  // namespace

void ClusterClient::Impl::PollRefresh(int64_t now_ns) {
  if (options_.mode == Mode::kSingle || refreshing_) return;
  if (now_ns < refresh_not_before_ns_) return;
  if (refresh_wanted_ || now_ns >= periodic_refresh_ns_) StartRefresh(now_ns);
}

void ClusterClient::Impl::StartRefresh(int64_t now_ns) {
  const bool in_peace = !refresh_wanted_;
  refreshing_ = true;
  refresh_wanted_ = false;
  only_unreachable_ = true;
  sources_.clear();
  // Asked from the back: some connected primaries from a random one on, then the seeds likewise.
  const size_t first_seed = environment_.random() % seeds_.size();
  for (size_t i = 0; i < seeds_.size(); ++i) {
    const size_t seed = (first_seed + i) % seeds_.size();
    sources_.push_back({true, static_cast<uint32_t>(seed)});
  }
  if (options_.mode == Mode::kSentinel && scout_.ready() && shunned_ == kNoPrimary &&
      now_ns < other_sentinel_at_ns_) {
    return AskForSlots(&scout_);  // source_ is what it was; the others are asked if it fails
  }
  const size_t first_node = nodes_.empty() ? 0 : environment_.random() % nodes_.size();
  size_t peers = 0;
  const bool peers_know = options_.mode == Mode::kCluster;
  for (size_t i = 0; peers_know && i < nodes_.size() && peers < kMaxPeersAsked; ++i) {
    const auto index = static_cast<PrimaryIndex>((first_node + i) % nodes_.size());
    if (index == shunned_ || !nodes_[index]->connection.ready()) continue;
    if (!map_.node(index).in_map) continue;
    sources_.push_back({false, index});
    ++peers;
  }
  shunned_ = kNoPrimary;
  // First one that was found wrong, while nothing hurries: nobody else would see that it was
  // mended.
  if (peers_know && in_peace && !seed_alarms_.empty()) {
    const std::string& address = seed_alarms_.begin()->first;
    for (size_t i = 0; i < seeds_.size(); ++i) {
      if (ToString(seeds_[i]) == address) sources_.push_back({true, static_cast<uint32_t>(i)});
    }
  }
  TryNextSource(now_ns);
}

void ClusterClient::Impl::TryNextSource(int64_t now_ns) {
  slots_request_ = 0;
  while (!sources_.empty()) {
    source_ = sources_.back();
    sources_.pop_back();
    if (source_.is_seed) {
      scout_.Close();
      ReadFilesAnew();
      other_sentinel_at_ns_ = now_ns + kSameSentinelNs;
      return scout_.Start(seeds_[source_.index], "", now_ns, options_.connect_timeout_ns);
    }
    Connection& connection = nodes_[source_.index]->connection;
    if (connection.ready()) return AskForSlots(&connection);
  }
  FinishRefresh(/*taken=*/false, now_ns);
}

void ClusterClient::Impl::AskForSlots(Connection* connection) {
  Request request;
  request.kind = Request::Kind::kMap;
  request.scripted = false;
  request.primary = connection->tag();
  const std::string bytes = Encode(request);
  slots_request_ = Register(std::move(request));
  connection->Send(bytes, 0, slots_request_, Now());
}

void ClusterClient::Impl::TakeSlots(const Reply& reply) {
  slots_request_ = 0;
  const Endpoint asked =
      source_.is_seed ? seeds_[source_.index] : map_.node(source_.index).endpoint;
  const std::string subject = ToString(asked);
  if (reply.is_error()) {
    const ErrorVerdict verdict = JudgeError(reply.text);
    const FailureKind kind =
        verdict.what == ErrorClass::kDenied ? FailureKind::kDenied : FailureKind::kRetryLater;
    return SourceFailed({kind, absl::StrCat(subject, ": ", Printable(reply.text)), verdict.mend},
                        verdict.alarm);
  }
  absl::StatusOr<SlotsReply> slots = ParseClusterSlots(reply, asked);
  if (!slots.ok()) {
    const bool empty = absl::IsUnavailable(slots.status());
    Failure failure{empty ? FailureKind::kRetryLater : FailureKind::kProtocol,
                    absl::StrCat(subject, ": ", slots.status().message()),
                    empty ? "put the cluster together (redis-cli --cluster create)" : ""};
    return SourceFailed(failure, empty ? std::nullopt : std::optional(AlarmKind::kGarbage));
  }
  if (source_.is_seed) ClearSeedAlarms(subject);
  if (map_.Apply(*slots)) FitNodesToMap();
  FinishRefresh(/*taken=*/true, Now());
}

void ClusterClient::Impl::SourceFailed(Failure failure, std::optional<AlarmKind> alarm) {
  ++counters_.refresh_failures;
  if (options_.mode == Mode::kSentinel) ForSentinels(&failure, &alarm);
  const Endpoint& asked =
      source_.is_seed ? seeds_[source_.index] : map_.node(source_.index).endpoint;
  if (alarm) {
    alarms_.Raise(*alarm, ToString(asked), failure.message, failure.mend);
    if (source_.is_seed) seed_alarms_.emplace(ToString(asked), *alarm);
  }
  const bool unreachable =
      failure.kind == FailureKind::kUnavailable || failure.kind == FailureKind::kTimeout;
  // The most telling reason is kept: that a seed refuses us says more than that another is down.
  if (!unreachable || only_unreachable_) no_map_ = failure;
  only_unreachable_ = only_unreachable_ && unreachable && !alarm;
  TryNextSource(Now());
}

void ClusterClient::Impl::ClearSeedAlarms(const std::string& address) {
  std::erase_if(seed_alarms_, [&](const std::pair<std::string, AlarmKind>& alarm) {
    if (alarm.first != address) return false;
    alarms_.Clear(alarm.second, address);
    return true;
  });
}

void ClusterClient::Impl::ScoutDown(const ConnectionEnd& end) {
  // With the question in flight its loss has been told already.
  if (refreshing_ && source_.is_seed && slots_request_ == 0) SourceFailed(end.failure, end.alarm);
}

void ClusterClient::Impl::FinishRefresh(bool taken, int64_t now_ns) {
  refreshing_ = false;
  slots_request_ = 0;
  sources_.clear();
  const bool sentinels = options_.mode == Mode::kSentinel;
  if (sentinels) {
    FinishSentinels(taken);
  } else {
    scout_.Close();
  }
  refresh_not_before_ns_ = now_ns + kRefreshGapNs + Jitter(kRefreshGapNs) - kRefreshGapNs / 2;
  const int64_t third = (sentinels              ? 3 * kSentinelPollNs / 2
                         : seed_alarms_.empty() ? kPeriodicNs
                                                : kAlarmedNs) /
                        3;
  periodic_refresh_ns_ =
      now_ns + third + static_cast<int64_t>(environment_.random() % (2 * uint64_t(third) + 1));
  first_refresh_over_ = true;
  if (taken) {
    ++counters_.refreshes;
    alarms_.Clear(AlarmKind::kNoSeedReachable, "redis");
  } else {
    refresh_wanted_ = true;
    const bool any_ready =
        std::any_of(nodes_.begin(), nodes_.end(),
                    [](const std::unique_ptr<Node>& node) { return node->connection.ready(); });
    // A primary that answers says nothing of where the next one will be.
    if (only_unreachable_ && (!any_ready || sentinels)) {
      if (no_map_.mend.empty()) {
        no_map_.mend = "check redis.addresses, the network, and that the servers run";
      }
      alarms_.Raise(AlarmKind::kNoSeedReachable, "redis",
                    absl::StrCat(sentinels ? "no sentinel answers; the last one: "
                                           : "no seed and no known node answers; the last one: ",
                                 no_map_.message),
                    no_map_.mend);
    }
  }
  for (uint64_t id : std::exchange(waiting_for_map_, {})) {
    if (requests_.contains(id)) Route(id);
  }
}

}  // namespace sluice::redis
