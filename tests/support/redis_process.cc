#include "tests/support/redis_process.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <thread>

#include "acl_lines.h"
#include "daemon/redis/codec.h"

namespace sluice::test {
namespace {

// Looks at a condition, 20 ms apart; 20 s in all, for machines under load.
constexpr int kLooks = 1000;
constexpr auto kBetweenLooks = std::chrono::milliseconds(20);
// A port can be taken between its choice and its use.
constexpr int kStarts = 5;
constexpr int kCommandSeconds = 5;

template <typename Condition>
bool Eventually(Condition condition) {
  for (int i = 0; i < kLooks; ++i) {
    if (condition()) return true;
    std::this_thread::sleep_for(kBetweenLooks);
  }
  return false;
}

sockaddr_in Loopback(uint16_t port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(port);
  return address;
}

redis::Reply TestError(const std::string& what) {
  redis::Reply reply;
  reply.kind = redis::Reply::Kind::kError;
  reply.text = "TEST " + what;
  return reply;
}

}  // namespace

TempDir::TempDir() {
  const char* base = std::getenv("TMPDIR");
  path_ = std::string(base != nullptr ? base : "/tmp") + "/sluice-test-XXXXXX";
  if (mkdtemp(path_.data()) == nullptr) path_.clear();
}

TempDir::~TempDir() {
  std::error_code ignored;
  if (!path_.empty()) std::filesystem::remove_all(path_, ignored);
}

std::vector<std::string> AclWords(std::string_view line) {
  std::vector<std::string> words;
  for (size_t at = 0; at < line.size();) {
    const size_t space = std::min(line.find(' ', at), line.size());
    words.emplace_back(line.substr(at, space - at));
    if (words.back() == ">PASSWORD") words.back() = std::string(">") + kPassword;
    if (words.back() == "~PREFIX:*") words.back() = "~rl:*";
    at = space + 1;
  }
  return words;
}

bool HasIpv6Loopback() {
  const int fd = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in6 address{};
  address.sin6_family = AF_INET6;
  address.sin6_addr = in6addr_loopback;
  const bool bound =
      fd >= 0 && bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0;
  if (fd >= 0) close(fd);
  return bound;
}

uint16_t FreePort() {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address = Loopback(0);
  socklen_t length = sizeof address;
  if (fd < 0 || bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 ||
      getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length) != 0) {
    address.sin_port = 0;
  }
  if (fd >= 0) close(fd);
  return ntohs(address.sin_port);
}

redis::Reply RedisCommand(uint16_t port, const std::vector<std::string>& arguments) {
  std::string command;
  redis::AppendArrayHead(&command, arguments.size());
  for (const std::string& argument : arguments) redis::AppendBulk(&command, argument);

  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return TestError("no socket");
  const timeval limit{kCommandSeconds, 0};
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  const sockaddr_in address = Loopback(port);
  redis::Reply result = TestError("no connection");
  if (connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0 &&
      send(fd, command.data(), command.size(), MSG_NOSIGNAL) ==
          static_cast<ssize_t>(command.size())) {
    redis::ReplyReader reader;
    char buffer[16384];
    for (;;) {
      const ssize_t got = recv(fd, buffer, sizeof buffer, 0);
      // With a time limit a call is not begun again by itself after the process was stopped.
      if (got < 0 && errno == EINTR) continue;
      if (got <= 0) {
        result =
            TestError(got == 0 ? "no reply: closed" : std::string("no reply: ") + strerror(errno));
        break;
      }
      if (!reader.Feed(std::string_view(buffer, static_cast<size_t>(got))).ok()) {
        result = TestError("no reply that can be read");
        break;
      }
      if (std::optional<redis::Reply> reply = reader.Next()) {
        result = *std::move(reply);
        break;
      }
    }
  }
  close(fd);
  return result;
}

RedisProcess::RedisProcess(Options options) : options_(std::move(options)) {
  for (int i = 0; i < kStarts && !running(); ++i) {
    port_ = options_.port != 0 ? options_.port : FreePort();
    tls_port_ = options_.tls ? FreePort() : 0;
    bus_port_ = FreePort();
    Spawn();
  }
}

RedisProcess::~RedisProcess() { Kill(); }

std::string RedisProcess::address() const {
  return (options_.ipv6 ? "[::1]:" : "127.0.0.1:") + std::to_string(port_);
}

std::string RedisProcess::tls_address() const {
  return (options_.ipv6 ? "[::1]:" : "127.0.0.1:") + std::to_string(tls_port_);
}

std::string RedisProcess::log() const {
  std::ifstream file(dir_.path() + "/log");
  return std::string(std::istreambuf_iterator<char>(file), {});
}

std::vector<std::string> RedisProcess::Words() const {
  std::vector<std::string> words = {
      "redis-server", "--port", std::to_string(port_), "--dir", dir_.path(), "--bind", "127.0.0.1"};
  if (options_.ipv6) words.emplace_back("::1");
  if (!options_.sentinel.empty()) {
    // A sentinel keeps what it learns in its file: a restart finds it there.
    const std::string file = dir_.path() + "/sentinel.conf";
    if (!std::filesystem::exists(file)) {
      std::ofstream out(file);
      for (const std::string& line : options_.sentinel) out << line << "\n";
    }
    words.insert(words.begin() + 1, file);
    words.push_back("--sentinel");
  } else {
    words.insert(words.end(), {"--save", "", "--appendonly", "no", "--user"});
    const std::vector<std::string> rights = AclWords(redis::kUserAcl);
    words.insert(words.end(), rights.begin(), rights.end());
  }
  if (options_.tls) words.insert(words.end(), {"--tls-port", std::to_string(tls_port_)});
  if (options_.cluster && options_.tls) words.insert(words.end(), {"--tls-cluster", "yes"});
  if (options_.cluster) {
    words.insert(words.end(), {"--cluster-enabled", "yes", "--cluster-port",
                               std::to_string(bus_port_), "--cluster-node-timeout", "2000"});
  }
  words.insert(words.end(), options_.arguments.begin(), options_.arguments.end());
  return words;
}

