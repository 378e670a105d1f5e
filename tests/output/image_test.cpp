#include <tstitch/output/image.hpp>
#include <tstitch/tensor/host_tensor.hpp>

#include <sys/resource.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>

#include "../catch.hpp"

using namespace tstitch;

namespace {

at::Tensor images(std::int64_t n, std::int64_t channels, std::int64_t height, std::int64_t width) {
  const at::Tensor x = tstitch::detail::host_tensor({n, channels, height, width}, at::kFloat);
  for (std::int64_t i = 0; i < x.numel(); ++i) x.mutable_data_ptr<float>()[i] = float(i % 256) / 127.5f - 1;
  return x;
}

std::string read(std::string const& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

// A new folder for each run, because std::filesystem::remove_all crashes in programs that link torch 2.11: libtorch.so
// exports a half of one.
const std::string folder = TSTITCH_TEST_DATA "/image_test-" + std::to_string(getpid());

}  // namespace

TEST_CASE("values become bytes: -1 is 0, 1 is 255, the rest rounded, outside clipped") {
  const at::Tensor x = tstitch::detail::host_tensor({1, 1, 1, 7}, at::kFloat);
  const std::array<float, 7> values{-2, -1, -0.5f, 0, 0.5f, 1, 2};
  std::copy(values.begin(), values.end(), x.mutable_data_ptr<float>());
  CHECK(to_pictures(x)[0].pixels == std::vector<std::uint8_t>{0, 0, 64, 128, 191, 255, 255});
}

TEST_CASE("channels are interleaved and every byte value survives") {
  const std::vector<Picture> pictures = to_pictures(images(2, 3, 4, 5));
  REQUIRE(pictures.size() == 2);
  for (int i = 0; i < 2; ++i) {
    CHECK(pictures[std::size_t(i)].width == 5);
    CHECK(pictures[std::size_t(i)].height == 4);
    for (int y = 0; y < 4; ++y) {
      for (int x = 0; x < 5; ++x) {
        for (int c = 0; c < 3; ++c) {
          REQUIRE(pictures[std::size_t(i)].pixels[std::size_t((y * 5 + x) * 3 + c)] == ((i * 3 + c) * 4 + y) * 5 + x);
        }
      }
    }
  }
}

TEST_CASE("grids, strips and columns lay pictures out row by row on white") {
  const std::vector<Picture> three = to_pictures(images(3, 1, 2, 2));
  const Picture grid = make_grid(three, 2, 1);
  CHECK(grid.width == 5);
  CHECK(grid.height == 5);
  CHECK(grid.pixels == std::vector<std::uint8_t>{0,   1,   255, 4,   5,    //
                                                 2,   3,   255, 6,   7,    //
                                                 255, 255, 255, 255, 255,  //
                                                 8,   9,   255, 255, 255,  //
                                                 10,  11,  255, 255, 255});
  CHECK(make_grid(three, 3, 0).width == 6);
  CHECK(make_grid(three, 1, 0).height == 6);
  CHECK(make_grid(three).width == 2 * 2 + 2);
  CHECK(make_grid(three, 5, 0).width == 6);  // no room for pictures that are not there
  for (int columns : {0, 1, 2, 5}) {
    const Picture made = make_grid(three, columns, 3);
    const GridSize size = grid_size(3, 2, 2, 1, columns, 3);
    CHECK(std::pair(size.width, size.height) == std::pair(made.width, made.height));
    CHECK(size.columns * size.rows >= 3);
  }
  CHECK_THROWS_WITH(grid_size(0, 2, 2, 1), "tstitch::make_grid: at least one picture is needed, got 0");
  CHECK_THROWS_WITH(grid_size(1, 2, 2, 1, -1), "tstitch::make_grid: columns must not be negative, got -1");
  CHECK_THROWS_WITH(grid_size(1, 2, 2, 1, 1, -1), "tstitch::make_grid: gap must not be negative, got -1");
  const auto refused = [](auto... given) { return message_of<std::invalid_argument>([=] { grid_size(given...); }); };
  const std::string sizes =
      "tstitch::make_grid: pictures must have width and height from 1 on and 1 or 3 channels, got ";
  CHECK(refused(1, -2, 2, 1) == sizes + "-2 x 2 of 1");
  CHECK(refused(1, 2, 0, 3) == sizes + "2 x 0 of 3");
  CHECK(refused(1, 2, 2, 4) == sizes + "2 x 2 of 4");
  const std::int64_t huge = std::int64_t(1) << 62;
  const std::string number = std::to_string(huge), most = " must be at most ";
  for (const std::int64_t columns : {std::int64_t(0), std::int64_t(1), huge}) {
    CHECK(refused(huge, 2, 2, 1, columns) == "tstitch::make_grid: pictures" + most + "1363148800, got " + number);
    CHECK(refused(1, 2, 2, 1, columns, huge) == "tstitch::make_grid: gap" + most + "2147483647, got " + number);
    for (auto const& [width, height] : {std::pair(huge, std::int64_t(1)), std::pair(std::int64_t(1), huge)}) {
      CHECK(refused(4, width, height, 3, columns) ==
            "tstitch::make_grid: a picture must have less than 1300 MiB, got " + std::to_string(width) + " x " +
                std::to_string(height) + " of 3 channels");
    }
  }
  CHECK_THAT(refused(1'363'148'800, 1, 1, 1, 1, 2'147'483'647),
             ContainsSubstring("must have less than 1300 MiB, got "));
  CHECK_THAT(message_of<std::invalid_argument>([] { grid_size(1'000'000, 512, 512, 3); }),
             ContainsSubstring("tstitch::make_grid: a picture must have less than 1300 MiB, got "));
  CHECK(enlarge(three[0], 2).pixels == std::vector<std::uint8_t>{0, 0, 1, 1, 0, 0, 1, 1, 2, 2, 3, 3, 2, 2, 3, 3});
}

// What is in a PNG, a reader of its own says: png_test.py.
TEST_CASE("a PNG takes the keywords and texts that its specification allows") {
  const Picture picture = to_pictures(images(1, 3, 4, 5))[0];
  const auto message = [&](std::string const& keyword, std::string const& text) {
    return message_of<std::invalid_argument>([&] { encode_png(picture, {{keyword, text}}); });
  };
  using namespace std::string_literals;
  for (std::string const& good : {"a"s, std::string(79, 'k'), "one two"s, "~!"s}) {
    CHECK(message(good, "text") == "nothing was thrown");
  }
  const std::string rule =
      "tstitch::encode_png: a keyword must be 1 to 79 printable ASCII characters, without spaces at its ends or side "
      "by "
      "side, got ";
  CHECK(message("", "text") == rule + "'' (0 bytes)");
  CHECK(message(std::string(80, 'k'), "text") == rule + "'" + std::string(80, 'k') + "' (80 bytes)");
  CHECK(message("a\0b"s, "text") == rule + "'a\\x00b' (3 bytes)");
  for (std::string const& bad : {" a"s, "a "s, "a  b"s, " "s, "a\nb"s, "\x7F"s, "Größe"s, "\xE4"s}) {
    CHECK_THAT(message(bad, "text"), ContainsSubstring(rule));
  }
  for (std::string const& good : {""s, "line\nline\ttab"s, "Größe 猫 😀"s, "\xC2\x85"s, std::string(100000, 'x')}) {
    CHECK(message("k", good) == "nothing was thrown");
  }
  CHECK(message("k", "a\0b"s) == "tstitch::encode_png: a text must be UTF-8 without NUL, got 'a\\x00b' for 'k'");
  for (std::string const& bad : {"\xFF"s, "\xC3"s, "\xC0\x80"s, "\xED\xA0\x80"s, "\xF4\x90\x80\x80"s, "\x80"s, "\xC2"s,
                                 "\xC2"
                                 "A"s}) {
    CHECK_THAT(message("k", bad), ContainsSubstring("a text must be UTF-8 without NUL"));
  }
  // A chunk has at most 2^31 - 1 bytes. This text is not there, so nothing may look at it first.
  CHECK_THAT(message_of<std::invalid_argument>([] {
               tstitch::detail::text_chunk("k", {reinterpret_cast<char const*>(4096), std::size_t(1) << 31});
             }),
             ContainsSubstring("a text must have at most 2147483548 bytes, got 2147483648 for 'k'"));
}

TEST_CASE("files are written whole or not at all") {
  std::filesystem::create_directories(folder);
  write_grid(folder + "/grid.png", images(4, 3, 8, 8));
  CHECK(read(folder + "/grid.png") == encode_png(make_grid(to_pictures(images(4, 3, 8, 8)))));
  CHECK(std::distance(std::filesystem::directory_iterator(folder), {}) == 1);
  CHECK_THAT(message_of<std::runtime_error>([] { write_grid(folder + "/nowhere/grid.png", images(1, 3, 8, 8)); }),
             ContainsSubstring("/nowhere/grid.png': must be a file that can be written, got 'No such file"));
  std::filesystem::create_directories(folder + "/taken.png/inside");
  CHECK_THAT(message_of<std::runtime_error>([] { write_grid(folder + "/taken.png", images(1, 3, 8, 8)); }),
             ContainsSubstring("taken.png': must be a file that can be written, got 'a folder'"));
  CHECK_FALSE(std::filesystem::exists(folder + "/taken.png.part"));
}

TEST_CASE("what can be written is told before the work, and left as it is") {
  const std::string here = folder + "-told";
  std::filesystem::create_directories(here + "/folder");
  for (const std::string name : {"/there.png", "/there.png.part"}) std::ofstream(here + name) << "mine";
  for (const std::string name : {"/there.png", "/new.png"}) CHECK_NOTHROW(require_writable(here + name));
  CHECK_NOTHROW(require_writable("/dev/null"));
  CHECK(read(here + "/there.png") == "mine");
  CHECK(read(here + "/there.png.part") == "mine");
  CHECK(std::distance(std::filesystem::directory_iterator(here), {}) == 3);
  const auto message = [&](std::string const& name) {
    return message_of<std::runtime_error>([&] { require_writable(here + name); });
  };
  CHECK_THAT(message("/folder"), ContainsSubstring("/folder': must be a file that can be written, got 'a folder'"));
  CHECK_THAT(message("/nowhere/new.png"), ContainsSubstring("got 'No such file or directory'"));
}

TEST_CASE("links and devices stay what they are") {
  const std::string here = folder + "-links";
  std::filesystem::create_directories(here);
  std::filesystem::create_symlink("target.png", here + "/link.png");
  write_grid(here + "/target.png", images(1, 3, 8, 8));
  write_grid(here + "/link.png", images(4, 3, 8, 8));
  CHECK(std::filesystem::is_symlink(here + "/link.png"));
  CHECK(read(here + "/target.png") == encode_png(make_grid(to_pictures(images(4, 3, 8, 8)))));
  std::filesystem::create_symlink("/dev/null", here + "/null.png");
  write_grid(here + "/null.png", images(1, 3, 8, 8));
  CHECK(std::filesystem::is_symlink(here + "/null.png"));
  CHECK(std::filesystem::is_character_file("/dev/null"));
  // Of links to links to what is not there yet, from one folder to another.
  std::filesystem::create_directories(here + "/below");
  std::filesystem::create_symlink("below/second.png", here + "/first.png");
  std::filesystem::create_symlink("../new.png", here + "/below/second.png");
  write_grid(here + "/first.png", images(1, 3, 8, 8));
  CHECK(std::filesystem::is_regular_file(std::filesystem::symlink_status(here + "/new.png")));
  CHECK(std::filesystem::is_symlink(here + "/first.png"));
  CHECK(std::filesystem::is_symlink(here + "/below/second.png"));
  CHECK(std::distance(std::filesystem::directory_iterator(here), {}) == 6);
}

TEST_CASE("a file that is replaced is read by whom it was") {
  std::filesystem::create_directories(folder);
  const std::string path = folder + "/private.png";
  std::ofstream(path) << "old";
  const auto mine = std::filesystem::perms::owner_read | std::filesystem::perms::owner_write;
  std::filesystem::permissions(path, mine);
  write_grid(path, images(1, 3, 8, 8));
  CHECK(std::filesystem::status(path).permissions() == mine);
  CHECK(read(path) != "old");
}

TEST_CASE("a full disk leaves no partial file, and what others have of that name") {
  const std::string here = folder + "-full";
  std::filesystem::create_directories(here);
  std::ofstream(here + "/full.png.part") << "mine";
  rlimit before = {};
  REQUIRE(getrlimit(RLIMIT_FSIZE, &before) == 0);
  rlimit small = before;
  small.rlim_cur = 100;
  REQUIRE(setrlimit(RLIMIT_FSIZE, &small) == 0);
  const std::string message =
      message_of<std::runtime_error>([&] { write_grid(here + "/full.png", images(1, 3, 64, 64)); });
  setrlimit(RLIMIT_FSIZE, &before);
  CHECK_THAT(message, ContainsSubstring("full.png': must fit on the disk, got 'File too large'"));
  CHECK(read(here + "/full.png.part") == "mine");
  CHECK(std::distance(std::filesystem::directory_iterator(here), {}) == 1);
  write_grid(here + "/full.png", images(1, 3, 64, 64));
  CHECK(read(here + "/full.png.part") == "mine");
  CHECK(std::distance(std::filesystem::directory_iterator(here), {}) == 2);
}

TEST_CASE("bytes may lie as they like") {
  const at::Tensor x = images(3, 3, 8, 8), bytes = to_bytes(x);
  const auto pixels = [](std::vector<Picture> const& pictures, std::size_t i) { return pictures.at(i).pixels; };
  const std::vector<Picture> whole = to_pictures(bytes);
  REQUIRE(whole.size() == 3);
  const std::vector<Picture> upper = to_pictures(bytes.narrow(1, 0, 4));
  const std::vector<std::uint8_t> all = pixels(whole, 1);
  CHECK(pixels(upper, 1) == std::vector<std::uint8_t>(all.begin(), all.begin() + 4 * 8 * 3));
  CHECK(pixels(to_pictures(bytes.permute({0, 3, 1, 2}).contiguous().permute({0, 2, 3, 1})), 2) == pixels(whole, 2));
  CHECK(pixels(to_pictures(bytes.narrow(0, 1, 1).expand({5, -1, -1, -1})), 4) == pixels(whole, 1));
  CHECK(message_of<std::invalid_argument>([&] {
          to_pictures(bytes.permute({0, 3, 1, 2}));
        }) == "tstitch::to_pictures: bytes must be [n, H, W, 1 or 3], got [3, 3, 8, 8]");
}

TEST_CASE("values that are not finite are no pictures") {
  for (const float value : {NAN, INFINITY, -INFINITY}) {
    at::Tensor x = images(3, 3, 8, 8);
    x[1][2][7][0].fill_(value);
    CHECK(message_of<std::runtime_error>([&] { to_pictures(x); }) ==
          "tstitch::to_pictures: values must be finite numbers, got nan or infinity in image 1 of 3");
  }
}

TEST_CASE("pictures refuse with place, rule and value") {
  const auto message = [](auto action) { return message_of<std::invalid_argument>(action); };
  CHECK(message([] { to_pictures(images(1, 4, 8, 8)); }) ==
        "tstitch::to_pictures: images must be [n, 1 or 3, H, W], got [1, 4, 8, 8]");
  CHECK(message([] { make_grid({}); }) == "tstitch::make_grid: at least one picture is needed, got 0");
  CHECK(message([] { enlarge({}, 0); }) == "tstitch::enlarge: factor must be at least 1, got 0");
  CHECK(message([] {
          make_grid({Picture{1, 1, 3, {1, 2, 3}}, Picture{1, 1, 1, {1}}});
        }) == "tstitch::make_grid: all pictures must have the size of the first, got 1");
  // With its filter byte a row must have less.
  constexpr std::int64_t most = std::int64_t(1300) << 20;
  CHECK(message([] { tstitch::detail::require_encodable("x", most - 2, 1, 1); }) == "nothing was thrown");
  CHECK_THAT(message([] { tstitch::detail::require_encodable("x", most - 1, 1, 1); }),
             ContainsSubstring("tstitch::x: a picture must have less than 1300 MiB, got 1363148799 x 1"));
  const std::vector<Picture> many(4, Picture{8, 8, 3, std::vector<std::uint8_t>(8 * 8 * 3)});
  CHECK(message([&] { enlarge(many[0], 4000); }) ==
        "tstitch::enlarge: a picture must have less than 1300 MiB, got 32000 x 32000 of 3 channels");
  CHECK(message([&] { make_grid(many, 2, 2000000000); }) ==
        "tstitch::make_grid: a picture must have less than 1300 MiB, got 4000000016 x 4000000016 of 3 channels");
  // Neither do sizes of which a product is beyond 64 bits.
  CHECK(
      message([] {
        enlarge({2, 2, 3, {}}, 2);
      }) ==
      "tstitch::enlarge: a picture must have pixels of width x height of 1 or 3 channels, got 0 bytes for 2 x 2 of 3");
  CHECK_THAT(message([] { make_grid({{2, 2, 1, {}}}); }), ContainsSubstring("got 0 bytes for 2 x 2 of 1"));
  CHECK_THAT(message([] {
               make_grid({{-5, -5, 1, std::vector<std::uint8_t>(25)}});
             }),
             ContainsSubstring("got 25 bytes for -5 x -5 of 1"));
  CHECK(message([] { to_pictures({}); }) ==
        "tstitch::to_pictures: images must be of a floating type, or bytes, got an undefined tensor");
  for (const at::ScalarType type : {at::kBool, at::kLong, at::kComplexFloat}) {
    CHECK_THAT(message([&] {
                 to_pictures(tstitch::detail::host_tensor({1, 3, 2, 2}, type));
               }),
               ContainsSubstring("must be of a floating type, or bytes, got "));
  }
  CHECK(to_pictures(images(0, 3, 8, 8)).empty());
  const at::Tensor byte = tstitch::detail::host_tensor({1, 1, 1, 1}, at::kByte);
  CHECK(message([&] {
          to_pictures(byte.expand({1, std::int64_t(1) << 31, 1, 1}));
        }) == "tstitch::to_pictures: height and width must be at most 2147483647, got [1, 2147483648, 1, 1]");
  CHECK_THAT(message([] {
               encode_png({2, 2, 2, std::vector<std::uint8_t>(8)});
             }),
             ContainsSubstring("8 bytes for 2 x 2 of 2"));
  CHECK_THAT(message([&] { enlarge(many[0], 230000000); }), ContainsSubstring("less than 1300 MiB"));
  CHECK_THAT(message([&] { make_grid(many, 2, 900000000); }), ContainsSubstring("less than 1300 MiB"));
  CHECK(message([] {
          encode_png({40000, 40000, 3, {}});
        }) == "tstitch::encode_png: a picture must have less than 1300 MiB, got 40000 x 40000 of 3 channels");
}
