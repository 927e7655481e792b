#include "shm/segment.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

namespace sluice::shm {
namespace {

constexpr uint64_t kSecondNs = 1'000'000'000;
constexpr uint64_t kStartNs = 1000 * kSecondNs;
constexpr uint64_t kCapacity = 1024;
constexpr uid_t kStranger = 65534;
constexpr ControlOptions kOptions = {
    .capacity = kCapacity, .shard_count = 64, .grace_ns = kSecondNs, .reconciling = true};

// A whole policy with no groups; `tag` sets one apart from another.
std::string PolicyOf(uint64_t tag, uint64_t tau_ns = 0) {
  PolicyHeader header = {};
  header.magic = kPolicyMagic;
  header.version_hash = tag;
  RuleView rule = {};
  rule.numbers.limit.tau_ns = tau_ns;
  rule.numbers.limit.debt_max_ns = tau_ns;
  header.rule_count = 1;
  header.rules_offset = sizeof header;
  header.bytes = sizeof header + sizeof rule;
  std::string bytes(header.bytes, '\0');
  std::memcpy(bytes.data() + sizeof header, &rule, sizeof rule);
  std::memcpy(bytes.data(), &header, sizeof header);
  header.crc32 = PolicyCrc(bytes);
  std::memcpy(bytes.data(), &header, sizeof header);
  return bytes;
}

uint64_t TagOf(std::string_view policy) {
  PolicyHeader header;
  std::memcpy(&header, policy.data(), sizeof header);
  return header.version_hash;
}

// Runs `body` in a child and returns its answer (0..255), or -1 when it did not end by itself.
int InChild(const std::function<int()>& body) {
  const pid_t child = fork();
  if (child == 0) _exit(body());
  int status = 0;
  if (child < 0 || waitpid(child, &status, 0) != child || !WIFEXITED(status)) return -1;
  return WEXITSTATUS(status);
}

class ControlTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(writer_.Create(kOptions, kStartNs).ok());
    ASSERT_TRUE(writer_.PublishPolicy(PolicyOf(1), kStartNs, nullptr).ok());
  }
  OwnedFd Publish() {
    writer_.Publish();
    return writer_.DupReadOnly();
  }
  // The header through the daemon's own mapping, to damage it.
  ControlHeader& header() { return const_cast<ControlHeader&>(writer_.header()); }
  SegmentError ReadError() {
    ControlReader reader;
    return reader.Map(writer_.DupReadOnly().get(), geteuid()).error;
  }
  SegmentError AdoptError(const ControlOptions& options = kOptions) {
    ControlWriter next;
    return next.Adopt(OwnedFd(dup(writer_.fd())), options, kStartNs).error;
  }

  ControlWriter writer_;
};

TEST_F(ControlTest, IsReadByAClientOncePublished) {
  EXPECT_EQ(ReadError(), SegmentError::kBadMagic);
  const OwnedFd fd = Publish();
  ControlReader reader;
  ASSERT_TRUE(reader.Map(fd.get(), geteuid()).ok());
  EXPECT_EQ(reader.info().capacity, kCapacity);
  EXPECT_EQ(reader.info().shard_count, 64u);
  EXPECT_EQ(reader.info().generation, writer_.info().generation);
  EXPECT_NE(reader.info().generation, 0u);
  EXPECT_EQ(reader.info().hash_key.k[0], writer_.info().hash_key.k[0]);
  writer_.SetShard(7, ShardMode::kEmergency, kStartNs);
  EXPECT_EQ(shard_state::Mode(reader.shard_states()[7].load()), ShardMode::kEmergency);
  writer_.Beat(kStartNs + 5);
  EXPECT_EQ(reader.header()->heartbeat_ns.load(), kStartNs + 5);
}

