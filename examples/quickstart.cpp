// Samples ten pictures with the bundled pair: the small network takes the first 40 % of the steps, the large one the rest.
#include <tstitch/model/torchscript.hpp>
#include <tstitch/output/image.hpp>
#include <tstitch/sampler/ddim.hpp>

int main(int count, char** arguments) {
  const std::string folder = count > 1 ? arguments[1] : TSTITCH_MODELS;
  const auto networks =
      tstitch::load_torchscript_networks({folder + "/cifar10_dit_small.pt", folder + "/cifar10_dit_large.pt"});
  const tstitch::DDIM sampler{networks[1].noise_schedule(), tstitch::Stitch{.ratio = 0.4}, {.steps = 20}};
  const auto samples = sampler.sample(
      networks, {.labels = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9}, .seed = 7, .guidance = {.scale = 3.0}});
  tstitch::write_grid("quickstart.png", samples.images, 5);
  std::puts("wrote quickstart.png");
}
