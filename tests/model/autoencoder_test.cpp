#include <torch/csrc/jit/serialization/pickle.h>
#include <tstitch/file/condition_file.hpp>
#include <tstitch/file/torchscript.hpp>
#include <tstitch/output/decode_queue.hpp>

#include <filesystem>
#include <map>

#include "../catch.hpp"

using namespace tstitch;

namespace {

/// [n, C, h, w], smooth and different everywhere.
at::Tensor pattern(std::vector<std::int64_t> const& shape) {
  const at::Tensor x = tstitch::detail::host_tensor(shape, at::kFloat);
  for (std::int64_t i = 0; i < x.numel(); ++i) x.mutable_data_ptr<float>()[i] = float(std::sin(0.37 * double(i)));
  return x;
}

/// Every pixel of the latent becomes 2 x 2 of the picture; 3 of 4 channels are shown.
at::Tensor doubled(at::Tensor const& z) {
  return z.narrow(1, 0, 3).repeat_interleave(2, 2).repeat_interleave(2, 3);
}

/// The mean over 5 x 5 pixels of the latent, zeros around it; then doubled.
at::Tensor blurred(at::Tensor const& z) {
  const at::Tensor padded = z.new_zeros({z.size(0), z.size(1), z.size(2) + 4, z.size(3) + 4});
  padded.narrow(2, 2, z.size(2)).narrow(3, 2, z.size(3)).copy_(z);
  at::Tensor sum = z.new_zeros(z.sizes());
  for (std::int64_t y = 0; y < 5; ++y) {
    for (std::int64_t x = 0; x < 5; ++x) sum.add_(padded.narrow(2, y, z.size(2)).narrow(3, x, z.size(3)), 1.0 / 25);
  }
  return doubled(sum);
}

const AutoencoderInfo info{.name = "test", .upsampling = 2, .latent_scale = 0.5, .latent_shift = 0.25};

double largest(at::Tensor const& difference) {
  return difference.abs().max().item<double>();
}

std::string file_of(torch::jit::Module const& module, std::map<std::string, std::string> const& metadata,
                    std::string const& name) {
  torch::jit::ExtraFilesMap files;
  for (auto const& [key, value] : metadata) files["tstitch/" + key] = value;
  std::filesystem::create_directories(TSTITCH_TEST_DATA);
  module.save(TSTITCH_TEST_DATA "/" + name, files);
  return TSTITCH_TEST_DATA "/" + name;
}

std::map<std::string, std::string> decoder_metadata() {
  return {{"format", "1"},          {"kind", "decoder"}, {"name", "tiny-vae"},
          {"latent_channels", "4"}, {"upsampling", "1"}, {"latent_scale", "0.5"}};
}

}  // namespace

TEST_CASE("latents are scaled and shifted back before they are decoded, and pictures the other way") {
  const Decoder decoder({doubled, info});
  const at::Tensor latents = pattern({2, 4, 3, 5});
  CHECK(largest(decoder(latents).sub(doubled(latents.div(0.5).add(0.25)))) < 1e-6);
  const Encoder encoder({[](at::Tensor const& x) {
                           const at::Tensor z = x.slice(2, 0, x.size(2), 2).slice(3, 0, x.size(3), 2);
                           return at::Tensor(z.new_zeros({z.size(0), 4, z.size(2), z.size(3)})).add_(z.narrow(1, 0, 1));
                         },
                         info});
  const at::Tensor back = encoder(decoder(latents));
  CHECK(back.sizes() == latents.sizes());
  CHECK(largest(back.select(1, 0).sub(latents.select(1, 0))) < 1e-6);
}

