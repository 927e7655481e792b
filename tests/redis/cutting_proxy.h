#pragma once

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include "tests/redis/listen.h"

namespace sluice::redis {

// Stands on a port of its own before a server on 127.0.0.1 and lets so many of the server's bytes
// through, on each connection; then it cuts, or is silent. Its thread ends with the object.
class CuttingProxy {
 public:
  enum class Then { kCut, kSilence };

  CuttingProxy(uint16_t server, size_t bytes, Then then) : server_(server), then_(then) {
    bytes_ = bytes;
    fd_ = ListenOnLoopback(&port_);
    thread_ = std::thread([this] { Run(); });
  }
  ~CuttingProxy() {
    stop_ = true;
    thread_.join();
    close(fd_);
  }
  std::string address() const { return "127.0.0.1:" + std::to_string(port_); }
  // From the next connection on.
  void LetThrough(size_t bytes) { bytes_ = bytes; }
  // The server's bytes on the last connection that has ended, those held back included.
  size_t seen() const { return seen_; }

 private:
  struct Pair {
    int client = -1;
    int server = -1;
    size_t bytes = 0;  // still let through
    size_t seen = 0;
  };

  void Run() {
    std::vector<Pair> pairs;
    while (!stop_) {
      std::vector<pollfd> polls = {{fd_, POLLIN, 0}};
      for (const Pair& pair : pairs) {
        polls.push_back({pair.client, POLLIN, 0});
        polls.push_back({pair.server, POLLIN, 0});
      }
      if (poll(polls.data(), polls.size(), 5) < 0) continue;
      for (size_t i = pairs.size(); i-- > 0;) {
        bool goes_on = true;
        if (polls[2 * i + 1].revents != 0) goes_on = FromClient(&pairs[i]);
        if (goes_on && polls[2 * i + 2].revents != 0) goes_on = FromServer(&pairs[i]);
        if (goes_on) continue;
        seen_ = pairs[i].seen;
        Close(pairs[i]);
        pairs.erase(pairs.begin() + static_cast<ptrdiff_t>(i));
      }
      if ((polls[0].revents & POLLIN) != 0) Accept(&pairs);
    }
    for (const Pair& pair : pairs) Close(pair);
  }

  void Accept(std::vector<Pair>* pairs) {
    Pair pair;
    pair.client = accept4(fd_, nullptr, nullptr, SOCK_CLOEXEC);
    pair.server = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    pair.bytes = bytes_;
    const sockaddr_in address = Loopback(server_);
    if (connect(pair.server, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
      return Close(pair);
    }
    pairs->push_back(pair);
  }

  static void Close(const Pair& pair) {
    close(pair.client);
    close(pair.server);
  }

  static bool FromClient(Pair* pair) {
    char buffer[65536];
    const ssize_t got = recv(pair->client, buffer, sizeof buffer, MSG_DONTWAIT);
    return got > 0 && send(pair->server, buffer, static_cast<size_t>(got), MSG_NOSIGNAL) == got;
  }

  bool FromServer(Pair* pair) const {
    char buffer[65536];
    const ssize_t got = recv(pair->server, buffer, sizeof buffer, MSG_DONTWAIT);
    if (got <= 0) return false;
    const size_t whole = static_cast<size_t>(got);
    const size_t through = std::min(whole, pair->bytes);
    pair->seen += whole;
    pair->bytes -= through;
    if (through > 0 && send(pair->client, buffer, through, MSG_NOSIGNAL) < 0) return false;
    return through == whole || then_ == Then::kSilence;
  }

  const uint16_t server_;
  const Then then_;
  int fd_ = -1;
  uint16_t port_ = 0;
  std::atomic<size_t> bytes_{0};
  std::atomic<size_t> seen_{0};
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

}  // namespace sluice::redis
