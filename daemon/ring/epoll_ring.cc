#include "daemon/ring/epoll_ring.h"

#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <ctime>
#include <utility>
#include <vector>

#include "daemon/ring/channel_table.h"
#include "daemon/ring/socket.h"

namespace sluice::ring {
namespace {

// Events taken from the kernel in one go; more wait for the next Wait.
constexpr int kEventsPerWait = 256;
// The eventfd's token: no channel has id 0.
constexpr uint64_t kWakeToken = 0;

struct Channel {
  int fd = -1;
  Handler* handler = nullptr;
  bool connecting = false;
  bool sending = false;
  bool receiving = false;
  // The socket did not take all at the last try; wait for EPOLLOUT.
  bool send_blocked = false;
  std::string send_buffer;
  size_t sent = 0;
  // What epoll watches now; 0 means that it is not registered, since a registered socket reports
  // errors and hang-ups even if nobody asked, for ever.
  uint32_t watched = 0;
};

class EpollRing final : public Ring {
 public:
  EpollRing(int epoll_fd, int event_fd) : epoll_fd_(epoll_fd), event_fd_(event_fd) {}

  ~EpollRing() override {
    for (ChannelId id : channels_.Ids()) Close(id);
    close(event_fd_);
    close(epoll_fd_);
  }

  absl::StatusOr<ChannelId> Connect(const Address& address, Handler* handler) override {
    absl::StatusOr<int> fd = OpenStreamSocket(address, /*nonblocking=*/true);
    if (!fd.ok()) return fd.status();
    absl::StatusOr<ChannelId> id = Insert(*fd, handler);
    if (!id.ok()) {
      close(*fd);
      return id;
    }
    const int rc =
        connect(*fd, reinterpret_cast<const sockaddr*>(&address.storage), address.length);
    Channel* channel = channels_.Find(*id);
    channel->connecting = true;
    if (rc == 0) {
      connect_results_.push_back({*id, 0});
    } else if (errno != EINPROGRESS) {
      connect_results_.push_back({*id, errno});
    }
    Touch(*id);
    return id;
  }

  absl::StatusOr<ChannelId> Adopt(int fd, Handler* handler) override {
    absl::Status status = SetNonblocking(fd, true);
    if (!status.ok()) return status;
    return Insert(fd, handler);
  }

  absl::Status Send(ChannelId id, std::string bytes) override {
    Channel* channel = channels_.Find(id);
    if (channel == nullptr) return absl::NotFoundError("send on a closed channel");
    if (channel->sending) return absl::FailedPreconditionError("a send is in flight already");
    if (bytes.empty()) return absl::InvalidArgumentError("nothing to send");
    channel->send_buffer = std::move(bytes);
    channel->sent = 0;
    channel->sending = true;
    channel->send_blocked = false;
    sends_to_try_.push_back(id);
    return absl::OkStatus();
  }

  absl::Status Recv(ChannelId id) override {
    Channel* channel = channels_.Find(id);
    if (channel == nullptr) return absl::NotFoundError("receive on a closed channel");
    if (channel->receiving) return absl::FailedPreconditionError("a receive is in flight already");
    channel->receiving = true;
    Touch(id);
    return absl::OkStatus();
  }

  absl::Status FinishSending(ChannelId id) override {
    Channel* channel = channels_.Find(id);
    if (channel == nullptr) return absl::NotFoundError("shutdown of a closed channel");
    if (shutdown(channel->fd, SHUT_WR) != 0) return ErrnoStatus(errno, "cannot shut down");
    return absl::OkStatus();
  }

  void CloseWith(ChannelId id, std::string_view last_words) override {
    const Channel* channel = channels_.Find(id);
    if (channel != nullptr && !channel->connecting && !channel->sending) {
      SendNow(channel->fd, last_words);
    }
    Close(id);
  }

  void Close(ChannelId id) override {
    std::unique_ptr<Channel> channel = channels_.Release(id);
    if (channel == nullptr) return;
    close(channel->fd);  // leaves the epoll set by itself: no descriptor of ours is duplicated
  }

