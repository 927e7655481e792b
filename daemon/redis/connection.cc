#include "daemon/redis/connection.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "daemon/redis/error_reply.h"
#include "daemon/redis/tls_stream.h"

namespace sluice::redis {
namespace {

constexpr int64_t kNever = std::numeric_limits<int64_t>::max();
// A resolver's answer wakes the ring; this only bounds the harm if that wake is lost.
constexpr int64_t kResolvePollNs = 50'000'000;

std::unique_ptr<Stream> MakeStream(const Connection::Ground& ground, StreamObserver* observer) {
  if (ground.tls == nullptr) return std::make_unique<PlainStream>(ground.ring, observer);
  return std::make_unique<TlsStream>(ground.ring, ground.tls, observer);
}

// An alert of TLS 1.x: the server's answer to what is no TLS.
bool IsTlsAlert(std::string_view bytes) {
  return bytes.size() >= 2 && bytes[0] == '\x15' && bytes[1] == '\x03';
}

std::string Milliseconds(int64_t ns) { return absl::StrCat((ns + 500'000) / 1'000'000, " ms"); }

}  // namespace

std::string EncodeGreeting(const Greeting& greeting, size_t* replies) {
  std::string out;
  if (greeting.password.empty()) {
    AppendCommand(&out, {"HELLO", "2", "SETNAME", greeting.client_name});
  } else {
    const std::string user = greeting.user.empty() ? "default" : greeting.user;
    AppendCommand(&out,
                  {"HELLO", "2", "AUTH", user, greeting.password, "SETNAME", greeting.client_name});
  }
  for (const Greeting::Script& script : greeting.scripts) {
    AppendCommand(&out, {"SCRIPT", "LOAD", script.text});
  }
  *replies = 1 + greeting.scripts.size();
  return out;
}

Connection::Connection(const Ground& ground, const Greeting* greeting, ConnectionObserver* observer,
                       uint32_t tag)
    : resolver_(ground.resolver),
      greeting_(greeting),
      clock_(ground.now_ns),
      observer_(observer),
      tag_(tag),
      under_tls_(ground.tls != nullptr),
      stream_(MakeStream(ground, this)) {}

ConnectionEnd Connection::Ended(FailureKind kind, const std::string& what) const {
  ConnectionEnd end;
  end.failure.kind = kind;
  end.failure.message = absl::StrCat(ToString(endpoint_), ": ", what);
  return end;
}

void Connection::Start(const Endpoint& endpoint, const std::string& peer, int64_t now_ns,
                       int64_t connect_timeout_ns) {
  ++generation_;
  if (endpoint_ != endpoint) was_ready_ = false;
  endpoint_ = endpoint;
  peer_ = peer.empty() ? endpoint.host : peer;
  reader_ = std::make_unique<ReplyReader>();
  start_deadline_ns_ = now_ns + connect_timeout_ns;
  broken_ = absl::OkStatus();
  unsent_ = EncodeGreeting(*greeting_, &greeting_replies_);
  writing_ = false;
  phase_ = Phase::kResolving;
  TryResolve(now_ns);
}

void Connection::TryResolve(int64_t now_ns) {
  std::optional<absl::StatusOr<ring::Address>> address = resolver_->Resolve(endpoint_, now_ns);
  if (!address) return;  // asked again by Poll
  if (!address->ok()) {
    broken_ = address->status();
    return;
  }
  phase_ = Phase::kConnecting;
  broken_ = stream_->Open(**address, peer_);
}

void Connection::Close() {
  ++generation_;
  phase_ = Phase::kDown;
  stream_->Close();
  in_flight_.clear();
  expired_ = 0;
  unsent_.clear();
  writing_ = false;
  broken_ = absl::OkStatus();
}

void Connection::Fail(ConnectionEnd end) {
  end.was_ready = ready();
  std::deque<Request> lost = std::exchange(in_flight_, {});
  const size_t told = expired_;
  Close();
  const uint64_t generation = generation_;
  for (size_t i = told; i < lost.size(); ++i) {
    if (!lost[i].skip) observer_->OnLost(this, lost[i].name, end.failure);
  }
  if (generation == generation_) observer_->OnDown(this, end);
}

void Connection::Send(std::string_view bytes, uint32_t skipped_replies, uint64_t request,
                      int64_t now_ns) {
  for (uint32_t i = 0; i < skipped_replies; ++i) in_flight_.push_back({0, now_ns, true});
  in_flight_.push_back({request, now_ns, false});
  unsent_.append(bytes);
  Flush();
}

void Connection::Flush() {
  if (writing_ || unsent_.empty() || !broken_.ok()) return;
  broken_ = stream_->Write(std::exchange(unsent_, {}));
  writing_ = broken_.ok();
}

void Connection::OnOpen() {
  phase_ = Phase::kGreeting;
  Flush();
}

void Connection::OnWritten(std::string buffer) {
  writing_ = false;
  if (unsent_.empty()) {
    unsent_ = std::move(buffer);  // empty, with room
  } else {
    Flush();
  }
}

void Connection::OnEnd(const StreamEnd& why) {
  std::string what = why.what;
  if (why.handshaking) {
    what = absl::StrCat("TLS handshake: ", what);
  } else if (phase_ == Phase::kConnecting) {
    what = absl::StrCat("cannot connect: ", what);
  } else if (phase_ == Phase::kGreeting) {
    what = absl::StrCat("lost during the handshake: ", what);
  }
  ConnectionEnd end = Ended(FailureKind::kUnavailable, what);
  if (phase_ == Phase::kGreeting && !under_tls_ && !was_ready_) {
    end.failure.mend = "see the server's log; if it speaks TLS there, write a redis.tls section";
  }
  if (!why.mend.empty()) {
    end.failure.kind = FailureKind::kDenied;
    end.failure.mend = why.mend;
    end.alarm = AlarmKind::kTlsFailed;
  }
  Fail(std::move(end));
}

void Connection::OnBytes(std::string_view bytes) {
  const uint64_t generation = generation_;
  const absl::Status fed = reader_->Feed(bytes);
  while (generation == generation_) {
    std::optional<Reply> reply = reader_->Next();
    if (!reply) break;
    if (phase_ == Phase::kGreeting) {
      TakeGreetingReply(*reply);
    } else {
      TakeReply(*std::move(reply));
    }
  }
  if (generation != generation_ || fed.ok()) return;
  ConnectionEnd end = Ended(FailureKind::kProtocol,
                            absl::StrCat("does not speak Redis: ", Printable(fed.ToString())));
  end.failure.mend = phase_ == Phase::kGreeting && IsTlsAlert(bytes)
                         ? "the server speaks TLS: write a redis.tls section, or its plain port"
                         : "check the address: something else than a Redis server listens there";
  end.alarm = AlarmKind::kGarbage;
  Fail(std::move(end));
}

void Connection::TakeGreetingReply(const Reply& reply) {
  const size_t position = 1 + greeting_->scripts.size() - greeting_replies_;
  if (reply.is_error()) {
    ErrorVerdict verdict = JudgeError(reply.text);
    const bool patience = verdict.what == ErrorClass::kRetryLater;
    ConnectionEnd end = Ended(patience ? FailureKind::kRetryLater : FailureKind::kDenied,
                              absl::StrCat("refused the handshake: ", Printable(reply.text)));
    end.failure.mend = std::move(verdict.mend);
    end.alarm = verdict.alarm;
    if (!patience && !end.alarm) end.alarm = AlarmKind::kUnsupported;
    return Fail(std::move(end));
  }
  const bool expected =
      position == 0 ? reply.is_array() : reply.text == greeting_->scripts[position - 1].sha;
  if (!expected) {
    ConnectionEnd end = Ended(FailureKind::kProtocol, "answers the handshake with nonsense");
    end.failure.mend = "check the address: something else than a Redis server listens there";
    end.alarm = AlarmKind::kGarbage;
    return Fail(std::move(end));
  }
  if (--greeting_replies_ > 0) return;
  phase_ = Phase::kReady;
  was_ready_ = true;
  observer_->OnReady(this);
}

void Connection::TakeReply(Reply reply) {
  if (in_flight_.empty()) {
    ConnectionEnd end = Ended(FailureKind::kProtocol, "answered what nobody asked");
    end.alarm = AlarmKind::kGarbage;
    end.failure.mend = "check the address: something else than a Redis server listens there";
    return Fail(std::move(end));
  }
  const Request request = in_flight_.front();
  in_flight_.pop_front();
  const bool on_time = expired_ == 0;
  if (!on_time) --expired_;
  if (request.skip) return;
  observer_->OnAnswer(this, request.name, std::move(reply), (*clock_)() - request.sent_ns, on_time);
}

void Connection::ExpireRequests(int64_t now_ns) {
  const uint64_t generation = generation_;
  while (generation == generation_ && expired_ < in_flight_.size() &&
         now_ns - in_flight_[expired_].sent_ns >= request_timeout_ns_) {
    const Request request = in_flight_[expired_++];
    if (request.skip) continue;
    Failure failure;
    failure.kind = FailureKind::kTimeout;
    failure.message =
        absl::StrCat(ToString(endpoint_), ": no answer within ", Milliseconds(request_timeout_ns_));
    observer_->OnLost(this, request.name, failure);
  }
}

// The deadline before kReady has passed.
void Connection::FailStart() {
  if (!stream_->IsHandshaking()) {
    const char* what = phase_ == Phase::kGreeting    ? "no answer to the handshake in time"
                       : phase_ == Phase::kResolving ? "its name was not resolved in time"
                                                     : "cannot connect in time";
    return Fail(Ended(FailureKind::kUnavailable, what));
  }
  ConnectionEnd end = Ended(FailureKind::kUnavailable, "no answer to the TLS handshake in time");
  // A plain Redis waits for the rest of what it takes for a long command.
  if (!was_ready_) {
    end.failure.mend =
        "if it goes on, the server does not speak TLS there: name its tls-port in "
        "redis.addresses, or take redis.tls out";
    end.alarm = AlarmKind::kTlsFailed;
  }
  Fail(std::move(end));
}

void Connection::Poll(int64_t now_ns) {
  if (phase_ == Phase::kDown) return;
  if (phase_ == Phase::kResolving && broken_.ok()) TryResolve(now_ns);
  if (!broken_.ok()) {
    ConnectionEnd end = Ended(FailureKind::kUnavailable, std::string(broken_.message()));
    if (absl::IsNotFound(broken_)) {
      end.alarm = AlarmKind::kWrongAddress;
      end.failure.mend = "correct the host name, or the name service of this machine";
    }
    // Its own alarm is raised by who reads the files.
    if (absl::IsFailedPrecondition(broken_)) end.failure.kind = FailureKind::kDenied;
    return Fail(std::move(end));
  }
  if (phase_ != Phase::kReady) {
    if (now_ns >= start_deadline_ns_) FailStart();
    return;
  }
  ExpireRequests(now_ns);
  if (!in_flight_.empty() && now_ns - in_flight_.front().sent_ns >= kStuckNs) {
    Fail(Ended(FailureKind::kTimeout, absl::StrCat("no answer for ", Milliseconds(kStuckNs))));
  }
}

int64_t Connection::NextDeadlineNs() const {
  if (phase_ == Phase::kDown) return kNever;
  if (!broken_.ok()) return 0;
  if (phase_ == Phase::kResolving) {
    return std::min(start_deadline_ns_, (*clock_)() + kResolvePollNs);
  }
  if (phase_ != Phase::kReady) return start_deadline_ns_;
  if (in_flight_.empty()) return kNever;
  int64_t deadline = in_flight_.front().sent_ns + kStuckNs;
  if (expired_ < in_flight_.size()) {
    deadline = std::min(deadline, in_flight_[expired_].sent_ns + request_timeout_ns_);
  }
  return deadline;
}

}  // namespace sluice::redis