TEST_CASE("latents have a scale and a shift for each channel") {
  AutoencoderInfo of_channels = info;
  of_channels.latent_scale = {0.5, -2, 1, 4};
  of_channels.latent_shift = {0.25, 0, -1, 3};
  const std::vector<double> scale = of_channels.latent_scale.values(), shift = of_channels.latent_shift.values();
  const Decoder decoder({doubled, of_channels});
  const at::Tensor latents = pattern({2, 4, 3, 5});
  const at::Tensor expected = latents.clone();
  for (std::int64_t c = 0; c < 4; ++c) expected.select(1, c).div_(scale[std::size_t(c)]).add_(shift[std::size_t(c)]);
  CHECK(largest(decoder(latents).sub(doubled(expected))) < 1e-6);
  const at::Tensor half = latents.to(at::kHalf);
  CHECK(decoder(half).scalar_type() == at::kHalf);
  CHECK(largest(decoder(half).to(at::kFloat).sub(doubled(expected))) < 1e-2);
  CHECK(largest(Decoder({doubled, of_channels})(latents.to(at::kDouble)).sub(doubled(expected))) < 1e-6);

  // The encoder is the other way.
  const Encoder encoder({[](at::Tensor const& x) {
                           return x.repeat({1, 2, 1, 1}).narrow(1, 0, 4).slice(2, 0, {}, 2).slice(3, 0, {}, 2);
                         },
                         of_channels});
  const at::Tensor pictures = pattern({1, 3, 4, 6}), encoded = encoder(pictures);
  for (std::int64_t c = 0; c < 4; ++c) {
    const at::Tensor z = pictures.select(1, c % 3).slice(1, 0, {}, 2).slice(2, 0, {}, 2);
    CHECK(largest(encoded.select(1, c).sub(z.sub(shift[std::size_t(c)]).mul(scale[std::size_t(c)]))) < 1e-6);
  }

  // A number for all channels and one for each are the same.
  AutoencoderInfo four = info;
  four.latent_scale = {0.5, 0.5, 0.5, 0.5};
  four.latent_shift = {0.25, 0.25, 0.25, 0.25};
  CHECK(Decoder({doubled, four})(latents).equal(Decoder({doubled, info})(latents)));

  of_channels.latent_scale = {0.5, 2, 1};
  const auto refused = [&] { return message_of<std::invalid_argument>([&] { Decoder({doubled, of_channels}); }); };
  CHECK(refused() ==
        "tstitch::Autoencoder 'test': latent_scale must be one number or one for each of the 4 channels, got 3");
  of_channels.latent_scale = {0.5, 2, 0, 1};
  CHECK(refused() == "tstitch::Autoencoder 'test': latent_scale must be a number other than 0, got 0");
  of_channels.latent_scale = 1;
  of_channels.latent_shift = {0, 0, NAN, 0};
  CHECK(refused() == "tstitch::Autoencoder 'test': latent_shift must be a number, got nan");
}

TEST_CASE("a decoder of videos gives frames, in slices and tiles") {
  AutoencoderInfo of_videos = info;
  of_videos.temporal_upsampling = 3;
  std::vector<std::int64_t> seen;
  // Each frame but the first three times, a little darker each time; every pixel 2 x 2.
  const auto videos = [&](at::Tensor const& z) {
    seen.push_back(z.size(0));
    const at::Tensor large = z.narrow(1, 0, 3).repeat_interleave(2, 3).repeat_interleave(2, 4);
    const at::Tensor frames = large.repeat_interleave(3, 2);
    for (std::int64_t f = 0; f < frames.size(2); ++f) frames.select(2, f).sub_(0.01 * double(f));
    return at::Tensor(frames.narrow(2, 2, frames.size(2) - 2));
  };
  const Decoder decoder({videos, of_videos});
  for (std::int64_t const count : {1, 4}) {
    const at::Tensor latents = pattern({3, 4, count, 9, 20});
    const at::Tensor whole = decoder(latents);
    CHECK(whole.sizes() == at::IntArrayRef({3, 3, 3 * (count - 1) + 1, 18, 40}));
    CHECK(whole.equal(videos(latents.mul(2).add(0.25))));
    CHECK(decoder(latents, {.rows = 2}).equal(whole));
    CHECK(largest(decoder(latents, {.rows = 1, .tile = 8, .overlap = 3}).sub(whole)) < 2e-6);
  }
  CHECK(seen.size() > 2);
  const auto refused = [&](at::Tensor const& latents) {
    return message_of<std::invalid_argument>([&] { decoder(latents); });
  };
  CHECK(refused(pattern({1, 4, 2, 2})) == "tstitch::Decoder: x must be [n, 4, F, h, w], got [1, 4, 2, 2]");
  CHECK(refused(pattern({1, 4, 0, 2, 2})) == "tstitch::Decoder: x must be [n, 4, F, h, w], got [1, 4, 0, 2, 2]");
  CHECK(message_of<std::invalid_argument>([&] {
          Decoder({doubled, info})(pattern({1, 4, 2, 2, 2}));
        }) == "tstitch::Decoder: x must be [n, 4, h, w], got [1, 4, 2, 2, 2]");
  const Decoder wrong({[](at::Tensor const& z) { return z.narrow(1, 0, 3); }, of_videos});
  CHECK(message_of<std::runtime_error>([&] {
          wrong(pattern({1, 4, 2, 2, 2}));
        }) == "tstitch::Autoencoder 'test': the output must be [1, 3, 4, 4, 4], got [1, 3, 2, 2, 2]");
  CHECK(message_of<std::invalid_argument>([&] {
          Encoder({videos, of_videos});
        }) == "tstitch::Encoder: temporal_upsampling must be 0: videos are decoded only, got 3");
  of_videos.temporal_upsampling = -1;
  CHECK(message_of<std::invalid_argument>([&] {
          Decoder({videos, of_videos});
        }) == "tstitch::Autoencoder 'test': temporal_upsampling must not be negative, got -1");
}

