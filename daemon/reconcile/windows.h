// Windows' side of the books: in which window use was harvested, and Redis' state of one into its
// words. The windows themselves are in shm/window.h. Single-threaded.
#pragma once

#include <cstdint>

#include "daemon/reconcile/batch.h"
#include "daemon/reconcile/ledger.h"
#include "shm/segment.h"

namespace sluice::reconcile {

// Tokens (less than 0: refunds) were taken from the bucket's slot, where the word says which window
// is open and how much of them it can have counted. More was used in the one before, where windows
// slide at most what that counted, or earlier: before a window's end that this harvest is the first
// to come after, or while no daemon ran.
void NoteWindowUse(Bucket& b, int64_t tokens, const shm::MappedBuckets& buckets);

// Takes in what Redis told when the batch with `item` was answered. Returns how many tokens other
// hosts may have used and not reported, at most, where each reports once an interval.
int64_t NoteTold(Bucket& b, const BatchItem& item, const BucketState& state, uint64_t interval_ns,
                 uint64_t now_ns);

// Sets the slot's words by what Redis told and what is not reported yet. Precondition: the bucket
// stands in the segment, and its share is computed.
void FoldWindow(const Bucket& b, const BucketState& state, int64_t on_the_way,
                const shm::MappedBuckets& buckets, uint64_t now_ns);

// What Redis told of the open window, as a debt in ns of the limit's pace: how full it is.
uint64_t WindowDebtNs(const Bucket& b, const BucketState& state);

}  // namespace sluice::reconcile
