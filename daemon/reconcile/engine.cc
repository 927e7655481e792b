// The daemon's working thread: one ring, one Redis client, one reconciler, and a copy of their
// state for whoever asks.
#include "daemon/engine.h"

#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <map>
#include <mutex>
#include <random>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "daemon/config/parse.h"
#include "daemon/log.h"
#include "daemon/reconcile/reconciler.h"
#include "daemon/redis/cluster_client.h"
#include "daemon/ring/ring.h"
#include "lua_scripts.h"
#include "shm/clock.h"

namespace sluice {
namespace {

using reconcile::Breaker;
using reconcile::CallOutcome;
using reconcile::Reconciler;

constexpr uint64_t kSnapshotNs = 200'000'000;
constexpr redis::ScriptId kFoldScript = 0;
constexpr redis::ScriptId kProbeScript = 1;

std::string RandomInstance() {
  unsigned char bytes[16];
  if (getrandom(bytes, sizeof bytes, 0) != sizeof bytes) {
    std::random_device device;
    for (unsigned char& b : bytes) b = static_cast<unsigned char>(device());
  }
  std::string hex;
  for (const unsigned char b : bytes) absl::StrAppendFormat(&hex, "%02x", b);
  return hex;
}

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

// The upper bound of the histogram's middle.
uint64_t MedianNs(const redis::LatencySnapshot& latency) {
  uint64_t seen = 0;
  for (size_t i = 0; i < redis::kLatencyBoundsUs.size(); ++i) {
    seen += latency.counts[i];
    if (seen * 2 >= latency.total) {
      return latency.total == 0 ? 0 : static_cast<uint64_t>(redis::kLatencyBoundsUs[i]) * 1000;
    }
  }
  return static_cast<uint64_t>(redis::kLatencyBoundsUs.back()) * 1000;
}

class WorkingEngine : public Engine, public redis::Listener, public reconcile::Transport {
 public:
  explicit WorkingEngine(const EngineParts& parts)
      : parts_(parts), use_since_ns_(parts.control->header().heartbeat_ns.load()) {}
  ~WorkingEngine() override { Stop(absl::ZeroDuration()); }

  absl::Status Start(std::shared_ptr<const config::CompiledRules> rules) override;
  void SetRules(std::shared_ptr<const config::CompiledRules> rules) override;
  void Stop(absl::Duration bound) override;
  // A time for whoever watches, wherever it is stored: orders nothing.
  uint64_t LastTickNs() const override { return last_tick_ns_.load(std::memory_order_relaxed); }
  EngineSnapshot Snapshot() const override;

 private:
  // Everything below runs on the thread.
  void Run();
  absl::Status Open();
  void TakeRules();
  void LastFlush(uint64_t until_ns);
  void Wait(uint64_t now_ns, uint64_t tick_ns);
  void Publish(uint64_t now_ns);
  void RaiseRuleAlarms();
  void SetAlarm(const std::string& id, bool raised, std::string text, std::string mend);
  PrimaryStatus StatusOf(const redis::PrimaryStats& stats) const;

  // redis::Listener
  void OnReply(uint32_t shard, uint64_t token, const redis::Reply& reply,
               redis::PrimaryIndex primary) override {
    reconciler_->OnReply(shard, token, reply, primary, Now());
  }
  void OnFailure(uint32_t shard, uint64_t token, const redis::Failure& failure,
                 redis::PrimaryIndex primary) override;
  void OnPong(redis::PrimaryIndex primary, uint64_t token, const redis::Failure* failure) override;
  void OnTopology() override {}
  void OnAlarm(const redis::Alarm& alarm) override;

  // reconcile::Transport
  void Call(uint32_t shard, std::string_view args, uint32_t arg_count, uint64_t token) override {
    client_->Call(shard, kFoldScript, args, arg_count, token);
  }
  void Ping(uint32_t primary, uint64_t token) override { client_->Ping(primary, token); }
  uint32_t PrimaryOf(uint32_t shard) const override { return client_->PrimaryOf(shard); }
  uint32_t primary_count() const override {
    return static_cast<uint32_t>(client_->primary_count());
  }

  static uint64_t Now() { return shm::MonotonicClock::PreciseNs(); }

