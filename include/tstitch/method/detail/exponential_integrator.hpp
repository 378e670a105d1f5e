/// @file
/// The integrals that DPM-Solver, DEIS and UniPC are made of.
///
/// In lambda the probability-flow ODE is x' = scale x - size z times the integral of exp((1 - u) z) m(u) over u in
/// [0, 1], which is 0 where the step begins and 1 where it ends: for the predicted x_0 z = -h, size = alpha(to) and
/// scale = sigma(to) / sigma(from), for the predicted noise z = h, size = sigma(to) and scale = alpha(to) /
/// alpha(from), with h = lambda(to) - lambda(from) (Lu et al. 2022, arXiv 2206.00927, Eq. 3.4, and arXiv 2211.01095,
/// Eq. 8). The rules differ in how they put the predictions m together.
#pragma once

#include <cmath>
#include <cstddef>
#include <span>
#include <utility>
#include <vector>

#include "../../base/contraction.hpp"

TSTITCH_NO_CONTRACTION

namespace tstitch::detail {

/// z times the integral of exp((1 - u) z) u^k over u in [0, 1], for k = 0 to count - 1: the paper's h k! phi_(k+1)(h).
inline std::vector<double> exponential_moments(double z, std::size_t count) {
  std::vector<double> moments(count);
  // M_k = k / z M_(k-1) - 1 cancels for small z. There it runs backwards, from the series of the last one.
  if (std::abs(z) >= 1) {
    moments[0] = std::expm1(z);
    for (std::size_t k = 1; k < count; ++k) moments[k] = double(k) / z * moments[k - 1] - 1;
    return moments;
  }
  double term = z / double(count), sum = 0;  // z k! z^j / (k + 1 + j)! for k = count - 1
  for (std::size_t j = 1; j <= 18; ++j) {
    sum += term;
    term *= z / double(count + j);
  }
  moments.back() = sum;
  for (std::size_t k = count - 1; k > 0; --k) moments[k - 1] = z / double(k) * (1 + moments[k]);
  return moments;
}

/// The weights c with c[0] u[0]^k + c[1] u[1]^k + ... = moments[k] for each k: the quadrature that is exact for
/// polynomials. Golub and Van Loan, Matrix Computations, Algorithm 4.6.2.
/// @param nodes u, all different; as many as moments
inline std::vector<double> quadrature_weights(std::span<const double> nodes, std::vector<double> moments) {
  const std::size_t n = nodes.size();
  for (std::size_t k = 0; k + 1 < n; ++k) {
    for (std::size_t i = n - 1; i > k; --i) moments[i] -= nodes[k] * moments[i - 1];
  }
  for (std::size_t k = n - 1; k-- > 0;) {
    for (std::size_t i = k + 1; i < n; ++i) moments[i] /= nodes[i] - nodes[i - k - 1];
    for (std::size_t i = k; i + 1 < n; ++i) moments[i] -= moments[i + 1];
  }
  return moments;
}

/// The weights of predictions at these nodes, for the polynomial through them.
inline std::vector<double> exponential_weights(double z, std::span<const double> nodes) {
  return quadrature_weights(nodes, exponential_moments(z, nodes.size()));
}

/// The weights of predictions at 0 and at `node` where the change over the step counts with `growth` / 2. With
/// exp(z) - 1 it is as if the prediction in the middle of the step held all along.
inline std::vector<double> exponential_weights_of_two(double z, double node, double growth) {
  const double slope = growth / (2 * node);
  return {std::expm1(z) - slope, slope};
}

}  // namespace tstitch::detail

TSTITCH_USUAL_CONTRACTION
