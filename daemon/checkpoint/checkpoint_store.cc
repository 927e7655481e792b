#include "daemon/checkpoint/checkpoint_store.h"

#include <fcntl.h>
#include <sqlite3.h>
#include <stdio.h>
#include <unistd.h>

#include <chrono>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "daemon/log.h"

namespace sluice::checkpoint {
namespace {

using reconcile::Quota;

constexpr std::chrono::seconds kWritePause(1);

// A whole commit is on the disk before the next begins: in WAL mode FULL syncs each.
constexpr char kOpen[] =
    "PRAGMA locking_mode=EXCLUSIVE; PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;"
    "CREATE TABLE IF NOT EXISTS quota(name BLOB PRIMARY KEY, begin_us INTEGER NOT NULL,"
    " end_us INTEGER NOT NULL, tokens INTEGER NOT NULL) WITHOUT ROWID;"
    "CREATE INDEX IF NOT EXISTS quota_end ON quota(end_us);";
constexpr char kForget[] = "DELETE FROM quota WHERE end_us <= ?1";
constexpr char kRead[] = "SELECT name, begin_us, end_us, tokens FROM quota";
constexpr char kWrite[] = "INSERT OR REPLACE INTO quota VALUES(?1, ?2, ?3, ?4)";

struct Finalize {
  void operator()(sqlite3_stmt* statement) const { sqlite3_finalize(statement); }
};
using Statement = std::unique_ptr<sqlite3_stmt, Finalize>;

Statement Prepare(sqlite3* db, const char* sql) {
  sqlite3_stmt* statement = nullptr;
  sqlite3_prepare_v2(db, sql, -1, &statement, nullptr);
  return Statement(statement);
}

absl::StatusCode CodeOf(int error) {
  switch (error) {
    case SQLITE_NOTADB:
    case SQLITE_CORRUPT:
      return absl::StatusCode::kDataLoss;
    case SQLITE_CANTOPEN:
    case SQLITE_READONLY:
    case SQLITE_PERM:
      return absl::StatusCode::kInvalidArgument;
    default:
      return absl::StatusCode::kUnavailable;
  }
}

}  // namespace

void CheckpointStore::Close::operator()(sqlite3* db) const { sqlite3_close_v2(db); }

absl::Status CheckpointStore::Problem() const {
  return absl::Status(
      CodeOf(sqlite3_errcode(db_.get())),
      absl::StrCat("daemon.checkpoints ", path_, ": ", sqlite3_errmsg(db_.get()),
                   "; name a file in a folder that the daemon's user can write to"));
}

absl::Status CheckpointStore::OpenFile() {
  // Before SQLite makes it for all to read.
  if (const int fd = open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600); fd >= 0) close(fd);
  sqlite3* db = nullptr;
  const int opened = sqlite3_open_v2(path_.c_str(), &db, SQLITE_OPEN_READWRITE, nullptr);
  db_.reset(db);
  if (opened != SQLITE_OK || sqlite3_exec(db, kOpen, nullptr, nullptr, nullptr) != SQLITE_OK) {
    return Problem();
  }
  return absl::OkStatus();
}

absl::Status CheckpointStore::Load(int64_t unix_us) {
  const Statement forget = Prepare(db_.get(), kForget);
  sqlite3_bind_int64(forget.get(), 1, unix_us);
  if (sqlite3_step(forget.get()) != SQLITE_DONE) return Problem();
  const Statement read = Prepare(db_.get(), kRead);
  int step;
  while ((step = sqlite3_step(read.get())) == SQLITE_ROW) {
    sqlite3_stmt* const row = read.get();
    const auto* name = static_cast<const char*>(sqlite3_column_blob(row, 0));
    const auto bytes = static_cast<size_t>(sqlite3_column_bytes(row, 0));
    found_[std::string(name == nullptr ? "" : name, bytes)] = {
        sqlite3_column_int64(row, 1), sqlite3_column_int64(row, 2), sqlite3_column_int64(row, 3)};
  }
  return step == SQLITE_DONE ? absl::OkStatus() : Problem();
}

