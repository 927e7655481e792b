// The two segments as memfds: made, sealed, mapped, adopted and checked. Layout: layout.h.
//
//   ControlWriter   the daemon's writable control segment; publishes policies and shard states
//   ControlReader   a client's read-only control segment
//   BucketsOwner    the daemon's bucket segment, the file descriptor kept
//   MappedBuckets   a mapping of a bucket segment, for daemon and client alike
//
// Nothing here throws, and nothing needs Abseil. What a client maps is checked once, copied into
// private memory (SegmentInfo) and never read again: the daemon may be another build, and the
// bucket segment may be filled with anything by anyone.
//
// Threads: objects are confined to one thread unless a function says otherwise; what they point to
// is shared by its nature.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "shm/hash.h"
#include "shm/layout.h"
#include "shm/policy_buffer.h"
#include "shm/segment_error.h"

namespace boost::interprocess {
class mapped_region;
}

namespace sluice::shm {

// What is known of a segment pair, in private memory.
struct SegmentInfo {
  uint64_t generation = 0;
  uint64_t capacity = 0;
  LogShape logs;
  uint32_t shard_count = 0;
  HashKey hash_key;
  uint64_t created_ns = 0;
  uint32_t owner_uid = 0;
};

// How old a heartbeat may be before the daemon counts as gone: ten missed beats.
inline constexpr uint64_t kHeartbeatNs = 200'000'000;
inline constexpr uint64_t kHeartbeatFreshNs = 1'000'000'000;

// Owns one mapping. Empty after a failure. Movable.
class Mapping {
 public:
  Mapping();
  ~Mapping();
  Mapping(Mapping&&) noexcept;
  Mapping& operator=(Mapping&&) noexcept;

  // `align` 0: anywhere; else a power of two that the address is a multiple of.
  SegmentStatus Map(int fd, uint64_t bytes, bool writable, uint64_t align);

  // Gives the memory back but keeps the address range and its protection: whoever still reads or
  // writes there meets zeros, never a fault. Used for generations that are past.
  bool Vacate();

  char* data() const { return data_; }
  uint64_t bytes() const { return bytes_; }

 private:
  std::unique_ptr<boost::interprocess::mapped_region> region_;
  char* data_ = nullptr;
  uint64_t bytes_ = 0;
  bool writable_ = false;
};

// A descriptor that is closed with its owner.
class OwnedFd {
 public:
  OwnedFd() = default;
  explicit OwnedFd(int fd) : fd_(fd) {}
  OwnedFd(OwnedFd&& other) noexcept : fd_(other.Release()) {}
  OwnedFd& operator=(OwnedFd&& other) noexcept {
    Reset(other.Release());
    return *this;
  }
  ~OwnedFd() { Reset(-1); }

  int get() const { return fd_; }
  int Release() {
    const int fd = fd_;
    fd_ = -1;
    return fd;
  }
  // Forgets before it closes: a process forked in between must not close a stranger's descriptor.
  void Reset(int fd);

 private:
  int fd_ = -1;
};

// The arrays of a mapped bucket segment.
class MappedBuckets {
 public:
  // Checks `fd` against the capacity and the logs' shape (size, seals, owner `owner_uid`) and maps
  // it writable, on a 2 MiB border. Does not keep `fd`.
  SegmentStatus Map(int fd, uint64_t capacity, uint32_t owner_uid, LogShape logs = {});

  // MADV_COLLAPSE: huge pages, at best effort; worth 9-25 % on cold checks. True when it worked.
  bool Collapse();
  bool Vacate() { return mapping_.Vacate(); }

  const BucketGeometry& geometry() const { return geometry_; }
  uint64_t capacity() const { return geometry_.capacity; }
  Slot* slots() const { return At<Slot>(0); }
  std::atomic<uint64_t>* denied() const {
    return At<std::atomic<uint64_t>>(geometry_.denied_offset);
  }
  std::atomic<uint64_t>* second() const {
    return At<std::atomic<uint64_t>>(geometry_.second_offset);
  }
  std::atomic<uint64_t>* dirty() const { return At<std::atomic<uint64_t>>(geometry_.dirty_offset); }
  uint64_t dirty_words() const { return geometry_.capacity / 64; }
  std::atomic<uint64_t>* counters() const {  // [kCounters]
    return At<std::atomic<uint64_t>>(geometry_.counters_offset);
  }
  Slot* overflow() const { return At<Slot>(geometry_.overflow_offset); }
  // Denials by class, [kClassCells].
  std::atomic<uint64_t>* class_denied() const {
    return At<std::atomic<uint64_t>>(geometry_.classes_offset);
  }
  KeyText* texts() const { return At<KeyText>(geometry_.text_offset); }
  std::atomic<uint64_t>* log_entries() const {  // [logs.rows * logs.entries]
    return At<std::atomic<uint64_t>>(geometry_.logs_offset);
  }

 private:
  template <class T>
  T* At(uint64_t offset) const {
    return reinterpret_cast<T*>(mapping_.data() + offset);
  }

  Mapping mapping_;
  BucketGeometry geometry_;
};

// The daemon's bucket segment.
class BucketsOwner {
 public:
  // Makes a fresh one: allocated whole, sealed, every `used` cell at its bias, huge pages at best
  // effort. Precondition: IsValidCapacity(capacity).
  SegmentStatus Create(uint64_t capacity, LogShape logs = {});
  // Takes over one that an earlier daemon made. Owns `fd` from here on, also on failure.
  SegmentStatus Adopt(OwnedFd fd, uint64_t capacity, LogShape logs = {});

