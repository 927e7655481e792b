#include "shm/segment.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <boost/interprocess/mapped_region.hpp>
#include <utility>

#include "shm/memfd.h"

namespace sluice::shm {
namespace {

namespace bip = boost::interprocess;

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

// All that Boost asks of a mappable object.
struct FdMapping {
  int fd;
  bip::mapping_handle_t get_mapping_handle() const {
    bip::mapping_handle_t handle;
    handle.handle = fd;
    handle.is_xsi = false;
    return handle;
  }
};

// An address range that nothing stands in yet, `align`ed; null when there is none.
char* ReserveAligned(uint64_t bytes, uint64_t align) {
  void* raw =
      mmap(nullptr, bytes + align, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (raw == MAP_FAILED) return nullptr;
  char* begin = static_cast<char*>(raw);
  const uint64_t skip = (align - reinterpret_cast<uintptr_t>(raw) % align) % align;
  if (skip > 0) munmap(begin, skip);
  if (skip < align) munmap(begin + skip + bytes, align - skip);
  return begin + skip;
}

}  // namespace

void OwnedFd::Reset(int fd) {
  const int old = fd_;
  fd_ = fd;
  if (old >= 0) close(old);
}

// --- Mapping -------------------------------------------------------------------------------------

Mapping::Mapping() = default;
Mapping::~Mapping() = default;

Mapping::Mapping(Mapping&& other) noexcept { *this = std::move(other); }

Mapping& Mapping::operator=(Mapping&& other) noexcept {
  region_ = std::move(other.region_);
  data_ = std::exchange(other.data_, nullptr);
  bytes_ = std::exchange(other.bytes_, 0);
  writable_ = other.writable_;
  return *this;
}

SegmentStatus Mapping::Map(int fd, uint64_t bytes, bool writable, uint64_t align) {
  char* at = nullptr;
  if (align != 0) {
    at = ReserveAligned(bytes, align);
    if (at == nullptr) return FailErrno(SegmentError::kMapFailed);
  }
  SegmentStatus failed;
  try {
    const auto mode = writable ? bip::read_write : bip::read_only;
    const auto options = at != nullptr ? MAP_FIXED : bip::default_map_options;
    region_ = std::make_unique<bip::mapped_region>(FdMapping{fd}, mode, 0, bytes, at, options);
    data_ = static_cast<char*>(region_->get_address());
    bytes_ = bytes;
    writable_ = writable;
    return Ok();
  } catch (const bip::interprocess_exception& e) {
    failed = {SegmentError::kMapFailed, e.get_native_error()};
  } catch (...) {
    failed = {SegmentError::kNoMemory, ENOMEM};
  }
  if (at != nullptr) munmap(at, bytes);
  return failed;
}

bool Mapping::Vacate() {
  if (data_ == nullptr) return false;
  const int protection = writable_ ? PROT_READ | PROT_WRITE : PROT_READ;
  return mmap(data_, bytes_, protection, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
              -1, 0) != MAP_FAILED;
}

// --- buckets -------------------------------------------------------------------------------------

SegmentStatus MappedBuckets::Map(int fd, uint64_t capacity, uint32_t owner_uid, LogShape logs) {
  if (!IsValidCapacity(capacity) || !IsValidLogs(logs, capacity)) {
    return Fail(SegmentError::kBadGeometry);
  }
  uint64_t bytes = 0;
  if (const SegmentStatus s = CheckFd(fd, owner_uid, &bytes); !s.ok()) return s;
  const BucketGeometry geometry = GeometryFor(capacity, logs);
  if (bytes != geometry.bytes) return Fail(SegmentError::kTruncated);
  Mapping mapping;
  if (const SegmentStatus s = mapping.Map(fd, bytes, true, kHugePageBytes); !s.ok()) return s;
  mapping_ = std::move(mapping);
  geometry_ = geometry;
  return Ok();
}

bool MappedBuckets::Collapse() {
  const int saved = errno;
  const bool done = madvise(mapping_.data(), mapping_.bytes(), MADV_COLLAPSE) == 0;
  errno = saved;
  return done;
}

SegmentStatus BucketsOwner::Create(uint64_t capacity, LogShape logs) {
  OwnedFd fd;
  const uint64_t bytes = GeometryFor(capacity, logs).bytes;
  if (const SegmentStatus s = MakeMemfd("sluice-buckets", 0600, bytes, &fd); !s.ok()) return s;
  MappedBuckets buckets;
  if (const SegmentStatus s = buckets.Map(fd.get(), capacity, geteuid(), logs); !s.ok()) return s;
  buckets.Collapse();
  for (uint64_t i = 0; i < capacity; ++i) {  // orders nothing: nobody else has the segment yet
    buckets.slots()[i].used.store(used::Make(0, 0), std::memory_order_relaxed);
  }
  for (uint32_t i = 0; i < kMaxRules; ++i) {
    buckets.overflow()[i].used.store(used::Make(0, 0), std::memory_order_relaxed);
  }
  fd_ = std::move(fd);
  buckets_ = std::move(buckets);
  return Ok();
}

SegmentStatus BucketsOwner::Adopt(OwnedFd fd, uint64_t capacity, LogShape logs) {
  MappedBuckets buckets;
  if (const SegmentStatus s = buckets.Map(fd.get(), capacity, geteuid(), logs); !s.ok()) return s;
  buckets.Collapse();
  fd_ = std::move(fd);
  buckets_ = std::move(buckets);
  return Ok();
}

}  // namespace sluice::shm
