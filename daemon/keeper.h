// What systemd is to the worker, where there is no systemd: a small process that holds the
// worker's descriptors, starts it again when it dies, and passes signals on.
//
//   SIGTERM, SIGINT   end the worker in order, then itself
//   SIGHUP            passed on: reload
//   SIGUSR2           end the worker and start it anew from the binary on disk: an upgrade
//
// The worker speaks to it as to systemd: NOTIFY_SOCKET (READY=1, FDSTORE=1, FDSTOREREMOVE=1,
// WATCHDOG=1) and LISTEN_FDS. A worker that dies is started again after a back-off; one that ends
// in order, or cannot start for a reason that another start would not mend, ends the keeper too.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "daemon/admin/event_loop.h"
#include "daemon/supervisor.h"

namespace sluice {

inline constexpr uint64_t kFirstBackOffNs = 100'000'000;
inline constexpr uint64_t kLongestBackOffNs = 5'000'000'000;
// A worker that lived for so long did not die of its start: the back-off begins anew.
inline constexpr uint64_t kHealthyNs = 10'000'000'000;
// Without a sign of life for so long a worker hangs and is killed.
inline constexpr uint64_t kWatchdogNs = 30'000'000'000;
// The last reconcile and the requests under way have bounds of their own below this.
inline constexpr uint64_t kStopWaitNs = 12'000'000'000;
// Segments, configuration, and a generation that is going: a third of this.
inline constexpr size_t kMaxHeldFds = 16;

class Keeper {
 public:
  // `argv` as this process was started with; the worker gets the same.
  explicit Keeper(std::vector<std::string> argv) : argv_(std::move(argv)) {}

  // Runs until the worker has ended for good; the exit code.
  int Run();

 private:
  absl::Status Open();
  void StartWorker();
  [[noreturn]] void BecomeWorker(pid_t keeper);
  void OnSignal();
  void OnNotify();
  void OnMessage(const std::string& text, std::vector<shm::OwnedFd> fds);
  void Hold(const std::string& name, shm::OwnedFd fd);
  void OnWorkerEnd(int status);
  void EndWorker();
  void Watch(uint64_t now_ns);
  void End(int code);

  std::vector<std::string> argv_;
  std::string binary_;
  std::string notify_name_;
  admin::EventLoop loop_;
  shm::OwnedFd notify_;
  shm::OwnedFd signals_;
  std::vector<NamedFd> held_;
  pid_t worker_ = -1;
  uint64_t worker_since_ns_ = 0;
  uint64_t sign_of_life_ns_ = 0;
  uint64_t back_off_ns_ = kFirstBackOffNs;
  uint64_t kill_at_ns_ = 0;  // 0: the worker need not end
  bool was_ready_ = false;   // some worker was, once
  bool is_ending_ = false;
  bool is_upgrading_ = false;
  int exit_code_ = 0;
};

}  // namespace sluice
