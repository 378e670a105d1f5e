// Networks whose weights lie in safetensors files, for their names: in_place SMALL LARGE
#include <tstitch/file/safetensors.hpp>
#include <tstitch/load.hpp>

#include <cstdio>

// What the files of a network hold, from their headers.
void print_weights(char const* path) {
  const tstitch::StoredWeights weights = tstitch::read_stored_weights(path);
  std::printf("%.3g weights, %s\n", double(weights.count), at::toString(weights.type));
}

int main(int argc, char** argv) {
  if (argc < 3) return 2;
  print_weights(argv[1]);
  const auto networks = tstitch::load_networks({argv[1], argv[2]}, {.readers = {tstitch::safetensors_reader()}});
  for (auto const& network : networks) std::printf("%s\n", network.info().name.c_str());
}
