#include "daemon/reconcile/windows.h"

#include <algorithm>
#include <utility>

#include "shm/log.h"
#include "shm/window_slot.h"

namespace sluice::reconcile {
namespace {

shm::window::Terms TermsOf(const Bucket& b) {
  return shm::window::TermsOf(b.kind, b.limit.limit, b.limit.period_ns);
}

}  // namespace

// The word, the key and the second word are hints here, which order nothing: one that has changed
// belongs to a window or a tenancy that has just begun.
WindowSeen LookAtWindow(const Bucket& b, const shm::MappedBuckets& buckets) {
  const bool slides = b.kind == shm::Kind::kSlidingWindow;
  const shm::Slot& slot = buckets.slots()[b.place.slot];
  const uint64_t w = slot.word.load(std::memory_order_acquire);
  if (shm::word::IsDead(w) || slot.key.load(std::memory_order_acquire) != b.place.key) return {};
  const int scale = shm::window::ScaleOf(b.limit.limit);
  const uint64_t second = buckets.second()[b.place.slot].load(std::memory_order_acquire);
  const bool is_closed = slides && shm::window::second::Gen(second) == shm::key::Gen(b.place.key);
  const uint64_t closed = is_closed ? shm::window::second::Closed(second) : 0;
  return {.is_ours = true,
          .end_ns = shm::window::EndNs(TermsOf(b), w, slides),
          .most = static_cast<int64_t>(shm::window::TokensOf(shm::window::Count(w), scale)),
          .most_closed = static_cast<int64_t>(shm::window::TokensOf(closed, scale))};
}

void NoteWindowUse(Bucket& b, int64_t tokens, const WindowSeen& seen) {
  const bool slides = b.kind == shm::Kind::kSlidingWindow;
  const uint64_t length_ns = TermsOf(b).length_ns;
  const uint64_t end_ns = seen.is_ours ? seen.end_ns : b.window_end_ns;
  if (end_ns > b.window_end_ns + b.limit.period_ns / 2) {
    // The next has begun; of what went before only the window right before it matters.
    const bool follows = end_ns - b.window_end_ns < length_ns + length_ns / 2;
    b.in_closed = slides && follows ? b.in_window : 0;
    b.in_window = 0;
  }
  b.window_end_ns = end_ns;
  b.in_window += tokens;
  if (!seen.is_ours || b.in_window <= seen.most) return;
  b.in_closed = std::min(b.in_closed + (b.in_window - seen.most), seen.most_closed);
  b.in_window = seen.most;
}

// At first what they ask for, or used at most at once in the window before; then what they used in
// one of the last two times, which is nothing when the window is used up.
int64_t NoteTold(Bucket& b, const BatchItem& item, const BucketState& state, uint64_t interval_ns,
                 uint64_t now_ns) {
  const uint64_t end_ns = now_ns + state.debt_us * 1000;
  const uint64_t half_ns = b.limit.period_ns / 2;
  const bool is_same = b.told_end_ns + half_ns > end_ns && b.told_end_ns < end_ns + half_ns;
  if (!is_same) {
    const bool follows = end_ns > b.told_end_ns && end_ns < b.told_end_ns + 3 * half_ns;
    b.told_own_closed = follows ? b.told_own : 0;
    const auto asked = static_cast<int64_t>(b.others * static_cast<double>(interval_ns) * 1e-9);
    b.told_own = b.told_others = 0;
    b.told_added = std::max(asked, std::exchange(b.told_most, 0));
  }
  b.told_own += item.in_window;
  b.told_own_closed += item.in_closed;
  const int64_t others = std::max<int64_t>(state.in_window - b.told_own, 0);
  const int64_t added = std::max<int64_t>(others - b.told_others, 0);
  b.told_end_ns = end_ns;
  b.told_all = state.in_window;
  b.told_others = others;
  b.told_most = std::max(b.told_most, added);
  return std::max(added, is_same ? std::exchange(b.told_added, added) : b.told_added);
}

void FoldWindow(const Bucket& b, const BucketState& state, int64_t on_the_way,
                const shm::MappedBuckets& buckets, const std::atomic<uint64_t>* ends,
                uint64_t now_ns) {
  shm::window::Terms terms = TermsOf(b);
  terms.ends = ends;
  shm::window::FoldWindow(
      buckets.slots()[b.place.slot], buckets.second()[b.place.slot], b.place.key, terms, now_ns,
      {.left_ns = std::min(state.debt_us, shm::kMaxSpanNs / 1000) * 1000,
       .current = state.in_window,
       .closed = state.in_closed,
       .on_the_way = on_the_way},
      {.tokens = b.in_window + b.again, .end_ns = b.window_end_ns}, b.inv_share);
}

BucketState DatedState(const Bucket& b, const BucketState& told, uint64_t redis_us,
                       uint64_t now_ns) {
  BucketState state = told;
  state.in_closed = 0;  // its begin
  const config::CalendarTable::Entry* entry =
      b.calendar->EndingAt(static_cast<int64_t>(redis_us + told.debt_us));
  const bool is_open = told.debt_us != 0 && entry != nullptr && entry->end_ns > now_ns;
  state.debt_us = is_open ? (entry->end_ns - now_ns) / 1000 : 0;
  if (!is_open) state.in_window = 0;
  return state;
}

// The rule in aux is a hint, and so is the key: who takes it for another's finds no window there
// that ends just so. Both order nothing. The CAS pairs with the load of ReadPair() in
// window_slot.h.
void MoveWindows(const shm::MappedBuckets& buckets, const config::CompiledRules& former,
                 const config::CompiledRules& now) {
  for (uint64_t i = 0; i < buckets.geometry().capacity; ++i) {
    shm::Slot& slot = buckets.slots()[i];
    const uint64_t key = slot.key.load(std::memory_order_relaxed);
    if (shm::key::Fp(key) == 0 || shm::key::KindOf(key) != shm::Kind::kFixedWindow) continue;
    const uint16_t id = shm::aux::Rule(slot.aux.load(std::memory_order_relaxed));
    const config::CompiledRule* was = former.ById(id);
    const config::CompiledRule* is = was == nullptr ? nullptr : now.Find(was->label);
    if (is == nullptr || was->calendar == nullptr || is->calendar == nullptr) continue;
    uint64_t w = slot.word.load(std::memory_order_acquire);
    while (!shm::word::IsDead(w)) {
      const uint64_t end_ns =
          shm::window::Ceil(config::Moved(*was->calendar, *is->calendar, shm::window::TimeNs(w)));
      const uint64_t moved = shm::window::Make(end_ns, shm::window::Count(w));
      const bool is_bound = was->calendar->Near(shm::window::TimeNs(w)) != nullptr;
      if (!is_bound || moved == w ||
          slot.word.compare_exchange_weak(w, moved, std::memory_order_acq_rel)) {
        break;
      }
    }
  }
}

void NoteLogUse(Bucket& b, int64_t tokens, uint64_t now_ns) {
  const uint64_t length_ns = shm::window::LengthNs(b.limit.period_ns);
  if (now_ns >= b.window_end_ns) {
    const bool follows = now_ns < b.window_end_ns + length_ns;
    b.in_closed = follows ? b.in_window : 0;
    b.in_window = 0;
    b.window_end_ns = (follows ? b.window_end_ns : now_ns) + length_ns;
  }
  b.in_window += tokens;
}

// The second word is compared, and was read before the key: who has the slot meanwhile, and a use
// for it, has changed it. Its loads and CAS pair with those of who began the tenancy.
void FoldLog(Bucket& b, const BucketState& state, int64_t on_the_way,
             const shm::MappedBuckets& buckets, uint64_t now_ns) {
  const uint64_t length_ns = shm::window::LengthNs(b.limit.period_ns);
  const uint64_t left_ns =
      std::min(std::min(state.debt_us, shm::kMaxSpanNs / 1000) * 1000, length_ns);
  const uint64_t end_ns = now_ns + (left_ns != 0 ? left_ns : length_ns);
  if (left_ns != 0 && (b.in_window == 0 || b.window_end_ns + length_ns / 2 > end_ns)) {
    b.window_end_ns = end_ns;
  }
  const auto of = [](int64_t tokens) {
    return static_cast<uint64_t>(std::max<int64_t>(tokens, 0));
  };
  const uint64_t current = left_ns == 0 ? 0 : of(state.in_window - b.told_own) + of(on_the_way) / 2;
  const uint64_t closed = left_ns == 0 ? 0 : of(state.in_closed - b.told_own_closed);
  auto& second = buckets.second()[b.place.slot];
  uint64_t s = second.load(std::memory_order_acquire);
  if (buckets.slots()[b.place.slot].key.load(std::memory_order_acquire) != b.place.key) return;
  second.compare_exchange_strong(
      s, shm::logs::others::Make(shm::key::Gen(b.place.key), end_ns, length_ns, current, closed),
      std::memory_order_acq_rel);
}

uint64_t WindowDebtNs(const Bucket& b, const BucketState& state) {
  const auto tokens = static_cast<uint64_t>(state.in_window);
  return std::min(tokens, b.limit.limit) * b.limit.interval_ns;
}

}  // namespace sluice::reconcile