TEST_CASE("slices change nothing") {
  std::vector<std::int64_t> seen;
  const Decoder decoder({[&](at::Tensor const& z) {
                           seen.push_back(z.size(0));
                           return doubled(z);
                         },
                         info});
  const at::Tensor latents = pattern({5, 4, 3, 5});
  CHECK(decoder(latents, {.rows = 2}).equal(decoder(latents)));
  CHECK(seen == std::vector<std::int64_t>{2, 2, 1, 5});
}

TEST_CASE("tiles cover every size, and all are of one") {
  for (std::int64_t height : {4, 7, 8, 9, 20, 31}) {
    for (std::int64_t overlap : {0, 1, 3, 7}) {
      const Decoder decoder({[&](at::Tensor const& z) {
                               CHECK(z.size(2) == std::min<std::int64_t>(8, height));
                               CHECK(z.size(3) == 8);
                               return doubled(z);
                             },
                             info});
      const at::Tensor latents = pattern({1, 4, height, 19});
      const at::Tensor whole = doubled(latents.div(0.5).add(0.25));
      CHECK(largest(decoder(latents, {.tile = 8, .overlap = overlap}).sub(whole)) < 2e-6);
    }
  }
}

TEST_CASE("a decoder that looks around leaves no seam") {
  const Decoder decoder({blurred, info});
  const at::Tensor latents = pattern({1, 4, 40, 40});
  const at::Tensor whole = decoder(latents), tiled = decoder(latents, {.tile = 16, .overlap = 6});
  // A tile sees zeros beyond its edge, in its last two rows; there it counts a quarter or less.
  CHECK(largest(tiled.sub(whole)) < 0.25 * largest(whole));
  // Without overlap that is a seam: a step between tiles that the whole picture has not got.
  const auto step = [&](at::Tensor const& picture) {
    const at::Tensor off = picture.sub(whole);
    return largest(off.narrow(3, 1, off.size(3) - 1).sub(off.narrow(3, 0, off.size(3) - 1)));
  };
  const double seam = step(decoder(latents, {.tile = 16, .overlap = 0}));
  CHECK(step(tiled) < 0.35 * seam);
  CHECK(step(decoder(latents, {.tile = 24, .overlap = 16})) < 0.12 * seam);
}

