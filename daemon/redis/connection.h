#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "daemon/redis/cluster_client.h"
#include "daemon/redis/codec.h"
#include "daemon/redis/endpoint.h"
#include "daemon/redis/resolver.h"
#include "daemon/redis/stream.h"
#include "daemon/redis/tls_context.h"

namespace sluice::redis {

class Connection;

// Why a connection could not be made, or ended.
struct ConnectionEnd {
  Failure failure;
  std::optional<AlarmKind> alarm;  // what the operator should hear
  bool was_ready = false;          // it had served before
};

// Hears of a connection, from Ring::Wait or Connection::Poll. May send on, close and start any
// connection, the one that calls included; a closed one tells nothing more of its past.
class ConnectionObserver {
 public:
  virtual ~ConnectionObserver() = default;
  virtual void OnReady(Connection* connection) = 0;
  // The connection is down; comes after OnLost of all its requests.
  virtual void OnDown(Connection* connection, const ConnectionEnd& end) = 0;
  // `on_time` is false when OnLost has told of a time-out before: then only the latency is news.
  virtual void OnAnswer(Connection* connection, uint64_t request, Reply reply, int64_t latency_ns,
                        bool on_time) = 0;
  // No answer: in time, or at all.
  virtual void OnLost(Connection* connection, uint64_t request, const Failure& failure) = 0;
};

// What every connection of a client says first.
struct Greeting {
  std::string user;
  std::string password;
  std::string client_name;
  struct Script {
    std::string text;
    std::string sha;
  };
  std::vector<Script> scripts;  // to load
};

// The handshake's commands (HELLO 2, never 3; then SCRIPT LOAD for each script), and how many
// replies they have.
std::string EncodeGreeting(const Greeting& greeting, size_t* replies);

// One TCP or unix connection to one node, over the ring: connect, handshake, then pipelined
// requests that are answered in order. One deadline, that of the oldest request, is enough for
// that. A request that is late is given up, but the connection is kept, since a new one costs a
// handshake and the answer may still come; a connection that owes an answer for kStuckNs is closed.
class Connection final : private StreamObserver {
 public:
  enum class Phase { kDown, kResolving, kConnecting, kGreeting, kReady };

  // Oldest unanswered request of a connection that is still kept.
  static constexpr int64_t kStuckNs = 1'000'000'000;

  // What every connection of a client rests on; all of it must outlive the connections.
  struct Ground {
    ring::Ring* ring = nullptr;
    Resolver* resolver = nullptr;
    const TlsContext* tls = nullptr;  // null: no TLS
    const std::function<int64_t()>* now_ns = nullptr;
  };
  // `tag` is the observer's, to tell connections apart.
  Connection(const Ground& ground, const Greeting* greeting, ConnectionObserver* observer,
             uint32_t tag);

  // Starts to connect. Only while down. Whether it works is told by OnReady or OnDown, later.
  // `peer` is the name that a certificate must have; empty: the endpoint's host.
  void Start(const Endpoint& endpoint, const std::string& peer, int64_t now_ns,
             int64_t connect_timeout_ns);

  // Closes without callbacks, requests in flight included.
  void Close();

  // Queues `bytes`, a command whose answer (after `skipped_replies` others, ASKING's) is told under
  // the name `request`. Only while ready. Never calls back from inside.
  void Send(std::string_view bytes, uint32_t skipped_replies, uint64_t request, int64_t now_ns);

  // Gives up what is late; keeps resolving.
  void Poll(int64_t now_ns);
  int64_t NextDeadlineNs() const;

  void set_request_timeout_ns(int64_t timeout_ns) { request_timeout_ns_ = timeout_ns; }

  uint32_t tag() const { return tag_; }
  Phase phase() const { return phase_; }
  bool ready() const { return phase_ == Phase::kReady; }
  const Endpoint& endpoint() const { return endpoint_; }
  size_t in_flight() const { return in_flight_.size(); }
  size_t unsent_bytes() const { return unsent_.size(); }

 private:
  struct Request {
    uint64_t name = 0;
    int64_t sent_ns = 0;
    bool skip = false;  // ASKING: its answer interests nobody
  };

  void OnOpen() override;
  void OnBytes(std::string_view bytes) override;
  void OnWritten(std::string buffer) override;
  void OnEnd(const StreamEnd& why) override;

  void TryResolve(int64_t now_ns);
  void TakeGreetingReply(const Reply& reply);
  void TakeReply(Reply reply);
  void Flush();
  void ExpireRequests(int64_t now_ns);
  void FailStart();
  // Ends the connection and tells everyone.
  void Fail(ConnectionEnd end);
  ConnectionEnd Ended(FailureKind kind, const std::string& what) const;

  Resolver* const resolver_;
  const Greeting* const greeting_;
  const std::function<int64_t()>* const clock_;
  ConnectionObserver* const observer_;
  const uint32_t tag_;
  Phase phase_ = Phase::kDown;
  Endpoint endpoint_;
  std::string peer_;
  const bool under_tls_;
  const std::unique_ptr<Stream> stream_;
  bool was_ready_ = false;  // once, to this endpoint
  std::unique_ptr<ReplyReader> reader_;
  int64_t start_deadline_ns_ = 0;  // for all before kReady
  size_t greeting_replies_ = 0;    // still to come
  int64_t request_timeout_ns_ = 0;

  std::deque<Request> in_flight_;
  size_t expired_ = 0;  // so many at the front of in_flight_ are given up
  std::string unsent_;
  bool writing_ = false;
  absl::Status broken_;      // a write that was refused; told by the next Poll
  uint64_t generation_ = 0;  // of Start and Close: tells a parse loop that it is over
};

}  // namespace sluice::redis
