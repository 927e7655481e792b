// Attaching to the daemon, without ever blocking a check.
//
//   idle --(100 ms)--> connected, Hello sent --> Welcome --> attached --(daemon gone)--> idle
//
// `current()` is what checks read: one acquire load. `Step()` is called by checks with the time
// they have read anyway, and nearly always returns after one load and one comparison.
//
// An attachment, once published, stays mapped until the Attacher dies, whatever the daemon does:
// a thread may stand in the middle of a check on it. When the daemon comes back with other
// segments, a new attachment takes its place; ten seconds later the old one's memory is given back
// to the system, while its address range stays readable and writable (as zeros).
//
// Threads: all members but the constructor, Open and the destructor may be called by any thread at
// any time. After fork() the child goes on with the parent's mapping, and makes a connection of
// its own at its next Step.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "shm/handshake.h"
#include "shm/hash.h"
#include "shm/layout.h"
#include "shm/segment.h"

namespace sluice::client {

// Between two tries to connect.
inline constexpr uint64_t kConnectIntervalNs = 100'000'000;
// While a handshake is under way, its socket is looked at this often.
inline constexpr uint64_t kHandshakePollNs = 1'000'000;
// A superseded attachment keeps its memory this long: far beyond the longest check.
inline constexpr uint64_t kRetireNs = 10'000'000'000;
// Generations that one client follows in its life; each keeps an address range. A daemon that is
// restarted keeps its generation, so this many mean that something is badly wrong.
inline constexpr uint32_t kMaxAttachments = 64;

// One generation of segments, mapped. Immutable once published.
struct Attachment {
  const shm::ControlHeader* control = nullptr;
  const std::atomic<uint64_t>* shard_states = nullptr;  // [shard_count]
  const char* policy_buffers = nullptr;                 // kPolicyBuffers * kPolicyBufferBytes
  shm::Slot* slots = nullptr;                           // [capacity]
  std::atomic<uint64_t>* denied = nullptr;              // [capacity]
  std::atomic<uint64_t>* second = nullptr;              // [capacity]
  std::atomic<uint64_t>* dirty = nullptr;               // [capacity / 64] words
  std::atomic<uint64_t>* counters = nullptr;            // [kCounters]; set from buckets.counters()
  shm::Slot* overflow = nullptr;                        // [kMaxRules]
  std::atomic<uint64_t>* class_denied = nullptr;        // [kClassCells]
  shm::KeyText* texts = nullptr;                        // [capacity]
  std::atomic<uint64_t>* log_entries = nullptr;         // [logs.rows * logs.entries]
  shm::LogShape logs;
  uint64_t capacity = 0;    // a power of two
  uint64_t group_mask = 0;  // capacity / kGroupSlots - 1
  uint64_t generation = 0;
  uint32_t shard_count = 0;
  shm::HashKey hash_key;
  bool same_user_as_daemon = false;  // this process could write the control segment

  // Owners of the memory behind the pointers above.
  shm::ControlReader reader;
  shm::MappedBuckets buckets;
};

// Why there is no fresh attachment.
enum class AttachProblem : uint8_t {
  kNone = 0,
  kNotTriedYet,
  kNoMemory,
  kPathTooLong,    // the socket's path does not fit into sockaddr_un
  kNoSocket,       // no daemon has ever run here, or it ended in order
  kNotAllowed,     // not in the daemon's group
  kNotListening,   // the socket is there, its daemon is not
  kConnectFailed,  // another errno
  kNoAnswer,       // no Welcome within kHandshakeTimeoutNs
  kGarbage,        // the answer was no Welcome
  kRefused,        // the daemon said no; its own words are in the message
  kOtherClock,     // its CLOCK_MONOTONIC is not ours
  kSegment,        // a segment was not believed; see segment_error
  kTooManyGenerations,
};

class Attacher {
 public:
  Attacher() = default;
  ~Attacher();
  Attacher(const Attacher&) = delete;
  Attacher& operator=(const Attacher&) = delete;

  // `runtime_dir`: null means $SLUICE_RUNTIME_DIR, else /run/sluice. `label`: null means the
  // program's name; cut to 31 bytes. Does not connect. False: out of memory.
  bool Open(const char* runtime_dir, const char* label);

  // Null until first attached; then never null again. Pairs with Attach(): what it points to is
  // whole.
  const Attachment* current() const { return current_.load(std::memory_order_acquire); }

