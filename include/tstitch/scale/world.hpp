/// @file
/// Which of several processes this is, as torchrun, mpirun and srun say it.
#pragma once

#include <charconv>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <optional>
#include <stdexcept>
#include <string>
#include <system_error>

#include "../base/text.hpp"

namespace tstitch {

/// The processes of a run, and this one among them.
struct World {
  std::int64_t rank = 0;        ///< of this process, in [0, size)
  std::int64_t size = 1;        ///< as it was started; workers may have come and gone since
  std::int64_t local_rank = 0;  ///< on its machine: which GPU is its own
  std::string host = {};        ///< where they meet; empty for a process alone
  std::uint16_t port = 0;
  bool hosted = false;   ///< the launcher has a store there already, as torchrun's agent does, and rank 0 makes none
  std::string run = {};  ///< another one for another run or restart at the same place
  std::string launcher = {};  ///< "torchrun", "Open MPI", "Slurm"; empty: none

  /// Whether this process makes the store, and is there the longest.
  bool hosts() const { return size > 1 && rank == 0 && !hosted; }
};

namespace detail {

/// Reads variables of the environment, and refuses by their names.
class Environment {
 public:
  using Get = std::function<char const*(char const*)>;

  explicit Environment(Get const& get) : get_(get) {}

  std::optional<std::string> text(char const* name) const {
    char const* const value = get_(name);
    if (!value) return {};
    return value;
  }

  std::string required(char const* name, std::string const& reason) const {
    const std::optional<std::string> value = text(name);
    if (!value || value->empty()) fail(name, "must be set " + reason, value ? "''" : "none");
    return *value;
  }

  std::int64_t number(char const* name, std::string const& value, std::int64_t least, std::int64_t most) const {
    const std::optional<std::int64_t> number = words::number_of<std::int64_t>(value);
    if (number && *number >= least && *number <= most) return *number;
    fail(name, "must be a whole number in [" + std::to_string(least) + ", " + std::to_string(most) + "]",
         words::in_quotes(value));
  }

  [[noreturn]] static void fail(std::string const& name, std::string const& rule, std::string const& got) {
    throw std::invalid_argument("tstitch::read_world: " + name + " " + rule + ", got " + got);
  }

 private:
  Get const& get_;
};

/// The names that a launcher gives its variables.
struct LauncherNames {
  char const* launcher;
  char const* rank;
  char const* size;
  char const* local_rank;
};

inline constexpr LauncherNames launchers[]{
    {"torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK"},
    {"Open MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"},
    // Of a step of srun: a batch script, and a shell of salloc, have the names without _STEP_ too and are alone.
    {"Slurm", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"}};

}  // namespace detail

/// The world that the environment states, by the names of torchrun (RANK, WORLD_SIZE, LOCAL_RANK), else of Open MPI,
/// else of a step of Slurm; where there are none, a process alone. With more than one, MASTER_ADDR and MASTER_PORT say
/// where they meet; of a launcher that states that all are on this machine they may be left out, and are 127.0.0.1 and
/// 29500 then.
/// @param get the environment, by default the process's
/// @throws std::invalid_argument for variables that are no such numbers, do not fit together, or are missing
inline World read_world(std::function<char const*(char const*)> const& get = [](char const* name) {
  return static_cast<char const*>(std::getenv(name));
}) {
  const detail::Environment environment(get);
  World world;
  for (detail::LauncherNames const& names : detail::launchers) {
    const bool is_slurm = names.launcher == std::string("Slurm");
    if (!environment.text(names.size) && (is_slurm || !environment.text(names.rank))) continue;
    const std::string beside = "where " + std::string(names.launcher) + "'s other names are";
    constexpr std::int64_t most = 1'000'000;
    world.launcher = names.launcher;
    world.size = environment.number(names.size, environment.required(names.size, beside), 1, most);
    world.rank = environment.number(names.rank, environment.required(names.rank, beside), 0, most);
    if (world.rank >= world.size) {
      detail::Environment::fail(names.rank,
                                "must be below " + std::string(names.size) + ", " + std::to_string(world.size),
                                std::to_string(world.rank));
    }
    if (const auto local = environment.text(names.local_rank)) {
      world.local_rank = environment.number(names.local_rank, *local, 0, most);
    } else if (world.size > 1) {
      environment.required(names.local_rank, beside);
    }
    break;
  }
  const std::optional<std::string> host = environment.text("MASTER_ADDR"), port = environment.text("MASTER_PORT");
  if (world.size == 1) return world;
  const auto all_here = [&](char const* name, std::string const& value) { return environment.text(name) == value; };
  const bool is_here =
      (world.launcher == "Open MPI" && all_here("OMPI_COMM_WORLD_LOCAL_SIZE", std::to_string(world.size))) ||
      (world.launcher == "Slurm" && all_here("SLURM_STEP_NUM_NODES", "1"));
  const std::string reason = "for " + std::to_string(world.size) + " processes to meet";
  world.host = host || !is_here ? environment.required("MASTER_ADDR", reason) : "127.0.0.1";
  const std::string at = port || !is_here ? environment.required("MASTER_PORT", reason) : "29500";
  world.port = std::uint16_t(environment.number("MASTER_PORT", at, 1, 65535));
  world.hosted = environment.text("TORCHELASTIC_USE_AGENT_STORE") == "True";
  world.run = environment.text("TORCHELASTIC_RUN_ID").value_or("") + "/" +
              environment.text("TORCHELASTIC_RESTART_COUNT").value_or("0");
  return world;
}

}  // namespace tstitch
