// tstitch_generate: data sets from the command line, by one process or many. Exit codes: 0 done, 1 failed, 2 bad
// arguments, 128 + N stopped by signal N (130 for Ctrl-C).
#include <tstitch/scale/tcp_store.hpp>

#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/util/Flags.h>

#include <csignal>
#include <functional>
#include <iostream>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../common/diagnostics.hpp"
#include "../common/drawing.hpp"
#include "../common/network.hpp"
#include "../common/program.hpp"
#include "../common/signals.hpp"
#include "arguments.hpp"
#include "data_set.hpp"
#include "run.hpp"

C10_DECLARE_int(caffe2_log_level);

namespace {

/// The GPU that is this process's own: the one of its local rank, or the only one that it sees.
std::string own_device(std::string const& device, tstitch::World const& world) {
  const std::int64_t gpus = at::detail::getCUDAHooks().deviceCount();
  if (world.size == 1 || gpus < 2 || (device != "auto" && device != "cuda")) return device;
  if (world.local_rank < gpus) return "cuda:" + std::to_string(world.local_rank);
  throw std::invalid_argument("--device: must be a GPU for each process of a machine, got " + counted(gpus, "GPU") +
                              " and local rank " + std::to_string(world.local_rank));
}

int tstitch_generate(Arguments arguments, DataSetArguments const& data_set, tstitch::World const& world) {
  arguments.device = own_device(arguments.device, world);
  if (arguments.classes.empty() && load_network_info(arguments.models.back()).num_classes > 0) {
    arguments.classes = {"all"};
  }
  const bool batch_given = arguments.batch > 0;
  arguments.batch = (arguments.batch + 7) / 8 * 8;
  Job job = prepare(std::move(arguments));
  const tstitch::AnySampler sampler = sampler_of(job, routing(job, job.arguments.routing));
  const tstitch::Plan plan = sampler.plan(job.guidance);
  if (job.infos.size() > 1) note_routing(job, plan);
  note_forecasts(job, plan);
  if (!batch_given && world.rank == 0 && job.images() < job.arguments.batch) {
    job.notes.push_back("--batch: " + counted(job.images(), "picture") + " are drawn in a batch of " +
                        std::to_string(job.arguments.batch));
  }
  const bool speaks = world.rank == 0 && !job.arguments.quiet;
  if (job.arguments.plan) {
    if (world.rank == 0) std::cout << plan << std::flush;
    if (!std::cout) throw std::runtime_error("--plan: must be able to print, got an output that takes nothing");
    return 0;
  }
  require_pictures(job);
  require_conditions(job, plan);
  for (const int signal : {SIGPIPE, SIGXFSZ}) std::signal(signal, SIG_IGN);
  tstitch::require_device(job.device);
  const std::string decoding = require_fitting_decoder(job);
  if (!decoding.empty()) job.notes.push_back(decoding);
  if (speaks) {
    for (std::string const& note : job.notes) std::cerr << "tstitch_generate: note: " << in_a_note(note) << std::endl;
  }
  const DataSet set(job, data_set, plan);
  const auto load = [&] {
    Networks loaded;
    std::vector<std::function<void()>> others;
    if (!job.arguments.decoder.empty()) {
      others.push_back([&] { loaded.decoder = tstitch::load_decoder(job.arguments.decoder, {.device = job.device}); });
    }
    loaded.networks = load_networks(job.arguments.models, load_options(job, plan), job.arguments.backends, others);
    return loaded;
  };
  bool finished = false;
  if (world.size == 1) {
    finished = Run(set, world, std::make_shared<tstitch::MemoryStore>(), sampler, load)();
  } else {
    FLAGS_caffe2_log_level = 3;  // what goes wrong between workers is thrown and said once, without torch's pages of it
    finished = Run(set, world, std::make_shared<tstitch::TCPStore>(world), sampler, load)();
  }
  return finished ? 0 : 128 + stopped_by;
}

}  // namespace

int main(int count, char** values) {
  watch_for_signals();
  return exit_code("tstitch_generate", [&] {
    Arguments arguments;
    DataSetArguments data_set;
    if (const std::optional<int> code = parse(count, values, arguments, data_set)) return *code;
    const tstitch::World world = tstitch::read_world();
    const DiagnosticsAtEnd diagnostics("tstitch_generate", arguments.quiet || world.rank > 0);
    return tstitch_generate(std::move(arguments), data_set, world);
  });
}
