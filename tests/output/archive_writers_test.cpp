#include <tstitch/output/npz.hpp>
#include <tstitch/output/tar.hpp>

#include <filesystem>

#include "../catch.hpp"

using namespace tstitch;

namespace {

std::string scratch(std::string const& name) {
  const std::string folder = "scratch_archive_writers";
  std::filesystem::create_directories(folder);
  return folder + "/" + name;
}

}  // namespace

// What is in them is read by Python, in archives_test.py.
TEST_CASE("an array of a .npz has the name, the type and the bytes that it says") {
  const std::string path = scratch("refused.npz");
  {
    NpzWriter npz(path);
    const auto refusal = [&](auto action) { return message_of<std::invalid_argument>(action); };
    CHECK(refusal([&] { npz.finish(); }) == "tstitch::NpzWriter: must have an array at least, got none");
    for (char const* const name : {"", "a/b", "a b", "\xc3\xa4", "..\\a"}) {
      CHECK(refusal([&] { npz.begin(name, "|u1", {1}); }).starts_with("tstitch::NpzWriter: a name must be 1 to 1000 "));
    }
    for (char const* const type : {"", "u1", ">i8", "<u1", "|i8", "<i3", "<f44", "object"}) {
      CHECK(
          refusal([&] { npz.begin("a", type, {1}); }).starts_with("tstitch::NpzWriter: a type must be numpy's word "));
    }
    CHECK(refusal([&] { npz.begin("a", "|u1", {-1}); }).find("must not be negative") != std::string::npos);
    CHECK(refusal([&] {
            npz.begin("a", "<i8", {std::int64_t(1) << 40, std::int64_t(1) << 40});
          }).find("at most 2^62") != std::string::npos);
    npz.begin("a", "|u1", {2, 2});
    npz.write("123");
    CHECK(refusal([&] { npz.begin("b", "|u1", {1}); }) ==
          "tstitch::NpzWriter: 'a.npy' must be whole before what follows, got 1 bytes that are missing");
    CHECK(refusal([&] { npz.finish(); }).find("must be whole") != std::string::npos);
    CHECK(refusal([&] { npz.write("45"); }) ==
          "tstitch::NpzWriter: an array must have the bytes of its sizes, of which 1 are left, got 2");
    npz.write("4");
    CHECK(refusal([&] { npz.begin("a", "|u1", {1}); }) ==
          "tstitch::NpzWriter: each array must have another name, got a");
    CHECK_FALSE(std::filesystem::exists(path));
  }
  CHECK_FALSE(std::filesystem::exists(path));
  CHECK_FALSE(std::filesystem::exists(path + ".part"));
}

TEST_CASE("a file of a tar archive has a name that stays inside, and once") {
  TarWriter tar(scratch("refused.tar"));
  CHECK(tar.add("a/b.txt", "12") == 512);
  CHECK(tar.add("..a", "") == 1536);
  for (std::string const& name : {std::string(), std::string("/a"), std::string("a/"), std::string("../a"),
                                  std::string("a/.."), std::string("a\n"), std::string(101, 'a')}) {
    CHECK(message_of<std::invalid_argument>([&] {
            tar.add(name, "x");
          }).starts_with("tstitch::TarWriter: a name must be "));
  }
  CHECK(message_of<std::invalid_argument>([&] { tar.add("a/b.txt", "x"); }) ==
        "tstitch::TarWriter: each file must have another name, got 'a/b.txt'");
}

TEST_CASE("a file written piece by piece is whole or not there") {
  const std::string path = scratch("pieces");
  std::filesystem::remove(path);
  { FileWriter(path).write("half"); }
  CHECK_FALSE(std::filesystem::exists(path));
  FileWriter file(path);
  file.write("abc");
  file.write_at(1, "X");
  file.write("d");
  CHECK(message_of<std::invalid_argument>([&] { file.write_at(3, "12"); }) ==
        "tstitch::FileWriter: write_at must stay in the 4 bytes that are written, got 3 and 2");
  CHECK_FALSE(std::filesystem::exists(path));
  file.finish();
  CHECK(std::filesystem::file_size(path) == 4);
  CHECK(message_of<std::invalid_argument>([&] { file.write("e"); }).find("must not be used behind finish") !=
        std::string::npos);
  CHECK(message_of<std::runtime_error>([&] { FileWriter("/proc/none/file"); }).find("/proc/none/file") !=
        std::string::npos);
  CHECK(message_of<std::runtime_error>([&] { FileWriter("/dev/full"); }).find("must be a regular file") !=
        std::string::npos);
}
