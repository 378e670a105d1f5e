#include <dlfcn.h>
#include <sys/stat.h>
#include <unistd.h>
#include <tstitch/engine/copy_kernel.hpp>
#include <tstitch/tensor/cuda/kernels.hpp>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "../nvrtc.hpp"

using namespace tstitch;

TEST_CASE("the samplers' kernels compile for every kind of GPU, without one") {
  if (!has_nvrtc()) return;
  for (const int architecture : {80, 86, 89, 90, 100, 120}) {
    for (tstitch::detail::CudaSource const& source :
         {tstitch::detail::SumKernel::source(), tstitch::detail::NoiseKernel::source(),
          tstitch::detail::CopyKernel::source()}) {
      INFO(source.name << " " << architecture);
      REQUIRE(tstitch::detail::compile_cuda(source, architecture).substr(1, 3) == "ELF");
    }
  }
}

TEST_CASE("what is in a library that is loaded is found by who loaded it alone") {
  // None that torch or this program is linked with, so that nobody else has loaded it before.
  for (auto const& [name, symbol] : {std::pair{"libz.so.1", "zlibCompileFlags"},
                                     {"libresolv.so.2", "ns_name_ntop"},
                                     {"libexpat.so.1", "XML_ExpatVersion"}}) {
    INFO(name);
    if (dlopen(name, RTLD_LAZY | RTLD_NOLOAD) || dlsym(RTLD_DEFAULT, symbol)) continue;
    const tstitch::detail::SharedLibrary library({name});
    if (!library) continue;
    CHECK(library.get<void()>(symbol) != nullptr);
    CHECK(dlsym(RTLD_DEFAULT, symbol) == nullptr);
    void* const global = dlopen(name, RTLD_LAZY | RTLD_GLOBAL);  // what it would be
    CHECK(dlsym(RTLD_DEFAULT, symbol) != nullptr);
    dlclose(global);
    return;
  }
  skip("no library that is not loaded already");
}

TEST_CASE("what NVRTC refuses is told in its words") {
  if (!has_nvrtc()) return;
  const std::string message = message_of<std::runtime_error>([] {
    tstitch::detail::compile_cuda({"broken", "__global__ void f() { return 1 }"}, 90);
  });
  CHECK_THAT(message,
             ContainsSubstring("tstitch: NVRTC must compile the kernel 'broken', got NVRTC_ERROR_COMPILATION"));
  CHECK_THAT(message, ContainsSubstring("error"));
}

TEST_CASE("without a GPU there are no kernels, which is noted") {
  if (tstitch::detail::compute_capability(0)) return;
  CHECK_FALSE(tstitch::detail::kernel_on<tstitch::detail::SumKernel>({at::kCUDA, 0}));
  CHECK_FALSE(tstitch::detail::kernel_on<tstitch::detail::NoiseKernel>({at::kCUDA, 0}));
  CHECK(message_of<std::runtime_error>([] {
          tstitch::detail::SumKernel({at::kCUDA, 0});
        }) == "tstitch: the GPU must have compute capability 8.0 or more, got 0.0");
  const std::vector<std::string> said = diagnostics();
  CHECK(std::count(said.begin(), said.end(),
                   "tstitch::kernel_on: torch's operations or the host do what a kernel would: tstitch: the GPU must "
                   "have compute capability 8.0 or more, got 0.0") == 1);
}

