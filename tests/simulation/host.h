// One host: the two segments, a daemon's worker on a simulated ring, and clients that check. The
// daemon is killed and started anew; the segments stay, as systemd keeps them.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "daemon/config/calendars.h"
#include "daemon/reconcile/worker.h"
#include "shm/bucket.h"
#include "shm/log_row.h"
#include "shm/segment.h"
#include "tests/simulation/classes.h"
#include "tests/simulation/network.h"
#include "tests/simulation/quota_books.h"
#include "tests/simulation/random.h"
#include "tests/simulation/timeline.h"
#include "tests/simulation/trace.h"

namespace sluice::simulation {

inline constexpr shm::LogShape kLogs = {.rows = 256, .entries = 2048};
inline constexpr uint64_t kGraceNs = 2 * kSecond;

struct HostOptions {
  int number = 0;
  config::Config config;
  uint64_t base_ns = 0;        // what its monotonic clock shows at the beginning
  int64_t clock_ahead_us = 0;  // of Unix time
  int clients = 3;
  uint64_t check_gap_ns = 20 * kMs;  // between two checks of a client, in the mean
  int keys = 12;                     // of each rule
  double favoured = 0;               // so many of the checks are of the last rule, beside its part
  double corrected = 0;  // of the checks that are allowed: so many cost another number later
  // Hear of who has entered a bucket, of tokens of a loan that were spent, and of what is wrong.
  std::function<void(const std::string& text)> on_enter;
  std::function<void(const std::string& text, uint32_t tokens)> on_spent;
  std::function<void(const std::string& what)> on_wrong;
};

// As the clients of the host whose turn it is read it.
struct HostClock {
  static inline uint64_t now_ns = 0;
  static uint64_t PreciseNs() { return now_ns; }
  static uint64_t CoarseNs() { return now_ns; }
};

// What a daemon was told, and when: for the books of what a failover may lose.
struct Acked {
  uint64_t at_ns = 0;  // of the timeline
};

// One daemon's life.
struct Life {
  std::string instance;
  uint64_t begin_ns = 0;
  uint64_t end_ns = 0;  // 0: lives
  // By shard and seq.
  std::map<std::pair<uint32_t, int64_t>, Acked> acked;
};

class Host {
 public:
  Host(HostOptions options, Timeline* timeline, Network* network, Trace* trace, Random random);
  ~Host();

  uint64_t NowNs() const { return options_.base_ns + timeline_->now_ns(); }

  // What happens to it.
  void StartDaemon();
  void KillDaemon();
  // SIGTERM: flushes until all is reported or the time is over.
  void StopDaemon(uint64_t until_ns);
  void Pause(uint64_t until_ns);  // of the timeline: neither clients nor daemon run
  void StopClients() { checking_ = false; }
  void set_kill_chance(double chance) { kill_chance_ = chance; }
  // Takes over other rules, as a reload does: once a buffer for them is free, and the daemon runs.
  void ChangeRules(std::vector<config::RuleConfig> rules);
  // Those that it began with.
  const std::vector<config::RuleConfig>& first_rules() const { return first_rules_; }
  uint64_t rule_changes() const { return rule_changes_; }

  bool is_running() const { return worker_ != nullptr; }
  bool is_paused() const { return timeline_->now_ns() < paused_until_ns_; }
  const reconcile::Worker* worker() const { return worker_.get(); }
  const SimRing* ring() const { return ring_.get(); }

  // The buckets that its daemon, which runs, holds to be banned, and for how long from now on.
  std::map<std::string, uint64_t> BannedForNs() const;

  // Tokens that classes were admitted, and those of quotas, each of them judged.
  uint64_t classes_judged() const { return classes_judged_; }
  uint64_t quotas_judged() const { return quotas_.judged(); }
  uint64_t tried() const { return tried_; }  // requests that a candidate was asked about

  // Requests in flight, by bucket; those of killed clients until they are given back.
  const std::map<std::string, uint32_t>& in_flight() const { return in_flight_; }
  uint64_t entered() const { return entered_; }
  // The name of its segments, as lua/places.lua is told of it.
  std::string Segments() const;

  // Out of emergency, and Redis knows all that was used.
  bool IsSettled() const;
  // What stands in the way of that.
  std::string Unsettled() const;

  // What is longer or more than it may ever be since the last call, a line each.
  std::vector<std::string> BeyondBounds(size_t nodes);

  // The books, by bucket's text.
  using Tokens = std::map<std::string, int64_t>;
  const Tokens& admitted() const { return admitted_; }
  // Denials, one each.
  const Tokens& denied() const { return denied_; }
  // Of those, given back by clients.
  const Tokens& given_back() const { return given_back_; }
  // Harvested by daemons that were killed before Redis had answered, at most; refunds apart.
  const Tokens& lost_by_kills() const { return lost_by_kills_; }
  const Tokens& refunds_lost_by_kills() const { return refunds_lost_by_kills_; }
  // Left in slots that were given to another key before a daemon came by: no counter has them.
  const Tokens& refunds_abandoned() const { return refunds_abandoned_; }
  // Spent by clients that were killed before they had counted it.
  uint64_t killed_clients() const { return killed_clients_; }
  uint64_t checks() const { return checks_; }
  uint64_t all_turns() const { return all_turns_; }
  const std::vector<Life>& lives() const { return lives_; }
  // Left in slots that were given to another key before a daemon came by.
  int64_t AbandonedTokens() const;
  // Left in slots that have no name: their claimer was killed before it had written one, or their
  // rule is gone. The next check of that key writes it.
  struct Unnamed {
    int64_t use = 0;
    int64_t refunds = 0;
  };
  Unnamed UnnamedTokens() const;
  // In slots, in the ledger and in flight.
  int64_t UnreportedTokens() const;