  absl::StatusOr<size_t> Wait(int64_t timeout_ns) override {
    size_t ran = RunConnectResults() + RunSends();
    ApplyWatches();
    // What the callbacks above have sent is tried before sleeping on it.
    if (ran > 0 || !sends_to_try_.empty() || !connect_results_.empty()) timeout_ns = 0;
    absl::StatusOr<int> count = WaitForEvents(timeout_ns);
    if (!count.ok()) return count.status();
    for (int i = 0; i < *count; ++i) {
      const uint64_t token = events_[i].data.u64;
      if (token == kWakeToken) {
        DrainEvent(event_fd_);
      } else {
        ran += RunEvent(ChannelId{token}, events_[i].events);
      }
    }
    return ran;
  }

  void Wake() override { SignalEvent(event_fd_); }

  size_t channel_count() const override { return channels_.in_use(); }

 private:
  struct ConnectResult {
    ChannelId id;
    int error;
  };

  absl::StatusOr<ChannelId> Insert(int fd, Handler* handler) {
    ChannelId id;
    Channel* channel = channels_.Insert(&id);
    if (channel == nullptr) return absl::ResourceExhaustedError("too many channels are open");
    channel->fd = fd;
    channel->handler = handler;
    return id;
  }

  // Marks that the channel's watch may have to change before the next sleep.
  void Touch(ChannelId id) { touched_.push_back(id); }

  void ApplyWatches() {
    for (ChannelId id : std::exchange(touched_, {})) {
      Channel* channel = channels_.Find(id);
      if (channel == nullptr) continue;
      const uint32_t wanted = (channel->receiving ? EPOLLIN : 0u) |
                              (channel->connecting || channel->send_blocked ? EPOLLOUT : 0u);
      if (wanted == channel->watched) continue;
      const int op = channel->watched == 0 ? EPOLL_CTL_ADD
                     : wanted == 0         ? EPOLL_CTL_DEL
                                           : EPOLL_CTL_MOD;
      epoll_event event{};
      event.events = wanted;
      event.data.u64 = id.value;
      if (epoll_ctl(epoll_fd_, op, channel->fd, &event) == 0) {
        channel->watched = wanted;
      } else {
        FailAll(id, errno);
      }
    }
  }

  // epoll refused the descriptor (out of memory or watches): its operations end with that error.
  void FailAll(ChannelId id, int error) {
    Channel* channel = channels_.Find(id);
    if (channel->connecting) return FinishConnect(id, error);
    if (channel->sending) FinishSend(id, error);
    channel = channels_.Find(id);
    if (channel != nullptr && channel->receiving) {
      channel->receiving = false;
      channel->handler->OnReceived(id, {}, error);
    }
  }

  size_t RunConnectResults() {
    const std::vector<ConnectResult> results = std::exchange(connect_results_, {});
    size_t ran = 0;
    for (const ConnectResult& result : results) {
      if (channels_.Find(result.id) == nullptr) continue;
      FinishConnect(result.id, result.error);
      ++ran;
    }
    return ran;
  }

  size_t RunSends() {
    const std::vector<ChannelId> sends = std::exchange(sends_to_try_, {});
    size_t ran = 0;
    for (ChannelId id : sends) ran += TrySend(id);
    return ran;
  }

  size_t RunEvent(ChannelId id, uint32_t events) {
    Channel* channel = channels_.Find(id);
    if (channel == nullptr) return 0;
    Touch(id);
    const bool broken = (events & (EPOLLERR | EPOLLHUP)) != 0;
    size_t ran = 0;
    if (channel->connecting && (broken || (events & EPOLLOUT) != 0)) {
      int error = 0;
      socklen_t length = sizeof error;
      if (getsockopt(channel->fd, SOL_SOCKET, SO_ERROR, &error, &length) != 0) error = errno;
      FinishConnect(id, error);
      return 1;
    }
    if (channel->sending && (broken || (events & EPOLLOUT) != 0)) ran += TrySend(id);
    channel = channels_.Find(id);
    if (channel != nullptr && channel->receiving && (broken || (events & EPOLLIN) != 0)) {
      ran += TryRecv(id, channel);
    }
    return ran;
  }

