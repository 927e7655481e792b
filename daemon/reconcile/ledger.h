// The daemon's books: per bucket what was used and not yet reported, per shard what waits, what is
// in flight, and what was acknowledged a moment ago.
//
// B1 Use is in exactly one place: a slot's `used`, a bucket's `pending`, or a frozen batch. It
// moves
//    from one to the next whole.
// B2 What a frozen batch reports never changes and nothing is merged into it; it is resent, telling
//    how late, until it is answered. At most one is in flight per shard.
// B3 What was acknowledged stays in the journal for kJournalNs. When Redis refuses a batch because
//    it has forgotten earlier ones (a failover, a flush), those are sent again first, in order and
//    each under its own number: the forgetful copy may yet be forgotten itself, and the one that
//    remembers must know them again.
//
// Single-threaded.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "daemon/config/compile.h"
#include "daemon/harvest/harvester.h"
#include "daemon/reconcile/share.h"

namespace sluice::reconcile {

using BucketId = uint32_t;

inline constexpr uint64_t kJournalNs = 2'000'000'000;
inline constexpr uint64_t kForgetNs = 60'000'000'000;  // a bucket without use, reports or a slot
inline constexpr size_t kMaxBatchBuckets = 250;        // Lua's unpack and a script's time
inline constexpr size_t kFlushBuckets = 50;            // so many do not wait for the interval

// Of a bucket whose rule has a penalty: what this host knows of its denials.
struct Penal {
  uint64_t denied = 0;  // here, since then: what decides where Redis does not
  uint64_t since_ns = 0;
  uint64_t until_ns = 0;   // banned; 0: not, or no more
  uint64_t own_ns = 0;     // while banned: the word that the limit alone would leave, if later
  uint64_t fresh = 0;      // denials that are in no batch
  bool is_own = false;     // the ban was begun here, and Redis is to be told
  bool is_lifted = false;  // an operator has ended the ban, and Redis is to be told
  bool is_shown = false;   // to clients, by the slot's flag
};

// Ordered by use: the first line is what each harvest touches, and with many buckets each line of
// them is a miss.
struct alignas(64) Bucket {
  const config::CompiledRule* rule = nullptr;  // null: gone with a change of the rules
  int64_t pending = 0;                         // tokens harvested, in no batch
  uint64_t pending_since_ns = 0;               // of the oldest of them; 0: none
  uint64_t attempts = 0;                       // tokens asked for since the last report
  uint64_t touched_ns = 0;                     // last use or reply
  uint64_t reported_ns = 0;                    // last batch
  uint32_t shard = 0;
  uint32_t journal_pins = 0;
  bool queued = false;
  bool in_flight = false;
  bool share_expired = false;  // inv_share is what a quiet host keeps
  bool is_silent = false;      // the last batch with it told of no attempt
  bool forced = false;         // in emergency by an operator's word
  bool is_mirror = false;      // what another bucket used, told to another region
  // At whose state clients look.
  uint32_t shown_shard() const { return forced ? shm::kForcedShard : shard; }
  uint32_t inv_share = 0;
  int64_t again = 0;  // tokens in batches that are to be sent again

  // Of windows: what of `pending` was used in the one that ends then, and in the one before it.
  uint64_t window_end_ns = 0;
  int64_t in_window = 0;
  int64_t in_closed = 0;
  // What Redis told last of the open window: when it ends here, and the tokens of the others in it.
  uint64_t told_end_ns = 0;
  int64_t told_all = 0;
  int64_t told_others = 0;
  int64_t told_own = 0;                      // of this host's reports
  int64_t told_own_closed = 0;               // the same of the window before
  int64_t told_added = 0;                    // by which the others' have grown then
  int64_t told_most = 0;                     // the most of that in the window
  shm::Kind kind = shm::Kind::kTokenBucket;  // as the limit

