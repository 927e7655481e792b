// The main thread's loop: descriptors by epoll, and a few timers. No signals, no framework.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <unordered_map>
#include <vector>

#include "absl/status/status.h"
#include "shm/segment.h"

namespace sluice::admin {

// Descriptors handled before the timers are looked at again.
inline constexpr int kMaxEventsPerWait = 64;

// Confined to one thread. Handlers may add and remove anything, themselves included.
class EventLoop {
 public:
  using Handler = std::function<void(uint32_t events)>;  // EPOLLIN, ...
  using Timer = std::function<void(uint64_t now_ns)>;
  using TimerId = uint64_t;

  absl::Status Init();

  // Watches `fd`, which the caller keeps open until Remove. `events` as epoll_ctl has them.
  absl::Status Add(int fd, uint32_t events, Handler handler);
  void Remove(int fd);

  // Calls `timer` each `interval_ns` from now on, late calls are not made up for.
  TimerId Every(uint64_t interval_ns, Timer timer);
  // Calls `timer` once.
  TimerId After(uint64_t delay_ns, Timer timer);
  void Cancel(TimerId id);

  // Handles events until Stop. Internal only when epoll itself fails.
  absl::Status Run();
  void Stop() { stopped_ = true; }

 private:
  struct Entry {
    TimerId id;
    uint64_t due_ns;
    uint64_t interval_ns;  // 0: once
    std::shared_ptr<Timer> timer;
  };

  int TimeoutMs(uint64_t now_ns) const;
  void RunTimers();

  shm::OwnedFd epoll_;
  std::unordered_map<int, std::shared_ptr<Handler>> handlers_;
  std::vector<Entry> timers_;
  TimerId next_timer_ = 1;
  bool stopped_ = false;
};

}  // namespace sluice::admin