bool RedisProcess::Spawn() {
  std::vector<std::string> words = Words();
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  const std::string log_path = dir_.path() + "/log";
  const pid_t parent = getpid();

  const pid_t child = fork();
  if (child < 0) return false;
  if (child == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(127);  // the parent died before the signal was asked for
    const int log_fd = open(log_path.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
    dup2(log_fd, STDOUT_FILENO);
    dup2(log_fd, STDERR_FILENO);
    execvp(argv[0], argv.data());
    _exit(127);
  }
  pid_ = child;
  if (WaitUntilItAnswers()) return true;
  Kill();
  return false;
}

bool RedisProcess::WaitUntilItAnswers() {
  bool answers = false;
  Eventually([&] {
    if (waitpid(pid_, nullptr, WNOHANG) == pid_) {
      pid_ = -1;
      return true;  // it ended: nothing to wait for
    }
    // The pid, since another test's server may have taken the port first; who may not ask for it
    // (NOAUTH, NOPERM) is told that something is there.
    const redis::Reply reply = Command({"INFO", "server"});
    answers = reply.text.find("process_id:" + std::to_string(pid_) + "\r") != std::string::npos ||
              reply.text.starts_with("NO");
    return answers;
  });
  return answers;
}

void RedisProcess::Pause() { kill(pid_, SIGSTOP); }
void RedisProcess::Resume() { kill(pid_, SIGCONT); }

void RedisProcess::Kill() {
  if (pid_ <= 0) return;
  kill(pid_, SIGKILL);
  waitpid(pid_, nullptr, 0);
  pid_ = -1;
}

bool RedisProcess::Restart() {
  Kill();
  return Spawn();
}

RedisCluster::RedisCluster(const std::vector<std::string>& arguments, bool tls, bool ipv6)
    : ipv6_(ipv6) {
  for (std::unique_ptr<RedisProcess>& node : nodes_) {
    node = std::make_unique<RedisProcess>(
        RedisProcess::Options{.cluster = true, .arguments = arguments, .tls = tls, .ipv6 = ipv6});
    if (!node->running()) return;
  }
  healthy_ = Form() && Eventually([&] { return Agree(); });
}

bool RedisCluster::Form() {
  for (size_t i = 0; i < kNodes; ++i) {
    ids_[i] = nodes_[i]->Command({"CLUSTER", "MYID"}).text;
    nodes_[i]->Command({"CLUSTER", "SET-CONFIG-EPOCH", std::to_string(i + 1)});
    const redis::Reply added =
        nodes_[i]->Command({"CLUSTER", "ADDSLOTSRANGE", std::to_string(16384 * i / kNodes),
                            std::to_string(16384 * (i + 1) / kNodes - 1)});
    if (added.is_error()) return false;
  }
  // MEET takes a port and a bus port; the others learn of each other by gossip.
  for (size_t i = 1; i < kNodes; ++i) {
    const redis::Reply config = nodes_[i]->Command({"CONFIG", "GET", "cluster-port"});
    if (config.elements.size() != 2) return false;
    const std::string port = std::to_string(nodes_[i]->client_port());
    const redis::Reply met =
        nodes_[0]->Command({"CLUSTER", "MEET", LoopbackHost(ipv6_), port, config.elements[1].text});
    if (met.is_error()) return false;
  }
  return true;
}

bool RedisCluster::Agree() const {
  for (const std::unique_ptr<RedisProcess>& node : nodes_) {
    if (node->Command({"CLUSTER", "INFO"}).text.find("cluster_state:ok") == std::string::npos) {
      return false;
    }
    if (node->Command({"CLUSTER", "SLOTS"}).elements.size() != kNodes) return false;
  }
  return true;
}

std::vector<std::string> RedisCluster::addresses() const {
  std::vector<std::string> all;
  for (const std::unique_ptr<RedisProcess>& node : nodes_) {
    all.push_back(node->client_address());
  }
  return all;
}

size_t RedisCluster::FirstOwner(uint32_t slot) {
  size_t owner = 0;
  while (slot >= 16384 * (owner + 1) / kNodes) ++owner;
  return owner;
}

void RedisCluster::BeginMigration(uint32_t slot, size_t from, size_t to) {
  nodes_[to]->Command({"CLUSTER", "SETSLOT", std::to_string(slot), "IMPORTING", ids_[from]});
  nodes_[from]->Command({"CLUSTER", "SETSLOT", std::to_string(slot), "MIGRATING", ids_[to]});
}

void RedisCluster::FinishMigration(uint32_t slot, size_t from, size_t to) {
  const std::string number = std::to_string(slot);
  const redis::Reply keys = nodes_[from]->Command({"CLUSTER", "GETKEYSINSLOT", number, "100"});
  const std::string port = std::to_string(nodes_[to]->client_port());
  for (const redis::Reply& key : keys.elements) {
    nodes_[from]->Command({"MIGRATE", LoopbackHost(ipv6_), port, key.text, "0", "5000"});
  }
  nodes_[to]->Command({"CLUSTER", "SETSLOT", number, "NODE", ids_[to]});
  nodes_[from]->Command({"CLUSTER", "SETSLOT", number, "NODE", ids_[to]});
  for (size_t i = 0; i < kNodes; ++i) {
    if (i != from && i != to) nodes_[i]->Command({"CLUSTER", "SETSLOT", number, "NODE", ids_[to]});
  }
}

}  // namespace sluice::test
