#pragma once

#include <sys/types.h>

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"

struct ssl_ctx_st;

namespace sluice::redis {

struct TlsOptions {
  std::string ca_file;           // PEM; empty: the authorities that this machine trusts
  std::string certificate_file;  // PEM, ours with its chain; empty: none is shown
  std::string key_file;          // PEM, without a passphrase; with certificate_file only
  std::string server_name;       // what every certificate must name; empty: the node's own name
};

// What all TLS connections of a client share: the authorities and our own certificate, read from
// files, and read again when the files change. TLS 1.2 and newer; the peer is always verified. One
// thread.
class TlsContext {
 public:
  // Reads nothing yet.
  explicit TlsContext(TlsOptions options);
  ~TlsContext();
  TlsContext(const TlsContext&) = delete;
  TlsContext& operator=(const TlsContext&) = delete;

  // Reads the files if they are not as they were when they were last read. When that fails, what
  // was in force stays: a renewal that is written half is no outage. The error names key, file and
  // mend, and is told until the files are good.
  absl::Status Refresh();

  // Null until a Refresh has succeeded.
  ssl_ctx_st* get() const { return context_.get(); }
  const TlsOptions& options() const { return options_; }

 private:
  // Tells one content of a file from another, as far as one can without reading it.
  struct Mark {
    dev_t device = 0;
    ino_t inode = 0;
    off_t bytes = -1;  // -1: there is no such file
    int64_t modified_ns = 0;
    int64_t changed_ns = 0;
    friend bool operator==(const Mark&, const Mark&) = default;
  };
  using Marks = std::array<Mark, 3>;
  using Context = std::unique_ptr<ssl_ctx_st, void (*)(ssl_ctx_st*)>;

  Marks Look() const;
  absl::Status Load(ssl_ctx_st* context) const;

  const TlsOptions options_;
  Context context_;
  Marks marks_;
  bool read_ = false;  // marks_ and status_ tell of the files
  absl::Status status_;
};

// What OpenSSL's queue of errors says, the oldest of them; the queue is empty then.
std::string TakeTlsError();

}  // namespace sluice::redis
