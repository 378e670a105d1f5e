/// @file
/// The command line of tstitch_generate.
#pragma once

#include <CLI/CLI.hpp>

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "../common/command_line.hpp"

/// What a data set is beside its pictures, and how workers share it.
struct DataSetArguments {
  std::string format = "npz";
  std::int64_t shard = 1000;  ///< pictures
  bool shard_given = false;
  double lease = 60;  ///< seconds
};

inline std::vector<std::string> data_set_formats() {
  return {"npz", "png", "webdataset"};
}

/// The options that programs share, and what is for data sets.
struct DataSetCommandLine : CommandLine {
  DataSetArguments& data_set;
  CLI::Option* shard = nullptr;

  void add_data_set() {
    group = "Data set";
    option("--output", arguments.output, "folder of the data set; begun there before, it goes on")
        ->type_name("DIR")
        ->required();
    option("--images", arguments.images, "how many pictures")
        ->required()
        ->check(in_range<std::int64_t>(1, 100'000'000));
    one_of(
        shown("--format", data_set.format,
              "npz (images.npz: arr_0, and classes as arr_1, as guided-diffusion's evaluator reads it), png (folders "
              "of 1,000) or webdataset (tar files)")
            ->type_name("FORMAT"),
        data_set_formats());
    shard = shown("--shard", data_set.shard, "pictures in each tar file of webdataset")
                ->check(in_range<std::int64_t>(1, 1'000'000));
    option("--class", arguments.classes,
           "name, one of its synonyms, or number; repeat for more, or with commas between; picture i is of the class i "
           "of these, which begin again behind the last [all]")
        ->type_name("CLASS")
        ->allow_extra_args(false);
    option("--seed", arguments.seeds.front(), "picture i has seed SEED + i, and depends on nothing else [0]");
    group = "Machine";
    batch = option("--batch", arguments.batch,
                   "pictures at once, rounded up to a multiple of 8, for pictures have the same bits in batches of the "
                   "same size [256 on a GPU, 16 on the CPU]")
                ->check(in_range<std::int64_t>(1, 65'536));
    shown("--lease", data_set.lease, "seconds without a sign of life after which others draw what a worker had taken")
        ->check(in_range(1.0, 86'400.0));
    group = "Output";
    add_decoder();
    flag("--quiet", arguments.quiet, "print errors only");
  }
};

/// @returns nothing when the program is to go on, else its exit code; help and version have been printed then
/// @throws std::invalid_argument for options that are not what they must be, or do not suit each other
inline std::optional<int> parse(int count, char** values, Arguments& arguments, DataSetArguments& data_set) {
  CLI::App app{
      "Draws data sets with several diffusion transformers in turn: the first, noisy steps go to the first network, "
      "the "
      "later ones to the next (T-Stitch, arXiv 2402.14167).\n"
      "Alone, or by many processes that torchrun --no-python, mpirun or srun started, which share the work through "
      "torch's TCPStore. The files are the same however many they are, and however often they were interrupted.\n"
      "Networks and decoders are programs: TorchScript files and .pt2 packages run code that they contain, so take "
      "them from whom you trust.",
      "tstitch_generate"};
  DataSetCommandLine line{{app, arguments}, data_set};
  line.add_data_set();
  line.add_routing();
  line.add_sampling();
  line.add_pictures();
  line.add_machine();
  set_up(app, version_of("tstitch_generate"),
         {{"Data set", "tstitch_generate --output set --images 50000 --format npz"},
          {"Machine", "torchrun --no-python --nproc-per-node 8 tstitch_generate --output set --images 50000"}});
  if (const std::optional<int> code = read_arguments(app, count, values)) return code;
  data_set.shard_given = CommandLine::is_given(line.shard);
  arguments.pad_batches = true;
  line.take_given();
  line.take_pipeline();
  line.take_prompts();
  read_routing(arguments);
  line.require_effect();
  line.require_numbers();
  if (data_set.shard_given && data_set.format != "webdataset") {
    throw std::invalid_argument("--shard: is for the format webdataset, got " + data_set.format);
  }
  return std::nullopt;
}
