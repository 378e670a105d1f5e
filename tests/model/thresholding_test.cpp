#include <tstitch/model/thresholding.hpp>
#include <tstitch/tensor/host_tensor.hpp>

#include <array>

#include "../catch.hpp"

using namespace tstitch;

TEST_CASE("clipping is automatic for pictures and thresholding is what it says") {
  const at::Tensor x = tstitch::detail::host_tensor({1, 1, 1, 5}, at::kFloat);
  const auto fill = [&](std::array<float, 5> values) {
    std::copy(values.begin(), values.end(), x.mutable_data_ptr<float>());
    return x.clone();
  };
  const auto list = [](at::Tensor const& t) {
    return std::vector<float>(t.const_data_ptr<float>(), t.const_data_ptr<float>() + 5);
  };
  CHECK(list(Thresholding::clip()(fill({-3, -1, 0, 0.5, 2}))) == std::vector<float>{-1, -1, 0, 0.5, 1});
  CHECK(list(Thresholding::none()(fill({-3, -1, 0, 0.5, 2}))) == std::vector<float>{-3, -1, 0, 0.5, 2});
  // The median of |x| is 2: clip to [-2, 2], divide by 2.
  CHECK(list(Thresholding::dynamic(0.5)(fill({-4, -1, 0, 2, 3}))) == std::vector<float>{-1, -0.5, 0, 1, 1});
  // The median is 4: clip to [-4, 4], divide by 4, times the range.
  CHECK(list(Thresholding::dynamic(0.5, 2)(fill({-8, -1, 0, 4, 6}))) == std::vector<float>{-2, -0.5, 0, 2, 2});
  // Never below the range: pictures inside it stay as they are.
  CHECK(list(Thresholding::dynamic(0.5)(fill({-0.4f, -0.1f, 0, 0.2f, 0.3f}))) ==
        std::vector<float>{-0.4f, -0.1f, 0, 0.2f, 0.3f});
  CHECK(list(Thresholding::dynamic(1, 1, 2)(fill({-4, -1, 0, 1, 3}))) == std::vector<float>{-1, -0.5, 0, 0.5, 1});
  const at::Tensor picture =
      Thresholding::automatic().resolve({.decoding = Decoding::pixels})(fill({-3, -1, 0, 0.5, 2}));
  CHECK(list(picture) == std::vector<float>{-1, -1, 0, 0.5, 1});
  CHECK(list(Thresholding::automatic().resolve({})(fill({-3, -1, 0, 0.5, 2}))) ==
        std::vector<float>{-3, -1, 0, 0.5, 2});
}

TEST_CASE("dynamic thresholding judges each image by itself") {
  const at::Tensor x = tstitch::detail::host_tensor({2, 1, 1, 3}, at::kFloat);
  const std::array<float, 6> values{-4, 2, 2, 0.1f, 0.2f, -0.3f};
  std::copy(values.begin(), values.end(), x.mutable_data_ptr<float>());
  const at::Tensor y = Thresholding::dynamic(0.5)(x.clone());
  CHECK(y.select(0, 0).abs().eq(1).all().item<bool>());
  CHECK(y.select(0, 1).equal(x.select(0, 1)));
}

TEST_CASE("thresholding refuses with place, rule and value") {
  const auto message = [](auto action) { return message_of<std::invalid_argument>(action); };
  CHECK(message([] { Thresholding::clip(0); }) == "tstitch::Thresholding::clip: range must be above 0, got 0");
  CHECK(message([] { Thresholding::clip(NAN); }) == "tstitch::Thresholding::clip: range must be above 0, got nan");
  CHECK(message([] { Thresholding::dynamic(1.5); }) ==
        "tstitch::Thresholding::dynamic: quantile must be in (0, 1], got 1.5");
  CHECK(message([] { Thresholding::dynamic(0.9, 2, 1); }) ==
        "tstitch::Thresholding::dynamic: most must not be below range, got 1");
}
