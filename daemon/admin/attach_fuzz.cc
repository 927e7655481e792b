// Messages on the attach socket, from anybody who may connect. An input is lines, a message each:
//
//   hLABEL   a Hello as a client of this version says it
//   vBYTES   the same, its bytes changed by fuzz::Patch
//   rBYTES   BYTES
//   n        the next client comes, the last one leaves
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <cstring>
#include <string>

#include "daemon/admin/attach_server.h"
#include "daemon/log.h"
#include "shm/fuzz_input.h"

namespace sluice::admin {
namespace {

using fuzz::Require;

constexpr size_t kMaxMessages = 16;  // of one input
constexpr uint64_t kGeneration = 7;

// A server on a loop that turns when it is told to, in this thread.
class Host {
 public:
  Host() {
    log::Configure(log::Level::kError, false);
    Require(loop_.Init().ok(), "a loop");
    const shm::OwnedFd control(memfd_create("control", MFD_CLOEXEC));
    control_.Reset(open(("/proc/self/fd/" + std::to_string(control.get())).c_str(), O_RDONLY));
    buckets_.Reset(memfd_create("buckets", MFD_CLOEXEC));
    // Bound to a name that the kernel chooses: no file is left behind.
    const int listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    address_.sun_family = AF_UNIX;
    Require(bind(listener, Address(), sizeof address_.sun_family) == 0, "bind");
    Require(getsockname(listener, Address(), &address_bytes_) == 0, "getsockname");
    Require(listen(listener, 16) == 0, "listen");
    Require(server_
                .Start("", static_cast<gid_t>(-1), listener,
                       {.control_fd = control_.get(),
                        .buckets_fd = buckets_.get(),
                        .generation = kGeneration})
                .ok(),
            "a server");
  }

  void Turn() {
    loop_.After(0, [this](uint64_t) { loop_.Stop(); });
    Require(loop_.Run().ok(), "epoll");
  }

  shm::OwnedFd Connect() {
    shm::OwnedFd fd(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    Require(connect(fd.get(), Address(), address_bytes_) == 0, "connect");
    Turn();
    return fd;
  }

  ClientsSnapshot Clients() const { return server_.Snapshot(); }

 private:
  sockaddr* Address() { return reinterpret_cast<sockaddr*>(&address_); }

  EventLoop loop_;
  AttachServer server_{&loop_};
  shm::OwnedFd control_;
  shm::OwnedFd buckets_;
  sockaddr_un address_{};
  socklen_t address_bytes_ = sizeof address_;
};

std::string HelloOf(std::string_view label) {
  shm::Hello hello{};
  hello.magic = shm::kHelloMagic;
  hello.abi_major = shm::kAbiMajor;
  hello.abi_minor = shm::kAbiMinor;
  hello.layout_hash = shm::kLayoutHash;
  label.copy(hello.label, sizeof hello.label);
  return {reinterpret_cast<const char*>(&hello), sizeof hello};
}

std::string MessageOf(std::string_view line) {
  const std::string_view rest = line.substr(1);
  if (line[0] == 'h') return HelloOf(rest);
  if (line[0] == 'r') return std::string(rest);
  std::string hello = HelloOf("changed");
  fuzz::Input changes(rest);
  fuzz::Patch(&changes, hello.data(), hello.size());
  return hello;
}

// Whether this message, as a client's first, attaches it.
bool Attaches(std::string_view message) {
  shm::Hello hello;
  if (message.size() != sizeof hello) return false;
  std::memcpy(&hello, message.data(), sizeof hello);
  return hello.magic == shm::kHelloMagic && hello.abi_major == shm::kAbiMajor &&
         hello.layout_hash == shm::kLayoutHash;
}

// Takes what the server has said. True when it said that we are attached.
bool IsWelcome(int fd) {
  shm::Welcome welcome{};
  iovec part = {&welcome, sizeof welcome};
  alignas(cmsghdr) char control[CMSG_SPACE(shm::kWelcomeFds * sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  const ssize_t n = recvmsg(fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  if (n <= 0) return false;
  Require(n == sizeof welcome && welcome.magic == shm::kWelcomeMagic, "an answer is a Welcome");
  Require(std::memchr(welcome.text, '\0', sizeof welcome.text) != nullptr, "its text ends");
  const cmsghdr* const header = CMSG_FIRSTHDR(&message);
  const bool attached = welcome.status == shm::WelcomeStatus::kAttached;
  Require(attached == (header != nullptr), "descriptors for who is attached, for nobody else");
  if (!attached) return false;
  int fds[shm::kWelcomeFds];
  Require(header->cmsg_len == CMSG_LEN(sizeof fds), "two descriptors");
  std::memcpy(fds, CMSG_DATA(header), sizeof fds);
  for (const int each : fds) shm::OwnedFd(each).Reset(-1);
  return true;
}

void Converse(Host* host, std::string_view lines) {
  fuzz::Input input(lines);
  shm::OwnedFd client = host->Connect();
  bool is_first = true;
  for (size_t i = 0; i < kMaxMessages && !input.empty(); ++i) {
    const std::string_view line = input.Until('\n');
    if (line.empty() || line[0] == 'n') {
      client = host->Connect();
      is_first = true;
      continue;
    }
    const std::string message = MessageOf(line);
    // A refused client has been closed: then this says so.
    if (send(client.get(), message.data(), message.size(), MSG_NOSIGNAL) < 0) continue;
    host->Turn();
    const bool attached = IsWelcome(client.get());
    Require(attached == (is_first && Attaches(message)), "a right Hello attaches, once");
    is_first = false;
    for (const ClientInfo& info : host->Clients().clients) {
      Require(info.label.size() <= shm::kLabelBytes, "a label of its bound");
      for (const char c : info.label) Require(c >= ' ' && c <= '~', "a label fit for terminals");
    }
  }
}

}  // namespace
}  // namespace sluice::admin

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using sluice::admin::Host;
  static Host* const host = new Host;
  sluice::admin::Converse(host, {reinterpret_cast<const char*>(data), size});
  host->Turn();  // the last client has left
  sluice::fuzz::Require(host->Clients().attached == 0, "who leaves is forgotten");
  return 0;
}
