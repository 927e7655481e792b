#pragma once

#include <string>
#include <vector>

#include "tests/support/redis_process.h"

namespace sluice::test {

// An authority of the test's own and the certificates it signs, made by the openssl tool in a
// temporary directory. Nothing of it outlives the object.
class Authority {
 public:
  // `name` tells one authority from another in messages.
  explicit Authority(const std::string& name = "sluice test authority");

  bool ok() const { return ok_; }
  std::string ca_file() const { return path("ca.pem"); }
  std::string path(const std::string& file) const { return dir_.path() + "/" + file; }

  struct Certificate {
    std::string certificate_file;
    std::string key_file;
  };
  // `names` as in "DNS:localhost" or "IP:127.0.0.1"; `days` may be negative: it has expired then.
  // Written anew under the same file names, as a renewal does. Empty paths: it did not work.
  Certificate Issue(const std::string& file, const std::vector<std::string>& names, int days = 2);

 private:
  TempDir dir_;
  bool ok_ = false;
};

}  // namespace sluice::test