  shm::Limit limit;                                       // of the rule when it was last known
  std::shared_ptr<const config::CalendarTable> calendar;  // the same; null: it follows none
  bool is_dated() const { return calendar != nullptr; }
  harvest::Place place;      // key 0: not in the segment any more
  uint64_t fraction_ns = 0;  // use below a microsecond, carried to the next report
  Demand demand;

  // Of a quota: tokens of the window that ends then (Unix time) which Redis is to know of at least;
  // 0: nothing to tell.
  int64_t restore = 0;
  int64_t restore_end_us = 0;

  // What Redis said last.
  int64_t said_milli = 0;  // our demand, as counted there
  int64_t said_gen = -1;   // in this generation; -1: not counted
  double others = 0;       // demand of the other hosts, tokens/s
  int64_t hosts = 1;
  uint64_t debt_ns = 0;

  std::string text;
  std::unique_ptr<const std::string> wire;  // as harvest::Named; null: the text
  const std::string& wire_name() const { return wire == nullptr ? text : *wire; }
  // For people.
  std::string outer_name() const { return wire_name().substr(0, wire_name().find('\0')); }

  std::unique_ptr<Penal> penal;  // null: never denied, or its rule has no penalty
  bool is_penal() const {
    return rule != nullptr && rule->penalty.is_any() && kind == shm::Kind::kTokenBucket;
  }
  bool is_banned(uint64_t now_ns) const { return penal != nullptr && penal->until_ns > now_ns; }
};

struct BatchItem {
  BucketId bucket = 0;
  int64_t tokens = 0;
  uint64_t since_ns = 0;   // of the oldest of them; 0: denials only
  int64_t said_milli = 0;  // the demand that the batch reports
  // Of windows, as the bucket's.
  bool is_window = false;
  uint64_t window_end_ns = 0;
  int64_t in_window = 0;
  int64_t in_closed = 0;
  int64_t restore = 0;
  int64_t restore_end_us = 0;
  // Under a penalty, as the bucket's.
  bool is_penal = false;
  bool is_lifted = false;
  uint64_t denied = 0;
  uint64_t ban_until_ns = 0;  // begun here; 0: none
};

struct Batch {
  uint64_t seq = 0;
  std::string frozen_args;  // all but the first, which tells how late it is sent
  uint32_t arg_count = 0;   // with the first
  std::vector<BatchItem> items;
  uint64_t oldest_ns = 0;  // of the use in it; 0: denials only
  uint64_t frozen_ns = 0;
  uint64_t first_ns = 0;  // frozen under this number for the first time
  uint64_t sent_ns = 0;   // last send
  uint32_t sends = 0;
  bool waiting = false;  // sent and not answered
};

struct JournalEntry {
  uint64_t seq = 0;
  uint64_t first_ns = 0;  // as the batch's
  uint64_t acked_ns = 0;
  uint64_t use_ns = 0;  // when the oldest of it was used
  std::vector<BatchItem> items;
};

struct Shard {
  std::vector<BucketId> queue;  // buckets with something to report
  uint64_t queued_since_ns = 0;
  bool urgent = false;
  std::optional<Batch> batch;
  std::deque<JournalEntry> journal;  // rising in seq, and below `again`, which is below the batch
  std::deque<JournalEntry> again;    // forgotten by Redis: goes before anything newer
  uint64_t next_seq = 1;
  int64_t known_seq = -1;  // the last that Redis is taken to know
  uint64_t retry_ns = 0;   // not before
  uint64_t backoff_ns = 0;
  shm::ShardMode mode = shm::ShardMode::kStale;
  uint64_t mode_since_ns = 0;
};

inline constexpr size_t kAhead = 8;  // buckets that are asked for before they are touched

// Buckets by id, at stable addresses: in chunks so large that finding one of them is no miss.
class Buckets {
 public:
  Bucket& operator[](BucketId id) { return chunks_[id / kChunk][id % kChunk]; }
  const Bucket& operator[](BucketId id) const { return chunks_[id / kChunk][id % kChunk]; }
  size_t size() const { return size_; }
  BucketId Add() {
    if (size_ % kChunk == 0) chunks_.push_back(std::make_unique<Bucket[]>(kChunk));
    return static_cast<BucketId>(size_++);
  }

