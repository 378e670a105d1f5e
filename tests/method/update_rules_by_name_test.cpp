// Update rules as values of one type, by name: the same bits as the typed sampler, and a name for every option.

#include <tstitch/method/by_name.hpp>
#include <tstitch/method/inversion.hpp>

#include <functional>
#include <set>
#include <stdexcept>

#include "../catch.hpp"
#include "../same_samples.hpp"

using namespace tstitch;

namespace {

const NoiseSchedule linear = NoiseSchedule::linear();

std::string refusal(auto action) {
  return message_of<std::invalid_argument>(action);
}

/// Another value than the usual one that the rule takes, beside the others in `values`.
std::string another(NamedRule const& named, NamedOption const& option, OptionValues values) {
  for (std::string const& value : option.values) {
    if (value != option.usual) return value;
  }
  for (char const* const value : {"3", "2", "7", "0.25", "0.75"}) {
    values.insert_or_assign(option.name, value);
    if (value != option.usual && refusal([&] { named.make(values); }) == "nothing was thrown") return value;
  }
  return "none that this test knows";  // which the rule refuses
}

/// How many members an aggregate has, Churn counted as one.
struct Anything {
  template <class Type>
  operator Type() const {  // NOLINT: conversion is the purpose
    throw std::logic_error("is never called");
  }
};
template <class Class, class... Members>
constexpr int members() {
  if constexpr (requires { Class{Members{}..., Anything{}}; }) {
    return members<Class, Members..., Anything>();
  } else {
    return int(sizeof...(Members));
  }
}

/// How many options it lists, Churn and PIDController counted as one.
template <class Class>
int listed() {
  std::set<std::string> names;
  const Class object{};
  Class::options(object, [&](char const* name, auto const&) {
    const bool of_churn = std::string(name).starts_with("s_");
    CHECK((names.insert(of_churn ? "churn" : name).second || of_churn));
  });
  return int(names.size());
}

}  // namespace

TEST_CASE("every option of every rule is in its name") {
  for (NamedRule const& named : update_rules()) {
    std::set<std::string> names{named.make({}).name()};
    std::size_t changed = 1;
    for (NamedOption const& option : named.options) {
      const bool of_pid = option.name.starts_with("pid_");  // which is there then
      OptionValues values;
      if (option.name == "solver_type") values.emplace("order", "3");
      if (of_pid) values.emplace("pid", "true");
      const std::string value = another(named, option, values);
      values.emplace(option.name, value);
      INFO(named.name << ", " << option.name << " " << value);
      CHECK((of_pid || named.make({{option.name, option.usual}}).name() == named.make({}).name()));
      CHECK(names.insert(named.make(values).name()).second);
      ++changed;
    }
    CHECK(names.size() == changed);
  }
  // Values that differ by a rounding error, too.
  CHECK(DDIMUpdate{.eta = 0.1 + 0.2}.name() != DDIMUpdate{.eta = 0.3}.name());
  CHECK(DDIMUpdate{.eta = -0.0}.name() == "DDIM");
}

TEST_CASE("every member of every rule is an option") {
  CHECK(members<DDIMUpdate>() == listed<DDIMUpdate>());
  CHECK(members<DDPMUpdate>() == listed<DDPMUpdate>());
  CHECK(members<DPMSolverUpdate>() == listed<DPMSolverUpdate>());
  CHECK(members<DPMSolverSinglestepUpdate>() == listed<DPMSolverSinglestepUpdate>());
  CHECK(members<DPMSolver2SAncestralUpdate>() == listed<DPMSolver2SAncestralUpdate>());
  CHECK(members<DPMSolverSDEUpdate>() == listed<DPMSolverSDEUpdate>());
  CHECK(members<AdaptiveDPMSolverUpdate>() == listed<AdaptiveDPMSolverUpdate>() + 1);  // its observer is none
  CHECK(members<PIDController>() == listed<PIDController>());
  CHECK(members<UniPCUpdate>() == listed<UniPCUpdate>());
  CHECK(members<DEISUpdate>() == listed<DEISUpdate>());
  CHECK(members<LMSUpdate>() == listed<LMSUpdate>());
  CHECK(members<PNDMUpdate>() == listed<PNDMUpdate>());
  CHECK(members<Churn>() == 4);
  CHECK(members<EulerUpdate>() == listed<EulerUpdate>());
  CHECK(members<EulerAncestralUpdate>() == listed<EulerAncestralUpdate>());
  CHECK(members<HeunUpdate>() == listed<HeunUpdate>());
  CHECK(members<DPM2Update>() == listed<DPM2Update>());
  CHECK(members<LCMUpdate>() == listed<LCMUpdate>());
  CHECK(members<InversionUpdate<DDIMUpdate>>() == listed<InversionUpdate<DDIMUpdate>>() + 1);  // and the rule
}

