// Every byte that processes share, in one place.
//
// Two segments, both memfds made by the daemon and handed to clients over its attach socket:
//
//   control (clients map it read-only)             buckets (clients write; trusted by nobody)
//   +--------------------------------+ 0           +--------------------------------+ 0
//   | ControlHeader        4096 B    |             | slots        capacity * 32 B   |
//   +--------------------------------+ 4096        +--------------------------------+ denied_offset
//   | shard states  4096 * 8 B       |             | denied cells capacity *  8 B   |
//   +--------------------------------+ 36864       +--------------------------------+ second_offset
//   | policy buffers                 |             | second words capacity *  8 B   |
//   |   kPolicyBuffers * 256 KiB     |             +--------------------------------+ dirty_offset
//   +--------------------------------+ 2134016     | dirty bitmap capacity /  8 B   |
//   | zeros                 64 KiB   |             +--------------------------------+
//   overflow_offset
//   +--------------------------------+             | overflow     kMaxRules * 32 B  |
//                                                  +--------------------------------+
//                                                  classes_offset | of classes  kClassCells *  8 B
//                                                  |
//                                                  +--------------------------------+ text_offset
//                                                  | key texts    capacity * 128 B  |
//                                                  +--------------------------------+ logs_offset
//                                                  | logs    rows * entries *   8 B  |
//                                                  +--------------------------------+ bytes
//
// Version rule: kAbiMajor rises when an old client would misread or damage a segment; kAbiMinor
// when something was added that an old client may ignore. kLayoutHash covers sizes and offsets and
// must match to the bit: a daemon that finds another hash makes a new generation of segments.
//
// The bucket segment holds no offsets, lengths or pointers: any bit pattern in it is harmless.
// Geometry is computed from the capacity and the logs' shape alone, copied into private memory once
// and never re-read.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace sluice::shm {

static_assert(std::atomic<uint64_t>::is_always_lock_free, "shared words need 64-bit atomics");
static_assert(sizeof(std::atomic<uint64_t>) == 8 && alignof(std::atomic<uint64_t>) == 8);

inline constexpr uint64_t kMagic = 0x3145'4349'554c'5331;  // "1SLUICE1" in memory order
inline constexpr uint32_t kAbiMajor = 1;
inline constexpr uint32_t kAbiMinor = 0;

// Bounds. Each is a promise to the readers that copy nothing.
inline constexpr uint64_t kMinCapacity = 64;          // one dirty word
inline constexpr uint64_t kMaxCapacity = 1ull << 26;  // 64 M buckets: 11.5 GiB
inline constexpr uint32_t kMaxShards = 4096;          // 12 bits in aux
// Where there are fewer shards: at its state the daemon shows buckets that an operator has put in
// emergency (chaos), whatever shard they are of.
inline constexpr uint32_t kForcedShard = kMaxShards - 1;
inline constexpr uint32_t kMaxRules = 4096;    // compiled rules (a tier counts as one)
inline constexpr uint32_t kPolicyBuffers = 8;  // so a superseded one can rest
inline constexpr uint32_t kPolicyBufferBytes = 256 * 1024;
inline constexpr uint32_t kClassCells = 1024 * 16;  // of a priority's classes
inline constexpr uint32_t kMinLogRows = 8;          // two groups of the table
inline constexpr uint32_t kMaxLogRows = 1u << 20;
inline constexpr uint32_t kMinLogEntries = 8;  // a cache line
inline constexpr uint32_t kMaxLogEntries = 4096;
inline constexpr uint32_t kMaxHolders = 8192;   // numbers of clients, 0 is nobody's; 13 bits
inline constexpr uint32_t kKeyTextBytes = 120;  // longer texts: prefix + hash
inline constexpr uint64_t kMaxSpanNs = 400ull * 86'400'000'000'000;  // tau, period: 400 days
inline constexpr uint64_t kHugePageBytes = 2ull << 20;

// --- the bucket segment -------------------------------------------------------------------------

