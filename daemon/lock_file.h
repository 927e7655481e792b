// One daemon per runtime directory.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "shm/segment.h"

namespace sluice {

// A worker whose keeper died ends within this time, with its last reconcile.
inline constexpr int kLockWaitMs = 3'000;

// Held until it is destroyed; the kernel lets go of it when the process dies.
class LockFile {
 public:
  // Makes the directory (0755) where it is missing, then locks DIR/sluiced.lock, waiting at most
  // kLockWaitMs. AlreadyExists says which process holds it.
  absl::Status Acquire(const std::string& runtime_dir);

 private:
  shm::OwnedFd fd_;
};

}  // namespace sluice
