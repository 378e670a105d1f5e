/// @file
/// Modules of TorchScript files whose tensors are still in the file.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>
#include <c10/util/Exception.h>
#include <caffe2/serialize/read_adapter_interface.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/serialization/import.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>

#include "archive.hpp"
#include "code_depth.hpp"
#include "pickle.hpp"

namespace tstitch::detail {

/// A module as torch loads it, except that its tensors have memory, which the system gives when it is first
/// touched, and no numbers. `onto` reads those of one to where they are wanted, `read_all` what is left; code of the
/// module must not run before.
class StoredModule {
 public:
  /// @throws c10::Error, and what torch throws
  explicit StoredModule(std::shared_ptr<Archive> archive) : archive_(std::move(archive)) {
    TORCH_CHECK(!archive_->has("model.json"), "an archive of torch before 1.2");
    // What torch reads while it loads must be there: tensors that code or its own classes are restored from, and
    // scales that become a part of a quantized tensor.
    const auto is_read = [](std::string const& text) {
      constexpr std::array readers{"__setstate__", "__torch__.torch.classes", "_rebuild_qtensor"};
      return std::any_of(readers.begin(), readers.end(),
                         [&](char const* reader) { return text.find(reader) != std::string::npos; });
    };
    bool reads_now = archive_->has("data.pkl") && is_read(archive_->text("data.pkl"));
    for (auto const& [name, record] : archive_->records()) {
      const bool code = name.starts_with("code/");
      if (Archive::in_lower_case(name).ends_with(".py")) {
        const std::string text = archive_->text(name);
        const CodeDepth checked(text);
        reads_now = reads_now || is_read(text);
      }
      // Torch inflates without a look at checksums.
      TORCH_CHECK(!record.compressed || code || name.starts_with("extra/"), "a compressed entry ", quoted(name));
    }
    TORCH_CHECK(Pickle(*archive_, "constants", /*classes=*/true).root().kind == Pickle::Kind::tuple,
                "constants.pkl holds no tuple");
    TORCH_CHECK(Pickle(*archive_, "data", /*classes=*/true).root().kind == Pickle::Kind::object,
                "data.pkl holds no module");
    const auto reader = std::make_shared<Reader>(archive_, /*postpones=*/!reads_now);
    module_ = torch::jit::load(reader, at::kCPU, /*load_debug_files=*/false);
    keep(reader->postponed());
  }

  torch::jit::Module const& module() const { return module_; }

  /// A tensor of the module on a device, in its own type: the same one, with its numbers, or a copy.
  /// @throws c10::Error naming an entry of the file that has another checksum than it says
  at::Tensor onto(at::Device device, at::Tensor const& tensor) {
    const auto found = left_.find(tensor.unsafeGetTensorImpl());
    if (found == left_.end()) return tensor.to(device);
    // Of a view the GPU is to have its own elements alone.
    const bool whole = tensor.nbytes() == tensor.storage().nbytes();
    if (device.is_cpu() || !whole || tensor.is_conj() || tensor.is_neg()) {
      read(found->second);
      left_.erase(found);
      return tensor.to(device);
    }
    return archive_->onto(device, *found->second.record)
        .narrow(0, 0, std::int64_t(tensor.nbytes()))
        .view(tensor.scalar_type())
        .as_strided(tensor.sizes(), tensor.strides(), tensor.storage_offset());
  }

  /// Sets a parameter or buffer of the module to these numbers, which are then no longer read for it.
  void set(at::Tensor const& tensor, at::Tensor const& numbers) {
    tensor.set_data(numbers);
    left_.erase(tensor.unsafeGetTensorImpl());
  }

  /// Reads the tensors that have no numbers yet, to where they are.
  /// @throws as `onto` does
  void read_all() {
    for (auto const& [tensor, kept] : left_) read(kept);
    left_.clear();
  }

 private:
  using Postponed = std::map<void const*, Archive::Record const*>;  // by the memory that they are to be read into

  struct Kept {
    at::Tensor tensor;
    Archive::Record const* record;
  };

  /// What torch reads through.
  class Reader final : public caffe2::serialize::ReadAdapterInterface {
   public:
    Reader(std::shared_ptr<Archive> archive, bool postpones) : archive_(std::move(archive)), postpones_(postpones) {}

    std::size_t size() const override { return archive_->size(); }

    std::size_t read(std::uint64_t position, void* buffer, std::size_t count, char const* what) const override {
      Archive::Record const* const record = postpones_ ? archive_->record_at(position) : nullptr;
      if (!record || record->size != count || !archive_->name_of(*record).starts_with("data/")) {
        postponed_.erase(buffer);  // memory of what torch has thrown away
        return archive_->read(position, buffer, count, what);
      }
      postponed_[buffer] = record;
      return count;
    }

    Postponed const& postponed() const { return postponed_; }

   private:
    std::shared_ptr<Archive> archive_;
    bool postpones_;
    mutable Postponed postponed_ = {};
  };

  /// Finds the tensors of the module that have no numbers. What else torch made of the file has none of theirs.
  void keep(Postponed const& postponed) {
    if (postponed.empty()) return;
    std::set<void const*> seen;
    c10::IValue(module_._ivalue()).visit([&](c10::IValue const& value) {
      if (!value.isPtrType()) return false;
      if (!seen.insert(value.internalToPointer()).second) return true;
      if (!value.isTensor()) return false;
      at::Tensor const& tensor = value.toTensor();
      if (!tensor.defined() || !tensor.has_storage()) return false;
      const auto found = postponed.find(tensor.storage().data());
      if (found != postponed.end() && found->second->size - tensor.storage().nbytes() < tensor.itemsize()) {
        left_.emplace(tensor.unsafeGetTensorImpl(), Kept{tensor, found->second});
      }
      return false;
    });
  }

  void read(Kept const& kept) const {
    // Not by the tensor, which would count it as a change.
    void* const memory = kept.tensor.storage().unsafeGetStorageImpl()->mutable_data();
    TORCH_CHECK(archive_->read(kept.record->begin, memory, std::size_t(kept.record->size)) == kept.record->size,
                "entry ", quoted(archive_->name_of(*kept.record)), " of the archive ends early");
  }

  std::shared_ptr<Archive> archive_;
  torch::jit::Module module_ = {};
  std::map<void const*, Kept> left_ = {};
};

}  // namespace tstitch::detail
