// archives FOLDER [GIB]: archives for archives_test.py; with a size one of so many GiB, for a look by hand.
#include <tstitch/output/npz.hpp>
#include <tstitch/output/tar.hpp>

#include <cstdint>
#include <string>
#include <vector>

int main(int count, char** values) {
  const std::string folder = values[1];
  if (count > 2) {
    const std::string piece(std::size_t(1) << 20, '\7');
    const std::int64_t pieces = std::stoll(values[2]) * 1024;
    tstitch::NpzWriter npz(folder + "/large.npz");
    npz.begin("arr_0", "|u1", {pieces, 1024, 1024});
    for (std::int64_t i = 0; i < pieces; ++i) npz.write(piece);
    npz.begin("arr_1", "<i8", {2});
    npz.write(std::string("\1\0\0\0\0\0\0\0\2\0\0\0\0\0\0\0", 16));
    npz.finish();
    return 0;
  }
  std::vector<std::int64_t> labels;
  for (std::int64_t i = 0; i < 1000; ++i) labels.push_back(i * i * i * 12345);
  std::string pixels;
  for (int i = 0; i < 7 * 5 * 4 * 3; ++i) pixels += char(i * 7 % 256);
  const auto write = [&](std::string const& name, std::uint64_t limit) {
    tstitch::NpzWriter npz(folder + "/" + name, limit);
    npz.begin("arr_0", "|u1", {7, 5, 4, 3});
    for (std::size_t i = 0; i < pixels.size(); i += 100) npz.write(std::string_view(pixels).substr(i, 100));
    npz.begin("empty", "<f4", {0, 3});
    npz.begin("one", "<f8", {});
    const double one = 1.5;
    npz.write({reinterpret_cast<char const*>(&one), sizeof one});
    npz.begin("arr_1", "<i8", {1000});
    npz.write({reinterpret_cast<char const*>(labels.data()), labels.size() * sizeof labels[0]});
    npz.finish();
  };
  write("plain.npz", 0xFFFFFFFE);
  write("zip64.npz", 16);      // all arrays, offsets and the end
  write("between.npz", 1000);  // some of them
  tstitch::TarWriter tar(folder + "/some.tar");
  for (int i = 0; i < 20; ++i) {
    const std::string name = "folder/" + std::to_string(i);
    tar.add(name + ".png", pixels.substr(0, std::size_t(i) * 26));
    tar.add(name + ".cls", std::to_string(i));
  }
  tar.add(std::string(100, 'n'), std::string(512, 'x'));
  tar.finish();
}
