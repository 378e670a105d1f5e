// One door: what load_networks finds is what the loader of that kind of file finds, and it says what it cannot do.

#include <tstitch/load.hpp>
#include <tstitch/method/ddim.hpp>

#include <atomic>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "../catch.hpp"

using namespace tstitch;

namespace {

const std::vector<std::string> pair{TSTITCH_MODELS "/cifar10_dit_small.pt", TSTITCH_MODELS "/cifar10_dit_large.pt"};

at::Tensor draw(std::vector<Network> const& networks) {
  const DDIM sampler{networks[0].noise_schedule(), Stitch{.ratio = 0.5}, {.steps = 4}};
  return sampler.sample(networks, {.labels = {1, 2}, .guidance = {.scale = 2}}).images;
}

}  // namespace

TEST_CASE("the door runs a file as the loader that its backend names") {
  const LoadOptions cpu{.device = at::kCPU};
  const auto by = [&](char const* backend) { return draw(load_networks(pair, with_backend(cpu, backend))); };
  const at::Tensor native = draw({load_dit(pair[0]), load_dit(pair[1])});
  const at::Tensor script = draw(load_torchscript_networks(pair));
  CHECK(draw(load_networks(pair, cpu)).equal(native));  // DiTs by the engine
  CHECK(by("auto").equal(native));
  CHECK(by("native").equal(native));
  CHECK(by("torchscript").equal(script));
  CHECK_FALSE(script.equal(native));
  const std::vector<Network> mixed =
      load_networks(pair, {with_backend(cpu, "torchscript"), with_backend(cpu, "native")});
  CHECK(draw(mixed).equal(draw({load_torchscript(pair[0]), load_dit(pair[1])})));
  CHECK(draw({load_network(pair[0], cpu), load_network(pair[1], cpu)}).equal(native));
  CHECK(load_networks(std::vector<std::string>{}, cpu).empty());
  LoadOptions half = cpu;
  half.dtype = at::kBFloat16;
  CHECK(draw(load_networks(pair, half))
            .equal(draw({load_dit(pair[0], {.dtype = at::kBFloat16}), load_dit(pair[1], {.dtype = at::kBFloat16})})));
}

TEST_CASE("the door looks for the scales of 8 bits where the file states none") {
  REQUIRE(read_network_info(pair[0]).architecture.e4m3_inputs.empty());
  const Network found = load_network(pair[0], with_backend({.device = at::kCPU}, "native-e4m3"));
  const Network expected = load_dit(pair[0], {}, {.e4m3_inputs = largest_inputs(pair[0])});
  CHECK(draw({found, found}).equal(draw({expected, expected})));
  CHECK_FALSE(draw({found, found}).equal(draw({load_dit(pair[0]), load_dit(pair[0])})));
}

TEST_CASE("networks of other latents and schedules go through the door where they are to be bridged") {
  const auto info = [](std::string const& path) {
    const bool small = path == "small";
    return read_network_info({{"format", "1"},
                              {"name", path},
                              {"input_shape", "1 2 2"},
                              {"prediction", small ? "epsilon" : "flow"},
                              {"timestep_type", "float32"},
                              {"noise_schedule", small ? "cosine" : "flow"},
                              {"num_train_timesteps", "100"},
                              {"latent_scale", small ? "0.5" : "2"}},
                             path);
  };
  const FileReader reader{.reads = [](std::string const& path) { return path == "small" || path == "large"; },
                          .info = info,
                          .load =
                              [&](std::string const& path, LoadOptions const&) {
                                return Network([](at::Tensor const& x, at::Tensor const&) { return x.mul(0.3); },
                                               info(path));
                              }};
  LoadOptions options{.device = at::kCPU, .readers = {reader}};
  const std::vector<std::string> both{"small", "large"};
  const std::string refusal = message_of<std::runtime_error>([&] { load_networks(both, options); });
  CHECK(refusal.find("noise schedule: network 0 ('small') has cosine(100), network 1 ('large') has flow(100)") !=
        std::string::npos);
  CHECK(refusal.find("latent scale and shift") != std::string::npos);
  options.bridge = true;
  const std::vector<Network> loaded = load_networks(both, options);
  CHECK(loaded[0].info().prediction_type == PredictionType::sample);
  const DDIM sampler{
      NoiseSchedule::flow(100), Stitch{.ratio = 0.5}, {.steps = 4, .spacing = Spacing::list({70, 50, 30, 20})}};
  const auto plain = [&](std::string const& name) { return reader.load(name, options); };
  const auto drawn = [&](std::vector<Network> const& networks) {
    return sampler.sample(networks, {.count = 2}).images;
  };
  CHECK(drawn(loaded).equal(drawn({bridged(plain("small"), info("large")), plain("large")})));
  options.residency = Residency::one_at_a_time;
  CHECK(drawn(load_networks(both, options)).equal(drawn(loaded)));
  CHECK(load_networks({pair[0], pair[1]}, {.device = at::kCPU, .bridge = true})[0].info().prediction_type ==
        PredictionType::epsilon);  // which fit as they are
}

