// Text for HTTP, into a caller's buffer.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "client/include/sluice.h"

namespace sluice::client {

inline constexpr uint64_t kMaxInteger = 999'999'999'999'999;  // RFC 9651, section 3.3.1

// Bounded text; remembers whether anything was cut.
class Fields {
 public:
  Fields(char* out, size_t size) : out_(out), size_(size) {}

  Fields& Text(const char* text) { return Bytes(text, std::strlen(text)); }
  Fields& Bytes(const char* data, size_t n) {
    if (used_ + n < size_) {
      std::memcpy(out_ + used_, data, n);
      used_ += n;
    } else {
      overflown_ = true;
    }
    return *this;
  }
  Fields& Number(uint64_t value) {
    char digits[20];
    size_t n = 0;
    value = std::min(value, kMaxInteger);
    do {
      digits[sizeof digits - ++n] = static_cast<char>('0' + value % 10);
      value /= 10;
    } while (value != 0);
    return Bytes(digits + sizeof digits - n, n);
  }
  int Finish() {
    if (overflown_ || size_ == 0) return SLUICE_E_BUFFER;
    out_[used_] = '\0';
    return static_cast<int>(used_);
  }

 private:
  char* out_;
  size_t size_;
  size_t used_ = 0;
  bool overflown_ = false;
};

}  // namespace sluice::client
