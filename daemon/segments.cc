#include "daemon/segments.h"

#include <string.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "daemon/log.h"

namespace sluice {
namespace {

// Held as "control-<generation>" and "buckets-<generation>", so that halves of different pairs are
// never put together.
constexpr char kControlPrefix[] = "control-";
constexpr char kBucketsPrefix[] = "buckets-";

std::string Describe(const shm::SegmentStatus& status) {
  std::string text = shm::Explain(status.error);
  if (status.sys_errno != 0) absl::StrAppend(&text, " (", strerror(status.sys_errno), ")");
  return text;
}

shm::OwnedFd Take(std::vector<NamedFd>* held, const std::string& name) {
  for (NamedFd& named : *held) {
    if (named.name == name && named.fd.get() >= 0) return std::move(named.fd);
  }
  return shm::OwnedFd();
}

std::string LogsText(const shm::LogShape& logs) {
  if (logs.rows == 0) return "";
  return absl::StrFormat(", rows for %d keys of logs and places, %d entries each (%d KiB)",
                         logs.rows, logs.entries, logs.bytes() >> 10);
}

std::string Hex(uint64_t generation) { return absl::StrFormat("%016x", generation); }

}  // namespace

bool Segments::Adopt(const std::string& generation, const shm::ControlOptions& options,
                     std::vector<NamedFd>* held, uint64_t now_ns) {
  shm::OwnedFd control_fd = Take(held, kControlPrefix + generation);
  shm::OwnedFd buckets_fd = Take(held, kBucketsPrefix + generation);
  if (buckets_fd.get() < 0) return false;  // it died between the two; nobody was told of this pair
  const shm::LogShape logs = shm::LogsOf(control_fd.get());
  if (logs.rows != 0 && (logs.rows < options.logs.rows || logs.entries < options.logs.entries)) {
    log::Warning(
        "the segments of the daemon before are not taken over, buckets begin anew: their sliding "
        "logs have room for %d keys with %d tokens each, and it takes %d with %d",
        logs.rows, logs.entries, options.logs.rows, options.logs.entries);
    return false;
  }
  shm::BucketsOwner buckets;
  shm::SegmentStatus status = buckets.Adopt(std::move(buckets_fd), options.capacity, logs);
  shm::ControlWriter control;
  // Last, since it tells the clients that somebody is there again.
  if (status.ok()) status = control.Adopt(std::move(control_fd), options, now_ns);
  if (!status.ok()) {
    log::Warning("the segments of the daemon before are not taken over, buckets begin anew: %s",
                 Describe(status));
    return false;
  }
  buckets_ = std::move(buckets);
  control_ = std::move(control);
  adopted_ = true;
  return true;
}

absl::Status Segments::AdoptOrCreate(const shm::ControlOptions& options, std::vector<NamedFd>* held,
                                     const Supervisor& supervisor, uint64_t now_ns) {
  std::vector<std::string> past;  // names to forget
  for (size_t i = 0; i < held->size(); ++i) {
    const std::string name = (*held)[i].name;
    const bool is_control = name.starts_with(kControlPrefix);
    if (!is_control && !name.starts_with(kBucketsPrefix)) continue;
    if (is_control && !adopted_ &&
        Adopt(name.substr(sizeof kControlPrefix - 1), options, held, now_ns)) {
      continue;
    }
    past.push_back(name);
  }
  const std::string mine = adopted_ ? Hex(control_.info().generation) : "";
  for (const std::string& name : past) {
    if (adopted_ && name == kBucketsPrefix + mine) continue;
    supervisor.Forget(name);
  }
  std::erase_if(*held, [](const NamedFd& named) {
    return named.name.starts_with(kControlPrefix) || named.name.starts_with(kBucketsPrefix);
  });
  if (adopted_) {
    log::Info("took over the segments of the daemon before: %d buckets%s, generation %s",
              options.capacity, LogsText(control_.info().logs), mine);
    return absl::OkStatus();
  }
  shm::SegmentStatus status = buckets_.Create(options.capacity, options.logs);
  if (status.ok()) status = control_.Create(options, now_ns);
  if (!status.ok()) return absl::ResourceExhaustedError(Describe(status));
  log::Info("made new segments: %d buckets%s, %d MiB, generation %s", options.capacity,
            LogsText(options.logs), buckets_.buckets().geometry().bytes >> 20,
            Hex(control_.info().generation));
  return absl::OkStatus();
}

absl::Status Segments::Publish(const Supervisor& supervisor) {
  read_only_ = control_.DupReadOnly();
  if (read_only_.get() < 0) {
    return absl::InternalError(shm::Explain(shm::SegmentError::kReopenFailed));
  }
  control_.Publish();
  if (adopted_) return absl::OkStatus();
  const std::string generation = Hex(control_.info().generation);
  supervisor.Store(kControlPrefix + generation, control_.fd());
  supervisor.Store(kBucketsPrefix + generation, buckets_.fd());
  return absl::OkStatus();
}

}  // namespace sluice
