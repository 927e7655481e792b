#include "daemon/redis/tls_context.h"

#include <fcntl.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"

namespace sluice::redis {
namespace {

constexpr int64_t kSecondNs = 1'000'000'000;
// A file that changed so lately may change again without another time stamp.
constexpr int64_t kYoungNs = kSecondNs;

int64_t Nanoseconds(const timespec& time) { return time.tv_sec * kSecondNs + time.tv_nsec; }

int64_t WallClockNs() {
  timespec now{};
  clock_gettime(CLOCK_REALTIME, &now);  // the clock of time stamps of files
  return Nanoseconds(now);
}

absl::Status Wrong(std::string_view key, const std::string& file, std::string_view what,
                   std::string_view mend) {
  return absl::FailedPreconditionError(absl::StrCat("redis.tls.", std::string(key), " ", file, " ",
                                                    std::string(what), "; ", std::string(mend)));
}

// OpenSSL reads the files by itself, but would wait on a pipe and says little.
absl::Status CheckReadable(std::string_view key, const std::string& file) {
  constexpr std::string_view kMend = "name a file that the daemon's user can read";
  const int fd = open(file.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) {
    return Wrong(key, file, absl::StrCat("cannot be opened: ", std::strerror(errno)), kMend);
  }
  struct stat status {};
  const bool regular = fstat(fd, &status) == 0 && S_ISREG(status.st_mode);
  close(fd);
  return regular ? absl::OkStatus() : Wrong(key, file, "is not a regular file", kMend);
}

// Without it OpenSSL would ask on the terminal.
int NoPassphrase(char*, int, int, void*) { return 0; }

}  // namespace

std::string TakeTlsError() {
  const unsigned long first = ERR_get_error();
  ERR_clear_error();
  if (first == 0) return "no reason given";
  const char* reason = ERR_reason_error_string(first);
  return reason != nullptr ? reason : absl::StrCat("error ", first);
}

TlsContext::TlsContext(TlsOptions options)
    : options_(std::move(options)), context_(nullptr, SSL_CTX_free) {}

TlsContext::~TlsContext() = default;

TlsContext::Marks TlsContext::Look() const {
  Marks marks;
  const std::string* files[] = {&options_.ca_file, &options_.certificate_file, &options_.key_file};
  for (size_t i = 0; i < marks.size(); ++i) {
    struct stat status {};
    if (files[i]->empty() || stat(files[i]->c_str(), &status) != 0) continue;
    marks[i] = {status.st_dev, status.st_ino, status.st_size, Nanoseconds(status.st_mtim),
                Nanoseconds(status.st_ctim)};
  }
  return marks;
}

absl::Status TlsContext::Refresh() {
  const Marks marks = Look();
  if (read_ && marks == marks_) return status_;
  Context fresh(SSL_CTX_new(TLS_client_method()), SSL_CTX_free);
  if (fresh == nullptr) {
    return absl::FailedPreconditionError(absl::StrCat("TLS cannot be used: ", TakeTlsError()));
  }
  status_ = Load(fresh.get());
  ERR_clear_error();
  if (status_.ok()) context_ = std::move(fresh);
  marks_ = marks;
  const int64_t now_ns = WallClockNs();
  read_ = std::all_of(marks.begin(), marks.end(), [&](const Mark& mark) {
    return mark.changed_ns + kYoungNs < now_ns || mark.changed_ns > now_ns;
  });
  return status_;
}

absl::Status TlsContext::Load(ssl_ctx_st* context) const {
  SSL_CTX_set_min_proto_version(context, TLS1_2_VERSION);
  SSL_CTX_set_options(context, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION);
  SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
  // One of some hundred connections that are mostly idle: its buffers are worth giving back.
  SSL_CTX_set_mode(context, SSL_MODE_RELEASE_BUFFERS);
  SSL_CTX_set_default_passwd_cb(context, NoPassphrase);

  const std::string& ca = options_.ca_file;
  if (ca.empty()) {
    if (SSL_CTX_set_default_verify_paths(context) != 1) {
      return absl::FailedPreconditionError(
          "this machine has no trusted authorities; name one in redis.tls.ca_file");
    }
  } else {
    absl::Status status = CheckReadable("ca_file", ca);
    if (!status.ok()) return status;
    if (SSL_CTX_load_verify_locations(context, ca.c_str(), nullptr) != 1) {
      return Wrong("ca_file", ca, "holds no certificate in PEM form",
                   "put the authority's certificate there");
    }
  }
  const std::string& certificate = options_.certificate_file;
  if (certificate.empty()) return absl::OkStatus();
  absl::Status status = CheckReadable("certificate_file", certificate);
  if (status.ok()) status = CheckReadable("key_file", options_.key_file);
  if (!status.ok()) return status;
  if (SSL_CTX_use_certificate_chain_file(context, certificate.c_str()) != 1) {
    return Wrong("certificate_file", certificate, "holds no certificate in PEM form",
                 "put this daemon's certificate there, and behind it those that lead to the "
                 "authority");
  }
  // A key that is no key and one that belongs to another certificate are told apart.
  if (SSL_CTX_use_PrivateKey_file(context, options_.key_file.c_str(), SSL_FILETYPE_PEM) == 1 &&
      SSL_CTX_check_private_key(context) == 1) {
    return absl::OkStatus();
  }
  const unsigned long error = ERR_peek_error();
  if (ERR_GET_LIB(error) == ERR_LIB_X509) {
    return Wrong("key_file", options_.key_file,
                 absl::StrCat("does not belong to the certificate in ", certificate),
                 "put the key and the certificate there that were made together");
  }
  return Wrong("key_file", options_.key_file,
               "holds no private key in PEM form that opens without a passphrase",
               "write the key there without one, readable by the daemon's user only");
}

}  // namespace sluice::redis
