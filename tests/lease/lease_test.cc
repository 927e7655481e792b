#include "daemon/lease/lease.h"

#include <gtest/gtest.h>

#include "daemon/lease/session.h"

namespace sluice::lease {
namespace {

constexpr uint64_t kMs = 1'000'000;
constexpr uint64_t kStartNs = 1'000'000 * kMs;
const RoundTrip kRtt;

Lease NewLease(uint64_t wait_ns = 0) {
  return Lease({.terms = *MakeTerms(100, 1'000'000, 50, wait_ns), .sync_ns = 50 * kMs});
}

Grant Of(uint64_t tokens, int64_t gen = 1) {
  Grant g;
  g.live = true;
  g.tokens = tokens;
  g.gen = gen;
  return g;
}

// Asks for one token, and is lent `tokens` by a reply that comes `late_ns` after the request.
void Borrow(Lease* lease, uint64_t tokens, uint64_t now_ns, uint64_t late_ns = kMs) {
  (void)lease->Check(1, now_ns);
  (void)lease->Freeze(now_ns, kRtt, 0.5);
  lease->OnGrant(Of(tokens), now_ns, now_ns + late_ns, kRtt);
}

TEST(LeaseTest, AdmitsWhatItWasLentAndNoMore) {
  Lease lease = NewLease();
  EXPECT_EQ(lease.Check(1, kStartNs), Verdict::kDeny);
  EXPECT_TRUE(lease.Tick(kStartNs, kRtt, 0.5));
  Borrow(&lease, 5, kStartNs);
  EXPECT_EQ(lease.Check(3, kStartNs + 2 * kMs), Verdict::kAllow);
  EXPECT_EQ(lease.Check(3, kStartNs + 2 * kMs), Verdict::kDeny);
  EXPECT_EQ(lease.Check(2, kStartNs + 2 * kMs), Verdict::kAllow);
  EXPECT_EQ(lease.Check(1, kStartNs + 2 * kMs), Verdict::kDeny);
}

TEST(LeaseTest, EndsAGenerationAfterTheRequestWasFirstSentHoweverLateItsReply) {
  Lease lease = NewLease();
  Borrow(&lease, 5, kStartNs, 500 * kMs);
  EXPECT_EQ(lease.Check(1, kStartNs + kLifetimeNs - 1), Verdict::kAllow);
  EXPECT_EQ(lease.Check(1, kStartNs + kLifetimeNs), Verdict::kDeny);
  EXPECT_EQ(lease.credits(), 0u);
}

TEST(LeaseTest, GivesBackWhatAReplyBringsAfterItsEnd) {
  Lease lease = NewLease();
  Borrow(&lease, 5, kStartNs, kLifetimeNs);
  EXPECT_EQ(lease.credits(), 0u);
  const Ask ask = lease.Freeze(kStartNs + kLifetimeNs + kMs, kRtt, 0.5);
  EXPECT_EQ(ask.held, 5u);
  EXPECT_EQ(ask.ret, 5u);
  EXPECT_EQ(ask.rem, 0u);
}

TEST(LeaseTest, ReportsWhatItSpentAndKeepsTheRest) {
  Lease lease = NewLease();
  Borrow(&lease, 10, kStartNs);
  for (int i = 0; i < 4; ++i) ASSERT_EQ(lease.Check(1, kStartNs + 10 * kMs), Verdict::kAllow);
  const Ask ask = lease.Freeze(kStartNs + 20 * kMs, kRtt, 0.5);
  EXPECT_EQ(ask.held, 10u);
  EXPECT_EQ(ask.rem + ask.ret, 6u);
}

TEST(LeaseTest, TakesWhatItReturnsOutOfItsCreditsBeforeItIsSent) {
  Lease lease = NewLease();
  Borrow(&lease, 40, kStartNs);
  const uint64_t idle_ns = kStartNs + 900 * kMs;
  const Ask ask = lease.Freeze(idle_ns, kRtt, 0.5);
  EXPECT_GT(ask.ret, 30u);
  EXPECT_EQ(lease.credits(), ask.rem);
  EXPECT_EQ(ask.rem + ask.ret, 40u);
}

TEST(LeaseTest, DropsAllThatIsNoLongerCountedForIt) {
  Lease lease = NewLease();
  Borrow(&lease, 10, kStartNs);
  (void)lease.Freeze(kStartNs + 10 * kMs, kRtt, 0.5);
  Grant grant = Of(2, 9);
  grant.live = false;
  lease.OnGrant(grant, kStartNs + 10 * kMs, kStartNs + 11 * kMs, kRtt);
  EXPECT_EQ(lease.credits(), 2u);
  EXPECT_EQ(lease.held(), 2u);
}

TEST(LeaseTest, AsksNoSoonerThanItIsTold) {
  Lease lease = NewLease();
  (void)lease.Check(1, kStartNs);
  (void)lease.Freeze(kStartNs, kRtt, 0.5);
  Grant none = Of(0);
  none.shortage = true;
  none.retry_us = 10'000;
  lease.OnGrant(none, kStartNs, kStartNs + kMs, kRtt);
  EXPECT_EQ(lease.Check(1, kStartNs + 5 * kMs), Verdict::kDeny);
  EXPECT_FALSE(lease.Tick(kStartNs + 5 * kMs, kRtt, 0.5));
  EXPECT_EQ(lease.Check(1, kStartNs + 12 * kMs), Verdict::kDeny);
  EXPECT_TRUE(lease.Tick(kStartNs + 12 * kMs, kRtt, 0.5));
}

TEST(LeaseTest, ATickThatAsksDoesNotCountAnIntervalWithoutAttempts) {
  Lease lease = NewLease();
  for (uint64_t i = 0; i < 20; ++i) (void)lease.Check(1, kStartNs + i * 2 * kMs);
  ASSERT_TRUE(lease.Tick(kStartNs + 40 * kMs, kRtt, 0.5));
  // 20 in 40 ms, and no less for being asked twice.
  EXPECT_GE(lease.Freeze(kStartNs + 40 * kMs, kRtt, 0.5).demand_milli, 500'000u);
}

TEST(LeaseTest, AsksOnceForChecksThatCameWhileItWasAsking) {
  Lease lease = NewLease();
  (void)lease.Check(1, kStartNs);
  (void)lease.Freeze(kStartNs, kRtt, 0.5);
  EXPECT_EQ(lease.Check(1, kStartNs + kMs / 2), Verdict::kDeny);
  lease.OnGrant(Of(30), kStartNs, kStartNs + kMs, kRtt);
  EXPECT_FALSE(lease.Tick(kStartNs + 5 * kMs, kRtt, 0.5));
}

TEST(LeaseTest, AFewHostsAskOnceAnIntervalWhereAnOverloadLasts) {
  Lease lease = NewLease();
  Grant grant = Of(1);
  grant.shortage = true;
  grant.retry_us = 1'000;
  grant.demand = 200;  // of a limit of 100/s
  grant.hosts = 2;
  uint64_t calls = 0;
  for (uint64_t now_ns = kStartNs; now_ns < kStartNs + 6'000 * kMs; now_ns += kMs) {
    (void)lease.Check(1, now_ns);
    if (!lease.Tick(now_ns, kRtt, 0.5)) continue;
    calls += now_ns >= kStartNs + 4'000 * kMs ? 1 : 0;
    (void)lease.Freeze(now_ns, kRtt, 0.5);
    lease.OnGrant(grant, now_ns, now_ns + kMs / 2, kRtt);
  }
  EXPECT_GE(calls, 36u);  // in 2 s
  EXPECT_LE(calls, 44u);
}

TEST(LeaseTest, HoldsNothingOfALowLimitWhoseCallersCanWait) {
  Lease lease({.terms = *MakeTerms(10, 1'000'000, 10, 20 * kMs), .sync_ns = 50 * kMs});
  EXPECT_EQ(lease.Check(1, kStartNs, 1), Verdict::kWait);
  const Ask ask = lease.Freeze(kStartNs, kRtt, 0.5);
  EXPECT_EQ(ask.target, 0u);
  EXPECT_EQ(ask.waiting, 1u);
}

TEST(LeaseTest, ServesParkedCallersInOrderAndEndsTheirWaits) {
  Lease lease = NewLease(20 * kMs);
  EXPECT_EQ(lease.Check(2, kStartNs, 7), Verdict::kWait);
  EXPECT_EQ(lease.Check(1, kStartNs, 8), Verdict::kWait);
  const Ask ask = lease.Freeze(kStartNs, kRtt, 0.5);
  EXPECT_EQ(ask.waiting, 3u);
  EXPECT_EQ(ask.need, 2u);
  lease.OnGrant(Of(2), kStartNs, kStartNs + kMs, kRtt);
  std::vector<Lease::Answer> answers = lease.Answered(kStartNs + kMs);
  ASSERT_EQ(answers.size(), 1u);
  EXPECT_EQ(answers[0].ticket, 7u);
  EXPECT_TRUE(answers[0].allowed);
  answers = lease.Answered(kStartNs + 21 * kMs);
  ASSERT_EQ(answers.size(), 1u);
  EXPECT_EQ(answers[0].ticket, 8u);
  EXPECT_FALSE(answers[0].allowed);
}

TEST(LeaseTest, ACostAboveTheBurstIsDeniedWithoutACall) {
  Lease lease = NewLease(20 * kMs);
  EXPECT_EQ(lease.Check(51, kStartNs), Verdict::kDeny);
  EXPECT_FALSE(lease.Tick(kStartNs, kRtt, 0.5));
}

TEST(OverdraftTest, AnIdleHostAllowsItsPartOfTheBurstAtOnceAndSaysSo) {
  Lease lease({.terms = *MakeTerms(100, 1'000'000, 50, 0, 10'000), .hosts = 10});
  for (int i = 0; i < 5; ++i) EXPECT_EQ(lease.Check(1, kStartNs), Verdict::kAllow) << i;
  EXPECT_EQ(lease.Check(1, kStartNs), Verdict::kDeny);
  ASSERT_TRUE(lease.Tick(kStartNs, kRtt, 0.5));
  const Ask ask = lease.Freeze(kStartNs, kRtt, 0.5);
  EXPECT_EQ(ask.held, 0u);
  EXPECT_EQ(ask.over, 5u);
}

TEST(OverdraftTest, AStrictHostNeverSpendsWhatItWasNotLent) {
  Lease lease = NewLease();
  EXPECT_EQ(lease.Allowance(kStartNs), 0u);
  Borrow(&lease, 1, kStartNs);
  lease.Observe(3, 0, 1, kStartNs + 2 * kMs);
  EXPECT_EQ(lease.Freeze(kStartNs + 3 * kMs, kRtt, 0.5).over, 0u);
}

TEST(OverdraftTest, CreditsAreSpentFirstAndWhatIsGivenBackPaysTheOverdraftFirst) {
  Lease lease({.terms = *MakeTerms(100, 1'000'000, 50, 0, 10'000), .hosts = 10});
  Grant grant = Of(4);
  grant.level = 20;
  (void)lease.Freeze(kStartNs, kRtt, 0.5);
  lease.OnGrant(grant, kStartNs, kStartNs + kMs, kRtt);
  ASSERT_GE(lease.Allowance(kStartNs + kMs), 10u);
  lease.Observe(7, 0, 1, kStartNs + 2 * kMs);
  EXPECT_EQ(lease.credits(), 0u);
  lease.Restore(1);
  EXPECT_EQ(lease.Freeze(kStartNs + 3 * kMs, kRtt, 0.5).over, 2u);
}

TEST(OverdraftTest, ABucketThatIsShortAllowsNothingBeyond) {
  Lease lease({.terms = *MakeTerms(100, 1'000'000, 50, 0, 10'000), .hosts = 10});
  Grant grant = Of(0);
  grant.shortage = true;
  grant.retry_us = 20'000;
  grant.hosts = 10;
  (void)lease.Freeze(kStartNs, kRtt, 0.5);
  lease.OnGrant(grant, kStartNs, kStartNs + kMs, kRtt);
  EXPECT_EQ(lease.Allowance(kStartNs + 20 * kMs), 0u);
  EXPECT_EQ(lease.Check(1, kStartNs + 20 * kMs), Verdict::kDeny);
}

// Alone it allows its share of the limit, and none of the burst that it did not have.
TEST(OverdraftTest, WithoutRepliesAHostGoesOnByItsShareAndReportsThat) {
  Lease lease({.terms = *MakeTerms(1'000, 1'000'000, 100, 0, 10'000), .hosts = 2});
  Grant grant = Of(0);
  grant.shortage = true;
  grant.retry_us = 1'000;
  grant.share = 0.5;
  grant.hosts = 2;
  (void)lease.Freeze(kStartNs, kRtt, 0.5);
  lease.OnGrant(grant, kStartNs, kStartNs, kRtt);
  (void)lease.Freeze(kStartNs, kRtt, 0.5);
  uint64_t allowed = 0;
  for (uint64_t ms = 151; ms <= 2'150; ++ms) {
    while (lease.Check(1, kStartNs + ms * kMs) == Verdict::kAllow) ++allowed;
  }
  EXPECT_NEAR(static_cast<double>(allowed), 1'000, 3);
  lease.OnGrant(grant, kStartNs, kStartNs + 2'150 * kMs, kRtt);
  const Ask ask = lease.Freeze(kStartNs + 2'151 * kMs, kRtt, 0.5);
  EXPECT_EQ(ask.over, 0u);
  EXPECT_EQ(ask.alone, allowed);
  EXPECT_EQ(ask.alone_us, 2'000'000u);
  EXPECT_EQ(ask.part_ppm, 500'000u);
  EXPECT_EQ(lease.Freeze(kStartNs + 2'152 * kMs, kRtt, 0.5).part_ppm, 0u) << "said once";
}

// 10/s over a hundred hosts: what one of them held would lie idle.
TEST(OverdraftTest, WhereHostsAreManyForALowLimitEachAllowsTheMoreTheFullerTheBucketIs) {
  uint64_t now_ns = kStartNs;
  const auto allowed_of = [&](uint64_t level) {
    Lease lease({.terms = *MakeTerms(10, 1'000'000, 10, 0, kSpareUs), .hosts = 100});
    uint64_t allowed = 0;
    for (int i = 0; i < 1'000; ++i) {
      Grant grant = Of(0);
      grant.hosts = 15;
      grant.demand = 20;
      grant.level = level;
      now_ns += 5'000 * kMs;
      const Ask ask = lease.Freeze(now_ns, kRtt, 0.001 * i);
      EXPECT_TRUE(i < 2 || ask.target == 0) << "nothing is held";
      lease.OnGrant(grant, now_ns, now_ns + kMs, kRtt);
      allowed += lease.Check(1, now_ns + 2'000 * kMs) == Verdict::kAllow ? 1 : 0;
    }
    return static_cast<double>(allowed);
  };
  EXPECT_EQ(allowed_of(10), 1'000);
  EXPECT_NEAR(allowed_of(1), 200, 20) << "four times the limit where it is full, a tenth of that";
  EXPECT_EQ(allowed_of(0), 0) << "nothing is allowed of what is owed";
}

TEST(OverdraftTest, SuchABucketIsLookedAtWhileItMayRunShort) {
  for (const double demand : {9.0, 1.0}) {
    Lease lease({.terms = *MakeTerms(10, 1'000'000, 10, 0, kSpareUs), .hosts = 100});
    EXPECT_EQ(lease.Check(1, kStartNs), Verdict::kAllow);
    (void)lease.Freeze(kStartNs, kRtt, 0.5);
    Grant grant = Of(0);
    grant.hosts = 15;
    grant.demand = demand;
    lease.OnGrant(grant, kStartNs, kStartNs + kMs, kRtt);
    EXPECT_FALSE(lease.Tick(kStartNs + 90 * kMs, kRtt, 0.5));
    const bool looks = lease.Tick(kStartNs + 200 * kMs, kRtt, 0.5);
    EXPECT_EQ(looks, demand > 2);
    EXPECT_EQ(lease.IsIdle(kStartNs + 59'000 * kMs), !looks);
    EXPECT_TRUE(lease.IsIdle(kStartNs + 61'000 * kMs)) << "nobody asks any more";
  }
}

TEST(OverdraftTest, ALargeCostThatWasDeniedIsReckonedWithWhileThereIsStock) {
  for (const uint64_t level : {500, 0}) {
    Lease lease({.terms = *MakeTerms(10'000, 1'000'000, 1'000, 0, kSpareUs), .hosts = 100});
    EXPECT_EQ(lease.Check(20, kStartNs), Verdict::kDeny);
    const Ask ask = lease.Freeze(kStartNs, kRtt, 0.5);
    EXPECT_EQ(ask.need, 1u) << "not lent whole to each host: it would lock the burst up";
    Grant grant = Of(0);
    grant.hosts = 100;
    grant.share = 0.01;
    grant.level = level;
    lease.OnGrant(grant, kStartNs, kStartNs + kMs, kRtt);
    EXPECT_EQ(lease.Check(20, kStartNs + 2 * kMs), level > 0 ? Verdict::kAllow : Verdict::kDeny);
  }
}

TEST(OverdraftTest, WhereCallersWaitALowLimitIsPassedThrough) {
  Lease lease({.terms = *MakeTerms(10, 1'000'000, 10, 20 * kMs, kSpareUs), .hosts = 2});
  EXPECT_EQ(lease.Check(1, kStartNs), Verdict::kWait) << "nothing is allowed on trust";
  const Ask ask = lease.Freeze(kStartNs, kRtt, 0.5);
  EXPECT_EQ(ask.waiting, 1u);
  EXPECT_EQ(ask.target, 0u);
  Grant grant = Of(1);
  grant.level = 5;
  lease.OnGrant(grant, kStartNs, kStartNs + kMs, kRtt);
  EXPECT_EQ(lease.Answered(kStartNs + kMs).size(), 1u);
  EXPECT_EQ(lease.Allowance(kStartNs + 5'000 * kMs), 0u);
}

TEST(LeaseTest, RefusesTermsThatCannotBeCountedExactly) {
  EXPECT_TRUE(MakeTerms(1'000'000, 1'000'000, 1'000'000, 0).ok());
  EXPECT_EQ(MakeTerms(10'000, 1'000'000, 1, 0)->unit_us, 100u);
  EXPECT_FALSE(MakeTerms(7, 86'400'000'000, 1'000'000, 0).ok());
  EXPECT_FALSE(MakeTerms(0, 1, 1, 0).ok());
}

TEST(SessionTest, SendsTheSameBytesUntilTheyAreAnswered) {
  Session session({1, 2}, 50'000);
  const Asked asked{"b", *MakeTerms(10, 1'000'000, 10, 0), Ask{}};
  const std::vector<std::string> args = session.Start({&asked, 1}, 0, kStartNs).args;
  EXPECT_EQ(args[0], "00000000000000010000000000000002");
  EXPECT_FALSE(session.Resend(kStartNs + kResendMinNs - 1));
  EXPECT_TRUE(session.Resend(kStartNs + kResendMinNs));
  EXPECT_FALSE(session.Resend(kStartNs + 2 * kResendMinNs));
  EXPECT_EQ(session.call()->args, args);
  EXPECT_EQ(session.call()->first_sent_ns, kStartNs);
}

TEST(SessionTest, RefusesRepliesOfAnotherForm) {
  Session session({1, 2}, 50'000);
  const Asked asked{"b", *MakeTerms(10, 1'000'000, 10, 0), Ask{}};
  (void)session.Start({&asked, 1}, 0, kStartNs);
  redis::Reply reply;
  EXPECT_TRUE(session.OnReply(9, reply, kStartNs).ok());  // to no call of ours
  EXPECT_FALSE(session.OnReply(1, reply, kStartNs).ok());
  reply.kind = redis::Reply::Kind::kArray;
  reply.elements.resize(13);
  EXPECT_FALSE(session.OnReply(1, reply, kStartNs).ok());
  EXPECT_NE(session.call(), nullptr);
}

// Nobody ticks a lease that is idle.
TEST(LeaseTest, AFirstCheckAfterALongTimeSaysAsMuchAsOneThatWasLookedAt) {
  Lease idle = NewLease();
  Lease watched = NewLease();
  for (Lease* lease : {&idle, &watched}) {
    (void)lease->Freeze(kStartNs, kRtt, 0.5);
    lease->OnGrant(Of(0), kStartNs, kStartNs + kMs, kRtt);
  }
  uint64_t now_ns = kStartNs;
  for (int i = 0; i < 2000; ++i) (void)watched.Tick(now_ns += 10 * kMs, kRtt, 0.5);
  now_ns += 40 * kMs;
  for (Lease* lease : {&idle, &watched}) (void)lease->Check(1, now_ns);
  const uint64_t told = idle.Freeze(now_ns, kRtt, 0.5).demand_milli;
  const uint64_t expected = watched.Freeze(now_ns, kRtt, 0.5).demand_milli;
  EXPECT_GT(told, expected / 2);
  EXPECT_LT(told, expected * 2);
}

Grant Short(uint64_t tokens, uint64_t retry_ms) {
  Grant g = Of(tokens);
  g.shortage = true;
  g.retry_us = retry_ms * 1000;
  return g;
}

TEST(LeaseTest, WhoIsDeniedInASharedWordWaitsWhereCallersMay) {
  Lease lease({.terms = *MakeTerms(10, 1'000'000, 10, 20 * kMs), .sync_ns = 50 * kMs});
  lease.Observe(0, 2, 1, kStartNs);
  ASSERT_TRUE(lease.Tick(kStartNs, kRtt, 0.5));
  const Ask ask = lease.Freeze(kStartNs, kRtt, 0.5);
  EXPECT_EQ(ask.waiting, 2u);
  EXPECT_EQ(ask.target, 0u) << "nothing is to be held";
  EXPECT_EQ(ask.need, 1u) << "not both or none";
  lease.OnGrant(Of(1), kStartNs, kStartNs + kMs, kRtt);
  EXPECT_EQ(lease.credits(), 1u) << "who waits takes it out of the word";
  EXPECT_TRUE(lease.Answered(kStartNs + kMs).empty());
  lease.Observe(1, 0, 1, kStartNs + 2 * kMs);
  EXPECT_TRUE(lease.Tick(kStartNs + 3 * kMs, kRtt, 0.5)) << "one still waits";
  EXPECT_EQ(lease.Freeze(kStartNs + 3 * kMs, kRtt, 0.5).waiting, 1u);
  lease.OnGrant(Of(0), kStartNs + 3 * kMs, kStartNs + 4 * kMs, kRtt);
  EXPECT_FALSE(lease.Tick(kStartNs + 25 * kMs, kRtt, 0.5)) << "its time is over";
}

TEST(LeaseTest, NobodyWaitsForWhatComesTooLate) {
  Lease lease({.terms = *MakeTerms(10, 1'000'000, 10, 20 * kMs), .sync_ns = 50 * kMs});
  lease.Observe(0, 1, 1, kStartNs);
  (void)lease.Freeze(kStartNs, kRtt, 0.5);
  lease.OnGrant(Short(0, 100), kStartNs, kStartNs + kMs, kRtt);
  EXPECT_EQ(lease.retry_ns(), kStartNs + 101 * kMs);
  for (uint64_t ms = 22; ms < 100; ms += 10) {
    lease.Observe(0, 1, 1, kStartNs + ms * kMs);
    const bool is_in_time = ms + 20 - 2 > 101;
    EXPECT_FALSE(lease.Tick(kStartNs + ms * kMs, kRtt, 0.5)) << ms;
    EXPECT_EQ(lease.NextTickNs() == kStartNs + 101 * kMs, is_in_time) << ms;
  }
  EXPECT_TRUE(lease.Tick(kStartNs + 101 * kMs, kRtt, 0.5)) << "for whom waits since 92 ms";
}

}  // namespace
}  // namespace sluice::lease
