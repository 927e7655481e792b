// The attach socket: hands the segments to clients and counts them. See shm/handshake.h.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "absl/status/status.h"
#include "daemon/admin/event_loop.h"
#include "daemon/admin/holders.h"
#include "shm/clock.h"
#include "shm/handshake.h"
#include "shm/segment.h"

namespace sluice::admin {

// Clients at once; each holds one descriptor here. LimitNOFILE must leave room for them.
inline constexpr size_t kMaxClients = 4096;
// Connections beyond that, so that a refused client can be told why.
inline constexpr size_t kMaxRefusing = 64;
// Clients named in a status; the count is always right.
inline constexpr size_t kMaxClientsListed = 256;

struct ClientInfo {
  pid_t pid = 0;  // by SO_PEERCRED
  uid_t uid = 0;
  std::string label;  // as the client says; printable
  uint64_t since_ns = 0;
  bool same_user = false;  // runs as the daemon's user, and so could write the control segment
};

struct ClientsSnapshot {
  uint64_t attached = 0;
  uint64_t attached_total = 0;      // since the daemon's start
  uint64_t refused_total = 0;       // too many, garbage, another version, no Hello in time
  uint64_t same_user = 0;           // attached now
  std::vector<ClientInfo> clients;  // at most kMaxClientsListed
};

// On the loop's thread but for Snapshot.
class AttachServer {
 public:
  // What is handed out. The descriptors stay the caller's.
  struct Offer {
    int control_fd = -1;  // read-only
    int buckets_fd = -1;
    uint64_t generation = 0;
    Holders* holders = nullptr;  // null: clients hold no places of requests in flight
  };

  using Clock = uint64_t (*)();  // CLOCK_MONOTONIC in a daemon

  explicit AttachServer(EventLoop* loop, Clock clock = shm::MonotonicClock::PreciseNs)
      : loop_(loop), clock_(clock) {}
  ~AttachServer();

  // Listens on `path` (which must not exist), mode 0660, group `group` (-1: as it is), or on
  // `inherited`, a listening SOCK_SEQPACKET socket, when that is not negative.
  absl::Status Start(const std::string& path, gid_t group, int inherited, const Offer& offer);
  // Closes the socket and all connections, and removes the path unless the socket was inherited.
  void Stop();

  // Any thread.
  ClientsSnapshot Snapshot() const;

 private:
  struct Client {
    shm::OwnedFd fd;
    ClientInfo info;
    Holders::Ticket holder;
    bool is_attached = false;
    bool is_refused = false;  // beyond kMaxClients: told so once it has said Hello
  };

  absl::Status Listen(const std::string& path, gid_t group);
  void AcceptSome();
  void PauseAccepting();
  void OnReadable(int fd);
  void Answer(Client& client, const shm::Hello& hello);
  bool SendWelcome(const Client& client, shm::WelcomeStatus status, const std::string& text);
  void Close(int fd);
  void CloseSilent(uint64_t now_ns);

  EventLoop* loop_;
  Clock clock_;
  Offer offer_;
  std::string path_;  // empty: inherited
  shm::OwnedFd listener_;
  EventLoop::TimerId sweep_ = 0;
  bool warned_same_user_ = false;

  mutable std::mutex mutex_;  // guards what follows, which the loop's thread alone changes
  std::unordered_map<int, Client> clients_;
  uint64_t attached_total_ = 0;
  uint64_t refused_total_ = 0;
};

}  // namespace sluice::admin
