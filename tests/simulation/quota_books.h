// What one host knows of its quotas by the calendar: what Redis has told it was used in a window,
// and what its clients have used since. Together they are never more than the limit, whatever Redis
// has lost meanwhile: it is told again what it told. What docs/choosing.md leaves open stays open:
// the host's own use may be missing that no reply had confirmed when the loss showed, or its daemon
// was killed.
//
// It is the host's checkpoint file as well, and so outlasts daemons; one that keeps all at once.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>

#include "daemon/reconcile/ledger.h"
#include "daemon/reconcile/quota_store.h"

namespace sluice::simulation {

class QuotaBooks final : public reconcile::QuotaStore {
 public:
  // A bucket's name and the end of a window, microseconds of Unix time.
  using Window = std::pair<std::string, int64_t>;

  // What its daemon was told, after each of its turns.
  void Hear(const reconcile::Ledger& ledger);
  // Tokens were admitted. Returns what is used of the window, as far as the host knows.
  int64_t Spend(const Window& window, uint32_t tokens);

  // Tokens that were admitted.
  uint64_t judged() const { return judged_; }

  // reconcile::QuotaStore
  void Keep(const std::string& name, const reconcile::Quota& quota) override {
    kept_[name] = quota;
  }
  std::optional<reconcile::Quota> Find(const std::string& names) const override;
  // A daemon begins.
  void Open();

 private:
  struct Use {
    int64_t own = 0;
    int64_t others = 0;  // at least: told, less what was its own by then
    uint64_t reported_ns = 0;
    int64_t at_reply = 0;   // of its own at the last reply, which the next one tells of
    int64_t confirmed = 0;  // of its own: told by a reply, or given up
    int64_t restored = 0;   // what Redis is to be told again; 0: nothing
  };
  // What is not confirmed may be missing.
  static void GiveUp(Use* use);

  std::map<Window, Use> uses_;
  std::map<std::string, reconcile::Quota> kept_, found_;
  uint64_t judged_ = 0;
};

}  // namespace sluice::simulation
