// What outlasts Redis, and this host's memory: how much of each quota by the calendar is used.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace sluice::reconcile {

struct Quota {
  // Of its window, microseconds of Unix time.
  int64_t begin_us = 0;
  int64_t end_us = 0;
  int64_t tokens = 0;  // used in it by all hosts
};

class QuotaStore {
 public:
  virtual ~QuotaStore() = default;
  // The bucket's last state: kept soon, and at the latest when the store ends. Does not block.
  virtual void Keep(const std::string& name, const Quota& quota) = 0;
  // What was kept before this store was opened, by one of the names that a NUL stands between.
  virtual std::optional<Quota> Find(const std::string& names) const = 0;
};

}  // namespace sluice::reconcile
