#include "daemon/redis/tls_error.h"

#include <arpa/inet.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>

#include <memory>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "daemon/redis/error_reply.h"

namespace sluice::redis {
namespace {

// Names of a certificate that a message lists.
constexpr size_t kMaxNamesShown = 5;

std::string TimeText(const ASN1_TIME* time) {
  tm parts{};
  if (time == nullptr || ASN1_TIME_to_tm(time, &parts) != 1) return "?";
  char text[64];
  const size_t n = strftime(text, sizeof text, "%Y-%m-%d %H:%M:%S UTC", &parts);
  return std::string(text, n);
}

std::string NameText(const X509_NAME* name) {
  const std::unique_ptr<BIO, int (*)(BIO*)> out(BIO_new(BIO_s_mem()), BIO_free);
  if (out == nullptr || name == nullptr) return "?";
  X509_NAME_print_ex(out.get(), name, 0, XN_FLAG_ONELINE & ~ASN1_STRFLGS_ESC_MSB);
  char* bytes = nullptr;
  const long size = BIO_get_mem_data(out.get(), &bytes);
  return size > 0 ? Printable(std::string_view(bytes, static_cast<size_t>(size))) : "nobody";
}

std::string AddressText(const ASN1_OCTET_STRING* ip) {
  char text[INET6_ADDRSTRLEN] = "?";
  const int family = ASN1_STRING_length(ip) == 4 ? AF_INET : AF_INET6;
  if (family == AF_INET6 && ASN1_STRING_length(ip) != 16) return "?";
  inet_ntop(family, ASN1_STRING_get0_data(ip), text, sizeof text);
  return text;
}

// The subject alternative names, as far as a message can hold them. The common name does not count:
// no verifier of today takes it where there are others, and none should where there are not.
std::string NamesOf(X509* certificate) {
  const std::unique_ptr<GENERAL_NAMES, void (*)(GENERAL_NAMES*)> all(
      static_cast<GENERAL_NAMES*>(
          X509_get_ext_d2i(certificate, NID_subject_alt_name, nullptr, nullptr)),
      GENERAL_NAMES_free);
  std::vector<std::string> names;
  const int count = all == nullptr ? 0 : sk_GENERAL_NAME_num(all.get());
  for (int i = 0; i < count && names.size() <= kMaxNamesShown; ++i) {
    const GENERAL_NAME* name = sk_GENERAL_NAME_value(all.get(), i);
    if (name->type == GEN_DNS) {
      names.push_back(Printable(
          std::string_view(reinterpret_cast<const char*>(ASN1_STRING_get0_data(name->d.dNSName)),
                           static_cast<size_t>(ASN1_STRING_length(name->d.dNSName)))));
    } else if (name->type == GEN_IPADD) {
      names.push_back(AddressText(name->d.iPAddress));
    }
  }
  if (names.empty()) return "no name at all";
  if (names.size() > kMaxNamesShown) names.back() = "others";
  return absl::StrJoin(names, ", ");
}

std::string AuthoritiesText(const TlsOptions& options) {
  return options.ca_file.empty() ? "this machine's trusted authorities"
                                 : absl::StrCat("redis.tls.ca_file ", options.ca_file);
}

// The server does not like what we are or show.
TlsTrouble Refused(const std::string& reason, const TlsOptions& options) {
  if (options.certificate_file.empty()) {
    return {absl::StrCat("the server refuses to talk without a certificate of ours: ", reason),
            "set redis.tls.certificate_file and redis.tls.key_file, or tls-auth-clients no on the "
            "server"};
  }
  return {absl::StrCat("the server refuses our certificate: ", reason),
          absl::StrCat("renew ", options.certificate_file,
                       ", signed by an authority that the server trusts")};
}

}  // namespace

TlsTrouble JudgeCertificate(x509_store_ctx_st* store, const std::string& name,
                            const TlsOptions& options) {
  X509* const certificate = X509_STORE_CTX_get_current_cert(store);
  const int error = X509_STORE_CTX_get_error(store);
  if (certificate == nullptr) return {X509_verify_cert_error_string(error), "renew it"};
  const std::string whose = X509_STORE_CTX_get_error_depth(store) == 0
                                ? "the server's certificate"
                                : absl::StrCat("the authority's certificate (",
                                               NameText(X509_get_subject_name(certificate)), ")");
  switch (error) {
    case X509_V_ERR_CERT_HAS_EXPIRED:
      return {absl::StrCat(whose, " has expired on ", TimeText(X509_get0_notAfter(certificate))),
              "renew it, or set the clock of this machine"};
    case X509_V_ERR_CERT_NOT_YET_VALID:
      return {
          absl::StrCat(whose, " is not valid before ", TimeText(X509_get0_notBefore(certificate))),
          "set the clock of this machine, or wait"};
    case X509_V_ERR_HOSTNAME_MISMATCH:
    case X509_V_ERR_IP_ADDRESS_MISMATCH:
      return {absl::StrCat("the server's certificate names ", NamesOf(certificate), ", not ",
                           Printable(name)),
              "add that name to the certificate (subjectAltName), let the cluster announce another "
              "(cluster-announce-hostname), or set redis.tls.server_name"};
    case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT:
    case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY:
    case X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE:
    case X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT:
    case X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN:
    case X509_V_ERR_CERT_SIGNATURE_FAILURE:
      return {absl::StrCat(whose, " was signed by ", NameText(X509_get_issuer_name(certificate)),
                           ", which is not among ", AuthoritiesText(options)),
              "name the authority that signed it in redis.tls.ca_file"};
    default:
      return {absl::StrCat(whose, ": ", X509_verify_cert_error_string(error)),
              "renew it, or correct redis.tls.ca_file"};
  }
}

TlsTrouble TakeTlsTrouble(const TlsOptions& options) {
  const int code = ERR_GET_REASON(ERR_peek_error());
  const std::string reason = TakeTlsError();
  switch (code) {
    case SSL_R_WRONG_VERSION_NUMBER:
    case SSL_R_HTTP_REQUEST:
    case SSL_R_PACKET_LENGTH_TOO_LONG:
    case SSL_R_BAD_RECORD_TYPE:
      return {"what listens there does not speak TLS",
              "name the server's tls-port in redis.addresses, or take redis.tls out"};
    case SSL_R_UNSUPPORTED_PROTOCOL:
    case SSL_R_TLSV1_ALERT_PROTOCOL_VERSION:
      return {absl::StrCat("no common version of TLS: ", reason),
              "allow TLS 1.2 or 1.3 on the server (tls-protocols)"};
    case SSL_R_SSLV3_ALERT_NO_CERTIFICATE:
    case SSL_R_SSLV3_ALERT_BAD_CERTIFICATE:
    case SSL_R_SSLV3_ALERT_UNSUPPORTED_CERTIFICATE:
    case SSL_R_SSLV3_ALERT_CERTIFICATE_REVOKED:
    case SSL_R_SSLV3_ALERT_CERTIFICATE_EXPIRED:
    case SSL_R_SSLV3_ALERT_CERTIFICATE_UNKNOWN:
    case SSL_R_SSLV3_ALERT_HANDSHAKE_FAILURE:
    case SSL_R_TLSV13_ALERT_CERTIFICATE_REQUIRED:
    case SSL_R_TLSV1_ALERT_UNKNOWN_CA:
    case SSL_R_TLSV1_ALERT_ACCESS_DENIED:
      return Refused(reason, options);
    default:
      return {absl::StrCat("TLS: ", reason), "look at the server's log"};
  }
}

}  // namespace sluice::redis