TEST_CASE("names are the field's") {
  CHECK(DDIMUpdate{}.name() == "DDIM");
  CHECK(DDIMUpdate{.eta = 0.5, .eps_of_thresholded = false}.name() == "DDIM (eta 0.5, no eps of thresholded)");
  CHECK(DPMSolverUpdate{.order = 3, .solver_type = SolverType::heun}.name() == "DPMSolver (order 3, solver type heun)");
  CHECK(DPMSolverUpdate{.algorithm_type = AlgorithmType::dpmsolver}.name() == "DPMSolver (algorithm type dpmsolver)");
  CHECK(UniPCUpdate{.predict_x_0 = false}.name() == "UniPC (no predict x_0)");
  CHECK(HeunUpdate{.churn = {.s_churn = 40, .s_noise = 1.003}}.name() == "Heun (s_churn 40, s_noise 1.003)");
  CHECK(AdaptiveDPMSolverUpdate{.pid = PIDController{}}.name() == "AdaptiveDPMSolver (pid)");
  CHECK(AdaptiveDPMSolverUpdate{.pid = PIDController{.i = 0.5}, .carry_step_size = true}.name() ==
        "AdaptiveDPMSolver (pid (i 0.5), carry step size)");
  CHECK(InversionUpdate<DDIMUpdate>{{.eta = 0}, 5}.name() == "Inversion of DDIM (iterations 5)");
  CHECK(InversionUpdate<HeunUpdate>{{{.s_churn = 1}}}.name() == "Inversion of Heun (s_churn 1)");
  CHECK(DDIM{linear, SingleNetwork{}, {.steps = 3}, {.eta = 1}}.plan().sampler == "DDIM (eta 1)");
}

TEST_CASE("a rule by name is the rule with its options") {
  const auto name = [](std::string const& rule, OptionValues const& options) {
    return update_rule_by_name(rule, options).name();
  };
  CHECK(name("dpm-solver++", {{"order", 3}, {"solver_type", "heun"}, {"eta", 0.5}}) ==
        DPMSolverUpdate{.order = 3, .solver_type = SolverType::heun, .eta = 0.5}.name());
  CHECK(name("unipc", {{"corrector", false}, {"corrector_from", "2"}}) == "UniPC (no corrector, corrector from 2)");
  CHECK(name("euler", {{"s_churn", 10}}) == EulerUpdate{.churn = {.s_churn = 10}}.name());
  CHECK(name("dpm-solver++-adaptive", {{"pid_i", 0.5}}) == "AdaptiveDPMSolver (pid (i 0.5))");
  CHECK(name("dpm-solver++-adaptive", {{"pid", true}}) == "AdaptiveDPMSolver (pid)");
  CHECK(find_update_rule("heun").option("eta") == nullptr);
  REQUIRE(find_update_rule("euler-ancestral").option("eta"));
  CHECK(find_update_rule("euler-ancestral").option("eta")->usual == "1");
}

