// Who holds places of requests in flight, as the daemon knows it: over ends that are seen twice,
// numbers that come around, and a daemon that starts again.
#include "daemon/admin/holders.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <memory>
#include <vector>

#include "daemon/admin/event_loop.h"
#include "shm/clock.h"
#include "shm/places.h"
#include "shm/segment.h"

namespace sluice::admin {
namespace {

namespace places = shm::places;

constexpr shm::LogShape kShape = {.rows = 8, .entries = 8};
constexpr uint16_t kGen = 7;
constexpr uint64_t kSecond = 1'000'000'000;

uint64_t Now() { return shm::MonotonicClock::PreciseNs(); }

class HoldersTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(loop_.Init().ok());
    ASSERT_TRUE(owner_.Create(64, kShape).ok());
    Begin();
    shm::Slot& slot = buckets().slots()[3];
    slot.key = shm::key::Make(99, shm::Kind::kInFlight, kGen);
    slot.word = places::Pinned(0, Now(), 8);
  }
  void TearDown() override {
    for (const pid_t pid : children_) {
      kill(pid, SIGKILL);
      waitpid(pid, nullptr, 0);
    }
  }

  const shm::MappedBuckets& buckets() const { return owner_.buckets(); }
  std::atomic<uint64_t>& Entry(uint32_t i) {
    return buckets().log_entries()[3 * kShape.entries + i];
  }
  void Put(uint32_t i, const Holders::Ticket& ticket) {
    Entry(i) = places::Make(kGen, places::NameOf(ticket.number, i));
  }
  // Another daemon over the same cells and buckets.
  void Begin() {
    if (holders_ != nullptr) holders_->Stop(Now());
    holders_ = std::make_unique<Holders>(&loop_, cells_.get(), &buckets());
    holders_->Start(Now());
  }
  void Turn(uint64_t for_ns) {
    loop_.After(for_ns, [this](uint64_t) { loop_.Stop(); });
    ASSERT_TRUE(loop_.Run().ok());
  }
  // Until it holds, or far too long.
  template <class Holds>
  bool TurnUntil(Holds holds) {
    const EventLoop::TimerId look = loop_.Every(1'000'000, [&](uint64_t) {
      if (holds()) loop_.Stop();
    });
    const EventLoop::TimerId end = loop_.After(20 * kSecond, [this](uint64_t) { loop_.Stop(); });
    EXPECT_TRUE(loop_.Run().ok());
    loop_.Cancel(look);
    loop_.Cancel(end);
    return holds();
  }
  pid_t Child() {
    const pid_t pid = fork();
    if (pid == 0) {
      pause();
      _exit(0);
    }
    children_.push_back(pid);
    return pid;
  }
  void Kill(pid_t pid) {
    kill(pid, SIGKILL);
    waitpid(pid, nullptr, 0);
    std::erase(children_, pid);
  }
  Holders::Ticket Take(pid_t pid, uint32_t asked = 0) { return holders_->Take(-1, pid, asked); }

  EventLoop loop_;
  std::unique_ptr<shm::HolderCell[]> cells_ = std::make_unique<shm::HolderCell[]>(shm::kMaxHolders);
  shm::BucketsOwner owner_;
  std::unique_ptr<Holders> holders_;
  std::vector<pid_t> children_;
};

TEST_F(HoldersTest, ADeathGivesBackWhatItHeldAndNothingElse) {
  const pid_t pid = Child();
  const Holders::Ticket dies = Take(pid);
  const Holders::Ticket lives = Take(getpid());
  ASSERT_NE(dies.number, 0u);
  ASSERT_NE(dies.number, lives.number);
  Put(0, dies);
  Put(1, lives);
  Put(5, dies);
  Kill(pid);
  EXPECT_TRUE(TurnUntil([&] { return Entry(0) == 0 && Entry(5) == 0; }));
  EXPECT_NE(Entry(1), 0u);
  EXPECT_EQ(cells_[dies.number].owner, 0u);
  EXPECT_NE(cells_[lives.number].owner, 0u);
}

