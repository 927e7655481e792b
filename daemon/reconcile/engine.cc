// The daemon's working thread: a ring and a worker on it, and a copy of their state for whoever
// asks.
#include "daemon/engine.h"

#include <sys/random.h>
#include <time.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <optional>
#include <random>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "daemon/log.h"
#include "daemon/reconcile/worker.h"
#include "daemon/ring/ring.h"
#include "shm/clock.h"

namespace sluice {
namespace {

using reconcile::Worker;

constexpr uint64_t kSnapshotNs = 200'000'000;
constexpr size_t kMaxUnbans = 256;  // that wait for the thread's next turn

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

ring::RingChoice ChoiceOf(config::Transport transport) {
  switch (transport) {
    case config::Transport::kIoUring:
      return ring::RingChoice::kUring;
    case config::Transport::kEpoll:
      return ring::RingChoice::kEpoll;
    case config::Transport::kAuto:
      break;
  }
  return ring::RingChoice::kAuto;
}

class WorkingEngine : public Engine {
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
  void SetChaos(std::optional<chaos::Order> order, uint64_t until_ns) override;
  bool Unban(std::string bucket) override;
  // For whoever watches: orders nothing.
  bool IsPaused() const override { return is_paused_.load(std::memory_order_relaxed); }

 private:
  // What an operator wants next, or that it ends.
  struct NextChaos {
    std::optional<chaos::Order> order;
    uint64_t until_ns = 0;
  };

  // Everything below runs on the thread.
  void Run();
  void TakeChaos();
  void TakeUnbans();
  void StandStill();
  absl::Status Open();
  void TakeRules();
  void LastFlush(uint64_t until_ns);
  void Publish(uint64_t now_ns);

  static uint64_t Now() { return shm::MonotonicClock::PreciseNs(); }

  const EngineParts parts_;
  const uint64_t use_since_ns_;
  std::thread thread_;
  std::atomic<bool> stop_{false};
  std::atomic<int64_t> stop_bound_ns_{0};
  std::atomic<uint64_t> last_tick_ns_{0};
  std::atomic<bool> is_paused_{false};

  mutable std::mutex mutex_;  // guards the next four
  std::shared_ptr<const config::CompiledRules> next_rules_;
  std::optional<NextChaos> next_chaos_;
  std::vector<std::string> next_unbans_;
  EngineSnapshot snapshot_;

  std::mt19937_64 random_{std::random_device{}()};
  std::unique_ptr<ring::Ring> ring_;
  std::unique_ptr<Worker> worker_;
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
      worker_.reset();
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
  reconcile::WorkerEnvironment environment;
  if (parts_.redis.has_value()) {
    absl::StatusOr<ring::OpenedRing> opened = ring::OpenRing(ChoiceOf(parts_.redis->transport));
    if (!opened.ok()) return opened.status();
    ring_ = std::move(opened->ring);
    environment.transport_name = std::string(ring::RingName(opened->backend));
    log::Info("transport: %s (%s)", environment.transport_name, opened->why);
  }
  environment.ring = ring_.get();
  environment.now_ns = Now;
  environment.random = [this] { return random_(); };
  environment.instance = RandomInstance();
  environment.use_since_ns = use_since_ns_;
  absl::StatusOr<std::unique_ptr<Worker>> worker = Worker::Create(parts_, std::move(environment));
  if (!worker.ok()) return worker.status();
  worker_ = *std::move(worker);
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
  if (next != nullptr) worker_->SetRules(std::move(next));
}

void WorkingEngine::SetChaos(std::optional<chaos::Order> order, uint64_t until_ns) {
  const std::lock_guard<std::mutex> lock(mutex_);
  next_chaos_ = NextChaos{std::move(order), until_ns};
}

void WorkingEngine::TakeChaos() {
  std::optional<NextChaos> next;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    next.swap(next_chaos_);
  }
  if (next.has_value()) worker_->SetChaos(std::move(next->order), next->until_ns);
  is_paused_.store(worker_->IsPaused(), std::memory_order_relaxed);  // orders nothing
}

bool WorkingEngine::Unban(std::string bucket) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (next_unbans_.size() >= kMaxUnbans) return false;
  next_unbans_.push_back(std::move(bucket));
  return true;
}

void WorkingEngine::TakeUnbans() {
  std::vector<std::string> next;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    next.swap(next_unbans_);
  }
  for (const std::string& bucket : next) worker_->Unban(bucket);
}

// As a thread that hangs, but for an end; it is alive. The time orders nothing.
void WorkingEngine::StandStill() {
  last_tick_ns_.store(Now(), std::memory_order_relaxed);
  if (Now() >= published_ns_ + kSnapshotNs) Publish(Now());
  const timespec pause = {0, static_cast<long>(reconcile::kTickNs)};
  nanosleep(&pause, nullptr);
}

// stop_ pairs with Stop(): the bound is stored before it. last_tick_ns_ orders nothing.
void WorkingEngine::Run() {
  while (!stop_.load(std::memory_order_acquire)) {
    TakeRules();
    TakeChaos();
    TakeUnbans();
    if (worker_->IsPaused()) {
      StandStill();
      continue;
    }
    const uint64_t now_ns = Now();
    last_tick_ns_.store(now_ns, std::memory_order_relaxed);
    const uint64_t until_ns = worker_->Tick();
    if (now_ns >= published_ns_ + kSnapshotNs) Publish(now_ns);
    worker_->Wait(until_ns);
  }
  worker_->SetChaos({}, 0);
  LastFlush(Now() + static_cast<uint64_t>(std::max<int64_t>(stop_bound_ns_.load(), 0)));
  Publish(Now());
}

// What clients used up to now goes to Redis, and its answers back, as far as the bound allows.
// last_tick_ns_ orders nothing; stop_, below, pairs with Run()'s load.
void WorkingEngine::LastFlush(uint64_t until_ns) {
  for (uint64_t now_ns = Now(); now_ns < until_ns; now_ns = Now()) {
    const bool settled = worker_->Flush();
    last_tick_ns_.store(now_ns, std::memory_order_relaxed);
    if (settled) return;
    worker_->Wait(std::min(until_ns, now_ns + reconcile::kTickNs));
  }
  if (parts_.redis.has_value() && !worker_->reconciler().IsSettled()) {
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

void WorkingEngine::Publish(uint64_t now_ns) {
  published_ns_ = now_ns;
  EngineSnapshot snapshot = worker_->Snapshot();
  const std::lock_guard<std::mutex> lock(mutex_);
  snapshot_ = std::move(snapshot);
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