TEST_CASE("what cannot be decoded is refused") {
  const Decoder decoder({doubled, info});
  const auto refused = [&](at::Tensor const& latents, Tiling const& tiling = {}) {
    return message_of<std::invalid_argument>([&] { decoder(latents, tiling); });
  };
  CHECK(refused(pattern({1, 3, 2, 2})) == "tstitch::Decoder: x must be [n, 4, h, w], got [1, 3, 2, 2]");
  CHECK(refused(at::Tensor()) == "tstitch::Decoder: x must be [n, 4, h, w], got an undefined tensor");
  CHECK(refused(pattern({1, 4, 2, 2}).to(at::kLong)) == "tstitch::Decoder: x must be of a floating type, got Long");
  CHECK(refused(pattern({1, 4, 2, 2}), {.tile = 8, .overlap = 8}) ==
        "tstitch::Decoder: overlap must be in [0, tile), got 8");
  CHECK(refused(pattern({1, 4, 2, 2}), {.rows = -1}) == "tstitch::Decoder: rows must not be negative, got -1");
  const auto no_half = [&](auto change) {
    Autoencoder half{doubled, info};
    change(half);
    return message_of<std::invalid_argument>([&] { Decoder{half}; });
  };
  CHECK(no_half([](Autoencoder& half) { half.function = {}; }) ==
        "tstitch::Autoencoder 'test': must be given something to call, got an empty function");
  CHECK(no_half([](Autoencoder& half) { half.info.upsampling = 0; }) ==
        "tstitch::Autoencoder 'test': channels and upsampling must be at least 1, got 0");
  CHECK(no_half([](Autoencoder& half) { half.info.latent_scale = 0; }) ==
        "tstitch::Autoencoder 'test': latent_scale must be a number other than 0, got 0");
  const Encoder encoder({doubled, info});
  CHECK(message_of<std::invalid_argument>([&] {
          encoder(pattern({1, 3, 3, 4}));
        }) == "tstitch::Encoder: height and width must be multiples of 2, got [1, 3, 3, 4]");
  CHECK_THAT(message_of<std::invalid_argument>([&] {
               encoder(pattern({1, 3, 4, 3}));
             }),
             ContainsSubstring("must be multiples of 2, got [1, 3, 4, 3]"));
  CHECK(message_of<std::runtime_error>([&] {
          encoder(pattern({1, 3, 4, 4}));
        }) == "tstitch::Autoencoder 'test': the output must be [1, 4, 2, 2], got [1, 3, 8, 8]");
}

TEST_CASE("decoders come from files, which are no networks") {
  torch::jit::Module module("decoder");
  module.register_parameter("scale", tstitch::detail::host_tensor({1}, at::kFloat).fill_(2), false);
  module.define("def forward(self, z):\n  return z[:, :3] * self.scale\n");
  const std::string path = file_of(module, decoder_metadata(), "decoder.pt");
  const Decoder decoder = load_decoder(path);
  CHECK(decoder.info().name == "tiny-vae");
  CHECK(decoder.info().picture_channels == 3);
  const at::Tensor latents = pattern({1, 4, 2, 2});
  CHECK(decoder(latents).equal(latents.narrow(1, 0, 3).mul(2).mul(2)));

  const auto message = [](auto action) { return message_of<std::runtime_error>(action); };
  CHECK_THAT(message([&] { load_encoder(path); }), ContainsSubstring("tstitch/kind must be encoder, got 'decoder'"));
  CHECK_THAT(message([&] { load_torchscript(path); }),
             ContainsSubstring("tstitch/kind must be network, got 'decoder'"));
  CHECK_THAT(message([] { load_decoder(TSTITCH_MODELS "/cifar10_dit_small.pt"); }),
             ContainsSubstring("tstitch/kind must be decoder, got 'network'"));
  CHECK_THAT(message([] { load_decoder("/nowhere.pt"); }),
             ContainsSubstring("must be a file that can be read, got none"));
  torch::jit::Module of_two("decoder");
  of_two.define("def forward(self, z, t):\n  return z\n");
  const std::string path_of_two = file_of(of_two, decoder_metadata(), "decoder_of_two.pt");
  CHECK(message([&] { load_decoder(path_of_two); }) ==
        "tstitch::load_torchscript: '" + path_of_two + "': forward must take one tensor, got 2 arguments");
  auto metadata = decoder_metadata();
  metadata["latent_scale"] = "0";
  CHECK_THAT(message([&] { load_decoder(file_of(module, metadata, "bad.pt")); }),
             ContainsSubstring("tstitch/latent_scale must be above 0, got 0"));
}

