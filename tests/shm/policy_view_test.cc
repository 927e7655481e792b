#include "shm/policy_view.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <memory>

#include "shm/layout.h"

namespace sluice::shm {
namespace {

// A torn or foreign policy says anything; what is read in place stays aligned and inside.
TEST(PolicyViewTest, WhatItReturnsIsAlignedAndInsideWhateverTheOffsets) {
  const auto buffer = std::make_unique<uint64_t[]>(kPolicyBufferBytes / 8);
  auto* const header = reinterpret_cast<PolicyHeader*>(buffer.get());
  const PolicyView view(reinterpret_cast<const char*>(buffer.get()));
  const auto expect_sound = [&](const auto& part) {
    const auto at = reinterpret_cast<uintptr_t>(&part) - reinterpret_cast<uintptr_t>(buffer.get());
    EXPECT_EQ(at % alignof(decltype(part)), 0u);
    EXPECT_LE(at + sizeof part, kPolicyBufferBytes);
  };
  for (const uint32_t offset : {0u, 1u, 4u, 7u, 756u, kPolicyBufferBytes - 4, 0xffffffffu}) {
    header->groups_offset = header->rules_offset = offset;
    GroupView group{};
    group.conditions_offset = group.key_offset = offset;
    for (const uint32_t index : {0u, 1u, 15u, 1023u, 0xffffu}) {
      expect_sound(view.group(index));
      expect_sound(view.rule(index));
      expect_sound(view.condition(group, index % kMaxConditions));
      expect_sound(view.key_part(group, index % kMaxKeyParts));
    }
  }
}

}  // namespace
}  // namespace sluice::shm
