#include "daemon/redis/tls_session.h"

#include <arpa/inet.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>

#include "absl/strings/str_cat.h"

namespace sluice::redis {
namespace {

bool IsNumeric(const std::string& host) {
  in6_addr scratch;
  return inet_pton(AF_INET, host.c_str(), &scratch) == 1 ||
         inet_pton(AF_INET6, host.c_str(), &scratch) == 1;
}

// Whether the certificate of the peer will be held against `name`.
bool Expect(SSL* ssl, const std::string& name) {
  X509_VERIFY_PARAM* const verify = SSL_get0_param(ssl);
  X509_VERIFY_PARAM_set_hostflags(
      verify, X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS | X509_CHECK_FLAG_NEVER_CHECK_SUBJECT);
  if (IsNumeric(name)) return X509_VERIFY_PARAM_set1_ip_asc(verify, name.c_str()) == 1;
  return !name.empty() && name.front() != '/' &&
         X509_VERIFY_PARAM_set1_host(verify, name.data(), name.size()) == 1 &&
         SSL_set_tlsext_host_name(ssl, name.c_str()) == 1;
}

}  // namespace

TlsSession::TlsSession(const TlsContext& context, const std::string& name)
    : context_(context), name_(name), ssl_(SSL_new(context.get()), SSL_free) {}

absl::StatusOr<std::unique_ptr<TlsSession>> TlsSession::New(const TlsContext& context,
                                                            const std::string& peer) {
  if (context.get() == nullptr) {
    return absl::FailedPreconditionError("the files of redis.tls cannot be used");
  }
  ERR_clear_error();
  const std::string& wanted = context.options().server_name;
  std::unique_ptr<TlsSession> session(new TlsSession(context, wanted.empty() ? peer : wanted));
  SSL* const ssl = session->get();
  if (ssl == nullptr) return absl::ResourceExhaustedError("no memory for a TLS session");
  SSL_set_connect_state(ssl);
  SSL_set_app_data(ssl, session.get());
  SSL_set_verify(ssl, SSL_VERIFY_PEER, OnVerify);
  if (Expect(ssl, session->name_)) return session;
  ERR_clear_error();
  return absl::FailedPreconditionError(
      absl::StrCat("\"", session->name_, "\" is no name that a certificate can have"));
}

// Keeps what is wrong with the certificate while it can be looked at; the handshake fails by it.
int TlsSession::OnVerify(int good, x509_store_ctx_st* store) {
  if (good == 1) return 1;
  auto* const ssl =
      static_cast<SSL*>(X509_STORE_CTX_get_ex_data(store, SSL_get_ex_data_X509_STORE_CTX_idx()));
  auto* const self = static_cast<TlsSession*>(SSL_get_app_data(ssl));
  if (self->certificate_.what.empty()) {
    self->certificate_ = JudgeCertificate(store, self->name_, self->context_.options());
  }
  return 0;
}

TlsTrouble TlsSession::TakeTrouble() const {
  TlsTrouble trouble = TakeTlsTrouble(context_.options());
  return certificate_.what.empty() ? trouble : certificate_;
}

}  // namespace sluice::redis
