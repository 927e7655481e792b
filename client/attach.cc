#include "client/attach.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <new>
#include <utility>

namespace sluice::client {
namespace {

constexpr uint64_t kVacated = ~0ull;
// More descriptors than a Welcome has, so that surplus ones are seen and closed.
constexpr int kMaxReceivedFds = 8;

// A Welcome as it came, with its descriptors; closes those that nobody took.
struct Answer {
  shm::Welcome welcome;
  shm::OwnedFd fds[kMaxReceivedFds];
  int fd_count = 0;
  ssize_t bytes = 0;
  int error = 0;  // errno when bytes < 0
  bool truncated = false;
};

void ReceiveAnswer(int socket, Answer* answer) {
  // One byte more than a Welcome: a longer message must not pass for one.
  char bytes[sizeof(shm::Welcome) + 1];
  alignas(cmsghdr) char control[CMSG_SPACE(kMaxReceivedFds * sizeof(int))];
  iovec part = {bytes, sizeof bytes};
  msghdr message = {};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  answer->bytes = recvmsg(socket, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  if (answer->bytes < 0) {
    answer->error = errno;
    return;
  }
  answer->truncated = (message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0;
  for (cmsghdr* c = CMSG_FIRSTHDR(&message); c != nullptr; c = CMSG_NXTHDR(&message, c)) {
    if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count && answer->fd_count < kMaxReceivedFds; ++i) {
      int fd;
      memcpy(&fd, CMSG_DATA(c) + i * sizeof fd, sizeof fd);
      answer->fds[answer->fd_count++].Reset(fd);
    }
  }
  if (answer->bytes >= static_cast<ssize_t>(sizeof answer->welcome)) {
    memcpy(&answer->welcome, bytes, sizeof answer->welcome);
  }
}

// True when the other side of a connection is gone. Costs one system call.
bool IsClosed(int socket) {
  char byte;
  const ssize_t n = recv(socket, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
  return n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR);
}

bool PeerUid(int socket, uint32_t* uid) {
  ucred peer;
  socklen_t size = sizeof peer;
  if (getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) return false;
  *uid = peer.uid;
  return true;
}

AttachProblem ProblemOfConnect(int error) {
  switch (error) {
    case ENOENT:
    case ENOTDIR:
      return AttachProblem::kNoSocket;
    case EACCES:
    case EPERM:
      return AttachProblem::kNotAllowed;
    case ECONNREFUSED:
      return AttachProblem::kNotListening;
    default:
      return AttachProblem::kConnectFailed;
  }
}

// What the problem is and how to mend it; kRefused, kSegment and kConnectFailed say more.
const char* TextOf(AttachProblem problem) {
  switch (problem) {
    case AttachProblem::kNone:
      return "attached";
    case AttachProblem::kNotTriedYet:
      return "not yet tried to attach";
    case AttachProblem::kNoMemory:
      return "out of memory while attaching";
    case AttachProblem::kPathTooLong:
      return "the runtime directory's path is too long (90 bytes)";
    case AttachProblem::kNoSocket:
      return "no sluiced here: start it, or set SLUICE_RUNTIME_DIR";
    case AttachProblem::kNotAllowed:
      return "no permission: add this user to the daemon's group";
    case AttachProblem::kNotListening:
      return "sluiced does not listen: start it";
    case AttachProblem::kConnectFailed:
      return "cannot connect";
    case AttachProblem::kNoAnswer:
      return "sluiced did not answer: see its log";
    case AttachProblem::kGarbage:
      return "what listens there is no sluiced of this version";
    case AttachProblem::kRefused:
      return "sluiced refused";
    case AttachProblem::kOtherClock:
      return "sluiced runs in another time namespace: use the same";
    case AttachProblem::kSegment:
      return "the segments were refused";
    case AttachProblem::kTooManyGenerations:
      return "64 generations of segments seen: restart this process";
  }
  return "unknown problem";
}

}  // namespace

Attacher::~Attacher() {
  // A child may have the socket too, and the daemon is to see that this client is gone. A child
  // that has not taken a step since is no client, and leaves its parent's alone. The load of the
  // epoch orders nothing.
  if (socket_ >= 0 && page_->fork_epoch.load(std::memory_order_relaxed) != 0) {
    shutdown(socket_, SHUT_RDWR);
  }
  const shm::OwnedFd closed(std::exchange(socket_, -1));
  for (uint32_t i = 0; i < attachment_count_; ++i) delete attachments_[i];
  if (page_ != nullptr) munmap(page_, sizeof(ForkPage));
}

// Memory orders, for all of this file. `lock` is taken with acquire and given back with release:
// what stands "under the lock" needs no more. `current_` is stored with release and pairs with
// current(): an attachment is whole before it is seen. All else that is relaxed orders nothing: the
// fork epoch and due time (each thread's own view suffices), the count, the problem and its text.
bool Attacher::Open(const char* runtime_dir, const char* label) {
  void* page =
      mmap(nullptr, sizeof(ForkPage), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (page == MAP_FAILED) return false;
  // Linux 4.14. Without it a child would share its parent's connection, no worse.
  madvise(page, sizeof(ForkPage), MADV_WIPEONFORK);
  page_ = new (page) ForkPage{};
  page_->fork_epoch.store(++epochs_, std::memory_order_relaxed);

  if (runtime_dir == nullptr) runtime_dir = getenv(shm::kRuntimeDirVariable);
  if (runtime_dir == nullptr || *runtime_dir == '\0') runtime_dir = shm::kDefaultRuntimeDir;
  const int n = snprintf(path_, sizeof path_, "%s/%s", runtime_dir, shm::kAttachSocketName);
  if (n < 0 || static_cast<size_t>(n) >= sizeof path_) path_[0] = '\0';
  snprintf(label_, sizeof label_, "%s", label != nullptr ? label : program_invocation_short_name);
  SetProblem(AttachProblem::kNotTriedYet, shm::SegmentError::kOk, 0);
  return true;
}

void Attacher::StepDue(uint64_t now_ns) {
  // One at a time; whoever comes second has nothing to wait for.
  if (page_->lock.exchange(1, std::memory_order_acquire) != 0) return;
  const int saved_errno = errno;
  StepLocked(now_ns);
  errno = saved_errno;
  page_->lock.store(0, std::memory_order_release);
}

void Attacher::StepLocked(uint64_t now_ns) {
  if (page_->fork_epoch.load(std::memory_order_relaxed) == 0) AfterFork();
  if (phase_ == Phase::kAttached && !IsDaemonAlive(now_ns) && IsClosed(socket_)) {
    Drop(AttachProblem::kNotListening, 0, now_ns);
    next_connect_ns_ = now_ns;
  } else if (phase_ == Phase::kAttached && shm::Incarnation(*current()->control) != incarnation_) {
    // Restarted so fast that the heartbeat never grew old: it does not know of us.
    Drop(AttachProblem::kNotListening, 0, now_ns);
    next_connect_ns_ = now_ns;
  }
  if (phase_ == Phase::kIdle && now_ns >= next_connect_ns_) Connect(now_ns);
  // Often answered at once, but never waited for.
  if (phase_ == Phase::kAwaitingWelcome) AwaitWelcome(now_ns);
  VacateOld(now_ns);
  const uint64_t due_ns = phase_ == Phase::kIdle              ? next_connect_ns_
                          : phase_ == Phase::kAwaitingWelcome ? now_ns + kHandshakePollNs
                                                              : now_ns + kConnectIntervalNs;
  page_->due_ns.store(due_ns, std::memory_order_relaxed);  // a hint: orders nothing
}

// In a forked child: the connection is the parent's. The parent may have been in the middle of a
// step, so nothing of the state is believed; it was kept so that any moment of it is harmless:
// descriptors are forgotten before they are closed, attachments are whole before they are listed.
// Relaxed under the lock, whose acquire pairs with its release in StepDue.
void Attacher::AfterFork() {
  page_->fork_epoch.store(++epochs_, std::memory_order_relaxed);
  const shm::OwnedFd closed(std::exchange(socket_, -1));
  phase_ = Phase::kIdle;
  next_connect_ns_ = 0;
  attach_count_.store(0, std::memory_order_relaxed);
}

void Attacher::Connect(uint64_t now_ns) {
  next_connect_ns_ = now_ns + kConnectIntervalNs;
  if (path_[0] == '\0') return Drop(AttachProblem::kPathTooLong, 0, now_ns);
  shm::OwnedFd fd(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (fd.get() < 0) return Drop(AttachProblem::kConnectFailed, errno, now_ns);
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  memcpy(address.sun_path, path_, sizeof address.sun_path);
  if (connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    return Drop(ProblemOfConnect(errno), errno, now_ns);
  }
  socket_ = fd.Release();
  if (!SendHello()) return Drop(AttachProblem::kConnectFailed, errno, now_ns);
  hello_ns_ = now_ns;
  phase_ = Phase::kAwaitingWelcome;
}

bool Attacher::SendHello() {
  shm::Hello hello = {};
  hello.magic = shm::kHelloMagic;
  hello.abi_major = shm::kAbiMajor;
  hello.abi_minor = shm::kAbiMinor;
  hello.layout_hash = shm::kLayoutHash;
  hello.pid = static_cast<uint32_t>(getpid());
  hello.holder =
      static_cast<uint32_t>(page_->holder.load(std::memory_order_relaxed) >> kGenerationBits);
  memcpy(hello.label, label_, sizeof hello.label);
  return send(socket_, &hello, sizeof hello, MSG_NOSIGNAL | MSG_DONTWAIT) ==
         static_cast<ssize_t>(sizeof hello);
}

void Attacher::AwaitWelcome(uint64_t now_ns) {
  Answer answer;
  ReceiveAnswer(socket_, &answer);
  if (answer.bytes < 0 && (answer.error == EAGAIN || answer.error == EINTR)) {
    if (now_ns < hello_ns_ + shm::kHandshakeTimeoutNs) return;
    return Drop(AttachProblem::kNoAnswer, 0, now_ns);
  }
  if (answer.bytes <= 0) return Drop(AttachProblem::kNoAnswer, answer.error, now_ns);
  if (answer.bytes != static_cast<ssize_t>(sizeof answer.welcome) || answer.truncated ||
      answer.welcome.magic != shm::kWelcomeMagic) {
    return Drop(AttachProblem::kGarbage, 0, now_ns);
  }
  if (answer.welcome.status != shm::WelcomeStatus::kAttached) {
    answer.welcome.text[shm::kWelcomeTextBytes - 1] = '\0';
    KeepText(answer.welcome.text);
    return Drop(AttachProblem::kRefused, 0, now_ns);
  }
  if (answer.fd_count != shm::kWelcomeFds) return Drop(AttachProblem::kGarbage, 0, now_ns);
  Receive(answer.welcome, answer.fds[0].get(), answer.fds[1].get(), now_ns);
}

void Attacher::Receive(const shm::Welcome& welcome, int control_fd, int buckets_fd,
                       uint64_t now_ns) {
  // The daemon read its clock between our Hello and now.
  if (welcome.daemon_now_ns + shm::kClockToleranceNs < hello_ns_ ||
      welcome.daemon_now_ns > now_ns + shm::kClockToleranceNs) {
    return Drop(AttachProblem::kOtherClock, 0, now_ns);
  }
  const Attachment* held = current();
  if (held == nullptr || held->generation != welcome.generation) {
    uint32_t daemon_uid;
    if (!PeerUid(socket_, &daemon_uid)) {
      return Drop(AttachProblem::kConnectFailed, errno, now_ns);
    }
    if (!Attach(control_fd, buckets_fd, daemon_uid, now_ns)) return;
  }
  SetHolder(welcome.holder, welcome.generation);
  incarnation_ = shm::Incarnation(*current()->control);
  phase_ = Phase::kAttached;
  attach_count_.fetch_add(1, std::memory_order_relaxed);  // a counter: orders nothing
  SetProblem(AttachProblem::kNone, shm::SegmentError::kOk, 0);
}

// The daemon has written down whose the number is. The word tells all by itself.
void Attacher::SetHolder(uint32_t number, uint64_t generation) {
  const uint64_t h = uint64_t{number & (shm::kMaxHolders - 1)} << kGenerationBits |
                     (generation & ((uint64_t{1} << kGenerationBits) - 1));
  page_->holder.store(h, std::memory_order_relaxed);
}

bool Attacher::Attach(int control_fd, int buckets_fd, uint32_t daemon_uid, uint64_t now_ns) {
  if (attachment_count_ == kMaxAttachments) {
    Drop(AttachProblem::kTooManyGenerations, 0, now_ns);
    return false;
  }
  Attachment* a = new (std::nothrow) Attachment;
  if (a == nullptr) {
    Drop(AttachProblem::kNoMemory, 0, now_ns);
    return false;
  }
  shm::SegmentStatus status = a->reader.Map(control_fd, daemon_uid);
  const shm::SegmentInfo& info = a->reader.info();
  if (status.ok()) status = a->buckets.Map(buckets_fd, info.capacity, daemon_uid, info.logs);
  if (!status.ok()) {
    delete a;
    Drop(AttachProblem::kSegment, status.sys_errno, now_ns);
    SetProblem(AttachProblem::kSegment, status.error, status.sys_errno);
    return false;
  }
  a->control = a->reader.header();
  a->shard_states = a->reader.shard_states();
  a->policy_buffers = a->reader.policy_buffers();
  a->slots = a->buckets.slots();
  a->denied = a->buckets.denied();
  a->second = a->buckets.second();
  a->dirty = a->buckets.dirty();
  a->counters = a->buckets.counters();
  a->overflow = a->buckets.overflow();
  a->class_denied = a->buckets.class_denied();
  a->texts = a->buckets.texts();
  a->log_entries = a->buckets.log_entries();
  a->logs = info.logs;
  a->capacity = info.capacity;
  a->group_mask = info.capacity / shm::kGroupSlots - 1;
  a->generation = info.generation;
  a->shard_count = info.shard_count;
  a->hash_key = info.hash_key;
  a->same_user_as_daemon = info.owner_uid == geteuid();

  for (uint32_t i = 0; i < attachment_count_; ++i) {
    if (retired_ns_[i] == 0) retired_ns_[i] = std::max<uint64_t>(now_ns, 1);
  }
  attachments_[attachment_count_] = a;
  ++attachment_count_;
  current_.store(a, std::memory_order_release);  // pairs with current()
  return true;
}

void Attacher::Drop(AttachProblem problem, int error, uint64_t now_ns) {
  const shm::OwnedFd closed(std::exchange(socket_, -1));
  phase_ = Phase::kIdle;
  next_connect_ns_ = std::max(next_connect_ns_, now_ns + kConnectIntervalNs);
  SetProblem(problem, shm::SegmentError::kOk, error);
}

void Attacher::VacateOld(uint64_t now_ns) {
  for (uint32_t i = 0; i < attachment_count_; ++i) {
    const uint64_t since_ns = retired_ns_[i];
    if (since_ns == 0 || since_ns == kVacated || now_ns < since_ns + kRetireNs) continue;
    attachments_[i]->reader.Vacate();
    attachments_[i]->buckets.Vacate();
    retired_ns_[i] = kVacated;
  }
}

// Pairs with SetStopped() and Beat(): a daemon that has started again is not seen as still stopped.
bool Attacher::IsDaemonAlive(uint64_t now_ns) const {
  const Attachment* a = current();
  if (a == nullptr || a->control->stopped.load(std::memory_order_acquire) != 0) return false;
  const uint64_t beat_ns = a->control->heartbeat_ns.load(std::memory_order_acquire);
  return now_ns < beat_ns + shm::kHeartbeatFreshNs;
}

void Attacher::SetProblem(AttachProblem problem, shm::SegmentError segment, int error) {
  problem_.store(static_cast<uint64_t>(problem) | static_cast<uint64_t>(segment) << 8 |
                     static_cast<uint64_t>(error & 0xffff) << 16,
                 std::memory_order_relaxed);
}

AttachProblem Attacher::problem() const {
  return static_cast<AttachProblem>(problem_.load(std::memory_order_relaxed) & 0xff);
}

void Attacher::KeepText(const char* text) {
  char bytes[shm::kWelcomeTextBytes] = {};
  for (size_t i = 0; i + 1 < sizeof bytes && text[i] != '\0'; ++i) {
    bytes[i] = text[i] >= ' ' && text[i] <= '~' ? text[i] : '?';  // it goes to a terminal
  }
  for (size_t i = 0; i < shm::kWelcomeTextBytes / 8; ++i) {
    uint64_t part;
    memcpy(&part, bytes + i * 8, 8);
    daemon_text_[i].store(part, std::memory_order_relaxed);
  }
}

// Relaxed: for people, orders nothing.
void Attacher::Message(uint64_t now_ns, char* out, size_t size) const {
  out[0] = '\0';
  const uint64_t packed = problem_.load(std::memory_order_relaxed);
  const auto problem = static_cast<AttachProblem>(packed & 0xff);
  const auto segment = static_cast<shm::SegmentError>(packed >> 8 & 0xff);
  const int error = static_cast<int>(packed >> 16 & 0xffff);
  if (problem == AttachProblem::kNone) {
    if (!IsDaemonAlive(now_ns)) {
      snprintf(out, size, "sluiced has stopped beating; the last rules stay in force: see its log");
    }
    return;
  }
  char more[shm::kWelcomeTextBytes + 8] = {};
  if (problem == AttachProblem::kSegment) {
    snprintf(more, sizeof more, "%s", shm::Explain(segment));
  } else if (problem == AttachProblem::kRefused) {
    for (size_t i = 0; i < shm::kWelcomeTextBytes / 8; ++i) {
      const uint64_t part = daemon_text_[i].load(std::memory_order_relaxed);
      memcpy(more + i * 8, &part, 8);
    }
  } else if (problem == AttachProblem::kConnectFailed) {
    snprintf(more, sizeof more, "errno %d", error);
  }
  const char* where = path_[0] != '\0' ? path_ : shm::kAttachSocketName;
  snprintf(out, size, "%s: %s%s%s", where, TextOf(problem), more[0] != '\0' ? ": " : "", more);
}

}  // namespace sluice::client
