// What is said of packages before anything of them runs. tests/export/aot_inductor_test.py compiles some.
#include <tstitch/file/aot_inductor.hpp>
#include <tstitch/file/torchscript.hpp>
#include <tstitch/tstitch.hpp>

#include <filesystem>
#include <fstream>

#include "../catch.hpp"
#include "../network_metadata.hpp"

using namespace tstitch;

namespace {

Metadata valid() {
  return network_metadata({{"dtype", "float16"}, {"device", "cpu"}, {"batch", "1-512"}});
}

Metadata with(Metadata changes) {
  changes.merge(valid());
  return changes;
}

/// A package of this metadata without a network.
std::string package(Metadata const& metadata, std::string const& format = "pt2") {
  std::filesystem::create_directories(TSTITCH_TEST_DATA);
  const std::string path = TSTITCH_TEST_DATA "/package.pt2";
  caffe2::serialize::PyTorchStreamWriter writer(path);
  const auto write = [&](std::string const& name, std::string const& text) {
    writer.writeRecord(name, text.data(), text.size());
  };
  for (auto const& [key, value] : metadata) write("extra/tstitch/" + key, value);
  if (!format.empty()) write("archive_format", format);
  writer.writeEndOfFile();
  return path;
}

std::string refusal(std::string const& path, AOTInductorOptions const& options = {}) {
  return message_of<std::runtime_error>([&] { load_aot_inductor(path, options); });
}

const std::string place = "tstitch::load_aot_inductor: '" TSTITCH_TEST_DATA "/package.pt2': ";

}  // namespace

TEST_CASE("a package says what it is, and is told from other files by its content") {
  const std::string path = package(valid());
  CHECK(read_network_info(path).name == "tiny");
  CHECK(is_aot_inductor(path));
  CHECK_FALSE(is_aot_inductor(package(valid(), "")));
  CHECK_FALSE(is_aot_inductor(TSTITCH_MODELS "/cifar10_dit_small.pt"));
  CHECK_FALSE(is_aot_inductor("/nowhere/model.pt2"));
  CHECK_FALSE(is_aot_inductor(TSTITCH_TEST_DATA));
  CHECK(message_of<std::runtime_error>([&] { load_torchscript(package(valid())); }) ==
        "tstitch::load_torchscript: '" TSTITCH_TEST_DATA
        "/package.pt2': must be a TorchScript file, got a package of torch.export (see aot_inductor.hpp)");
}

TEST_CASE("a package says what it was compiled for") {
  const CompiledFor cpu = read_compiled_for(package(with({{"cpu_capability", "AVX2"}, {"torch", "2.11.0"}})));
  CHECK(cpu.dtype == at::kHalf);
  CHECK(cpu.device == "cpu");
  CHECK(cpu.compute_capability.empty());
  CHECK(cpu.cpu_capability == "AVX2");
  CHECK(cpu.torch == "2.11.0");
  CHECK(cpu.batch == "1-512");
  const CompiledFor gpu =
      read_compiled_for(package(with({{"device", "cuda"}, {"compute_capability", "9.0"}, {"batch", "1 2 8"}})));
  CHECK(gpu.device == "cuda");
  CHECK(gpu.compute_capability == "9.0");
  CHECK(gpu.batch == "1 2 8");
  CHECK_THAT(message_of<std::runtime_error>([] { read_compiled_for(TSTITCH_MODELS "/cifar10_dit_small.pt"); }),
             ContainsSubstring("cifar10_dit_small.pt': must be an AOTInductor package, got another archive"));
  CHECK_THAT(message_of<std::runtime_error>([] { read_compiled_for("/nowhere/model.pt2"); }),
             ContainsSubstring("'/nowhere/model.pt2': must be a file that can be read, got none"));
}

