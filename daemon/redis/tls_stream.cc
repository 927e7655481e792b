#include "daemon/redis/tls_stream.h"

#include <openssl/err.h>
#include <openssl/ssl.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace sluice::redis {
namespace {

// Encrypted at once: eight records of TLS, some 50 us of work.
constexpr size_t kSliceBytes = 128 * 1024;
// A peer that makes us answer (new keys) and never reads is no peer.
constexpr size_t kMaxUnsentBytes = 4 * kSliceBytes;
constexpr size_t kReplyBytes = 16 * 1024;  // most of one record

}  // namespace

TlsStream::TlsStream(ring::Ring* ring, const TlsContext* context, StreamObserver* observer)
    : context_(context), observer_(observer), plain_(ring, this) {}

TlsStream::~TlsStream() { Close(); }

absl::Status TlsStream::Open(const ring::Address& address, const std::string& peer) {
  absl::Status status = NewSession(peer);
  if (status.ok()) status = plain_.Open(address, peer);
  if (!status.ok()) Close();
  return status;
}

absl::Status TlsStream::NewSession(const std::string& peer) {
  ++generation_;
  absl::StatusOr<std::unique_ptr<TlsSession>> session = TlsSession::New(*context_, peer);
  if (!session.ok()) return session.status();
  session_ = *std::move(session);
  received_ = BIO_new(BIO_s_mem());
  to_send_ = BIO_new(BIO_s_mem());
  if (received_ == nullptr || to_send_ == nullptr) {
    BIO_free(received_);
    BIO_free(to_send_);
    session_.reset();
    return absl::ResourceExhaustedError("no memory for a TLS session");
  }
  BIO_set_mem_eof_return(received_, -1);              // empty means "more will come"
  SSL_set_bio(session_->get(), received_, to_send_);  // which owns them from now on
  return absl::OkStatus();
}

void TlsStream::Close() {
  ++generation_;
  std::string last_words;
  if (open_ && !sending_ && SSL_shutdown(session_->get()) >= 0) {
    char* bytes = nullptr;
    const long size = BIO_get_mem_data(to_send_, &bytes);
    if (size > 0) last_words.assign(bytes, static_cast<size_t>(size));
  }
  if (last_words.empty()) {
    plain_.Close();
  } else {
    plain_.CloseWith(last_words);
  }
  ERR_clear_error();
  session_.reset();
  received_ = nullptr;
  to_send_ = nullptr;
  connected_ = open_ = sending_ = writing_ = false;
  clear_.clear();
  encrypted_ = 0;
}

void TlsStream::End(const StreamEnd& why) {
  Close();
  observer_->OnEnd(why);
}

void TlsStream::EndByError() {
  const bool handshaking = IsHandshaking();
  const TlsTrouble trouble = session_->TakeTrouble();
  // The peer's log should say why, too; the alert is small enough to go at once.
  char* bytes = nullptr;
  const long size = BIO_get_mem_data(to_send_, &bytes);
  if (size > 0 && !sending_) plain_.CloseWith(std::string_view(bytes, static_cast<size_t>(size)));
  open_ = false;  // a broken session has no other goodbye
  End({trouble.what, trouble.mend, handshaking});
}

void TlsStream::OnOpen() {
  connected_ = true;
  Advance();
}

void TlsStream::OnBytes(std::string_view bytes) {
  const int size = static_cast<int>(bytes.size());  // at most ring::kRecvBytes
  if (BIO_write(received_, bytes.data(), size) != size) {
    return End({"no memory for what was received"});
  }
  Advance();
}

void TlsStream::Advance() {
  const uint64_t generation = generation_;
  if (!open_ && !Handshake()) return;
  TellReplies();
  if (generation != generation_) return;
  const absl::Status status = Flush();
  if (!status.ok()) End({std::string(status.message())});
}

bool TlsStream::Handshake() {
  const uint64_t generation = generation_;
  ERR_clear_error();
  const int rc = SSL_do_handshake(session_->get());
  if (rc != 1 && SSL_get_error(session_->get(), rc) != SSL_ERROR_WANT_READ) {
    EndByError();
    return false;
  }
  const absl::Status status = Flush();
  if (!status.ok()) {
    End({std::string(status.message())});
    return false;
  }
  if (rc != 1) return false;
  open_ = true;
  observer_->OnOpen();
  return generation == generation_;
}

void TlsStream::TellReplies() {
  const uint64_t generation = generation_;
  char reply[kReplyBytes];
  while (generation == generation_) {
    ERR_clear_error();
    const int got = SSL_read(session_->get(), reply, sizeof reply);
    if (got > 0) {
      observer_->OnBytes(std::string_view(reply, static_cast<size_t>(got)));
      continue;
    }
    const int error = SSL_get_error(session_->get(), got);
    if (error == SSL_ERROR_ZERO_RETURN) return End({"the server closed the connection"});
    if (error != SSL_ERROR_WANT_READ) EndByError();
    return;
  }
}

absl::Status TlsStream::Write(std::string bytes) {
  if (!open_ || writing_) return absl::FailedPreconditionError("a write out of turn");
  clear_ = std::move(bytes);
  encrypted_ = 0;
  absl::Status status = EncryptSlice();
  writing_ = status.ok();
  return status;
}

absl::Status TlsStream::EncryptSlice() {
  const size_t size = std::min(clear_.size() - encrypted_, kSliceBytes);
  ERR_clear_error();
  const int written =
      SSL_write(session_->get(), clear_.data() + encrypted_, static_cast<int>(size));
  if (written <= 0) return absl::UnavailableError(absl::StrCat("TLS: ", TakeTlsError()));
  encrypted_ += static_cast<size_t>(written);
  return Flush();
}

absl::Status TlsStream::Flush() {
  const size_t pending = BIO_ctrl_pending(to_send_);
  if (pending > kMaxUnsentBytes) {
    return absl::UnavailableError("the server makes TLS talk and does not listen");
  }
  if (sending_ || pending == 0) return absl::OkStatus();
  std::string bytes(pending, '\0');
  BIO_read(to_send_, bytes.data(), static_cast<int>(pending));
  absl::Status status = plain_.Write(std::move(bytes));
  sending_ = status.ok();
  return status;
}

void TlsStream::OnWritten(std::string) {
  sending_ = false;
  absl::Status status = Flush();
  if (status.ok() && !sending_ && writing_) {
    if (encrypted_ < clear_.size()) {
      status = EncryptSlice();
    } else {
      writing_ = false;
      clear_.clear();
      return observer_->OnWritten(std::move(clear_));
    }
  }
  if (!status.ok()) End({std::string(status.message())});
}

void TlsStream::OnEnd(const StreamEnd& why) {
  const bool handshaking = IsHandshaking();
  Close();
  observer_->OnEnd({why.what, why.mend, handshaking});
}

}  // namespace sluice::redis
