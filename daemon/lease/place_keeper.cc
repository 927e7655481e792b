#include "daemon/lease/place_keeper.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "shm/bucket.h"
#include "shm/bucket_name.h"

namespace sluice::lease {
namespace {

constexpr uint64_t kResendMinNs = 50'000'000;
constexpr uint64_t kResendMaxNs = 250'000'000;
constexpr uint64_t kCallGapNs = 2'000'000;
// All books are looked at so often; those that were short are at once.
constexpr uint64_t kScanNs = 20'000'000;
// Of what comes in so long a host keeps free.
constexpr double kAheadS = 0.25;
constexpr size_t kHead = 3;  // outcome, now_us, fence_us
constexpr size_t kPerBucket = 3;

bool IsLent(const config::CompiledRule* rule) {
  return rule != nullptr && rule->kind == shm::Kind::kInFlight && rule->strict;
}

}  // namespace

PlaceKeeper::PlaceKeeper(Options options, const shm::MappedBuckets* buckets, PlaceLink* link)
    : options_(std::move(options)), buckets_(buckets), link_(link), shards_(options_.shard_count) {}

// Each of them is marked as used, so that it is named and its places reported. Where its name
// cannot be read Redis counts for the former daemon until that has been silent for long.
void PlaceKeeper::TakeOver() {
  const shm::LogShape shape = buckets_->geometry().logs;
  for (uint32_t slot = 0; slot < shape.rows; ++slot) {
    shm::Slot& s = buckets_->slots()[slot];
    const uint64_t key = s.key.load(std::memory_order_seq_cst);
    if (shm::key::KindOf(key) != shm::Kind::kInFlight || shm::key::Fp(key) == 0) continue;
    shm::MarkDirty(s, buckets_->dirty(), slot);
  }
}

// No more than `counted` are to be counted from now on (F5). Where the key stands there no more
// nobody holds any (F3).
void PlaceKeeper::Put(Book& b, uint32_t counted, uint64_t now_ns) {
  if (now_ns >= b.good_ns) counted = 0;
  if (b.place.key == 0) {
    b.stock = {};
    return;
  }
  const shm::LogShape shape = buckets_->geometry().logs;
  const shm::logs::Row<std::atomic<uint64_t>> row = {
      buckets_->log_entries() + uint64_t{b.place.slot} * shape.entries, shape.entries};
  if (!shm::places::SetCap(buckets_->second()[b.place.slot], buckets_->slots()[b.place.slot],
                           b.place.key, row, b.limit, counted, b.good_ns, &b.stock)) {
    b.place.key = 0;
  }
}

void PlaceKeeper::Look(Book& b, uint64_t now_ns) {
  b.looked_ns = now_ns;
  b.demand.Update(std::exchange(b.uses, 0), now_ns, kPlacesBeatNs);
  if (now_ns >= b.need_ns) b.need = 0;
  Put(b, b.lent, now_ns);
}

void PlaceKeeper::OnBucket(const harvest::Place& place, const harvest::Named& named,
                           uint64_t now_ns) {
  Book& b = books_[books_.Open(named.text)];
  b.shard = named.shard;
  b.wire = named.wire.empty() ? b.text : named.wire;
  b.limit = IsLent(named.rule) ? static_cast<uint32_t>(named.rule->limit.limit) : 0;
  b.cost = named.rule->cost;
  if (b.place.key == place.key && b.place.slot == place.slot) return;
  // It may stand in two slots: then that one counts in which somebody is, and the other is named
  // anew when it is used again.
  Put(b, 0, now_ns);
  const bool is_held = b.stock.held != 0;
  Put(b, is_held ? b.lent : 0, now_ns);
  if (is_held) return link_->OnForgotten(place);
  b.place = place;
  b.used_ns = now_ns;
  Put(b, b.lent, now_ns);
}

void PlaceKeeper::OnUse(const std::string& text, int64_t entered, uint64_t denied, uint64_t need,
                        uint64_t now_ns) {
  uint32_t id = 0;
  if (!books_.Find(text, &id)) return;
  Book& b = books_[id];
  b.used_ns = now_ns;
  if (denied != 0) urgent_.push_back(id);
  b.uses += static_cast<uint64_t>(std::max<int64_t>(entered, 0)) + denied;
  if (denied == 0) return;
  b.need = std::min<uint64_t>(std::max({b.need, denied, need}), b.limit);
  b.need_ns = now_ns + kPlacesNeedNs;
}

// A lower limit lets nobody in until fewer are in: what is free goes back, and is asked for anew.
void PlaceKeeper::SetRules(const config::CompiledRules& rules, uint64_t now_ns) {
  has_rules_ = std::any_of(rules.rules().begin(), rules.rules().end(),
                           [](const auto& rule) { return IsLent(&rule); });
  for (Book& b : books_) {
    if (b.text.empty()) continue;
    const config::CompiledRule* const rule = rules.Find(shm::LabelOf(b.text));
    const uint32_t limit = IsLent(rule) ? static_cast<uint32_t>(rule->limit.limit) : 0;
    if (limit < b.limit) {
      Put(b, 0, now_ns);
      b.lent = b.stock.counted();
      b.asked_ns = b.good_ns = 0;
    }
    b.limit = limit;
    if (rule != nullptr) b.cost = rule->cost;
  }
}

// Others are short, and it has had what it was lent for long enough to use it.
bool PlaceKeeper::GivesWay(const Book& b, uint64_t now_ns) {
  return b.is_short && now_ns >= b.lent_ns + kPlacesShortNs;
}

// What it would like to have: what is held, what was asked for in vain, and some ahead.
uint32_t PlaceKeeper::WantOf(const Book& b, uint64_t now_ns) const {
  if (b.limit == 0) return 0;
  uint64_t ahead = 0;
  if (now_ns < b.used_ns + kPlacesIdleNs && !GivesWay(b, now_ns)) {
    ahead = std::max<uint64_t>(
        b.cost, static_cast<uint64_t>(std::ceil(std::min(b.demand.rate(), 1e6) * kAheadS)));
  }
  return static_cast<uint32_t>(std::min<uint64_t>(b.stock.held + b.need + ahead, b.limit));
}

bool PlaceKeeper::IsDue(const Book& b, uint64_t now_ns) const {
  if (b.asked_ns == 0) return true;  // also where nothing is: it takes over from a former daemon
  // Where requests still come, the next one uses what is free; elsewhere it does not lie for a
  // beat.
  const bool is_for_others = GivesWay(b, now_ns) && now_ns >= b.used_ns + kPlacesBeatNs &&
                             b.stock.counted() > WantOf(b, now_ns);
  if ((b.need > 0 || is_for_others) && now_ns >= b.asked_ns + kPlacesAskNs) return true;
  const bool is_any_free = b.stock.counted() > b.stock.held || WantOf(b, now_ns) > b.stock.held;
  if (!is_any_free && b.told == 0 && b.stock.held == 0) return false;
  return now_ns >= b.asked_ns + (is_any_free ? kPlacesBeatNs : kPlacesHeldBeatNs);
}

void PlaceKeeper::Forget(uint32_t id) {
  Book& b = books_[id];
  if (b.place.key != 0) {
    Put(b, 0, 0);
    link_->OnForgotten(b.place);
  }
  books_.Close(id);
}

void PlaceKeeper::Visit(uint32_t id, uint64_t now_ns) {
  Book& b = books_[id];
  if (b.text.empty() || b.is_asked) return;
  // Nobody says that a request has left.
  const bool is_looked_at = b.stock.held != 0 && now_ns >= b.looked_ns + kPlacesLookNs;
  if (is_looked_at) Look(b, now_ns);
  const bool ends = b.good_ns != 0 && now_ns >= b.good_ns;
  const bool is_idle = b.told == 0 && b.stock.held == 0 && now_ns >= b.used_ns + kPlacesIdleNs;
  if (!ends && !is_idle && !IsDue(b, now_ns)) return;
  if (!is_looked_at) Look(b, now_ns);
  if (ends) b.good_ns = 0;
  if (IsDue(b, now_ns)) {
    shards_[b.shard].due.push_back(id);
  } else if (is_idle && b.stock.held == 0) {
    Forget(id);
  }
}

void PlaceKeeper::Tick(uint64_t now_ns) {
  const std::vector<uint32_t> urgent = std::exchange(urgent_, {});
  if (now_ns >= scanned_ns_ + kScanNs) {
    scanned_ns_ = now_ns;
    for (uint32_t id = 0; id < books_.size(); ++id) Visit(id, now_ns);
  } else {
    for (const uint32_t id : urgent) Visit(id, now_ns);
  }
  for (uint32_t shard = 0; shard < shards_.size(); ++shard) Flush(shard, now_ns);
}

void PlaceKeeper::Flush(uint32_t shard, uint64_t now_ns) {
  Shard& s = shards_[shard];
  std::vector<uint32_t> due = std::exchange(s.due, {});
  if (!s.args.empty()) {
    if (now_ns < s.sent_ns + s.timeout_ns || !link_->MayLend(shard, now_ns)) return;
    s.timeout_ns = std::min(s.timeout_ns * 2, kResendMaxNs);
    return Send(shard, now_ns);
  }
  const bool is_touched = due.empty() && has_rules_ && now_ns >= s.first_sent_ns + kPlacesTouchNs;
  if ((due.empty() && !is_touched) || now_ns < s.not_before_ns || !link_->MayLend(shard, now_ns)) {
    return;
  }
  // Who has waited for longest is first, lest many that are due leave others out.
  std::sort(due.begin(), due.end(),
            [this](uint32_t a, uint32_t b) { return books_[a].asked_ns < books_[b].asked_ns; });
  if (due.size() > kMaxPlaceBuckets) due.resize(kMaxPlaceBuckets);
  s.args = {options_.instance, absl::StrCat(++s.seq), "0"};
  for (const uint32_t id : due) {
    Book& b = books_[id];
    const uint32_t want = WantOf(b, now_ns);
    Put(b, std::min(b.lent, want), now_ns);
    // M1: from here on it has no more than this.
    b.kept = b.lent = b.stock.counted();
    b.asked_ns = now_ns;
    b.is_asked = true;
    s.args.insert(s.args.end(), {b.wire, absl::StrCat(b.limit), absl::StrCat(b.kept),
                                 absl::StrCat(std::max(want, b.kept)), absl::StrCat(b.need)});
  }
  s.asked = std::move(due);
  s.first_sent_ns = now_ns;
  s.timeout_ns = kResendMinNs;
  s.not_before_ns = now_ns + kCallGapNs;
  Send(shard, now_ns);
}

void PlaceKeeper::Send(uint32_t shard, uint64_t now_ns) {
  Shard& s = shards_[shard];
  s.sent_ns = now_ns;
  link_->AskPlaces(shard, s.args, s.seq);
}

absl::Status PlaceKeeper::OnReply(uint32_t shard, uint64_t seq, const redis::Reply& reply,
                                  uint64_t now_ns) {
  Shard& s = shards_[shard];
  if (s.args.empty() || seq != s.seq) return absl::OkStatus();
  const auto number = [&](size_t i) {
    const redis::Reply& r = reply.elements[i];
    return r.is_integer() ? r.integer : int64_t{-1};
  };
  bool is_whole = reply.is_array() &&
                  reply.elements.size() == kHead + kPerBucket * s.asked.size() && number(0) == 1;
  for (size_t i = 0; is_whole && i < reply.elements.size(); ++i) {
    const bool is_lent = i >= kHead && (i - kHead) % kPerBucket == 0;
    const int64_t least = is_lent ? books_[s.asked[(i - kHead) / kPerBucket]].kept : 0;
    is_whole = number(i) >= least && (!is_lent || number(i) <= int64_t{shm::kMaxLogEntries});
  }
  if (!is_whole) return absl::InternalError("a reply that is not of places.lua");
  s.args.clear();
  for (size_t i = 0; i < s.asked.size(); ++i) {
    Book& b = books_[s.asked[i]];
    const auto lent = static_cast<uint32_t>(number(kHead + kPerBucket * i));
    b.is_asked = false;
    b.is_short = number(kHead + kPerBucket * i + 1) > 0;
    b.told = lent;
    if (lent > b.kept) {
      b.need -= std::min<uint64_t>(b.need, lent - b.kept);
      b.lent_ns = now_ns;
    }
    b.lent = lent;
    // Where more are out than the limit, nobody takes the place of who leaves.
    const bool is_over = number(kHead + kPerBucket * i + 2) > 0;
    b.good_ns = is_over ? 0 : std::max(b.good_ns, s.first_sent_ns + kPlacesGoodNs);
    // A limit that has become lower since: what is free goes back.
    Put(b, std::min(lent, b.limit), now_ns);
  }
  s.asked.clear();
  return absl::OkStatus();
}

}  // namespace sluice::lease
