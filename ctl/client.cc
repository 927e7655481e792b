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

absl::StatusOr<std::vector<sluice_descriptor_t>> ParseDescriptors(
    const std::vector<std::string>& texts) {
  std::vector<sluice_descriptor_t> descriptors;
  for (const std::string& text : texts) {
    const size_t equals = text.find('=');
    if (equals == 0 || equals == std::string::npos) {
      return absl::InvalidArgumentError(
          absl::StrCat("'", text, "': write a descriptor as NAME=VALUE, such as tenant=acme"));
    }
    descriptors.push_back(
        {text.data(), equals, text.data() + equals + 1, text.size() - equals - 1});
  }
  return descriptors;
}

nlohmann::json RetryAfterJson(const sluice_decision_t& decision) {
  if (decision.retry_after_ns == SLUICE_NEVER) return nullptr;
  return decision.retry_after_ns;
}

std::string DecidingRule(sluice_t* client, const sluice_decision_t& decision) {
  char label[256];
  const int bytes = sluice_decision_rule(client, &decision, label, sizeof(label));
  return bytes > 0 ? std::string(label) : std::string();
}

}  // namespace sluice::ctl