TEST_CASE("networks are in memory one at a time where that is asked for, and answer as they do together") {
  const std::filesystem::path folder = std::filesystem::path(TSTITCH_TEST_DATA) / "one_at_a_time";
  std::filesystem::create_directories(folder);
  const std::string small = (folder / "small.pt").string(), large = (folder / "large.pt").string();
  for (auto const& [from, to] : {std::pair{pair[0], small}, {pair[1], large}}) {
    std::filesystem::copy_file(from, to, std::filesystem::copy_options::overwrite_existing);
  }
  const LoadOptions cpu{.device = at::kCPU};
  for (char const* const backend : {"native", "torchscript"}) {
    LoadOptions one = with_backend(cpu, backend);
    one.residency = Residency::one_at_a_time;
    std::atomic<int> done = 0;
    const std::vector<Network> networks = load_networks({small, large}, {one}, {[&] { ++done; }, [&] { ++done; }});
    CHECK(done == 2);
    CHECK(draw(networks).equal(draw(load_networks(pair, with_backend(cpu, backend)))));
    if (std::string(backend) == "native") continue;
    std::filesystem::remove(small);
    const std::string said = message_of<std::runtime_error>([&] { draw(networks); });
    CHECK_THAT(said,
               ContainsSubstring("one_at_a_time: network 0 ('cifar10-dit-small') must be there to be loaded again"));
    CHECK_THAT(said, ContainsSubstring("small.pt"));
  }
  LoadOptions one = cpu;
  one.residency = Residency::one_at_a_time;
  CHECK(message_of<std::invalid_argument>([&] { load_network(pair[0], one); }) ==
        "tstitch::load_network: residency is of several networks, which load_networks loads, got one_at_a_time");
  CHECK(message_of<std::invalid_argument>([&] {
          load_networks(pair, {one, cpu});
        }) == "tstitch::load_networks: residency must be the same for all, got all and one_at_a_time");
}

TEST_CASE("a kind of file of one's own goes through the door") {
  // Its name says all; a file there is none.
  std::atomic<int> loaded = 0;  // in a thread for each
  const auto gain = [](std::string const& path) { return std::stod(path.substr(path.find(':') + 1)); };
  const FileReader reader{.reads = [](std::string const& path) { return path.starts_with("gain:"); },
                          .info =
                              [](std::string const& path) {
                                return read_network_info({{"format", "1"},
                                                          {"name", path},
                                                          {"input_channels", "1"},
                                                          {"input_height", path == "gain:3" ? "3" : "2"},
                                                          {"input_width", "2"},
                                                          {"prediction", "epsilon"},
                                                          {"timestep_type", "float32"},
                                                          {"noise_schedule", "cosine"},
                                                          {"num_train_timesteps", "100"},
                                                          {"somebody's own", "is left alone"}},
                                                         path);
                              },
                          .load =
                              [&](std::string const& path, LoadOptions const& options) {
                                ++loaded;
                                return Network(
                                    [gain = gain(path)](at::Tensor const& x, at::Tensor const&) { return x.mul(gain); },
                                    options.readers.at(0).info(path), options.device);
                              }};
  const LoadOptions options{.device = at::kCPU, .readers = {reader}};
  const std::vector<Network> networks = load_networks({"gain:0.5", "gain:1"}, options);
  CHECK(networks[1].info().name == "gain:1");
  const DDIM sampler{networks[0].noise_schedule(), Stitch{.ratio = 0.5}, {.steps = 4}};
  const Network half([](at::Tensor const& x, at::Tensor const&) { return x.mul(0.5); }, networks[0].info());
  const Network whole([](at::Tensor const& x, at::Tensor const&) { return x.mul(1.0); }, networks[1].info());
  const Request request{.count = 2, .seed = 1};
  CHECK(sampler.sample(networks, request).images.equal(sampler.sample({half, whole}, request).images));
  // Beside the library's own, and not where a backend is named.
  CHECK(load_network(pair[0], options).info().name == "cifar10-dit-small");
  CHECK_THAT(message_of<std::runtime_error>([&] { load_network("gain:1", with_backend(options, "torchscript")); }),
             ContainsSubstring("'gain:1': must be a file that can be read, got none"));
  // What does not fit together is not loaded.
  CHECK(loaded == 2);
  CHECK_THAT(message_of<std::runtime_error>([&] {
               load_networks({"gain:1", "gain:3"}, options);
             }),
             ContainsSubstring("input shape: network 0 ('gain:1') has [1, 2, 2], network 1 ('gain:3') has [1, 3, 2]"));
  CHECK(loaded == 2);
  CHECK(message_of<std::invalid_argument>([] { load_network("gain:1", {.device = at::kCPU, .readers = {{}}}); }) ==
        "tstitch::load_network: a reader must have reads, info and load, got one without");
}

