#include "daemon/checkpoint/checkpoint_store.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <string>

namespace sluice::checkpoint {
namespace {

class CheckpointTest : public testing::Test {
 protected:
  CheckpointTest() {
    std::string folder = testing::TempDir() + "quotas-XXXXXX";
    if (mkdtemp(folder.data()) == nullptr) abort();
    folder_ = folder;
  }
  ~CheckpointTest() override { std::filesystem::remove_all(folder_); }
  std::string path() const { return folder_ + "/quotas.db"; }
  std::unique_ptr<CheckpointStore> Open(int64_t unix_us = 0) {
    auto store = CheckpointStore::Open(path(), unix_us);
    EXPECT_TRUE(store.ok()) << store.status();
    return store.ok() ? *std::move(store) : nullptr;
  }
  static int64_t TokensOf(const CheckpointStore& store, const std::string& names) {
    const auto found = store.Find(names);
    return found ? found->tokens : -1;
  }

  std::string folder_;
};

TEST_F(CheckpointTest, TheLastStateIsFoundAfterTheEnd) {
  auto store = Open();
  store->Keep("a:x", {10, 20, 1});
  store->Keep("a:x", {20, 30, 7});
  store->Keep(std::string("a:\x01\xff'\"", 6), {20, 40, 9});
  EXPECT_EQ(TokensOf(*store, "a:x"), -1) << "only of before";
  store.reset();
  store = Open();
  const auto found = store->Find("a:x");
  ASSERT_TRUE(found.has_value());
  EXPECT_EQ(found->begin_us, 20);
  EXPECT_EQ(found->end_us, 30);
  EXPECT_EQ(found->tokens, 7);
  EXPECT_EQ(TokensOf(*store, std::string("a:\x01\xff'\"", 6)), 9);
  EXPECT_EQ(TokensOf(*store, "a:y"), -1);
  EXPECT_EQ(TokensOf(*store, std::string("a:new\0a:y\0a:x", 13)), 7) << "by a former name";
}

TEST_F(CheckpointTest, AKilledDaemonLosesAboutASecond) {
  auto store = Open();
  store->Keep("a:x", {10, 20, 5});
  // Without an end: the copy is what stands on the disk.
  for (int i = 0; i < 100; ++i) {
    usleep(100'000);
    std::filesystem::copy(folder_, folder_ + "-copy", std::filesystem::copy_options::recursive);
    auto copy = CheckpointStore::Open(folder_ + "-copy/quotas.db", 0);
    const bool is_there = copy.ok() && TokensOf(**copy, "a:x") == 5;
    if (copy.ok()) copy->reset();
    std::filesystem::remove_all(folder_ + "-copy");
    if (is_there) return;
  }
  FAIL() << "nothing is written while it runs";
}

TEST_F(CheckpointTest, QuotasThatAreOverAreRemoved) {
  auto store = Open();
  store->Keep("a:over", {10, 20, 1});
  store->Keep("a:open", {10, 21, 2});
  store.reset();
  store = Open(20);
  EXPECT_EQ(TokensOf(*store, "a:over"), -1);
  EXPECT_EQ(TokensOf(*store, "a:open"), 2);
}

TEST_F(CheckpointTest, OnlyTheDaemonsUserCanReadIt) {
  Open();
  struct stat status {};
  ASSERT_EQ(stat(path().c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777u, 0600u);
}

TEST_F(CheckpointTest, WhatIsNoDatabaseIsPutAsideAndReplaced) {
  std::ofstream(path()) << std::string(8192, 'x');
  auto store = Open();
  ASSERT_NE(store, nullptr);
  store->Keep("a:x", {10, 20, 5});
  store.reset();
  EXPECT_TRUE(std::filesystem::exists(path() + ".damaged"));
  EXPECT_EQ(TokensOf(*Open(), "a:x"), 5);
}

// Of each page one byte after the other is wrong: it opens, or is put aside, and never crashes.
TEST_F(CheckpointTest, ADamagedFileIsOpenedOrReplaced) {
  auto store = Open();
  for (int i = 0; i < 200; ++i) store->Keep("a:" + std::to_string(i), {10, 20, i});
  store.reset();
  std::ifstream in(path(), std::ios::binary);
  const std::string good((std::istreambuf_iterator<char>(in)), {});
  for (size_t at = 0; at < good.size(); at += 397) {
    std::string bad = good;
    bad[at] = static_cast<char>(~bad[at]);
    std::ofstream(path(), std::ios::binary | std::ios::trunc) << bad;
    for (const char* rest : {"-wal", "-shm"}) unlink((path() + rest).c_str());
    auto damaged = Open();
    ASSERT_NE(damaged, nullptr) << at;
    damaged->Keep("a:x", {10, 20, 5});
  }
}

TEST_F(CheckpointTest, AFileThatCannotBeMadeSaysWhereAndWhatToDo) {
  const auto store = CheckpointStore::Open(folder_ + "/none/quotas.db", 0);
  ASSERT_FALSE(store.ok());
  const std::string message(store.status().message());
  EXPECT_EQ(message.rfind("daemon.checkpoints " + folder_ + "/none/quotas.db: unable to open", 0),
            0u)
      << message;
  EXPECT_NE(message.find("; name a file in a folder that the daemon's user can write to"),
            std::string::npos);
}

TEST_F(CheckpointTest, TwoDaemonsDoNotShareAFile) {
  const auto first = Open();
  EXPECT_FALSE(CheckpointStore::Open(path(), 0).ok());
  EXPECT_FALSE(std::filesystem::exists(path() + ".damaged"));
}

}  // namespace
}  // namespace sluice::checkpoint
