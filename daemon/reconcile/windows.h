// Windows' side of the books: in which window use was harvested, and Redis' state of one into its
// words. The windows themselves are in shm/window.h. Single-threaded.
#pragma once

#include <cstdint>

#include "daemon/reconcile/batch.h"
#include "daemon/reconcile/ledger.h"
#include "shm/segment.h"

namespace sluice::reconcile {

// What a slot's words say of its window, in which use was harvested from it just now.
struct WindowSeen {
  bool is_ours = false;  // false: the slot has passed on, and the rest says nothing
  uint64_t end_ns = 0;
  int64_t most = 0;         // tokens that it can have counted
  int64_t most_closed = 0;  // the one before, where windows slide
};
WindowSeen LookAtWindow(const Bucket& b, const shm::MappedBuckets& buckets);

// Tokens (less than 0: refunds) were taken from the slot of which `seen` tells: the bucket's, or
// that of the one whose use it tells another region. More than the window can have counted was used
// in the one before, where windows slide at most what that counted, or earlier: before a window's
// end that this harvest is the first to come after, or while no daemon ran.
void NoteWindowUse(Bucket& b, int64_t tokens, const WindowSeen& seen);

// Takes in what Redis told when the batch with `item` was answered. Returns how many tokens other
// hosts may have used and not reported, at most, where each reports once an interval.
int64_t NoteTold(Bucket& b, const BatchItem& item, const BucketState& state, uint64_t interval_ns,
                 uint64_t now_ns);

// Sets the slot's words by what Redis told and what is not reported yet. Precondition: the bucket
// stands in the segment, and its share is computed. `ends`: of its calendar; null: it follows none.
void FoldWindow(const Bucket& b, const BucketState& state, int64_t on_the_way,
                const shm::MappedBuckets& buckets, const std::atomic<uint64_t>* ends,
                uint64_t now_ns);

// Of a bucket by the calendar: what Redis, at its `redis_us`, told of its window as this host has
// it. Nothing where Redis has another window.
BucketState DatedState(const Bucket& b, const BucketState& told, uint64_t redis_us,
                       uint64_t now_ns);

// The words of all windows by the calendar, where `now` has other ends than `former`: so that
// nobody takes a window for over that is not, or the other way round.
void MoveWindows(const shm::MappedBuckets& buckets, const config::CompiledRules& former,
                 const config::CompiledRules& now);

// The same for a sliding log, whose word tells of no window: the host's is the one that Redis told
// of, or begins with this use.
void NoteLogUse(Bucket& b, int64_t tokens, uint64_t now_ns);

// Says beside a sliding log's slot what the others took, and takes over the window that Redis told
// of. Precondition as of FoldWindow().
void FoldLog(Bucket& b, const BucketState& state, int64_t on_the_way,
             const shm::MappedBuckets& buckets, uint64_t now_ns);

// What Redis told of the open window, as a debt in ns of the limit's pace: how full it is.
uint64_t WindowDebtNs(const Bucket& b, const BucketState& state);

}  // namespace sluice::reconcile
