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

namespace {

std::string npy(std::string const& header, std::string const& data, int version = 1) {
  std::string file("\x93NUMPY", 6);
  file += char(version);
  file += '\0';
  for (int i = 0; i < (version == 1 ? 2 : 4); ++i) file += char(header.size() >> 8 * i & 0xFF);
  return file + header + data;
}

std::string refusal(std::string const& file) {
  return message_of<std::runtime_error>([&] { decode_npy(file); });
}

}  // namespace

TEST_CASE("a .npy file is read as it was written") {
  const at::Tensor x = tstitch::detail::host_tensor({2, 3, 4}, at::kFloat);
  for (int i = 0; i < 24; ++i) x.mutable_data_ptr<float>()[i] = float(i) / 7;
  const std::string file = encode_npy(x);
  CHECK(decode_npy(file).equal(x));
  CHECK(decode_npy(encode_npy(x.select(0, 0).select(0, 0).select(0, 0))).dim() == 0);
  CHECK(decode_npy(encode_npy(x.narrow(0, 0, 0))).sizes() == at::IntArrayRef({0, 3, 4}));
  // What numpy writes: no comma in front of the last bracket, other types, later versions.
  const double two[] = {1.5, -2};
  const std::string data(reinterpret_cast<char const*>(two), sizeof two);
  for (int version : {1, 2, 3}) {
    const at::Tensor read =
        decode_npy(npy("{'descr': '<f8', 'fortran_order': False, 'shape': (2,), }     \n", data, version));
    CHECK(read.scalar_type() == at::kDouble);
    CHECK(read.const_data_ptr<double>()[1] == -2);
  }
  CHECK(decode_npy(npy("{'shape': (1, 8), 'fortran_order': False, 'descr': '<f2'}\n", data)).scalar_type() ==
        at::kHalf);
  const std::string path = std::string(TSTITCH_TEST_DATA) + ".npy";
  write_npy(path, x);
  CHECK(read_npy(path).equal(x));
}

TEST_CASE("a file that is no .npy of numbers is refused") {
  const std::string eight(8, '\0');
  CHECK(refusal("") == "tstitch::read_npy: the file: must be a .npy file, got something else");
  CHECK(refusal(npy("{}", eight, 4)) == "tstitch::read_npy: the file: must be a .npy file, got something else");
  CHECK(refusal(npy("{'descr': '<i8', 'fortran_order': False, 'shape': (1,)}", eight)) ==
        "tstitch::read_npy: the file: must have little-endian float16, float32 or float64 ('<f2', '<f4', '<f8'), got "
        "'<i8'");
  CHECK(refusal(npy("{'descr': '<f4', 'fortran_order': True, 'shape': (2,)}", eight)) ==
        "tstitch::read_npy: the file: must have its numbers in C order, got fortran_order");
  CHECK(refusal(npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1,)}", eight)) ==
        "tstitch::read_npy: the file: must have 4 bytes of numbers for its shape, got 8");
  CHECK(refusal(npy("{'descr': '<f4', 'fortran_order': False}", eight)) ==
        "tstitch::read_npy: the file: must have a header with 'shape', got none");
  for (std::string const shape : {"(3,)", "(-2,)", "(2, x)", "(4294967296, 4294967296)", "(9223372036854775807, 3)"}) {
    CHECK(refusal(npy("{'descr': '<f4', 'fortran_order': False, 'shape': " + shape + "}", eight)) ==
          "tstitch::read_npy: the file: must have a shape of at most 16 sizes and the elements that are in the file, "
          "got " +
              shape);
  }
  CHECK(refusal(npy("{'descr': '<f4', 'fortran_order': False, 'shape': [2]}", eight)) ==
        "tstitch::read_npy: the file: must have a header whose shape is a tuple, got [2]");
  std::string cut = npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2,)}", eight);
  for (std::size_t size = 0; size < cut.size(); ++size) CHECK_FALSE(refusal(cut.substr(0, size)).empty());
  CHECK(message_of<std::runtime_error>([] { read_npy("no such file.npy"); }) ==
        "tstitch::read_npy: 'no such file.npy': must be a file that can be read, got none");
}
