#include "tests/support/certificates.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>

#include "absl/strings/str_join.h"

namespace sluice::test {
namespace {

// Whether `openssl words...` succeeded.
bool OpenSsl(std::vector<std::string> words) {
  words.insert(words.begin(), "openssl");
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
  posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
  pid_t child = -1;
  const int rc = posix_spawnp(&child, argv[0], &actions, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  int status = 0;
  return rc == 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) &&
         WEXITSTATUS(status) == 0;
}

const std::vector<std::string> kNewKey = {"-newkey", "ec", "-pkeyopt",
                                          "ec_paramgen_curve:prime256v1", "-nodes"};

std::vector<std::string> With(std::vector<std::string> words,
                              const std::vector<std::string>& more) {
  words.insert(words.end(), more.begin(), more.end());
  return words;
}

}  // namespace

Authority::Authority(const std::string& name) {
  ok_ = OpenSsl(With(With({"req", "-x509"}, kNewKey), {"-keyout", path("ca.key"), "-out", ca_file(),
                                                       "-days", "2", "-subj", "/CN=" + name}));
}

Authority::Certificate Authority::Issue(const std::string& file,
                                        const std::vector<std::string>& names, int days) {
  const std::string request = path(file + ".csr");
  const std::string extensions = path(file + ".ext");
  const std::string fresh = path(file + ".pem.new");
  const std::string fresh_key = path(file + ".key.new");
  std::ofstream(extensions) << "subjectAltName=" << absl::StrJoin(names, ",") << "\n";
  const bool made =
      OpenSsl(With(With({"req", "-new"}, kNewKey),
                   {"-keyout", fresh_key, "-out", request, "-subj", "/CN=" + file})) &&
      OpenSsl({"x509", "-req", "-in", request, "-CA", ca_file(), "-CAkey", path("ca.key"),
               "-CAcreateserial", "-days", std::to_string(days), "-extfile", extensions, "-out",
               fresh});
  if (!made) return {};
  Certificate certificate{path(file + ".pem"), path(file + ".key")};
  const bool moved = std::rename(fresh.c_str(), certificate.certificate_file.c_str()) == 0 &&
                     std::rename(fresh_key.c_str(), certificate.key_file.c_str()) == 0;
  return moved ? certificate : Certificate{};
}

}  // namespace sluice::test