// Checks ask for a shard's own state only while this is not 0.
TEST_F(ControlTest, CountsTheShardsInEmergency) {
  const auto count = [&] { return header().emergency_shards.load(); };
  EXPECT_EQ(count(), 0u);
  writer_.SetShard(7, ShardMode::kEmergency, kStartNs);
  writer_.SetShard(7, ShardMode::kEmergency, kStartNs + 1);
  EXPECT_EQ(count(), 1u) << "one shard, said twice";
  writer_.SetShard(8, ShardMode::kEmergency, kStartNs);
  writer_.SetShard(9, ShardMode::kStale, kStartNs);
  EXPECT_EQ(count(), 2u);
  writer_.SetShard(7, ShardMode::kHealthy, kStartNs + 2);
  writer_.SetShard(7, ShardMode::kStale, kStartNs + 3);
  EXPECT_EQ(count(), 1u);
  // A daemon killed in the middle of SetShard leaves the count one too high.
  header().emergency_shards.store(3);
  Publish();
  EXPECT_EQ(AdoptError(), SegmentError::kOk);
  EXPECT_EQ(count(), 1u) << "counted anew";
}

TEST_F(ControlTest, TwoGenerationsDifferInNameAndSalt) {
  ControlWriter other;
  ASSERT_TRUE(other.Create(kOptions, kStartNs).ok());
  EXPECT_NE(other.info().generation, writer_.info().generation);
  EXPECT_NE(other.info().hash_key.k[1], writer_.info().hash_key.k[1]);
}

TEST_F(ControlTest, CannotBeMappedWritableByAClient) {
  const OwnedFd fd = Publish();
  EXPECT_EQ(mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0), MAP_FAILED);
  void* page = mmap(nullptr, 4096, PROT_READ, MAP_SHARED, fd.get(), 0);
  ASSERT_NE(page, MAP_FAILED);
  EXPECT_EQ(mprotect(page, 4096, PROT_READ | PROT_WRITE), -1);
  EXPECT_EQ(errno, EACCES);
  munmap(page, 4096);
}

TEST_F(ControlTest, CannotBeReopenedOrSealedOrCutByAnotherUser) {
  if (geteuid() != 0) GTEST_SKIP() << "needs root, to become another user";
  const OwnedFd fd = Publish();
  BucketsOwner buckets;
  ASSERT_TRUE(buckets.Create(kCapacity).ok());
  const int outcome = InChild([&] {
    if (setuid(kStranger) != 0) return 100;
    const std::string control = "/proc/self/fd/" + std::to_string(fd.get());
    if (open(control.c_str(), O_RDWR) >= 0) return 1;
    const std::string table = "/proc/self/fd/" + std::to_string(buckets.fd());
    if (open(table.c_str(), O_RDWR) >= 0) return 2;
    if (ftruncate(buckets.fd(), 0) == 0 || ftruncate(buckets.fd(), 1 << 30) == 0) return 3;
    if (fcntl(buckets.fd(), F_ADD_SEALS, F_SEAL_WRITE) == 0) return 4;
    if (fchmod(fd.get(), 0666) == 0) return 5;
    ControlReader reader;
    return reader.Map(fd.get(), 0).ok() ? 0 : 6;
  });
  EXPECT_EQ(outcome, 0);
}

TEST_F(ControlTest, IsRefusedWhenItComesWritable) {
  Publish();
  ControlReader reader;
  EXPECT_EQ(reader.Map(writer_.fd(), geteuid()).error, SegmentError::kWritable);
}