absl::StatusOr<std::unique_ptr<CheckpointStore>> CheckpointStore::Open(const std::string& path,
                                                                       int64_t unix_us) {
  std::unique_ptr<CheckpointStore> store(new CheckpointStore(path));
  absl::Status status = store->OpenFile();
  if (status.ok()) status = store->Load(unix_us);
  if (absl::IsDataLoss(status)) {
    store->db_.reset();
    store->found_.clear();
    const std::string aside = path + ".damaged";
    log::Error("%s; it is put aside as %s, and quotas are kept anew", std::string(status.message()),
               aside);
    rename(path.c_str(), aside.c_str());
    for (const char* rest : {"-wal", "-shm"}) unlink((path + rest).c_str());
    status = store->OpenFile();
  }
  if (!status.ok()) return status;
  try {
    store->thread_ = std::thread([raw = store.get()] { raw->Run(); });
  } catch (const std::exception& e) {
    return absl::ResourceExhaustedError(absl::StrCat("cannot start a thread: ", e.what()));
  }
  return store;
}

CheckpointStore::~CheckpointStore() {
  if (!thread_.joinable()) return;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
  }
  wake_.notify_one();
  thread_.join();
}

void CheckpointStore::Keep(const std::string& name, const Quota& quota) {
  const std::lock_guard<std::mutex> lock(mutex_);
  changed_[name] = quota;
}

std::optional<Quota> CheckpointStore::Find(const std::string& names) const {
  std::string_view rest = names;
  for (size_t end = 0; end != std::string_view::npos; rest.remove_prefix(end + 1)) {
    end = rest.find('\0');
    const auto found = found_.find(std::string(rest.substr(0, end)));
    if (found != found_.end()) return found->second;
    if (end == std::string_view::npos) break;
  }
  return std::nullopt;
}

void CheckpointStore::Run() {
  bool failed = false;
  bool last = false;
  while (!last) {
    Quotas quotas;
    {
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait_for(lock, kWritePause, [this] { return stop_; });
      last = stop_;
      quotas.swap(changed_);
    }
    if (quotas.empty()) continue;
    const absl::Status status = Write(quotas);
    if (!status.ok()) {
      if (!failed) log::Error("quotas are not kept: %s", std::string(status.message()));
      const std::lock_guard<std::mutex> lock(mutex_);
      for (auto& [name, quota] : quotas) changed_.try_emplace(name, quota);
    } else if (failed) {
      log::Info("quotas are kept again");
    }
    failed = !status.ok();
  }
}

absl::Status CheckpointStore::Write(const Quotas& quotas) {
  sqlite3* const db = db_.get();
  if (sqlite3_exec(db, "BEGIN", nullptr, nullptr, nullptr) != SQLITE_OK) return Problem();
  const Statement write = Prepare(db, kWrite);
  bool good = write != nullptr;
  for (auto at = quotas.begin(); good && at != quotas.end(); ++at) {
    const auto& [name, quota] = *at;
    sqlite3_bind_blob64(write.get(), 1, name.data(), name.size(), SQLITE_STATIC);
    sqlite3_bind_int64(write.get(), 2, quota.begin_us);
    sqlite3_bind_int64(write.get(), 3, quota.end_us);
    sqlite3_bind_int64(write.get(), 4, quota.tokens);
    good = sqlite3_step(write.get()) == SQLITE_DONE;
    sqlite3_reset(write.get());
  }
  if (good && sqlite3_exec(db, "COMMIT", nullptr, nullptr, nullptr) == SQLITE_OK) {
    return absl::OkStatus();
  }
  absl::Status problem = Problem();
  sqlite3_exec(db, "ROLLBACK", nullptr, nullptr, nullptr);
  return problem;
}

}  // namespace sluice::checkpoint
