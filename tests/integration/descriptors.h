// Descriptors from the command line of a test's client.
#pragma once

#include <cstring>
#include <optional>
#include <string_view>
#include <vector>

#include "client/include/sluice.hpp"

namespace sluice::test {

// Those that argv says from `first` on, each as NAME=VALUE; nullopt where one says none. They point
// into argv.
inline std::optional<std::vector<Descriptor>> ReadDescriptors(int argc, char** argv, int first) {
  std::vector<Descriptor> descriptors;
  for (int i = first; i < argc; ++i) {
    const char* const equals = std::strchr(argv[i], '=');
    if (equals == nullptr) return std::nullopt;
    const std::string_view name(argv[i], static_cast<size_t>(equals - argv[i]));
    descriptors.emplace_back(name, std::string_view(equals + 1));
  }
  return descriptors;
}

}  // namespace sluice::test
