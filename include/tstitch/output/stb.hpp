/// @file
/// stb_image_write's PNG encoder. It meets no copy of the program's own, whichever of the two comes first, and leaves
/// no macros behind.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <new>

// The standard headers that it wants must come before it enters a namespace.
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

namespace tstitch::detail::stb {

/// stb does not look whether it was given memory.
inline void* reallocate(void* old, std::size_t size) {
  void* const memory = std::realloc(old, size);
  if (!memory) throw std::bad_alloc();
  return memory;
}

}  // namespace tstitch::detail::stb

// What a program may have set for its own copy.
#pragma push_macro("INCLUDE_STB_IMAGE_WRITE_H")
#pragma push_macro("STB_IMAGE_WRITE_IMPLEMENTATION")
#pragma push_macro("STB_IMAGE_WRITE_STATIC")
#pragma push_macro("STBI_WRITE_NO_STDIO")
#pragma push_macro("STBIWDEF")
#pragma push_macro("STBIW_ASSERT")
#pragma push_macro("STBIW_CRC32")
#pragma push_macro("STBIW_FREE")
#pragma push_macro("STBIW_MALLOC")
#pragma push_macro("STBIW_MEMMOVE")
#pragma push_macro("STBIW_REALLOC")
#pragma push_macro("STBIW_REALLOC_SIZED")
#pragma push_macro("STBIW_UCHAR")
#pragma push_macro("STBIW_ZLIB_COMPRESS")
#undef INCLUDE_STB_IMAGE_WRITE_H
#undef STBIWDEF
#undef STBIW_CRC32
#undef STBIW_MEMMOVE
#undef STBIW_UCHAR
#undef STBIW_ZLIB_COMPRESS
#undef STB_IMAGE_WRITE_IMPLEMENTATION
#undef STB_IMAGE_WRITE_STATIC
#undef STBI_WRITE_NO_STDIO
#undef STBIW_ASSERT
#undef STBIW_FREE
#undef STBIW_MALLOC
#undef STBIW_REALLOC
#undef STBIW_REALLOC_SIZED
#define STB_IMAGE_WRITE_IMPLEMENTATION
#define STB_IMAGE_WRITE_STATIC
#define STBI_WRITE_NO_STDIO
#define STBIW_ASSERT(condition) static_cast<void>(0)
#define STBIW_FREE(memory) std::free(memory)
#define STBIW_MALLOC(size) std::malloc(size)
#define STBIW_REALLOC(memory, size) reallocate(memory, size)
#if defined(__GNUC__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function"
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"
#endif
namespace tstitch::detail::stb {
#if __has_include(<stb_image_write.h>)
#include <stb_image_write.h>
#else
#include <stb/stb_image_write.h>
#endif

// All of the above is a translation unit's own, which inline functions must not name. This is the program's: each unit
// brings its own and the linker takes one.

/// @returns a PNG file of `size` bytes, for std::free; null or std::bad_alloc where there is no memory
[[gnu::weak]] unsigned char* encode_png(unsigned char const* pixels, int width, int height, int channels, int& size) {
  return stbi_write_png_to_mem(pixels, width * channels, width, height, channels, &size);
}

}  // namespace tstitch::detail::stb
#if defined(__GNUC__)
#pragma GCC diagnostic pop
#endif
#undef stbiw__max
#undef stbiw__sbcount
#undef stbiw__sbfree
#undef stbiw__sbgrow
#undef stbiw__sbm
#undef stbiw__sbmaybegrow
#undef stbiw__sbn
#undef stbiw__sbneedgrow
#undef stbiw__sbpush
#undef stbiw__sbraw
#undef stbiw__wp32
#undef stbiw__wpng4
#undef stbiw__wptag
#undef stbiw__zlib_add
#undef stbiw__zlib_flush
#undef stbiw__zlib_huff
#undef stbiw__zlib_huff1
#undef stbiw__zlib_huff2
#undef stbiw__zlib_huff3
#undef stbiw__zlib_huff4
#undef stbiw__zlib_huffa
#undef stbiw__zlib_huffb
#undef stbiw__ZHASH
#undef STBIW_EXTERN
#pragma pop_macro("STBIW_ZLIB_COMPRESS")
#pragma pop_macro("STBIW_UCHAR")
#pragma pop_macro("STBIW_REALLOC_SIZED")
#pragma pop_macro("STBIW_REALLOC")
#pragma pop_macro("STBIW_MEMMOVE")
#pragma pop_macro("STBIW_MALLOC")
#pragma pop_macro("STBIW_FREE")
#pragma pop_macro("STBIW_CRC32")
#pragma pop_macro("STBIW_ASSERT")
#pragma pop_macro("STBIWDEF")
#pragma pop_macro("STBI_WRITE_NO_STDIO")
#pragma pop_macro("STB_IMAGE_WRITE_STATIC")
#pragma pop_macro("STB_IMAGE_WRITE_IMPLEMENTATION")
#pragma pop_macro("INCLUDE_STB_IMAGE_WRITE_H")