// One bucket. Two to a cache line, two groups of four are a key's neighbourhood.
//
//   word   live  0 | time and payload:63    (token bucket: TAT, CLOCK_MONOTONIC ns)
//          dead  1 | gen:16 | time_us:47    (being reused; see slot_table.h)
//   key    fingerprint:45 | kind:3 | gen:16 (fingerprint 0: never used or emptied)
//   used   gen:16 | count:48                (tokens since the daemon's last take, biased)
//   aux    1/share:32 | shard:12 | flags:4 | rule:16
//
// `Cell` is std::atomic<uint64_t> in production; the model checker puts its own type there.
template <class Cell>
struct alignas(32) BasicSlot {
  Cell word;
  Cell key;
  Cell used;
  Cell aux;
};
using Slot = BasicSlot<std::atomic<uint64_t>>;
static_assert(sizeof(Slot) == 32 && alignof(Slot) == 32);
static_assert(offsetof(Slot, word) == 0 && offsetof(Slot, key) == 8);
static_assert(offsetof(Slot, used) == 16 && offsetof(Slot, aux) == 24);

inline constexpr uint32_t kGroupSlots = 4;

// The text of a bucket's name, for Redis and for people: `tag` is the key word it was written for
// (fingerprint, kind, gen), stored last; `words` are its bytes, NUL-padded. See key_text.h.
// Untrusted like all else here: the daemon believes a text only if it hashes to the fingerprint of
// its slot.
inline constexpr size_t kKeyTextWords = kKeyTextBytes / 8;
template <class Cell>
struct BasicKeyText {
  Cell tag;
  Cell words[kKeyTextWords];
};
using KeyText = BasicKeyText<std::atomic<uint64_t>>;
static_assert(sizeof(KeyText) == 128 && offsetof(KeyText, words) == 8);

// Kinds of word (3 bits of the key word). Every word answers "expired?" with word + grace <= now.
enum class Kind : uint8_t {
  kTokenBucket = 0,    // GCRA: the word is the TAT in ns
  kFixedWindow = 1,    // window end:40 (2^23 ns) | count:23
  kSlidingWindow = 2,  // a length after its end:40 | count:23, the closed window in the second word
  kLease = 3,          // expiry:40 (2^23 ns) | turn:3 | credits:20, see credits.h
  kSlidingLog = 4,     // until:40 (2^23 ns) | hint:23, and a row of entries, see log.h
  kInFlight = 5,       // until:40 (2^23 ns) | state:23, and a row of entries, see places.h
};

namespace word {
inline constexpr uint64_t kDeadBit = 1ull << 63;
inline constexpr uint64_t kDeadTimeMask = (1ull << 47) - 1;
inline constexpr bool IsDead(uint64_t w) { return (w & kDeadBit) != 0; }
inline constexpr uint64_t Dead(uint16_t gen, uint64_t time_us) {
  return kDeadBit | (uint64_t{gen} << 47) | (time_us & kDeadTimeMask);
}
inline constexpr uint16_t DeadGen(uint64_t w) { return static_cast<uint16_t>(w >> 47); }
inline constexpr uint64_t DeadTimeUs(uint64_t w) { return w & kDeadTimeMask; }
}  // namespace word

namespace key {
inline constexpr uint64_t kFpMask = (1ull << 45) - 1;
inline constexpr uint64_t Make(uint64_t fp, Kind kind, uint16_t gen) {
  return (fp << 19) | (uint64_t{static_cast<uint8_t>(kind)} << 16) | gen;
}
inline constexpr uint64_t Fp(uint64_t k) { return k >> 19; }
inline constexpr Kind KindOf(uint64_t k) { return static_cast<Kind>((k >> 16) & 7); }
inline constexpr uint16_t Gen(uint64_t k) { return static_cast<uint16_t>(k); }
}  // namespace key

// `used` counts around a bias, so that a refund (a subtraction) never borrows from the gen.
namespace used {
inline constexpr uint64_t kCountMask = (1ull << 48) - 1;
inline constexpr uint64_t kBias = 1ull << 47;
inline constexpr uint64_t Make(uint16_t gen, int64_t count) {
  return (uint64_t{gen} << 48) | ((kBias + static_cast<uint64_t>(count)) & kCountMask);
}
inline constexpr uint16_t Gen(uint64_t u) { return static_cast<uint16_t>(u >> 48); }
inline constexpr int64_t Count(uint64_t u) {
  return static_cast<int64_t>(u & kCountMask) - static_cast<int64_t>(kBias);
}
}  // namespace used

// Denied cells carry the gen too, so that a tenant is never shown its predecessor's denials; those
// of classes carry the class's tag in its place.
namespace denied {
inline constexpr uint64_t kCountMask = (1ull << 48) - 1;
inline constexpr uint64_t Make(uint16_t gen, uint64_t count) {
  return (uint64_t{gen} << 48) | (count & kCountMask);
}
inline constexpr uint16_t Gen(uint64_t d) { return static_cast<uint16_t>(d >> 48); }
inline constexpr uint64_t Count(uint64_t d) { return d & kCountMask; }
}  // namespace denied

