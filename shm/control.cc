// The control segment: the daemon's side, and at the end a client's.
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "shm/memfd.h"
#include "shm/segment.h"

namespace sluice::shm {
namespace {

bool ReadBootId(uint8_t out[16]) {
  const int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
  if (fd < 0) return false;
  char text[64] = {};
  const ssize_t n = read(fd, text, sizeof text - 1);
  close(fd);
  if (n < 36) return false;
  size_t nibbles = 0;
  uint8_t id[16] = {};
  for (ssize_t i = 0; i < n && nibbles < 32; ++i) {
    const char c = text[i];
    const int value = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
    if (value < 0) continue;
    id[nibbles / 2] = static_cast<uint8_t>(id[nibbles / 2] << 4 | value);
    ++nibbles;
  }
  if (nibbles != 32) return false;
  memcpy(out, id, sizeof id);
  return true;
}

// Reads the header once, into private memory (a relaxed load there orders nothing), and checks all.
SegmentStatus CheckControl(int fd, uint32_t owner_uid, SegmentInfo* info) {
  uint64_t bytes = 0;
  if (const SegmentStatus s = CheckFd(fd, owner_uid, &bytes); !s.ok()) return s;
  alignas(ControlHeader) char page[sizeof(ControlHeader)];
  if (pread(fd, page, sizeof page, 0) != static_cast<ssize_t>(sizeof page)) {
    return Fail(SegmentError::kTruncated);
  }
  const auto& header = *reinterpret_cast<const ControlHeader*>(page);
  if (header.magic.load(std::memory_order_relaxed) != kMagic) return Fail(SegmentError::kBadMagic);
  if (header.abi_major != kAbiMajor) return Fail(SegmentError::kOtherVersion);
  if (header.layout_hash != kLayoutHash) return Fail(SegmentError::kOtherLayout);
  if (bytes != kControlBytes) return Fail(SegmentError::kTruncated);
  uint8_t boot_id[16];
  // Without /proc the handshake's comparison of clocks has to do.
  if (ReadBootId(boot_id) && memcmp(boot_id, header.boot_id, sizeof boot_id) != 0) {
    return Fail(SegmentError::kOtherBoot);
  }
  const LogShape logs = {static_cast<uint32_t>(std::min<uint64_t>(header.log_rows, ~0u)),
                         header.log_entries};
  if (!IsValidCapacity(header.capacity) || !IsValidLogs(logs, header.capacity) ||
      header.shard_count == 0 || header.shard_count > kMaxShards) {
    return Fail(SegmentError::kBadGeometry);
  }
  struct stat st;
  if (fstat(fd, &st) != 0) return FailErrno(SegmentError::kNotASegment);
  info->generation = header.generation;
  info->capacity = header.capacity;
  info->logs = logs;
  info->shard_count = header.shard_count;
  info->hash_key = ExpandSalt(header.hash_salt);
  info->created_ns = header.created_ns;
  info->owner_uid = st.st_uid;
  return Ok();
}

bool FillRandom(void* out, size_t bytes) {
  return getrandom(out, bytes, 0) == static_cast<ssize_t>(bytes);  // whole up to 256 bytes
}

const PolicyHeader& HeaderOf(const char* policy) {
  return *reinterpret_cast<const PolicyHeader*>(policy);
}

// Equal but for their place in the sequence.
bool SamePolicy(std::string_view a, std::string_view b) {
  constexpr size_t kSeq = offsetof(PolicyHeader, seq);
  constexpr size_t kAfterSeq = kSeq + sizeof(PolicyHeader::seq);
  return a.size() == b.size() && memcmp(a.data(), b.data(), kSeq) == 0 &&
         memcmp(a.data() + kAfterSeq, b.data() + kAfterSeq, a.size() - kAfterSeq) == 0;
}

uint64_t LargestDebtNs(const char* policy) {
  const PolicyView view(policy);
  uint64_t debt = 2 * kMaxHoldNs;  // by a clock that lags it is not wild either
  for (uint32_t i = 0; i < view.rule_count(); ++i) {
    const Limit& limit = view.rule(i).numbers.limit;
    debt = std::max(debt, limit.tau_ns + limit.debt_max_ns);
  }
  return debt;
}

}  // namespace

ControlWriter::ControlWriter() { std::fill_n(pinned_, kPinnedPolicies, -1); }
ControlWriter::~ControlWriter() = default;
ControlWriter::ControlWriter(ControlWriter&&) noexcept = default;
ControlWriter& ControlWriter::operator=(ControlWriter&&) noexcept = default;

SegmentStatus ControlWriter::Map() {
  const SegmentStatus status = mapping_.Map(fd_.get(), kControlBytes, true, 0);
  header_ = reinterpret_cast<ControlHeader*>(mapping_.data());
  return status;
}

SegmentStatus ControlWriter::Create(const ControlOptions& options, uint64_t now_ns) {
  if (!IsValidCapacity(options.capacity) || !IsValidLogs(options.logs, options.capacity) ||
      options.shard_count == 0 || options.shard_count > kMaxShards) {
    return Fail(SegmentError::kBadGeometry);
  }
  uint64_t random[3] = {options.seed[0], options.seed[1], options.seed[2]};
  const bool given = random[0] != 0 && random[1] != 0 && random[2] != 0;
  if (!given && !FillRandom(random, sizeof random)) return FailErrno(SegmentError::kNoMemory);
  if (const SegmentStatus s = MakeMemfd("sluice-control", 0400, kControlBytes, &fd_); !s.ok()) {
    return s;
  }
  if (const SegmentStatus s = Map(); !s.ok()) return s;
  ControlHeader& h = *header_;
  h.abi_major = kAbiMajor;
  h.abi_minor = kAbiMinor;
  h.layout_hash = kLayoutHash;
  ReadBootId(h.boot_id);
  h.generation = random[0] | 1;  // never 0
  h.capacity = options.capacity;
  h.log_rows = options.logs.rows;
  h.log_entries = options.logs.entries;
  h.shard_count = options.shard_count;
  h.hash_salt[0] = random[1];
  h.hash_salt[1] = random[2];
  h.daemon_pid = static_cast<uint64_t>(getpid());
  h.daemon_uid = geteuid();
  h.created_ns = now_ns;  // what is relaxed here orders nothing: Publish() comes after it
  h.incarnation.store(1, std::memory_order_relaxed);
  h.grace_ns.store(options.grace_ns, std::memory_order_relaxed);
  h.reconciling.store(options.reconciling, std::memory_order_relaxed);
  h.heartbeat_ns.store(now_ns, std::memory_order_relaxed);
  info_ = {.generation = h.generation,
           .capacity = h.capacity,
           .logs = options.logs,
           .shard_count = h.shard_count,
           .hash_key = ExpandSalt(h.hash_salt),
           .created_ns = now_ns,
           .owner_uid = geteuid()};
  return Ok();
}

SegmentStatus ControlWriter::Adopt(OwnedFd fd, const ControlOptions& options, uint64_t now_ns) {
  SegmentInfo info;
  if (const SegmentStatus s = CheckControl(fd.get(), geteuid(), &info); !s.ok()) return s;
  if (info.owner_uid != geteuid()) return Fail(SegmentError::kForeignOwner);
  if (info.capacity != options.capacity || info.shard_count != options.shard_count ||
      info.logs.rows < options.logs.rows || info.logs.entries < options.logs.entries) {
    return Fail(SegmentError::kOtherShards);
  }
  fd_ = std::move(fd);
  if (const SegmentStatus s = Map(); !s.ok()) return s;
  info_ = info;
  if (policy_seq() != 0 && !IsValidPolicy(policy())) return Fail(SegmentError::kBadPolicy);
  ListEarlier();
  ControlHeader& h = *header_;
  h.daemon_pid = static_cast<uint64_t>(getpid());
  // What is relaxed orders nothing; the incarnation, stored last, pairs with a client's
  // Incarnation().
  h.grace_ns.store(options.grace_ns, std::memory_order_relaxed);
  SetReconciling(options.reconciling);
  Beat(now_ns);
  SetStopped(false);
  CountEmergencies();
  h.incarnation.fetch_add(1, std::memory_order_release);
  return Ok();
}

LogShape LogsOf(int control_fd) {
  SegmentInfo info;
  return CheckControl(control_fd, geteuid(), &info).ok() ? info.logs : LogShape{};
}

void ControlWriter::Publish() { header_->magic.store(kMagic, std::memory_order_release); }

OwnedFd ControlWriter::DupReadOnly() const {
  char path[32];
  snprintf(path, sizeof path, "/proc/self/fd/%d", fd_.get());
  return OwnedFd(open(path, O_RDONLY | O_CLOEXEC));
}

char* ControlWriter::buffer(uint32_t i) const {
  return mapping_.data() + kPolicyOffset + uint64_t{i % kPolicyBuffers} * kPolicyBufferBytes;
}

uint64_t ControlWriter::superseded_ns(uint32_t i) const {
  uint64_t stamp;
  memcpy(&stamp, buffer(i) + kMaxPolicyBytes, sizeof stamp);
  return stamp;
}

uint64_t ControlWriter::policy_seq() const {  // by its one writer a relaxed load orders nothing
  return policy_word::Seq(header_->policy.load(std::memory_order_relaxed));
}

std::string_view ControlWriter::policy() const {
  const uint64_t word = header_->policy.load(std::memory_order_relaxed);
  if (policy_word::Seq(word) == 0) return {};
  const char* bytes = buffer(policy_word::Buffer(word));
  return {bytes, std::min(HeaderOf(bytes).bytes, kMaxPolicyBytes)};
}

bool ControlWriter::IsPinned(uint32_t i) const {
  return std::find(pinned_, pinned_ + kPinnedPolicies, static_cast<int>(i)) !=
         pinned_ + kPinnedPolicies;
}

// After an adoption: the policies before the one in force are those with a lower seq, whole.
void ControlWriter::ListEarlier() {
  std::fill_n(pinned_, kPinnedPolicies, -1);
  const uint64_t word = header_->policy.load(std::memory_order_relaxed);
  if (policy_word::Seq(word) == 0) return;
  uint64_t below = HeaderOf(buffer(policy_word::Buffer(word))).seq;
  for (int& pinned : pinned_) {
    uint64_t best = 0;
    for (uint32_t i = 0; i < kPolicyBuffers; ++i) {
      const PolicyHeader& h = HeaderOf(buffer(i));
      if (h.seq > best && h.seq < below && h.bytes <= kMaxPolicyBytes &&
          IsValidPolicy({buffer(i), h.bytes})) {
        best = h.seq;
        pinned = static_cast<int>(i);
      }
    }
    if (best == 0) return;
    below = best;
  }
}

// A buffer that no reader can still be in: neither in force, nor pinned, and rested. -1: none yet.
int ControlWriter::PickBuffer(uint64_t now_ns, uint64_t* retry_after_ns) const {
  const uint64_t word = header_->policy.load(std::memory_order_relaxed);
  uint64_t wait_ns = kPolicyRestNs;
  for (uint32_t i = 0; i < kPolicyBuffers; ++i) {
    const bool in_force = policy_word::Seq(word) != 0 && policy_word::Buffer(word) == i;
    if (in_force || IsPinned(i)) continue;
    const uint64_t stamp = superseded_ns(i);
    const uint64_t rested = stamp == 0 ? kPolicyRestNs : now_ns > stamp ? now_ns - stamp : 0;
    if (rested >= kPolicyRestNs) return static_cast<int>(i);
    wait_ns = std::min(wait_ns, kPolicyRestNs - rested);
  }
  if (retry_after_ns != nullptr) *retry_after_ns = wait_ns;
  return -1;
}

void ControlWriter::Switch(uint32_t to, uint64_t seq, uint64_t now_ns) {  // pairs with BuildPlan
  const uint64_t word = header_->policy.load(std::memory_order_relaxed);
  // Stamped before the switch: a crash in between leaves a stamp on the buffer in force, which is
  // stamped again when it is superseded.
  if (policy_word::Seq(word) != 0) {
    memcpy(buffer(policy_word::Buffer(word)) + kMaxPolicyBytes, &now_ns, sizeof now_ns);
  }
  header_->policy.store(policy_word::Make(seq, to), std::memory_order_release);
}

SegmentStatus ControlWriter::PublishPolicy(std::string_view policy, uint64_t now_ns,
                                           uint64_t* retry_after_ns) {
  if (retry_after_ns != nullptr) *retry_after_ns = 0;
  if (policy.size() > kMaxPolicyBytes) return Fail(SegmentError::kPolicyTooLarge);
  if (!IsValidPolicy(policy)) return Fail(SegmentError::kBadPolicy);
  const uint64_t word = header_->policy.load(std::memory_order_relaxed);
  if (policy_word::Seq(word) != 0 && SamePolicy(policy, this->policy())) return Ok();
  const int to = PickBuffer(now_ns, retry_after_ns);
  if (to < 0) return Fail(SegmentError::kPoliciesResting);

  const uint64_t seq = policy_word::Seq(word) + 1;
  char* bytes = buffer(static_cast<uint32_t>(to));
  memcpy(bytes, policy.data(), policy.size());
  memcpy(bytes + offsetof(PolicyHeader, seq), &seq, sizeof seq);
  // Raised before the policy is seen: a word that the new rules allow must never look wild to a
  // process that reuses slots.
  const uint64_t debt = LargestDebtNs(bytes);
  if (debt > header_->max_debt_ns.load(std::memory_order_relaxed)) {
    header_->max_debt_ns.store(debt, std::memory_order_seq_cst);
  }
  Switch(static_cast<uint32_t>(to), seq, now_ns);
  if (policy_word::Seq(word) != 0) {
    std::copy_backward(pinned_, pinned_ + kPinnedPolicies - 1, pinned_ + kPinnedPolicies);
    pinned_[0] = static_cast<int>(policy_word::Buffer(word));
  }
  return Ok();
}

SegmentStatus ControlWriter::RollbackPolicy(uint64_t now_ns) {
  if (pinned_[0] < 0) return Fail(SegmentError::kNoEarlierPolicy);
  // seq only grows: the old pair of seq and buffer again could let a reader accept a torn copy.
  Switch(static_cast<uint32_t>(pinned_[0]), policy_seq() + 1, now_ns);
  std::copy(pinned_ + 1, pinned_ + kPinnedPolicies, pinned_);
  pinned_[kPinnedPolicies - 1] = -1;
  return Ok();
}

void ControlWriter::SetShard(uint32_t shard, ShardMode mode, uint64_t since_ns) {
  if (shard >= kMaxShards) return;
  std::atomic<uint64_t>& count = header_->emergency_shards;
  const uint64_t word = shard_state::Make(mode, since_ns);
  // Checks read both as hints, relaxed. Release keeps the count from falling before the shard's
  // word has changed; it pairs with shard()'s load, for who counts anew.
  if (shard_state::IsEmergency(word)) count.fetch_add(1, std::memory_order_release);
  const uint64_t before = shard_states()[shard].exchange(word, std::memory_order_acq_rel);
  if (shard_state::IsEmergency(before)) count.fetch_sub(1, std::memory_order_release);
}

// After a daemon that may have been killed in the middle of SetShard.
void ControlWriter::CountEmergencies() {
  uint64_t count = 0;
  // What a daemon that was killed had forced ends with it, and the shards of other regions are
  // judged anew, where there still are some.
  for (uint32_t i = info_.shard_count; i < kMaxShards; ++i) {
    shard_states()[i].store(0, std::memory_order_release);  // pairs with shard()
  }
  for (uint32_t i = 0; i < info_.shard_count; ++i) {
    count += shard_state::IsEmergency(shard(i)) ? 1 : 0;
  }
  header_->emergency_shards.store(count, std::memory_order_release);
}

// A hint: orders nothing.
void ControlWriter::SetHosts(uint64_t hosts) {
  header_->hosts.store(hosts, std::memory_order_relaxed);
}

// Each end tells all by itself, so a reader amid this finds one that stood or one that stands:
// relaxed orders nothing.
void ControlWriter::SetCalendar(uint32_t place, const std::vector<uint64_t>& ends_ns) {
  std::atomic<uint64_t>* ends = header_->calendar_ends[place % kMaxCalendars];
  for (uint32_t i = 0; i < kCalendarEnds; ++i) {
    ends[i].store(i < ends_ns.size() ? ends_ns[i] : 0, std::memory_order_relaxed);
  }
}

uint64_t ControlWriter::shard(uint32_t i) const {
  return shard_states()[i % kMaxShards].load(std::memory_order_acquire);
}

void ControlWriter::Beat(uint64_t now_ns) {
  header_->heartbeat_ns.store(now_ns, std::memory_order_release);
}
void ControlWriter::SetStopped(bool stopped) {
  header_->stopped.store(stopped, std::memory_order_release);
}
void ControlWriter::SetReconciling(bool reconciling) {
  header_->reconciling.store(reconciling, std::memory_order_release);
}

// --- a client's side -----------------------------------------------------------------------------

SegmentStatus ControlReader::Map(int fd, uint32_t owner_uid) {
  const int flags = fcntl(fd, F_GETFL);
  if (flags < 0) return FailErrno(SegmentError::kNotASegment);
  if ((flags & O_ACCMODE) != O_RDONLY) return Fail(SegmentError::kWritable);
  SegmentInfo info;
  if (const SegmentStatus s = CheckControl(fd, owner_uid, &info); !s.ok()) return s;
  Mapping mapping;
  if (const SegmentStatus s = mapping.Map(fd, kControlBytes, false, 0); !s.ok()) return s;
  // All pages now, so that the first check after a change of the rules meets no page fault. Older
  // kernels do not know how; then it does.
  madvise(mapping.data(), kControlBytes, MADV_POPULATE_READ);
  mapping_ = std::move(mapping);
  info_ = info;
  return Ok();
}

uint64_t Incarnation(const ControlHeader& header) {  // pairs with Adopt's increment
  return header.incarnation.load(std::memory_order_acquire);
}

}  // namespace sluice::shm
