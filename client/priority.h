// Classes of requests: which part of a bucket a request may use, by the value of a descriptor.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "shm/policy_view.h"

namespace sluice::client {

// What a label's class stands behind: "name:class", "name@tier:class".
inline constexpr char kClassMark = ':';
inline constexpr size_t kMaxClassBytes = 31;

// The floor for requests whose descriptor says `value`; not listed or not there (empty): the first
// class's. `*is_listed`: whether it is. Precondition: group.class_count != 0.
inline uint16_t FloorOf(const shm::PolicyView& view, const shm::GroupView& group,
                        std::string_view value, bool* is_listed) {
  const uint32_t count = std::min<uint32_t>(group.class_count, shm::kMaxClasses);
  for (uint32_t i = 1; i < count; ++i) {
    const shm::ClassView& c = view.class_of(group, i);
    if (view.text(c.value) != value) continue;
    *is_listed = true;
    return c.floor_q16;
  }
  *is_listed = false;
  return view.class_of(group, 0).floor_q16;
}

}  // namespace sluice::client
