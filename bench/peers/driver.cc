// Decisions by sluice and by servers, as peers.py drives them: for each line with a number this
// makes as many decisions, and answers with its CPU time in ns and how many were allowed.
//
//   sluice_peers handle | keyed
//   sluice_peers redis-evalsha | redis-incr | memcached | http PORT DEPTH [PATH]
//
// DEPTH requests are on their way at once. PATH is what is asked for by http.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "bench/contenders.h"
#include "bench/evalsha.h"

namespace sluice::bench {
namespace {

// Makes `n` decisions; returns how many were allowed.
using Decide = std::function<uint64_t(uint64_t n)>;

// `ask` sends one request, `hear` waits for one answer: whether it allows.
Decide Pipelined(uint64_t depth, const std::function<void(uint64_t n)>& ask,
                 const std::function<bool()>& hear) {
  return [=](uint64_t n) {
    uint64_t allowed = 0;
    for (uint64_t done = 0; done < n;) {
      const uint64_t now = std::min(depth, n - done);
      ask(now);
      for (uint64_t i = 0; i < now; ++i) allowed += hear() ? 1 : 0;
      done += now;
    }
    return allowed;
  };
}

// A blocking connection on loopback whose answers are lines and counted bytes.
class Wire {
 public:
  explicit Wire(uint16_t port) : fd_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    const int on = 1;
    setsockopt(fd_, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    Require(connect(fd_, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0,
            "cannot connect to the server");
  }
  ~Wire() { close(fd_); }
  Wire(const Wire&) = delete;
  Wire& operator=(const Wire&) = delete;

  void Send(std::string_view text) {
    while (!text.empty()) {
      const ssize_t sent = send(fd_, text.data(), text.size(), MSG_NOSIGNAL);
      Require(sent > 0, "cannot write to the server");
      text.remove_prefix(static_cast<size_t>(sent));
    }
  }
  // Up to the next CRLF, which is taken off. Valid until the next call.
  std::string_view Line() {
    for (;;) {
      const size_t end = Held().find("\r\n");
      if (end != std::string_view::npos) return Take(end + 2).substr(0, end);
      Receive();
    }
  }
  void Skip(size_t bytes) {
    while (Held().size() < bytes) Receive();
    Take(bytes);
  }

 private:
  std::string_view Held() const { return {buffer_ + begin_, end_ - begin_}; }
  std::string_view Take(size_t bytes) {
    const std::string_view taken = Held().substr(0, bytes);
    begin_ += bytes;
    return taken;
  }
  void Receive() {
    std::copy(buffer_ + begin_, buffer_ + end_, buffer_);
    end_ -= begin_;
    begin_ = 0;
    const ssize_t got = recv(fd_, buffer_ + end_, sizeof buffer_ - end_, 0);
    Require(got > 0, "the server closed the connection");
    end_ += static_cast<size_t>(got);
  }

  const int fd_;
  size_t begin_ = 0;
  size_t end_ = 0;
  char buffer_[64 * 1024];
};

std::string Repeated(const std::string& text, uint64_t n) {
  std::string all;
  for (uint64_t i = 0; i < n; ++i) all += text;
  return all;
}

Decide ByLines(uint16_t port, uint64_t depth, const std::string& request,
               const std::function<bool(Wire&)>& hear) {
  const auto wire = std::make_shared<Wire>(port);
  const std::string full = Repeated(request, depth);
  return Pipelined(
      depth,
      [wire, full, size = request.size()](uint64_t n) {
        wire->Send(std::string_view(full).substr(0, n * size));
      },
      [wire, hear] { return hear(*wire); });
}

Decide Memcached(uint16_t port, uint64_t depth) {
  Wire setup(port);
  setup.Send(std::string("set ") + kKey + " 0 0 1\r\n0\r\n");
  Require(setup.Line() == "STORED", "memcached refused a key");
  return ByLines(port, depth, std::string("incr ") + kKey + " 1\r\n", [](Wire& wire) {
    const std::string_view line = wire.Line();
    return !line.empty() && line[0] >= '0' && line[0] <= '9';
  });
}

// A request with keep-alive; answers have a Content-Length.
Decide Http(uint16_t port, uint64_t depth, const std::string& path) {
  const std::string request =
      "GET " + path + " HTTP/1.1\r\nHost: localhost\r\nX-User: " + kKey + "\r\n\r\n";
  return ByLines(port, depth, request, [](Wire& wire) {
    const bool allowed = wire.Line().substr(0, 12) == "HTTP/1.1 200";
    size_t body = 0;
    for (std::string_view line = wire.Line(); !line.empty(); line = wire.Line()) {
      constexpr std::string_view kLength = "content-length:";
      if (line.size() <= kLength.size() ||
          strncasecmp(line.data(), kLength.data(), kLength.size()) != 0) {
        continue;
      }
      line.remove_prefix(kLength.size());
      while (line.front() == ' ') line.remove_prefix(1);
      std::from_chars(line.data(), line.data() + line.size(), body);
    }
    wire.Skip(body);
    return allowed;
  });
}

Decide Redis(uint16_t port, uint64_t depth, bool by_script) {
  const auto redis = std::make_shared<RedisConnection>(port);
  return Pipelined(
      depth,
      [redis, by_script](uint64_t n) {
        for (uint64_t i = 0; i < n; ++i) by_script ? redis->AppendEvalsha() : redis->AppendIncr();
      },
      [redis, by_script] { return by_script ? redis->NextDecision() : redis->NextNumber() > 0; });
}

Decide OfSluice(bool by_handle) {
  if (by_handle) {
    return [handle = Stage::Get().Handle("id")](uint64_t n) {
      uint64_t allowed = 0;
      for (uint64_t i = 0; i < n; ++i) {
        allowed += static_cast<uint64_t>(sluice_handle_check(handle, 1, nullptr));
      }
      return allowed;
    };
  }
  return [rule = Stage::Get().Rule("hot")](uint64_t n) {
    uint64_t allowed = 0;
    for (uint64_t i = 0; i < n; ++i) {
      allowed += static_cast<uint64_t>(sluice_rule_check(rule, kKey, kKeyBytes, 1, nullptr));
    }
    return allowed;
  };
}

Decide Of(int argc, char** argv) {
  const std::string_view kind = argc > 1 ? argv[1] : "";
  if (kind == "handle" || kind == "keyed") return OfSluice(kind == "handle");
  Require(argc >= 4, "needs a kind, a port and a depth");
  const auto port = static_cast<uint16_t>(strtoul(argv[2], nullptr, 10));
  const uint64_t depth = std::max(strtoul(argv[3], nullptr, 10), 1ul);
  if (kind == "redis-evalsha" || kind == "redis-incr") {
    return Redis(port, depth, kind == "redis-evalsha");
  }
  if (kind == "memcached") return Memcached(port, depth);
  Require(kind == "http" && argc == 5, "no such kind");
  return Http(port, depth, argv[4]);
}

int Serve(const Decide& decide) {
  unsigned long decisions;
  while (std::scanf("%lu", &decisions) == 1) {
    const uint64_t begin_ns = ThreadCpuNs();
    const uint64_t allowed = decide(decisions);
    std::printf("%lu %lu\n", ThreadCpuNs() - begin_ns, allowed);
    std::fflush(stdout);
  }
  return 0;
}

}  // namespace
}  // namespace sluice::bench

int main(int argc, char** argv) { return sluice::bench::Serve(sluice::bench::Of(argc, argv)); }