// envoy#355, envoy#14224, client_python#996: shared memory without a version was read in a layout
// that its writer did not have.
TEST_F(ControlTest, OfAnotherVersionLayoutOrSizeIsRefusedByClientAndDaemon) {
  Publish();
  header().abi_major = kAbiMajor + 1;
  EXPECT_EQ(ReadError(), SegmentError::kOtherVersion);
  EXPECT_EQ(AdoptError(), SegmentError::kOtherVersion);
  header().abi_major = kAbiMajor;
  header().layout_hash ^= 1;
  EXPECT_EQ(ReadError(), SegmentError::kOtherLayout);
  EXPECT_EQ(AdoptError(), SegmentError::kOtherLayout);
  header().layout_hash ^= 1;
  for (const uint64_t capacity : {uint64_t{0}, uint64_t{100}, kMaxCapacity * 2, ~uint64_t{0}}) {
    header().capacity = capacity;
    EXPECT_EQ(ReadError(), SegmentError::kBadGeometry);
    EXPECT_EQ(AdoptError(), SegmentError::kBadGeometry);
  }
  header().capacity = kCapacity;
  header().shard_count = kMaxShards + 1;
  EXPECT_EQ(ReadError(), SegmentError::kBadGeometry);
  header().shard_count = 64;
  EXPECT_EQ(ReadError(), SegmentError::kOk);
  EXPECT_EQ(AdoptError(), SegmentError::kOk);
}

// haproxy 09bf11624: times of the clock before the reboot were taken for the present ones.
TEST_F(ControlTest, MadeBeforeTheLastBootIsRefusedByClientAndDaemon) {
  Publish();
  for (uint8_t& byte : header().boot_id) {
    byte ^= 1;
    EXPECT_EQ(ReadError(), SegmentError::kOtherBoot);
    EXPECT_EQ(AdoptError(), SegmentError::kOtherBoot);
    byte ^= 1;
  }
  EXPECT_EQ(ReadError(), SegmentError::kOk);
}

TEST_F(ControlTest, OfAnotherOwnerIsRefused) {
  const OwnedFd fd = Publish();
  ControlReader reader;
  if (geteuid() != 0) {
    EXPECT_EQ(reader.Map(fd.get(), kStranger).error, SegmentError::kForeignOwner);
    return;
  }
  // Root's own segments are believed by all; somebody else's are not.
  ASSERT_EQ(fchown(writer_.fd(), kStranger, static_cast<gid_t>(-1)), 0);
  EXPECT_EQ(reader.Map(fd.get(), 0).error, SegmentError::kForeignOwner);
  EXPECT_EQ(reader.Map(fd.get(), kStranger).error, SegmentError::kOk);
  EXPECT_EQ(AdoptError(), SegmentError::kForeignOwner);
}

TEST_F(ControlTest, ThatIsNoSealedMemoryFileIsRefused) {
  ControlReader reader;
  int pipes[2];
  ASSERT_EQ(pipe(pipes), 0);
  const OwnedFd reading(pipes[0]);
  const OwnedFd writing(pipes[1]);
  EXPECT_EQ(reader.Map(reading.get(), geteuid()).error, SegmentError::kNotASegment);
  const OwnedFd plain(open("/proc/self/exe", O_RDONLY));
  EXPECT_NE(reader.Map(plain.get(), geteuid()).error, SegmentError::kOk);
  EXPECT_NE(reader.Map(-1, geteuid()).error, SegmentError::kOk);

  // A copy with all the right bytes, but unsealed: its maker could cut it under its readers.
  Publish();
  const OwnedFd copy(memfd_create("copy", MFD_ALLOW_SEALING));
  ASSERT_EQ(pwrite(copy.get(), &header(), sizeof(ControlHeader), 0),
            static_cast<ssize_t>(sizeof(ControlHeader)));
  const OwnedFd read_only(open(("/proc/self/fd/" + std::to_string(copy.get())).c_str(), O_RDONLY));
  EXPECT_EQ(reader.Map(read_only.get(), geteuid()).error, SegmentError::kNotSealed);
  // Sealed, but of another size than the layout says.
  ASSERT_EQ(fcntl(copy.get(), F_ADD_SEALS, F_SEAL_SHRINK), 0);
  EXPECT_EQ(reader.Map(read_only.get(), geteuid()).error, SegmentError::kTruncated);
}

