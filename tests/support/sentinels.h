#pragma once

#include <array>
#include <memory>
#include <string>
#include <vector>

#include "tests/support/redis_process.h"

namespace sluice::test {

// A primary, its replica and three sentinels that watch them under the name "watched"; two of the
// three decide. Check `healthy()` after construction.
class Sentinels {
 public:
  static constexpr size_t kCount = 3;
  static constexpr const char* kMaster = "watched";

  struct Options {
    std::vector<std::string> server;         // further arguments of both servers
    std::vector<std::string> sentinel;       // further ones of the sentinels
    std::vector<std::string> sentinel_file;  // further lines of their files
    bool tls = false;                        // all of them talk TLS to each other and to clients
    bool ipv6 = false;                       // over ::1
  };
  Sentinels() : Sentinels(Options{}) {}
  explicit Sentinels(Options options);

  bool healthy() const { return healthy_; }
  // As they were at the start.
  RedisProcess& primary() { return *servers_[0]; }
  RedisProcess& replica() { return *servers_[1]; }
  RedisProcess& sentinel(size_t i) { return *sentinels_[i]; }
  std::vector<std::string> addresses() const;  // of the sentinels
  std::string logs() const;                    // of all that were started

 private:
  bool Agree() const;

  const Options options_;
  std::array<std::unique_ptr<RedisProcess>, 2> servers_;
  std::array<std::unique_ptr<RedisProcess>, kCount> sentinels_;
  bool healthy_ = false;
};

}  // namespace sluice::test
