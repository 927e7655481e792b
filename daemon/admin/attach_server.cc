#include "daemon/admin/attach_server.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "daemon/log.h"

namespace sluice::admin {
namespace {

constexpr int kBacklog = 512;
constexpr int kAcceptsPerWake = 64;  // then the others have their turn
// After EMFILE: nobody can be accepted until somebody leaves.
constexpr uint64_t kAcceptPauseNs = 100'000'000;
constexpr uint64_t kSweepNs = 1'000'000'000;

std::string PrintableLabel(const char (&label)[shm::kLabelBytes]) {
  std::string text;
  for (const char c : label) {
    if (c == '\0') break;
    text.push_back(c >= ' ' && c <= '~' ? c : '?');
  }
  return text;
}

}  // namespace

AttachServer::~AttachServer() { Stop(); }

absl::Status AttachServer::Listen(const std::string& path, gid_t group) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": too long for a socket's path"));
  }
  memcpy(address.sun_path, path.data(), path.size());
  listener_.Reset(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (listener_.get() < 0) return absl::ErrnoToStatus(errno, "socket");
  if (bind(listener_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot make ", path));
  }
  path_ = path;
  // Given to the group before anybody can connect; the daemon's umask keeps all others out. Not
  // where it has it already: a hardened service may not change owners at all.
  struct stat st = {};
  if (stat(path.c_str(), &st) != 0) return absl::ErrnoToStatus(errno, path);
  if (group != static_cast<gid_t>(-1) && group != st.st_gid &&
      chown(path.c_str(), static_cast<uid_t>(-1), group) != 0) {
    return absl::ErrnoToStatus(
        errno, absl::StrCat("cannot give ", path, " to its group (the daemon must be a member)"));
  }
  if (chmod(path.c_str(), 0660) != 0) return absl::ErrnoToStatus(errno, path);
  if (listen(listener_.get(), kBacklog) != 0) return absl::ErrnoToStatus(errno, path);
  return absl::OkStatus();
}

absl::Status AttachServer::Start(const std::string& path, gid_t group, int inherited,
                                 const Offer& offer) {
  offer_ = offer;
  if (inherited >= 0) {
    listener_.Reset(inherited);
  } else if (absl::Status status = Listen(path, group); !status.ok()) {
    return status;
  }
  if (offer_.holders != nullptr) offer_.holders->Start(clock_());
  sweep_ = loop_->Every(kSweepNs, [this](uint64_t) { CloseSilent(clock_()); });
  return loop_->Add(listener_.get(), EPOLLIN, [this](uint32_t) { AcceptSome(); });
}

void AttachServer::Stop() {
  if (listener_.get() < 0) return;
  loop_->Cancel(sweep_);
  if (offer_.holders != nullptr) offer_.holders->Stop(clock_());
  loop_->Remove(listener_.get());
  if (!path_.empty()) unlink(path_.c_str());
  listener_.Reset(-1);
  std::lock_guard lock(mutex_);
  for (const auto& [fd, client] : clients_) loop_->Remove(fd);
  clients_.clear();
}

void AttachServer::AcceptSome() {
  for (int i = 0; i < kAcceptsPerWake; ++i) {
    shm::OwnedFd fd(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (fd.get() < 0) {
      if (errno == EMFILE || errno == ENFILE || errno == ENOMEM) PauseAccepting();
      return;
    }
    Client client;
    ucred peer = {};
    socklen_t size = sizeof peer;
    if (getsockopt(fd.get(), SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) continue;
    client.info.pid = peer.pid;
    client.info.uid = peer.uid;
    client.info.same_user = peer.uid == geteuid();
    client.info.since_ns = clock_();
    const int number = fd.get();
    client.fd = std::move(fd);
    std::lock_guard lock(mutex_);
    client.is_refused = clients_.size() >= kMaxClients;
    if (clients_.size() >= kMaxClients + kMaxRefusing) {
      ++refused_total_;
      continue;
    }
    const absl::Status added =
        loop_->Add(number, EPOLLIN | EPOLLRDHUP, [this, number](uint32_t) { OnReadable(number); });
    if (added.ok()) clients_.emplace(number, std::move(client));
  }
}

void AttachServer::PauseAccepting() {
  log::Warning("too few descriptors for more clients: raise LimitNOFILE");
  loop_->Remove(listener_.get());
  loop_->After(kAcceptPauseNs, [this](uint64_t) {
    if (listener_.get() < 0) return;
    const absl::Status added =
        loop_->Add(listener_.get(), EPOLLIN, [this](uint32_t) { AcceptSome(); });
    if (!added.ok()) log::Error("no longer accepting clients: %s", added.ToString());
  });
}

void AttachServer::OnReadable(int fd) {
  const auto found = clients_.find(fd);
  if (found == clients_.end()) return;
  Client& client = found->second;
  char bytes[sizeof(shm::Hello) + 1];
  const ssize_t n = recv(fd, bytes, sizeof bytes, MSG_DONTWAIT);
  if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
  shm::Hello hello;
  const bool is_hello = n == static_cast<ssize_t>(sizeof hello);
  if (is_hello) memcpy(&hello, bytes, sizeof hello);
  // An attached client has nothing more to say: its end, or garbage.
  if (client.is_attached || !is_hello || hello.magic != shm::kHelloMagic) {
    if (!client.is_attached || n > 0) {
      std::lock_guard lock(mutex_);
      ++refused_total_;
    }
    return Close(fd);
  }
  Answer(client, hello);
  if (!client.is_attached) Close(fd);
}

void AttachServer::Answer(Client& client, const shm::Hello& hello) {
  std::string refusal;
  auto status = shm::WelcomeStatus::kAttached;
  if (client.is_refused) {
    status = shm::WelcomeStatus::kTooMany;
    refusal = absl::StrFormat("%d clients are attached, more are not taken", kMaxClients);
  } else if (hello.abi_major != shm::kAbiMajor || hello.layout_hash != shm::kLayoutHash) {
    status = shm::WelcomeStatus::kOtherVersion;
    refusal = absl::StrFormat("libsluice has ABI %d.%d, sluiced %d.%d or another layout: update",
                              hello.abi_major, hello.abi_minor, shm::kAbiMajor, shm::kAbiMinor);
  }
  const std::string label = PrintableLabel(hello.label);
  if (status == shm::WelcomeStatus::kAttached && offer_.holders != nullptr) {
    client.holder = offer_.holders->Take(client.fd.get(), client.info.pid, hello.holder);
  }
  const bool sent = SendWelcome(client, status, refusal);
  std::lock_guard lock(mutex_);
  client.info.label = label;
  if (!sent || status != shm::WelcomeStatus::kAttached) {
    ++refused_total_;
    log::Warning("client %s (pid %d) was not attached: %s", label, client.info.pid,
                 refusal.empty() ? "it does not read" : refusal);
    return;
  }
  client.is_attached = true;
  ++attached_total_;
  log::Debug("client %s (pid %d, uid %d) attached", label, client.info.pid, client.info.uid);
  if (client.info.same_user && !warned_same_user_) {
    warned_same_user_ = true;
    log::Warning(
        "client %s (pid %d) runs as the daemon's user and could write what clients only read; run "
        "clients as another user, in the daemon's group",
        label, client.info.pid);
  }
}

bool AttachServer::SendWelcome(const Client& client, shm::WelcomeStatus status,
                               const std::string& text) {
  shm::Welcome welcome = {};
  welcome.magic = shm::kWelcomeMagic;
  welcome.status = status;
  welcome.abi_major = shm::kAbiMajor;
  welcome.abi_minor = shm::kAbiMinor;
  welcome.layout_hash = shm::kLayoutHash;
  welcome.generation = offer_.generation;
  welcome.holder = client.holder.number;
  text.copy(welcome.text, sizeof welcome.text - 1);
  iovec part = {&welcome, sizeof welcome};
  msghdr message = {};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  const int fds[shm::kWelcomeFds] = {offer_.control_fd, offer_.buckets_fd};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof fds)] = {};
  if (status == shm::WelcomeStatus::kAttached) {
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof fds);
    memcpy(CMSG_DATA(header), fds, sizeof fds);
  }
  welcome.daemon_now_ns = clock_();
  return sendmsg(client.fd.get(), &message, MSG_DONTWAIT | MSG_NOSIGNAL) ==
         static_cast<ssize_t>(sizeof welcome);
}

