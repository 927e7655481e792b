// The daemon's worker: wires segments, rules, engine, attach and admin sockets to one loop.
//
// Threads: main runs the loop (signals, heartbeat, attach socket, file watch); the engine has its
// own; the admin socket has a few.
#pragma once

#include <signal.h>

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "daemon/admin/attach_server.h"
#include "daemon/admin/event_loop.h"
#include "daemon/admin/http.h"
#include "daemon/admin/status.h"
#include "daemon/checkpoint/checkpoint_store.h"
#include "daemon/config_watch.h"
#include "daemon/engine.h"
#include "daemon/lock_file.h"
#include "daemon/rule_book.h"
#include "daemon/segments.h"
#include "daemon/supervisor.h"
#include "daemon/wall_clock.h"

namespace sluice {

// A stop waits so long for the last reconcile.
inline constexpr absl::Duration kLastReconcile = absl::Seconds(2);
// The engine comes around at least every 200 ms; one that is silent for this long hangs, and the
// daemon stops vouching for it.
inline constexpr uint64_t kEngineHangsNs = 2'000'000'000;
// A slot is reused so long after its word has passed: its last use was harvested long before.
inline constexpr uint64_t kGraceNs = 2'000'000'000;
// Beyond this load keys begin to find no slot.
inline constexpr double kCrowdedLoad = 0.55;

struct AppOptions {
  std::string config_path;
  std::string runtime_dir;  // empty: as configured
  std::string version;
};

// Exit codes that end the keeper too: starting again would not help.
inline constexpr int kExitInUse = 69;   // EX_UNAVAILABLE
inline constexpr int kExitConfig = 78;  // EX_CONFIG

class App : public admin::StatusSource {
 public:
  explicit App(AppOptions options) : options_(std::move(options)) {}
  ~App() override;

  // Runs until SIGTERM or SIGINT (the end) or SIGUSR2 (another worker takes over). The exit code;
  // what went wrong is in the log. Signals must be blocked by BlockSignals before.
  int Run();

  // The signals that Run reads.
  static sigset_t Signals();
  // Blocks them; before any thread is made.
  static void BlockSignals();

  // admin::StatusSource
  admin::DaemonStatus Status() const override;
  admin::RulesInForce Rules() const override { return book_->InForce(); }
  admin::ReloadResult Reload() override { return ReloadFile(false); }
  std::string ConfigText() const override { return book_->text(); }
  bool Unban(const std::string& bucket) override { return engine_->Unban(bucket); }
  absl::StatusOr<admin::Chaos> BeginChaos(const std::map<std::string, std::string>& asked) override;
  void EndChaos(uint64_t token) override;
  const shm::MappedBuckets& Buckets() const override { return segments_.buckets(); }
  const shm::SegmentInfo& Info() const override { return segments_.control().info(); }
  const shm::HolderCell* HolderCells() const override { return segments_.control().holders(); }

 private:
  int Load();
  absl::Status OpenSegments();
  absl::Status StartAll();
  absl::Status StartAttach(const config::DaemonConfig& daemon);
  absl::Status WatchSignals();
  void OnSignal();
  void Beat(uint64_t now_ns);
  void ShutDown();
  admin::ReloadResult ReloadFile(bool only_if_changed);
  void StoreConfig();
  std::string stored_config() const;
  admin::Chaos chaos() const;
  void AddAlarms(admin::DaemonStatus* status) const;

  AppOptions options_;
  Supervisor supervisor_;
  std::vector<NamedFd> held_;
  LockFile lock_;
  Segments segments_;
  std::unique_ptr<RuleBook> book_;
  std::unique_ptr<checkpoint::CheckpointStore> quotas_;  // null: none are kept
  std::unique_ptr<Engine> engine_;
  admin::EventLoop loop_;
  std::unique_ptr<admin::Holders> holders_;
  std::unique_ptr<admin::AttachServer> attach_;
  std::unique_ptr<admin::AdminServer> admin_;
  std::unique_ptr<ConfigWatch> watch_;
  std::unique_ptr<WallClockWatch> wall_clock_;
  shm::OwnedFd signals_;
  std::string runtime_dir_;
  uint64_t started_ns_ = 0;
  uint64_t alive_ns_ = 0;  // when the watchdog was last fed
  bool engine_hangs_ = false;
  bool hands_over_ = false;  // SIGUSR2: another worker follows at once

  mutable std::mutex chaos_mutex_;  // guards the next two
  admin::Chaos chaos_;              // token 0: none
  uint64_t chaos_tokens_ = 0;
  mutable std::mutex alarms_mutex_;  // guards what follows
  std::string stored_config_;
  mutable std::map<std::string, uint64_t> alarms_since_;
};

}  // namespace sluice
