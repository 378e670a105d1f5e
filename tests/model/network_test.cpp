#include <tstitch/model/network.hpp>

#include <functional>

#include "../catch.hpp"

using namespace tstitch;

TEST_CASE("numbers of a mismatch are those of the networks") {
  const auto same = [](at::Tensor const& x, at::Tensor const&) { return x; };
  const auto found = [&](std::int64_t a, std::int64_t b) {
    return mismatches(
        {Network(same, {.num_classes = 10, .null_class = a}), Network(same, {.num_classes = 10, .null_class = b})});
  };
  CHECK(found(9, 10) == std::vector<std::string>{"null class: network 0 has 9, network 1 has 10"});
  CHECK(found(0, 10) == std::vector<std::string>{"null class: network 0 has 0, network 1 has 10"});
  CHECK(found(0, 0).empty());
  CHECK(mismatches({Network(same, {.channels = 3}), Network(same, {})}).empty());
}

TEST_CASE("networks that do not fit together are refused with every mismatch named") {
  const auto network = [](NetworkInfo info) {
    return Network([](at::Tensor const& x, at::Tensor const&) { return x; }, std::move(info));
  };
  const Network a = network({.name = "a",
                             .channels = 3,
                             .height = 32,
                             .width = 32,
                             .num_classes = 10,
                             .noise_schedule = NoiseSchedule::linear()});
  const Network b = network({.name = "b",
                             .channels = 4,
                             .height = 32,
                             .width = 32,
                             .num_classes = 100,
                             .noise_schedule = NoiseSchedule::cosine()});
  CHECK(message_of<std::runtime_error>([&] {
          require_compatible({a, b});
        }) ==
        "tstitch::require_compatible: these networks cannot share a trajectory\n"
        "  input channels: network 0 ('a') has 3, network 1 ('b') has 4\n"
        "  number of classes: network 0 ('a') has 10, network 1 ('b') has 100\n"
        "  noise schedule: network 0 ('a') has linear(1000, 0.0001, 0.02), network 1 ('b') has cosine(1000)");
  const auto found = [&](NetworkInfo left, NetworkInfo right) {
    return mismatches({network(std::move(left)), network(std::move(right))});
  };
  CHECK(found({.num_classes = 2, .class_names = {"cat", "dog"}}, {.num_classes = 2, .class_names = {"cat", "hog"}}) ==
        std::vector<std::string>{"name of class 1: network 0 has 'dog', network 1 has 'hog'"});
  CHECK(found({.decoding = Decoding::pixels}, {}) ==
        std::vector<std::string>{"decoding: network 0 has pixels, network 1 has no decoding"});
  CHECK(found({.latent_scale = 0.5, .latent_shift = 1}, {.latent_scale = 0.5, .latent_shift = 2}) ==
        std::vector<std::string>{"latent scale and shift: network 0 has 0.5 and 1, network 1 has 0.5 and 2"});
  CHECK(found({.conditions = {{.name = "text", .shape = {3}}}}, {.conditions = {{.name = "size", .shape = {2}}}})
            .empty());
  // A table that a file has rounded.
  CHECK(found({.noise_schedule = NoiseSchedule::linear()},
              {.noise_schedule = NoiseSchedule::linear().rounded_to_float32()})
            .empty());
  CHECK_NOTHROW(require_compatible(
      {a, network({.prediction_type = PredictionType::v_prediction, .learned_variance = true, .num_classes = 10})}));
}

TEST_CASE("a network that states a shape has its channels, height and width") {
  const auto network = [](NetworkInfo info) {
    return Network([](at::Tensor const& x, at::Tensor const&) { return x; }, std::move(info));
  };
  const auto sizes = [&](NetworkInfo info) {
    const NetworkInfo found = network(std::move(info)).info();
    return std::vector<std::int64_t>{found.channels, found.height, found.width};
  };
  CHECK(sizes({.shape = {4, 0, 16, 24}}) == std::vector<std::int64_t>{4, 16, 24});
  CHECK(sizes({.channels = 4, .height = 16, .shape = {4, 16, 24}}) == std::vector<std::int64_t>{4, 16, 24});
  CHECK(sizes({.shape = {1, 16000}}) == std::vector<std::int64_t>{1, 0, 0});
  CHECK(sizes({.shape = {24}}) == std::vector<std::int64_t>{24, 0, 0});
  CHECK(sizes({.channels = 3}) == std::vector<std::int64_t>{3, 0, 0});
  const auto message = [&](NetworkInfo const& info) {
    return message_of<std::invalid_argument>([&] { network(info); });
  };
  const std::string rule = "tstitch::Network: shape must be [C, ...], with channels from 1 on and 0 for any size, got ";
  CHECK(message({.shape = {0, 8}}) == rule + "[0, 8]");
  CHECK(message({.shape = {4, -8}}) == rule + "[4, -8]");
  CHECK(message({.channels = 3, .shape = {4, 8, 8}}) ==
        "tstitch::Network: channels must be what the shape [4, 8, 8] says, or not stated, got 3");
  CHECK(message({.height = 8, .shape = {4, 0, 8}}) ==
        "tstitch::Network: height must be what the shape [4, *, 8] says, or not stated, got 8");
  CHECK(message({.width = 16, .shape = {4, 16}}) ==
        "tstitch::Network: width must be what the shape [4, 16] says, or not stated, got 16");
  const auto found = [&](NetworkInfo left, NetworkInfo right) {
    return mismatches({network(std::move(left)), network(std::move(right))});
  };
  CHECK(found({.shape = {4, 0, 16, 16}}, {.shape = {4, 8, 0, 16}}).empty());
  CHECK(found({.shape = {4, 16, 16}}, {.shape = {4, 8, 16, 16}}) ==
        std::vector<std::string>{"input shape: network 0 has [4, 16, 16], network 1 has [4, 8, 16, 16]"});
  CHECK(found({.shape = {1, 16000}}, {.shape = {1, 8000}}).size() == 1);
  CHECK(found({.shape = {4, 8, 16, 16}}, {.channels = 4, .height = 8}) ==
        std::vector<std::string>{"input height: network 0 has 16, network 1 has 8"});
}