// The count of a lease's denied cell: largest:20 | tokens:28, of costs that were refused.
namespace wanted {
inline constexpr uint64_t kTokensMask = (1ull << 28) - 1;
inline constexpr uint64_t kLargestMask = (1ull << 20) - 1;
inline constexpr uint64_t Make(uint64_t tokens, uint64_t largest) {
  return (largest < kLargestMask ? largest : kLargestMask) << 28 |
         (tokens < kTokensMask ? tokens : kTokensMask);
}
inline constexpr uint64_t Tokens(uint64_t count) { return count & kTokensMask; }
inline constexpr uint64_t Largest(uint64_t count) { return count >> 28; }
}  // namespace wanted

namespace aux {
// 1/share (of places: who waits, place_queue.h) has 16 fraction bits; 0 is "no view yet": all of
// it.
inline constexpr uint32_t kShareOne = 1u << 16;
inline constexpr uint64_t kDirty = 1ull << 16;       // first thing a check looks at
inline constexpr uint64_t kTextWanted = 1ull << 17;  // the daemon has no valid text for this slot
inline constexpr uint64_t kBanned = 1ull << 18;      // the daemon's: its debt is a penalty's ban
inline constexpr uint64_t kFlagsMask = 0xfull << 16;
inline constexpr uint64_t Make(uint32_t inv_share, uint32_t shard, uint16_t rule) {
  return (uint64_t{inv_share} << 32) | (uint64_t{shard & 0xfff} << 20) | rule;
}
inline constexpr uint32_t InvShare(uint64_t a) { return static_cast<uint32_t>(a >> 32); }
inline constexpr uint32_t Shard(uint64_t a) { return static_cast<uint32_t>(a >> 20) & 0xfff; }
inline constexpr uint16_t Rule(uint64_t a) { return static_cast<uint16_t>(a); }
inline constexpr uint64_t WithInvShare(uint64_t a, uint32_t inv_share) {
  return (a & 0xffff'ffffull) | (uint64_t{inv_share} << 32);
}
}  // namespace aux

// Rare events, counted by whoever meets them (relaxed; for operators, nothing decides by them).
enum class Counter : uint32_t {
  kClaims,        // slots taken for a new key
  kEvictions,     // of those, slots that had held another key
  kAbandonedUse,  // tokens found unharvested in a slot at its reuse
  kOverflows,     // checks answered by a rule's overflow bucket
  kGaveUp,        // checks that met kMaxRestarts changes and answered by the rule's fail mode
  kHeals,         // wild or outdated words set back to now + tau
  kDuplicates,    // slots emptied because their key stood in two
  kRepairs,       // dead words whose gen fitted nothing (hostile or random memory)
  kLeases,        // taken by threads that met others at a key
};
inline constexpr uint32_t kCounters = 64;

// Rows of entries for sliding logs (log.h), the i-th beside the i-th slot: keys of such rules stand
// in the first `rows` slots. Both are powers of two, or 0: there are none.
struct LogShape {
  uint32_t rows = 0;
  uint32_t entries = 0;  // of a row
  friend bool operator==(const LogShape&, const LogShape&) = default;

