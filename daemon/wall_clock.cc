#include "daemon/wall_clock.h"

#include <errno.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

namespace sluice {
namespace {

int64_t Us(clockid_t clock) {
  timespec ts;
  clock_gettime(clock, &ts);
  return static_cast<int64_t>(ts.tv_sec) * 1'000'000 + ts.tv_nsec / 1000;
}

}  // namespace

// Of some tries the one during which least time passed: a thread may stand still between two looks.
int64_t WallOffsetUs() {
  constexpr int kTries = 3;
  int64_t best_us = 0;
  int64_t least_us = INT64_MAX;
  for (int i = 0; i < kTries; ++i) {
    const int64_t before_us = Us(CLOCK_MONOTONIC);
    const int64_t wall_us = Us(CLOCK_REALTIME);
    const int64_t after_us = Us(CLOCK_MONOTONIC);
    if (after_us - before_us >= least_us) continue;
    least_us = after_us - before_us;
    best_us = wall_us - before_us - least_us / 2;
  }
  return best_us;
}

WallClockWatch::~WallClockWatch() {
  if (timer_.get() >= 0) loop_->Remove(timer_.get());
}

absl::Status WallClockWatch::Start() {
  timer_.Reset(timerfd_create(CLOCK_REALTIME, TFD_CLOEXEC | TFD_NONBLOCK));
  if (timer_.get() < 0) return absl::ErrnoToStatus(errno, "timerfd_create");
  absl::Status status = Arm();
  if (!status.ok()) return status;
  return loop_->Add(timer_.get(), EPOLLIN, [this](uint32_t) {
    uint64_t expirations;
    const bool is_set =
        read(timer_.get(), &expirations, sizeof expirations) < 0 && errno == ECANCELED;
    // Beats look at the clocks too: a watch that is lost costs promptness alone.
    if (!Arm().ok()) loop_->Remove(timer_.get());
    if (is_set) set_();
  });
}

// It is for its being cancelled alone, and never due.
absl::Status WallClockWatch::Arm() {
  itimerspec never = {};
  never.it_value.tv_sec = INT32_MAX;
  if (timerfd_settime(timer_.get(), TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET, &never, nullptr) !=
      0) {
    return absl::ErrnoToStatus(errno, "timerfd_settime");
  }
  return absl::OkStatus();
}

}  // namespace sluice
