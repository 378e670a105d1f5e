// Networks whose weights lie in safetensors files, for their names: in_place SMALL LARGE
#include <tstitch/file/safetensors.hpp>
#include <tstitch/load.hpp>

#include <cstdio>

int main(int argc, char** argv) {
  if (argc < 3) return 2;
  const auto networks = tstitch::load_networks({argv[1], argv[2]}, {.readers = {tstitch::safetensors_reader()}});
  for (auto const& network : networks) std::printf("%s\n", network.info().name.c_str());
  const tstitch::StoredWeights weights = tstitch::read_stored_weights(argv[1]);
  std::printf("%.3g weights, %s\n", double(weights.count), at::toString(weights.type));
}
