/// @file
/// An optional member of a network without its const.
#include <tstitch/model/network.hpp>

struct Prepared {
#ifdef CORRECTED
  void prepare(std::span<const double>, tstitch::Condition const&) const {}
#else
  void prepare(std::span<const double>, tstitch::Condition const&) {}
#endif
  at::Tensor operator()(at::Tensor const& x, at::Tensor const&) const {
    return x;
  }
};

int main() {
  return tstitch::Network(Prepared{}).prepares() ? 0 : 1;
}
