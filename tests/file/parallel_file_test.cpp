#include <tstitch/file/parallel_file.hpp>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <string>
#include <thread>
#include <vector>

#include "../catch.hpp"

using namespace tstitch;

namespace {

constexpr tstitch::detail::FileKind kind{"the_test", "a file"};
constexpr std::size_t megabyte = std::size_t(1) << 20, size = 40 * megabyte + 123;

/// A file of bytes that nowhere repeat, and the bytes.
struct Sample {
  std::string path = TSTITCH_TEST_DATA "/parallel_file";
  std::string bytes;

  Sample() {
    std::uint64_t state = 1;
    for (std::size_t i = 0; i < size; ++i) {
      state = state * 6364136223846793005 + 1442695040888963407;
      bytes += char(state >> 56);
    }
    std::filesystem::create_directories(TSTITCH_TEST_DATA);
    std::ofstream(path, std::ios::binary) << bytes;
  }
  ~Sample() { std::filesystem::remove(path); }

  /// What a stream reads there.
  std::string expected(std::size_t position, std::size_t count) const {
    std::ifstream file(path, std::ios::binary);
    std::string read(std::min(count, size), '\0');
    file.seekg(std::streamoff(position));
    file.read(read.data(), std::streamsize(read.size()));
    read.resize(std::size_t(file.gcount()));
    return read;
  }
};

Sample const& sample() {
  static const Sample sample;
  return sample;
}

std::string read(caffe2::serialize::ReadAdapterInterface const& file, std::uint64_t position, std::size_t count) {
  std::string bytes(std::min(count, size) + 1, 'x');  // the last must stay
  const std::size_t got = file.read(position, bytes.data(), count);
  REQUIRE(got < bytes.size());
  CHECK(bytes[got] == 'x');
  bytes.resize(got);
  return bytes;
}

std::size_t open_descriptors() {
  const auto entries = std::filesystem::directory_iterator("/proc/self/fd");
  return std::size_t(std::distance(begin(entries), end(entries)));
}

}  // namespace

TEST_CASE("a file read by several threads has the bytes that a stream reads") {
  const auto file = tstitch::detail::open_file(kind, sample().path);
  CHECK(file->size() == size);
  for (const std::size_t count :
       {std::size_t(0), std::size_t(1), std::size_t(4096), megabyte - 1, 2 * megabyte, 2 * megabyte + 1,
        7 * megabyte + 5, 16 * megabyte + 3, size - 1, size, size + 1, std::numeric_limits<std::size_t>::max()}) {
    for (const std::size_t position : {std::size_t(0), std::size_t(1), 3 * megabyte + 7, size - 2 * megabyte - 5,
                                       size - 1, size, size + 1, 2 * size}) {
      INFO(count << " bytes at " << position);
      CHECK(read(*file, position, count) == sample().expected(position, count));
    }
  }
  CHECK(read(*file, std::numeric_limits<std::uint64_t>::max(), 5).empty());
}

TEST_CASE("several threads read one file") {
  const auto file = tstitch::detail::open_file(kind, sample().path);
  std::vector<std::string> got(4);
  std::vector<std::thread> threads;
  for (std::size_t k = 0; k < got.size(); ++k) {
    threads.emplace_back([&, k] {
      got[k].resize(9 * megabyte);
      file->read(k * 10 * megabyte, got[k].data(), got[k].size());
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (std::size_t k = 0; k < got.size(); ++k) {
    CHECK(got[k] == sample().bytes.substr(k * 10 * megabyte, 9 * megabyte));
  }
}

TEST_CASE("a file without bytes to read is refused, and closed") {
  const auto message = [](std::string const& path) {
    return message_of<std::runtime_error>([&] { tstitch::detail::open_file(kind, path); });
  };
  const std::string empty = TSTITCH_TEST_DATA "/parallel_file_empty";
  std::filesystem::create_directories(TSTITCH_TEST_DATA);
  std::ofstream(empty).close();
  const std::size_t before = open_descriptors();
  CHECK(message("/nowhere/file") == "tstitch::the_test: '/nowhere/file': must be a file that can be read, got none");
  CHECK(message(empty) == "tstitch::the_test: '" + empty + "': must be a file, got an empty file or a folder");
  CHECK(message(TSTITCH_TEST_DATA) == "tstitch::the_test: '" TSTITCH_TEST_DATA
                                      "': must be a file, got an empty file or a folder");
  tstitch::detail::open_file(kind, sample().path);
  CHECK(open_descriptors() == before);
}

TEST_CASE("a file that becomes shorter while it is read is refused in one line") {
  const std::string path = sample().path + "_shrinks";
  std::filesystem::copy_file(sample().path, path, std::filesystem::copy_options::overwrite_existing);
  const auto file = tstitch::detail::open_file(kind, path);
  const auto message = [&](std::uint64_t position, std::size_t count) {
    return message_of<std::runtime_error>([&] {
      tstitch::detail::reading(kind, tstitch::detail::quoted(path), [&] { return read(*file, position, count); });
    });
  };
  std::filesystem::resize_file(path, 20 * megabyte);
  const std::string expected =
      "tstitch::the_test: '" + path + "': must be a file, got 'the file became shorter while it was read'";
  CHECK(message(0, size) == expected);
  CHECK(message(20 * megabyte - 1, 2) == expected);
  CHECK(message(30 * megabyte, 5) == expected);
  CHECK(read(*file, 0, 20 * megabyte) == sample().bytes.substr(0, 20 * megabyte));
  std::filesystem::remove(path);
}
