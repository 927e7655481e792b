#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "daemon/redis/stream.h"
#include "daemon/redis/tls_context.h"
#include "daemon/redis/tls_session.h"
#include "daemon/ring/ring.h"

struct bio_st;

namespace sluice::redis {

// A stream under TLS: OpenSSL between two buffers in memory, over a plain stream. It is open when
// the handshake has ended and the peer's certificate is good for the name asked for.
//
// What is received is decrypted and told at once, so nothing gathers here; of what is written a
// slice at a time is encrypted, so that no more than that stands here twice.
class TlsStream final : public Stream, private StreamObserver {
 public:
  // All of them must outlive the stream.
  TlsStream(ring::Ring* ring, const TlsContext* context, StreamObserver* observer);
  ~TlsStream() override;
  TlsStream(const TlsStream&) = delete;
  TlsStream& operator=(const TlsStream&) = delete;

  // See TlsSession for `peer`.
  absl::Status Open(const ring::Address& address, const std::string& peer) override;
  absl::Status Write(std::string bytes) override;
  // Says goodbye (close_notify) where that can be done without waiting.
  void Close() override;
  bool IsHandshaking() const override { return connected_ && !open_; }

 private:
  void OnOpen() override;
  void OnBytes(std::string_view bytes) override;
  void OnWritten(std::string buffer) override;
  void OnEnd(const StreamEnd& why) override;

  absl::Status NewSession(const std::string& peer);
  // All that the peer's bytes make possible: the handshake, then replies.
  void Advance();
  // Whether the handshake has ended; it may have ended the stream instead.
  bool Handshake();
  void TellReplies();
  absl::Status EncryptSlice();
  // Sends what OpenSSL has to say, unless a send is under way.
  absl::Status Flush();
  void EndByError();
  void End(const StreamEnd& why);

  const TlsContext* const context_;
  StreamObserver* const observer_;
  PlainStream plain_;
  std::unique_ptr<TlsSession> session_;
  bio_st* received_ = nullptr;  // of the session
  bio_st* to_send_ = nullptr;   // of the session
  bool connected_ = false;
  bool open_ = false;
  bool sending_ = false;
  bool writing_ = false;     // OnWritten of clear_ is owed
  std::string clear_;        // what is being written
  size_t encrypted_ = 0;     // of it
  uint64_t generation_ = 0;  // of Open and Close: tells a loop that it is over
};

}  // namespace sluice::redis
