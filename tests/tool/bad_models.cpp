// Writes the models that tstitch_sample must refuse, into the folder given: bad_models FOLDER GOOD_MODEL
#include <torch/csrc/jit/api/module.h>

#include <fstream>
#include <iterator>
#include <string>

namespace {

void save(std::string const& path, std::string const& forward, std::string const& channels, bool metadata = true) {
  torch::jit::ExtraFilesMap files;
  for (auto const& [key, value] : {std::pair{"format", std::string("1")},
                                   {"name", "bad"},
                                   {"input_channels", channels},
                                   {"input_height", "32"},
                                   {"input_width", "32"},
                                   {"prediction", "epsilon"},
                                   {"timestep_type", "int64"},
                                   {"noise_schedule", "linear"},
                                   {"num_train_timesteps", "1000"},
                                   {"beta_start", "0.0001"},
                                   {"beta_end", "0.02"},
                                   {"num_classes", "10"},
                                   {"null_class", "10"},
                                   {"decoding", "pixels"}}) {
    if (metadata) files[std::string("tstitch/") + key] = value;
  }
  torch::jit::Module module("bad");
  module.define("def forward(self, x, t, labels):\n  " + forward + "\n");
  module.save(path, files);
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 3) return 2;
  const std::string folder = arguments[1];
  std::ifstream good(arguments[2], std::ios::binary);
  const std::string bytes{std::istreambuf_iterator<char>(good), {}};
  std::ofstream(folder + "/truncated.pt", std::ios::binary) << bytes.substr(0, bytes.size() / 2);
  std::ofstream(folder + "/empty.pt");
  std::ofstream(folder + "/text.pt") << "this is a text and no network\n";
  save(folder + "/no_metadata.pt", "return x", "3", false);
  save(folder + "/four_channels.pt", "return x", "4");
  save(folder + "/nan.pt", "return x * float('nan')", "3");
  save(folder + "/throws.pt", "assert x.size(0) > 1000, 'no such luck'\n  return x", "3");
  save(folder + "/identity.pt", "return x", "3");  // good, for once
  // Not a number in the noisy half of a trajectory only.
  save(folder + "/nan_early.pt", "return x * float('nan') if int(t[0]) > 500 else x", "3");
  // Works until it sees a batch of one.
  save(folder + "/not_alone.pt", "assert x.size(0) > 1, 'not alone'\n  return x", "3");
  save(folder + "/wrong_shape.pt", "return x[:, :1]", "3");
}
