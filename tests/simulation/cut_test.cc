// A reply that ends anywhere: each of the first replies of a run is cut at each of its bytes, in a
// run of its own, and its connection reset or closed by the node, which has done what it was asked.
// The books close exactly in each: what was counted and not heard of is counted once.
#include <gtest/gtest.h>

#include <set>
#include <string>
#include <string_view>

#include "daemon/log.h"
#include "tests/simulation/one_host.h"

namespace sluice::simulation {
namespace {

constexpr uint64_t kReplies = 24;
constexpr uint64_t kCutMostNs = 5 * kSecond;  // until that many were sent
constexpr uint64_t kTrafficNs = 2 * kSecond;  // after the cut
constexpr uint64_t kSettleMostNs = 15 * kSecond;

// The whole reply that was cut.
std::string RunWithCut(const Network::CutOfReply& cut) {
  OneHost world({.corrected = 0.5});
  Network& network = world.network();
  network.CutReply(cut);
  EXPECT_TRUE(world.RunUntil([&] { return !network.cut_reply().empty(); }, kCutMostNs));
  world.RunFor(kTrafficNs);
  world.host().StopClients();
  EXPECT_TRUE(world.RunUntil([&] { return world.host().IsSettled(); }, kSettleMostNs))
      << world.host().Unsettled();
  Books books(&world.cluster(), &world.hosts());
  for (const std::string& what : books.Check(/*closing=*/true)) ADD_FAILURE() << what;
  const Totals& totals = books.totals();
  EXPECT_GT(totals.counted, 0);
  EXPECT_GT(totals.given_back, 0);
  EXPECT_EQ(totals.admitted - totals.given_back, totals.counted);
  return network.cut_reply();
}

std::string KindOf(std::string_view reply) {
  if (reply.starts_with("*4\r\n$6\r\nserver")) return "greeting";
  if (reply.starts_with("$40\r\n")) return "script";
  if (reply.find("\r\n$8\r\n10.0.0.") != std::string_view::npos) return "map";
  if (reply.starts_with("*")) return "fold";
  return "other";
}

class CutTest : public testing::TestWithParam<bool> {};

TEST_P(CutTest, AReplyThatIsCutAtAnyByteLosesAndDoublesNothing) {
  log::Configure(static_cast<log::Level>(0), false);  // a line for each outage of each run
  std::set<std::string> kinds;
  uint64_t runs = 0;
  for (uint64_t number = 1; number <= kReplies; ++number) {
    size_t size = 1;
    for (size_t bytes = 0; bytes <= size; ++bytes, ++runs) {
      const std::string reply = RunWithCut({.number = number, .bytes = bytes, .reset = GetParam()});
      ASSERT_FALSE(HasFailure()) << "reply " << number << ", cut at " << bytes << " of "
                                 << reply.size() << ": " << reply;
      size = reply.size();
      kinds.insert(KindOf(reply));
    }
  }
  RecordProperty("runs", static_cast<int>(runs));
  EXPECT_TRUE(kinds.contains("greeting") && kinds.contains("map") && kinds.contains("fold"));
}

INSTANTIATE_TEST_SUITE_P(BothEnds, CutTest, testing::Bool(),
                         [](const testing::TestParamInfo<bool>& end) {
                           return end.param ? "Reset" : "Closed";
                         });

}  // namespace
}  // namespace sluice::simulation
