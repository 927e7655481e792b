#include "tests/torture/features_worker.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "tests/support/is_running.h"

namespace sluice::torture {
namespace {

using std::chrono::milliseconds;
using std::chrono::nanoseconds;

constexpr size_t kMostHeld = 4;
constexpr uint64_t kOperationsPerTurn = 64;
// Of a quota's key, before the next one's turn.
constexpr uint64_t kRollNs = 500'000'000;
// For so long only classes from one on ask, so that each comes to its bound.
constexpr uint64_t kRankNs = 150'000'000;
constexpr milliseconds kHold(20);
// All race at once, for a part of the time: else hardly two do.
constexpr uint64_t kRacesEachNs = 100'000'000;
constexpr uint64_t kRacesForNs = 10'000'000;
constexpr int kTakes = 4;
constexpr uint64_t kMostReturnNs = 300'000;
// Who was not on a CPU between its look at the clock and at a bucket may see what came later.
constexpr uint64_t kPromptNs = 1'000'000;
// Not attached: the daemon is away.
constexpr uint64_t kAwayNs = 100'000;
constexpr uint64_t kMostLateNs = 10'000'000'000;
// Above every burst but those of money.
constexpr uint64_t kBeyond = 1'000'000;

std::chrono::steady_clock::time_point At(uint64_t ns) {
  return std::chrono::steady_clock::time_point(nanoseconds(ns));
}

void SleepUntil(uint64_t until_ns) {
  for (uint64_t now_ns = NowNs(); now_ns < until_ns; now_ns = NowNs()) SleepNs(until_ns - now_ns);
}

bool IsQuota(Rule rule) { return rule == kDay || rule == kClassDay || rule == kStock; }
// Whether what is given back is all of what was charged, whenever.
bool IsKept(Rule rule) { return IsQuota(rule) || rule == kPriced; }

// Given limits have books of their own.
int BookOfBucket(const Request::Bucket& b) {
  return BookOf(b.rule, b.rule == kGiven && b.trace >= 0 ? kRolling + b.trace : b.key);
}

}  // namespace

Worker::Worker(Board& board, Client& client, int index, Cell& stage, uint64_t seed)
    : board_(board),
      judge_(board),
      client_(client),
      index_(index),
      stage_(stage),
      under_way_(board.under_way[index]),
      random_(seed) {}

void Worker::Run() {
  // In a forked child, for a connection of its own: else it enters nowhere.
  client_.wait(milliseconds(100));
  for (int i = 0; i < 4; ++i) {
    Request request = Any(2) == 0 ? Alone() : Together();
    auto handle = client_.bind(std::span<const Descriptor>(request.descriptors));
    if (handle) handles_.push_back({std::move(*handle), std::move(request)});
  }
  critical_ = client_.bind_rule("classes:critical");
  for (uint64_t n = 1;; ++n) {
    if (n % kOperationsPerTurn == 0) sched_yield();
    board_.operations.fetch_add(1, std::memory_order_relaxed);
    Once();
  }
}

void Worker::AddAnyClass(Request& request) {
  const uint64_t least = (NowNs() - board_.begin_ns) / kRankNs % kRanks;
  if (Any(4) != 0) request.AddClass(std::max(least, Any(kRanks)));
}

int Worker::RollingKey() {
  const uint64_t rolls = (NowNs() - board_.begin_ns) / kRollNs;
  return kRolling + static_cast<int>((rolls + Any(2)) % kRollings);
}

// A bucket of which each admission's time is known, or of a quota.
void Worker::AddAny(Request& request, Rule rule) {
  // The lowest class has some of its own: of quotas each other one.
  if (rule == kClassDay && request.rank != kLowest) return request.Add(rule, RollingKey() & ~1);
  if (IsQuota(rule)) return request.Add(rule, RollingKey());
  if (rule == kPrivate) return request.Add(rule, kRolling + static_cast<int>(Any(kRollings)));
  const bool is_low = (rule == kClasses || rule == kLog) && request.rank == kLowest && Any(2) == 0;
  request.Add(rule, is_low ? kLow : kExact, rule == kGiven ? static_cast<int>(Any(kPlans)) : 0);
}

Request Worker::Alone() {
  static constexpr Rule kRulesAlone[] = {kClasses, kClasses, kLog,   kClassDay, kLogin, kLogin,
                                         kDay,     kLevels,  kGiven, kSpread,   kTurns, kPrivate};
  Request request;
  AddAnyClass(request);
  AddAny(request, kRulesAlone[Any(std::size(kRulesAlone))]);
  return request;
}

Request Worker::Together() {
  static constexpr Rule kRulesTogether[] = {kClasses, kLog,    kLogin,  kDay,    kLevels,
                                            kGiven,   kSpread, kPriced, kPrivate};
  Request request;
  AddAnyClass(request);
  const uint64_t one_of = 1 + Any(5);
  for (const Rule rule : kRulesTogether) {
    if (Any(one_of) == 0) AddAny(request, rule);
  }
  if (request.buckets.empty()) AddAny(request, kLevels);
  return request;
}

Request Worker::Loose() {
  static constexpr Rule kRulesLoose[] = {kClasses, kLog,    kLogin, kLevels,
                                         kGiven,   kSpread, kTurns, kPrivate};
  Request request;
  AddAnyClass(request);
  request.Add(kPriced, kLoose);
  const uint64_t one_of = 1 + Any(8);
  for (const Rule rule : kRulesLoose) {
    if (Any(one_of) == 0) request.Add(rule, kLoose);
  }
  if (Any(2) == 0) request.Add(kDay, RollingKey());
  if (Any(2) == 0) request.Add(kStock, RollingKey());
  return request;
}

void Worker::Begin(const Request& request, uint64_t cost) {
  const auto most = static_cast<int64_t>(cost);
  for (const Request::Bucket& b : request.buckets) {
    under_way_.Add(BookOfBucket(b), 0, most);
    if (b.rule == kClassDay && request.rank == kLowest)
      under_way_.Add(LowestBookOf(b.key), 0, most);
  }
  under_way_.Begin();
  began_ns_ = NowNs();
}

// True where it was admitted; then its cost is in the books.
bool Worker::End(const Request& request, uint64_t cost, const Decision& d) {
  const bool is_admitted = d && !d.is_default();
  if (!d.is_default()) stage_.store(kChecking, std::memory_order_relaxed);
  if (is_admitted) {
    for (const Request::Bucket& b : request.buckets) {
      board_.books[BookOfBucket(b)].sum.fetch_add(static_cast<int64_t>(cost));
      if (b.rule == kClassDay && request.rank == kLowest) {
        board_.books[LowestBookOf(b.key)].sum.fetch_add(static_cast<int64_t>(cost));
      }
      if (b.trace < 0) continue;
      const uint64_t vague_ns = kTraceNames[b.trace].token_ns / kVaguePart;
      if (!request.is_alone() && d.raw().now_ns > began_ns_ + vague_ns) continue;
      const uint64_t turn_ns = d.raw().now_ns + d.raw().delay_ns;
      board_.traces[b.trace].Add(turn_ns - std::min(turn_ns, board_.begin_ns), cost, request.rank);
    }
  }
  under_way_.End();
  if (d.is_default()) {
    SleepNs(kAwayNs);
    return false;
  }
  ++(is_admitted ? board_.admitted : board_.denied);
  if (is_admitted && request.buckets.size() > 1) ++board_.together;
  if (d.raw().source == SLUICE_SOURCE_OVERFLOW) ++board_.overflow;
  if (d.is_emergency()) ++board_.emergency;
  return is_admitted;
}

// Within an operation that may give back so much.
void Worker::GiveBack(const Request& request, uint64_t tokens) {
  for (const Request::Bucket& b : request.buckets) {
    const auto back = static_cast<int64_t>(tokens);
    if (IsKept(b.rule)) {
      board_.books[BookOfBucket(b)].sum.fetch_sub(back);
    } else {
      board_.unsure[BookOfBucket(b)].fetch_add(back);
    }
  }
}

void Worker::Once() {
  if ((NowNs() - board_.begin_ns) % kRacesEachNs < kRacesForNs) return Race();
  const uint64_t kind = Any(256);
  if (kind < 110) return Ask(Alone());
  if (kind < 160) return Ask(Together());
  if (kind < 180) return AskHandle();
  if (kind < 205) return AskLoosely();
  if (kind < 220) return EnterTogether();
  if (kind < 232) return AskInVain();
  if (kind < 245) return Look();
  if (kind < 253) return LookForKept();
  if (kind < 254) return ReturnLate();
  if (kind < 255) return AcquireTurn();
  ComeBackAlone();
}

void Worker::Ask(Request request) {
  const uint64_t cost = 1 + Any(kMostCost);
  const uint64_t banned_until_ns = judge_.BannedUntil(request);
  const Request::Bucket first = request.buckets[0];
  const bool by_rule = request.is_alone() && first.rule == kClasses && request.rank == 0 &&
                       critical_ && request.descriptors.size() == 2;
  Begin(request, cost);
  const Decision d = by_rule ? critical_->check(ValueOf(kClasses, first.key), cost)
                             : client_.check(request.descriptors, cost);
  End(request, cost, d);
  judge_.Any(request, d);
  if (request.is_alone()) judge_.Alone(request, cost, d);
  if (request.Has(kLogin)) judge_.Ban(request, banned_until_ns, d);
}

void Worker::AskHandle() {
  if (handles_.empty()) return;
  Bound& bound = handles_[Any(handles_.size())];
  const uint64_t cost = 1 + Any(kMostCost);
  const uint64_t banned_until_ns = judge_.BannedUntil(bound.request);
  Begin(bound.request, cost);
  const Decision d = bound.handle.check(cost);
  End(bound.request, cost, d);
  judge_.Any(bound.request, d);
  if (bound.request.is_alone()) judge_.Alone(bound.request, cost, d);
  if (bound.request.Has(kLogin)) judge_.Ban(bound.request, banned_until_ns, d);
}

void Worker::AskLoosely() {
  Request request = Loose();
  const uint64_t cost = 1 + Any(kMostCost);
  const uint64_t banned_until_ns = judge_.BannedUntil(request);
  const uint64_t way = Any(8);
  if (way < 3) return ReserveLoosely(std::move(request), cost);
  const bool waits = way == 3 && Any(4) == 0;
  Begin(request, cost);
  Decision d = waits ? client_.acquire(request.descriptors, milliseconds(Any(4)), cost)
                     : client_.check(request.descriptors, cost);
  const bool is_admitted = End(request, cost, d);
  judge_.Any(request, d);
  if (request.Has(kLogin) && !waits) judge_.Ban(request, banned_until_ns, d);
  if (!is_admitted) return;
  if (way < 6) {
    static constexpr uint32_t kStatuses[] = {200, 401, 404, 500, 503};
    static constexpr int64_t kTokens[] = {-1, 5, 2, 0, 0};
    const uint64_t which = Any(std::size(kStatuses));
    const int64_t more = kTokens[which] < 0 ? 0 : kTokens[which] - static_cast<int64_t>(cost);
    under_way_.Add(BookOf(kPriced, kLoose), std::min<int64_t>(more, 0), std::max<int64_t>(more, 0));
    under_way_.Begin();
    const int corrected = client_.report(d, kStatuses[which]);
    if (corrected > 0) board_.books[BookOf(kPriced, kLoose)].sum.fetch_add(more);
    under_way_.End();
    // None where the rules were published anew since: by another daemon.
    if (corrected > (kTokens[which] < 0 ? 0 : 1)) board_.bad_count.Note("%d", corrected);
    if (corrected > 0) ++board_.reported;
  } else if (way == 6) {
    for (const Request::Bucket& b : request.buckets) {
      under_way_.Add(BookOfBucket(b), -static_cast<int64_t>(cost), 0);
    }
    under_way_.Begin();
    if (client_.refund(d) >= 0) GiveBack(request, cost);
    under_way_.End();
    ++board_.refunded;
  }
}

// Some come too late to settle.
void Worker::ReserveLoosely(Request request, uint64_t estimate) {
  Begin(request, estimate);
  const Reservation r = client_.reserve(request.descriptors, estimate, kHold);
  const Decision d = r.decision();
  const bool is_admitted = r.error() == 0 && End(request, estimate, d);
  if (!is_admitted) return under_way_.End();
  if (Any(8) == 0) return;
  if (Any(64) == 0) SleepNs(Any(40'000'000));
  const uint64_t actual = Any(estimate + 1);
  for (const Request::Bucket& b : request.buckets) {
    under_way_.Add(BookOfBucket(b), static_cast<int64_t>(actual) - static_cast<int64_t>(estimate),
                   0);
  }
  under_way_.Begin();
  const bool is_settled = client_.settle(r, actual);
  if (is_settled) GiveBack(request, estimate - actual);
  under_way_.End();
  ++(is_settled ? board_.settled : board_.late);
}

// Of two buckets that are nearly always empty, one is often found so when the other and what does
// not come back have been charged already: then all is to be as before.
void Worker::Race() {
  Request request;
  if (Any(4) != 0) request.Add(kBrink, kExact);
  if (request.buckets.empty() || Any(4) != 0) request.Add(kVerge, kExact);
  if (request.buckets.size() == 2) {
    request.Add(kStock, RollingKey());
    if (Any(2) == 0) request.Add(kPriced, kExact);
    if (Any(4) == 0) request.Add(kDay, RollingKey());
  }
  Begin(request, 1);
  const Decision d = client_.check(request.descriptors);
  if (End(request, 1, d) && request.buckets.size() > 2) ++board_.raced;
  judge_.Any(request, d);
}

// Time that has passed is not given back: what is taken meanwhile, and what then is, are no more
// than the bucket holds.
void Worker::ReturnLate() {
  Request request;
  request.Add(kBrink, kReturned);
  const auto take = [&] {
    for (int n = 0; n < kTakes; ++n) {
      Begin(request, 1);
      End(request, 1, client_.check(request.descriptors));
    }
  };
  // As if it had never been, so it stands in no trace.
  Decision d = client_.check(request.descriptors, 1 + Any(2));
  if (!d || d.is_default()) return take();
  SleepNs(Any(kMostReturnNs));
  take();
  client_.refund(d);
  take();
  ++board_.returned;
}

void Worker::AcquireTurn() {
  Request request;
  request.Add(kTurns, kExact);
  const uint64_t cost = 1 + Any(kMostCost);
  const uint64_t deadline_ns = NowNs() + Any(20'000'000);
  Begin(request, cost);
  const Decision d = client_.acquire(request.descriptors, At(deadline_ns), cost);
  const uint64_t back_ns = NowNs();
  const uint64_t turn_ns = d.raw().now_ns + d.raw().delay_ns;
  if (End(request, cost, d)) {
    ++board_.served;
    // Without patience it is a check, which may go on at once after a deadline that is past.
    if (d.raw().delay_ns != 0 && turn_ns > deadline_ns) {
      board_.too_late.Note("its turn %lu ns beyond", turn_ns - deadline_ns);
    }
    if (back_ns < turn_ns) board_.too_early.Note("by %lu ns", turn_ns - back_ns);
  }
  if (back_ns > deadline_ns + kMostLateNs) {
    board_.too_late.Note("back %lu ns beyond", back_ns - deadline_ns);
  }
}

void Worker::EnterTogether() {
  if (held_.size() == kMostHeld || (!held_.empty() && Any(3) == 0)) return LeaveOne();
  const bool waits = Any(64) == 0;
  // Who waits may be told a turn, later than its admission was charged.
  Request others = waits ? Loose() : Any(4) != 0 ? Together() : Request{};
  others.AddPlace();
  const uint64_t banned_until_ns = judge_.BannedUntil(others);
  Begin(others, 1);
  Place place = waits ? client_.enter(others.descriptors, milliseconds(Any(4)))
                      : client_.enter(others.descriptors);
  const Decision d = place.decision();
  const bool is_in = End(others, 1, d);
  judge_.Any(others, d);
  if (waits) ++board_.waited;
  if (others.Has(kLogin) && !waits) judge_.Ban(others, banned_until_ns, d);
  if (!is_in) {
    if (place.raw().name != 0) board_.holds_denied.Note("by %zu rules", others.buckets.size() + 1);
    return;
  }
  if (place.raw().name == 0) return;
  const uint32_t at = d.raw().spends[0].floor_q16 % std::size(board_.owners);
  const pid_t self = getpid();
  const pid_t before = board_.owners[at].exchange(self);
  if (at >= kPlacesLimit) board_.two_in_place.Note("at %u, beyond the limit", at);
  if (before != 0 && (before == self || test::IsSiblingRunning(before))) {
    board_.two_in_place.Note("at %u", at);
  }
  ++board_.entered;
  held_.push_back({std::move(place), at});
}

void Worker::LeaveOne() {
  std::swap(held_[Any(held_.size())], held_.back());
  board_.owners[held_.back().at] = 0;
  held_.pop_back();
}

// One of the rules always says no, so that the others are to be as if nobody had asked.
void Worker::AskInVain() {
  Request request;
  const bool is_used_up = Any(2) == 0;
  if (is_used_up) request.Add(kShut, kExact);
  const uint64_t one_of = 1 + Any(4);
  for (int r = is_used_up ? kPlaces : kClasses; r < kShut; ++r) {
    // A cost that never fits is also denied by its own bucket, and many of them ban it.
    if (r == kLogin && !is_used_up) continue;
    if (Any(one_of) == 0) request.Add(static_cast<Rule>(r), kQuiet);
  }
  if (!is_used_up && !request.Has(kTurns)) request.Add(kTurns, kQuiet);
  request.AddClass(Any(kRanks));
  const uint64_t cost = is_used_up ? 1 + Any(kMostCost) : kBeyond;
  bool is_allowed = false;
  bool is_default = false;
  const uint64_t way = Any(is_used_up ? 5 : 4);
  if (way == 1) {
    const Place place = client_.enter(request.descriptors, cost);
    is_allowed = bool{place};
    is_default = place.decision().is_default();
  } else if (way == 2) {
    const Decision d = client_.acquire(request.descriptors, milliseconds(Any(3)), cost);
    is_allowed = d.allowed();
    is_default = d.is_default();
  } else if (way == 3) {
    is_allowed = client_.allow(request.descriptors, cost);
  } else if (way == 4) {
    const Reservation r = client_.reserve(request.descriptors, cost, kHold);
    is_allowed = bool{r};
    is_default = r.decision().is_default();
  } else {
    const Decision d = client_.check(request.descriptors, cost);
    is_allowed = d.allowed();
    is_default = d.is_default();
  }
  if (is_allowed && !is_default) board_.not_denied.Note("way %lu, cost %lu", way, cost);
}

void Worker::Look() {
  const auto rule = static_cast<Rule>(Any(kShut));
  const int key = Any(2) == 0 ? kPeeked : kQuiet;
  Request request;
  request.AddClass(0);
  if (rule == kGiven && Any(2) == 0) {
    // Under a limit that nobody uses, of a key that all use.
    request.descriptors.emplace_back(kNames[kGiven], ValueOf(kGiven, kExact));
    request.descriptors.emplace_back("plan", kPlanPeeked);
  } else {
    request.Add(rule, key);
  }
  judge_.Full(rule, key, client_.peek(request.descriptors, 0));
}

// What only the lowest class asks for has the rest for those above it at any time.
void Worker::LookForKept() {
  Request request;
  request.AddClass(0);
  const bool is_quota = Any(2) == 0;
  const int rolling = RollingKey();
  if (is_quota) {
    request.Add(kClassDay, rolling | 1);
  } else {
    request.Add(kClasses, kLow);
  }
  const uint64_t begin_ns = NowNs();
  const Decision d = client_.peek(request.descriptors, 0);
  const uint64_t took_ns = NowNs() - begin_ns;
  if (d.raw().source != SLUICE_SOURCE_RULES) return;
  const uint64_t full = is_quota ? d.limit() : d.raw().burst;
  const auto kept = static_cast<uint64_t>(static_cast<double>(full) * (1 - kLowestPart));
  const uint64_t slack = is_quota ? 0 : 1 + 2 * kPromptNs / PerTokenNs(d);
  if (!is_quota && took_ns > kPromptNs) return;
  ++board_.kept;
  if (d.remaining() + slack < kept) {
    board_.not_kept.Note("%lu of %lu remain in %s", d.remaining(), full,
                         kNames[request.buckets[0].rule]);
  }
}

// Nobody else uses its bucket: who waits as told is admitted.
void Worker::ComeBackAlone() {
  Request request;
  request.Add(kSpread, kOwn + index_);
  const uint64_t cost = 1 + Any(kMostCost);
  Decision d = client_.check(request.descriptors, cost);
  for (int i = 0; i < 1000 && d && !d.is_default(); ++i)
    d = client_.check(request.descriptors, cost);
  const auto retry = d.retry_after();
  if (d || d.raw().source != SLUICE_SOURCE_RULES || !retry || *retry > milliseconds(50)) return;
  const uint64_t told_ns = d.raw().now_ns + d.raw().retry_after_ns;
  SleepUntil(told_ns + d.raw().lag_ns);
  Decision again = client_.check(request.descriptors, cost);
  if (again.raw().source != SLUICE_SOURCE_RULES) return;
  ++board_.alone;
  if (!again && again.raw().now_ns >= told_ns) {
    board_.not_alone.Note("%lu ns after its time", again.raw().now_ns - told_ns);
  }
}

}  // namespace sluice::torture
