// What the fuzzers share (`*_fuzz.cc`, built by -Dfuzz=true, run by scripts/fuzz): reading an input
// byte by byte, and ending on what must not be.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>

namespace sluice::fuzz {

// The fuzzer keeps the input of a process that aborts.
inline void Require(bool holds, const char* what) {
  if (holds) [[likely]] {
    return;
  }
  std::fprintf(stderr, "does not hold: %s\n", what);
  std::abort();
}

// Past its end an input reads as zeros, so that every prefix of one is one.
class Input {
 public:
  Input(const uint8_t* data, size_t size) : left_(reinterpret_cast<const char*>(data), size) {}
  explicit Input(std::string_view bytes) : left_(bytes) {}

  bool empty() const { return left_.empty(); }
  std::string_view rest() const { return left_; }

  std::string_view Bytes(size_t n) {
    const std::string_view taken = left_.substr(0, n);
    left_.remove_prefix(taken.size());
    return taken;
  }
  template <class T = uint8_t>
  T Number() {
    T value = 0;
    const std::string_view bytes = Bytes(sizeof(T));
    std::memcpy(&value, bytes.data(), bytes.size());
    return value;
  }
  // Up to `end` and without it; all that is left where there is none.
  std::string_view Until(char end) {
    const std::string_view taken = Bytes(std::min(left_.find(end), left_.size()));
    Bytes(1);
    return taken;
  }

 private:
  std::string_view left_;
};

// Changes `bytes` in place by the records {offset:16, length:8, bytes} of the input: a mutated
// record reaches any place, where a whole mutated policy would differ in its first bytes at once.
inline void Patch(Input* input, char* bytes, size_t size) {
  while (!input->empty()) {
    const size_t at = input->Number<uint16_t>() % size;
    const std::string_view part = input->Bytes(input->Number<uint8_t>());
    std::memcpy(bytes + at, part.data(), std::min(part.size(), size - at));
  }
}

}  // namespace sluice::fuzz
