#include "tests/simulation/host.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "absl/strings/str_cat.h"
#include "tests/simulation/rules.h"

namespace sluice::simulation {
namespace {

constexpr uint64_t kCapacity = 512;
constexpr uint64_t kRetryRulesNs = 200 * kMs;
constexpr size_t kTurnsMost = 5000;          // between two looks at the bounds
constexpr uint64_t kTurnLateNs = 100 * kMs;  // a daemon that runs comes around so often
// Copies of a call of a script that lends: the first few, and the time between two of the others.
constexpr size_t kFirstCopies = 6;
constexpr uint64_t kCopyNs = 250 * kMs;
constexpr uint64_t kWakeMostNs = 60 * kUs;  // of a thread that something is ready for

void CheckOk(const shm::SegmentStatus& status) {
  if (status.ok()) return;
  fprintf(stderr, "no memory for a simulated host\n");
  abort();
}

}  // namespace

Host::Host(HostOptions options, Timeline* timeline, Network* network, Trace* trace, Random random)
    : options_(std::move(options)),
      timeline_(timeline),
      network_(network),
      trace_(trace),
      random_(random),
      calendars_(&control_,
                 [this] {
                   return static_cast<int64_t>(kEpochUs) + options_.clock_ahead_us -
                          static_cast<int64_t>(options_.base_ns / kUs);
                 }),
      first_rules_(options_.config.rules) {
  const uint32_t shards = options_.config.redis->shards;
  CheckOk(control_.Create({.capacity = kCapacity,
                           .logs = kLogs,
                           .shard_count = shards,
                           .grace_ns = kGraceNs,
                           .reconciling = true,
                           .seed = {random_.Next() | 1, random_.Next() | 1, random_.Next() | 1}},
                          NowNs()));
  CheckOk(buckets_.Create(kCapacity, kLogs));
  if (!calendars_.Set(options_.config, NowNs()).ok()) abort();
  if (!PublishRules(options_.config.rules)) abort();
  control_.Publish();
  for (int client = 0; client < options_.clients; ++client) CheckLater(client);
}

Host::~Host() {
  worker_.reset();
  ring_.reset();
}

bool Host::PublishRules(const std::vector<config::RuleConfig>& rules) {
  if (rules.size() > kRulesMost) abort();
  options_.config.rules = rules;
  absl::StatusOr<std::string> bytes =
      config::Compile(options_.config, control_.info().hash_key, control_.policy_seq() + 1);
  if (!bytes.ok()) abort();
  uint64_t wait_ns = 0;
  const shm::SegmentStatus status = control_.PublishPolicy(*bytes, NowNs(), &wait_ns);
  if (status.error == shm::SegmentError::kPoliciesResting) return false;
  CheckOk(status);
  absl::StatusOr<config::CompiledRules> compiled = config::CompiledRules::Load(*bytes);
  if (!compiled.ok()) abort();
  compiled->AddPrivacy(options_.config);
  compiled->AddPenalties(options_.config);
  compiled->AddCalendars(calendars_.tables());
  policy_ = *std::move(bytes);
  rules_ = std::make_shared<config::CompiledRules>(*std::move(compiled));
  return true;
}

void Host::ChangeRules(std::vector<config::RuleConfig> rules) {
  const bool waiting = wanted_rules_.has_value();
  wanted_rules_ = std::move(rules);
  if (!waiting) TakeRules();
}

void Host::TakeRules() {
  if (!wanted_rules_) return;  // a daemon began with them
  if (worker_ == nullptr || is_paused() || !PublishRules(*wanted_rules_)) {
    return timeline_->After(kRetryRulesNs, [this] { TakeRules(); });
  }
  trace_->Note("other rules", static_cast<uint64_t>(options_.number), rules_->rules().size());
  ++rule_changes_;
  wanted_rules_.reset();
  worker_->SetRules(rules_);
}

void Host::StartDaemon() {
  if (worker_ != nullptr) return;
  const uint64_t last_beat_ns = control_.header().heartbeat_ns.load();
  if (!lives_.empty()) {
    CheckOk(control_.Adopt(shm::OwnedFd(dup(control_.fd())),
                           {.capacity = kCapacity,
                            .logs = kLogs,
                            .shard_count = options_.config.redis->shards,
                            .grace_ns = kGraceNs,
                            .reconciling = true},
                           NowNs()));
  }
  // It finds another file than the one before it.
  const std::shared_ptr<const config::CompiledRules> former = rules_;
  if (wanted_rules_ && PublishRules(*wanted_rules_)) {
    ++rule_changes_;
    wanted_rules_.reset();
  }
  Life life;
  life.begin_ns = timeline_->now_ns();
  for (int i = 0; i < 2; ++i)
    life.instance += absl::StrCat(absl::Hex(random_.Next(), absl::kZeroPad16));
  ring_ = std::make_unique<SimRing>(network_, options_.number, [this] {
    WakeAt(timeline_->now_ns() + random_.Below(kWakeMostNs));
  });
  reconcile::WorkerEnvironment environment;
  environment.ring = ring_.get();
  environment.now_ns = [this] { return NowNs(); };
  environment.random = [this] { return random_.Next(); };
  environment.instance = life.instance;
  environment.transport_name = "simulated";
  environment.use_since_ns = last_beat_ns;
  absl::StatusOr<std::unique_ptr<reconcile::Worker>> worker =
      reconcile::Worker::Create({.control = &control_,
                                 .buckets = &buckets_.buckets(),
                                 .redis = options_.config.redis,
                                 .former_rules = former,
                                 .quotas = &quotas_},
                                std::move(environment));
  if (!worker.ok()) abort();
  worker_ = *std::move(worker);
  worker_->SetRules(rules_);
  quotas_.Open();
  trace_->Note("daemon starts", static_cast<uint64_t>(options_.number), lives_.size());
  lives_.push_back(std::move(life));
  known_seq_.assign(options_.config.redis->shards, -1);
  late_looks_.assign(options_.config.redis->shards, 0);
  WakeAt(timeline_->now_ns());
}

void Host::KillDaemon() {
  if (worker_ == nullptr) return;
  trace_->Note("daemon killed", static_cast<uint64_t>(options_.number));
  EndDaemon();
}

void Host::StopDaemon(uint64_t until_ns) {
  if (worker_ == nullptr) return;
  trace_->Note("daemon stops", static_cast<uint64_t>(options_.number));
  stop_until_ns_ = until_ns;
  WakeAt(timeline_->now_ns());
}

// What it has taken from the slots and Redis has not answered for goes with it.
void Host::EndDaemon() {
  const reconcile::Ledger& ledger = worker_->reconciler().ledger();
  for (uint32_t i = 0; i < ledger.shard_count(); ++i) {
    const reconcile::Shard& shard = ledger.shard(i);
    const auto lose_of = [&](const std::string& text, int64_t tokens) {
      (tokens < 0 ? refunds_lost_by_kills_ : lost_by_kills_)[text] += std::abs(tokens);
    };
    for (const reconcile::BucketId id : shard.queue) {
      lose_of(ledger.bucket(id).outer_name(), ledger.bucket(id).pending);
    }
    const auto lose = [&](const std::vector<reconcile::BatchItem>& items) {
      for (const reconcile::BatchItem& item : items) {
        lose_of(ledger.bucket(item.bucket).outer_name(), item.tokens);
      }
    };
    for (const reconcile::JournalEntry& entry : shard.again) lose(entry.items);
    if (shard.batch) lose(shard.batch->items);
  }
  lives_.back().end_ns = timeline_->now_ns();
  worker_.reset();
  ring_.reset();
  stop_until_ns_ = 0;
  wake_at_ns_ = UINT64_MAX;
  ++wakes_;
}

void Host::Pause(uint64_t until_ns) {
  trace_->Note("host stands still", static_cast<uint64_t>(options_.number), until_ns);
  paused_until_ns_ = std::max(paused_until_ns_, until_ns);
}

void Host::WakeAt(uint64_t at_ns) {
  at_ns = std::max({at_ns, timeline_->now_ns(), paused_until_ns_});
  if (at_ns >= wake_at_ns_) return;
  wake_at_ns_ = at_ns;
  timeline_->At(at_ns, [this, wake = ++wakes_] {
    if (wake != wakes_ || worker_ == nullptr) return;
    wake_at_ns_ = UINT64_MAX;
    if (is_paused()) return WakeAt(paused_until_ns_);
    Turn();
  });
}

void Host::Turn() {
  const uint64_t now_ns = NowNs();
  ++turns_;
  ++all_turns_;
  control_.Beat(now_ns);
  RenewCalendars();
  worker_->Wait(now_ns);
  if (stop_until_ns_ != 0) {
    const bool is_settled = worker_->Flush();
    NoteAcks();
    if (is_settled || timeline_->now_ns() >= stop_until_ns_) return EndDaemon();
    return WakeAt(timeline_->now_ns() + reconcile::kTickNs);
  }
  const uint64_t until_ns = worker_->Tick();
  turned_ns_ = timeline_->now_ns();
  NoteAcks();
  quotas_.Hear(worker_->reconciler().ledger());
  WakeAt(ring_->has_ready() ? timeline_->now_ns() : until_ns - options_.base_ns);
}

void Host::NoteAcks() {
  const reconcile::Ledger& ledger = worker_->reconciler().ledger();
  for (uint32_t i = 0; i < ledger.shard_count(); ++i) {
    const int64_t seq = ledger.shard(i).known_seq;
    const int64_t before = std::exchange(known_seq_[i], seq);
    if (seq <= before) continue;  // forgotten, or nothing new
    lives_.back().acked[{i, seq}] = {timeline_->now_ns()};
    trace_->Note("acked", static_cast<uint64_t>(options_.number), i, static_cast<uint64_t>(seq));
  }
}

int64_t Host::TokensInSlots() const {
  int64_t tokens = 0;
  const shm::MappedBuckets& b = buckets_.buckets();
  for (uint64_t i = 0; i < b.capacity(); ++i) tokens += shm::used::Count(b.slots()[i].used.load());
  return tokens;
}

int64_t Host::UnreportedTokens() const {
  int64_t tokens = TokensInSlots();
  if (worker_ == nullptr) return tokens;
  const reconcile::Ledger& ledger = worker_->reconciler().ledger();
  for (uint32_t i = 0; i < ledger.shard_count(); ++i) {
    const reconcile::Shard& shard = ledger.shard(i);
    for (const reconcile::BucketId id : shard.queue) tokens += ledger.bucket(id).pending;
    for (const reconcile::JournalEntry& entry : shard.again) {
      for (const reconcile::BatchItem& item : entry.items) tokens += item.tokens;
    }
    if (!shard.batch) continue;
    for (const reconcile::BatchItem& item : shard.batch->items) tokens += item.tokens;
  }
  return tokens;
}

std::vector<std::string> Host::BeyondBounds(size_t nodes) {
  std::vector<std::string> beyond;
  const auto hold = [this, &beyond](const char* what, size_t is, size_t most) {
    if (is <= most) return;
    beyond.push_back(
        absl::StrCat("host ", options_.number, ": ", what, ": ", is, ", more than ", most));
  };
  const reconcile::Ledger& ledger = worker_->reconciler().ledger();
  const size_t buckets = kRulesMost * static_cast<size_t>(options_.keys);
  const redis::ClusterClient& client = *worker_->client();
  // Ticks, and what the network brings: more is a loop that does not wait.
  hold("turns", std::exchange(turns_, 0), kTurnsMost);
  // Each call follows so many redirects and fails at one more; a probe follows none.
  const redis::ClientCounters counters = client.Counters();
  const uint64_t age_ns = timeline_->now_ns() - lives_.back().begin_ns;
  hold("redirects", counters.moved + counters.asked,
       (redis::kMaxRedirects + 1) * counters.calls + nodes * (age_ns / reconcile::kProbeNs + 1));
  // For each shard a batch and the copies of two calls that lend, a probe for each primary, and one
  // question after the map.
  const size_t copies = kFirstCopies + options_.config.redis->request_timeout_ns / kCopyNs;
  hold("calls without an answer", client.outstanding(),
       (1 + 2 * copies) * ledger.shard_count() + nodes + 1);
  hold("connections", ring_->channel_count(), nodes + 1);
  hold("buckets in the books", ledger.size(), buckets);
  for (uint32_t i = 0; i < ledger.shard_count(); ++i) {
    hold("buckets that wait", ledger.shard(i).queue.size(), buckets);
    // A batch is sent in a tick only, and leaves the journal in one.
    hold("batches in the journal and to be sent again",
         ledger.shard(i).journal.size() + ledger.shard(i).again.size(),
         reconcile::kJournalNs / reconcile::kTickNs + 2);
  }
  CheckModes(&beyond);
  // Each bucket comes near its limit once in a period.
  for (const config::CompiledRule& rule : rules_->rules()) {
    const auto totals = worker_->reconciler().totals().find(rule.label);
    const auto tenancies = tenancies_.find(rule.label);
    hold("buckets near their limit",
         totals == worker_->reconciler().totals().end() ? 0 : totals->second.near_limit,
         (tenancies == tenancies_.end() ? 0 : tenancies->second) *
             (age_ns / rule.limit.period_ns + 1));
  }
  return beyond;
}

// Use that Redis has not heard of for long must show in the word that clients read; at the next
// tick, where a failover has just brought it back.
void Host::CheckModes(std::vector<std::string>* beyond) {
  if (is_paused() || stop_until_ns_ != 0 || timeline_->now_ns() > turned_ns_ + kTurnLateNs) return;
  const reconcile::Reconciler& reconciler = worker_->reconciler();
  const uint64_t bound_ns =
      std::max(reconcile::kEmergencyMinNs,
               reconcile::kEmergencyIntervals * reconciler.stats().interval_ns) +
      kTurnLateNs;
  for (uint32_t i = 0; i < reconciler.ledger().shard_count(); ++i) {
    const uint64_t use_ns = reconciler.ledger().OldestUseNs(reconciler.ledger().shard(i));
    const bool late = use_ns != 0 && NowNs() > use_ns + bound_ns &&
                      shm::shard_state::Mode(control_.shard(i)) != shm::ShardMode::kEmergency;
    late_looks_[i] = late ? late_looks_[i] + 1 : 0;
    if (late_looks_[i] < 2) continue;
    beyond->push_back(absl::StrCat("host ", options_.number, ": shard ", i, " has use of ",
                                   (NowNs() - use_ns) / kMs, " ms ago and no emergency"));
  }
}

std::map<std::string, uint64_t> Host::BannedForNs() const {
  std::map<std::string, uint64_t> banned;
  const reconcile::Ledger& ledger = worker_->reconciler().ledger();
  for (reconcile::BucketId id = 0; id < ledger.bucket_slots(); ++id) {
    const reconcile::Bucket& bucket = ledger.bucket(id);
    if (bucket.is_banned(NowNs())) banned[bucket.text] = bucket.penal->until_ns - NowNs();
  }
  return banned;
}

int64_t Host::AbandonedTokens() const {
  const auto counter = static_cast<uint32_t>(shm::Counter::kAbandonedUse);
  return static_cast<int64_t>(buckets_.buckets().counters()[counter].load());
}

Host::Unnamed Host::UnnamedTokens() const {
  Unnamed tokens;
  const shm::MappedBuckets& b = buckets_.buckets();
  for (uint64_t i = 0; i < b.capacity(); ++i) {
    const shm::Slot& slot = b.slots()[i];
    if ((slot.aux.load() & shm::aux::kTextWanted) == 0) continue;
    const int64_t count = shm::used::Count(slot.used.load());
    (count < 0 ? tokens.refunds : tokens.use) += std::abs(count);
  }
  return tokens;
}

bool Host::IsSettled() const {
  const Unnamed unnamed = UnnamedTokens();
  return worker_ != nullptr && !is_paused() && !wanted_rules_ &&
         worker_->reconciler().emergencies() == 0 && worker_->reconciler().IsSettled() &&
         TokensInSlots() == unnamed.use - unnamed.refunds && worker_->Snapshot().alarms.empty();
}

std::string Host::Unsettled() const {
  if (worker_ == nullptr) return "no daemon";
  std::string alarms;
  for (const Alarm& alarm : worker_->Snapshot().alarms) absl::StrAppend(&alarms, "; ", alarm.text);
  return absl::StrCat("host ", options_.number, ": ", worker_->reconciler().emergencies(),
                      " shards in emergency, ", UnreportedTokens(), " tokens unreported, ",
                      TokensInSlots(), " of them in slots", alarms);
}

}  // namespace sluice::simulation
