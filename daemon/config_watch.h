// Tells when the configuration file changes, however it is written: in place, by a rename over it,
// or by a switched symbolic link beside it.
#pragma once

#include <functional>
#include <string>

#include "absl/status/status.h"
#include "daemon/admin/event_loop.h"
#include "shm/segment.h"

namespace sluice {

// Editors write in several steps: the file is looked at when it has been quiet for this long.
inline constexpr uint64_t kSettleNs = 200'000'000;

class ConfigWatch {
 public:
  ConfigWatch(admin::EventLoop* loop, std::function<void()> changed)
      : loop_(loop), changed_(std::move(changed)) {}
  ~ConfigWatch();

  // Watches the directory of `path`, and has the file looked at once soon, for what was written
  // before. Not fatal where it fails: SIGHUP still reloads.
  absl::Status Start(const std::string& path);

 private:
  void OnEvents();
  void LookSoon();

  admin::EventLoop* loop_;
  std::function<void()> changed_;
  shm::OwnedFd inotify_;
  admin::EventLoop::TimerId timer_ = 0;
};

}  // namespace sluice
