#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "daemon/redis/tls_context.h"
#include "daemon/redis/tls_error.h"

struct ssl_st;
struct x509_store_ctx_st;

namespace sluice::redis {

// Our end of one TLS connection, without its bytes' way: whoever makes it gives it its BIOs, or a
// descriptor. One thread.
class TlsSession {
 public:
  // For a connection to `peer`, which (or the context's server_name) the certificate must name: an
  // IP address among its IP addresses, anything else among its DNS names. FailedPrecondition when
  // the context has no files in force, or for a unix socket, which has no name.
  static absl::StatusOr<std::unique_ptr<TlsSession>> New(const TlsContext& context,
                                                         const std::string& peer);
  TlsSession(const TlsSession&) = delete;
  TlsSession& operator=(const TlsSession&) = delete;

  ssl_st* get() const { return ssl_.get(); }

  // After a call of OpenSSL has failed: why. OpenSSL's queue of errors is empty then.
  TlsTrouble TakeTrouble() const;

 private:
  TlsSession(const TlsContext& context, const std::string& name);
  static int OnVerify(int good, x509_store_ctx_st* store);

  const TlsContext& context_;
  const std::string name_;  // what the certificate must name
  std::unique_ptr<ssl_st, void (*)(ssl_st*)> ssl_;
  TlsTrouble certificate_;  // what was wrong with it, if anything was
};

}  // namespace sluice::redis
