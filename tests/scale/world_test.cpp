#include <tstitch/scale/world.hpp>

#include <map>

#include "../catch.hpp"

using namespace tstitch;

namespace {

using Variables = std::map<std::string, std::string>;

World world_of(Variables const& variables) {
  return read_world([&](char const* name) -> char const* {
    const auto found = variables.find(name);
    return found == variables.end() ? nullptr : found->second.c_str();
  });
}

Variables with(Variables variables, Variables const& others) {
  for (auto const& [name, value] : others) variables[name] = value;
  return variables;
}

std::string refusal(Variables const& variables) {
  return message_of<std::invalid_argument>([&] { world_of(variables); });
}

const Variables torchrun{
    {"RANK", "2"}, {"WORLD_SIZE", "4"}, {"LOCAL_RANK", "1"}, {"MASTER_ADDR", "one"}, {"MASTER_PORT", "29501"}};

}  // namespace

TEST_CASE("a world is what torchrun, mpirun and srun say") {
  const World alone = world_of({});
  CHECK((alone.rank == 0 && alone.size == 1 && alone.host.empty() && alone.launcher.empty()));
  const World by_torch = world_of(with(torchrun, {{"TORCHELASTIC_USE_AGENT_STORE", "True"},
                                                  {"TORCHELASTIC_RUN_ID", "x"},
                                                  {"TORCHELASTIC_RESTART_COUNT", "3"},
                                                  {"OMPI_COMM_WORLD_SIZE", "9"}}));
  CHECK((by_torch.rank == 2 && by_torch.size == 4 && by_torch.local_rank == 1 && by_torch.launcher == "torchrun"));
  CHECK((by_torch.host == "one" && by_torch.port == 29501 && by_torch.hosted && by_torch.run == "x/3"));
  CHECK_FALSE(world_of(torchrun).hosted);
  const Variables mpi{
      {"OMPI_COMM_WORLD_RANK", "1"}, {"OMPI_COMM_WORLD_SIZE", "3"}, {"OMPI_COMM_WORLD_LOCAL_RANK", "1"}};
  const World here = world_of(with(mpi, {{"OMPI_COMM_WORLD_LOCAL_SIZE", "3"}}));
  CHECK((here.rank == 1 && here.size == 3 && here.host == "127.0.0.1" && here.port == 29500 && !here.hosted));
  CHECK(world_of(with(mpi, {{"MASTER_ADDR", "one"}, {"MASTER_PORT", "1"}})).host == "one");
  const Variables slurm{{"SLURM_PROCID", "0"}, {"SLURM_STEP_NUM_TASKS", "2"}, {"SLURM_LOCALID", "0"}};
  CHECK(world_of(with(slurm, {{"SLURM_STEP_NUM_NODES", "1"}})).launcher == "Slurm");
  // Within a batch script, which is no step.
  CHECK(world_of({{"SLURM_PROCID", "0"}, {"SLURM_NTASKS", "8"}, {"SLURM_LOCALID", "0"}}).size == 1);
}

TEST_CASE("what the environment cannot mean is refused by its name") {
  const std::string place = "tstitch::read_world: ";
  CHECK(refusal(with(torchrun, {{"RANK", "4"}})) == place + "RANK must be below WORLD_SIZE, 4, got 4");
  CHECK(refusal(with(torchrun, {{"RANK", "two"}})) == place + "RANK must be a whole number in [0, 1000000], got 'two'");
  CHECK(refusal(with(torchrun, {{"RANK", "-1"}})) == place + "RANK must be a whole number in [0, 1000000], got '-1'");
  CHECK(refusal(with(torchrun, {{"WORLD_SIZE", "0"}})) ==
        place + "WORLD_SIZE must be a whole number in [1, 1000000], got '0'");
  CHECK(refusal(with(torchrun, {{"WORLD_SIZE", "1e9"}})) ==
        place + "WORLD_SIZE must be a whole number in [1, 1000000], got '1e9'");
  CHECK(refusal(with(torchrun, {{"MASTER_PORT", "65536"}})) ==
        place + "MASTER_PORT must be a whole number in [1, 65535], got '65536'");
  CHECK(refusal(with(torchrun, {{"MASTER_ADDR", ""}})) ==
        place + "MASTER_ADDR must be set for 4 processes to meet, got ''");
  for (char const* const name : {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"}) {
    Variables fewer = torchrun;
    fewer.erase(name);
    CHECK(refusal(fewer).starts_with(place + name + " must be set "));
    CHECK(refusal(fewer).ends_with(", got none"));
  }
  CHECK(refusal({{"OMPI_COMM_WORLD_RANK", "0"}}) ==
        place + "OMPI_COMM_WORLD_SIZE must be set where Open MPI's other names are, got none");
  CHECK(refusal({{"SLURM_STEP_NUM_TASKS", "2"}, {"SLURM_PROCID", "0"}, {"SLURM_LOCALID", "0"}}) ==
        place + "MASTER_ADDR must be set for 2 processes to meet, got none");
}
