/// @file
/// Counts the floating-point operations of matrix products and convolutions while a network runs.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/record_function.h>
#include <torch/csrc/jit/api/module.h>
#include <tstitch/model/network.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>
#include <utility>
#include <vector>

/// Counts on this thread while it lives; two operations for a multiply and an add. Elementwise work is left out, as
/// papers do.
class FlopCounter {
 public:
  FlopCounter() {
    state() = {};
    handle_ = at::addThreadLocalCallback(at::RecordFunctionCallback(&begin, &end).needsInputs(true));
  }
  FlopCounter(FlopCounter const&) = delete;
  FlopCounter& operator=(FlopCounter const&) = delete;
  ~FlopCounter() { at::removeCallback(handle_); }

  double count() const { return state().flops; }

 private:
  struct State {
    double flops = 0;
    int inside = 0;  // operations that are counted whole and may call others
  };
  struct Counted : at::ObserverContext {};

  static State& state() {
    thread_local State state;
    return state;
  }

  static std::unique_ptr<at::ObserverContext> begin(at::RecordFunction const& function) {
    if (state().inside > 0) {
      ++state().inside;
      return std::make_unique<Counted>();
    }
    const double flops = of(function);
    if (flops == 0) return nullptr;
    state().flops += flops;
    ++state().inside;
    return std::make_unique<Counted>();
  }

  static void end(at::RecordFunction const&, at::ObserverContext* context) {
    if (context) --state().inside;
  }

  static double of(at::RecordFunction const& function) {
    const std::string_view name = function.name();
    if (!name.starts_with("aten::")) return 0;
    // Of an operation in TorchScript's interpreter these are all that its stack holds, the operation's own last.
    const c10::ArrayRef<const c10::IValue> stack = function.inputs();
    const std::size_t count = std::min(function.num_inputs(), stack.size());
    const c10::ArrayRef<const c10::IValue> inputs = stack.slice(stack.size() - count);
    const auto tensor = [&](std::size_t i) {
      return i < inputs.size() && inputs[i].isTensor() ? inputs[i].toTensor() : at::Tensor();
    };
    const at::Tensor a = tensor(0), b = tensor(1), c = tensor(2);
    const auto numel = [](at::Tensor const& x) { return double(x.numel()); };
    if (name == "aten::linear" && b.defined()) return 2 * numel(a) * double(b.size(0));
    if ((name == "aten::mm" || name == "aten::bmm" || name == "aten::matmul") && b.defined() && b.dim() > 0) {
      return 2 * numel(a) * double(b.dim() > 1 ? b.size(-1) : 1);
    }
    if ((name == "aten::addmm" || name == "aten::baddbmm") && c.defined()) return 2 * numel(b) * double(c.size(-1));
    if (name == "aten::scaled_dot_product_attention" && c.defined()) {
      return 2 * numel(a) * double(b.size(-2)) * (1 + double(c.size(-1)) / double(a.size(-1)));
    }
    const bool convolution = name == "aten::convolution" || name == "aten::conv1d" || name == "aten::conv2d" ||
                             name == "aten::conv3d" || name == "aten::_convolution";
    if (convolution && b.defined() && b.dim() >= 3 && b.dim() == a.dim()) {
      // Every output pixel takes a whole kernel; strides and paddings are inputs 3 and 4.
      const auto list = [&](std::size_t i) {
        return inputs[i].isIntList() ? inputs[i].toIntVector() : std::vector<std::int64_t>{};
      };
      const auto strides = list(3), paddings = list(4);
      double pixels = double(a.size(0));
      for (int d = 0; d < b.dim() - 2; ++d) {
        const auto entry = [&](std::vector<std::int64_t> const& values, std::int64_t otherwise) {
          return values.empty() ? otherwise : values[values.size() > 1 ? std::size_t(d) : 0];
        };
        pixels *= double((a.size(2 + d) + 2 * entry(paddings, 0) - b.size(2 + d)) / entry(strides, 1) + 1);
      }
      return 2 * pixels * numel(b);
    }
    return 0;
  }

  at::CallbackHandle handle_;
};

/// What one evaluation of a network takes, of as many rows as x has.
/// @param module the network as its file has it; at its first call, for later ones run other operations
inline double flop_of(torch::jit::Module const& module, tstitch::NetworkInfo const& info, at::Tensor const& x,
                      at::Tensor const& t, tstitch::Condition const& condition) {
  torch::jit::Module plain = module;
  plain.eval();
  plain.to(at::kCPU, at::kFloat);
  std::vector<c10::IValue> inputs{x.cpu(), t.cpu()};
  if (info.num_classes) inputs.emplace_back(condition.labels.cpu());
  for (tstitch::ConditionInfo const& wanted : info.conditions) inputs.emplace_back(condition.at(wanted.name).cpu());
  const FlopCounter counter;
  plain.forward(std::move(inputs));
  return counter.count();
}
