#include "daemon/keeper.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "daemon/app.h"
#include "daemon/log.h"
#include "shm/clock.h"

namespace sluice {
namespace {

constexpr int kFirstPassedFd = 3;  // SD_LISTEN_FDS_START
constexpr size_t kMaxMessageBytes = 4096;
constexpr int kMessagesPerWake = 64;
constexpr uint64_t kWatchNs = 500'000'000;

uint64_t NowNs() { return shm::MonotonicClock::PreciseNs(); }

sigset_t Signals() {
  sigset_t set;
  sigemptyset(&set);
  for (const int s : {SIGTERM, SIGINT, SIGHUP, SIGUSR2, SIGCHLD}) sigaddset(&set, s);
  return set;
}

// The binary's path, so that another start takes what stands there then.
std::string OwnPath() {
  char path[4096];
  const ssize_t n = readlink("/proc/self/exe", path, sizeof path - 1);
  return n > 0 ? std::string(path, static_cast<size_t>(n)) : "/proc/self/exe";
}

bool SameFile(int a, int b) {
  struct stat sa;
  struct stat sb;
  return fstat(a, &sa) == 0 && fstat(b, &sb) == 0 && sa.st_dev == sb.st_dev &&
         sa.st_ino == sb.st_ino;
}

}  // namespace

absl::Status Keeper::Open() {
  const sigset_t set = Signals();
  sigprocmask(SIG_BLOCK, &set, nullptr);
  binary_ = OwnPath();
  if (absl::Status status = loop_.Init(); !status.ok()) return status;
  signals_.Reset(signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
  notify_.Reset(socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (signals_.get() < 0 || notify_.get() < 0) return absl::ErrnoToStatus(errno, "keeper");
  // An abstract name that the kernel picks: nothing to clean up. Anybody may write to it, so the
  // sender's process id, which the kernel vouches for, is compared.
  const int on = 1;
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  socklen_t size = sizeof(sa_family_t);
  if (setsockopt(notify_.get(), SOL_SOCKET, SO_PASSCRED, &on, sizeof on) != 0 ||
      bind(notify_.get(), reinterpret_cast<const sockaddr*>(&address), size) != 0) {
    return absl::ErrnoToStatus(errno, "keeper's socket");
  }
  size = sizeof address;
  if (getsockname(notify_.get(), reinterpret_cast<sockaddr*>(&address), &size) != 0) {
    return absl::ErrnoToStatus(errno, "keeper's socket");
  }
  const size_t header = offsetof(sockaddr_un, sun_path) + 1;
  notify_name_ = absl::StrCat("@", std::string(address.sun_path + 1, size - header));
  absl::Status status = loop_.Add(signals_.get(), EPOLLIN, [this](uint32_t) { OnSignal(); });
  if (status.ok()) status = loop_.Add(notify_.get(), EPOLLIN, [this](uint32_t) { OnNotify(); });
  loop_.Every(kWatchNs, [this](uint64_t now_ns) { Watch(now_ns); });
  return status;
}

int Keeper::Run() {
  absl::Status status = Open();
  if (status.ok()) {
    StartWorker();
    status = loop_.Run();
  }
  if (!status.ok()) {
    log::Error("keeper: %s", status.ToString());
    return 1;
  }
  return exit_code_;
}

void Keeper::StartWorker() {
  const pid_t keeper = getpid();
  is_upgrading_ = false;
  kill_at_ns_ = 0;
  worker_since_ns_ = sign_of_life_ns_ = NowNs();
  worker_ = fork();
  if (worker_ == 0) BecomeWorker(keeper);
  if (worker_ < 0) {
    log::Error("keeper: fork: %s", strerror(errno));
    loop_.After(kLongestBackOffNs, [this](uint64_t) { StartWorker(); });
  }
}

void Keeper::BecomeWorker(pid_t keeper) {
  // A worker without a keeper would lose its segments with its own end: it ends in order.
  prctl(PR_SET_PDEATHSIG, SIGTERM);
  if (getppid() != keeper) _exit(0);
  const int count = static_cast<int>(held_.size());
  std::vector<std::string> names;
  std::vector<int> high;  // out of the way of the numbers that they shall have
  for (const NamedFd& named : held_) {
    names.push_back(named.name);
    high.push_back(fcntl(named.fd.get(), F_DUPFD_CLOEXEC, kFirstPassedFd + count));
  }
  for (int i = 0; i < count; ++i) {
    if (dup2(high[static_cast<size_t>(i)], kFirstPassedFd + i) < 0) _exit(1);  // not close-on-exec
  }
  const std::string pid = absl::StrCat(getpid());
  setenv("NOTIFY_SOCKET", notify_name_.c_str(), 1);
  setenv("LISTEN_PID", pid.c_str(), 1);
  setenv("LISTEN_FDS", absl::StrCat(count).c_str(), 1);
  setenv("LISTEN_FDNAMES", absl::StrJoin(names, ":").c_str(), 1);
  setenv("WATCHDOG_PID", pid.c_str(), 1);
  setenv("WATCHDOG_USEC", absl::StrCat(kWatchdogNs / 1000).c_str(), 1);
  // Blocked until it reads them: a reload that comes while it starts must not end it.
  const sigset_t blocked = App::Signals();
  sigprocmask(SIG_SETMASK, &blocked, nullptr);
  std::vector<char*> argv;
  for (std::string& arg : argv_) argv.push_back(arg.data());
  argv.push_back(nullptr);
  execv(binary_.c_str(), argv.data());
  log::Error("keeper: cannot start %s: %s", binary_, strerror(errno));
  _exit(1);
}

void Keeper::OnSignal() {
  signalfd_siginfo info;
  while (read(signals_.get(), &info, sizeof info) == static_cast<ssize_t>(sizeof info)) {
    switch (info.ssi_signo) {
      case SIGCHLD: {
        OnNotify();  // what it said last comes before its end
        int status = 0;
        if (worker_ > 0 && waitpid(worker_, &status, WNOHANG) == worker_) OnWorkerEnd(status);
        break;
      }
      case SIGHUP:
        if (worker_ > 0) kill(worker_, SIGHUP);
        break;
      case SIGUSR2:
        if (worker_ > 0 && !is_ending_) {
          log::Info("keeper: the worker is replaced by %s", binary_);
          is_upgrading_ = true;
          kill(worker_, SIGUSR2);
          kill_at_ns_ = NowNs() + kStopWaitNs;
        }
        break;
      default:
        EndWorker();
    }
  }
}

void Keeper::EndWorker() {
  is_ending_ = true;
  if (worker_ <= 0) return End(0);  // between two workers
  kill(worker_, SIGTERM);
  kill_at_ns_ = NowNs() + kStopWaitNs;
}

void Keeper::End(int code) {
  exit_code_ = code;
  loop_.Stop();
}

void Keeper::OnWorkerEnd(int status) {
  worker_ = -1;
  if (is_upgrading_ && !is_ending_) return StartWorker();
  const bool exited = WIFEXITED(status);
  const int code = exited ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  // What hinders the first start hinders the next as well; later it may pass.
  const bool is_hopeless = (code == kExitConfig || code == kExitInUse) && !was_ready_;
  if (is_ending_ || (exited && (code == 0 || is_hopeless))) return End(code);

  const uint64_t now_ns = NowNs();
  if (now_ns > worker_since_ns_ + kHealthyNs) back_off_ns_ = kFirstBackOffNs;
  log::Warning("keeper: the worker ended with %s %d; another one starts in %d ms",
               exited ? "code" : "signal", exited ? code : WTERMSIG(status),
               back_off_ns_ / 1'000'000);
  loop_.After(back_off_ns_, [this](uint64_t) {
    if (!is_ending_) StartWorker();
  });
  back_off_ns_ = std::min(2 * back_off_ns_, kLongestBackOffNs);
}

void Keeper::Watch(uint64_t now_ns) {
  if (worker_ <= 0) return;
  if (kill_at_ns_ != 0 && now_ns > kill_at_ns_) {
    log::Error("keeper: the worker does not end; it is killed");
    kill(worker_, SIGKILL);
    kill_at_ns_ = 0;
  } else if (now_ns > sign_of_life_ns_ + kWatchdogNs) {
    log::Error("keeper: no sign of life from the worker for %d s; it is killed",
               kWatchdogNs / 1'000'000'000);
    kill(worker_, SIGKILL);
    sign_of_life_ns_ = now_ns;
  }
}

void Keeper::OnNotify() {
  for (int i = 0; i < kMessagesPerWake; ++i) {
    char text[kMaxMessageBytes];
    alignas(
        cmsghdr) char control[CMSG_SPACE(sizeof(ucred)) + CMSG_SPACE(kMaxHeldFds * sizeof(int))];
    iovec part = {text, sizeof text};
    msghdr message = {};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    const ssize_t n = recvmsg(notify_.get(), &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (n < 0) return;
    pid_t sender = -1;
    std::vector<shm::OwnedFd> fds;
    for (cmsghdr* c = CMSG_FIRSTHDR(&message); c != nullptr; c = CMSG_NXTHDR(&message, c)) {
      if (c->cmsg_level != SOL_SOCKET) continue;
      if (c->cmsg_type == SCM_CREDENTIALS) {
        ucred credentials;
        memcpy(&credentials, CMSG_DATA(c), sizeof credentials);
        sender = credentials.pid;
      } else if (c->cmsg_type == SCM_RIGHTS) {
        const size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t j = 0; j < count; ++j) {
          int fd;
          memcpy(&fd, CMSG_DATA(c) + j * sizeof fd, sizeof fd);
          fds.emplace_back(fd);
        }
      }
    }
    if (sender == worker_ && worker_ > 0 && (message.msg_flags & MSG_TRUNC) == 0) {
      OnMessage(std::string(text, static_cast<size_t>(n)), std::move(fds));
    }
  }
}

void Keeper::OnMessage(const std::string& text, std::vector<shm::OwnedFd> fds) {
  std::string name;
  bool store = false;
  bool forget = false;
  const std::vector<std::string> lines = absl::StrSplit(text, '\n');
  for (const std::string& line : lines) {
    if (line.starts_with("FDNAME=")) name = line.substr(7);
    store |= line == "FDSTORE=1";
    forget |= line == "FDSTOREREMOVE=1";
    was_ready_ |= line == "READY=1";
  }
  sign_of_life_ns_ = NowNs();
  if (name.empty() || name.find(':') != std::string::npos) return;
  if (forget) std::erase_if(held_, [&](const NamedFd& held) { return held.name == name; });
  if (!store) return;
  for (shm::OwnedFd& fd : fds) Hold(name, std::move(fd));
}

void Keeper::Hold(const std::string& name, shm::OwnedFd fd) {
  for (const NamedFd& held : held_) {
    if (SameFile(held.fd.get(), fd.get())) return;
  }
  if (held_.size() >= kMaxHeldFds) {
    log::Warning("keeper: %d descriptors are held already; %s is not", held_.size(), name);
    return;
  }
  held_.push_back({name, std::move(fd)});
}

}  // namespace sluice
