// What of graphs needs no GPU.
#include <tstitch/engine/cuda_graph.hpp>

#include "../catch.hpp"

using namespace tstitch;

TEST_CASE("graphs refuse options that make no sense, and leave networks on the CPU as they are") {
  const Network same([](at::Tensor const& x, at::Tensor const&) { return x; });
  const auto refused = [&](CaptureOptions const& options) {
    return message_of<std::invalid_argument>([&] { captured(same, options); });
  };
  CHECK(refused({.graphs = 0}) == "tstitch::cuda_graphs: graphs must be at least 1, got 0");
  CHECK(refused({.warm_ups = 0}) == "tstitch::cuda_graphs: warm_ups must be at least 1, got 0");
  const Network plain = captured(same);
  CHECK(&plain.info() == &same.info());  // not even another network
}
