// A translation unit that includes no CUDA kernels: the program has them where another one does, which the argument
// says.
#include <tstitch/method/ddim.hpp>

#include <cstdio>
#include <string>

int main(int count, char** arguments) {
  const bool has_sum = tstitch::detail::sum_on_gpu.load(), has_noise = tstitch::detail::noise_on_gpu.load();
  const bool expected = count == 2 && std::string(arguments[1]) == "there";
  if (has_sum == expected && has_noise == expected) return 0;
  std::printf("kernels for sums and noise must be %s, got %d and %d\n", arguments[1], has_sum, has_noise);
  return 1;
}