  // Moves the attaching on by one step when something is due. `now_ns` is CLOCK_MONOTONIC, at most
  // 10 ms old (a coarse clock serves). Never blocks, throws, or raises a signal; keeps errno. The
  // due time is a hint and orders nothing: StepDue takes the lock.
  void Step(uint64_t now_ns) {
    if (now_ns >= page_->due_ns.load(std::memory_order_relaxed)) StepDue(now_ns);
  }

  // True when the attached daemon's heartbeat is fresh.
  bool IsDaemonAlive(uint64_t now_ns) const;
  // How often this process attached or attached again.
  uint64_t attach_count() const { return attach_count_.load(std::memory_order_relaxed); }
  AttachProblem problem() const;
  // The problem and its mend as one sentence, NUL-terminated, cut to `size` (160 suffices; at
  // least 1). Empty when attached and the daemon is alive.
  void Message(uint64_t now_ns, char* out, size_t size) const;

  // The number by which this client holds places in the segments of `generation`; 0: none (yet). In
  // a forked child 0 until it has a connection of its own, so that it holds and leaves nothing of
  // its parent's. Tells all by itself: relaxed orders nothing.
  uint32_t holder(uint64_t generation) const {
    const uint64_t h = page_->holder.load(std::memory_order_relaxed);
    return (h ^ generation) << kHolderShift >> kHolderShift == 0
               ? static_cast<uint32_t>(h >> kGenerationBits)
               : 0;
  }
  // Never given before to who has that number here. A counter: orders nothing.
  uint64_t NextNonce() { return nonce_.fetch_add(1, std::memory_order_relaxed); }

  // Names this process since its last fork: 0 in a child until its first Step, then another number
  // than its parent's. Thread-local leases compare it.
  uint64_t fork_epoch() const { return page_->fork_epoch.load(std::memory_order_relaxed); }

 private:
  // On a page of its own that a forked child finds full of zeros (MADV_WIPEONFORK): never a lock
  // held by a thread that the child does not have.
  struct ForkPage {
    std::atomic<uint64_t> due_ns;      // StepDue has nothing to do before
    std::atomic<uint32_t> lock;        // 1: a thread is in StepDue
    std::atomic<uint64_t> fork_epoch;  // see fork_epoch()
    std::atomic<uint64_t> holder;      // number:13 | generation:51, see holder()
  };
  static constexpr int kGenerationBits = 51;
  static constexpr int kHolderShift = 64 - kGenerationBits;
  enum class Phase : uint8_t { kIdle, kAwaitingWelcome, kAttached };

  void StepDue(uint64_t now_ns);
  void StepLocked(uint64_t now_ns);
  void AfterFork();
  void Connect(uint64_t now_ns);
  bool SendHello();
  void AwaitWelcome(uint64_t now_ns);
  void Receive(const shm::Welcome& welcome, int control_fd, int buckets_fd, uint64_t now_ns);
  bool Attach(int control_fd, int buckets_fd, uint32_t daemon_uid, uint64_t now_ns);
  void SetHolder(uint32_t number, uint64_t generation);
  void Drop(AttachProblem problem, int error, uint64_t now_ns);
  void VacateOld(uint64_t now_ns);
  void SetProblem(AttachProblem problem, shm::SegmentError segment, int error);
  void KeepText(const char* text);

  ForkPage* page_ = nullptr;
  std::atomic<const Attachment*> current_{nullptr};
  std::atomic<uint64_t> attach_count_{0};
  std::atomic<uint64_t> nonce_{1};
  std::atomic<uint64_t> problem_{0};  // problem:8 | segment error:8 | errno:16
  std::atomic<uint64_t> daemon_text_[shm::kWelcomeTextBytes / 8] = {};  // may tear; for people

  // Under the lock.
  Phase phase_ = Phase::kIdle;
  int socket_ = -1;
  uint64_t epochs_ = 0;  // epochs given out along this line of forks
  uint64_t hello_ns_ = 0;
  uint64_t next_connect_ns_ = 0;
  uint64_t incarnation_ = 0;
  uint32_t attachment_count_ = 0;
  Attachment* attachments_[kMaxAttachments] = {};
  uint64_t retired_ns_[kMaxAttachments] = {};  // 0: not retired; ~0: vacated
  char label_[shm::kLabelBytes] = {};
  char path_[108] = {};  // of sockaddr_un; empty: too long
};

}  // namespace sluice::client
