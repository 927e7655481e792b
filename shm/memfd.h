// What both segments are made of, and what is asked of one that somebody else made. For shm/ alone.
#pragma once

#include <errno.h>
#include <sys/types.h>

#include <cstdint>

#include "shm/segment.h"

namespace sluice::shm {

inline SegmentStatus Ok() { return {}; }
inline SegmentStatus Fail(SegmentError error) { return {error, 0}; }
inline SegmentStatus FailErrno(SegmentError error) { return {error, errno}; }

// Makes a memfd of `bytes`, allocated whole, that nobody can cut, grow or seal further.
SegmentStatus MakeMemfd(const char* name, mode_t mode, uint64_t bytes, OwnedFd* out);

// What holds for every segment that somebody else made. `bytes`: its size.
SegmentStatus CheckFd(int fd, uint32_t owner_uid, uint64_t* bytes);

}  // namespace sluice::shm
