// Networks that are conditioned on tensors by name: what they get, in which half of guidance, and what is refused.

#include <tstitch/method/ddim.hpp>

#include <memory>

#include "../catch.hpp"

using namespace tstitch;

namespace {

const NoiseSchedule schedule = NoiseSchedule::linear();

/// [rows, sizes...] with row i at first + i.
at::Tensor rows(std::int64_t count, std::vector<std::int64_t> sizes, double first) {
  sizes.insert(sizes.begin(), count);
  const at::Tensor tensor = tstitch::detail::host_tensor(sizes, at::kFloat);
  for (std::int64_t i = 0; i < count; ++i) tensor.select(0, i).fill_(first + double(i));
  return tensor;
}

ConditionInfo text(std::int64_t width = 3) {
  return {"text_embedding", {2, width}};
}
const ConditionInfo mask{"mask", {1, 0, 0}};

/// Remembers the conditions of its calls; predicts x plus the mean of its text.
struct Watched {
  std::shared_ptr<std::vector<Condition>> seen = std::make_shared<std::vector<Condition>>();

  Network network(std::vector<ConditionInfo> conditions, std::string name = "watched") const {
    return Network(
        [seen = seen](at::Tensor const& x, at::Tensor const&, Condition const& condition) {
          seen->push_back(condition);
          for (auto const& [each, tensor] : condition.tensors) REQUIRE(tensor.size(0) == x.size(0));
          return x.mul(0.5).add(condition.at("text_embedding").flatten(1).mean(1).view({-1, 1, 1, 1}), 0.01);
        },
        {.name = std::move(name), .channels = 1, .height = 2, .width = 2, .conditions = std::move(conditions)});
  }
};

DDIM<Stitch> sampler(int steps = 2) {
  return {schedule, Stitch{.ratio = 0.5}, {.steps = steps}};
}

}  // namespace

TEST_CASE("each half of guidance has its condition, and what has no null counterpart is in both") {
  const Watched watched;
  const Network network = watched.network({text(), mask});
  const Request request{
      .conditions = {{"text_embedding", rows(2, {2, 3}, 5), rows(1, {2, 3}, -1)}, {"mask", rows(1, {1, 2, 2}, 9)}},
      .guidance = {.scale = 3}};
  const Samples samples = sampler().sample({network, network}, request);
  CHECK(samples.images.size(0) == 2);
  REQUIRE(watched.seen->size() == 2);
  const Condition& both = watched.seen->front();
  const auto column = [](at::Tensor const& tensor) {
    std::vector<double> values;
    for (std::int64_t i = 0; i < tensor.size(0); ++i) {
      values.push_back(tensor.select(0, i).mean().item<double>());
      CHECK(tensor.select(0, i).eq(values.back()).all().item<bool>());
    }
    return values;
  };
  CHECK(column(both.at("text_embedding")) == std::vector<double>{5, 6, -1, -1});
  CHECK(column(both.at("mask")) == std::vector<double>{9, 9, 9, 9});
  CHECK(message_of<std::invalid_argument>([&] { both.at("text"); }) ==
        "tstitch::Condition: must have 'text', got none of this name");
}

TEST_CASE("an image is the same in any batch, whichever conditions are beside it") {
  const Watched watched;
  const Network network = watched.network({text()});
  const at::Tensor prompts = rows(5, {2, 3}, 1), none = rows(1, {2, 3}, 0);
  Request request{
      .conditions = {{"text_embedding", prompts, none}}, .seeds = {10, 11, 12, 13, 14}, .guidance = {.scale = 2}};
  const at::Tensor all = sampler().sample({network, network}, request).images;
  for (const bool pad : {false, true}) {
    request.batch_size = 2;
    request.pad_batches = pad;
    CHECK(sampler().sample({network, network}, request).images.equal(all));
  }
  const Request third{
      .conditions = {{"text_embedding", prompts.narrow(0, 2, 1), none}}, .seeds = {12}, .guidance = {.scale = 2}};
  CHECK(sampler().sample({network, network}, third).images.equal(all.narrow(0, 2, 1)));
}

