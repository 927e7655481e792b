#include "daemon/admin/holders.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <utility>

#include "daemon/log.h"
#include "shm/places.h"

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77
#endif

namespace sluice::admin {
namespace {

constexpr uint32_t kPidFsMagic =
    0x50494446;  // Linux 6.9: a pidfd's inode is its process's for good

// When the process began, in ticks since the machine did; 0 where /proc does not tell.
uint64_t StartOf(pid_t pid) {
  char path[32];
  snprintf(path, sizeof path, "/proc/%d/stat", pid);
  FILE* const file = fopen(path, "re");
  if (file == nullptr) return 0;
  char text[1024];
  const size_t n = fread(text, 1, sizeof text - 1, file);
  fclose(file);
  text[n] = '\0';
  const char* at = strrchr(text, ')');  // a name may hold anything
  for (int field = 2; at != nullptr && field < 22; ++field) at = strchr(at + 1, ' ');
  return at == nullptr ? 0 : strtoull(at + 1, nullptr, 10);
}

// Tells a process from another that has its pid later.
uint64_t BirthOf(int pidfd, pid_t pid) {
  struct statfs fs;
  struct stat st;
  if (fstatfs(pidfd, &fs) == 0 && static_cast<uint32_t>(fs.f_type) == kPidFsMagic &&
      fstat(pidfd, &st) == 0) {
    return st.st_ino;
  }
  return StartOf(pid);
}

uint64_t OwnerOf(pid_t pid) { return shm::kHolderOwned | static_cast<uint32_t>(pid); }

}  // namespace

Holders::Holders(EventLoop* loop, shm::HolderCell* cells, const shm::MappedBuckets* buckets)
    : loop_(loop),
      cells_(cells),
      buckets_(buckets),
      holders_(std::make_unique<Holder[]>(shm::kMaxHolders)) {}

Holders::~Holders() {
  for (uint32_t i = 0; i < shm::kMaxHolders; ++i) {
    if (holders_[i].process.pidfd.get() >= 0) loop_->Remove(holders_[i].process.pidfd.get());
  }
}

// By the socket where the kernel can (Linux 6.5): then it is that process, whatever its pid is now.
Holders::Process Holders::Open(int socket, pid_t pid) {
  Process process;
  int fd = -1;
  socklen_t size = sizeof fd;
  if (socket >= 0 && getsockopt(socket, SOL_SOCKET, SO_PEERPIDFD, &fd, &size) == 0) {
    process.pidfd.Reset(fd);
  } else if (pid > 0) {
    process.pidfd.Reset(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
  }
  if (process.pidfd.get() >= 0) process.birth = BirthOf(process.pidfd.get(), pid);
  return process;
}

bool Holders::Watch(uint32_t number) {
  const int fd = holders_[number].process.pidfd.get();
  const Ticket ticket = {number, holders_[number].serial};
  return fd >= 0 && loop_->Add(fd, EPOLLIN, [this, ticket](uint32_t) { End(ticket); }).ok();
}

// The cells are this daemon's own, and were the former's: the loads pair with Take's stores.
void Holders::Start(uint64_t now_ns) {
  uint32_t known = 0;
  unseen_since_ns_ = now_ns;
  for (uint32_t i = 1; i < shm::kMaxHolders; ++i) {
    const uint64_t owner = cells_[i].owner.load(std::memory_order_acquire);
    if (owner == 0) continue;
    ++known;
    last_ = i;
    const uint64_t birth = cells_[i].birth.load(std::memory_order_acquire);
    const auto pid = static_cast<pid_t>(static_cast<uint32_t>(owner));
    Holder& holder = holders_[i];
    holder.serial = ++serials_;
    if (pid == 0) {
      unseen_.push_back(i);
      continue;
    }
    holder.process = Open(/*socket=*/-1, pid);
    const bool is_same = birth == 0 || holder.process.birth == 0 || birth == holder.process.birth;
    if (!is_same || !Watch(i)) {
      holder.process.pidfd.Reset(-1);
      ended_.set(i);
    }
  }
  if (known != 0) {
    log::Info("%d clients of the daemon before may hold places; %d of them have ended", known,
              ended_.count());
  }
  GiveBack(now_ns);
  look_ = loop_->Every(kLookAtPlacesNs, [this](uint64_t at_ns) {
    ForgetUnseen(at_ns);
    LookAtRows(at_ns, /*lets_go=*/true);
  });
}

void Holders::Stop(uint64_t now_ns) {
  if (look_ == 0) return;
  loop_->Cancel(std::exchange(look_, 0));
  loop_->Cancel(std::exchange(give_back_, 0));
  GiveBack(now_ns);
}

// The loads pair with the stores here and in GiveBack(), the stores with Start()'s loads.
Holders::Ticket Holders::Take(int socket, pid_t pid, uint32_t asked) {
  Process process = Open(socket, pid);
  if (asked != 0 && asked < shm::kMaxHolders && !ended_[asked] && !holders_[asked].is_attached &&
      cells_[asked].owner.load(std::memory_order_acquire) == OwnerOf(pid) &&
      cells_[asked].birth.load(std::memory_order_acquire) == process.birth) {
    holders_[asked].is_attached = true;
    if (holders_[asked].process.pidfd.get() < 0) {
      holders_[asked].process = std::move(process);
      Watch(asked);
    }
    return {asked, holders_[asked].serial};
  }
  for (uint32_t tries = 1; tries < shm::kMaxHolders; ++tries) {
    const uint32_t number = (last_ + tries - 1) % (shm::kMaxHolders - 1) + 1;
    if (cells_[number].owner.load(std::memory_order_acquire) != 0) continue;
    last_ = number;
    // Before the client learns of it; whose it is stands there whole.
    cells_[number].birth.store(process.birth, std::memory_order_release);
    cells_[number].owner.store(OwnerOf(pid), std::memory_order_release);
    holders_[number] = {.process = std::move(process), .serial = ++serials_, .is_attached = true};
    Watch(number);
    return {number, serials_};
  }
  return {};
}

void Holders::End(const Ticket& ticket) {
  Holder& holder = holders_[ticket.number % shm::kMaxHolders];
  if (ticket.serial == 0 || holder.serial != ticket.serial) return;
  if (holder.process.pidfd.get() >= 0) {
    loop_->Remove(holder.process.pidfd.get());
    holder.process.pidfd.Reset(-1);
  }
  holder.is_attached = false;
  ended_.set(ticket.number % shm::kMaxHolders);
  if (give_back_ != 0) return;
  give_back_ = loop_->After(kGiveBackNs, [this](uint64_t now_ns) {
    give_back_ = 0;
    GiveBack(now_ns);
  });
}

void Holders::ForgetUnseen(uint64_t now_ns) {
  if (unseen_.empty() || now_ns < unseen_since_ns_ + kUnseenHolderNs) return;
  for (const uint32_t i : unseen_) {
    if (!holders_[i].is_attached) End({i, holders_[i].serial});
  }
  unseen_.clear();
}

void Holders::GiveBack(uint64_t now_ns) {
  if (ended_.none()) return;
  LookAtRows(now_ns, /*lets_go=*/false);
  // Only now nothing in the table names them (F4).
  for (uint32_t i = 0; i < shm::kMaxHolders; ++i) {
    if (!ended_[i]) continue;
    holders_[i] = {};
    cells_[i].owner.store(0, std::memory_order_release);  // pairs with Start()'s load
  }
  ended_.reset();
}

// Memory orders: seq_cst as whatever decides about places; the first look at an entry orders
// nothing, for the CAS compares.
void Holders::LookAtRows(uint64_t now_ns, bool lets_go) {
  namespace places = shm::places;
  const shm::LogShape shape = buckets_->geometry().logs;
  for (uint32_t slot = 0; slot < shape.rows; ++slot) {
    shm::Slot& s = buckets_->slots()[slot];
    const uint64_t key = s.key.load(std::memory_order_seq_cst);
    if (shm::key::KindOf(key) != shm::Kind::kInFlight || shm::key::Fp(key) == 0) continue;
    // Only who is late takes a place in a loose one, and gives it back; or has ended.
    if (ended_.none() && places::IsLoose(s.word.load(std::memory_order_seq_cst))) continue;
    const uint16_t gen = shm::key::Gen(key);
    const shm::logs::Row<std::atomic<uint64_t>> row = {
        buckets_->log_entries() + uint64_t{slot} * shape.entries, shape.entries};
    uint32_t held = 0;
    for (uint32_t i = 0; i < row.size; ++i) {
      uint64_t e = row.entries[i].load(std::memory_order_relaxed);
      if (places::IsFree(e, gen)) continue;
      // Of this tenancy and of who has ended; or of a gen that is yet to come, so it is one of long
      // ago, if the tenancy is still the same.
      const bool is_ours = places::Gen(e) == gen;
      const bool is_over =
          is_ours ? ended_[places::Holder(e)] : s.key.load(std::memory_order_seq_cst) == key;
      if (is_over) row.entries[i].compare_exchange_strong(e, 0, std::memory_order_seq_cst);
      held += is_ours && !is_over ? 1 : 0;
    }
    if (!lets_go) continue;
    if (held == 0) {
      places::Loosen(s, row, now_ns);
    } else {
      places::KeepPinned(s, now_ns);
    }
  }
}

}  // namespace sluice::admin
