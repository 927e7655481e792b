// The nodes of the client: their connections, the pauses between attempts, the alarms.

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "daemon/redis/client_core.h"

namespace sluice::redis {
namespace {

// Reconnect pauses: short enough that a restarted server is found before routes degrade, long
// enough that a dead one costs nothing.
constexpr int64_t kFirstPauseNs = 100'000'000;
constexpr int64_t kLongestPauseNs = 1'000'000'000;
// A node that owns no slots (it has left, or is being filled and known by ASK) is kept so long
// after its last use.
constexpr int64_t kUnownedIdleNs = 10'000'000'000;

}  // namespace

ClusterClient::Impl::Node::Node(Impl* client, PrimaryIndex index)
    : connection(client->Ground(), &client->greeting_, client, index) {
  connection.set_request_timeout_ns(client->options_.request_timeout_max_ns);
}

// Between half of it and all of it, so that many daemons do not knock at once.
int64_t ClusterClient::Impl::Jitter(int64_t full_ns) {
  const auto half = static_cast<uint64_t>(full_ns / 2);
  return static_cast<int64_t>(half + environment_.random() % (half + 1));
}

void ClusterClient::Impl::FitNodesToMap() {
  std::vector<bool> serves(map_.size());
  for (uint32_t shard = 0; shard < options_.shards; ++shard) {
    if (PrimaryOf(shard) != kNoPrimary) serves[PrimaryOf(shard)] = true;
  }
  for (PrimaryIndex i = 0; i < map_.size(); ++i) {
    if (i == nodes_.size()) nodes_.push_back(std::make_unique<Node>(this, i));
    if (!map_.node(i).in_map) Clear(&nodes_[i]->start_alarm);
    // A node that no call goes to any more would never show that it is mended.
    if (!serves[i]) Clear(&nodes_[i]->call_alarm);
  }
  topology_changed_ = true;
  std::lock_guard lock(stats_mutex_);
  stats_.clear();
  for (PrimaryIndex i = 0; i < map_.size(); ++i) {
    stats_.push_back({AddressOf(i), map_.node(i).node_id, nodes_[i]->latency});
  }
}

void ClusterClient::Impl::TellTopology() {
  if (std::exchange(topology_changed_, false)) environment_.listener->OnTopology();
}

void ClusterClient::Impl::Connect(PrimaryIndex index, int64_t now_ns) {
  ReadFilesAnew();
  const ClusterMap::Node& node = map_.node(index);
  nodes_[index]->run_id.clear();
  nodes_[index]->ask_identity_ns = 0;
  nodes_[index]->connection.Start(node.endpoint, node.hostname, now_ns,
                                  options_.connect_timeout_ns);
}

void ClusterClient::Impl::FilesAlarm(AlarmKind kind, const std::string& subject,
                                     const absl::Status& status) {
  if (status.ok()) return alarms_.Clear(kind, subject);
  const std::string text(status.message());
  const size_t mend = std::min(text.find("; "), text.size());
  alarms_.Raise(kind, subject, text.substr(0, mend),
                mend < text.size() ? text.substr(mend + 2) : "");
}

void ClusterClient::Impl::ReadAnew(const ReadPassword& read, const std::string& subject,
                                   std::string* password) {
  if (!read) return;
  absl::StatusOr<std::string> fresh = read();
  if (fresh.ok() && !fresh->empty()) *password = *fresh;
  FilesAlarm(AlarmKind::kPasswordFile, subject, fresh.status());
}

void ClusterClient::Impl::ReadFilesAnew() {
  ReadAnew(options_.read_password, "redis", &greeting_.password);
  if (options_.mode == Mode::kSentinel) {
    ReadAnew(options_.sentinel.read_password, "sentinel", &scout_greeting_.password);
  } else {
    scout_greeting_.password = greeting_.password;
  }
  if (tls_ != nullptr) FilesAlarm(AlarmKind::kTlsFiles, "redis", tls_->Refresh());
}

void ClusterClient::Impl::OnReady(Connection* connection) {
  if (connection == &scout_) return AskForSlots(&scout_);
  ++counters_.connects;
  Node& node = *nodes_[connection->tag()];
  node.pause_ns = 0;
  Clear(&node.start_alarm);
  // That the primary answers says nothing of the sentinels.
  if (options_.mode != Mode::kSentinel) alarms_.Clear(AlarmKind::kNoSeedReachable, "redis");
  // What was wrong with it as a seed is mended, too; nobody may ask it as a seed any more.
  ClearSeedAlarms(AddressOf(connection->tag()));
  AskIdentity(connection->tag());
  ReleaseWaiting(&node);
}

void ClusterClient::Impl::AskIdentity(PrimaryIndex index) {
  Node& node = *nodes_[index];
  if (!options_.identify) return;
  node.ask_identity_ns = INT64_MAX;
  Request request;
  request.kind = Request::Kind::kIdentity;
  request.primary = index;
  SendNow(Register(std::move(request)), &node);
}

void ClusterClient::Impl::RaiseFor(PrimaryIndex index, AlarmKind kind, const Failure& failure,
                                   Standing* standing) {
  const std::pair<AlarmKind, std::string> alarm(kind, AddressOf(index));
  if (*standing != alarm) Clear(standing);
  *standing = alarm;
  alarms_.Raise(kind, alarm.second, failure.message, failure.mend);
}

void ClusterClient::Impl::Clear(Standing* standing) {
  if (*standing) alarms_.Clear((*standing)->first, (*standing)->second);
  standing->reset();
}

void ClusterClient::Impl::ReleaseWaiting(Node* node) {
  for (uint64_t id : std::exchange(node->waiting, {})) {
    if (requests_.contains(id)) SendNow(id, node);
  }
}

void ClusterClient::Impl::OnDown(Connection* connection, const ConnectionEnd& end) {
  if (connection == &scout_) return ScoutDown(end);
  const PrimaryIndex index = connection->tag();
  Node& node = *nodes_[index];
  if (end.was_ready) ++counters_.disconnects;
  node.run_id.clear();
  node.last_end = end;
  // What only an operator can mend need not be tried ten times a second.
  node.pause_ns = end.alarm            ? kLongestPauseNs
                  : node.pause_ns == 0 ? kFirstPauseNs
                                       : std::min(2 * node.pause_ns, kLongestPauseNs);
  node.retry_at_ns = Now() + Jitter(node.pause_ns);
  // A node that only a redirect told of has no name yet that its certificate could have: the map
  // that was asked for brings it.
  const bool nameless = options_.mode == Mode::kCluster && map_.node(index).node_id.empty() &&
                        end.alarm == AlarmKind::kTlsFailed;
  if (end.alarm && !nameless) {
    RaiseFor(index, *end.alarm, end.failure, &node.start_alarm);
  } else if (options_.mode == Mode::kSingle && end.failure.kind == FailureKind::kUnavailable) {
    alarms_.Raise(AlarmKind::kNoSeedReachable, "redis", end.failure.message,
                  end.failure.mend.empty()
                      ? "check redis.addresses, the network, and that the server runs"
                      : end.failure.mend);
  }
  for (uint64_t id : std::exchange(node.waiting, {})) FailRequest(id, end.failure);
  shunned_ = index;
  RequestRefresh();
}

void ClusterClient::Impl::PollNode(PrimaryIndex index, int64_t now_ns) {
  Node& node = *nodes_[index];
  node.connection.Poll(now_ns);
  if (node.connection.phase() != Connection::Phase::kDown && node.connection.in_flight() == 0 &&
      node.connection.endpoint() != map_.node(index).endpoint) {
    node.connection.Close();  // the node has moved; what waits goes to the new address
    node.retry_at_ns = 0;
    node.pause_ns = 0;
    if (!node.waiting.empty()) Connect(index, now_ns);
  }
  const bool down = node.connection.phase() == Connection::Phase::kDown;
  if (node.connection.ready() && node.run_id.empty() && now_ns >= node.ask_identity_ns) {
    AskIdentity(index);
  }
  if (map_.node(index).in_map) {
    if (down && now_ns >= node.retry_at_ns) Connect(index, now_ns);
  } else if (!down && node.connection.in_flight() == 0 && node.waiting.empty() &&
             now_ns - node.last_used_ns >= kUnownedIdleNs) {
    node.connection.Close();
  }
}

void ClusterClient::Impl::Poll() {
  const int64_t now_ns = Now();
  scout_.Poll(now_ns);
  for (PrimaryIndex i = 0; i < nodes_.size(); ++i) PollNode(i, now_ns);
  PollRefresh(now_ns);
  TellTopology();
  for (const Alarm& alarm : alarms_.TakeEvents()) environment_.listener->OnAlarm(alarm);
  DeliverFailures();
}

int64_t ClusterClient::Impl::NextDeadlineNs() const {
  if (!failed_.empty() || alarms_.has_events() || topology_changed_) return 0;
  int64_t deadline = scout_.NextDeadlineNs();
  for (PrimaryIndex i = 0; i < nodes_.size(); ++i) {
    const Node& node = *nodes_[i];
    deadline = std::min(deadline, node.connection.NextDeadlineNs());
    const bool down = node.connection.phase() == Connection::Phase::kDown;
    if (map_.node(i).in_map && down) {
      deadline = std::min(deadline, node.retry_at_ns);
    } else if (!map_.node(i).in_map && !down && node.connection.in_flight() == 0 &&
               node.waiting.empty()) {
      // With a question in flight (that after the map is no use) the connection's own deadline
      // counts.
      deadline = std::min(deadline, node.last_used_ns + kUnownedIdleNs);
    }
  }
  if (options_.mode == Mode::kSingle || refreshing_) return deadline;
  return std::min(deadline, refresh_wanted_
                                ? refresh_not_before_ns_
                                : std::max(periodic_refresh_ns_, refresh_not_before_ns_));
}

PrimaryInfo ClusterClient::Impl::Primary(PrimaryIndex index) const {
  PrimaryInfo info;
  if (index >= nodes_.size()) return info;
  const Node& node = *nodes_[index];
  info.address = AddressOf(index);
  info.node_id = map_.node(index).node_id;
  info.hostname = map_.node(index).hostname;
  info.in_map = map_.node(index).in_map;
  info.connected = node.connection.ready();
  info.p50_ns = node.quantile.QuantileNs(0.5);
  info.p99_ns = node.quantile.P99Ns();
  info.request_timeout_ns = RequestTimeoutNs(info.p99_ns, options_.request_timeout_min_ns,
                                             options_.request_timeout_max_ns);
  return info;
}

const std::string& ClusterClient::Impl::RunId(PrimaryIndex index) const {
  static const std::string none;
  return index < nodes_.size() ? nodes_[index]->run_id : none;
}

bool ClusterClient::Impl::Ready() const {
  if (!map_.known()) return false;
  for (PrimaryIndex i = 0; i < nodes_.size(); ++i) {
    if (map_.node(i).in_map && !nodes_[i]->connection.ready()) return false;
  }
  return true;
}

std::vector<PrimaryStats> ClusterClient::Impl::Stats() const {
  std::lock_guard lock(stats_mutex_);
  std::vector<PrimaryStats> all;
  for (PrimaryIndex i = 0; i < stats_.size(); ++i) {
    all.push_back({i, stats_[i].address, stats_[i].node_id, stats_[i].latency->Snapshot()});
  }
  return all;
}

ClientCounters ClusterClient::Impl::Counters() const {
  ClientCounters out;
  out.calls = counters_.calls;
  out.replies = counters_.replies;
  out.failures = counters_.failures;
  out.script_errors = counters_.script_errors;
  out.moved = counters_.moved;
  out.asked = counters_.asked;
  out.noscript = counters_.noscript;
  out.timeouts = counters_.timeouts;
  out.connects = counters_.connects;
  out.disconnects = counters_.disconnects;
  out.refreshes = counters_.refreshes;
  out.refresh_failures = counters_.refresh_failures;
  return out;
}

}  // namespace sluice::redis
