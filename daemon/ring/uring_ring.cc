#include "daemon/ring/uring_ring.h"

#include <liburing.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <utility>
#include <vector>

#include "daemon/ring/channel_table.h"
#include "daemon/ring/socket.h"

namespace sluice::ring {
namespace {

// What a completion belongs to; the low byte of its token.
enum Op : uint8_t { kConnectOp = 1, kSendOp, kRecvOp, kCancelOp };

// The eventfd's poll; no channel's token is so small.
constexpr uint64_t kWakeToken = 0xff;
// Completions taken in one Wait; more wait for the next.
constexpr size_t kCompletionsPerWait = 1024;
// Rounds of waiting for cancelled operations when the ring is destroyed, 10 ms each.
constexpr int kDrainRounds = 100;

// generation:32 | position:24 | op:8
uint64_t Token(ChannelId id, Op op) {
  return (id.value >> 32) << 32 | (id.value & 0xff'ffff) << 8 | op;
}
ChannelId TokenChannel(uint64_t token) {
  return ChannelId{(token >> 32) << 32 | (token >> 8 & 0xff'ffff)};
}

struct Channel {
  int fd = -1;
  Handler* handler = nullptr;
  Address address;  // the kernel reads it until the connect completes
  bool connecting = false;
  bool sending = false;
  bool receiving = false;
  bool closing = false;  // the owner is done with it; it waits for its last completions
  int in_flight = 0;     // completions still to come, cancellations included
  std::string send_buffer;
  size_t sent = 0;
  std::unique_ptr<char[]> recv_buffer;
};

class UringRing final : public Ring {
 public:
  explicit UringRing(int event_fd) : event_fd_(event_fd), lent_(NewBuffer()) {}

  ~UringRing() override {
    if (ready_) {
      for (ChannelId id : channels_.Ids()) Close(id);
      for (int i = 0; i < kDrainRounds && channels_.in_use() > 0; ++i) {
        if (!Wait(10'000'000).ok()) break;
      }
      io_uring_queue_exit(&ring_);
      // A kernel that still holds an operation may write to its buffer later: better leaked.
      for (ChannelId id : channels_.Ids()) {
        [[maybe_unused]] Channel* leaked = channels_.Release(id).release();
      }
    }
    close(event_fd_);
  }

  // 0, or the errno of the refusal.
  int Setup(unsigned flags) {
    io_uring_params params{};
    params.flags = flags | IORING_SETUP_CQSIZE;
    params.cq_entries = kUringCompletions;
    const int rc = io_uring_queue_init_params(kUringSubmissions, &ring_, &params);
    if (rc < 0) return -rc;
    ready_ = true;
    // Without it a wait with a timeout costs a timer of its own (before Linux 5.11).
    if ((params.features & IORING_FEAT_EXT_ARG) == 0) return ENOSYS;
    return 0;
  }

  absl::StatusOr<ChannelId> Connect(const Address& address, Handler* handler) override {
    absl::StatusOr<int> fd = OpenStreamSocket(address, /*nonblocking=*/false);
    if (!fd.ok()) return fd.status();
    absl::StatusOr<ChannelId> id = Insert(*fd, handler);
    if (!id.ok()) {
      close(*fd);
      return id;
    }
    Channel* channel = channels_.Find(*id);
    channel->address = address;
    io_uring_sqe* sqe = NextSqe();
    if (sqe == nullptr) {
      close(*fd);
      channels_.Release(*id);
      --open_;
      return absl::ResourceExhaustedError("the submission queue is full");
    }
    io_uring_prep_connect(sqe, *fd, reinterpret_cast<const sockaddr*>(&channel->address.storage),
                          channel->address.length);
    sqe->user_data = Token(*id, kConnectOp);
    channel->connecting = true;
    ++channel->in_flight;
    return id;
  }

  absl::StatusOr<ChannelId> Adopt(int fd, Handler* handler) override {
    absl::Status status = SetNonblocking(fd, false);
    if (!status.ok()) return status;
    return Insert(fd, handler);
  }

  absl::Status Send(ChannelId id, std::string bytes) override {
    Channel* channel = FindOpen(id);
    if (channel == nullptr) return absl::NotFoundError("send on a closed channel");
    if (channel->sending) return absl::FailedPreconditionError("a send is in flight already");
    if (bytes.empty()) return absl::InvalidArgumentError("nothing to send");
    channel->send_buffer = std::move(bytes);
    channel->sent = 0;
    if (!SubmitSend(id, channel)) {
      return absl::ResourceExhaustedError("the submission queue is full");
    }
    channel->sending = true;
    return absl::OkStatus();
  }

  absl::Status Recv(ChannelId id) override {
    Channel* channel = FindOpen(id);
    if (channel == nullptr) return absl::NotFoundError("receive on a closed channel");
    if (channel->receiving) return absl::FailedPreconditionError("a receive is in flight already");
    if (!SubmitRecv(id, channel)) {
      return absl::ResourceExhaustedError("the submission queue is full");
    }
    channel->receiving = true;
    return absl::OkStatus();
  }

  absl::Status FinishSending(ChannelId id) override {
    Channel* channel = FindOpen(id);
    if (channel == nullptr) return absl::NotFoundError("shutdown of a closed channel");
    if (shutdown(channel->fd, SHUT_WR) != 0) return ErrnoStatus(errno, "cannot shut down");
    return absl::OkStatus();
  }

  void CloseWith(ChannelId id, std::string_view last_words) override {
    const Channel* channel = FindOpen(id);
    if (channel != nullptr && !channel->connecting && !channel->sending) {
      SendNow(channel->fd, last_words);
    }
    Close(id);
  }

  void Close(ChannelId id) override {
    Channel* channel = FindOpen(id);
    if (channel == nullptr) return;
    channel->closing = true;
    --open_;
    if (channel->connecting) Cancel(id, channel, kConnectOp);
    if (channel->sending) Cancel(id, channel, kSendOp);
    if (channel->receiving) Cancel(id, channel, kRecvOp);
    // The descriptor and the buffers stay until the last completion; the peer learns at once.
    if (channel->in_flight > 0) shutdown(channel->fd, SHUT_RDWR);
    ReleaseIfDone(id, channel);
  }

  absl::StatusOr<size_t> Wait(int64_t timeout_ns) override {
    if (!wake_armed_) ArmWake();
    const int rc = SubmitAndWait(timeout_ns);
    if (rc < 0 && rc != -ETIME && rc != -EINTR && rc != -EAGAIN && rc != -EBUSY) {
      return ErrnoStatus(-rc, "cannot wait on io_uring");
    }
    // Copied out first: callbacks may submit, and the kernel then reuses the entries.
    size_t count = 0;
    unsigned head;
    io_uring_cqe* cqe;
    io_uring_for_each_cqe(&ring_, head, cqe) {
      if (count == kCompletionsPerWait) break;
      completions_[count++] = {cqe->user_data, cqe->res};
    }
    io_uring_cq_advance(&ring_, static_cast<unsigned>(count));
    size_t ran = 0;
    for (size_t i = 0; i < count; ++i) ran += Complete(completions_[i].token, completions_[i].res);
    return ran;
  }

  void Wake() override { SignalEvent(event_fd_); }

  size_t channel_count() const override { return open_; }

 private:
  struct Completion {
    uint64_t token;
    int res;
  };

  static std::unique_ptr<char[]> NewBuffer() { return std::make_unique<char[]>(kRecvBytes); }

  absl::StatusOr<ChannelId> Insert(int fd, Handler* handler) {
    ChannelId id;
    Channel* channel = channels_.Insert(&id);
    if (channel == nullptr) return absl::ResourceExhaustedError("too many channels are open");
    channel->fd = fd;
    channel->handler = handler;
    ++open_;
    return id;
  }

  Channel* FindOpen(ChannelId id) const {
    Channel* channel = channels_.Find(id);
    return channel == nullptr || channel->closing ? nullptr : channel;
  }

  io_uring_sqe* NextSqe() {
    io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
    if (sqe != nullptr) return sqe;
    io_uring_submit(&ring_);
    return io_uring_get_sqe(&ring_);
  }

  bool SubmitSend(ChannelId id, Channel* channel) {
    io_uring_sqe* sqe = NextSqe();
    if (sqe == nullptr) return false;
    io_uring_prep_send(sqe, channel->fd, channel->send_buffer.data() + channel->sent,
                       channel->send_buffer.size() - channel->sent, MSG_NOSIGNAL | MSG_WAITALL);
    sqe->user_data = Token(id, kSendOp);
    ++channel->in_flight;
    return true;
  }

  bool SubmitRecv(ChannelId id, Channel* channel) {
    if (!channel->recv_buffer) channel->recv_buffer = NewBuffer();
    io_uring_sqe* sqe = NextSqe();
    if (sqe == nullptr) return false;
    io_uring_prep_recv(sqe, channel->fd, channel->recv_buffer.get(), kRecvBytes, 0);
    sqe->user_data = Token(id, kRecvOp);
    ++channel->in_flight;
    return true;
  }

  void Cancel(ChannelId id, Channel* channel, Op op) {
    io_uring_sqe* sqe = NextSqe();
    if (sqe == nullptr) return;  // the shutdown that follows ends the operation as well
    io_uring_prep_cancel64(sqe, Token(id, op), 0);
    sqe->user_data = Token(id, kCancelOp);
    ++channel->in_flight;
  }

  void ReleaseIfDone(ChannelId id, Channel* channel) {
    if (!channel->closing || channel->in_flight > 0) return;
    close(channel->fd);
    channels_.Release(id);
  }

  void ArmWake() {
    io_uring_sqe* sqe = NextSqe();
    if (sqe == nullptr) return;  // tried again by the next Wait
    io_uring_prep_poll_add(sqe, event_fd_, POLLIN);
    sqe->user_data = kWakeToken;
    wake_armed_ = true;
  }

  int SubmitAndWait(int64_t timeout_ns) {
    if (timeout_ns < 0) return io_uring_submit_and_wait(&ring_, 1);
    __kernel_timespec limit{timeout_ns / 1'000'000'000, timeout_ns % 1'000'000'000};
    io_uring_cqe* cqe;
    // With a zero limit too: under DEFER_TASKRUN only a wait lets completions appear.
    return io_uring_submit_and_wait_timeout(&ring_, &cqe, 1, &limit, nullptr);
  }

  // 1 when a callback ran.
  size_t Complete(uint64_t token, int res) {
    if (token == kWakeToken) {
      DrainEvent(event_fd_);
      wake_armed_ = false;
      return 0;
    }
    const ChannelId id = TokenChannel(token);
    Channel* channel = channels_.Find(id);
    if (channel == nullptr) return 0;
    --channel->in_flight;
    if (channel->closing) {
      ReleaseIfDone(id, channel);
      return 0;
    }
    switch (static_cast<Op>(token & 0xff)) {
      case kConnectOp:
        channel->connecting = false;
        channel->handler->OnConnected(id, -res);
        return 1;
      case kSendOp:
        return CompleteSend(id, channel, res);
      case kRecvOp:
        return CompleteRecv(id, channel, res);
      case kCancelOp:
        return 0;
    }
    return 0;
  }

  size_t CompleteSend(ChannelId id, Channel* channel, int res) {
    if (res > 0) channel->sent += static_cast<size_t>(res);
    const bool again = res > 0 || res == -EAGAIN || res == -EINTR;
    int error = res < 0 ? -res : 0;
    if (again && channel->sent < channel->send_buffer.size()) {
      if (SubmitSend(id, channel)) return 0;
      error = ENOBUFS;
    }
    channel->sending = false;
    std::string buffer = std::exchange(channel->send_buffer, {});
    channel->handler->OnSent(id, std::move(buffer), error);
    return 1;
  }

  size_t CompleteRecv(ChannelId id, Channel* channel, int res) {
    if ((res == -EAGAIN || res == -EINTR) && SubmitRecv(id, channel)) return 0;
    channel->receiving = false;
    // The callback may ask for the next bytes while it still reads these: it reads from a buffer
    // that no operation points to.
    std::swap(lent_, channel->recv_buffer);
    const size_t bytes = res < 0 ? 0 : static_cast<size_t>(res);
    channel->handler->OnReceived(id, absl::MakeConstSpan(lent_.get(), bytes), res < 0 ? -res : 0);
    return 1;
  }

  io_uring ring_{};
  bool ready_ = false;
  const int event_fd_;
  bool wake_armed_ = false;
  size_t open_ = 0;  // channels that their owner has not closed
  ChannelTable<Channel> channels_;
  std::unique_ptr<char[]> lent_;
  std::array<Completion, kCompletionsPerWait> completions_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Ring>> OpenUringRing(unsigned flags) {
  absl::StatusOr<int> event_fd = OpenEvent();
  if (!event_fd.ok()) return event_fd.status();
  auto ring = std::make_unique<UringRing>(*event_fd);
  const int error = ring->Setup(flags);
  if (error != 0) return ErrnoStatus(error, "io_uring_setup");
  return ring;
}

}  // namespace sluice::ring
