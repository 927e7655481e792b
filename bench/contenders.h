// Contenders of more than one file's rows.
#pragma once

#include "bench/paired.h"
#include "bench/stage.h"

namespace sluice::bench {

inline Contender KeyedCheck(const char* name, const char* label, bool with_decision = false) {
  sluice_rule_t* const rule = Stage::Get().Rule(label);
  return {name, [=](uint64_t n) {
            sluice_decision_t decision;
            sluice_decision_t* const wanted = with_decision ? &decision : nullptr;
            int allowed = 0;
            for (uint64_t i = 0; i < n; ++i) {
              allowed += sluice_rule_check(rule, kKey, kKeyBytes, 1, wanted);
            }
            benchmark::DoNotOptimize(allowed);
          }};
}

}  // namespace sluice::bench