  int fd() const { return fd_.get(); }
  const MappedBuckets& buckets() const { return buckets_; }

 private:
  OwnedFd fd_;
  MappedBuckets buckets_;
};

struct ControlOptions {
  uint64_t capacity = 0;     // IsValidCapacity
  LogShape logs;             // IsValidLogs; adopted is also what has more
  uint32_t shard_count = 0;  // 1..kMaxShards
  uint64_t grace_ns = 0;     // ControlHeader::grace_ns
  bool reconciling = false;  // ControlHeader::reconciling
  // Generation and salt are drawn at random, unless all of this is not 0: a simulation repeats its
  // runs. Slots follow from the salt, and with them the order of everything.
  uint64_t seed[3] = {0, 0, 0};
};

// The daemon's control segment.
class ControlWriter {
 public:
  ControlWriter();
  ~ControlWriter();
  ControlWriter(ControlWriter&&) noexcept;
  ControlWriter& operator=(ControlWriter&&) noexcept;

  // Makes a fresh one with a random generation and salt. It is not published: the magic is 0.
  SegmentStatus Create(const ControlOptions& options, uint64_t now_ns);
  // Takes over one that an earlier daemon published: checks magic, version, layout, boot, owner,
  // seals, size, that capacity and shard count are those asked for, and the policy in force.
  // Owns `fd` from here on, also on failure. Sets grace and reconciling anew, clears `stopped`.
  SegmentStatus Adopt(OwnedFd fd, const ControlOptions& options, uint64_t now_ns);

  // Stores the magic, last and with release. Call it once a policy stands in it. Idempotent.
  void Publish();

  int fd() const { return fd_.get(); }
  // A read-only descriptor for a client: it can be mapped for reading only, and re-opened by
  // nobody but the daemon's user. The caller owns it; empty when /proc is not there.
  OwnedFd DupReadOnly() const;

  const SegmentInfo& info() const { return info_; }
  const ControlHeader& header() const { return *header_; }

  // --- policies: one thread only ---------------------------------------------------------------
  // Copies `policy` into a buffer that rested, writes its seq into it, raises max_debt, then
  // switches. kPoliciesResting: try again after *retry_after_ns (at most kPolicyRestNs; may be
  // null). A policy equal to the one in force but for seq is not published again.
  SegmentStatus PublishPolicy(std::string_view policy, uint64_t now_ns, uint64_t* retry_after_ns);
  // Back to the policy in force before, under a new seq. kNoEarlierPolicy when there is none.
  SegmentStatus RollbackPolicy(uint64_t now_ns);
  // 0: none published yet.
  uint64_t policy_seq() const;
  // The bytes in force; empty when none.
  std::string_view policy() const;

  // --- any thread ------------------------------------------------------------------------------
  // Keeps emergency_shards at least at the truth at each instant: raised before, lowered after.
  void SetShard(uint32_t shard, ShardMode mode, uint64_t since_ns);
  uint64_t shard(uint32_t i) const;  // a shard_state word
  void Beat(uint64_t now_ns);
  void SetStopped(bool stopped);
  void SetReconciling(bool reconciling);
  // How many hosts share limits; a hint for clients.
  void SetHosts(uint64_t hosts);
  // Who holds places, [kMaxHolders]; see HolderCell.
  HolderCell* holders() const {
    return reinterpret_cast<HolderCell*>(mapping_.data() + kHoldersOffset);
  }
  // Of the calendar at that place, from 0; `ends_ns` holds at most kCalendarEnds, rising.
  void SetCalendar(uint32_t place, const std::vector<uint64_t>& ends_ns);

 private:
  SegmentStatus Map();
  char* buffer(uint32_t i) const;
  std::atomic<uint64_t>* shard_states() const {
    return reinterpret_cast<std::atomic<uint64_t>*>(mapping_.data() + kShardStatesOffset);
  }
  uint64_t superseded_ns(uint32_t i) const;
  void Switch(uint32_t to, uint64_t seq, uint64_t now_ns);
  int PickBuffer(uint64_t now_ns, uint64_t* retry_after_ns) const;
  bool IsPinned(uint32_t i) const;
  void ListEarlier();
  void CountEmergencies();

  OwnedFd fd_;
  Mapping mapping_;
  ControlHeader* header_ = nullptr;
  SegmentInfo info_;
  int pinned_[kPinnedPolicies];  // buffers of earlier policies, latest first; -1: none
};

// The logs' shape of the pair whose control segment `fd` is; none where it cannot be adopted.
LogShape LogsOf(int control_fd);

// A client's control segment.
class ControlReader {
 public:
  // Checks everything and maps it for reading. `owner_uid` is the daemon's (SO_PEERCRED). Does not
  // keep `fd`.
  SegmentStatus Map(int fd, uint32_t owner_uid);
  bool Vacate() { return mapping_.Vacate(); }

  const SegmentInfo& info() const { return info_; }
  const ControlHeader* header() const {
    return reinterpret_cast<const ControlHeader*>(mapping_.data());
  }
  const std::atomic<uint64_t>* shard_states() const {
    return reinterpret_cast<const std::atomic<uint64_t>*>(mapping_.data() + kShardStatesOffset);
  }
  const char* policy_buffers() const { return mapping_.data() + kPolicyOffset; }

 private:
  Mapping mapping_;
  SegmentInfo info_;
};

// How often this control segment was taken over by a daemon, its first included; a client that
// sees it change makes its connection anew.
uint64_t Incarnation(const ControlHeader& header);

}  // namespace sluice::shm
