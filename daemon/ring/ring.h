#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "daemon/ring/address.h"

namespace sluice::ring {

// The network as the daemon sees it: connected byte channels over one completion queue. Two back
// ends, io_uring and epoll, keep the same contract (tests/ring runs one suite over both), and a
// simulation can put a third in their place.
//
// Ownership is what makes closing safe: the ring owns every buffer that the kernel may still touch.
// A send hands its bytes over and gets them back with the completion; a receive lands in a buffer
// of the ring that is lent for the length of the callback. A channel that is closed with
// operations in flight therefore frees nothing early; its late completions find a newer generation
// in the slot and are dropped.

// Most channels open at once. A daemon holds one per Redis primary, one or two scouts and its
// admin clients; the bound also keeps the completion queue from overflowing.
inline constexpr uint32_t kMaxChannels = 512;

// Bytes of one receive: the largest slice that the reply parser is fed (it moves its remainder, so
// bigger slices cost more per byte).
inline constexpr size_t kRecvBytes = 16 * 1024;

// Names a channel until it is closed. Carries the generation of its slot: an id that outlived its
// channel is refused, never mistaken for the slot's next tenant.
struct ChannelId {
  uint64_t value = 0;  // 0 names no channel

  explicit operator bool() const { return value != 0; }
  friend bool operator==(ChannelId, ChannelId) = default;
};

// Receives completions, always from inside Ring::Wait, on the ring's thread. A handler may call
// any method of the ring but Wait, Close on its own channel included, and must outlive its
// channels. `error` is 0 or a positive errno.
class Handler {
 public:
  virtual ~Handler() = default;
  virtual void OnConnected(ChannelId channel, int error) = 0;
  // The whole buffer is sent (error 0), or none knows how much of it (error). Gives the buffer
  // back for its capacity.
  virtual void OnSent(ChannelId channel, std::string buffer, int error) = 0;
  // `bytes` is valid until the callback returns. Empty with error 0: the peer has finished sending.
  virtual void OnReceived(ChannelId channel, absl::Span<const char> bytes, int error) = 0;
};

// Created, used and destroyed on one thread (only Wake may come from others). No method blocks
// but Wait. Every operation that returned Ok ends in exactly one callback, unless its channel is
// closed first: then in none.
class Ring {
 public:
  virtual ~Ring() = default;

  // Opens a socket for `address` and starts to connect it; ends in OnConnected. There is no
  // deadline here: the owner closes the channel when it has waited long enough.
  // ResourceExhausted above kMaxChannels or when the process is out of descriptors.
  virtual absl::StatusOr<ChannelId> Connect(const Address& address, Handler* handler) = 0;

  // Takes over a connected stream socket and closes it with the channel (not on failure).
  // Sets or clears O_NONBLOCK on it as the back end needs.
  virtual absl::StatusOr<ChannelId> Adopt(int fd, Handler* handler) = 0;

  // Sends all of `bytes` (not empty). One send may be in flight per channel: FailedPrecondition
  // otherwise, NotFound for a closed channel.
  virtual absl::Status Send(ChannelId channel, std::string bytes) = 0;

  // Asks for the next bytes, once, at most kRecvBytes. One receive may be in flight per channel:
  // FailedPrecondition otherwise, NotFound for a closed channel.
  virtual absl::Status Recv(ChannelId channel) = 0;

  // Says that nothing more will be sent; the peer reads the end of the stream. Call it when no
  // send is in flight. NotFound for a closed channel.
  virtual absl::Status FinishSending(ChannelId channel) = 0;

  // Closes the channel; operations in flight are cancelled and end in no callback. Unknown and
  // closed ids are ignored.
  virtual void Close(ChannelId channel) = 0;

  // The same, but sends `last_words` (short) before that, if no send is in flight and the socket
  // takes them at once; whether it did is not told. A ring that cannot just closes.
  virtual void CloseWith(ChannelId channel, std::string_view last_words) {
    (void)last_words;
    Close(channel);
  }

  // Submits what is queued, waits for at least one completion, a Wake, or `timeout_ns` (0: do not
  // wait, negative: no limit), and runs the callbacks. Returns how many ran; 0 after a timeout, a
  // wake or a signal.
  virtual absl::StatusOr<size_t> Wait(int64_t timeout_ns) = 0;

  // Makes the current or the next Wait return. From any thread and from signal handlers.
  virtual void Wake() = 0;

  // Channels that are open now.
  virtual size_t channel_count() const = 0;
};

enum class RingChoice { kAuto, kUring, kEpoll };

struct OpenedRing {
  std::unique_ptr<Ring> ring;
  // kUring or kEpoll, never kAuto.
  RingChoice backend = RingChoice::kEpoll;
  // One sentence for the log: what was chosen and, if it is not the first choice, what refused.
  std::string why;
};

// "io_uring" or "epoll" ("auto" for kAuto): the value of a metric's label and of a config key.
std::string_view RingName(RingChoice choice);

// kAuto probes io_uring with all the flags wanted, then with fewer (older kernels), and takes
// epoll when both are refused (containers often forbid io_uring with EPERM). kUring fails where
// kAuto would have taken epoll. The ring belongs to the calling thread.
absl::StatusOr<OpenedRing> OpenRing(RingChoice choice);

}  // namespace sluice::ring