  constexpr uint64_t bytes() const { return uint64_t{rows} * entries * 8; }
};
inline constexpr bool IsValidLogs(LogShape logs, uint64_t capacity) {
  if (logs.rows == 0 && logs.entries == 0) return true;
  return (logs.rows & (logs.rows - 1)) == 0 && (logs.entries & (logs.entries - 1)) == 0 &&
         logs.rows >= kMinLogRows && logs.rows <= kMaxLogRows && logs.rows <= capacity &&
         logs.entries >= kMinLogEntries && logs.entries <= kMaxLogEntries;
}

// Where each array of the bucket segment stands, from the capacity and the logs' shape alone.
struct BucketGeometry {
  uint64_t capacity = 0;  // slots, a power of two
  LogShape logs;
  uint64_t denied_offset = 0;
  uint64_t second_offset = 0;
  uint64_t dirty_offset = 0;
  uint64_t counters_offset = 0;
  uint64_t overflow_offset = 0;
  uint64_t classes_offset = 0;
  uint64_t text_offset = 0;
  uint64_t logs_offset = 0;
  uint64_t bytes = 0;  // whole segment, a multiple of 2 MiB
};

// Precondition: IsValidCapacity(capacity), IsValidLogs(logs, capacity).
inline constexpr BucketGeometry GeometryFor(uint64_t capacity, LogShape logs = {}) {
  BucketGeometry g;
  g.capacity = capacity;
  g.logs = logs;
  g.denied_offset = capacity * sizeof(Slot);
  g.second_offset = g.denied_offset + capacity * 8;
  g.dirty_offset = g.second_offset + capacity * 8;
  g.counters_offset = g.dirty_offset + (capacity / 8 + 63) / 64 * 64;
  g.overflow_offset = g.counters_offset + uint64_t{kCounters} * 8;
  g.classes_offset = g.overflow_offset + uint64_t{kMaxRules} * sizeof(Slot);
  g.text_offset = g.classes_offset + uint64_t{kClassCells} * 8;
  g.logs_offset = g.text_offset + capacity * sizeof(KeyText);
  g.bytes = (g.logs_offset + logs.bytes() + kHugePageBytes - 1) / kHugePageBytes * kHugePageBytes;
  return g;
}
inline constexpr bool IsValidCapacity(uint64_t capacity) {
  return capacity >= kMinCapacity && capacity <= kMaxCapacity && (capacity & (capacity - 1)) == 0;
}
static_assert(GeometryFor(1 << 17).dirty_offset % 64 == 0);
static_assert(GeometryFor(kMinCapacity).overflow_offset % 64 == 0);
static_assert(GeometryFor(kMinCapacity).logs_offset % 64 == 0);
static_assert(GeometryFor(1 << 20).bytes < (1ull << 28), "about 176 bytes a bucket");

// --- the control segment ------------------------------------------------------------------------

enum class ShardMode : uint8_t {
  kHealthy = 0,    // reconciled within three flush intervals
  kStale = 1,      // older than that: decisions go on unchanged, operators see it
  kEmergency = 2,  // each rule follows its when_degraded word
};

// shard_state word: mode:2 low | since_ns << 2 (CLOCK_MONOTONIC). One store switches a shard.
namespace shard_state {
inline constexpr uint64_t Make(ShardMode mode, uint64_t since_ns) {
  return (since_ns << 2) | static_cast<uint64_t>(mode);
}
inline constexpr ShardMode Mode(uint64_t s) {
  return (s & 3) >= 2 ? ShardMode::kEmergency : static_cast<ShardMode>(s & 3);
}
inline constexpr bool IsEmergency(uint64_t s) { return (s & 2) != 0; }
inline constexpr uint64_t SinceNs(uint64_t s) { return s >> 2; }
}  // namespace shard_state

// How many calendars the rules may speak of, and how many ends of each are published: a daemon that
// is dead for longer leaves windows of nominal length.
inline constexpr uint32_t kMaxCalendars = 48;
inline constexpr uint32_t kCalendarEnds = 10;

// policy word: seq:48 | buffer:16. seq only grows; 0 means that no policy was published yet.
namespace policy_word {
inline constexpr uint64_t Make(uint64_t seq, uint32_t buffer) { return (seq << 16) | buffer; }
inline constexpr uint64_t Seq(uint64_t w) { return w >> 16; }
inline constexpr uint32_t Buffer(uint64_t w) { return static_cast<uint32_t>(w & 0xffff); }
}  // namespace policy_word

// The first page of the control segment. All fields but the atomics are written once, before the
// magic (release); the atomics of the second line are what a check reads.
struct alignas(64) ControlHeader {
  // line 0: who made this, and how it is laid out
  std::atomic<uint64_t> magic;  // kMagic; stored last
  uint32_t abi_major;
  uint32_t abi_minor;
  uint64_t layout_hash;  // kLayoutHash
  uint8_t boot_id[16];   // /proc/sys/kernel/random/boot_id: CLOCK_MONOTONIC is per boot
  uint64_t generation;   // random; names this pair of segments
  uint64_t capacity;     // slots of the bucket segment
  uint32_t shard_count;  // 1..kMaxShards
  uint32_t log_entries;  // LogShape, as log_rows

  // line 1: read by every check, written rarely (heartbeat: 5 times a second)
  std::atomic<uint64_t> policy;        // policy_word
  std::atomic<uint64_t> heartbeat_ns;  // CLOCK_MONOTONIC of the daemon's last beat
  std::atomic<uint64_t> max_debt_ns;   // monotone: largest tau + debt_max ever published
  std::atomic<uint64_t> grace_ns;      // a slot is reusable this long after its word's time
  std::atomic<uint64_t> reconciling;   // 1: a Redis is configured, so a dead daemon means emergency
  std::atomic<uint64_t> stopped;       // 1: the daemon ended in order (set on SIGTERM)
  std::atomic<uint64_t> incarnation;   // how often a daemon took this segment over, the first too
  // How many shards are in emergency, or about to be: while 0, a check need not ask which its is.
  std::atomic<uint64_t> emergency_shards;

