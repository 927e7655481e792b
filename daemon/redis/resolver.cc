#include "daemon/redis/resolver.h"

#include <netdb.h>
#include <signal.h>

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

namespace sluice::redis {
namespace {

// Addresses kept of one name.
constexpr size_t kMaxAddresses = 16;

absl::StatusOr<std::vector<ring::Address>> Ask(const std::string& host) {
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* list = nullptr;
  const int rc = getaddrinfo(host.c_str(), nullptr, &hints, &list);
  if (rc != 0) {
    return absl::NotFoundError(absl::StrCat("cannot resolve \"", host, "\": ", gai_strerror(rc)));
  }
  std::vector<ring::Address> addresses;
  for (const addrinfo* it = list; it != nullptr && addresses.size() < kMaxAddresses;
       it = it->ai_next) {
    if (it->ai_family != AF_INET && it->ai_family != AF_INET6) continue;
    ring::Address address;
    std::memcpy(&address.storage, it->ai_addr, it->ai_addrlen);
    address.length = it->ai_addrlen;
    addresses.push_back(address);
  }
  freeaddrinfo(list);
  if (addresses.empty()) {
    return absl::NotFoundError(absl::StrCat("\"", host, "\" has no IP address"));
  }
  return addresses;
}

ring::Address WithPort(ring::Address address, uint16_t port) {
  // sin_port and sin6_port lie at the same place: behind the family.
  static_assert(offsetof(sockaddr_in, sin_port) == offsetof(sockaddr_in6, sin6_port));
  const uint16_t network_order = htons(port);
  std::memcpy(reinterpret_cast<char*>(&address.storage) + offsetof(sockaddr_in, sin_port),
              &network_order, sizeof network_order);
  return address;
}

}  // namespace

struct Resolver::Shared {
  struct Answer {
    bool pending = true;
    int64_t asked_ns = 0;
    size_t next = 0;  // of the addresses, for the next Resolve
    absl::StatusOr<std::vector<ring::Address>> addresses;
  };
  std::mutex mutex;
  std::condition_variable work;
  std::function<void()> wake;  // empty once the resolver is gone
  bool stop = false;
  std::deque<std::string> queue;
  std::map<std::string, Answer> answers;
};

Resolver::Resolver(std::function<void()> wake) : shared_(std::make_shared<Shared>()) {
  shared_->wake = std::move(wake);
}

Resolver::~Resolver() {
  std::lock_guard lock(shared_->mutex);
  shared_->stop = true;
  shared_->wake = nullptr;
  shared_->work.notify_all();
}

void Resolver::Run(std::shared_ptr<Shared> shared) {
  std::unique_lock lock(shared->mutex);
  for (;;) {
    shared->work.wait(lock, [&] { return shared->stop || !shared->queue.empty(); });
    if (shared->stop) return;
    const std::string host = std::move(shared->queue.front());
    shared->queue.pop_front();
    lock.unlock();
    absl::StatusOr<std::vector<ring::Address>> addresses = Ask(host);
    lock.lock();
    const auto answer = shared->answers.find(host);
    if (answer != shared->answers.end()) {
      answer->second.addresses = std::move(addresses);
      answer->second.pending = false;
    }
    if (shared->wake) shared->wake();
  }
}

std::optional<absl::StatusOr<ring::Address>> Resolver::Resolve(const Endpoint& endpoint,
                                                               int64_t now_ns) {
  if (endpoint.is_unix()) return ring::UnixAddress(endpoint.host);
  absl::StatusOr<ring::Address> numeric = ring::NumericAddress(endpoint.host, endpoint.port);
  if (numeric.ok()) return numeric;

  std::lock_guard lock(shared_->mutex);
  auto found = shared_->answers.find(endpoint.host);
  if (found != shared_->answers.end()) {
    Shared::Answer& answer = found->second;
    if (answer.pending) return std::nullopt;
    if (now_ns - answer.asked_ns < kFreshNs) {
      if (!answer.addresses.ok()) return answer.addresses.status();
      const std::vector<ring::Address>& all = *answer.addresses;
      return WithPort(all[answer.next++ % all.size()], endpoint.port);
    }
  }
  if (shared_->answers.size() >= kMaxNames && found == shared_->answers.end()) {
    const auto oldest = std::min_element(
        shared_->answers.begin(), shared_->answers.end(),
        [](const auto& a, const auto& b) { return a.second.asked_ns < b.second.asked_ns; });
    if (oldest->second.pending) return absl::ResourceExhaustedError("too many names to resolve");
    shared_->answers.erase(oldest);
  }
  Shared::Answer& answer = shared_->answers[endpoint.host];
  answer.pending = true;
  answer.asked_ns = now_ns;
  shared_->queue.push_back(endpoint.host);
  shared_->work.notify_one();
  if (!started_) {
    started_ = true;
    // The daemon's threads decide which of them takes signals; this one takes none.
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    std::thread(Run, shared_).detach();
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }
  return std::nullopt;
}

}  // namespace sluice::redis