// client_python#1199: a file of zero bytes, left by a writer that died early, broke every reader.
TEST_F(ControlTest, OfZeroBytesIsRefusedByClientAndDaemon) {
  const OwnedFd empty(memfd_create("empty", MFD_ALLOW_SEALING));
  ASSERT_EQ(fcntl(empty.get(), F_ADD_SEALS, F_SEAL_SHRINK), 0);
  const OwnedFd read_only(open(("/proc/self/fd/" + std::to_string(empty.get())).c_str(), O_RDONLY));
  ControlReader reader;
  EXPECT_EQ(reader.Map(read_only.get(), geteuid()).error, SegmentError::kTruncated);
  ControlWriter writer;
  EXPECT_EQ(writer.Adopt(OwnedFd(dup(empty.get())), kOptions, kStartNs).error,
            SegmentError::kTruncated);
  MappedBuckets buckets;
  EXPECT_EQ(buckets.Map(empty.get(), kCapacity, geteuid()).error, SegmentError::kTruncated);
}

// prometheus#16785: a page of a sparse mapping that is not to be had any more is a SIGBUS in the
// reader, however well it checked the size.
TEST_F(ControlTest, AndBucketsAreAllocatedToTheLastPageBeforeAnybodySeesThem) {
  BucketsOwner buckets;
  ASSERT_TRUE(buckets.Create(1 << 16).ok());
  for (const int fd : {writer_.fd(), buckets.fd()}) {
    struct stat st;
    ASSERT_EQ(fstat(fd, &st), 0);
    EXPECT_GE(st.st_blocks * 512, st.st_size);
  }
}

TEST_F(ControlTest, OfRandomBytesIsRefused) {
  uint64_t seed = 7;
  for (int round = 0; round < 200; ++round) {
    const OwnedFd fd(memfd_create("noise", MFD_ALLOW_SEALING));
    std::vector<uint64_t> noise(512);
    for (uint64_t& word : noise) word = SplitMix64(seed);
    if (round % 2 == 0) noise[0] = kMagic;
    ASSERT_GT(pwrite(fd.get(), noise.data(), noise.size() * 8, 0), 0);
    ASSERT_EQ(fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK), 0);
    ControlWriter writer;
    EXPECT_FALSE(writer.Adopt(OwnedFd(dup(fd.get())), kOptions, kStartNs).ok());
  }
}

TEST_F(ControlTest, IsAdoptedWithItsPolicyAndCountsIncarnations) {
  Publish();
  writer_.SetStopped(true);
  const uint64_t before = Incarnation(writer_.header());
  ControlWriter next;
  ASSERT_TRUE(next.Adopt(OwnedFd(dup(writer_.fd())), kOptions, kStartNs + 9).ok());
  EXPECT_EQ(next.info().generation, writer_.info().generation);
  EXPECT_EQ(next.policy_seq(), 1u);
  EXPECT_EQ(TagOf(next.policy()), 1u);
  EXPECT_EQ(Incarnation(writer_.header()), before + 1);
  EXPECT_EQ(writer_.header().stopped.load(), 0u);
  EXPECT_EQ(writer_.header().heartbeat_ns.load(), kStartNs + 9);
}

TEST_F(ControlTest, IsNotAdoptedForAnotherCapacityOrNumberOfShards) {
  Publish();
  ControlOptions other = kOptions;
  other.capacity = 2 * kCapacity;
  EXPECT_EQ(AdoptError(other), SegmentError::kOtherShards);
  other = kOptions;
  other.shard_count = 65;
  EXPECT_EQ(AdoptError(other), SegmentError::kOtherShards);
}

TEST_F(ControlTest, IsNotAdoptedWithADamagedPolicy) {
  Publish();
  const_cast<char*>(writer_.policy().data())[sizeof(PolicyHeader)] ^= 1;
  EXPECT_EQ(AdoptError(), SegmentError::kBadPolicy);
}