TEST_CASE("files say scale and shift of each channel, and of videos how many frames there are") {
  torch::jit::Module module("decoder");
  module.register_parameter("scale", tstitch::detail::host_tensor({1}, at::kFloat).fill_(1), false);
  module.define("def forward(self, z):\n  return z[:, :3] * self.scale\n");
  auto metadata = decoder_metadata();
  metadata["latent_scale"] = "0.5\n0.25\n1\n2";
  metadata["latent_shift"] = "0\n-1\n0.1\n3";
  metadata["temporal_upsampling"] = "1";
  const auto load = [&] { return load_decoder(file_of(module, metadata, "channels.pt")); };
  const Decoder decoder = load();
  CHECK(decoder.info().latent_scale == PerChannel({0.5, 0.25, 1, 2}));
  CHECK(decoder.info().latent_shift == PerChannel({0, -1, 0.1, 3}));
  CHECK(decoder.info().temporal_upsampling == 1);
  const at::Tensor latents = pattern({2, 4, 5, 2, 2}), video = decoder(latents);
  CHECK(largest(video.select(1, 1).sub(latents.select(1, 1).mul(4).sub(1))) < 1e-6);
  for (auto const& [key, value, words] :
       {std::tuple{"latent_scale", "1\n2\n3",
                   "must be one number, or one a line for each of the 4 channels, got 3 lines"},
        std::tuple{"latent_scale", "1\n2\n3\n0", "must be above 0, got 0"},
        std::tuple{"latent_scale", "1\n2\nnan\n1", "must be in [0, 1000000], got nan"},
        std::tuple{"latent_scale", "1 2 3 4", "must be a number, got '1 2 3 4'"},
        std::tuple{"latent_scale", "", "got 0 lines"}, std::tuple{"latent_shift", "1\n2\n3\n4\n5", "got 5 lines"},
        std::tuple{"latent_shift", "1\n2\n3\n2e6", "must be in [-1000000, 1000000], got 2000000"},
        std::tuple{"temporal_upsampling", "0", "must be in [1, 4096], got 0"},
        std::tuple{"temporal_upsampling", "four", "must be a number, got 'four'"}}) {
    const auto before = std::exchange(metadata[key], value);
    CHECK_THAT(message_of<std::runtime_error>(load),
               ContainsSubstring("tstitch/" + std::string(key)) && ContainsSubstring(words));
    metadata[key] = before;
  }
}

TEST_CASE("a decoder of what networks make takes it as it is") {
  torch::jit::Module module("decoder");
  module.register_parameter("scale", tstitch::detail::host_tensor({1}, at::kFloat).fill_(2), false);
  module.define("def forward(self, z):\n  return z[:, :3] * self.scale\n");
  auto metadata = decoder_metadata();
  metadata["latents"] = "scaled";
  const auto message = [&](std::string const& name) {
    return message_of<std::runtime_error>([&] { load_decoder(file_of(module, metadata, name)); });
  };
  CHECK_THAT(message("scaled.pt"), ContainsSubstring("tstitch/latents must be unscaled where latent_scale is not 1 or "
                                                     "latent_shift not 0, got 'scaled'"));
  metadata["latents"] = "raw";
  CHECK_THAT(message("scaled.pt"), ContainsSubstring("tstitch/latents must be one of unscaled, scaled, got 'raw'"));
  metadata["latents"] = "scaled";
  metadata.erase("latent_scale");
  const Decoder decoder = load_decoder(file_of(module, metadata, "scaled.pt"));
  CHECK(decoder.info().scaled_latents);
  CHECK(decoder.info().latent_scale == 1);
  CHECK(decoder.info().latent_shift == 0);
  const at::Tensor latents = pattern({1, 4, 2, 2});
  CHECK(decoder(latents).equal(latents.narrow(1, 0, 3).mul(2)));
  metadata.erase("latents");
  CHECK_THAT(message("scaled.pt"), ContainsSubstring("tstitch/latent_scale is required, got nothing"));
  for (char const* const value : {"nan", "inf", "1e300"}) {
    metadata["latent_scale"] = value;
    CHECK_THAT(message("scaled.pt"), ContainsSubstring("tstitch/latent_scale must be "));
  }
  CHECK(message_of<std::invalid_argument>([] {
          Decoder({doubled, {.name = "odd", .latent_scale = 2, .scaled_latents = true}});
        }) == "tstitch::Autoencoder 'odd': scaled latents must have latent_scale 1 and latent_shift 0, got 2 and 0");
}