 private:
  enum class Death : uint8_t { kNone, kBeforeText, kBeforeUse, kBeforeMark };
  // What a request asks of a rule.
  struct Asked {
    const config::CompiledRule* rule = nullptr;
    std::string label;  // of the bucket: with the limit that the request brought
    std::string value;  // of the key
    std::string text;   // the bucket's name for the outside
    uint64_t hash = 0;  // of the kind
    shm::Limit whole;   // of the bucket
    shm::Limit limit;   // of that what the request's class may use
    double part = 1;    // which is so much, as the rule is written
    uint16_t floor_q16 = 0;
    uint32_t tokens = 0;
  };
  // What a client needs for a correction.
  struct Spent {
    shm::Kind kind = shm::Kind::kTokenBucket;
    shm::Limit limit;
    uint32_t slot = 0;
    uint32_t tokens = 0;
    uint16_t gen = 0;
    uint64_t new_ns = 0, cost_ns = 0;
    std::string text;
  };

  // A request in flight.
  struct Stay {
    uint32_t slot = 0, count = 0, first = 0;
    uint64_t entry = 0;
    std::string text;
  };

  void Turn();
  void WakeAt(uint64_t at_ns);
  void NoteAcks();
  void EndDaemon();
  void CheckModes(std::vector<std::string>* beyond);
  void CheckLater(int client);
  void Check();
  Asked Draw();
  void Fill(const config::CompiledRule& rule, const std::string& brought, const std::string& name,
            Asked* asked) const;
  std::string TextOf(const config::CompiledRule& rule, const std::string& label,
                     const std::string& value) const;
  std::optional<Spent> Take(const Asked& asked, Death death);
  std::optional<Spent> Try(const Asked& asked);
  void JudgeTried(const Asked& asked, const shm::Seen& seen, bool is_allowed);
  void JudgeClass(const Asked& asked, const classes::Found& found);
  void JudgeQuota(const Asked& asked, const shm::Seen& seen);
  classes::Found Look(const Asked& asked, uint32_t slot) const;
  void RenewCalendars();
  void Correct(const std::vector<Spent>& spends);
  void GiveBack(const Spent& spent, uint32_t tokens);
  void LookAfterRefund(const Spent& spent, uint32_t tokens, uint64_t at_ns);
  void ChargeMore(const Spent& spent, uint32_t tokens);
  void Enter(const config::CompiledRule& rule, const std::string& value, uint64_t hash,
             uint32_t count, bool is_killed);
  void Leave(const Stay& stay);
  void GiveBackLater(const Stay& stay);
  shm::logs::Row<std::atomic<uint64_t>> RowOf(uint32_t slot) const;
  uint64_t MaxDebtNs() const { return control_.header().max_debt_ns.load(); }
  void TakeRules();
  bool PublishRules(const std::vector<config::RuleConfig>& rules);
  void StoreName(uint32_t slot, const std::string& label, const std::string& value);
  int64_t TokensInSlots() const;

  HostOptions options_;
  Timeline* timeline_;
  Network* network_;
  Trace* trace_;
  Random random_;
  shm::ControlWriter control_;
  config::Calendars calendars_;
  shm::BucketsOwner buckets_;
  const std::vector<config::RuleConfig> first_rules_;
  std::optional<std::vector<config::RuleConfig>> wanted_rules_;
  uint64_t rule_changes_ = 0;
  std::string policy_;  // as clients read it
  std::shared_ptr<const config::CompiledRules> rules_;
  std::unique_ptr<SimRing> ring_;
  std::unique_ptr<reconcile::Worker> worker_;
  std::vector<Life> lives_;
  std::vector<int64_t> known_seq_;  // by shard, last seen in the ledger
  std::vector<int> late_looks_;     // by shard, in which use was too old for its mode
  uint64_t wake_at_ns_ = UINT64_MAX;
  uint64_t wakes_ = 0;  // the newest appointment
  uint64_t all_turns_ = 0;
  uint64_t turns_ = 0;  // since the last look at the bounds
  uint64_t paused_until_ns_ = 0;
  uint64_t stop_until_ns_ = 0;  // 0: not asked to stop
  uint64_t turned_ns_ = 0;      // the last turn
  bool checking_ = true;
  double kill_chance_ = 0;
  Tokens admitted_, given_back_, denied_;
  Tokens lost_by_kills_, refunds_lost_by_kills_, refunds_abandoned_;
  std::map<std::string, uint64_t> tenancies_;  // by label
  QuotaBooks quotas_;
  std::map<std::string, uint32_t> in_flight_;
  uint64_t nonce_ = 0;  // of the last place
  uint64_t entered_ = 0;
  uint64_t killed_clients_ = 0;
  uint64_t checks_ = 0;
  uint64_t classes_judged_ = 0;
  uint64_t tried_ = 0;
};

}  // namespace sluice::simulation