TEST_F(ControlTest, RefusesAPolicyThatIsDamagedOrTooLarge) {
  std::string policy = PolicyOf(2);
  policy.back() ^= 1;
  EXPECT_EQ(writer_.PublishPolicy(policy, kStartNs, nullptr).error, SegmentError::kBadPolicy);
  EXPECT_EQ(writer_.PublishPolicy("", kStartNs, nullptr).error, SegmentError::kBadPolicy);
  EXPECT_EQ(writer_.PublishPolicy(std::string(kMaxPolicyBytes + 1, 'x'), kStartNs, nullptr).error,
            SegmentError::kPolicyTooLarge);
  EXPECT_EQ(writer_.policy_seq(), 1u);
}

TEST_F(ControlTest, KeepsASupersededPolicyForItsRest) {
  // One in force, two pinned: five more buffers, then none has rested.
  uint64_t wait_ns = 0;
  for (uint64_t tag = 2; tag <= 8; ++tag) {
    ASSERT_TRUE(writer_.PublishPolicy(PolicyOf(tag), kStartNs + tag, &wait_ns).ok()) << tag;
  }
  EXPECT_EQ(writer_.PublishPolicy(PolicyOf(9), kStartNs + 100, &wait_ns).error,
            SegmentError::kPoliciesResting);
  EXPECT_GT(wait_ns, 0u);
  EXPECT_LE(wait_ns, kPolicyRestNs);
  EXPECT_EQ(writer_.policy_seq(), 8u);
  // The promise is kept to the nanosecond.
  EXPECT_EQ(writer_.PublishPolicy(PolicyOf(9), kStartNs + 100 + wait_ns - 1, nullptr).error,
            SegmentError::kPoliciesResting);
  EXPECT_TRUE(writer_.PublishPolicy(PolicyOf(9), kStartNs + 100 + wait_ns, nullptr).ok());
  EXPECT_EQ(TagOf(writer_.policy()), 9u);
}

TEST_F(ControlTest, RemembersTheRestOverAnAdoption) {
  for (uint64_t tag = 2; tag <= 8; ++tag) {
    ASSERT_TRUE(writer_.PublishPolicy(PolicyOf(tag), kStartNs, nullptr).ok());
  }
  Publish();
  ControlWriter next;
  ASSERT_TRUE(next.Adopt(OwnedFd(dup(writer_.fd())), kOptions, kStartNs).ok());
  EXPECT_EQ(next.PublishPolicy(PolicyOf(9), kStartNs, nullptr).error,
            SegmentError::kPoliciesResting);
  ASSERT_TRUE(next.RollbackPolicy(kStartNs).ok());
  EXPECT_EQ(TagOf(next.policy()), 7u);
}

TEST_F(ControlTest, DoesNotPublishTheSamePolicyTwice) {
  ASSERT_TRUE(writer_.PublishPolicy(PolicyOf(1), kStartNs, nullptr).ok());
  EXPECT_EQ(writer_.policy_seq(), 1u);
}

TEST_F(ControlTest, RollsBackUnderAHigherSeq) {
  ASSERT_TRUE(writer_.PublishPolicy(PolicyOf(2), kStartNs, nullptr).ok());
  ASSERT_TRUE(writer_.PublishPolicy(PolicyOf(3), kStartNs, nullptr).ok());
  ASSERT_TRUE(writer_.RollbackPolicy(kStartNs).ok());
  EXPECT_EQ(TagOf(writer_.policy()), 2u);
  EXPECT_EQ(writer_.policy_seq(), 4u);
  ASSERT_TRUE(writer_.RollbackPolicy(kStartNs).ok());
  EXPECT_EQ(TagOf(writer_.policy()), 1u);
  EXPECT_EQ(writer_.policy_seq(), 5u);
  EXPECT_EQ(writer_.RollbackPolicy(kStartNs).error, SegmentError::kNoEarlierPolicy);
}

