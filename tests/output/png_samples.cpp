// Writes PNG files for png_test.py: png_samples FOLDER. Its three translation units each have the header.
#include "png_samples.hpp"

int main(int, char** values) {
  const std::string folder = values[1] + std::string("/");
  tstitch::write_png(folder + "1x1x1.png", sample(1, 1, 1));
  tstitch::write_png(folder + "5x4x3.png", sample(5, 4, 3),
                     {{"Software", "tstitch"}, {std::string(79, 'k'), ""}, {"two words", "Größe\n猫 😀"}});
  write_elsewhere(folder + "300x7x1.png", sample(300, 7, 1));
  write_elsewhere(folder + "64x200x3.png", sample(64, 200, 3));
  const bool shared = allocations_of_own_copy() != 0;  // its hooks are for its own work
  write_by_own_copy(folder + "9x8x3.png", sample(9, 8, 3));
  return shared || allocations_of_own_copy() == 0;
}