TEST_CASE("what an autoencoder returns is of a floating type") {
  for (const at::ScalarType type : {at::kBool, at::kLong, at::kComplexFloat}) {
    const Decoder decoder({[type](at::Tensor const& z) { return doubled(z).to(type); }, info});
    CHECK(message_of<std::runtime_error>([&] {
            decoder(pattern({1, 4, 2, 2}));
          }) == std::string("tstitch::Autoencoder '") + info.name + "': the output must be of a floating type, got " +
                    at::toString(type));
  }
}

TEST_CASE("conditions come from files of torch.save, with their null counterparts") {
  const auto file = [](c10::IValue const& value, std::string const& name) {
    std::filesystem::create_directories(TSTITCH_TEST_DATA);
    const std::vector<char> bytes = torch::jit::pickle_save(value);
    std::ofstream(TSTITCH_TEST_DATA "/" + name, std::ios::binary).write(bytes.data(), std::streamsize(bytes.size()));
    return TSTITCH_TEST_DATA "/" + name;
  };
  c10::Dict<std::string, at::Tensor> tensors;
  tensors.insert("text_embedding", pattern({2, 3, 4}));
  tensors.insert("text_embedding.null", pattern({1, 3, 4}));
  tensors.insert("size_ids", pattern({1, 6}));
  const auto conditions = load_conditions(file(tensors, "prompt.pt"));
  REQUIRE(conditions.size() == 2);
  CHECK(conditions[0].name == "text_embedding");
  CHECK(conditions[0].value.equal(pattern({2, 3, 4})));
  CHECK(conditions[0].null.equal(pattern({1, 3, 4})));
  CHECK(conditions[1].name == "size_ids");
  CHECK_FALSE(conditions[1].null.defined());

  const auto message = [](std::string const& path) {
    return message_of<std::runtime_error>([&] { load_conditions(path); });
  };
  const std::string rule = "': must be a file of torch.save with a dict of tensors, got ";
  CHECK_THAT(message("/nowhere"), ContainsSubstring("must be a file that can be read, got none"));
  CHECK_THAT(message(file(pattern({2}), "tensor.pt")), ContainsSubstring("tensor.pt" + rule + "Tensor"));
  c10::Dict<std::string, at::Tensor> lone;
  lone.insert("text_embedding.null", pattern({1, 3, 4}));
  CHECK_THAT(message(file(lone, "lone.pt")),
             ContainsSubstring(rule + "'text_embedding.null' without 'text_embedding'"));
  std::ofstream(TSTITCH_TEST_DATA "/text.pt") << "this is a text";
  CHECK_THAT(message(TSTITCH_TEST_DATA "/text.pt"), ContainsSubstring("text.pt" + rule));
}

TEST_CASE("the queue gives batches in order, as pictures") {
  DecodeQueue queue(Decoder({doubled, info}), {.rows = 1});
  const at::Tensor first = pattern({2, 4, 3, 5}), second = first.mul(0.5);
  queue.push(first);
  queue.push(second);
  CHECK(queue.size() == 2);
  const Decoder decoder({doubled, info});
  for (at::Tensor const& latents : {first, second}) {
    const std::vector<Picture> pictures = queue.pop(), expected = to_pictures(decoder(latents));
    REQUIRE(pictures.size() == 2);
    CHECK(pictures[1].width == 10);
    CHECK(pictures[1].height == 6);
    CHECK(pictures[1].pixels == expected[1].pixels);
  }
  CHECK(queue.size() == 0);
  CHECK(message_of<std::invalid_argument>([&] { queue.pop(); }) ==
        "tstitch::DecodeQueue: a batch must have been pushed, got 0");
  at::Tensor broken = first.clone();
  broken[1].fill_(NAN);
  queue.push(broken);
  queue.push(second);
  CHECK(message_of<std::runtime_error>([&] { queue.pop(); }) ==
        "tstitch::DecodeQueue: values must be finite numbers, got nan or infinity in image 1 of 2");
  CHECK(queue.pop().size() == 2);
}
