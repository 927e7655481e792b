// The client processes of the features' torture test: eight of them use many rules at once, alone
// and together in one request, by every way to ask, and this program kills them at instants of
// chance. Each writes down what it is about to do and what has come of it, see features_ledger.h.
// At the end the buckets are compared with that.
//
//   features_clients RUNTIME_DIR PROGRESS_FILE SEED KILLS
//
// The progress file begins with the number of kills. Prints one JSON line, see Report. The rules
// are those of test_features.py, whose names are those of their descriptors.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <new>

#include "client/include/sluice.hpp"
#include "tests/torture/features_board.h"
#include "tests/torture/features_judge.h"
#include "tests/torture/features_worker.h"
#include "tests/torture/victims.h"

namespace sluice::torture {
namespace {

using namespace std::chrono_literals;

constexpr uint64_t kMostBetweenKillsNs = 10'000'000;
// What is to come back, comes back long before.
constexpr uint64_t kDeadlineNs = 20'000'000'000;

struct Progress {
  Cell kills;
  Cell kills_in_attach;
  Cell stops;
  Cell stages[kClients];
};

// Waits until `is_so` for as long as one may wait; after how many ns it was, or the deadline.
template <class Condition>
uint64_t Await(Condition is_so) {
  const uint64_t begin_ns = NowNs();
  while (!is_so() && NowNs() - begin_ns < kDeadlineNs) SleepNs(1'000'000);
  return NowNs() - begin_ns;
}

// The buckets and the ledger, once nobody runs any more.
class Audit {
 public:
  Audit(Board& board, Client& client) : board_(board), client_(client) {}

  void Print(const Progress& progress, uint64_t elapsed_ns, uint64_t killed_within) {
    const Decision places = Peek(kPlaces, kExact);
    const uint64_t back_ns = Await([&] {
      const Decision d = Peek(kPlaces, kExact);
      return !d.is_default() && d.remaining() == places.limit();
    });
    std::printf("{\"kills\": %lu, \"kills_in_attach\": %lu, \"stops\": %lu, ",
                progress.kills.load(), progress.kills_in_attach.load(), progress.stops.load());
    std::printf("\"elapsed_s\": %.3f, \"killed_within\": %lu, \"operations\": %lu, ",
                static_cast<double>(elapsed_ns) * 1e-9, killed_within, board_.operations.load());
    std::printf("\"held_after\": %lu, \"places_back_ms\": %lu, ",
                places.limit() - Peek(kPlaces, kExact).remaining(), back_ns / 1'000'000);
    for (const auto& [name, count] : board_.seen())
      std::printf("\"%s\": %lu, ", name, count->load());
    PrintBanEnds();
    LookAtFull();
    PrintTraces();
    PrintBooks();
    std::printf("\"wrong\": {");
    const char* comma = "";
    for (const Wrong* wrong : board_.wrongs()) {
      if (wrong->count() == 0) continue;
      std::printf("%s\"%s\": [%lu, \"%s\"]", comma, wrong->name(), wrong->count(), wrong->first());
      comma = ", ";
    }
    std::printf("}}\n");
  }

 private:
  Decision Peek(Rule rule, int key, uint64_t cost = 0) {
    Request request;
    request.Add(rule, key);
    request.AddClass(0);
    return client_.peek(request.descriptors, cost);
  }

  void PrintBanEnds() {
    uint64_t longest_ns = 0;
    for (const int key : {kExact, kLoose}) {
      Request request;
      request.Add(kLogin, key);
      const uint64_t ns = Await([&] { return bool{client_.check(request.descriptors)}; });
      longest_ns = std::max(longest_ns, ns);
      // What is denied then is so by the limit, and says so once the daemon has looked.
      Await([&] {
        Decision d = client_.check(request.descriptors);
        while (d) d = client_.check(request.descriptors);
        return !d.is_banned();
      });
      const Decision d = client_.check(request.descriptors);
      if (d.is_banned()) board_.in_ban.Note("key %d: told of a ban that is over", key);
    }
    std::printf("\"bans_end_ms\": %lu, ", longest_ns / 1'000'000);
  }

  // What was asked for only in company that is denied, or only looked at.
  void LookAtFull() {
    for (const int key : {kQuiet, kPeeked}) {
      for (int r = 0; r < kShut; ++r) {
        Judge(board_).Full(static_cast<Rule>(r), key, Peek(static_cast<Rule>(r), key));
      }
    }
  }

