// `sluicectl promote`: puts a candidate in force, in the file and in the daemon.

#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "ctl/admin_client.h"
#include "ctl/command.h"
#include "ctl/text.h"
#include "shm/hash.h"

namespace sluice::ctl {
namespace {

using nlohmann::json;

struct PromoteOptions {
  std::string label;
  bool is_dry = false;
};

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::stringstream text;
  if (!in || !(text << in.rdbuf())) return absl::ErrnoToStatus(errno, "cannot read " + path);
  return text.str();
}

// Through a second file that takes the name of the first, so that nobody reads a half. With the
// same mode, owner and group.
absl::Status ReplaceFile(const std::string& named, const std::string& text) {
  const std::unique_ptr<char, decltype(&free)> real(realpath(named.c_str(), nullptr), &free);
  const std::string path = real == nullptr ? named : real.get();
  struct stat st;
  if (stat(path.c_str(), &st) != 0) return absl::ErrnoToStatus(errno, path);
  std::string fresh = path + ".XXXXXX";
  const int fd = mkstemp(fresh.data());
  if (fd < 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot write beside ", path,
                                                   ": use sudo, or edit it where it is made"));
  }
  const bool is_owned =
      (st.st_uid == geteuid() && st.st_gid == getegid()) || fchown(fd, st.st_uid, st.st_gid) == 0;
  const bool is_written =
      is_owned && fchmod(fd, st.st_mode & 07777) == 0 &&
      write(fd, text.data(), text.size()) == static_cast<ssize_t>(text.size()) && fsync(fd) == 0;
  const int error = errno;
  close(fd);
  if (is_written && rename(fresh.c_str(), path.c_str()) == 0) return absl::OkStatus();
  absl::Status status = absl::ErrnoToStatus(is_written ? errno : error, "cannot write " + path);
  unlink(fresh.c_str());
  return status;
}

// The file with the edits made; what stands there must be what the daemon has in force.
absl::StatusOr<std::string> Edited(const json& promotion, const std::string& text) {
  if (absl::StrFormat("%016x", shm::Fnv1a(text)) != promotion.at("fnv1a").get<std::string>()) {
    return absl::FailedPreconditionError(
        absl::StrCat(promotion.at("path").get<std::string>(),
                     " is not what is in force: it has changed and was not taken over; see "
                     "sluicectl status"));
  }
  std::string edited;
  size_t at = 0;
  for (const json& edit : promotion.at("edits")) {
    const auto begin = edit.at("at").get<size_t>();
    const auto from = edit.at("from").get<std::string>();
    if (begin < at || text.compare(begin, from.size(), from) != 0) {
      return absl::UnavailableError("the daemon speaks of another text");
    }
    edited += text.substr(at, begin - at) + edit.at("to").get<std::string>();
    at = begin + from.size();
  }
  return edited + text.substr(at);
}

absl::Status Reload(const Globals& globals) {
  std::string answer;
  absl::Status status =
      AdminLines(globals, "/reload", [&](const std::string& line) { answer += line; });
  return status;
}

absl::Status RunPromote(const Globals& globals, const PromoteOptions& options) {
  const absl::StatusOr<json> promotion =
      AdminGetJson(globals, "/promotion?rule=" + QueryEscape(options.label));
  if (!promotion.ok()) return promotion.status();
  const auto path = promotion->at("path").get<std::string>();
  if (!options.is_dry) {
    const absl::StatusOr<std::string> text = ReadFile(path);
    if (!text.ok()) return text.status();
    const absl::StatusOr<std::string> edited = Edited(*promotion, *text);
    if (!edited.ok()) return edited.status();
    if (absl::Status status = ReplaceFile(path, *edited); !status.ok()) return status;
    if (absl::Status status = Reload(globals); !status.ok()) {
      const absl::Status back = ReplaceFile(path, *text);
      return absl::FailedPreconditionError(
          absl::StrCat(std::string(status.message()), "; ", path,
                       back.ok() ? " is as before" : " could not be put back"));
    }
  }
  if (globals.is_json) {
    json answer = *promotion;
    answer["done"] = !options.is_dry;
    std::cout << answer.dump(2) << "\n";
    return absl::OkStatus();
  }
  const std::string label = SafeText(options.label);
  std::cout << label << (options.is_dry ? " would have " : " has ")
            << SafeText(promotion->at("then").get<std::string>()) << "\n"
            << "its candidate " << (options.is_dry ? "would be " : "is ")
            << SafeText(promotion->at("now").get<std::string>()) << "\n";
  if (!options.is_dry) std::cout << "the way back: sluicectl promote " << label << "\n";
  return absl::OkStatus();
}

}  // namespace

void AddPromote(CLI::App* root, Globals* globals) {
  CLI::App* verb = AddVerb(
      root, globals, "promote", "puts a rule's candidate in force, and the limit in its place",
      "Exchanges both in the configuration file, which this user must be able to write, and has "
      "it\n"
      "taken over. To do so again is the way back. On this host: other hosts get the file as they\n"
      "get their other changes.\n\n"
      "Examples:\n"
      "  sluicectl rules                          what each candidate would have denied\n"
      "  sluicectl promote per-user --dry-run\n"
      "  sluicectl promote per-user\n"
      "  sluicectl promote per-user@paid          the limit of a tier");
  auto options = std::make_shared<PromoteOptions>();
  verb->add_option("RULE", options->label, "the limit's label: a rule, or rule@tier")->required();
  verb->add_flag("--dry-run", options->is_dry, "only say what would be in force");
  verb->callback([globals, options] {
    RunAdminVerb(globals, [&] { return RunPromote(*globals, *options); });
  });
}

}  // namespace sluice::ctl