TEST_CASE("what is no rule, option or value is refused with what there is") {
  CHECK(
      refusal([] { update_rule_by_name("dim"); }) ==
      "tstitch::update_rule_by_name: name must be one of ddpm, ddim, dpm-solver, dpm-solver++, dpm-solver-singlestep, "
      "dpm-solver++-singlestep, dpm-solver++-2s-ancestral, dpm-solver++-sde, dpm-solver-adaptive, "
      "dpm-solver++-adaptive, unipc, deis, lms, pndm, euler, euler-ancestral, heun, dpm2, lcm, got 'dim'");
  CHECK(refusal([] {
          update_rule_by_name("ddim", {{"order", 2}});
        }) == "tstitch::update_rule_by_name: options of ddim must be one of eta, eps_of_thresholded, got 'order'");
  CHECK(refusal([] {
          update_rule_by_name("dpm-solver", {{"algorithm_type", "dpmsolver++"}});
        }).starts_with("tstitch::update_rule_by_name: options of dpm-solver must be one of order, solver_type, lower"));
  CHECK(refusal([] {
          update_rule_by_name("ddim", {{"eta", "much"}});
        }) == "tstitch::update_rule_by_name: eta must be a finite number, got 'much'");
  CHECK(refusal([] {
          update_rule_by_name("deis", {{"order", 2.5}});
        }) == "tstitch::update_rule_by_name: order must be a whole number, got '2.5'");
  CHECK(refusal([] {
          update_rule_by_name("unipc", {{"corrector", 1}});
        }) == "tstitch::update_rule_by_name: corrector must be true or false, got '1'");
  CHECK(refusal([] {
          update_rule_by_name("unipc", {{"variant", "bh3"}});
        }) == "tstitch::update_rule_by_name: variant must be one of bh1, bh2, got 'bh3'");
  CHECK(refusal([] { update_rule_by_name("ddim", {{"eta", 2}}); }) == "tstitch::DDIM: eta must be in [0, 1], got 2");
}

TEST_CASE("a sampler of any rule has the bits of the typed one") {
  const auto same = [](auto const& rule) { same_samples::check(rule, AnyUpdateRule(rule)); };
  same(DDPMUpdate{});
  same(DDIMUpdate{.eta = 0.5});
  same(DPMSolverUpdate{.order = 3});
  same(DPMSolverUpdate{.algorithm_type = AlgorithmType::dpmsolver});
  same(DPMSolverUpdate{.eta = 1});
  same(DPMSolverSinglestepUpdate{.order = 3});
  same(DPMSolver2SAncestralUpdate{});
  same(DPMSolverSDEUpdate{});
  same(AdaptiveDPMSolverUpdate{.atol = 0.05});
  same(AdaptiveDPMSolverUpdate{.atol = 0.05, .carry_step_size = true});
  same(UniPCUpdate{.order = 3});
  same(DEISUpdate{});
  same(LMSUpdate{});
  same(PNDMUpdate{PNDMStart::runge_kutta});
  same(EulerUpdate{.churn = {.s_churn = 5}});
  same(EulerAncestralUpdate{});
  same(HeunUpdate{});
  same(DPM2Update{.eta = 1});
  same(LCMUpdate{});
  same(same_samples::Momentum{});
}

TEST_CASE("any sampler is made of any sampler, and inversion of any rule") {
  const AnySampler one = DDIM{linear, Stitch{0.5}, {.steps = 4}};
  const AnySampler two = AnySampler{linear, Stitch{0.5}, {.steps = 4}, update_rule_by_name("ddim")};
  const AnySampler three = one;
  const std::string plan = to_string(DDIM{linear, Stitch{0.5}, {.steps = 4}}.plan());
  for (AnySampler const& sampler : {one, two, three}) CHECK(to_string(sampler.plan()) == plan);
  CHECK(refusal([] { AnyUpdateRule(DDIMUpdate{.eta = 2}); }) == "tstitch::DDIM: eta must be in [0, 1], got 2");

  using Typed = InversionUpdate<HeunUpdate>;
  const Typed typed{{}, 2};
  same_samples::check_inversion(typed, AnyUpdateRule(typed));
  same_samples::check_inversion(typed, InversionUpdate<AnyUpdateRule>{HeunUpdate{}, 2});
  CHECK(InversionUpdate<AnyUpdateRule>{DDIMUpdate{}}.name() == "Inversion of DDIM");
  CHECK(refusal([] { AnyUpdateRule(InversionUpdate<AnyUpdateRule>{DPMSolverUpdate{}}); }) ==
        "tstitch::Inversion: needs a rule without history, got 1");
}
