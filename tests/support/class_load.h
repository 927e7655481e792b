// Requests of three classes, as the tests of priority under overload ask.
#pragma once

#include <array>
#include <cstdint>

namespace sluice::test {

struct ClassLoad {
  double of_all;  // of the requests
  uint16_t floor_q16;
  uint64_t asked = 0;
  uint64_t admitted = 0;
  double part() const { return static_cast<double>(admitted) / static_cast<double>(asked); }
};

// Critical, normal and sheddable: of parts 1, 0.8 and 0.5.
using ClassLoads = std::array<ClassLoad, 3>;
inline constexpr ClassLoads kThreeClasses = {ClassLoad{0.3, 0}, ClassLoad{0.4, 13107},
                                             ClassLoad{0.3, 32768}};

}  // namespace sluice::test
