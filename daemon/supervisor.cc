#include "daemon/supervisor.h"

#include <fcntl.h>
#include <stdlib.h>
#include <systemd/sd-daemon.h>

#include "absl/strings/str_cat.h"
#include "shm/clock.h"

namespace sluice {
namespace {

void Notify(const std::string& text) { sd_notify(0, text.c_str()); }

// A newline would begin another field.
std::string OneLine(std::string text) {
  for (char& c : text) {
    if (c == '\n') c = ' ';
  }
  return text;
}

}  // namespace

Supervisor::Supervisor() {
  uint64_t watchdog_us = 0;
  // Three signs of life per interval: one may come late, none by chance.
  if (sd_watchdog_enabled(1, &watchdog_us) > 0) alive_interval_ns_ = watchdog_us * 1000 / 3;
}

std::vector<NamedFd> Supervisor::TakeFds() {
  char** names = nullptr;
  const int count = sd_listen_fds_with_names(1, &names);
  std::vector<NamedFd> fds;
  for (int i = 0; i < count; ++i) {
    const int fd = SD_LISTEN_FDS_START + i;
    fcntl(fd, F_SETFD, FD_CLOEXEC);
    NamedFd named;
    named.fd.Reset(fd);
    if (names != nullptr && names[i] != nullptr) named.name = names[i];
    fds.push_back(std::move(named));
  }
  if (names != nullptr) {
    for (char** name = names; *name != nullptr; ++name) free(*name);
    free(names);
  }
  return fds;
}

void Supervisor::Store(const std::string& name, int fd) const {
  sd_pid_notify_with_fds(0, 0, absl::StrCat("FDSTORE=1\nFDNAME=", name).c_str(), &fd, 1);
}

void Supervisor::Forget(const std::string& name) const {
  Notify(absl::StrCat("FDSTOREREMOVE=1\nFDNAME=", name));
}

void Supervisor::Ready(const std::string& status) const {
  Notify(absl::StrCat("READY=1\nSTATUS=", OneLine(status)));
}

void Supervisor::Reloading() const {
  Notify(absl::StrCat("RELOADING=1\nMONOTONIC_USEC=", shm::MonotonicClock::PreciseNs() / 1000));
}

void Supervisor::Status(const std::string& status) const {
  Notify(absl::StrCat("STATUS=", OneLine(status)));
}

void Supervisor::Stopping() const { Notify("STOPPING=1\nSTATUS=last reconcile"); }
void Supervisor::Alive() const { Notify("WATCHDOG=1"); }

}  // namespace sluice