  // line 2: secrets and identity, read at attach
  uint64_t hash_salt[2];  // random per generation; keys the bucket hash against flooding
  uint64_t daemon_pid;    // for people; never used to decide anything
  uint64_t daemon_uid;
  uint64_t created_ns;
  std::atomic<uint64_t> hosts;  // that share limits with this one, itself included; 0: not known
  uint64_t log_rows;
  uint64_t reserved2;

  // When the windows of each calendar end that the rules speak of, rising, the first after now's
  // among them: CLOCK_MONOTONIC ns, as the wall clock stands; 0: none. Each is a word that tells
  // all by itself. Written at each boundary and when the wall clock is set.
  std::atomic<uint64_t> calendar_ends[kMaxCalendars][kCalendarEnds];

  uint8_t padding[4096 - 3 * 64 - kMaxCalendars * kCalendarEnds * 8];
};
static_assert(sizeof(ControlHeader) == 4096);
static_assert(offsetof(ControlHeader, layout_hash) == 16);
static_assert(offsetof(ControlHeader, boot_id) == 24);
static_assert(offsetof(ControlHeader, capacity) == 48);
static_assert(offsetof(ControlHeader, policy) == 64);
static_assert(offsetof(ControlHeader, incarnation) == 112);
static_assert(offsetof(ControlHeader, emergency_shards) == 120);
static_assert(offsetof(ControlHeader, hash_salt) == 128);
static_assert(offsetof(ControlHeader, calendar_ends) == 192);

inline constexpr uint64_t kShardStatesOffset = sizeof(ControlHeader);
inline constexpr uint64_t kPolicyOffset = kShardStatesOffset + uint64_t{kMaxShards} * 8;
// The tail is never written: a reader of a torn policy may run this far past a masked offset.
inline constexpr uint64_t kControlTailBytes = 64 * 1024;

// Who holds places of requests in flight, by number: so that a daemon that starts again knows whose
// they are. Written by the daemon alone, `birth` before `owner`; a client need not read it.
struct HolderCell {
  std::atomic<uint64_t> owner;  // 0: nobody; else bit 63, and the pid as the daemon sees it, or 0
  std::atomic<uint64_t> birth;  // tells the process from others of that pid; 0: not known
};
static_assert(sizeof(HolderCell) == 16);
inline constexpr uint64_t kHolderOwned = uint64_t{1} << 63;
inline constexpr uint64_t kHoldersOffset =
    kPolicyOffset + uint64_t{kPolicyBuffers} * kPolicyBufferBytes + kControlTailBytes;
inline constexpr uint64_t kControlBytes =
    kHoldersOffset + uint64_t{kMaxHolders} * sizeof(HolderCell);
static_assert(kPolicyOffset == 36864 &&
              kPolicyOffset + kPolicyBuffers * kPolicyBufferBytes == 2134016);
static_assert(kPolicyOffset % 4096 == 0 && kControlBytes % 4096 == 0);

// FNV-1a over every size and offset above: two builds agree on it or do not share memory.
inline constexpr uint64_t LayoutHash() {
  const BucketGeometry g = GeometryFor(1 << 20);
  const uint64_t parts[] = {kAbiMajor,       sizeof(Slot),
                            sizeof(KeyText), kGroupSlots,
                            g.denied_offset, g.second_offset,
                            g.dirty_offset,  g.overflow_offset,
                            g.text_offset,   g.bytes,
                            kMaxShards,      kMaxRules,
                            kPolicyBuffers,  kPolicyBufferBytes,
                            kPolicyOffset,   kControlBytes,
                            aux::kDirty,     used::kBias,
                            kKeyTextBytes,   17 /* policy and header, words */};
  uint64_t h = 0xcbf29ce484222325;
  for (const uint64_t part : parts) {
    for (int i = 0; i < 8; ++i) {
      h = (h ^ ((part >> (8 * i)) & 0xff)) * 0x100000001b3;
    }
  }
  return h;
}
inline constexpr uint64_t kLayoutHash = LayoutHash();

}  // namespace sluice::shm
