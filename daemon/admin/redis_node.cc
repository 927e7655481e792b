#include "daemon/admin/redis_node.h"

#include <openssl/ssl.h>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "daemon/config/parse.h"
#include "daemon/redis/codec.h"

namespace sluice::admin {
namespace {

// Without its port and brackets.
std::string HostOf(const std::string& address) {
  std::string host = address.substr(0, address.rfind(':'));
  if (host.size() > 1 && host.front() == '[') host = host.substr(1, host.size() - 2);
  return host;
}

redisContext* Connect(const std::string& address) {
  const timeval timeout = {kGlobalCommandMs / 1000, kGlobalCommandMs % 1000 * 1000};
  if (address.starts_with("unix:")) {
    return redisConnectUnixWithTimeout(address.substr(5).c_str(), timeout);
  }
  const size_t colon = address.rfind(':');
  int port = 0;
  if (colon == std::string::npos || !absl::SimpleAtoi(address.substr(colon + 1), &port)) {
    return nullptr;
  }
  return redisConnectWithTimeout(HostOf(address).c_str(), port, timeout);
}

}  // namespace

Reply Node::Command(const std::vector<std::string>& args) {
  if (tls_ != nullptr) {
    std::string command;
    redis::AppendArrayHead(&command, args.size());
    for (const std::string& arg : args) redis::AppendBulk(&command, arg);
    return TlsCommand(command);
  }
  std::vector<const char*> parts;
  std::vector<size_t> sizes;
  for (const std::string& arg : args) {
    parts.push_back(arg.data());
    sizes.push_back(arg.size());
  }
  return Reply(static_cast<redisReply*>(redisCommandArgv(
      context_.get(), static_cast<int>(parts.size()), parts.data(), sizes.data())));
}

// The socket's own time-outs bound each write and read.
Reply Node::TlsCommand(const std::string& command) {
  SSL* const ssl = tls_->get();
  void* reply = nullptr;
  bool alive = SSL_write(ssl, command.data(), static_cast<int>(command.size())) > 0;
  while (alive && reply == nullptr) {
    char bytes[16 * 1024];
    const int got = SSL_read(ssl, bytes, sizeof bytes);
    alive = got > 0 &&
            redisReaderFeed(context_->reader, bytes, static_cast<size_t>(got)) == REDIS_OK &&
            redisReaderGetReply(context_->reader, &reply) == REDIS_OK;
  }
  if (!alive) tls_error_ = "the connection was lost, or Redis answered too late";
  return Reply(static_cast<redisReply*>(reply));
}

bool Node::ShakeHands(const NodeAddress& at, const redis::TlsContext& tls) {
  absl::StatusOr<std::unique_ptr<redis::TlsSession>> session =
      redis::TlsSession::New(tls, at.hostname.empty() ? HostOf(at.address) : at.hostname);
  if (!session.ok()) {
    tls_error_ = std::string(session.status().message());
    return false;
  }
  tls_ = *std::move(session);
  if (SSL_set_fd(tls_->get(), context_->fd) == 1 && SSL_do_handshake(tls_->get()) == 1) return true;
  tls_error_ = absl::StrCat("TLS handshake: ", tls_->TakeTrouble().what);
  return false;
}

std::unique_ptr<Node> Node::Open(const NodeAddress& at, const config::RedisConfig& redis,
                                 const redis::TlsContext* tls, std::string* problem) {
  const std::string& address = at.address;
  auto node = std::make_unique<Node>();
  node->context_.reset(Connect(address));
  if (node->context_ == nullptr || node->is_broken()) {
    *problem = absl::StrCat(address, ": ", node->context_ ? node->error() : "no address");
    return nullptr;
  }
  const timeval timeout = {kGlobalCommandMs / 1000, kGlobalCommandMs % 1000 * 1000};
  redisSetTimeout(node->context_.get(), timeout);
  if (tls != nullptr && !node->ShakeHands(at, *tls)) {
    *problem = absl::StrCat(address, ": ", node->error());
    return nullptr;
  }
  std::string why;
  if (!node->LogIn(redis, &why)) {
    *problem = absl::StrCat(address, ": ", why);
    return nullptr;
  }
  return node;
}

bool Node::LogIn(const config::RedisConfig& redis, std::string* problem) {
  const absl::StatusOr<std::string> password = config::ReadPassword(redis);
  if (!password.ok()) {
    *problem = std::string(password.status().message());
    return false;
  }
  if (!password->empty()) {
    std::vector<std::string> auth = {"AUTH"};
    if (!redis.username.empty()) auth.push_back(redis.username);
    auth.push_back(*password);
    const Reply reply = Command(auth);
    if (reply == nullptr || reply->type == REDIS_REPLY_ERROR) {
      *problem = reply == nullptr ? error() : std::string(TextOf(reply.get()));
      return false;
    }
  }
  const Reply time = Command({"TIME"});
  int64_t seconds = 0;
  int64_t micros = 0;
  if (time == nullptr || time->type != REDIS_REPLY_ARRAY || time->elements != 2 ||
      !absl::SimpleAtoi(std::string(TextOf(time->element[0])), &seconds) ||
      !absl::SimpleAtoi(std::string(TextOf(time->element[1])), &micros)) {
    *problem = time == nullptr ? error() : absl::StrCat("TIME: ", std::string(TextOf(time.get())));
    return false;
  }
  offset_us_ =
      seconds * 1'000'000 + micros - static_cast<int64_t>(shm::MonotonicClock::PreciseNs() / 1000);
  return true;
}

}  // namespace sluice::admin
