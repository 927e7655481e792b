#include <liburing.h>

#include "absl/strings/str_cat.h"
#include "daemon/ring/epoll_ring.h"
#include "daemon/ring/ring.h"
#include "daemon/ring/uring_ring.h"

namespace sluice::ring {
namespace {

struct FlagSet {
  unsigned flags;
  const char* text;
};

// Best first. DEFER_TASKRUN (Linux 6.1) completes only inside Wait, on this thread, so no
// interrupt breaks into a batch; COOP_TASKRUN (5.19) is the next best thing.
constexpr FlagSet kFlagSets[] = {
    {IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN, "single issuer, deferred work"},
    {IORING_SETUP_COOP_TASKRUN, "cooperative work"},
    {0, "no flags"},
};

}  // namespace

std::string_view RingName(RingChoice choice) {
  switch (choice) {
    case RingChoice::kAuto:
      return "auto";
    case RingChoice::kUring:
      return "io_uring";
    case RingChoice::kEpoll:
      return "epoll";
  }
  return "?";
}

absl::StatusOr<OpenedRing> OpenRing(RingChoice choice) {
  std::string refused;
  absl::Status last;
  if (choice != RingChoice::kEpoll) {
    for (const FlagSet& set : kFlagSets) {
      absl::StatusOr<std::unique_ptr<Ring>> ring = OpenUringRing(set.flags);
      if (ring.ok()) {
        std::string why = absl::StrCat("io_uring (", set.text, ")", refused);
        return OpenedRing{*std::move(ring), RingChoice::kUring, std::move(why)};
      }
      last = ring.status();
      absl::StrAppend(&refused, "; with ", set.text, " refused: ", last.message());
    }
    if (choice == RingChoice::kUring) return last;
  }
  absl::StatusOr<std::unique_ptr<Ring>> ring = OpenEpollRing();
  if (!ring.ok()) return ring.status();
  std::string why = choice == RingChoice::kEpoll ? "epoll, as asked for"
                                                 : absl::StrCat("epoll; io_uring", refused);
  return OpenedRing{*std::move(ring), RingChoice::kEpoll, std::move(why)};
}

}  // namespace sluice::ring
