#include "daemon/app.h"

#include <errno.h>
#include <grp.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "daemon/log.h"
#include "shm/clock.h"
#include "shm/handshake.h"

namespace sluice {
namespace {

constexpr char kConfigFd[] = "config";        // the last good configuration's text
constexpr char kAttachSocketFd[] = "attach";  // FileDescriptorName= of a socket unit
constexpr uint32_t kLocalShards = 64;         // without Redis; its default, so that adding it fits

uint64_t NowNs() { return shm::MonotonicClock::PreciseNs(); }

log::Level ToLog(config::LogLevel level) {
  switch (level) {
    case config::LogLevel::kDebug:
      return log::Level::kDebug;
    case config::LogLevel::kInfo:
      return log::Level::kInfo;
    case config::LogLevel::kWarning:
      return log::Level::kWarning;
    case config::LogLevel::kError:
      return log::Level::kError;
  }
  return log::Level::kInfo;
}

// Each client holds a descriptor.
void RaiseFileLimit() {
  rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

absl::StatusOr<gid_t> GroupId(const std::string& name) {
  if (name.empty()) return static_cast<gid_t>(-1);
  const group* entry = getgrnam(name.c_str());
  if (entry == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("daemon.group: there is no group '", name, "'; make it: groupadd ", name));
  }
  return entry->gr_gid;
}

}  // namespace

App::~App() = default;

sigset_t App::Signals() {
  sigset_t set;
  sigemptyset(&set);
  for (const int signal : {SIGTERM, SIGINT, SIGHUP, SIGUSR2}) sigaddset(&set, signal);
  return set;
}

void App::BlockSignals() {
  const sigset_t set = Signals();
  sigprocmask(SIG_BLOCK, &set, nullptr);
  signal(SIGPIPE, SIG_IGN);
  signal(SIGXFSZ, SIG_IGN);  // ulimit -f: the call that is refused says so
}

int App::Run() {
  log::Configure(log::Level::kInfo, log::StderrIsJournal());
  started_ns_ = NowNs();
  umask(0077);
  RaiseFileLimit();
  held_ = Supervisor::TakeFds();
  if (const int code = Load(); code != 0) return code;
  absl::Status status = lock_.Acquire(runtime_dir_);
  if (absl::IsAlreadyExists(status)) {
    log::Error("%s", std::string(status.message()));
    return kExitInUse;
  }
  if (status.ok()) status = OpenSegments();
  if (status.ok()) status = StartAll();
  if (!status.ok()) {
    for (const auto& line : absl::StrSplit(status.message(), '\n')) {
      log::Error("%s", std::string(line));
    }
    ShutDown();
    return absl::IsInvalidArgument(status) ? kExitConfig : 1;
  }
  status = loop_.Run();
  if (!status.ok()) log::Error("the main loop ended: %s", status.ToString());
  ShutDown();
  return status.ok() ? 0 : 1;
}

int App::Load() {
  std::string fallback;
  for (NamedFd& named : held_) {
    if (named.name == kConfigFd && named.fd.get() >= 0) {
      fallback = ReadConfigText(absl::StrFormat("/proc/self/fd/%d", named.fd.get()));
    }
  }
  auto loaded = LoadConfig(options_.config_path, fallback);
  if (!loaded.ok()) {
    for (const auto& line : absl::StrSplit(loaded.status().message(), '\n')) {
      log::Error("%s", std::string(line));
    }
    return kExitConfig;
  }
  log::Configure(ToLog(loaded->config.daemon.log_level), log::StderrIsJournal());
  for (const std::string& problem : loaded->problems) log::Error("%s", problem);
  if (!loaded->problems.empty()) {
    log::Error("%s is bad; the configuration that was last in force goes on", options_.config_path);
  }
  for (const std::string& warning : loaded->warnings) log::Warning("%s", warning);
  if (!options_.runtime_dir.empty()) loaded->config.daemon.runtime_dir = options_.runtime_dir;
  runtime_dir_ = loaded->config.daemon.runtime_dir;
  book_ =
      std::make_unique<RuleBook>(options_.config_path, *std::move(loaded), &segments_.control());
  return 0;
}

absl::Status App::OpenSegments() {
  const config::Config& config = book_->wanted();
  const shm::ControlOptions options = {
      .capacity = config.daemon.buckets,
      .logs = config::LogsFor(config),
      .shard_count = config.redis.has_value() ? config.redis->shards : kLocalShards,
      .grace_ns = kGraceNs,
      .reconciling = config.redis.has_value()};
  absl::Status status = segments_.AdoptOrCreate(options, &held_, supervisor_, NowNs());
  if (status.ok()) status = book_->PublishFirst(NowNs());
  if (status.ok()) status = segments_.Publish(supervisor_);
  return status;
}

absl::Status App::StartAll() {
  const admin::RulesInForce in_force = book_->InForce();
  if (const std::string& path = in_force.config->daemon.checkpoints; !path.empty()) {
    auto quotas = checkpoint::CheckpointStore::Open(path, absl::ToUnixMicros(absl::Now()));
    if (!quotas.ok()) return quotas.status();
    quotas_ = *std::move(quotas);
  }
  engine_ = MakeEngine({.control = &segments_.control(),
                        .buckets = &segments_.buckets(),
                        .redis = in_force.config->redis,
                        .former_rules = book_->former(),
                        .quotas = quotas_.get()});
  absl::Status status = engine_->Start(in_force.rules);
  if (!status.ok()) return status;
  book_->SetEngine(engine_.get());
  StoreConfig();

  if (status = loop_.Init(); !status.ok()) return status;
  if (status = WatchSignals(); !status.ok()) return status;
  loop_.Every(shm::kHeartbeatNs, [this](uint64_t now_ns) { Beat(now_ns); });
  if (status = StartAttach(in_force.config->daemon); !status.ok()) return status;

  const std::string admin_path = absl::StrCat(runtime_dir_, "/", shm::kAdminSocketName);
  unlink(admin_path.c_str());  // of a daemon that was killed: we hold the lock
  admin_ = std::make_unique<admin::AdminServer>(this);
  if (status = admin_->Start(admin_path); !status.ok()) return status;

  watch_ = std::make_unique<ConfigWatch>(&loop_, [this] { ReloadFile(true); });
  if (const absl::Status watching = watch_->Start(options_.config_path); !watching.ok()) {
    log::Warning("changes of %s are not seen (%s): reload with SIGHUP", options_.config_path,
                 watching.ToString());
  }
  wall_clock_ =
      std::make_unique<WallClockWatch>(&loop_, [this] { book_->RenewCalendars(NowNs()); });
  if (const absl::Status watching = wall_clock_->Start(); !watching.ok()) {
    log::Warning("that the wall clock is set is seen a moment later: %s", watching.ToString());
  }
  Beat(NowNs());
  const std::string summary = absl::StrFormat(
      "%d rules in force, %s", in_force.rules->rules().size(),
      in_force.config->redis.has_value() ? "reconciling with Redis" : "this host alone");
  supervisor_.Ready(summary);
  log::Info("sluiced %s is ready in %s: %s", options_.version, runtime_dir_, summary);
  return absl::OkStatus();
}

absl::Status App::StartAttach(const config::DaemonConfig& daemon) {
  const absl::StatusOr<gid_t> group = GroupId(daemon.group);
  if (!group.ok()) return group.status();
  int inherited = -1;
  for (NamedFd& named : held_) {
    if (named.name == kAttachSocketFd) inherited = named.fd.Release();
  }
  held_.clear();
  const std::string path = absl::StrCat(runtime_dir_, "/", shm::kAttachSocketName);
  if (inherited < 0) unlink(path.c_str());
  holders_ =
      std::make_unique<admin::Holders>(&loop_, segments_.control().holders(), &segments_.buckets());
  attach_ = std::make_unique<admin::AttachServer>(&loop_);
  return attach_->Start(path, *group, inherited,
                        {.control_fd = segments_.read_only_control_fd(),
                         .buckets_fd = segments_.buckets_fd(),
                         .generation = segments_.control().info().generation,
                         .holders = holders_.get()});
}

absl::Status App::WatchSignals() {
  const sigset_t set = Signals();
  signals_.Reset(signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
  if (signals_.get() < 0) return absl::ErrnoToStatus(errno, "signalfd");
  return loop_.Add(signals_.get(), EPOLLIN, [this](uint32_t) { OnSignal(); });
}

void App::OnSignal() {
  signalfd_siginfo info;
  while (read(signals_.get(), &info, sizeof info) == static_cast<ssize_t>(sizeof info)) {
    switch (info.ssi_signo) {
      case SIGHUP:
        ReloadFile(false);
        break;
      case SIGUSR2:
        hands_over_ = true;
        loop_.Stop();
        break;
      default:
        loop_.Stop();
    }
  }
}

// The heartbeat vouches for both threads: a daemon that no longer reconciles must not look alive.
void App::Beat(uint64_t now_ns) {
  const uint64_t tick_ns = std::max(engine_->LastTickNs(), started_ns_);
  const bool hangs = now_ns > tick_ns + kEngineHangsNs;
  if (hangs != engine_hangs_) {
    engine_hangs_ = hangs;
    if (hangs) log::Error("the reconcile thread hangs; clients are told that nobody reconciles");
    if (!hangs) log::Info("the reconcile thread goes on");
  }
  if (hangs) return;
  // An operator's pause is the reconciler's, and no reason to be started again.
  if (!engine_->IsPaused()) segments_.control().Beat(now_ns);
  if (supervisor_.alive_interval_ns() != 0 &&
      now_ns >= alive_ns_ + supervisor_.alive_interval_ns()) {
    alive_ns_ = now_ns;
    supervisor_.Alive();
  }
  book_->RetryPending(now_ns);
  book_->RenewCalendars(now_ns);
}

void App::ShutDown() {
  supervisor_.Stopping();
  if (engine_ != nullptr) {
    book_->SetEngine(nullptr);
    engine_->Stop(kLastReconcile);
  }
  // Clients hold on to the rules; who reads `stopped` knows that nobody reconciles any more.
  if (attach_ != nullptr && !hands_over_) segments_.control().SetStopped(true);
  watch_.reset();
  wall_clock_.reset();
  admin_.reset();
  attach_.reset();
  log::Info("sluiced has stopped%s", hands_over_ ? "; another worker takes over" : "");
}

admin::ReloadResult App::ReloadFile(bool only_if_changed) {
  supervisor_.Reloading();
  admin::ReloadResult result = book_->Reload(NowNs(), only_if_changed);
  const std::string before = stored_config();
  if (result.ok && before != book_->text()) StoreConfig();
  supervisor_.Ready(
      result.ok ? absl::StrFormat("%d rules in force", book_->InForce().rules->rules().size())
                : absl::StrCat(options_.config_path, " is bad; see the log"));
  const config::DaemonConfig& daemon = book_->InForce().config->daemon;
  log::Configure(ToLog(daemon.log_level), log::StderrIsJournal());
  if (!daemon.chaos.allow) EndChaos(chaos().token);
  return result;
}

admin::Chaos App::chaos() const {
  std::lock_guard lock(chaos_mutex_);
  return chaos_;
}

absl::StatusOr<admin::Chaos> App::BeginChaos(const std::map<std::string, std::string>& asked) {
  absl::StatusOr<chaos::Order> order = chaos::ReadOrder(asked, *book_->InForce().config);
  if (!order.ok()) return order.status();
  std::lock_guard lock(chaos_mutex_);
  const uint64_t now_ns = NowNs();
  if (chaos_.token != 0 && now_ns < chaos_.until_ns) {
    return absl::FailedPreconditionError(
        absl::StrCat(chaos_.text, " is on, and one is enough: wait, or end that sluicectl chaos"));
  }
  chaos_ = {++chaos_tokens_, now_ns + order->for_ns, order->ToString()};
  engine_->SetChaos(*std::move(order), chaos_.until_ns);
  return chaos_;
}

void App::EndChaos(uint64_t token) {
  std::lock_guard lock(chaos_mutex_);
  if (chaos_.token != token || token == 0) return;
  chaos_ = {};
  engine_->SetChaos({}, 0);
}

// The last good text outlives this process, so that a restart amid a bad edit starts all the same.
void App::StoreConfig() {
  const std::string text = book_->text();
  const shm::OwnedFd fd(memfd_create("sluice-config", MFD_CLOEXEC));
  // It may hold a password: whoever gets at the descriptor's path shall not get at the text.
  if (fd.get() < 0 || fchmod(fd.get(), 0400) != 0 ||
      pwrite(fd.get(), text.data(), text.size(), 0) != static_cast<ssize_t>(text.size())) {
    return;
  }
  supervisor_.Forget(kConfigFd);
  supervisor_.Store(kConfigFd, fd.get());
  std::lock_guard lock(alarms_mutex_);
  stored_config_ = text;
}

std::string App::stored_config() const {
  std::lock_guard lock(alarms_mutex_);
  return stored_config_;
}

admin::DaemonStatus App::Status() const {
  admin::DaemonStatus status;
  const shm::ControlWriter& control = segments_.control();
  status.version = options_.version;
  status.pid = getpid();
  status.now_ns = NowNs();
  status.started_ns = started_ns_;
  status.adopted = segments_.adopted();
  status.incarnation = shm::Incarnation(control.header());
  status.generation = control.info().generation;
  status.capacity = control.info().capacity;
  status.logs = control.info().logs;
  const admin::RulesInForce in_force = book_->InForce();
  status.policy_seq = in_force.rules->seq();
  status.version_hash = in_force.rules->version_hash();
  status.rule_count = in_force.rules->rules().size();
  const auto& redis = in_force.config->redis;
  const size_t regions = redis.has_value() ? std::max<size_t>(1, redis->regions.size()) : 1;
  for (uint32_t i = 0; i < regions * control.info().shard_count; ++i) {
    status.shards.push_back(control.shard(i));
  }
  for (uint32_t i = 0; i < shm::kCounters; ++i) {  // for people: orders nothing
    status.counters.push_back(segments_.buckets().counters()[i].load(std::memory_order_relaxed));
  }
  status.engine = engine_->Snapshot();
  status.clients = attach_->Snapshot();
  status.config = book_->State();
  status.chaos = chaos();
  AddAlarms(&status);
  return status;
}

void App::AddAlarms(admin::DaemonStatus* status) const {
  status->alarms = status->engine.alarms;
  std::vector<Alarm> own;
  if (!status->config.ok) {
    own.push_back({"config-bad", absl::StrCat(status->config.path, " is bad and not in force"),
                   "sluiced --check-config says what to write instead"});
  }
  if (status->clients.same_user > 0) {
    own.push_back({"client-same-user", "a client runs as the daemon's user and could harm it",
                   "run clients as another user, in the daemon's group"});
  }
  const double load = static_cast<double>(status->engine.live_buckets) /
                      static_cast<double>(std::max<uint64_t>(status->capacity, 1));
  if (load > kCrowdedLoad) {
    own.push_back({"table-crowded",
                   absl::StrFormat("%.0f %% of the buckets are in use", load * 100),
                   "raise daemon.buckets to twice as many, and restart"});
  }
  std::lock_guard lock(alarms_mutex_);
  std::map<std::string, uint64_t> since;
  for (Alarm& alarm : own) {
    const auto known = alarms_since_.find(alarm.id);
    alarm.since_ns = known != alarms_since_.end() ? known->second : status->now_ns;
    since[alarm.id] = alarm.since_ns;
    status->alarms.push_back(std::move(alarm));
  }
  alarms_since_ = std::move(since);
}

}  // namespace sluice
