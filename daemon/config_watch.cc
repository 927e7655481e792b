#include "daemon/config_watch.h"

#include <errno.h>
#include <sys/epoll.h>
#include <sys/inotify.h>
#include <unistd.h>

namespace sluice {

ConfigWatch::~ConfigWatch() {
  if (inotify_.get() >= 0) loop_->Remove(inotify_.get());
  loop_->Cancel(timer_);
}

absl::Status ConfigWatch::Start(const std::string& path) {
  const size_t slash = path.rfind('/');
  const std::string folder = slash == std::string::npos ? "." : path.substr(0, slash + 1);
  inotify_.Reset(inotify_init1(IN_CLOEXEC | IN_NONBLOCK));
  if (inotify_.get() < 0) return absl::ErrnoToStatus(errno, "inotify_init1");
  // The directory, not the file: a file that is replaced takes its watch with it.
  if (inotify_add_watch(inotify_.get(), folder.c_str(), IN_CLOSE_WRITE | IN_MOVED_TO) < 0) {
    return absl::ErrnoToStatus(errno, folder);
  }
  absl::Status status = loop_->Add(inotify_.get(), EPOLLIN, [this](uint32_t) { OnEvents(); });
  // What was written between its reading and now has made no event.
  if (status.ok()) LookSoon();
  return status;
}

// Which name changed does not matter: a look at an unchanged file costs little, and a link that
// was switched has another name.
void ConfigWatch::OnEvents() {
  alignas(inotify_event) char events[4096];
  while (read(inotify_.get(), events, sizeof events) > 0) {
  }
  LookSoon();
}

void ConfigWatch::LookSoon() {
  loop_->Cancel(timer_);
  timer_ = loop_->After(kSettleNs, [this](uint64_t) { changed_(); });
}

}  // namespace sluice
