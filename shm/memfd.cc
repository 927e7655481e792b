#include "shm/memfd.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <utility>

namespace sluice::shm {
namespace {

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U
#endif

// No client may shrink a segment (SIGBUS for all others), grow it, or add seals of its own.
// F_SEAL_FUTURE_WRITE stays out: it would bar a restarted daemon from mapping the control segment.
constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;

}  // namespace

SegmentStatus MakeMemfd(const char* name, mode_t mode, uint64_t bytes, OwnedFd* out) {
  OwnedFd fd(memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL));
  if (fd.get() < 0 && errno == EINVAL) {  // before Linux 6.3
    fd.Reset(memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING));
  }
  if (fd.get() < 0 || fchmod(fd.get(), mode) != 0) return FailErrno(SegmentError::kNoMemory);
  // Allocated now: a page that is missing later would be a SIGBUS in some client's check.
  const int full = posix_fallocate(fd.get(), 0, static_cast<off_t>(bytes));
  if (full != 0) return {SegmentError::kNoMemory, full};
  if (fcntl(fd.get(), F_ADD_SEALS, kSeals) != 0) return FailErrno(SegmentError::kSealFailed);
  *out = std::move(fd);
  return Ok();
}

SegmentStatus CheckFd(int fd, uint32_t owner_uid, uint64_t* bytes) {
  struct stat st;
  if (fstat(fd, &st) != 0) return FailErrno(SegmentError::kNotASegment);
  if (!S_ISREG(st.st_mode)) return Fail(SegmentError::kNotASegment);
  if (st.st_uid != owner_uid && st.st_uid != 0) return Fail(SegmentError::kForeignOwner);
  const int seals = fcntl(fd, F_GET_SEALS);
  if (seals < 0 || (seals & F_SEAL_SHRINK) == 0) return Fail(SegmentError::kNotSealed);
  *bytes = static_cast<uint64_t>(st.st_size);
  return Ok();
}

}  // namespace sluice::shm
