#include "daemon/reconcile/worker.h"

#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "daemon/config/parse.h"
#include "daemon/config/units.h"
#include "daemon/log.h"
#include "lua_scripts.h"

namespace sluice::reconcile {
namespace {

constexpr uint64_t kAlarmsNs = 200'000'000;
constexpr redis::ScriptId kFoldScript = 0;
constexpr redis::ScriptId kProbeScript = 1;
constexpr redis::ScriptId kLeaseScript = 2;
constexpr redis::ScriptId kHomeScript = 3;
constexpr redis::ScriptId kPlacesScript = 4;

std::string HostName(const config::RedisConfig& config) {
  if (!config.host_name.empty()) return config.host_name;
  char name[256] = {};
  return gethostname(name, sizeof name - 1) == 0 && name[0] != '\0' ? name : "unknown";
}

CallOutcome OutcomeOf(const redis::Failure& failure) {
  switch (failure.kind) {
    case redis::FailureKind::kDenied:
    case redis::FailureKind::kScript:
    case redis::FailureKind::kProtocol:
      return CallOutcome::kHard;
    default:
      return CallOutcome::kRetry;
  }
}

std::string_view BreakerName(Breaker::State state) {
  switch (state) {
    case Breaker::State::kClosed:
      return "closed";
    case Breaker::State::kOpen:
      return "open";
    case Breaker::State::kHalfOpen:
      return "half-open";
  }
  return "?";
}

absl::StatusOr<redis::ClientOptions> ClientOptionsOf(const config::RedisConfig& config) {
  absl::StatusOr<std::string> password = config::ReadPassword(config);
  if (!password.ok()) return password.status();
  redis::ClientOptions options;
  options.seeds = config.addresses;
  options.mode = config.mode == config::RedisMode::kSingle     ? redis::Mode::kSingle
                 : config.mode == config::RedisMode::kSentinel ? redis::Mode::kSentinel
                                                               : redis::Mode::kCluster;
  if (config.sentinel) {
    absl::StatusOr<std::string> theirs = config::ReadPassword(*config.sentinel);
    if (!theirs.ok()) return theirs.status();
    options.sentinel = {config.sentinel->master, config.sentinel->username, *std::move(theirs),
                        [sentinel = *config.sentinel] { return config::ReadPassword(sentinel); }};
  }
  options.user = config.username;
  options.password = *std::move(password);
  options.read_password = [config] { return config::ReadPassword(config); };
  if (config.tls) {
    options.tls = {config::FileOf(config.tls->ca_file),
                   config::FileOf(config.tls->certificate_file),
                   config::FileOf(config.tls->key_file), config.tls->server_name};
  }
  options.client_name = absl::StrCat("sluice-", HostName(config));
  options.prefix = config.prefix;
  options.shards = config.shards;
  options.scripts = {{"fold", lua::kFold},
                     {"probe", lua::kProbe},
                     {"lease", lua::kLease, "strict", lease::kPrimaryArg},
                     {"home", lua::kHome, "strict", lease::kHomePrimaryArg},
                     {"places", lua::kPlaces, "places", lease::kPlacePrimaryArg}};
  options.identify = true;
  options.probe_script = kProbeScript;
  options.connect_timeout_ns = static_cast<int64_t>(config.connect_timeout_ns);
  options.request_timeout_max_ns = static_cast<int64_t>(config.request_timeout_ns);
  options.request_timeout_min_ns =
      std::min(options.request_timeout_min_ns, options.request_timeout_max_ns);
  return options;
}

// One for each region, the own first; without regions the one there is.
absl::StatusOr<std::vector<redis::RegionOptions>> RegionOptionsOf(
    const config::RedisConfig& config) {
  std::vector<redis::RegionOptions> regions;
  std::vector<const config::RedisConfig*> configs = {&config};
  for (const config::RedisConfig& region : config.regions) {
    if (region.region != config.region) configs.push_back(&region);
  }
  for (const config::RedisConfig* const one : configs) {
    absl::StatusOr<redis::ClientOptions> options = ClientOptionsOf(*one);
    if (!options.ok()) return options.status();
    regions.push_back({one->region, *std::move(options)});
  }
  return regions;
}

}  // namespace

Worker::Worker(const EngineParts& parts, WorkerEnvironment environment)
    : parts_(parts),
      environment_(std::move(environment)),
      injector_(parts_.redis.has_value() ? parts_.redis->request_timeout_ns : 0,
                environment_.random) {}

Worker::~Worker() = default;

absl::StatusOr<std::unique_ptr<Worker>> Worker::Create(const EngineParts& parts,
                                                       WorkerEnvironment environment) {
  std::unique_ptr<Worker> worker(new Worker(parts, std::move(environment)));
  absl::Status status = worker->Open();
  if (!status.ok()) return status;
  return worker;
}

absl::Status Worker::Open() {
  const bool has_redis = parts_.redis.has_value();
  if (has_redis) {
    absl::StatusOr<std::vector<redis::RegionOptions>> regions = RegionOptionsOf(*parts_.redis);
    if (!regions.ok()) return regions.status();
    redis::ClusterClient::Environment environment;
    environment.ring = environment_.ring;
    environment.listener = this;
    environment.now_ns = [this] { return static_cast<int64_t>(Now()); };
    environment.random = environment_.random;
    absl::StatusOr<std::unique_ptr<redis::RegionClients>> client =
        redis::RegionClients::Create(*std::move(regions), environment);
    if (!client.ok()) return client.status();
    client_ = *std::move(client);
  }
  ReconcilerOptions options;
  options.shard_count = parts_.control->info().shard_count;
  options.quotas = parts_.quotas;
  options.region_count = has_redis ? client_->count() : 1;
  if (has_redis) options.exchange_ns = parts_.redis->exchange_ns;
  options.flush_interval_ns = has_redis ? parts_.redis->flush_interval_ns : 100'000'000;
  options.instance = environment_.instance;
  options.use_since_ns = environment_.use_since_ns != 0 ? environment_.use_since_ns : Now();
  options.has_redis = has_redis;
  reconciler_ = std::make_unique<Reconciler>(
      options, parts_.buckets, parts_.control, has_redis ? static_cast<Transport*>(this) : nullptr,
      [this] { return static_cast<double>(environment_.random() >> 11) * 0x1p-53; });
  if (parts_.former_rules != nullptr) reconciler_->SetRules(parts_.former_rules, Now());
  return absl::OkStatus();
}

void Worker::SetRules(std::shared_ptr<const config::CompiledRules> rules) {
  if (client_ != nullptr) client_->ReadFilesAnew();
  rules_ = rules;
  reconciler_->SetRules(std::move(rules), Now());
}

uint64_t Worker::Tick() {
  EndChaosInTime();
  const uint64_t now_ns = Now();
  DeliverHeld();
  if (now_ns >= tick_ns_) {
    reconciler_->Tick(now_ns);
    tick_ns_ = now_ns + std::max(reconciler_->PauseNs(now_ns), kTickNs);
    strict_ns_ = now_ns + reconciler_->PauseNs(now_ns);
  } else if (reconciler_->has_strict() && now_ns >= strict_ns_) {
    reconciler_->TickStrict(now_ns);
    strict_ns_ = now_ns + reconciler_->PauseNs(now_ns);
  }
  if (now_ns >= alarms_ns_ + kAlarmsNs) {
    alarms_ns_ = now_ns;
    UpdateAlarms();
    LogBans();
  }
  const uint64_t own_ns = reconciler_->has_strict() ? std::min(tick_ns_, strict_ns_) : tick_ns_;
  if (client_ == nullptr) return own_ns;
  const uint64_t turn_ns = std::min(own_ns, std::max(now_ns, injector_.NextNs()));
  const int64_t deadline_ns = client_->NextDeadlineNs();
  if (deadline_ns == INT64_MAX) return turn_ns;
  return std::min(turn_ns,
                  std::max(now_ns, static_cast<uint64_t>(std::max<int64_t>(deadline_ns, 0))));
}

void Worker::Wait(uint64_t until_ns) {
  const uint64_t now_ns = Now();
  const auto timeout_ns = static_cast<int64_t>(until_ns - std::min(now_ns, until_ns));
  if (client_ == nullptr) {
    const timespec pause = {timeout_ns / 1'000'000'000, timeout_ns % 1'000'000'000};
    nanosleep(&pause, nullptr);
    return;
  }
  const absl::StatusOr<size_t> waited = environment_.ring->Wait(timeout_ns);
  if (!waited.ok()) {
    SetAlarm("ring", true, std::string(waited.status().message()),
             "restart sluiced with redis.transport: epoll");
    const timespec pause = {0, static_cast<long>(kTickNs)};
    nanosleep(&pause, nullptr);
  }
  client_->Poll();
}

bool Worker::Flush() {
  DeliverHeld();
  reconciler_->FlushAll(Now());
  return client_ == nullptr || reconciler_->IsSettled();
}

void Worker::Call(uint32_t shard, std::string_view args, uint32_t arg_count, uint64_t token) {
  if (injector_.TakesCall(shard, token, client_->PrimaryOf(shard), RealNow())) return;
  client_->Call(shard, kFoldScript, args, arg_count, token);
}

void Worker::Lend(uint32_t shard, std::string_view args, uint32_t arg_count, uint64_t token) {
  if (injector_.TakesCall(shard, token, client_->PrimaryOf(shard), RealNow())) return;
  client_->Call(shard, kLeaseScript, args, arg_count, token);
}

void Worker::Settle(uint32_t shard, std::string_view args, uint32_t arg_count, uint64_t token) {
  if (injector_.TakesCall(shard, token, client_->PrimaryOf(shard), RealNow())) return;
  client_->Call(shard, kHomeScript, args, arg_count, token);
}

void Worker::AskPlaces(uint32_t shard, std::string_view args, uint32_t arg_count, uint64_t token) {
  if (injector_.TakesCall(shard, token, client_->PrimaryOf(shard), RealNow())) return;
  client_->Call(shard, kPlacesScript, args, arg_count, token);
}

void Worker::Ping(uint32_t primary, uint64_t token) {
  if (injector_.TakesPing(primary, token, RealNow())) return;
  client_->Ping(primary, token);
}

void Worker::OnReply(uint32_t shard, uint64_t token, const redis::Reply& reply,
                     redis::PrimaryIndex primary) {
  if (!is_delivering_ && injector_.TakesReply(shard, token, reply, primary, RealNow())) return;
  reconciler_->OnReply(shard, token, reply, primary, Now());
}

void Worker::OnFailure(uint32_t shard, uint64_t token, const redis::Failure& failure,
                       redis::PrimaryIndex primary) {
  ++failures_[primary];
  last_error_[primary] =
      absl::StrCat(std::string(redis::FailureName(failure.kind)), ": ", failure.message);
  log::Debug("shard %d: %s", shard, last_error_[primary]);
  reconciler_->OnFailure(shard, token, OutcomeOf(failure), primary, Now());
}

void Worker::OnPong(redis::PrimaryIndex primary, uint64_t token, const redis::Failure* failure) {
  if (!is_delivering_ && failure == nullptr && injector_.TakesPong(primary, token, RealNow())) {
    return;
  }
  if (failure != nullptr) {
    last_error_[primary] =
        absl::StrCat(std::string(redis::FailureName(failure->kind)), ": ", failure->message);
  } else {
    last_error_.erase(primary);
  }
  const bool hard = failure != nullptr && OutcomeOf(*failure) == CallOutcome::kHard;
  reconciler_->OnPong(primary, failure == nullptr, hard, Now());
}

PrimaryStatus Worker::StatusOf(const redis::PrimaryStats& stats) const {
  const redis::PrimaryInfo info = client_->Primary(stats.index);
  PrimaryStatus status;
  const std::string& region = client_->name(client_->RegionOf(stats.index));
  status.address = region.empty() ? stats.address : absl::StrCat(region, "/", stats.address);
  status.hostname = info.hostname;
  status.breaker = std::string(BreakerName(reconciler_->breaker(stats.index)));
  status.connected = info.connected;
  status.shards = reconciler_->ShardsOf(stats.index);
  status.p50_ns = static_cast<uint64_t>(std::max<int64_t>(info.p50_ns, 0));
  status.p99_ns = static_cast<uint64_t>(std::max<int64_t>(info.p99_ns, 0));
  status.calls = stats.latency;
  const auto failures = failures_.find(stats.index);
  if (failures != failures_.end()) status.failures = failures->second;
  const auto error = last_error_.find(stats.index);
  if (error != last_error_.end()) status.last_error = error->second;
  return status;
}

void Worker::DeliverHeld() {
  is_delivering_ = true;
  injector_.Deliver(RealNow(), *this);
  is_delivering_ = false;
}

void Worker::SetChaos(std::optional<chaos::Order> order, uint64_t until_ns) {
  EndChaos();
  if (order.has_value()) {
    chaos_ = order->ToString();
    SetAlarm(
        "chaos", true,
        absl::StrCat("an operator tests ", chaos_, " for ", config::FormatDuration(order->for_ns)),
        "it ends by itself; or end sluicectl chaos");
    if (order->fault == chaos::Fault::kClockLag) {
      not_before_ns_ = Now();
      lag_ns_ = order->by_ns;
    } else if (order->fault == chaos::Fault::kEmergency) {
      reconciler_->Force(order->share, order->rules, Now());
    }
  }
  injector_.Set(std::move(order), until_ns);
}

void Worker::Unban(const std::string& bucket) {
  reconciler_->Unban(bucket, Now());
  LogBans();
}

void Worker::LogBans() {
  for (const BanEvent& event : reconciler_->TakeBanEvents()) {
    if (event.for_ns == 0) {
      log::Info("an operator has ended the ban of %s", event.bucket);
    } else {
      log::Info("%s is banned for %s: too many denials", event.bucket,
                config::FormatDuration(event.for_ns));
    }
  }
}

void Worker::EndChaos() {
  if (chaos_.empty()) return;
  injector_.Set({}, 0);
  chaos_.clear();
  lag_ns_ = 0;
  reconciler_->Force(0, {}, Now());
  SetAlarm("chaos", false, "", "");
}

void Worker::EndChaosInTime() {
  if (!chaos_.empty() && injector_.InForce(RealNow()) == nullptr) EndChaos();
}

bool Worker::IsPaused() {
  EndChaosInTime();
  const chaos::Order* const order = injector_.InForce(RealNow());
  return order != nullptr && order->fault == chaos::Fault::kDaemonPause;
}

EngineSnapshot Worker::Snapshot() const {
  const ReconcilerStats& stats = reconciler_->stats();
  EngineSnapshot s;
  s.has_redis = client_ != nullptr;
  s.transport = environment_.transport_name;
  s.unreconciled_age_ns = stats.oldest_use_ns;
  s.live_buckets = reconciler_->live_buckets();
  s.harvested_tokens = stats.harvested_tokens;
  s.batches = stats.batches;
  s.batched_buckets = stats.batched_buckets;
  s.resends = stats.resends;
  s.requeues = stats.requeues;
  if (const lease::Keeper* const keeper = reconciler_->keeper(); keeper != nullptr) {
    const lease::KeeperStats& lent = keeper->stats();
    s.leases = {.buckets = keeper->size(),
                .held_tokens = keeper->held_tokens(),
                .calls = lent.calls,
                .called_buckets = lent.asked_buckets,
                .resends = lent.resends,
                .lent_tokens = lent.lent_tokens,
                .returned_tokens = lent.returned_tokens,
                .lost_tokens = lent.lost_tokens};
  }
  s.chaos_calls = injector_.touched();
  if (client_ != nullptr) {
    const redis::ClientCounters counters = client_->Counters();
    s.script_errors = counters.script_errors + stats.bad_replies;
    s.redirects = counters.moved + counters.asked;
    s.map_refreshes = counters.refreshes;
    for (const redis::PrimaryStats& primary : client_->Stats()) {
      if (client_->Primary(primary.index).in_map) s.primaries.push_back(StatusOf(primary));
    }
  }
  for (const auto& [label, totals] : reconciler_->totals()) {
    if (rules_ == nullptr || rules_->Find(label) == nullptr) continue;
    s.rules.push_back(
        {label, totals.allowed, totals.denied, totals.degraded, totals.near_limit, totals.bans});
  }
  std::sort(s.rules.begin(), s.rules.end(),
            [](const RuleCounts& a, const RuleCounts& b) { return a.label < b.label; });
  if (rules_ != nullptr) {
    for (const config::CompiledClass& c : rules_->classes()) {
      s.classes.push_back({c.rule, c.value, reconciler_->class_denied(c)});
    }
  }
  for (const auto& [id, alarm] : alarms_) s.alarms.push_back(alarm);
  return s;
}

}  // namespace sluice::reconcile
