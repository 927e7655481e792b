// A client of segments that the test serves: what tests of the client begin with.
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <string_view>

#include "client/include/sluice.hpp"
#include "tests/support/served_segments.h"

namespace sluice::test {

class ServedClient : public testing::Test {
 protected:
  explicit ServedClient(std::string_view rules_yaml, ServedSegments::Options options = {})
      : served_(rules_yaml, options), client_({.runtime_dir = served_.dir().c_str()}) {}
  void SetUp() override {
    ASSERT_TRUE(client_.wait(std::chrono::seconds(5))) << client_.info().message;
  }

  // How many of `checks` are allowed.
  template <class Check>
  static int Allowed(int checks, const Check& check) {
    int allowed = 0;
    for (int i = 0; i < checks; ++i) allowed += check() ? 1 : 0;
    return allowed;
  }

  // Of a rule of five tokens on the route /costly, where each unit costs two.
  void ExpectCostsCountWholeOrNotAtAll() {
    auto handle = client_.bind({{"route", "/costly"}, {"user", "u"}});
    ASSERT_TRUE(handle);
    EXPECT_TRUE(handle->check(3));
    EXPECT_FALSE(handle->check(2));
    EXPECT_EQ(handle->check(1).remaining(), 1u);
    EXPECT_FALSE(handle->check(1));
  }

  // Of three rules on the route /both: two per user, three and many per tenant.
  void ExpectNothingSpentWhereOneSaysNo() {
    const auto check = [&](const char* user) {
      return client_.check({{"route", "/both"}, {"user", user}, {"tenant", "t"}});
    };
    EXPECT_EQ(Allowed(5, [&] { return check("a"); }), 2);
    EXPECT_EQ(Allowed(5, [&] { return check("b"); }), 1) << "what a was denied, the tenant kept";
    EXPECT_EQ(served_.TotalUse(), 9);
  }

  ServedSegments served_;
  Client client_;
};

}  // namespace sluice::test