TEST_CASE("networks that each fit with one between must fit with each other") {
  const auto found = [](std::vector<NetworkInfo> infos) {
    std::vector<Network> networks;
    for (NetworkInfo& info : infos) {
      networks.emplace_back([](at::Tensor const& x, at::Tensor const&) { return x; }, std::move(info));
    }
    return mismatches(networks);
  };
  using Lines = std::vector<std::string>;
  const Lines shapes{"input shape: network 1 has [4, 8, 8], network 2 has [4, 16, 8]"};
  CHECK(found({{.shape = {4, 0, 8}}, {.shape = {4, 8, 8}}, {.shape = {4, 16, 8}}}) == shapes);
  CHECK(found({{.shape = {4, 8, 8}}, {.shape = {4, 0, 8}}, {.shape = {4, 16, 8}}}) ==
        Lines{"input shape: network 0 has [4, 8, 8], network 2 has [4, 16, 8]"});
  CHECK(found({{.shape = {4, 0, 8}}, {.shape = {4, 8, 0}}, {.shape = {4, 8, 8}}}).empty());
  // One that states nothing fits with all.
  CHECK(found({{}, {.num_classes = 10}, {.num_classes = 100}}) ==
        Lines{"number of classes: network 1 has 10, network 2 has 100"});
  const auto text = [](std::int64_t size) { return NetworkInfo{.conditions = {{.name = "text", .shape = {size, 4}}}}; };
  CHECK(found({text(0), text(3), text(5), text(3)}) ==
        Lines{"condition 'text': network 1 has [3, 4], network 2 has [5, 4]",
              "condition 'text': network 2 has [5, 4], network 3 has [3, 4]"});
  // Each network once for what it differs in, and for all that it differs in.
  CHECK(found({{.channels = 3}, {.channels = 4}, {.channels = 5}, {.channels = 4, .latent_scale = 2}}) ==
        Lines{"input channels: network 0 has 3, network 1 has 4", "input channels: network 0 has 3, network 2 has 5",
              "input channels: network 0 has 3, network 3 has 4"});
  CHECK(found({{.latent_scale = 1}, {.channels = 4}, {.channels = 5, .latent_scale = 2}}) ==
        Lines{"latent scale and shift: network 0 has 1 and 0, network 2 has 2 and 0",
              "input channels: network 1 has 4, network 2 has 5"});
  const auto names = [](std::string const& first, std::string const& second) {
    return NetworkInfo{.num_classes = 2, .class_names = {first, second}};
  };
  CHECK(found({names("a", "b"), names("c", "b"), names("a", "d")}) ==
        Lines{"name of class 0: network 0 has 'a', network 1 has 'c'",
              "name of class 1: network 0 has 'b', network 2 has 'd'"});
}

TEST_CASE("what is no network is refused") {
  CHECK(message_of<std::invalid_argument>([] {
          Network{std::function<at::Tensor(at::Tensor const&, at::Tensor const&)>()};
        }) == "tstitch::Network: must be given something to call, got an empty function");
  at::Tensor (*const pointer)(at::Tensor const&, at::Tensor const&) = nullptr;
  CHECK_THROWS_AS(Network{pointer}, std::invalid_argument);
  const auto same = [](at::Tensor const& x, at::Tensor const&) { return x; };
  CHECK(message_of<std::invalid_argument>([&] { Network(same, {.null_class = 7}); }) ==
        "tstitch::Network: null_class is for networks with classes, got 7");
  CHECK(message_of<std::invalid_argument>([&] { Network(same, {.num_classes = -4}); }) ==
        "tstitch::Network: num_classes must not be negative, got -4");
}

TEST_CASE("a network that states no noise schedule says so") {
  const Network network([](at::Tensor const& x, at::Tensor const&) { return x; }, {.name = "mine"});
  CHECK(message_of<std::invalid_argument>([&] { (void)network.noise_schedule(); }) ==
        "tstitch::Network::noise_schedule: 'mine' states no noise schedule");
}
