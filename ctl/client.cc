#include "ctl/client.h"

#include "absl/strings/str_cat.h"

namespace sluice::ctl {

absl::StatusOr<Client> Client::Attach(const Globals& globals, const std::string& label) {
  sluice_options_t options{};
  options.struct_size = sizeof(options);
  options.default_allowed = 1;
  options.runtime_dir = globals.runtime_dir.c_str();
  options.label = label.c_str();
  sluice_t* raw = nullptr;
  if (const int error = sluice_open(&options, &raw); error != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("--runtime-dir ", globals.runtime_dir, ": ", sluice_strerror(error)));
  }
  Client client(raw);
  if (sluice_wait(raw, kAttachTimeoutMs) == 1) return client;
  sluice_info_t info{};
  sluice_get_info(raw, &info);
  return absl::UnavailableError(
      absl::StrCat("not attached to a daemon in ", globals.runtime_dir, ": ",
                   info.message[0] != '\0' ? info.message : "no daemon answered in time"));
}

}  // namespace sluice::ctl