void AttachServer::Close(int fd) {
  loop_->Remove(fd);
  if (const auto found = clients_.find(fd);
      found != clients_.end() && found->second.holder.number != 0) {
    offer_.holders->End(found->second.holder);
  }
  std::lock_guard lock(mutex_);
  clients_.erase(fd);
}

// Whoever connects and says nothing holds a place for a second at most.
void AttachServer::CloseSilent(uint64_t now_ns) {
  std::vector<int> silent;
  for (const auto& [fd, client] : clients_) {
    if (!client.is_attached && now_ns > client.info.since_ns + shm::kHandshakeTimeoutNs) {
      silent.push_back(fd);
    }
  }
  for (const int fd : silent) {
    Close(fd);
    std::lock_guard lock(mutex_);
    ++refused_total_;
  }
}

ClientsSnapshot AttachServer::Snapshot() const {
  ClientsSnapshot snapshot;
  std::lock_guard lock(mutex_);
  snapshot.attached_total = attached_total_;
  snapshot.refused_total = refused_total_;
  for (const auto& [fd, client] : clients_) {
    if (!client.is_attached) continue;
    ++snapshot.attached;
    if (client.info.same_user) ++snapshot.same_user;
    if (snapshot.clients.size() < kMaxClientsListed) snapshot.clients.push_back(client.info);
  }
  return snapshot;
}

}  // namespace sluice::admin