  void PrintTraces() {
    std::printf("\"traces\": {");
    const char* comma = "";
    for (const TraceName& t : kTraceNames) {
      Request request;
      request.Add(t.rule, t.key, t.plan);
      const Decision d = client_.peek(request.descriptors, 0);
      for (uint64_t rank = 0; rank < (t.is_classed ? kRanks : 1); ++rank) {
        const std::vector<Trace::Entry> trace = board_.traces[t.trace].Sorted(rank);
        const uint64_t period_ns = d.raw().period_ns;
        const double most = t.rule == kLog
                                ? static_cast<double>(MostWithin(trace, period_ns - kLogStepNs))
                                : MostAtOnce(trace, period_ns / d.limit());
        std::printf("%s\"%s%s%s/%d\": [%zu, %.3f]", comma, kNames[t.rule], rank == 0 ? "" : ">",
                    rank == 0 ? "" : kClassOfRank[rank], t.key == kExact ? t.plan : t.key,
                    trace.size(), most);
        comma = ", ";
      }
    }
    std::printf("}, ");
  }

  // Of rules from which nothing comes back: what the buckets say, and what can be had still. Of
  // others how much they admitted at least.
  void PrintBooks() {
    std::printf("\"books\": [");
    const char* comma = "";
    for (int b = 0; b < kBooks; ++b) {
      const Book& book = board_.books[b];
      const int64_t sum = book.sum.load();
      if (sum == 0 && book.most == 0) continue;
      const auto rule = static_cast<Rule>(b / kKeys);
      const int key = b % kKeys;
      const int64_t least = sum + book.least - board_.unsure[b].load();
      const bool is_kept = rule == kDay || rule == kClassDay || rule == kPriced || rule == kStock;
      const Decision d = is_kept ? Peek(rule, key) : Decision{};
      const uint64_t used = is_kept ? d.raw().burst - d.remaining() : 0;
      std::printf("%s[\"%s\", %d, %ld, %ld, %lu, %lu]", comma, NameOfBook(b), key, least,
                  sum + book.most, used, rule == kDay || rule == kClassDay ? Drain(rule, key) : 0);
      comma = ", ";
    }
    std::printf("], ");
  }

  uint64_t Drain(Rule rule, int key) {
    Request request;
    request.Add(rule, key);
    request.AddClass(0);
    uint64_t drained = 0;
    while (client_.check(request.descriptors)) ++drained;
    return drained;
  }

  Board& board_;
  Client& client_;
};

int Main(char** argv) {
  const char* const runtime_dir = argv[1];
  const uint64_t kills = strtoull(argv[4], nullptr, 10);
  const int fd = open(argv[2], O_RDWR | O_CLOEXEC);
  if (fd < 0 || ftruncate(fd, sizeof(Progress)) != 0) return 2;
  void* const mapped = mmap(nullptr, sizeof(Progress), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  void* const memory =
      mmap(nullptr, sizeof(Board), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED || memory == MAP_FAILED) return 2;
  auto& progress = *static_cast<Progress*>(mapped);
  auto& board = *new (memory) Board;
  Client shared = Open(runtime_dir);
  if (!shared.wait(5s)) return 2;
  if (!UseUp(shared)) return 2;
  uint64_t killed_within = 0;
  board.begin_ns = NowNs();
  const auto run = [&](int child, bool attaches, uint64_t seed) {
    if (attaches) {
      Client own = Open(runtime_dir);
      own.wait(100ms);
      Worker(board, own, child, progress.stages[child], seed).Run();
    }
    Worker(board, shared, child, progress.stages[child], seed).Run();
  };
  const auto on_gone = [&](int child) {
    killed_within += board.under_way[child].Close(board.books) ? 1 : 0;
  };
  Victims victims({.count = kClients,
                   .most_between_kills_ns = kMostBetweenKillsNs,
                   .run = run,
                   .on_gone = on_gone},
                  {.kills = &progress.kills,
                   .kills_in_attach = &progress.kills_in_attach,
                   .stops = &progress.stops,
                   .stages = progress.stages},
                  strtoull(argv[3], nullptr, 10));
  while (progress.kills < kills) victims.Kill();
  victims.End();
  const uint64_t elapsed_ns = NowNs() - board.begin_ns;
  Audit(board, shared).Print(progress, elapsed_ns, killed_within);
  return 0;
}

}  // namespace
}  // namespace sluice::torture

int main(int argc, char** argv) { return argc == 5 ? sluice::torture::Main(argv) : 2; }
