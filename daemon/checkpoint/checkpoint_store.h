// Quotas in a SQLite file beside the daemon. A thread of its own writes once a second what has
// changed: nobody waits for the disk, and what a power cut can take is the use of about a second.
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "daemon/reconcile/quota_store.h"

struct sqlite3;

namespace sluice::checkpoint {

class CheckpointStore final : public reconcile::QuotaStore {
 public:
  // Makes the file where there is none, readable by its owner only. One that is no database, or a
  // damaged one, is put aside as PATH.damaged and replaced. Quotas that had ended by `unix_us` are
  // removed. InvalidArgument where it cannot be made or written; Unavailable where another has it,
  // or the disk is full. Both name the file and the mend.
  static absl::StatusOr<std::unique_ptr<CheckpointStore>> Open(const std::string& path,
                                                               int64_t unix_us);
  // Writes what is not written yet.
  ~CheckpointStore() override;

  // Any thread.
  void Keep(const std::string& name, const reconcile::Quota& quota) override;
  std::optional<reconcile::Quota> Find(const std::string& names) const override;

 private:
  using Quotas = absl::flat_hash_map<std::string, reconcile::Quota>;
  struct Close {
    void operator()(sqlite3* db) const;
  };

  explicit CheckpointStore(std::string path) : path_(std::move(path)) {}
  absl::Status OpenFile();
  absl::Status Load(int64_t unix_us);
  void Run();
  absl::Status Write(const Quotas& quotas);
  // Of the last call that failed, with the file and the mend; DataLoss where the file is damaged.
  absl::Status Problem() const;

  const std::string path_;
  std::unique_ptr<sqlite3, Close> db_;  // of the thread, once it runs
  Quotas found_;                        // as loaded; immutable after Open

  std::mutex mutex_;  // guards the rest
  std::condition_variable wake_;
  Quotas changed_;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace sluice::checkpoint