TEST_CASE("networks of a run may take different conditions") {
  const Watched watched;
  const Network small = watched.network({text()}, "small"),
                large = watched.network({text(), {"size_ids", {6}}}, "large");
  const NamedCondition prompt{"text_embedding", rows(1, {2, 3}, 1)}, sizes{"size_ids", rows(1, {6}, 1)};
  CHECK(sampler().sample({small, large}, {.conditions = {prompt, sizes}}).finished);
  const auto refused = [&](std::vector<Network> const& networks, std::vector<NamedCondition> const& conditions,
                           double scale = 1) {
    return message_of<std::invalid_argument>(
        [&] { sampler().sample(networks, {.conditions = conditions, .count = 3, .guidance = {.scale = scale}}); });
  };
  CHECK(refused({small, large}, {prompt}) ==
        "tstitch::Request: conditions: 'size_ids' is needed by network 1 ('large'), got none");
  CHECK(refused({small, small}, {prompt, sizes}) ==
        "tstitch::Request: conditions: each must be one that a network asks for, got 'size_ids'");
  CHECK(refused({small, small}, {{"text_embedding", rows(1, {2, 4}, 1)}}) ==
        "tstitch::Request: conditions: 'text_embedding' must be [n or 1, ...] of [2, 3] for network 0 ('small'), got "
        "[1, 2, 4]");
  CHECK(
      refused({small, small}, {{"text_embedding", at::Tensor()}}) ==
      "tstitch::Request: conditions: 'text_embedding' must be [n or 1, ...] of [2, 3] for network 0 ('small'), got an "
      "undefined tensor");
  CHECK(refused({small, small}, {{"text_embedding", rows(2, {2, 3}, 1)}}) ==
        "tstitch::Request: conditions: 'text_embedding' must have 1 row or one for each of 3 images, got 2");
  CHECK(refused({small, small}, {{"text_embedding", rows(1, {2, 3}, 1), rows(2, {2, 3}, 1)}}) ==
        "tstitch::Request: conditions: 'text_embedding'.null must have 1 row or one for each of 3 images, got 2");
  CHECK(refused({small, small}, {{"text_embedding", rows(1, {2, 3}, 1).to(at::kLong)}}) ==
        "tstitch::Request: conditions: 'text_embedding' must be of a floating type, got Long");
  CHECK(refused({small, small}, {prompt}, 2) ==
        "tstitch::Guidance: needs a null class or the null counterpart of a condition that the network takes, got "
        "network 0 ('small')");
}

TEST_CASE("a condition is given once") {
  const Watched watched;
  const DDIM sampler{NoiseSchedule::linear(), SingleNetwork{}, {.steps = 2}};
  CHECK(message_of<std::invalid_argument>([&] {
          sampler.sample({watched.network({text(3)}, "a")}, {.conditions = {{"text_embedding", rows(1, {2, 3}, 1)},
                                                                            {"text_embedding", rows(1, {3, 9}, 1)}}});
        }) == "tstitch::Request: conditions: their names must differ, got 'text_embedding' twice");
}

TEST_CASE("one tensor cannot be two conditions") {
  const Watched watched;
  CHECK(mismatches({watched.network({text(3)}, "a"), watched.network({text(4)}, "b")}) ==
        std::vector<std::string>{"condition 'text_embedding': network 0 ('a') has [2, 3], network 1 ('b') has [2, 4]"});
  CHECK(mismatches({watched.network({text(3)}, "a"), watched.network({text(0)}, "b")}).empty());
  const Network a([](at::Tensor const& x, at::Tensor const&) { return x; }, {.latent_scale = 0.18215});
  const Network b([](at::Tensor const& x, at::Tensor const&) { return x; }, {.latent_scale = 0.13025});
  CHECK(mismatches({a, b}) ==
        std::vector<std::string>{"latent scale and shift: network 0 has 0.18215 and 0, network 1 has 0.13025 and 0"});
}
