#include "daemon/reconcile/batch.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "daemon/redis/codec.h"
#include "shm/kinds.h"
#include "shm/window.h"

namespace sluice::reconcile {
namespace {

// Outcomes in a reply; 0: the batch was known.
constexpr int64_t kApplied = 1;
constexpr int64_t kRefused = 2;

// What a batch's arguments take beside the texts, about: asked for at once.
constexpr size_t kHeadBytes = 256;
constexpr size_t kBucketBytes = 80;

// Use as time, whole microseconds; the rest is carried, so nothing is lost in the long run.
int64_t CostUs(Bucket& b, int64_t tokens) {
  const shm::Limit& limit = b.limit;
  uint64_t small_ns = 0;
  if (tokens >= 0 &&
      !__builtin_mul_overflow(static_cast<uint64_t>(tokens), limit.period_ns, &small_ns) &&
      !__builtin_add_overflow(small_ns / limit.limit, b.fraction_ns, &small_ns)) {
    b.fraction_ns = small_ns % 1000;  // as below, without division by a routine
    return static_cast<int64_t>(small_ns / 1000);
  }
  const __int128 ns = static_cast<__int128>(tokens) * limit.period_ns / limit.limit;
  const __int128 sum = ns + static_cast<__int128>(b.fraction_ns);
  if (sum < 0) {
    b.fraction_ns = 0;
    return static_cast<int64_t>(std::max<__int128>(sum / 1000, INT64_MIN / 2));
  }
  b.fraction_ns = static_cast<uint64_t>(sum % 1000);
  return static_cast<int64_t>(std::min<__int128>(sum / 1000, INT64_MAX / 2));
}

// A limit as the script is told it.
struct Told {
  shm::Limit limit;
  shm::Kind kind;
  bool is_dated;                           // by the calendar
  const config::CompiledRule* penal_rule;  // null: it has no penalty
};

// As lua/fold.lua reads it: the bound of debt that is no ban's, and what a denial and a request
// cost.
std::string PenaltyText(const config::CompiledRule& rule) {
  const shm::Limit& limit = rule.limit;
  const auto us = [&](uint64_t tokens) {
    return std::min(shm::CostNs(tokens, limit.period_ns, limit.limit), shm::kMaxSpanNs) / 1000;
  };
  const config::PenaltyConfig& penalty = rule.penalty;
  return absl::StrCat(std::max(limit.tau_ns, shm::kMinDebtNs) / 1000, " ", penalty.after, " ",
                      penalty.within_ns / 1000, " ", penalty.for_ns / 1000, " ",
                      us(penalty.deny_costs), " ", us(rule.cost));
}

void AppendLimit(const Told& told, std::string* args) {
  const shm::Limit& limit = told.limit;
  if (shm::IsCountedInWindows(told.kind)) {
    const bool slides = told.kind != shm::Kind::kFixedWindow;
    const uint64_t length_ns =
        slides ? shm::window::LengthNs(limit.period_ns) : limit.period_ns + shm::window::kStepNs;
    redis::AppendBulkInt(args, static_cast<int64_t>((length_ns + 500) / 1000));
    redis::AppendBulkInt(args, told.is_dated ? -3 : slides ? -2 : -1);
  } else {
    redis::AppendBulkInt(args, static_cast<int64_t>(limit.tau_ns / 1000));
    if (told.penal_rule != nullptr) {
      redis::AppendBulk(args, PenaltyText(*told.penal_rule));
    } else {
      redis::AppendBulkInt(args, static_cast<int64_t>(limit.debt_max_ns / 1000));
    }
  }
  redis::AppendBulkInt(args, static_cast<int64_t>(RateOf(limit) * kMilli));
}

// The distinct limits of a batch: buckets refer to them by position from 1.
class LimitTable {
 public:
  size_t IndexOf(const Bucket& b) {
    const shm::Limit& limit = b.limit;
    const config::CompiledRule* const penal_rule = b.is_penal() ? b.rule : nullptr;
    for (size_t i = 0; i < limits_.size(); ++i) {
      const shm::Limit& other = limits_[i].limit;
      if (other.tau_ns == limit.tau_ns && other.debt_max_ns == limit.debt_max_ns &&
          other.limit == limit.limit && other.period_ns == limit.period_ns &&
          limits_[i].kind == b.kind && limits_[i].is_dated == b.is_dated() &&
          limits_[i].penal_rule == penal_rule) {
        return i + 1;
      }
    }
    limits_.push_back({limit, b.kind, b.is_dated(), penal_rule});
    return limits_.size();
  }
  const std::vector<Told>& limits() const { return limits_; }

