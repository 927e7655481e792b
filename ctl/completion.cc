// `sluicectl completion`: a completion script made from the verbs and options themselves.

#include <iostream>
#include <string>
#include <vector>

#include "ctl/command.h"

namespace sluice::ctl {
namespace {

struct VerbWords {
  std::string name;
  std::string description;
  std::vector<std::string> options;  // with their dashes
  std::vector<std::string> helps;
  std::vector<std::string> values;  // of positional arguments, where they are words
};

std::vector<VerbWords> Collect(const CLI::App& root) {
  std::vector<VerbWords> verbs;
  for (const CLI::App* verb : root.get_subcommands([](const CLI::App*) { return true; })) {
    VerbWords words{verb->get_name(), verb->get_description(), {}, {}, {}};
    for (const CLI::Option* option : verb->get_options()) {
      for (const std::string& name : option->get_lnames()) {
        words.options.push_back("--" + name);
        words.helps.push_back(option->get_description());
      }
    }
    if (words.name == "completion") words.values = {"bash", "zsh", "fish"};
    if (words.name == "chaos") {
      words.values = {"redis-delay",  "redis-error", "redis-cut",
                      "daemon-pause", "clock-lag",   "emergency"};
    }
    verbs.push_back(words);
  }
  return verbs;
}

std::string Join(const std::vector<std::string>& words) {
  std::string out;
  for (const std::string& word : words) out += (out.empty() ? "" : " ") + word;
  return out;
}

// Single-quoted for the shell.
std::string Quote(const std::string& text) {
  std::string out = "'";
  for (const char c : text) out += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return out + "'";
}

void PrintBash(const std::vector<VerbWords>& verbs) {
  std::string names;
  for (const VerbWords& verb : verbs) names += verb.name + " ";
  std::cout << "# bash completion for sluicectl\n"
               "_sluicectl() {\n"
               "  local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]}"
               " verb=${COMP_WORDS[1]}\n"
               "  COMPREPLY=()\n"
               "  case $prev in\n"
               "    --runtime-dir) mapfile -t COMPREPLY < <(compgen -d -- \"$cur\"); return ;;\n"
               "  esac\n"
               "  local words=\n"
               "  if [ \"$COMP_CWORD\" -eq 1 ]; then\n"
               "    words="
            << Quote(names + "--help --version")
            << "\n"
               "  else\n"
               "    case $verb in\n";
  for (const VerbWords& verb : verbs) {
    std::vector<std::string> words = verb.values;
    words.insert(words.end(), verb.options.begin(), verb.options.end());
    std::cout << "      " << verb.name << ") words=" << Quote(Join(words)) << " ;;\n";
  }
  std::cout << "    esac\n"
               "    if [ \"$verb\" = replay ] && [[ $cur != -* ]]; then\n"
               "      mapfile -t COMPREPLY < <(compgen -f -- \"$cur\")\n"
               "      return\n"
               "    fi\n"
               "  fi\n"
               "  mapfile -t COMPREPLY < <(compgen -W \"$words\" -- \"$cur\")\n"
               "}\n"
               "complete -o filenames -o bashdefault -F _sluicectl sluicectl\n";
}

void PrintZsh(const std::vector<VerbWords>& verbs) {
  std::cout << "#compdef sluicectl\n"
               "_sluicectl() {\n"
               "  if (( CURRENT == 2 )); then\n"
               "    local -a verbs=(\n";
  for (const VerbWords& verb : verbs) {
    std::cout << "      " << Quote(verb.name + ":" + verb.description) << "\n";
  }
  std::cout << "    )\n"
               "    _describe verb verbs\n"
               "    return\n"
               "  fi\n"
               "  case $words[2] in\n";
  for (const VerbWords& verb : verbs) {
    std::cout << "    " << verb.name << ")\n"
              << "      local -a options=(\n";
    for (size_t i = 0; i < verb.options.size(); ++i) {
      std::cout << "        " << Quote(verb.options[i] + ":" + verb.helps[i]) << "\n";
    }
    for (const std::string& value : verb.values) std::cout << "        " << value << "\n";
    std::cout << "      )\n      _describe option options\n";
    if (verb.name == "replay") std::cout << "      _files\n";
    std::cout << "      ;;\n";
  }
  std::cout << "  esac\n"
               "}\n"
               "_sluicectl \"$@\"\n";
}

void PrintFish(const std::vector<VerbWords>& verbs) {
  std::cout << "# fish completion for sluicectl\n"
               "complete -c sluicectl -n 'not __fish_seen_subcommand_from replay' -f\n";
  for (const VerbWords& verb : verbs) {
    std::cout << "complete -c sluicectl -n __fish_use_subcommand -a " << verb.name << " -d "
              << Quote(verb.description) << "\n";
    const std::string seen = " -n " + Quote("__fish_seen_subcommand_from " + verb.name);
    for (size_t i = 0; i < verb.options.size(); ++i) {
      std::cout << "complete -c sluicectl" << seen << " -l " << verb.options[i].substr(2) << " -d "
                << Quote(verb.helps[i]) << "\n";
    }
    for (const std::string& value : verb.values) {
      std::cout << "complete -c sluicectl" << seen << " -a " << value << "\n";
    }
  }
}

}  // namespace

void AddCompletion(CLI::App* root, Globals* globals) {
  CLI::App* verb = root->add_subcommand("completion", "print a shell completion script");
  verb->footer(
      "Examples:\n"
      "  source <(sluicectl completion bash)\n"
      "  sluicectl completion zsh > ~/.zfunc/_sluicectl\n"
      "  sluicectl completion fish > ~/.config/fish/completions/sluicectl.fish");
  auto shell = std::make_shared<std::string>();
  verb->add_option("SHELL", *shell, "bash, zsh or fish")
      ->required()
      ->check(CLI::IsMember({"bash", "zsh", "fish"}));
  verb->callback([root, shell, globals] {
    const std::vector<VerbWords> verbs = Collect(*root);
    if (*shell == "bash") PrintBash(verbs);
    if (*shell == "zsh") PrintZsh(verbs);
    if (*shell == "fish") PrintFish(verbs);
    globals->exit_code = kExitOk;
  });
}

}  // namespace sluice::ctl
