// Whose places of requests in flight are whose: gives each client a number, and gives back what it
// held when its process ends, however it ends. See shm/places.h.
//
// The numbers stand in the control segment, so that a daemon that starts again knows of clients
// that have died meanwhile. A process is known by a pidfd, so that it is seen to end although a
// child of its keeps the socket open.
#pragma once

#include <sys/types.h>

#include <bitset>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "daemon/admin/event_loop.h"
#include "shm/layout.h"
#include "shm/segment.h"

namespace sluice::admin {

// What a client held is given back so long after it was seen to end, together with what others did.
inline constexpr uint64_t kGiveBackNs = 20'000'000;
// How often slots in which nothing is held are let go, and others kept.
inline constexpr uint64_t kLookAtPlacesNs = 1'000'000'000;
// A client whose process cannot be seen (of another pid namespace) and that was attached to a
// daemon before: so long it may take to attach again, then it is gone.
inline constexpr uint64_t kUnseenHolderNs = 600'000'000'000;

// On the loop's thread.
class Holders {
 public:
  // One client's hold on a number, which is another's after it.
  struct Ticket {
    uint32_t number = 0;  // 0: none
    uint64_t serial = 0;
  };

  // `cells`: [kMaxHolders]. All of it outlives this.
  Holders(EventLoop* loop, shm::HolderCell* cells, const shm::MappedBuckets* buckets);
  ~Holders();

  // Goes on with what a daemon before has written down, before any client attaches.
  void Start(uint64_t now_ns);
  // Gives back what is due. Who is attached still is left to the next daemon.
  void Stop(uint64_t now_ns);
  // The number of a client that has connected by `socket`; `asked`: the one that it says it had.
  // 0: there is none left. `pid` as this process sees it, 0: not at all.
  Ticket Take(int socket, pid_t pid, uint32_t asked);
  // Its connection has ended, or its process: what it held is given back soon. The second time it
  // does nothing.
  void End(const Ticket& ticket);

 private:
  struct Process {
    shm::OwnedFd pidfd;
    uint64_t birth = 0;
  };
  struct Holder {
    Process process;
    uint64_t serial = 0;  // of its ticket; 0: the number is nobody's
    bool is_attached = false;
  };

  static Process Open(int socket, pid_t pid);
  bool Watch(uint32_t number);
  void ForgetUnseen(uint64_t now_ns);
  void GiveBack(uint64_t now_ns);
  void LookAtRows(uint64_t now_ns, bool lets_go);

  EventLoop* loop_;
  shm::HolderCell* cells_;
  const shm::MappedBuckets* buckets_;
  std::unique_ptr<Holder[]> holders_;  // [kMaxHolders]
  std::bitset<shm::kMaxHolders> ended_;
  std::vector<uint32_t> unseen_;  // of before, whose process is not seen
  uint64_t unseen_since_ns_ = 0;
  uint32_t last_ = 0;  // number given out
  uint64_t serials_ = 0;
  EventLoop::TimerId look_ = 0;
  EventLoop::TimerId give_back_ = 0;  // 0: nothing is due
};

}  // namespace sluice::admin