TEST_CASE("files that are no packages are refused in one line") {
  CHECK(refusal("/nowhere/model.pt2") ==
        "tstitch::load_aot_inductor: '/nowhere/model.pt2': must be a file that can be read, got none");
  CHECK(refusal(TSTITCH_MODELS "/cifar10_dit_small.pt") ==
        "tstitch::load_aot_inductor: '" TSTITCH_MODELS
        "/cifar10_dit_small.pt': must be an AOTInductor package, got another archive");
  std::ifstream file(package(valid()), std::ios::binary);
  const std::string whole{std::istreambuf_iterator<char>(file), {}};
  for (std::size_t share = 0; share < 10; ++share) {
    const std::string path = TSTITCH_TEST_DATA "/truncated.pt2";
    std::ofstream(path, std::ios::binary) << whole.substr(0, whole.size() * share / 10);
    CHECK_THAT(refusal(path), ContainsSubstring("truncated.pt2': must be an AOTInductor package, got "));
    CHECK(refusal(path).find('\n') == std::string::npos);
  }
}

TEST_CASE("every changed byte of a package's records is noticed before its code runs") {
  std::ifstream file(package(with({{"license", std::string(1000, 'x')}})), std::ios::binary);
  const std::string whole{std::istreambuf_iterator<char>(file), {}};
  const std::size_t begin = whole.find(std::string(1000, 'x'));
  REQUIRE(begin != std::string::npos);
  const std::string path = TSTITCH_TEST_DATA "/damaged.pt2";
  for (std::size_t offset = 0; offset < 1000; offset += 99) {
    std::string damaged = whole;
    damaged[begin + offset] = 'y';
    std::ofstream(path, std::ios::binary) << damaged;
    CHECK_THAT(refusal(path), ContainsSubstring("damaged.pt2': must be an AOTInductor package, got 'entry "
                                                "'extra/tstitch/license' of the archive is damaged: its checksum"));
  }
  // What nothing of the library reads, but the loader of torch.
  std::string unread = whole;
  const std::size_t format = unread.rfind("pt2", unread.find("PK\1\2"));
  unread[format] = 'q';
  std::ofstream(path, std::ios::binary) << unread;
  CHECK_THAT(refusal(path), ContainsSubstring("entry 'archive_format' of the archive is damaged: its checksum"));
}

TEST_CASE("packages without metadata, or with metadata that makes no sense, are refused with key, rule and value") {
  CHECK_THAT(refusal(package({})), ContainsSubstring("must carry tstitch metadata (see metadata.hpp), got a file "));
  const auto message = [](std::string const& key, std::string const& value) {
    const std::string text = refusal(package(with({{key, value}}))), beginning = "tstitch::read_network_info: '";
    CHECK(text.starts_with(beginning));
    return text.substr(std::min(text.size(), text.find("tstitch/")));
  };
  CHECK(message("format", "2") == "tstitch/format must be 1, the format that this version reads, got '2'");
  CHECK(message("dtype", "float64") == "tstitch/dtype must be one of float32, float16, bfloat16, got 'float64'");
  CHECK(message("device", "tpu") == "tstitch/device must be one of cpu, cuda, got 'tpu'");
  CHECK(message("device", "cuda") == "tstitch/compute_capability is required, got nothing");
  CHECK(message("conditions", "text float * 4") ==
        "tstitch/conditions must have all sizes of a compiled network, got *");
  Metadata open = valid();
  for (char const* key : {"input_channels", "input_height", "input_width"}) open.erase(key);
  open["input_shape"] = "3 * 8";
  CHECK_THAT(refusal(package(open)),
             ContainsSubstring("tstitch/input_shape must have all sizes of a compiled network, got *"));
  for (char const* batch : {"1-0", "1-1000001", "2 2", "2 1", "0 1", "1 1000001"}) {
    CHECK(message("batch", batch) ==
          "tstitch/batch must be 1-N, or rising numbers, all in [1, 1000000], got '" + std::string(batch) + "'");
  }
  CHECK(message("batch", "") == "tstitch/batch must be a number, got ''");
  CHECK(message("batch", "1  2") == "tstitch/batch must be a number, got ''");
  CHECK(message("batch", "2-4") == "tstitch/batch must be a number, got '2-4'");
}

