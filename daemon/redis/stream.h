#pragma once

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "daemon/ring/ring.h"

namespace sluice::redis {

// Why a stream has ended.
struct StreamEnd {
  std::string what;
  std::string mend;          // not empty: only a person can mend it
  bool handshaking = false;  // it was connected, and not open yet
};

// Hears of a stream; called from Ring::Wait only.
class StreamObserver {
 public:
  virtual ~StreamObserver() = default;
  virtual void OnOpen() = 0;
  // Bytes as the peer meant them; valid until the callback returns. The next ones come by
  // themselves, unless the stream is closed here.
  virtual void OnBytes(std::string_view bytes) = 0;
  // All that was written is with the kernel; `buffer` comes back empty, for its capacity.
  virtual void OnWritten(std::string buffer) = 0;
  // The stream has ended, once; the observer may close or reopen it here.
  virtual void OnEnd(const StreamEnd& why) = 0;
};

// A byte stream to one node: the seam where TLS (tls_stream.h) goes in between connection and ring.
// Used on the ring's thread.
class Stream {
 public:
  virtual ~Stream() = default;
  // Starts to connect; ends in OnOpen or OnEnd. Only on a closed stream. `peer` is who should
  // answer there, a host name or a numeric address, where the stream can tell. FailedPrecondition:
  // only a person can mend it.
  virtual absl::Status Open(const ring::Address& address, const std::string& peer) = 0;
  // Writes all of `bytes` (not empty). One write at a time: the next after OnWritten.
  virtual absl::Status Write(std::string bytes) = 0;
  // No callback comes after it. Closing a closed stream does nothing.
  virtual void Close() = 0;
  // Connected, and not open yet: the two ends make out who they are.
  virtual bool IsHandshaking() const { return false; }
};

// The bytes as they are.
class PlainStream final : public Stream, private ring::Handler {
 public:
  PlainStream(ring::Ring* ring, StreamObserver* observer) : ring_(ring), observer_(observer) {}
  ~PlainStream() override { Close(); }
  PlainStream(const PlainStream&) = delete;
  PlainStream& operator=(const PlainStream&) = delete;

  absl::Status Open(const ring::Address& address, const std::string& peer) override;
  absl::Status Write(std::string bytes) override;
  void Close() override;
  // Closes, and sends `last_words` before that if they can go at once.
  void CloseWith(std::string_view last_words);

 private:
  void OnConnected(ring::ChannelId channel, int error) override;
  void OnSent(ring::ChannelId channel, std::string buffer, int error) override;
  void OnReceived(ring::ChannelId channel, absl::Span<const char> bytes, int error) override;
  void End(const StreamEnd& why);

  ring::Ring* const ring_;
  StreamObserver* const observer_;
  ring::ChannelId channel_;
};

}  // namespace sluice::redis
