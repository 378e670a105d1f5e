#include <tstitch/output/animation.hpp>

#include <limits>

#include "../catch.hpp"

using namespace tstitch;

namespace {

Picture frame(int value, int width = 5, int height = 4) {
  Picture made{width, height, 3};
  for (int i = 0; i < width * height * 3; ++i) made.pixels.push_back(std::uint8_t(i * value));
  return made;
}

std::string refusal(std::vector<Picture> const& frames, double seconds = 0.1) {
  return message_of<std::invalid_argument>([&] { encode_animation(frames, seconds); });
}

/// Kinds of chunks, and bodies.
std::vector<std::pair<std::string, std::string>> chunks(std::string const& png) {
  std::vector<std::pair<std::string, std::string>> found;
  for (tstitch::detail::PngChunk const& each : tstitch::detail::png_chunks(png)) {
    found.emplace_back(each.kind, png.substr(each.body, each.size));
    CHECK(png.substr(each.begin, each.size + 12) ==
          tstitch::detail::png_chunk(found.back().first, found.back().second));
  }
  return found;
}

std::string pixels_of(Picture const& picture) {
  for (auto const& [kind, body] : chunks(encode_png(picture))) {
    if (kind == "IDAT") return body;
  }
  return "";
}

}  // namespace

TEST_CASE("an animation has the pixels of each frame in an order that readers know") {
  const std::vector<Picture> frames{frame(3), frame(7), frame(11)};
  // The text holds the name of a chunk.
  const auto found = chunks(encode_animation(frames, 0.25, {{"prompt", "IDAT of a fox"}}));
  std::string kinds;
  for (auto const& [kind, body] : found) kinds += kind + " ";
  CHECK(kinds == "IHDR iTXt acTL fcTL IDAT fcTL fdAT fcTL fdAT IEND ");
  CHECK(found[2].second == std::string("\0\0\0\3\0\0\0\0", 8));
  CHECK(found[4].second == pixels_of(frames[0]));
  CHECK(found[6].second == std::string("\0\0\0\2", 4) + pixels_of(frames[1]));
  CHECK(found[8].second == std::string("\0\0\0\4", 4) + pixels_of(frames[2]));
  // Number, width, height, left, top, 1 / 4 second, and what becomes of the frame before.
  CHECK(found[5].second == std::string("\0\0\0\1\0\0\0\5\0\0\0\4\0\0\0\0\0\0\0\0\0\1\0\4\0\0", 26));
  CHECK(found[7].second.substr(0, 4) == std::string("\0\0\0\3", 4));
  // One frame is a picture.
  CHECK(chunks(encode_animation({frame(3)}, 60)).size() == 5);
}

TEST_CASE("frames are shown as long as they are to be") {
  using Fraction = std::pair<std::int64_t, std::int64_t>;
  const auto fraction = [](double seconds) { return tstitch::detail::as_fraction(seconds); };
  for (std::int64_t rate = 1; rate <= 100; ++rate) CHECK(fraction(1 / double(rate)) == Fraction{1, rate});
  CHECK(fraction(1001 / 24000.0) == Fraction{1001, 24000});
  CHECK(fraction(60) == Fraction{60, 1});
  CHECK(fraction(0.25) == Fraction{1, 4});
  CHECK(fraction(2.5) == Fraction{5, 2});
  for (double const seconds : {0.01, 0.0123456789, 3.14159265358979, 59.99999, 1.0000001, 0.1 + 1e-12}) {
    const auto [p, q] = fraction(seconds);
    CHECK((p > 0 && q > 0 && p <= 65535 && q <= 65535));
    CHECK(double(p) / double(q) == Approx(seconds).epsilon(1e-6));
  }
}

TEST_CASE("what is no animation is refused") {
  CHECK(refusal({}) == "tstitch::encode_animation: frames must be 1 to 100000, got 0");
  CHECK(refusal({frame(1), frame(1, 4, 5)}) ==
        "tstitch::encode_animation: all frames must have the size of the first, got 1");
  for (const double seconds : {0.0, -1.0, 61.0, std::numeric_limits<double>::quiet_NaN()}) {
    CHECK(refusal({frame(1)}, seconds).starts_with("tstitch::encode_animation: seconds must be in [0.01, 60], got "));
  }
  Picture cut = frame(1);
  cut.pixels.pop_back();
  CHECK(refusal({cut}).starts_with("tstitch::encode_png: a picture must have pixels of width x height"));
}
