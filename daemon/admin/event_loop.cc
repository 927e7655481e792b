#include "daemon/admin/event_loop.h"

#include <errno.h>
#include <sys/epoll.h>

#include <algorithm>

#include "shm/clock.h"

namespace sluice::admin {
namespace {

// The longest sleep where no timer is due earlier.
constexpr uint64_t kLongestSleepNs = 1'000'000'000;

}  // namespace

absl::Status EventLoop::Init() {
  epoll_.Reset(epoll_create1(EPOLL_CLOEXEC));
  return epoll_.get() >= 0 ? absl::OkStatus() : absl::ErrnoToStatus(errno, "epoll_create1");
}

absl::Status EventLoop::Add(int fd, uint32_t events, Handler handler) {
  epoll_event event = {};
  event.events = events;
  event.data.fd = fd;
  if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) != 0) {
    return absl::ErrnoToStatus(errno, "epoll_ctl");
  }
  handlers_[fd] = std::make_shared<Handler>(std::move(handler));
  return absl::OkStatus();
}

void EventLoop::Remove(int fd) {
  if (handlers_.erase(fd) > 0) epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr);
}

EventLoop::TimerId EventLoop::Every(uint64_t interval_ns, Timer timer) {
  const uint64_t now_ns = shm::MonotonicClock::PreciseNs();
  timers_.push_back(
      {next_timer_, now_ns + interval_ns, interval_ns, std::make_shared<Timer>(std::move(timer))});
  return next_timer_++;
}

EventLoop::TimerId EventLoop::After(uint64_t delay_ns, Timer timer) {
  const TimerId id = Every(delay_ns, std::move(timer));
  timers_.back().interval_ns = 0;
  return id;
}

void EventLoop::Cancel(TimerId id) {
  std::erase_if(timers_, [id](const Entry& entry) { return entry.id == id; });
}

int EventLoop::TimeoutMs(uint64_t now_ns) const {
  uint64_t sleep_ns = kLongestSleepNs;
  for (const Entry& entry : timers_) {
    sleep_ns = std::min(sleep_ns, entry.due_ns > now_ns ? entry.due_ns - now_ns : 0);
  }
  return static_cast<int>((sleep_ns + 999'999) / 1'000'000);
}

void EventLoop::RunTimers() {
  const uint64_t now_ns = shm::MonotonicClock::PreciseNs();
  std::vector<std::shared_ptr<Timer>> due;
  for (Entry& entry : timers_) {
    if (entry.due_ns > now_ns) continue;
    due.push_back(entry.timer);
    entry.due_ns = entry.interval_ns != 0 ? now_ns + entry.interval_ns : 0;
  }
  std::erase_if(timers_, [](const Entry& entry) { return entry.due_ns == 0; });
  for (const auto& timer : due) (*timer)(now_ns);
}

absl::Status EventLoop::Run() {
  stopped_ = false;
  epoll_event events[kMaxEventsPerWait];
  while (!stopped_) {
    const int timeout_ms = TimeoutMs(shm::MonotonicClock::PreciseNs());
    const int n = epoll_wait(epoll_.get(), events, kMaxEventsPerWait, timeout_ms);
    if (n < 0 && errno != EINTR) return absl::ErrnoToStatus(errno, "epoll_wait");
    for (int i = 0; i < n && !stopped_; ++i) {
      const auto found = handlers_.find(events[i].data.fd);
      if (found == handlers_.end()) continue;  // removed by an earlier handler of this round
      const std::shared_ptr<Handler> handler = found->second;
      (*handler)(events[i].events);
    }
    if (!stopped_) RunTimers();
  }
  return absl::OkStatus();
}

}  // namespace sluice::admin
