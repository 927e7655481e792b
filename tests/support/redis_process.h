#pragma once

#include <sys/types.h>

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "daemon/redis/reply.h"

namespace sluice::test {

// A directory of its own below the test's temporary directory; removed with everything in it.
class TempDir {
 public:
  TempDir();
  ~TempDir();
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// Whether this machine has ::1.
bool HasIpv6Loopback();

// A TCP port of 127.0.0.1 that was free a moment ago.
uint16_t FreePort();

// Sends one command over a connection of its own and reads its reply, 5 s at most. A failure gives
// an error reply that starts with "TEST ".
redis::Reply RedisCommand(uint16_t port, const std::vector<std::string>& arguments);

// "127.0.0.1" or "::1".
inline const char* LoopbackHost(bool ipv6) { return ipv6 ? "::1" : "127.0.0.1"; }

// The user that every server has: with the rights that ship (daemon/redis/user.acl) and no more,
// for the prefix "rl".
inline constexpr const char* kUser = "sluice";
inline constexpr const char* kPassword = "of-the-tests";
// The words of an ACL line that ships, those that stand for the operator's own filled in.
std::vector<std::string> AclWords(std::string_view line);

// One redis-server (or sentinel) on 127.0.0.1, with a directory of its own and nothing persisted.
// Killed by its pid when the object goes, and by the kernel when the test dies first. Check
// `running()` after construction: `log()` says why not.
class RedisProcess {
 public:
  struct Options {
    bool cluster = false;
    std::vector<std::string> arguments;  // further ones, "--name", "value"
    uint16_t port = 0;                   // 0: a free one
    bool tls = false;                    // a port under TLS too; `arguments` name certificates
    std::vector<std::string> sentinel;   // not empty: a sentinel, with these lines in its file
    bool ipv6 = false;                   // on ::1 too, which its addresses name then
  };
  explicit RedisProcess(Options options);
  ~RedisProcess();
  RedisProcess(const RedisProcess&) = delete;
  RedisProcess& operator=(const RedisProcess&) = delete;

  bool running() const { return pid_ > 0; }
  pid_t pid() const { return pid_; }
  uint16_t port() const { return port_; }
  std::string address() const;
  uint16_t tls_port() const { return tls_port_; }  // 0: none
  std::string tls_address() const;
  // Where clients are to go: under TLS if it has a port for that.
  std::string client_address() const { return tls_port_ != 0 ? tls_address() : address(); }
  uint16_t client_port() const { return tls_port_ != 0 ? tls_port_ : port_; }
  std::string log() const;

  redis::Reply Command(const std::vector<std::string>& arguments) const {
    return RedisCommand(port_, arguments);
  }

  void Pause();   // SIGSTOP
  void Resume();  // SIGCONT
  void Kill();    // SIGKILL, and waits for the end
  // Starts again on the same port, after Kill. Whether it came up.
  bool Restart();

 private:
  std::vector<std::string> Words() const;
  bool Spawn();
  bool WaitUntilItAnswers();

  Options options_;
  TempDir dir_;
  uint16_t port_ = 0;
  uint16_t tls_port_ = 0;
  uint16_t bus_port_ = 0;
  pid_t pid_ = -1;
};

// Three primaries without replicas that share all slots in three equal runs, in the order of
// node(0) to node(2). Check `healthy()` after construction.
class RedisCluster {
 public:
  static constexpr size_t kNodes = 3;

  // Under TLS the nodes talk to each other and to clients so; tests still reach their plain ports.
  // With `ipv6` they know each other as ::1.
  explicit RedisCluster(const std::vector<std::string>& arguments = {}, bool tls = false,
                        bool ipv6 = false);

  bool healthy() const { return healthy_; }
  RedisProcess& node(size_t i) { return *nodes_[i]; }
  const std::string& id(size_t i) const { return ids_[i]; }
  std::vector<std::string> addresses() const;  // under TLS: of the ports under TLS
  // Which node owned the slot at the start.
  static size_t FirstOwner(uint32_t slot);

  // Opens a slot's migration: `from` answers ASK for what it does not hold, `to` takes ASKING.
  void BeginMigration(uint32_t slot, size_t from, size_t to);
  // Moves the slot's keys and gives the slot to `to`, on all nodes.
  void FinishMigration(uint32_t slot, size_t from, size_t to);

 private:
  bool Form();
  bool Agree() const;

  std::array<std::unique_ptr<RedisProcess>, kNodes> nodes_;
  std::array<std::string, kNodes> ids_;
  const bool ipv6_;
  bool healthy_ = false;
};

}  // namespace sluice::test
