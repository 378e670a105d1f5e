#include "png_samples.hpp"

void write_elsewhere(std::string const& path, tstitch::Picture const& picture) {
  tstitch::write_png(path, picture);
}
