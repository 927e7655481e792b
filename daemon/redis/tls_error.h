#pragma once

#include <string>

#include "daemon/redis/tls_context.h"

struct ssl_st;
struct x509_store_ctx_st;

namespace sluice::redis {

// Why a TLS connection could not be made or went on no longer, in an operator's words.
struct TlsTrouble {
  std::string what;
  std::string mend;  // empty where only patience helps
};

// What is wrong with the peer's certificate, while OpenSSL verifies it. `name` is the one asked
// for.
TlsTrouble JudgeCertificate(x509_store_ctx_st* store, const std::string& name,
                            const TlsOptions& options);

// What OpenSSL's queue of errors says of a connection; the queue is empty then.
TlsTrouble TakeTlsTrouble(const TlsOptions& options);

}  // namespace sluice::redis
