// A program's own copy of stb_image_write, which comes after the header here, with settings of its own.
#include "png_samples.hpp"

namespace {

int allocations = 0;

void* counted(void* memory) {
  ++allocations;
  return memory;
}

}  // namespace

#define STBIW_MALLOC(size) counted(malloc(size))
#define STBIW_REALLOC(memory, size) counted(realloc(memory, size))
#define STBIW_FREE(memory) free(memory)
#define STB_IMAGE_WRITE_IMPLEMENTATION
#if __has_include(<stb_image_write.h>)
#include <stb_image_write.h>
#else
#include <stb/stb_image_write.h>
#endif

void write_by_own_copy(std::string const& path, tstitch::Picture const& picture) {
  stbi_write_png(path.c_str(), picture.width, picture.height, picture.channels, picture.pixels.data(), 0);
}

int allocations_of_own_copy() {
  return allocations;
}