TEST_CASE("a package for something else is refused with what it is for") {
  const auto message = [](Metadata const& changes, AOTInductorOptions const& options = {}) {
    const std::string text = refusal(package(with(changes)), options);
    CHECK(text.starts_with(place));
    return text.substr(place.size());
  };
  CHECK(message({{"device", "cuda"}, {"compute_capability", "9.0"}}) == "must be compiled for cpu, got one for cuda");
  CHECK(message({}, {.dtype = at::kBFloat16}) == "must be compiled for bfloat16, got one for float16");
  CHECK(message({{"cpu_capability", "NEON"}}) ==
        "must be compiled for processors with " + at::get_cpu_capability() + ", got one for NEON");
  CHECK(message({}, {.warm_up_rows = {512, 513}}) ==
        "must be compiled for batches of 513 rows, got one for at most 512");
  CHECK(message({{"batch", "1 2 8"}}, {.warm_up_rows = {9}}) ==
        "must be compiled for batches of 9 rows, got one for at most 8");
  // What fails for another reason names the version that may be it.
  CHECK_THAT(message({{"torch", "2.10.1+cu130"}}),
             ContainsSubstring("must be compiled by torch " TORCH_VERSION
                               ", which this program has, got one by torch 2.10.1 that fails with 'Failed to find "));
  CHECK_THAT(message({{"torch", TORCH_VERSION "+cpu"}}),
             ContainsSubstring("must hold a network that runs as its metadata says, got 'Failed to find "));
  CHECK(message_of<std::invalid_argument>([] { load_aot_inductor(package(valid()), {.dtype = at::kLong}); }) ==
        "tstitch::load_aot_inductor: dtype must be float32, float16 or bfloat16, got Long");
  const int count = at::detail::getCUDAHooks().hasCUDA() ? at::detail::getCUDAHooks().deviceCount() : 0;
  CHECK(refusal(package(with({{"device", "cuda"}, {"compute_capability", "9.0"}})),
                {.device = at::Device(at::kCUDA, at::DeviceIndex(count))}) ==
        "tstitch::load_aot_inductor: device cuda:" + std::to_string(count) + " must exist, got a machine with " +
            std::to_string(count) + " CUDA devices");
}

TEST_CASE("a package for another kind of GPU is refused where the driver tells which this is") {
  const std::string found = tstitch::detail::capability_text({at::kCUDA, 0});
  CAPTURE(found);
  CHECK((found.empty() || found.find('.') != std::string::npos));
  CompiledFor compiled{.device = "cuda", .compute_capability = "1.0"};
  const auto message = [&] {
    return message_of<std::runtime_error>([&] {
      tstitch::detail::require_compiled_for(compiled, {.device = at::Device(at::kCUDA, 0)}, "'file'");
      throw std::runtime_error("none");
    });
  };
  CHECK(message() == (found.empty() ? "none"
                                    : "tstitch::load_aot_inductor: 'file': must be compiled for GPUs of compute "
                                      "capability " +
                                          found + ", got one for 1.0"));
  compiled.compute_capability = found;
  CHECK(message() == "none");
}

TEST_CASE("processors run what was compiled for lesser ones of their kind") {
  CHECK(tstitch::detail::runs_code_of("AVX512", "AVX2"));
  CHECK(tstitch::detail::runs_code_of("AVX2", "AVX2"));
  CHECK(tstitch::detail::runs_code_of("SVE256", "SVE256"));
  CHECK_FALSE(tstitch::detail::runs_code_of("AVX2", "AVX512"));
  CHECK_FALSE(tstitch::detail::runs_code_of("SVE256", "AVX2"));
  CHECK_FALSE(tstitch::detail::runs_code_of("AVX512", "SVE256"));
}

TEST_CASE("a batch goes to the smallest model that holds it") {
  const tstitch::detail::BatchSizes any{.most = 512}, list{.sizes = {1, 2, 8}};
  CHECK(any.largest() == 512);
  CHECK(any.padded(7) == 7);
  CHECK(any.model_names() == std::vector<std::string>{"model"});
  CHECK(list.largest() == 8);
  CHECK(list.smallest() == 1);
  CHECK(list.padded(1) == 1);
  CHECK(list.padded(2) == 2);
  CHECK(list.padded(3) == 8);
  CHECK(list.model(3) == 2);
  CHECK(list.padded(8) == 8);
  CHECK(list.model_names() == std::vector<std::string>{"1_rows", "2_rows", "8_rows"});
}
