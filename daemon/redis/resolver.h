#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "daemon/redis/endpoint.h"
#include "daemon/ring/address.h"

namespace sluice::redis {

// Turns endpoints into addresses without ever blocking the caller. Numeric addresses and unix
// paths are answered at once; names are asked for on a thread of its own, started by the first
// name, since the system's resolver blocks for as long as it likes. One thread uses it.
class Resolver {
 public:
  // `wake` is called from the other thread when an answer has come; never after destruction.
  explicit Resolver(std::function<void()> wake);
  // Does not wait for a lookup that hangs.
  ~Resolver();
  Resolver(const Resolver&) = delete;
  Resolver& operator=(const Resolver&) = delete;

  // Nothing while the answer is on its way: ask again after a wake. A name with several addresses
  // gives them in turn, so that a retry tries the next one. Answers are kept kFreshNs.
  // NotFound when the name has no address.
  std::optional<absl::StatusOr<ring::Address>> Resolve(const Endpoint& endpoint, int64_t now_ns);

  // How long an answer is used before the name is asked again.
  static constexpr int64_t kFreshNs = 5'000'000'000;
  // Names kept and asked at once; the oldest answer goes first.
  static constexpr size_t kMaxNames = 1024;

 private:
  struct Shared;  // outlives the resolver while a lookup hangs
  static void Run(std::shared_ptr<Shared> shared);

  std::shared_ptr<Shared> shared_;
  bool started_ = false;
};

}  // namespace sluice::redis
