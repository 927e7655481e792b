#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "daemon/redis/stream.h"
#include "daemon/redis/tls_context.h"
#include "daemon/redis/tls_error.h"
#include "daemon/ring/ring.h"

struct bio_st;
struct ssl_st;

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

  // `peer` (or the context's server_name) is what the certificate must name: an IP address among
  // its IP addresses, anything else among its DNS names. Unix sockets have no name, so no TLS.
  absl::Status Open(const ring::Address& address, const std::string& peer) override;
  absl::Status Write(std::string bytes) override;
  // Says goodbye (close_notify) where that can be done without waiting.
  void Close() override;
  bool IsHandshaking() const override { return connected_ && !open_; }

 private:
  using Session = std::unique_ptr<ssl_st, void (*)(ssl_st*)>;

  void OnOpen() override;
  void OnBytes(std::string_view bytes) override;
  void OnWritten(std::string buffer) override;
  void OnEnd(const StreamEnd& why) override;

  absl::Status NewSession(const std::string& name);
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
  static int OnVerify(int good, struct x509_store_ctx_st* store);

  const TlsContext* const context_;
  StreamObserver* const observer_;
  PlainStream plain_;
  Session session_;
  bio_st* received_ = nullptr;  // of the session
  bio_st* to_send_ = nullptr;   // of the session
  std::string name_;            // what the certificate must name
  TlsTrouble certificate_;      // what was wrong with it, if anything was
  bool connected_ = false;
  bool open_ = false;
  bool sending_ = false;
  bool writing_ = false;     // OnWritten of clear_ is owed
  std::string clear_;        // what is being written
  size_t encrypted_ = 0;     // of it
  uint64_t generation_ = 0;  // of Open and Close: tells a loop that it is over
};

}  // namespace sluice::redis
