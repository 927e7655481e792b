// The wall clock beside the monotonic one, and when it is set.
#pragma once

#include <cstdint>
#include <functional>
#include <utility>

#include "absl/status/status.h"
#include "daemon/admin/event_loop.h"
#include "shm/segment.h"

namespace sluice {

// By how much Unix time is ahead of CLOCK_MONOTONIC now, microseconds. Any thread.
int64_t WallOffsetUs();

// Calls `set` on the loop when the wall clock was set, and when the machine has slept.
class WallClockWatch {
 public:
  WallClockWatch(admin::EventLoop* loop, std::function<void()> set)
      : loop_(loop), set_(std::move(set)) {}
  ~WallClockWatch();
  absl::Status Start();

 private:
  absl::Status Arm();

  admin::EventLoop* loop_;
  std::function<void()> set_;
  shm::OwnedFd timer_;
};

}  // namespace sluice