  void FinishConnect(ChannelId id, int error) {
    Channel* channel = channels_.Find(id);
    channel->connecting = false;
    Touch(id);
    channel->handler->OnConnected(id, error);
  }

  void FinishSend(ChannelId id, int error) {
    Channel* channel = channels_.Find(id);
    channel->sending = false;
    channel->send_blocked = false;
    Touch(id);
    std::string buffer = std::exchange(channel->send_buffer, {});
    channel->handler->OnSent(id, std::move(buffer), error);
  }

  size_t TrySend(ChannelId id) {
    Channel* channel = channels_.Find(id);
    if (channel == nullptr || !channel->sending) return 0;
    const char* next = channel->send_buffer.data() + channel->sent;
    const ssize_t wrote = send(channel->fd, next, channel->send_buffer.size() - channel->sent,
                               MSG_NOSIGNAL | MSG_DONTWAIT);
    if (wrote < 0 && errno != EAGAIN && errno != EINTR) {
      FinishSend(id, errno);
      return 1;
    }
    if (wrote > 0) channel->sent += static_cast<size_t>(wrote);
    if (channel->sent == channel->send_buffer.size()) {
      FinishSend(id, 0);
      return 1;
    }
    channel->send_blocked = true;
    Touch(id);
    return 0;
  }

  size_t TryRecv(ChannelId id, Channel* channel) {
    const ssize_t got = recv(channel->fd, recv_buffer_.data(), recv_buffer_.size(), MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return 0;
    channel->receiving = false;
    const int error = got < 0 ? errno : 0;
    const size_t bytes = got < 0 ? 0 : static_cast<size_t>(got);
    channel->handler->OnReceived(id, absl::MakeConstSpan(recv_buffer_.data(), bytes), error);
    return 1;
  }

  absl::StatusOr<int> WaitForEvents(int64_t timeout_ns) {
    timespec limit{timeout_ns / 1'000'000'000, timeout_ns % 1'000'000'000};
    int count = no_pwait2_ ? -1
                           : epoll_pwait2(epoll_fd_, events_.data(), kEventsPerWait,
                                          timeout_ns < 0 ? nullptr : &limit, nullptr);
    if (no_pwait2_ || (count < 0 && errno == ENOSYS)) {  // before Linux 5.11
      no_pwait2_ = true;
      // Rounded up, and one day at most: a caller loops on Wait anyway.
      const int64_t ms = std::min<int64_t>((timeout_ns + 999'999) / 1'000'000, 86'400'000);
      count = epoll_wait(epoll_fd_, events_.data(), kEventsPerWait,
                         timeout_ns < 0 ? -1 : static_cast<int>(ms));
    }
    if (count >= 0) return count;
    if (errno == EINTR) return 0;
    return ErrnoStatus(errno, "cannot wait on epoll");
  }

  const int epoll_fd_;
  const int event_fd_;
  bool no_pwait2_ = false;
  ChannelTable<Channel> channels_;
  std::vector<ConnectResult> connect_results_;  // known at once, told by the next Wait
  std::vector<ChannelId> sends_to_try_;
  std::vector<ChannelId> touched_;
  std::array<epoll_event, kEventsPerWait> events_{};
  std::array<char, kRecvBytes> recv_buffer_;  // lent to one callback at a time
};

}  // namespace

absl::StatusOr<std::unique_ptr<Ring>> OpenEpollRing() {
  absl::StatusOr<int> event_fd = OpenEvent();
  if (!event_fd.ok()) return event_fd.status();
  const int epoll_fd = epoll_create1(EPOLL_CLOEXEC);
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u64 = kWakeToken;
  if (epoll_fd < 0 || epoll_ctl(epoll_fd, EPOLL_CTL_ADD, *event_fd, &event) != 0) {
    const int error = errno;
    if (epoll_fd >= 0) close(epoll_fd);
    close(*event_fd);
    return ErrnoStatus(error, "cannot open epoll");
  }
  return std::make_unique<EpollRing>(epoll_fd, *event_fd);
}

}  // namespace sluice::ring
