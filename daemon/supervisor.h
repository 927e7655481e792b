// Whoever started this process and holds its descriptors over a restart: systemd, or the keeper,
// which speaks the same language. Without either every call does nothing.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "shm/segment.h"

namespace sluice {

struct NamedFd {
  std::string name;
  shm::OwnedFd fd;
};

// Any thread, but for TakeFds.
class Supervisor {
 public:
  // Reads WATCHDOG_USEC and clears it.
  Supervisor();

  // The descriptors that were held, and sockets of a socket unit; once, before any thread starts.
  static std::vector<NamedFd> TakeFds();

  // Hands a copy of `fd` over, to be held under `name` (no ':').
  void Store(const std::string& name, int fd) const;
  void Forget(const std::string& name) const;

  void Ready(const std::string& status) const;
  void Reloading() const;
  void Status(const std::string& status) const;
  void Stopping() const;
  void Alive() const;  // the watchdog's sign of life
  // How often Alive is wanted; 0: never.
  uint64_t alive_interval_ns() const { return alive_interval_ns_; }

 private:
  uint64_t alive_interval_ns_ = 0;
};

}  // namespace sluice
