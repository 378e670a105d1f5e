#include <tstitch/output/npy.hpp>

#include <cstring>

#include "../catch.hpp"

using namespace tstitch;

TEST_CASE("a .npy file has numpy's header and the numbers") {
  const at::Tensor x = tstitch::detail::host_tensor({2, 3}, at::kDouble);
  for (int i = 0; i < 6; ++i) x.mutable_data_ptr<double>()[i] = i;
  const std::string file = encode_npy(x.t());  // [3, 2], not contiguous
  REQUIRE(file.size() == 128 + 24);
  CHECK(file.substr(0, 10) == std::string("\x93NUMPY\x01\x00\x76\x00", 10));
  CHECK(file.substr(10, 59) == "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 2, ),");
  CHECK(file[127] == '\n');
  float values[6];
  std::memcpy(values, file.data() + 128, sizeof values);
  CHECK(std::vector<float>(values, values + 6) == std::vector<float>{0, 3, 1, 4, 2, 5});
  CHECK(encode_npy(tstitch::detail::host_tensor({}, at::kFloat).fill_(1)).find("'shape': (), }") != std::string::npos);
  CHECK(message_of<std::invalid_argument>([&] { encode_npy(x.to(at::kLong)); }) ==
        "tstitch::encode_npy: the tensor must be of a floating type, got Long");
}