 private:
  std::vector<Told> limits_;
};

// What was used, and when: as time, or by windows.
void AppendUse(Bucket& b, const BatchItem& item, uint64_t now_ns, uint64_t interval_ns,
               std::string* args) {
  if (b.is_dated()) {
    // Of a window that is long over nothing counts but the tokens.
    const config::CalendarTable::Entry* entry = b.calendar->Near(item.window_end_ns);
    const config::CalendarTable::Entry* const restored =
        item.restore == 0 ? nullptr : b.calendar->EndingAt(item.restore_end_us);
    if (item.in_window == 0 && restored != nullptr) entry = restored;
    const config::CalendarWindow window =
        entry != nullptr ? entry->window : config::CalendarWindow{};
    const int64_t known = entry == restored && restored != nullptr ? item.restore : 0;
    redis::AppendBulk(args, absl::StrCat(item.in_window, " ", window.begin_us, " ", known));
    redis::AppendBulkInt(args, item.tokens);
    redis::AppendBulkInt(args, window.end_us);
    return;
  }
  if (shm::IsCountedInWindows(b.kind)) {
    redis::AppendBulk(args, absl::StrCat(item.in_window, " ", item.in_closed));
    redis::AppendBulkInt(args, item.tokens);
    redis::AppendBulkInt(
        args, (static_cast<int64_t>(item.window_end_ns) - static_cast<int64_t>(now_ns)) / 1000);
    return;
  }
  const uint64_t age_ns = item.since_ns != 0 && now_ns > item.since_ns ? now_ns - item.since_ns : 0;
  if (item.is_penal) {
    const uint64_t left_ns = item.ban_until_ns - std::min(item.ban_until_ns, now_ns);
    const int64_t ban_us = item.is_lifted ? -1 : static_cast<int64_t>(left_ns / 1000);
    redis::AppendBulk(args, absl::StrCat(CostUs(b, item.tokens), " ", item.denied, " ", ban_us));
  } else {
    redis::AppendBulkInt(args, CostUs(b, item.tokens));
  }
  redis::AppendBulkInt(args, item.tokens);
  redis::AppendBulkInt(
      args, age_ns > kFreshIntervals * interval_ns ? static_cast<int64_t>(age_ns / 1000) : 0);
}

// A new batch takes the attempts since the last report into the demands.
template <bool kIsNew>
Batch Encode(Ledger& ledger, std::vector<BatchItem> items, std::string_view instance, uint64_t seq,
             uint64_t time_us, uint64_t now_ns, uint64_t interval_ns) {
  LimitTable table;
  size_t text_bytes = 0;
  for (const BatchItem& item : items) {
    const Bucket& b = ledger.bucket(item.bucket);
    table.IndexOf(b);
    const std::string& name = b.wire_name();
    text_bytes += name.size();
    __builtin_prefetch(name.data());
    __builtin_prefetch(name.data() + name.size());
  }
  Batch batch;
  batch.seq = seq;
  batch.frozen_ns = batch.first_ns = now_ns;
  std::string& args = batch.frozen_args;
  args.reserve(kHeadBytes + text_bytes + kBucketBytes * items.size());
  redis::AppendBulk(&args, instance);
  redis::AppendBulkInt(&args, static_cast<int64_t>(seq));
  redis::AppendBulkInt(&args, static_cast<int64_t>(time_us));
  redis::AppendBulkInt(&args, static_cast<int64_t>(kGenerationUs));
  redis::AppendBulkInt(&args, static_cast<int64_t>(table.limits().size()));
  for (const Told& told : table.limits()) AppendLimit(told, &args);
  for (BatchItem& item : items) {
    Bucket& b = ledger.bucket(item.bucket);
    if constexpr (kIsNew) {
      b.is_silent = b.attempts == 0 && item.tokens == 0;
      b.demand.Update(b.attempts, now_ns, interval_ns);
      if (b.is_silent) b.demand.End();
      b.attempts = 0;
      b.reported_ns = now_ns;
    }
    item.said_milli = static_cast<int64_t>(b.demand.rate() * kMilli);
    item.is_window = shm::IsCountedInWindows(b.kind);
    item.is_penal = b.is_penal();
    redis::AppendBulk(&args, b.wire_name());
    redis::AppendBulkInt(&args, static_cast<int64_t>(table.IndexOf(b)));
    AppendUse(b, item, now_ns, interval_ns, &args);
    redis::AppendBulkInt(&args, item.said_milli);
    redis::AppendBulkInt(&args, b.said_milli);
    redis::AppendBulkInt(&args, b.said_gen);
  }
  batch.arg_count = static_cast<uint32_t>(7 + 3 * table.limits().size() + 8 * items.size());
  batch.items = std::move(items);
  return batch;
}

}  // namespace

Batch Freeze(Ledger& ledger, std::vector<BatchItem> items, std::string_view instance, uint64_t seq,
             uint64_t time_us, uint64_t now_ns, uint64_t interval_ns) {
  return Encode<true>(ledger, std::move(items), instance, seq, time_us, now_ns, interval_ns);
}

Batch FreezeAgain(Ledger& ledger, JournalEntry&& entry, std::string_view instance, uint64_t time_us,
                  uint64_t now_ns, uint64_t interval_ns) {
  Batch batch = Encode<false>(ledger, std::move(entry.items), instance, entry.seq, time_us, now_ns,
                              interval_ns);
  batch.first_ns = entry.first_ns;
  batch.oldest_ns = entry.use_ns;
  return batch;
}

std::string ArgsOf(const Batch& batch, int64_t known_seq, uint64_t now_ns) {
  const bool again = batch.sends > 0 && now_ns > batch.frozen_ns;
  std::string args;
  redis::AppendBulkInt(&args, again ? static_cast<int64_t>((now_ns - batch.frozen_ns) / 1000) : 0);
  redis::AppendBulkInt(&args, known_seq);
  return args + batch.frozen_args;
}

absl::StatusOr<FoldReply> ParseFoldReply(const redis::Reply& reply,
                                         const std::vector<BatchItem>& items) {
  const size_t count = items.size();
  const auto more =
      static_cast<size_t>(std::count_if(items.begin(), items.end(), [](const BatchItem& item) {
        return item.is_window || item.is_penal;
      }));
  const size_t expected = 4 + 3 * count + 2 * more;
  if (!reply.is_array() || reply.elements.size() != expected) {
    return absl::InvalidArgumentError(absl::StrCat("fold answered with ",
                                                   reply.is_array() ? reply.elements.size() : 0,
                                                   " elements where ", expected, " were expected"));
  }
  for (const redis::Reply& element : reply.elements) {
    if (!element.is_integer()) {
      return absl::InvalidArgumentError("fold answered with something that is not a number");
    }
  }
  const auto at = [&reply](size_t i) { return reply.elements[i].integer; };
  FoldReply fold;
  fold.applied = at(0) == kApplied;
  fold.refused = at(0) == kRefused;
  fold.last_seq = at(1);
  fold.now_us = static_cast<uint64_t>(std::max<int64_t>(at(2), 0));
  fold.gen = at(3);
  fold.buckets.reserve(count);
  size_t next = 4 + 3 * count;
  for (size_t i = 0; i < count; ++i) {
    const size_t e = 4 + 3 * i;
    fold.buckets.push_back({.debt_us = static_cast<uint64_t>(std::max<int64_t>(at(e), 0)),
                            .demand_milli = std::max<int64_t>(at(e + 1), 0),
                            .hosts = std::max<int64_t>(at(e + 2), 1)});
    if (items[i].is_penal) {
      fold.buckets.back().banned_us = static_cast<uint64_t>(std::max<int64_t>(at(next++), 0));
      fold.buckets.back().began = at(next++) == 1;
    }
    if (!items[i].is_window) continue;
    fold.buckets.back().in_window = std::max<int64_t>(at(next++), 0);
    fold.buckets.back().in_closed = std::max<int64_t>(at(next++), 0);
  }
  return fold;
}

}  // namespace sluice::reconcile