TEST_F(HoldersTest, ANumberThatCameAroundIsNotEndedByWhoHadItBefore) {
  const Holders::Ticket first = Take(getpid());
  holders_->End(first);
  EXPECT_TRUE(TurnUntil([&] { return cells_[first.number].owner == 0; }));
  Holders::Ticket second;
  for (uint32_t i = 0; i < shm::kMaxHolders && second.number != first.number; ++i) second = Take(0);
  ASSERT_EQ(second.number, first.number);
  Put(0, second);
  holders_->End(first);  // by its connection, which a child of its kept
  ASSERT_NO_FATAL_FAILURE(Turn(100'000'000));
  EXPECT_NE(Entry(0), 0u);
}

TEST_F(HoldersTest, ANumberIsGivenAgainOnlyOnceNothingNamesIt) {
  uint32_t given = 0;
  Holders::Ticket last;
  for (Holders::Ticket t = Take(0); t.number != 0; t = Take(0)) {
    last = t;
    ++given;
  }
  EXPECT_EQ(given, shm::kMaxHolders - 1);
  Put(2, last);
  holders_->End(last);
  EXPECT_EQ(Take(0).number, 0u) << "something names it still";
  EXPECT_TRUE(TurnUntil([&] { return Entry(2) == 0; }));
  EXPECT_EQ(Take(0).number, last.number);
}

TEST_F(HoldersTest, TheNextDaemonKnowsWhoEndedAndWhoComesBack) {
  const pid_t pid = Child();
  const Holders::Ticket dies = Take(pid);
  const Holders::Ticket lives = Take(getpid());
  Put(0, dies);
  Put(1, lives);
  holders_->Stop(Now());
  Kill(pid);
  Begin();
  EXPECT_EQ(Entry(0), 0u) << "seen at its start";
  EXPECT_NE(Entry(1), 0u);
  EXPECT_NE(Take(Child(), lives.number).number, lives.number) << "another process";
  EXPECT_EQ(Take(getpid(), lives.number).number, lives.number);
  EXPECT_NE(Take(getpid(), lives.number).number, lives.number) << "it is attached";
}

TEST_F(HoldersTest, APidThatIsAnothersNowIsNoSignOfLife) {
  const Holders::Ticket ticket = Take(getpid());
  Put(0, ticket);
  cells_[ticket.number].birth.fetch_add(1);
  Begin();
  EXPECT_EQ(Entry(0), 0u);
  EXPECT_EQ(cells_[ticket.number].owner, 0u);
}

TEST_F(HoldersTest, ASlotIsLetGoWhenNobodyIsThereAndKeptWhileSomebodyIs) {
  shm::Slot& slot = buckets().slots()[3];
  const Holders::Ticket ticket = Take(getpid());
  Put(4, ticket);
  // As it stands after half the time without anybody entering.
  slot.word = places::Pinned(0, Now() - places::kPinNs / 2 - kSecond, 8);
  EXPECT_TRUE(TurnUntil([&] { return places::IsPinnedWell(slot.word, Now(), 8); }));
  Entry(4) = 0;
  EXPECT_TRUE(TurnUntil([&] { return places::IsLoose(slot.word); }));
  EXPECT_LE(slot.word, Now());
}

// Gens have come around since it was written: it would count for who is there now.
TEST_F(HoldersTest, AnEntryOfAGenYetToComeIsEmptied) {
  Entry(6) = places::Make(kGen + 1000, places::NameOf(1, 5));
  Entry(7) = places::Make(kGen - 1, places::NameOf(1, 5));
  EXPECT_TRUE(TurnUntil([&] { return Entry(6) == 0; }));
  EXPECT_NE(Entry(7), 0u) << "free as it is";
}

}  // namespace
}  // namespace sluice::admin