TEST_CASE("keys of any kind of file are checked as those of the library's own") {
  std::map<std::string, std::string> texts{{"format", "1"}, {"name", "mine"}};
  const auto said = [&] { return message_of<std::runtime_error>([&] { read_network_info(texts, "a.file"); }); };
  const std::string place = "tstitch::read_network_info: 'a.file': tstitch/";
  CHECK(said() == place + "prediction is required, got nothing");
  texts["prediction"] = "noise";
  CHECK(said() == place + "prediction must be one of epsilon, sample, v_prediction, flow, got 'noise'");
  texts["name"] = std::string(201, 'n');
  CHECK(said() == place + "name must have at most 200 bytes, got 201");
}

TEST_CASE("the door refuses what it cannot run, in a sentence") {
  const auto refused = [](auto action) { return message_of<std::invalid_argument>([&] { (void)action(); }); };
  const auto failed = [](auto action) { return message_of<std::runtime_error>([&] { (void)action(); }); };
  const LoadOptions cpu{.device = at::kCPU};
  for (char const* const name :
       {"", "Native", "native+", "+graph", "auto+graph", "native+graph+graph", "native +graph"}) {
    INFO("'" << name << "'");
    CHECK(refused([&] { return with_backend(cpu, name); }) ==
          "tstitch::with_backend: the backend must be one of auto, torchscript, torchscript+graph, native, "
          "native+graph, native-e4m3, native-e4m3+graph, aot-inductor, aot-inductor+graph, got '" +
              std::string(name) + "'");
  }
  for (std::string const& name : backend_names()) CHECK_NOTHROW(with_backend(cpu, name));
  CHECK(with_backend(cpu, "native").graphs == Graphs::never);
  CHECK(with_backend(cpu, "native+graph").graphs == Graphs::always);
  CHECK(with_backend(cpu, "auto").graphs == Graphs::automatic);
  for (std::string const& name : dtype_names()) CHECK(dtype_named(name).has_value() == (name != "auto"));
  CHECK(refused([] { return dtype_named("float64"); }) ==
        "tstitch::dtype_named: the number format must be one of auto, float32, float16, bfloat16, got 'float64'");
  CHECK(refused([&] { return load_networks(pair, std::vector<LoadOptions>(3, cpu)); }) ==
        "tstitch::load_networks: options must be one, or one for each of the 2 files, got 3");
  CHECK_THAT(failed([&] { return load_network("no such file.pt", cpu); }), ContainsSubstring("'no such file.pt'"));
  CHECK_THAT(failed([&] {
               return load_networks({pair[0], "no such file.pt"}, cpu);
             }),
             ContainsSubstring("'no such file.pt'"));
  CHECK_THAT(failed([&] { return load_network(pair[0], with_backend(cpu, "aot-inductor")); }),
             ContainsSubstring("AOTInductor package"));
  CHECK(refused([&] { return load_network(pair[0], {.device = at::Device("meta")}); }) ==
        "tstitch::load_torchscript: device must be cpu or cuda, got meta");
}

TEST_CASE("graphs are for GPUs: on a CPU a network stays what it is") {
  const LoadOptions graphs = with_backend({.device = at::kCPU}, "native+graph");
#ifdef TSTITCH_WITH_CUDA
  CHECK(draw(load_networks(pair, graphs)).equal(draw({load_dit(pair[0]), load_dit(pair[1])})));
#else
  CHECK(message_of<std::runtime_error>([&] { load_networks(pair, graphs); }) ==
        "tstitch::load_network: graphs must have a CUDA build of torch and a program built with TSTITCH_WITH_CUDA "
        "(CMake and "
        "pkg-config set it), got one without");
#endif
}