  const EngineParts parts_;
  const uint64_t use_since_ns_;
  std::thread thread_;
  std::atomic<bool> stop_{false};
  std::atomic<int64_t> stop_bound_ns_{0};
  std::atomic<uint64_t> last_tick_ns_{0};

  mutable std::mutex mutex_;  // guards the next two
  std::shared_ptr<const config::CompiledRules> next_rules_;
  EngineSnapshot snapshot_;

  std::shared_ptr<const config::CompiledRules> rules_;
  std::mt19937_64 random_{std::random_device{}()};
  std::string transport_name_;
  std::unique_ptr<ring::Ring> ring_;
  std::unique_ptr<redis::ClusterClient> client_;
  std::unique_ptr<Reconciler> reconciler_;
  std::map<std::string, Alarm> alarms_;
  std::map<uint32_t, std::string> last_error_;  // by primary
  std::map<uint32_t, uint64_t> failures_;       // by primary
  uint64_t published_ns_ = 0;
};

absl::Status WorkingEngine::Start(std::shared_ptr<const config::CompiledRules> rules) {
  next_rules_ = std::move(rules);
  last_tick_ns_.store(Now(), std::memory_order_relaxed);  // orders nothing
  // The ring belongs to the thread that makes it, so the thread tells how it went: is_open's
  // release pairs with the acquire wait below and hands `opened` over.
  absl::Status opened;
  std::atomic<bool> is_open{false};
  try {
    thread_ = std::thread([this, &opened, &is_open] {
      opened = Open();
      const bool ok = opened.ok();
      is_open.store(true, std::memory_order_release);
      is_open.notify_one();
      if (ok) Run();
      client_.reset();
      ring_.reset();
    });
  } catch (const std::exception& e) {
    return absl::ResourceExhaustedError(absl::StrCat("cannot start a thread: ", e.what()));
  }
  is_open.wait(false, std::memory_order_acquire);
  if (!opened.ok()) thread_.join();
  return opened;
}

absl::Status WorkingEngine::Open() {
  const bool has_redis = parts_.redis.has_value();
  if (has_redis) {
    const config::RedisConfig& config = *parts_.redis;
    absl::StatusOr<std::string> password = config::ReadPassword(config);
    if (!password.ok()) return password.status();
    const ring::RingChoice choice =
        config.transport == config::Transport::kIoUring ? ring::RingChoice::kUring
        : config.transport == config::Transport::kEpoll ? ring::RingChoice::kEpoll
                                                        : ring::RingChoice::kAuto;
    absl::StatusOr<ring::OpenedRing> opened = ring::OpenRing(choice);
    if (!opened.ok()) return opened.status();
    ring_ = std::move(opened->ring);
    transport_name_ = std::string(ring::RingName(opened->backend));
    log::Info("transport: %s (%s)", transport_name_, opened->why);
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
    options.scripts = {{"fold", lua::kFold}, {"probe", lua::kProbe}};
    options.probe_script = kProbeScript;
    options.connect_timeout_ns = static_cast<int64_t>(config.connect_timeout_ns);
    options.request_timeout_max_ns = static_cast<int64_t>(config.request_timeout_ns);
    options.request_timeout_min_ns =
        std::min(options.request_timeout_min_ns, options.request_timeout_max_ns);
    redis::ClusterClient::Environment environment;
    environment.ring = ring_.get();
    environment.listener = this;
    environment.now_ns = [] { return static_cast<int64_t>(Now()); };
    environment.random = [this] { return random_(); };
    absl::StatusOr<std::unique_ptr<redis::ClusterClient>> client =
        redis::ClusterClient::Create(std::move(options), std::move(environment));
    if (!client.ok()) return client.status();
    client_ = *std::move(client);
  }
  reconcile::ReconcilerOptions options;
  options.shard_count = parts_.control->info().shard_count;
  options.flush_interval_ns = has_redis ? parts_.redis->flush_interval_ns : 100'000'000;
  options.instance = RandomInstance();
  options.use_since_ns = use_since_ns_ != 0 ? use_since_ns_ : Now();
  options.has_redis = has_redis;
  reconciler_ = std::make_unique<Reconciler>(
      options, parts_.buckets, parts_.control, has_redis ? this : nullptr,
      [this] { return std::uniform_real_distribution<double>(0, 1)(random_); });
  return absl::OkStatus();
}

void WorkingEngine::SetRules(std::shared_ptr<const config::CompiledRules> rules) {
  const std::lock_guard<std::mutex> lock(mutex_);
  next_rules_ = std::move(rules);
}

void WorkingEngine::TakeRules() {
  std::shared_ptr<const config::CompiledRules> next;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    next = std::move(next_rules_);
    next_rules_ = nullptr;
  }
  if (next == nullptr) return;
  if (client_ != nullptr) client_->ReadFilesAnew();
  rules_ = next;
  reconciler_->SetRules(std::move(next));
}

// stop_ pairs with Stop(): the bound is stored before it. last_tick_ns_ orders nothing.
void WorkingEngine::Run() {
  uint64_t tick_ns = Now();
  while (!stop_.load(std::memory_order_acquire)) {
    TakeRules();
    const uint64_t now_ns = Now();
    last_tick_ns_.store(now_ns, std::memory_order_relaxed);
    if (now_ns >= tick_ns) {
      reconciler_->Tick(now_ns);
      tick_ns =
          now_ns + (reconciler_->IsQuiet(now_ns) ? reconcile::kQuietTickNs : reconcile::kTickNs);
    }
    if (now_ns >= published_ns_ + kSnapshotNs) Publish(now_ns);
    Wait(now_ns, tick_ns);
  }
  LastFlush(Now() + static_cast<uint64_t>(std::max<int64_t>(stop_bound_ns_.load(), 0)));
  Publish(Now());
}

void WorkingEngine::Wait(uint64_t now_ns, uint64_t tick_ns) {
  int64_t timeout_ns = tick_ns > now_ns ? static_cast<int64_t>(tick_ns - now_ns) : 0;
  if (client_ == nullptr) {
    const timespec pause = {0, timeout_ns};
    nanosleep(&pause, nullptr);
    return;
  }
  const int64_t deadline_ns = client_->NextDeadlineNs();
  if (deadline_ns != INT64_MAX) {
    timeout_ns = std::clamp<int64_t>(deadline_ns - static_cast<int64_t>(now_ns), 0, timeout_ns);
  }
  const absl::StatusOr<size_t> waited = ring_->Wait(timeout_ns);
  if (!waited.ok()) {
    SetAlarm("ring", true, std::string(waited.status().message()),
             "restart sluiced with redis.transport: epoll");
    const timespec pause = {0, static_cast<long>(reconcile::kTickNs)};
    nanosleep(&pause, nullptr);
  }
  client_->Poll();
}

// What clients used up to now goes to Redis, and its answers back, as far as the bound allows.
// last_tick_ns_ orders nothing; stop_, below, pairs with Run()'s load.
void WorkingEngine::LastFlush(uint64_t until_ns) {
  for (uint64_t now_ns = Now(); now_ns < until_ns; now_ns = Now()) {
    reconciler_->FlushAll(now_ns);
    last_tick_ns_.store(now_ns, std::memory_order_relaxed);
    if (client_ == nullptr || reconciler_->IsSettled()) return;
    Wait(now_ns, std::min(until_ns, now_ns + reconcile::kTickNs));
  }
  if (client_ != nullptr && !reconciler_->IsSettled()) {
    log::Warning("stopping with use that Redis does not know: it stays in this host's words only");
  }
}

void WorkingEngine::Stop(absl::Duration bound) {
  if (!thread_.joinable()) return;
  stop_bound_ns_.store(absl::ToInt64Nanoseconds(bound));
  stop_.store(true, std::memory_order_release);
  if (ring_ != nullptr) ring_->Wake();
  thread_.join();
}

void WorkingEngine::OnFailure(uint32_t shard, uint64_t token, const redis::Failure& failure,
                              redis::PrimaryIndex primary) {
  ++failures_[primary];
  last_error_[primary] =
      absl::StrCat(std::string(redis::FailureName(failure.kind)), ": ", failure.message);
  log::Debug("shard %d: %s", shard, last_error_[primary]);
  reconciler_->OnFailure(shard, token, OutcomeOf(failure), primary, Now());
}

void WorkingEngine::OnPong(redis::PrimaryIndex primary, uint64_t token,
                           const redis::Failure* failure) {
  (void)token;
  if (failure != nullptr) {
    last_error_[primary] =
        absl::StrCat(std::string(redis::FailureName(failure->kind)), ": ", failure->message);
  } else {
    last_error_.erase(primary);
  }
  const bool hard = failure != nullptr && OutcomeOf(*failure) == CallOutcome::kHard;
  reconciler_->OnPong(primary, failure == nullptr, hard, Now());
}

void WorkingEngine::OnAlarm(const redis::Alarm& alarm) {
  SetAlarm(absl::StrCat("redis-", std::string(redis::AlarmName(alarm.kind)), ":", alarm.subject),
           alarm.raised, absl::StrCat(alarm.subject, ": ", alarm.text), alarm.mend);
}

// Raised once, cleared once, each with one line in the log.
void WorkingEngine::SetAlarm(const std::string& id, bool raised, std::string text,
                             std::string mend) {
  const auto found = alarms_.find(id);
  if (!raised) {
    if (found == alarms_.end()) return;
    log::Info("alarm cleared: %s", found->second.text);
    alarms_.erase(found);
    return;
  }
  if (found != alarms_.end()) return;
  log::Error("alarm: %s%s%s", text, mend.empty() ? "" : "; mend: ", mend);
  alarms_[id] = {.id = id, .text = std::move(text), .mend = std::move(mend), .since_ns = Now()};
}

void WorkingEngine::RaiseRuleAlarms() {
  const uint32_t shards = reconciler_->emergencies();
  SetAlarm("emergency", shards != 0, "shards are in emergency: their routes follow when_degraded",
           "look at redis.primaries in sluicectl status");
  if (rules_ == nullptr) return;
  for (const config::CompiledRule& rule : rules_->rules()) {
    if (!rule.alert) continue;
    SetAlarm(absl::StrCat("degraded:", rule.label), shards != 0,
             absl::StrCat("rule ", rule.label, " is degraded"), "Redis must come back");
  }
}

PrimaryStatus WorkingEngine::StatusOf(const redis::PrimaryStats& stats) const {
  const redis::PrimaryInfo info = client_->Primary(stats.index);
  PrimaryStatus status;
  status.address = stats.address;
  status.hostname = info.hostname;
  status.breaker = std::string(BreakerName(reconciler_->breaker(stats.index)));
  status.connected = info.connected;
  status.shards = reconciler_->ShardsOf(stats.index);
  status.p99_ns = static_cast<uint64_t>(std::max<int64_t>(info.p99_ns, 0));
  status.calls = stats.latency;
  status.p50_ns = MedianNs(stats.latency);
  const auto failures = failures_.find(stats.index);
  if (failures != failures_.end()) status.failures = failures->second;
  const auto error = last_error_.find(stats.index);
  if (error != last_error_.end()) status.last_error = error->second;
  return status;
}

void WorkingEngine::Publish(uint64_t now_ns) {
  published_ns_ = now_ns;
  const reconcile::ReconcilerStats& stats = reconciler_->stats();
  EngineSnapshot s;
  s.has_redis = client_ != nullptr;
  s.transport = transport_name_;
  s.unreconciled_age_ns = stats.oldest_use_ns;
  s.live_buckets = reconciler_->live_buckets();
  s.harvested_tokens = stats.harvested_tokens;
  s.batches = stats.batches;
  s.batched_buckets = stats.batched_buckets;
  s.resends = stats.resends;
  s.requeues = stats.requeues;
  if (client_ != nullptr) {
    RaiseRuleAlarms();
    SetAlarm("given-up", stats.given_up != 0,
             "batches that Redis never answered were given up: their use is not counted there",
             "look for a Redis that has been cut off for 12 hours");
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
    s.rules.push_back({label, totals.allowed, totals.denied, totals.degraded});
  }
  std::sort(s.rules.begin(), s.rules.end(),
            [](const RuleCounts& a, const RuleCounts& b) { return a.label < b.label; });
  for (const auto& [id, alarm] : alarms_) s.alarms.push_back(alarm);
  const std::lock_guard<std::mutex> lock(mutex_);
  snapshot_ = std::move(s);
}

EngineSnapshot WorkingEngine::Snapshot() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return snapshot_;
}

}  // namespace

std::unique_ptr<Engine> MakeEngine(const EngineParts& parts) {
  return std::make_unique<WorkingEngine>(parts);
}

}  // namespace sluice