TEST_F(ControlTest, NeverLowersTheLargestDebt) {
  ASSERT_TRUE(writer_.PublishPolicy(PolicyOf(2, 1), kStartNs, nullptr).ok());
  EXPECT_EQ(writer_.header().max_debt_ns.load(), 2 * kMaxHoldNs);
  ASSERT_TRUE(writer_.PublishPolicy(PolicyOf(3, 2 * kMaxHoldNs), kStartNs, nullptr).ok());
  EXPECT_EQ(writer_.header().max_debt_ns.load(), 4 * kMaxHoldNs);
  ASSERT_TRUE(writer_.PublishPolicy(PolicyOf(2, 1), kStartNs, nullptr).ok());
  EXPECT_EQ(writer_.header().max_debt_ns.load(), 4 * kMaxHoldNs);
}

TEST(BucketsTest, AreFreshAllocatedAndAligned) {
  BucketsOwner owner;
  ASSERT_TRUE(owner.Create(kCapacity).ok());
  const MappedBuckets& b = owner.buckets();
  EXPECT_EQ(reinterpret_cast<uintptr_t>(b.slots()) % kHugePageBytes, 0u);
  for (uint64_t i = 0; i < kCapacity; ++i) {
    ASSERT_EQ(b.slots()[i].key.load(), 0u);
    ASSERT_EQ(b.slots()[i].used.load(), used::Make(0, 0));
    ASSERT_EQ(b.denied()[i].load(), denied::Make(0, 0));
  }
  for (uint32_t i = 0; i < kMaxRules; ++i) {
    ASSERT_EQ(b.overflow()[i].used.load(), used::Make(0, 0));
  }
}

TEST(BucketsTest, KeepTheirBytesOverAnAdoption) {
  BucketsOwner owner;
  ASSERT_TRUE(owner.Create(kCapacity).ok());
  owner.buckets().slots()[5].word.store(12345);
  BucketsOwner next;
  ASSERT_TRUE(next.Adopt(OwnedFd(dup(owner.fd())), kCapacity).ok());
  EXPECT_EQ(next.buckets().slots()[5].word.load(), 12345u);
}

TEST(BucketsTest, OfAnotherCapacityOrUnsealedAreRefused) {
  BucketsOwner owner;
  ASSERT_TRUE(owner.Create(kCapacity).ok());
  MappedBuckets mapped;
  EXPECT_EQ(mapped.Map(owner.fd(), 1 << 20, geteuid()).error, SegmentError::kTruncated);
  EXPECT_EQ(mapped.Map(owner.fd(), 1000, geteuid()).error, SegmentError::kBadGeometry);
  const OwnedFd loose(memfd_create("loose", MFD_ALLOW_SEALING));
  ASSERT_EQ(ftruncate(loose.get(), static_cast<off_t>(GeometryFor(kCapacity).bytes)), 0);
  EXPECT_EQ(mapped.Map(loose.get(), kCapacity, geteuid()).error, SegmentError::kNotSealed);
}

TEST(BucketsTest, StayReadableAndWritableAfterTheirMemoryIsGivenBack) {
  BucketsOwner owner;
  ASSERT_TRUE(owner.Create(kCapacity).ok());
  MappedBuckets mapped;
  ASSERT_TRUE(mapped.Map(owner.fd(), kCapacity, geteuid()).ok());
  mapped.slots()[3].word.store(77);
  ASSERT_TRUE(mapped.Vacate());
  EXPECT_EQ(mapped.slots()[3].word.load(), 0u);
  mapped.slots()[3].word.store(88);
  EXPECT_EQ(owner.buckets().slots()[3].word.load(), 77u);
}

TEST(SegmentErrorTest, HasANameAndAMendForEachStage) {
  for (size_t i = 0; i <= static_cast<size_t>(SegmentError::kNoEarlierPolicy); ++i) {
    const auto error = static_cast<SegmentError>(i);
    EXPECT_STRNE(Name(error), "Unknown");
    EXPECT_GT(std::strlen(Explain(error)), 10u);
  }
  EXPECT_STREQ(Name(static_cast<SegmentError>(200)), "Unknown");
}

}  // namespace
}  // namespace sluice::shm