TEST_CASE("what others own or may write to is no cache") {
  const std::string folder = TSTITCH_TEST_DATA "/trusted-" + std::to_string(getpid()), file = folder + "/sum.cubin";
  tstitch::detail::keep_in_cache(file, "code");
  struct stat status {};
  const auto mode_of = [&](std::string const& path) {
    REQUIRE(stat(path.c_str(), &status) == 0);
    return status.st_mode & 07777;
  };
  CHECK(mode_of(folder) == 0700);
  CHECK(mode_of(file) == 0600);
  const auto read = [&] { return tstitch::detail::read_from_cache(folder, file); };
  CHECK(read() == "code");
  for (const mode_t others_write : {0620, 0602, 0666}) {
    chmod(file.c_str(), others_write);
    CHECK(read().empty());
  }
  chmod(file.c_str(), 0644);
  CHECK(read() == "code");
  for (const mode_t others_write : {0720, 0702, 0777, 01777}) {
    chmod(folder.c_str(), others_write);
    CHECK(read().empty());
  }
  chmod(folder.c_str(), 0755);
  CHECK(read() == "code");
  std::filesystem::create_symlink("sum.cubin", folder + "/link.cubin");
  CHECK(tstitch::detail::read_from_cache(folder, folder + "/link.cubin").empty());
  CHECK(tstitch::detail::read_from_cache(folder, folder + "/none.cubin").empty());
  REQUIRE(mkfifo((folder + "/pipe.cubin").c_str(), 0600) == 0);
  CHECK(tstitch::detail::read_from_cache(folder, folder + "/pipe.cubin").empty());  // and does not wait for a writer
  if (geteuid() == 0) {
    REQUIRE(chown(file.c_str(), 65534, 65534) == 0);
    CHECK(read().empty());
    REQUIRE(chown(file.c_str(), 0, 0) == 0);
    CHECK(read() == "code");
    REQUIRE(chown(folder.c_str(), 65534, 65534) == 0);
    CHECK(read().empty());
  }
  const std::vector<std::string> said = diagnostics();
  CHECK(std::count(
            said.begin(), said.end(),
            "tstitch::cached_cuda: compiles what is kept in '" + file +
                "' anew, because it is a link, or it or its folder is of another user, or others may write to it") ==
        1);
}

TEST_CASE("compiled kernels are kept, and broken ones made again") {
  if (!has_nvrtc()) return;
  const tstitch::detail::CudaSource source = tstitch::detail::SumKernel::source();
  // A new folder for each run; see image_test.cpp for why the old one is not removed.
  const std::filesystem::path cache = TSTITCH_TEST_DATA "/kernels-" + std::to_string(getpid());
  setenv("TSTITCH_KERNEL_CACHE", cache.c_str(), 1);
  const auto kept = [&] { return std::distance(std::filesystem::directory_iterator(cache), {}); };
  const std::string code = tstitch::detail::cached_cuda(source, 90);
  REQUIRE(kept() == 1);
  const std::filesystem::path file = std::filesystem::directory_iterator(cache)->path();
  const auto size = std::filesystem::file_size(file);
  CHECK(size == code.size() + 16);
  CHECK(tstitch::detail::cached_cuda(source, 90) == code);
  const auto first_made = std::filesystem::last_write_time(file);
  for (const std::uintmax_t part : {std::uintmax_t(0), std::uintmax_t(7), size / 2, size - 1}) {
    std::filesystem::resize_file(file, part);
    CHECK(tstitch::detail::cached_cuda(source, 90).size() == code.size());
    CHECK(std::filesystem::file_size(file) == size);
  }
  {
    std::fstream other(file, std::ios::in | std::ios::out | std::ios::binary);
    other.seekp(std::streamoff(size / 2)).put('!').put('?');
  }
  CHECK(tstitch::detail::cached_cuda(source, 90).substr(1, 3) == "ELF");
  CHECK(tstitch::detail::cached_cuda(source, 90).find("!?") == code.find("!?"));
  CHECK(std::filesystem::last_write_time(file) > first_made);
  std::filesystem::last_write_time(file, first_made);
  CHECK(tstitch::detail::cached_cuda(source, 90, /*again=*/true).size() == code.size());
  CHECK(std::filesystem::last_write_time(file) > first_made);
  REQUIRE(kept() == 1);  // nothing is left beside it
  // Another kind of GPU, other options and another text are other files.
  tstitch::detail::cached_cuda(source, 80);
  CHECK(kept() == 2);
  tstitch::detail::CudaSource other = source;
  other.options.push_back("-DOTHER");
  tstitch::detail::cached_cuda(other, 90);
  CHECK(kept() == 3);
  other.text += " ";
  tstitch::detail::cached_cuda(other, 90);
  CHECK(kept() == 4);
  // What cannot be read is as good as none.
  std::filesystem::remove(file);
  std::filesystem::create_directory(file);
  CHECK(tstitch::detail::cached_cuda(source, 90).size() == code.size());
  setenv("TSTITCH_KERNEL_CACHE", "", 1);
  CHECK(tstitch::detail::kernel_cache_folder().empty());
  setenv("TSTITCH_KERNEL_CACHE", "/proc/nowhere", 1);
  CHECK(tstitch::detail::cached_cuda(source, 90).size() == code.size());
  unsetenv("TSTITCH_KERNEL_CACHE");
}
