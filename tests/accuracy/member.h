// One host of the lab under one scheme: its clients, its daemon, and what both remember. Pure: time
// is the host's own clock, messages go out by Wire and come in by OnReply. Single-threaded.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "daemon/lease/lease.h"
#include "daemon/redis/reply.h"
#include "tests/accuracy/scenario.h"
#include "tests/simulation/random.h"

namespace sluice::accuracy {

inline constexpr uint64_t kSyncNs = 50 * kMilliNs;

enum class Scheme : uint8_t { kStrict, kApproximate, kOverdraft };

// What runs on Redis for a scheme.
struct Backend {
  std::string key;
  std::string script;
  bool fenced = false;  // the argument at lease::kPrimaryArg names the primary
};

struct Message {
  uint32_t incarnation = 0;  // of the daemon that sent it; its later ones do not hear the reply
  uint64_t token = 0;
  std::shared_ptr<std::vector<std::string>> args;  // of the script; none: a ping
  uint64_t buckets = 0;                            // that the call is about
  redis::Reply reply;
};

class Wire {
 public:
  virtual ~Wire() = default;
  virtual void Send(uint32_t host, const Message& message) = 0;
};

class Member {
 public:
  virtual ~Member() = default;

  // A client asks for `cost` tokens of a key. kWait: the answer comes from Answered() with this
  // ticket.
  virtual lease::Verdict Check(uint32_t key, uint64_t cost, uint64_t ticket, uint64_t now_ns) = 0;
  // Does what is due. Call it after each of the others, and at the latest at NextNs().
  virtual void Poll(uint64_t now_ns) = 0;
  virtual uint64_t NextNs() const = 0;
  virtual void OnReply(const Message& message, uint64_t now_ns) = 0;
  virtual std::vector<lease::Lease::Answer> Answered(uint64_t now_ns) = 0;

  // The daemon ends; clients go on with what the segments hold. Start: the next one adopts them.
  virtual void KillDaemon(uint64_t now_ns) = 0;
  virtual void StartDaemon(uint64_t now_ns) = 0;
  // What is wrong with it; empty: nothing.
  virtual std::string fault() const { return {}; }
};

struct MemberOptions {
  Scenario scenario;
  uint32_t host = 0;
  Wire* wire = nullptr;
  uint64_t number = 0;  // no other of the run has it
  simulation::Random random{0};
};

// `spare_us`: as in lease::Terms.
std::unique_ptr<Member> NewLeaseMember(const MemberOptions& options, uint64_t spare_us,
                                       uint64_t now_ns);
std::unique_ptr<Member> NewApproximateMember(const MemberOptions& options, uint64_t now_ns);

}  // namespace sluice::accuracy
