// Draws one picture of each class with the bundled pair: quickstart small.pt large.pt
#include <tstitch/file/torchscript.hpp>
#include <tstitch/method/ddim.hpp>
#include <tstitch/output/image.hpp>

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  const auto networks = tstitch::load_torchscript_networks({argv[1], argv[2]}, {.device = tstitch::default_device()});
  const tstitch::DDIM sampler{networks[0].noise_schedule(), tstitch::Stitch{.ratio = 0.4}, {.steps = 20}};
  const auto samples = sampler.sample(networks, {.labels = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9}, .guidance = {.scale = 2.0}});
  tstitch::write_grid("quickstart.png", samples.images, 5);
}