 private:
  static constexpr size_t kChunk = 1024;
  std::vector<std::unique_ptr<Bucket[]>> chunks_;
  size_t size_ = 0;
};

class Ledger {
 public:
  explicit Ledger(uint32_t shard_count) : shards_(shard_count) {}

  Bucket& bucket(BucketId id) { return buckets_[id]; }
  const Bucket& bucket(BucketId id) const { return buckets_[id]; }
  // Asks for the line that a harvest touches; for all lines, as a report and its reply do.
  void Prefetch(BucketId id) const { __builtin_prefetch(&buckets_[id], 1); }
  void PrefetchAll(BucketId id) const {
    const char* const lines = reinterpret_cast<const char*>(&buckets_[id]);
    for (size_t at = 0; at < sizeof(Bucket); at += 64) __builtin_prefetch(lines + at, 1);
  }
  Shard& shard(uint32_t i) { return shards_[i]; }
  const Shard& shard(uint32_t i) const { return shards_[i]; }
  uint32_t shard_count() const { return static_cast<uint32_t>(shards_.size()); }

  // The bucket of that name, made where there is none, now standing at `place`.
  BucketId Intern(const harvest::Place& place, harvest::Named&& named, uint64_t now_ns);

  // The bucket of that name; false where there is none.
  bool Find(const std::string& text, BucketId* id) const {
    const auto at = by_text_.find(text);
    if (at == by_text_.end()) return false;
    *id = at->second;
    return true;
  }

  // The bucket that tells what `of` used to that shard of another region; it stands in no slot.
  BucketId InternMirror(const Bucket& of, uint32_t shard, uint64_t now_ns);

  // Adds to what is to be reported.
  void AddUse(BucketId id, int64_t tokens, uint64_t denied, uint64_t since_ns, uint64_t now_ns);

  // Takes up to kMaxBatchBuckets from the queue into items; pending becomes the batch's (B1).
  std::vector<BatchItem> TakeQueue(uint32_t shard, uint64_t* oldest_ns);

  // The batch was answered: into the journal.
  void Acknowledge(uint32_t shard, Batch&& batch, uint64_t now_ns);
  // Redis refused the batch because it knows nothing after `last_seq`: the batch and what the
  // journal holds after that are to be sent again. Returns how many of the journal.
  size_t Rewind(uint32_t shard, int64_t last_seq, Batch&& refused);
  // The first of those, to be frozen anew.
  JournalEntry TakeAgain(uint32_t shard);
  // Drops what is older than kJournalNs.
  void TrimJournal(uint32_t shard, uint64_t now_ns);

  // Frees buckets that nobody speaks of, after telling the harvester to resolve them anew; looks at
  // a bounded part of them per call.
  void Forget(uint64_t now_ns, harvest::Harvester& harvester);

  // The rules changed: pointers into the old ones are replaced or dropped.
  void Rebind(const config::CompiledRules& rules);

  // Age of the oldest use of a shard that Redis does not know, 0 when it knows all.
  uint64_t OldestUseNs(const Shard& shard) const;
  size_t bucket_slots() const { return buckets_.size(); }  // ids are below
  size_t size() const { return by_text_.size(); }
  size_t pending_buckets() const;

 private:
  BucketId IdOf(const std::string& key, const std::string& text);

  std::vector<Shard> shards_;
  Buckets buckets_;
  std::vector<BucketId> free_;
  absl::flat_hash_map<std::string, BucketId> by_text_;
  BucketId forget_at_ = 0;
  uint64_t forgot_ns_ = 0;
  size_t new_since_forget_ = 0;
};

}  // namespace sluice::reconcile
