// How a client gets the segments: over the daemon's Unix socket (SOCK_SEQPACKET), one message each
// way, fixed sizes.
//
//   client                                   daemon
//     connect
//     Hello  ------------------------------>   checks it
//            <------------------------------   Welcome, and two descriptors by SCM_RIGHTS:
//                                              control (read-only), buckets
//     keeps the connection open: the daemon counts its clients by it
//
// Anything else on the socket, from either side, is answered by closing it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace sluice::shm {

inline constexpr uint64_t kHelloMagic = 0x4f4c'4c45'4843'4c53;    // "SLCHELLO" in memory order
inline constexpr uint64_t kWelcomeMagic = 0x4d4f'434c'4557'4c53;  // "SLWELCOM" in memory order

inline constexpr char kDefaultRuntimeDir[] = "/run/sluice";
inline constexpr char kRuntimeDirVariable[] = "SLUICE_RUNTIME_DIR";
inline constexpr char kAttachSocketName[] = "attach.sock";
inline constexpr char kAdminSocketName[] = "admin.sock";

// CLOCK_MONOTONIC of daemon and client may differ by this much beyond the time the handshake took.
// More means another time namespace: their words would not mean the same.
inline constexpr uint64_t kClockToleranceNs = 50'000'000;
// Either side closes a connection whose handshake takes longer.
inline constexpr uint64_t kHandshakeTimeoutNs = 1'000'000'000;

inline constexpr size_t kLabelBytes = 32;         // with its NUL
inline constexpr size_t kWelcomeTextBytes = 128;  // with its NUL
inline constexpr int kWelcomeFds = 2;             // control, buckets

struct Hello {
  uint64_t magic;  // kHelloMagic
  uint32_t abi_major;
  uint32_t abi_minor;
  uint64_t layout_hash;
  uint32_t pid;             // in the client's namespace; for people
  uint32_t holder;          // the number that it had from a daemon before; 0: none
  char label[kLabelBytes];  // for people; any bytes, NUL-padded
};
static_assert(sizeof(Hello) == 64);

enum class WelcomeStatus : uint32_t {
  kAttached = 0,      // two descriptors come with it
  kOtherVersion = 1,  // the client's ABI or layout is not the daemon's
  kTooMany = 2,       // as many clients as the daemon takes
  kNotReady = 3,      // the daemon is starting or ending
};

struct Welcome {
  uint64_t magic;  // kWelcomeMagic
  WelcomeStatus status;
  uint32_t abi_major;
  uint32_t abi_minor;
  uint32_t holder;  // by which it holds places of requests in flight; 0: it cannot
  uint64_t layout_hash;
  uint64_t daemon_now_ns;  // CLOCK_MONOTONIC
  uint64_t generation;
  char text[kWelcomeTextBytes];  // for people, NUL-terminated; empty when attached
};
static_assert(sizeof(Welcome) == 48 + kWelcomeTextBytes);

}  // namespace sluice::shm
