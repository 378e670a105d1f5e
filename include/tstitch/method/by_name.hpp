/// @file
/// Update rules by name, for programs, configuration files and help texts. Opt-in: it brings every rule.
///
///     const AnyUpdateRule rule = update_rule_by_name("unipc", {{"order", 3}});
///     const AnySampler sampler{noise_schedule, Stitch{.ratio = 0.4}, {.steps = 20}, rule};
#pragma once

#include <algorithm>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "../base/options.hpp"
#include "../base/text.hpp"
#include "../sampler/any_sampler.hpp"
#include "ddim.hpp"
#include "ddpm.hpp"
#include "deis.hpp"
#include "dpm_solver.hpp"
#include "dpm_solver_adaptive.hpp"
#include "dpm_solver_singlestep.hpp"
#include "euler.hpp"
#include "heun.hpp"
#include "lcm.hpp"
#include "lms.hpp"
#include "pndm.hpp"
#include "unipc.hpp"

namespace tstitch {

/// An update rule as programs list it.
struct NamedRule {
  std::string name;                  ///< "dpm-solver++"
  std::string help;                  ///< what it is, in a line
  std::vector<NamedOption> options;  ///< that it takes, by the names of its members
  std::function<AnyUpdateRule(OptionValues const&)> make;

  /// The option of this name; null where it takes none.
  NamedOption const* option(std::string const& wanted) const {
    const auto found =
        std::find_if(options.begin(), options.end(), [&](NamedOption const& each) { return each.name == wanted; });
    return found == options.end() ? nullptr : &*found;
  }
};

namespace detail {

inline constexpr auto update_rule_place = "update_rule_by_name";

/// @param preset the rule where nothing is said
/// @param settled options that the name leaves no choice of
template <class Rule>
NamedRule named_rule(std::string name, std::string help, Rule preset, std::vector<std::string> const& settled = {}) {
  NamedRule named{std::move(name), std::move(help), list_options(preset), {}};
  std::erase_if(named.options, [&](NamedOption const& option) { return std::ranges::count(settled, option.name) > 0; });
  named.make = [preset, name = named.name, options = named.options](OptionValues const& values) -> AnyUpdateRule {
    Rule rule = preset;
    for (auto const& [option, value] : values) {
      const bool taken = std::any_of(options.begin(), options.end(),
                                     [&, &wanted = option](NamedOption const& each) { return each.name == wanted; });
      if (taken && set_option(update_rule_place, option, value.text, rule)) continue;
      refuse(update_rule_place, "options of " + name + " must be one of " + joined(names_in(options)),
             in_quotes(option));
    }
    return rule;
  };
  return named;
}

}  // namespace detail

/// All rules that have a name.
inline std::vector<NamedRule> const& update_rules() {
  using detail::named_rule;
  constexpr auto noise = AlgorithmType::dpmsolver;
  constexpr auto form = "algorithm_type";
  static const std::vector<NamedRule> rules{
      named_rule("ddpm", "ancestral sampling, with fixed or learned variance", DDPMUpdate{}),
      named_rule("ddim", "implicit; eta 1 is ddpm with the fixed small variance", DDIMUpdate{}),
      named_rule("dpm-solver", "multistep DPM-Solver, on the predicted noise", DPMSolverUpdate{.algorithm_type = noise},
                 {form, "eta"}),
      named_rule("dpm-solver++", "multistep DPM-Solver++, on the predicted x_0; eta 1 is SDE-DPM-Solver++",
                 DPMSolverUpdate{}, {form}),
      named_rule("dpm-solver-singlestep", "DPM-Solver in groups of as many steps as its order",
                 DPMSolverSinglestepUpdate{.algorithm_type = noise}, {form}),
      named_rule("dpm-solver++-singlestep", "DPM-Solver++ in groups of as many steps as its order",
                 DPMSolverSinglestepUpdate{}, {form}),
      named_rule("dpm-solver++-2s-ancestral", "DPM-Solver++(2S) with ancestral steps, two evaluations each",
                 DPMSolver2SAncestralUpdate{}),
      named_rule("dpm-solver++-sde", "stochastic DPM-Solver++, two evaluations a step", DPMSolverSDEUpdate{}),
      named_rule("dpm-solver-adaptive", "DPM-Solver-12 and -23: evaluates in a step as often as a tolerance asks for",
                 AdaptiveDPMSolverUpdate{.algorithm_type = noise}, {form}),
      named_rule("dpm-solver++-adaptive", "the same on the predicted x_0", AdaptiveDPMSolverUpdate{}, {form}),
      named_rule("unipc", "multistep predictor and corrector", UniPCUpdate{}),
      named_rule("deis", "multistep exponential integrator", DEISUpdate{}),
      named_rule("lms", "linear multistep, order 1 to 8", LMSUpdate{}),
      named_rule("pndm", "pseudo linear multistep", PNDMUpdate{}),
      named_rule("euler", "Euler's method, with churn", EulerUpdate{}),
      named_rule("euler-ancestral", "Euler's method with ancestral steps", EulerAncestralUpdate{}),
      named_rule("heun", "Heun's method, two evaluations a step, with churn", HeunUpdate{}),
      named_rule("dpm2", "DPM-Solver-2, two evaluations a step, with churn; ancestral with eta", DPM2Update{}),
      named_rule("lcm", "for latent consistency models", LCMUpdate{}),
  };
  return rules;
}

/// The entry of this name.
/// @throws std::invalid_argument for a name that there is not, with those that there are
inline NamedRule const& find_update_rule(std::string const& name) {
  return detail::find_named(detail::update_rule_place, update_rules(), name);
}

/// The rule of this name.
/// @param options by the names of the rule's members; the usual ones where nothing is said
/// @throws std::invalid_argument for a name or an option that there is not, and for values that make no sense
inline AnyUpdateRule update_rule_by_name(std::string const& name, OptionValues const& options = {}) {
  return find_update_rule(name).make(options);
}

}  // namespace tstitch
