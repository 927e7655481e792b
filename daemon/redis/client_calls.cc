// A call's way: routed by its shard's slot, sent or kept waiting, answered, redirected, failed.

#include <algorithm>
#include <cassert>
#include <utility>

#include "absl/strings/str_cat.h"
#include "daemon/redis/client_core.h"
#include "daemon/redis/codec.h"
#include "daemon/redis/slot.h"

namespace sluice::redis {
namespace {

constexpr int64_t kIdentityPauseNs = 1'000'000'000;  // after a refusal
constexpr size_t kMaxRunIdBytes = 64;

// Where in `args`, encoded bulk strings, the one after the first `count` begins.
size_t SkipBulks(std::string_view args, uint32_t count) {
  size_t at = 0;
  for (; count > 0 && at < args.size(); --count) {
    size_t bytes = 0;
    for (++at; at < args.size() && args[at] != '\r'; ++at) {
      bytes = 10 * bytes + static_cast<size_t>(args[at] - '0');
    }
    at += 2 + bytes + 2;
  }
  return std::min(at, args.size());
}

}  // namespace

void ClusterClient::Impl::Call(uint32_t shard, ScriptId script, std::string_view encoded_args,
                               uint32_t arg_count, uint64_t token) {
  ++counters_.calls;
  Request request;
  request.shard = shard;
  request.script = script;
  request.args = std::string(encoded_args);
  request.arg_count = arg_count;
  request.token = token;
  const bool sound = shard < options_.shards && script < options_.scripts.size() &&
                     encoded_args.size() <= kMaxArgumentBytes;
  assert(sound);
  const uint64_t id = Register(std::move(request));
  if (!sound) {
    return FailRequest(id, {FailureKind::kScript, "no such shard or script, or too long", ""});
  }
  Route(id);
}

void ClusterClient::Impl::Ping(PrimaryIndex primary, uint64_t token) {
  Request request;
  request.kind = Request::Kind::kPing;
  request.token = token;
  request.primary = primary;
  request.scripted = false;
  // A probe needs a key that the node owns; a node without one (ASK) gets a plain PING.
  for (uint32_t shard = 0; options_.probe_script && shard < options_.shards; ++shard) {
    if (PrimaryOf(shard) != primary) continue;
    request.scripted = true;
    request.script = *options_.probe_script;
    request.shard = shard;
    break;
  }
  const uint64_t id = Register(std::move(request));
  if (primary >= nodes_.size()) {
    return FailRequest(id, {FailureKind::kUnavailable, "no such primary", ""});
  }
  Node& node = *nodes_[primary];
  if (node.connection.phase() == Connection::Phase::kDown) Connect(primary, Now());
  Dispatch(id, primary);
}

uint64_t ClusterClient::Impl::Register(Request&& request) {
  const uint64_t id = next_request_++;
  requests_.emplace(id, std::move(request));
  return id;
}

void ClusterClient::Impl::Route(uint64_t id) {
  const PrimaryIndex owner = PrimaryOf(requests_.at(id).shard);
  if (owner != kNoPrimary) return Dispatch(id, owner);
  if (map_.known()) {
    RequestRefresh();
    return FailRequest(id, {FailureKind::kUnavailable, "no primary owns this shard's slot",
                            "give all 16384 slots to nodes (redis-cli --cluster check)"});
  }
  // The very first map is on its way: worth waiting for, or every start would look like an outage.
  if (first_refresh_over_ || waiting_for_map_.size() >= kMaxCallsPerPrimary) {
    return FailRequest(id, no_map_);
  }
  waiting_for_map_.push_back(id);
}

void ClusterClient::Impl::Dispatch(uint64_t id, PrimaryIndex primary) {
  Node& node = *nodes_[primary];
  Request& request = requests_.at(id);
  request.primary = primary;
  const int64_t now_ns = Now();
  node.last_used_ns = now_ns;
  if (node.waiting.size() + node.connection.in_flight() >= kMaxCallsPerPrimary ||
      node.connection.unsent_bytes() + request.args.size() > kMaxUnsentBytes) {
    return FailRequest(
        id, {FailureKind::kRetryLater,
             absl::StrCat(AddressOf(primary), ": too many calls wait for this node"), ""});
  }
  if (node.connection.ready()) return SendNow(id, &node);
  if (node.connection.phase() == Connection::Phase::kDown) {
    if (now_ns < node.retry_at_ns) return FailRequest(id, node.last_end.failure);
    Connect(primary, now_ns);
  }
  node.waiting.push_back(id);
}

void ClusterClient::Impl::SendNow(uint64_t id, Node* node) {
  const Request& request = requests_.at(id);
  if (NeedsRunId(request) && node->run_id.empty()) {
    return FailRequest(id, {FailureKind::kRetryLater,
                            absl::StrCat(AddressOf(request.primary), ": not known who it is"),
                            "give the user the right to INFO"});
  }
  node->connection.Send(Encode(request), request.asking ? 1 : 0, id, Now());
}

std::string ClusterClient::Impl::Encode(const Request& request) const {
  std::string out;
  if (request.kind == Request::Kind::kMap) {
    if (options_.mode == Mode::kSentinel) {
      AppendCommand(&out, {"SENTINEL", "MASTER", options_.sentinel.master});
    } else {
      AppendCommand(&out, {"CLUSTER", "SLOTS"});
    }
    return out;
  }
  if (request.kind == Request::Kind::kIdentity) {
    AppendCommand(&out, {"INFO", "server"});
    return out;
  }
  if (!request.scripted) {
    AppendCommand(&out, {"PING"});
    return out;
  }
  const Greeting::Script& script = greeting_.scripts[request.script];
  out.reserve(request.args.size() + 256 + (request.whole_text ? script.text.size() : 0));
  if (request.asking) AppendCommand(&out, {"ASKING"});
  AppendArrayHead(&out, 4 + uint64_t{request.arg_count} + (NeedsRunId(request) ? 1 : 0));
  AppendBulk(&out, request.whole_text ? "EVAL" : "EVALSHA");
  AppendBulk(&out, request.whole_text ? script.text : script.sha);
  AppendBulk(&out, "1");
  AppendBulk(&out, KeyOf(request));
  if (!NeedsRunId(request)) {
    out.append(request.args);
    return out;
  }
  const size_t at = SkipBulks(request.args, *options_.scripts[request.script].run_id_before);
  out.append(request.args, 0, at);
  AppendBulk(&out, nodes_[request.primary]->run_id);
  out.append(request.args, at);
  return out;
}

bool ClusterClient::Impl::NeedsRunId(const Request& request) const {
  return request.kind == Request::Kind::kCall &&
         options_.scripts[request.script].run_id_before.has_value();
}

std::string ClusterClient::Impl::KeyOf(const Request& request) const {
  return FamilyKey(shard_keys_[request.shard], options_.scripts[request.script].family);
}

void ClusterClient::Impl::FailRequest(uint64_t id, Failure failure) {
  const auto found = requests_.find(id);
  if (found == requests_.end()) return;
  Request request = std::move(found->second);
  requests_.erase(found);
  if (request.kind == Request::Kind::kMap) {
    if (id == slots_request_) SourceFailed(failure, std::nullopt);
    return;
  }
  if (request.kind == Request::Kind::kIdentity) {
    nodes_[request.primary]->ask_identity_ns = Now() + kIdentityPauseNs;
    return;
  }
  if (failure.kind == FailureKind::kTimeout) ++counters_.timeouts;
  if (failure.kind == FailureKind::kScript) ++counters_.script_errors;
  if (request.kind == Request::Kind::kCall) ++counters_.failures;
  failed_.push_back({std::move(request), std::move(failure)});
}

void ClusterClient::Impl::OnLost(Connection* connection, uint64_t id, const Failure& failure) {
  if (connection->tag() != kNoPrimary) {
    shunned_ = connection->tag();
    RequestRefresh();
  }
  FailRequest(id, failure);
}

void ClusterClient::Impl::OnAnswer(Connection* connection, uint64_t id, Reply reply,
                                   int64_t latency_ns, bool on_time) {
  const PrimaryIndex index = connection->tag();
  if (index != kNoPrimary) {
    // Late answers count too: without them a node that has become slow would never get the longer
    // time-out that it needs.
    Node& node = *nodes_[index];
    node.latency->Add(latency_ns);
    node.quantile.Add(latency_ns, Now());
    connection->set_request_timeout_ns(RequestTimeoutNs(
        node.quantile.P99Ns(), options_.request_timeout_min_ns, options_.request_timeout_max_ns));
  }
  if (on_time && requests_.contains(id)) TakeAnswer(id, reply);
}

void ClusterClient::Impl::TakeAnswer(uint64_t id, const Reply& reply) {
  if (requests_.at(id).kind == Request::Kind::kMap) {
    requests_.erase(id);
    if (id == slots_request_) {
      options_.mode == Mode::kSentinel ? TakeMaster(reply) : TakeSlots(reply);
    }
    return;
  }
  if (requests_.at(id).kind == Request::Kind::kIdentity) {
    const PrimaryIndex primary = requests_.at(id).primary;
    requests_.erase(id);
    return TakeIdentity(primary, reply);
  }
  if (reply.is_error()) return TakeError(id, reply);
  auto node = requests_.extract(id);
  const Request& request = node.mapped();
  Clear(&nodes_[request.primary]->call_alarm);
  Deliver(request, reply);
}

// "run_id:" and 40 hex digits, on a line of its own.
void ClusterClient::Impl::TakeIdentity(PrimaryIndex primary, const Reply& reply) {
  Node& node = *nodes_[primary];
  constexpr std::string_view kName = "\nrun_id:";
  const size_t at = reply.text.find(kName);
  if (reply.is_error() || at == std::string::npos) {
    node.ask_identity_ns = Now() + kIdentityPauseNs;
    return;
  }
  const size_t begin = at + kName.size();
  const size_t end = reply.text.find_first_of("\r\n", begin);
  node.run_id = reply.text.substr(begin, std::min(end, begin + kMaxRunIdBytes) - begin);
}

void ClusterClient::Impl::Deliver(const Request& request, const Reply& reply) {
  TellTopology();
  if (request.kind == Request::Kind::kPing) {
    return environment_.listener->OnPong(request.primary, request.token, nullptr);
  }
  ++counters_.replies;
  environment_.listener->OnReply(request.shard, request.token, reply, request.primary);
}

void ClusterClient::Impl::TakeError(uint64_t id, const Reply& reply) {
  Request& request = requests_.at(id);
  const PrimaryIndex primary = request.primary;
  const ErrorVerdict verdict = JudgeError(reply.text);
  Failure failure;
  failure.message = absl::StrCat(AddressOf(primary), ": ", Printable(reply.text));
  failure.mend = verdict.mend;
  switch (verdict.what) {
    case ErrorClass::kMoved:
    case ErrorClass::kAsk:
      return FollowRedirect(id, reply, verdict.what);
    case ErrorClass::kNoScript:
      ++counters_.noscript;
      if (!request.whole_text && request.scripted) {
        request.whole_text = true;
        return Dispatch(id, primary);
      }
      failure.kind = FailureKind::kScript;
      break;
    case ErrorClass::kReadOnly:
      shunned_ = primary;
      RequestRefresh();
      if (options_.mode == Mode::kSingle) {
        failure.mend = "the server is a replica: name the primary in redis.addresses";
      }
      failure.kind = FailureKind::kRetryLater;
      break;
    case ErrorClass::kRetryLater:
      failure.kind = FailureKind::kRetryLater;
      break;
    case ErrorClass::kDenied:
      failure.kind = FailureKind::kDenied;
      break;
    case ErrorClass::kScript:
      failure.kind = FailureKind::kScript;
      break;
  }
  if (verdict.alarm) {
    RaiseFor(primary, *verdict.alarm, failure, &nodes_[primary]->call_alarm);
  }
  FailRequest(id, std::move(failure));
}

void ClusterClient::Impl::FollowRedirect(uint64_t id, const Reply& reply, ErrorClass what) {
  Request& request = requests_.at(id);
  const PrimaryIndex from = request.primary;
  Failure failure;
  failure.kind = FailureKind::kRetryLater;
  failure.message = absl::StrCat(AddressOf(from), ": ", Printable(reply.text));
  if (options_.mode != Mode::kCluster) {
    failure.kind = FailureKind::kDenied;
    failure.mend = "the server is part of a cluster: set redis.mode: cluster";
    RaiseFor(from, AlarmKind::kWrongMode, failure, &nodes_[from]->call_alarm);
    return FailRequest(id, std::move(failure));
  }
  const bool moved = what == ErrorClass::kMoved;
  ++(moved ? counters_.moved : counters_.asked);
  if (moved) RequestRefresh();
  absl::StatusOr<Redirect> redirect = ParseRedirect(reply.text, map_.node(from).endpoint);
  // A probe asks after one node; that it sends us elsewhere is its answer.
  if (request.kind == Request::Kind::kPing || !redirect.ok() ||
      redirect->slot != shard_slots_[request.shard]) {
    return FailRequest(id, std::move(failure));
  }
  if (++request.redirects > kMaxRedirects) {
    failure.message = absl::StrCat("redirected more than ", kMaxRedirects, " times, at last by ",
                                   failure.message);
    return FailRequest(id, std::move(failure));
  }
  const PrimaryIndex to =
      moved ? map_.Patch(redirect->slot, redirect->endpoint) : map_.FindOrAdd(redirect->endpoint);
  if (to == kNoPrimary) return FailRequest(id, std::move(failure));
  FitNodesToMap();
  request.asking = !moved;
  request.whole_text = false;
  Dispatch(id, to);
}

void ClusterClient::Impl::DeliverFailures() {
  for (FailedRequest& failed : std::exchange(failed_, {})) {
    const Request& request = failed.request;
    if (request.kind == Request::Kind::kPing) {
      environment_.listener->OnPong(request.primary, request.token, &failed.failure);
    } else {
      environment_.listener->OnFailure(request.shard, request.token, failed.failure,
                                       request.primary);
    }
  }
}

}  // namespace sluice::redis
