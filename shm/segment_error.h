// Why a segment was not made, mapped or believed, in words for programs and for people.
#pragma once

#include <cstddef>
#include <cstdint>

namespace sluice::shm {

// Each names one stage.
enum class SegmentError : uint8_t {
  kOk = 0,
  kNoMemory,         // no memfd, or no memory for its pages
  kSealFailed,       // the kernel refused the seals
  kReopenFailed,     // /proc/self/fd/N could not be opened read-only
  kMapFailed,        // mmap refused
  kNotASegment,      // the descriptor is no regular memory file
  kTruncated,        // another size than its geometry says
  kNotSealed,        // could still shrink: a reader would get SIGBUS
  kForeignOwner,     // made by another user than the daemon that offers it
  kWritable,         // the control segment came writable
  kBadMagic,         // not published, or something else
  kOtherVersion,     // ABI major differs
  kOtherLayout,      // layout hash differs
  kOtherBoot,        // made before the last boot
  kBadGeometry,      // capacity or shard count out of bounds
  kOtherShards,      // adopting: another shard count or capacity than asked for
  kBadPolicy,        // the policy is no policy, or its check sum is wrong
  kPolicyTooLarge,   // more than kMaxPolicyBytes
  kPoliciesResting,  // every buffer was in use less than kPolicyRestNs ago
  kNoEarlierPolicy,  // nothing to roll back to
};

struct [[nodiscard]] SegmentStatus {
  SegmentError error = SegmentError::kOk;
  int sys_errno = 0;  // of the call that failed; 0 where none did

  bool ok() const { return error == SegmentError::kOk; }
};

namespace internal {
struct ErrorText {
  const char* name;
  const char* text;
};
// In the order of SegmentError.
inline constexpr ErrorText kErrorTexts[] = {
    {"Ok", "the segment is fine"},
    {"NoMemory",
     "no memory for the shared segments: lower daemon.buckets, or raise the limit of memory or of "
     "file sizes (ulimit -f)"},
    {"SealFailed", "the kernel refused to seal a memfd: Linux 3.17 or later is needed"},
    {"ReopenFailed", "a segment could not be re-opened read-only: /proc must be mounted"},
    {"MapFailed", "a segment could not be mapped: raise the address space limit (ulimit -v)"},
    {"NotASegment", "what was handed over is no shared memory file: restart sluiced"},
    {"Truncated", "a segment has another size than its header says: restart sluiced"},
    {"NotSealed",
     "a segment is not sealed and could be cut short under its readers: "
     "restart sluiced"},
    {"ForeignOwner", "a segment belongs to another user than the daemon: restart sluiced"},
    {"Writable", "the control segment came writable: restart sluiced"},
    {"BadMagic", "what was handed over is no published sluice segment: restart sluiced"},
    {"OtherVersion",
     "the segments are of another version: use one version of libsluice and "
     "sluiced"},
    {"OtherLayout", "the segments have another layout: use one build of libsluice and sluiced"},
    {"OtherBoot", "the segments were made before the last boot: restart sluiced"},
    {"BadGeometry", "the segments claim an impossible size: restart sluiced"},
    {"OtherShards", "the segments were made for another capacity or number of shards"},
    {"BadPolicy", "the compiled rules are damaged: reload the configuration"},
    {"PolicyTooLarge",
     "the compiled rules exceed 262080 bytes: use fewer rules, tiers or listed values"},
    {"PoliciesResting",
     "the rules change faster than ten times a second: the change waits for at most 0.4 s"},
    {"NoEarlierPolicy", "there are no earlier rules to go back to"},
};
inline constexpr size_t kErrorTextCount = sizeof kErrorTexts / sizeof kErrorTexts[0];
static_assert(kErrorTextCount == static_cast<size_t>(SegmentError::kNoEarlierPolicy) + 1);

inline const ErrorText& TextOf(SegmentError error) {
  static constexpr ErrorText kUnknown = {"Unknown", "unknown segment error"};
  const size_t i = static_cast<size_t>(error);
  return i < kErrorTextCount ? kErrorTexts[i] : kUnknown;
}
}  // namespace internal

// The enumerator without its k, for logs and tests ("OtherLayout").
inline const char* Name(SegmentError error) { return internal::TextOf(error).name; }
// One sentence for people: what is wrong, and the mend. Never null.
inline const char* Explain(SegmentError error) { return internal::TextOf(error).text; }

}  // namespace sluice::shm
