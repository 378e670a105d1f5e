#include <tstitch/output/decode_queue.hpp>
#include <tstitch/output/video.hpp>

#include <stdlib.h>
#include <sys/stat.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>

#include "../catch.hpp"
#include "../skip.hpp"

using namespace tstitch;

namespace {

const std::string folder = TSTITCH_TEST_DATA "/video";

/// Not std::filesystem::remove_all: libtorch 2.11 brings one that calls nothing.
void clear(std::string const& path) {
  if (std::filesystem::is_directory(path)) {
    for (auto const& each : std::filesystem::directory_iterator(path)) clear(each.path().string());
  }
  std::remove(path.c_str());
}

/// Where nothing is.
std::string place(std::string const& name) {
  std::filesystem::create_directories(folder);
  clear(folder + "/" + name);
  return folder + "/" + name;
}

std::string content(std::string const& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

/// Smooth, and another in each frame: a video that is encoded and decoded is near it.
Video smooth(int frames, int width = 48, int height = 32, int channels = 3) {
  Video video;
  for (int f = 0; f < frames; ++f) {
    Picture frame{width, height, channels};
    for (int y = 0; y < height; ++y) {
      for (int x = 0; x < width; ++x) {
        for (int c = 0; c < channels; ++c) {
          frame.pixels.push_back(std::uint8_t(std::lround(128 + 90 * std::sin(0.1 * x + 0.07 * y + 0.5 * f + 2 * c))));
        }
      }
    }
    video.push_back(frame);
  }
  return video;
}

/// The names in a folder.
std::vector<std::string> names_in(std::string const& path) {
  std::vector<std::string> names;
  for (auto const& each : std::filesystem::directory_iterator(path)) names.push_back(each.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

/// While it lives programs are looked for here alone, with /bin and /usr/bin behind where it has a program of its own.
class Path {
 public:
  /// @param ffmpeg a script of sh that is run for it; empty: there is none
  explicit Path(std::string const& ffmpeg) : before_(getenv("PATH")) {
    const std::string bin = place("bin");
    std::filesystem::create_directories(bin);
    if (!ffmpeg.empty()) {
      std::ofstream(bin + "/ffmpeg") << "#!/bin/sh\n" << ffmpeg << "\n";
      chmod((bin + "/ffmpeg").c_str(), 0755);
    }
    setenv("PATH", ffmpeg.empty() ? bin.c_str() : (bin + ":/bin:/usr/bin").c_str(), 1);
  }
  Path(Path const&) = delete;
  Path& operator=(Path const&) = delete;
  ~Path() { setenv("PATH", before_.c_str(), 1); }

 private:
  std::string before_;
};

/// Writes what comes into the last of its arguments, file:NAME, and the arguments to `arguments`.
const std::string keeps_input =
    "printf '%s\\n' \"$@\" > '" + folder + "/arguments'\nfor last; do :; done\ncat > \"${last#file:}\"";

std::string failure(std::string const& path, Video const& video, double rate = 16) {
  return message_of<std::runtime_error>([&] { write_mp4(path, video, rate); });
}

}  // namespace

TEST_CASE("videos of a tensor have its frames, as pictures have them") {
  const at::Tensor x = tstitch::detail::host_tensor({2, 3, 4, 5, 6}, at::kFloat);
  for (std::int64_t i = 0; i < x.numel(); ++i) x.mutable_data_ptr<float>()[i] = float(std::sin(0.7 * double(i)) * 1.2);
  const std::vector<Video> videos = to_videos(x);
  REQUIRE(videos.size() == 2);
  for (std::int64_t i = 0; i < 2; ++i) {
    REQUIRE(videos[std::size_t(i)].size() == 4);
    for (std::int64_t f = 0; f < 4; ++f) {
      Picture const& frame = videos[std::size_t(i)][std::size_t(f)];
      const Picture expected = to_pictures(x.narrow(0, i, 1).select(2, f))[0];
      CHECK(frame.width == 6);
      CHECK(frame.height == 5);
      CHECK(frame.pixels == expected.pixels);
    }
  }
  CHECK(to_videos(to_bytes(x))[1][3].pixels == videos[1][3].pixels);
  CHECK(to_videos(x.narrow(1, 0, 1))[0][0].channels == 1);
  const auto refused = [](auto action) { return message_of<std::invalid_argument>(action); };
  CHECK(refused([&] { to_videos(x.select(2, 0)); }) ==
        "tstitch::to_videos: videos must be [n, 1 or 3, F, H, W], or bytes [n, F, H, W, 1 or 3], got [2, 3, 5, 6]");
  CHECK(refused([&] { to_videos(at::Tensor()); }).find("an undefined tensor") != std::string::npos);
  CHECK(refused([&] { to_videos(x.narrow(1, 0, 2)); }).find("[2, 2, 4, 5, 6]") != std::string::npos);
  CHECK(refused([&] { to_pictures(x); }).find("got [2, 3, 4, 5, 6]") != std::string::npos);
  x[1][0][2][0][0] = NAN;
  CHECK(message_of<std::runtime_error>([&] { to_videos(x); }) ==
        "tstitch::to_videos: values must be finite numbers, got nan or infinity in image 1 of 2");
}

TEST_CASE("the queue decodes videos, too") {
  const AutoencoderInfo info{.name = "test", .upsampling = 1, .temporal_upsampling = 1};
  const Decoder decoder({[](at::Tensor const& z) { return z.narrow(1, 0, 3); }, info});
  DecodeQueue queue(decoder);
  const at::Tensor latents = tstitch::detail::host_tensor({2, 4, 3, 5, 6}, at::kFloat).fill_(0.25);
  queue.push(latents);
  const std::vector<Video> videos = queue.pop_videos();
  REQUIRE(videos.size() == 2);
  CHECK(videos[1].size() == 3);
  CHECK(videos[1][2].pixels[0] == 159);
  queue.push(latents);
  CHECK_THROWS_AS(queue.pop(), std::invalid_argument);
}

TEST_CASE("frames are files in a folder, and a longer video before leaves none behind") {
  const std::string path = place("frames/inside");
  const Video video = smooth(5);
  write_frames(path, video, {{"prompt", "a fox"}});
  CHECK(names_in(path) ==
        std::vector<std::string>{"000000.png", "000001.png", "000002.png", "000003.png", "000004.png"});
  CHECK(content(path + "/000000.png") == encode_png(video[0], {{"prompt", "a fox"}}));
  CHECK(content(path + "/000003.png") == encode_png(video[3]));
  std::ofstream(path + "/notes.txt") << "mine";
  write_frames(path, smooth(2));
  CHECK(names_in(path) == std::vector<std::string>{"000000.png", "000001.png", "notes.txt"});
  std::ofstream(place("taken")) << "a file";
  CHECK(message_of<std::runtime_error>([] { write_frames(folder + "/taken", smooth(2)); })
            .find("/taken': must be a folder "
                  "that can be made") != std::string::npos);
  CHECK(content(folder + "/taken") == "a file");
}

TEST_CASE("what is no video is refused") {
  Video odd = smooth(3);
  odd[2].width = 16;
  odd[2].pixels.resize(16 * 32 * 3);
  Video short_of_pixels = smooth(2);
  short_of_pixels[1].pixels.pop_back();
  const std::string path = place("none");
  const auto each_refuses = [&](Video const& video, double rate, std::string const& words) {
    for (auto const& write :
         std::vector<std::function<void()>>{[&] { write_frames(path, video); }, [&] { write_apng(path, video, rate); },
                                            [&] { write_mp4(path, video, rate); }}) {
      CHECK(message_of<std::invalid_argument>(write).find(words) != std::string::npos);
      CHECK_FALSE(std::filesystem::exists(path));
      if (rate != 16) break;
    }
  };
  each_refuses({}, 16, "got 0");
  each_refuses(odd, 16, "all frames must have the size of the first, got 2");
  each_refuses(short_of_pixels, 16, "a picture must have pixels");
  for (double const rate : {0.0, 0.5, 101.0, -16.0, double(NAN), double(INFINITY)}) {
    for (auto const& write : std::vector<std::function<void()>>{[&] { write_apng(path, smooth(2), rate); },
                                                                [&] { write_mp4(path, smooth(2), rate); }}) {
      CHECK(message_of<std::invalid_argument>(write).find("frames_per_second must be in [1, 100], got ") !=
            std::string::npos);
    }
  }
  CHECK(message_of<std::invalid_argument>([&] { write_mp4(path, smooth(2, 47, 32), 16); }) ==
        "tstitch::write_mp4: width and height must be even, got 47x32");
  CHECK_FALSE(std::filesystem::exists(path));
}

TEST_CASE("ffmpeg gets the frames, and its file takes the name when it is whole") {
  const Video video = smooth(7);
  std::string all;
  for (Picture const& frame : video) all.append(frame.pixels.begin(), frame.pixels.end());
  const std::string path = place("kept -y.mp4");
  {
    const Path only(keeps_input);
    write_mp4(path, video, 24, {{"prompt", "a 'fox'; $(touch harm)"}, {"seed", "3"}});
  }
  CHECK(content(path) == all);
  const std::string arguments = content(folder + "/arguments");
  for (std::string const words : {"\n-video_size\n48x32\n", "\n-framerate\n24\n", "\n-pixel_format\nrgb24\n",
                                  "\ncomment=prompt: a 'fox'; $(touch harm)\nseed: 3\n"}) {
    CHECK(arguments.find(words) != std::string::npos);
  }
  // What is there is replaced, and keeps its rights; a grey one is grey.
  chmod(path.c_str(), 0640);
  {
    const Path only(keeps_input);
    write_mp4(path, smooth(1, 2, 2, 1), 1);
  }
  CHECK(content(path).size() == 4);
  CHECK(content(folder + "/arguments").find("\n-pixel_format\ngray\n") != std::string::npos);
  struct stat there = {};
  REQUIRE(stat(path.c_str(), &there) == 0);
  CHECK((there.st_mode & 07777) == 0640);
}

TEST_CASE("where ffmpeg fails it is said, and what was there stays") {
  const std::string path = place("stays.mp4");
  std::ofstream(path) << "before";
  const auto leaves_it = [&] {
    CHECK(content(path) == "before");
    const std::vector<std::string> names = names_in(folder);
    CHECK(std::none_of(names.begin(), names.end(),
                       [](std::string const& name) { return name.find(".part") != std::string::npos; }));
  };
  const Video large = smooth(40, 256, 256);  // more than a pipe holds
  {
    const Path none("");
    CHECK(failure(path, large) == "tstitch::write_mp4: needs the program ffmpeg, got 'none in PATH'");
    CHECK(message_of<std::runtime_error>([] { require_ffmpeg(); }) ==
          "tstitch::write_mp4: needs the program ffmpeg, got 'none in PATH'");
    leaves_it();
  }
  {
    const Path only("cat > /dev/null\necho 'Unknown encoder' >&2\nexit 3");
    CHECK(failure(path, large) == "tstitch::write_mp4: ffmpeg must succeed, got 'Unknown encoder'");
    CHECK(message_of<std::runtime_error>([] { require_ffmpeg(); }).find("'Unknown encoder'") != std::string::npos);
    leaves_it();
  }
  {
    const Path only("exit 7");  // without reading: its end of the pipe is closed
    CHECK(failure(path, large) == "tstitch::write_mp4: ffmpeg must succeed, got 'exit code 7'");
    leaves_it();
  }
  {
    const Path only("exit 0");
    CHECK(failure(path, large) == "tstitch::write_mp4: ffmpeg must succeed, got 'exit code 0'");
    leaves_it();
  }
  {
    const Path only("kill -9 $$");
    CHECK(failure(path, large) == "tstitch::write_mp4: ffmpeg must succeed, got 'signal 9'");
    leaves_it();
  }
  {
    // More words than a pipe holds, none of them a command to the terminal.
    const Path only("cat > /dev/null\nfor i in $(seq 20000); do printf 'no \\033[2J room '; done >&2\nexit 1");
    const std::string message = failure(path, large);
    CHECK(message.find("no \\x1b[2J room") != std::string::npos);
    CHECK(message.size() < 10000);
    leaves_it();
  }
  const Path only(keeps_input);
  CHECK(failure("/dev/null", smooth(2))
            .find("must be a file that can be written, got 'no file but a device or a pipe'") != std::string::npos);
  CHECK(failure(folder + "/nowhere/x.mp4", smooth(2)).find("must be a file that can be written") != std::string::npos);
  CHECK(failure(folder, smooth(2)).find("got 'a folder'") != std::string::npos);
}

TEST_CASE("signals are for ffmpeg what they are for other programs") {
  // What this program ignores or blocks it does not inherit.
  const auto before = std::signal(SIGPIPE, SIG_IGN);
  sigset_t blocked, mask;
  sigemptyset(&blocked);
  sigaddset(&blocked, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &blocked, &mask);
  {
    const Path only("cat > /dev/null\ngrep -E 'Sig(Blk|Ign)' /proc/self/status > '" + folder + "/signals'");
    const std::string path = place("signals.mp4");
    write_mp4(path, smooth(2), 16);
  }
  pthread_sigmask(SIG_SETMASK, &mask, nullptr);
  std::signal(SIGPIPE, before);
  const std::string signals = content(folder + "/signals");
  if (signals.empty()) return skip("signals of a program: this system has no /proc");
  const auto of = [&](std::string const& key) {
    return std::stoull(signals.substr(signals.find(key) + 8), nullptr, 16);
  };
  CHECK((of("SigBlk:") & (1ULL << (SIGTERM - 1))) == 0);
  CHECK((of("SigIgn:") & (1ULL << (SIGPIPE - 1))) == 0);
}

TEST_CASE("an MP4 has the frames of the video, at their rate") {
  try {
    require_ffmpeg();
  } catch (std::runtime_error const& error) {
    return skip(error.what());
  }
  for (int const channels : {3, 1}) {
    const Video video = smooth(9, 96, 64, channels);
    const std::string path = place("real.mp4"), raw = place("real.raw"), log = place("real.log");
    write_mp4(path, video, 12.5, {{"prompt", "a fox"}});
    const std::string read =
        "ffmpeg -hide_banner -i '" + path + "' -f rawvideo -pix_fmt rgb24 '" + raw + "' 2> '" + log + "'";
    REQUIRE(std::system(read.c_str()) == 0);
    CHECK(content(log).find("12.50 fps") != std::string::npos);
    CHECK(content(log).find("bt709") != std::string::npos);
    CHECK(content(log).find("prompt: a fox") != std::string::npos);
    const std::string decoded = content(raw);
    REQUIRE(decoded.size() == 9u * 96 * 64 * 3);
    double total = 0;
    std::size_t at = 0;
    for (Picture const& frame : video) {
      for (std::size_t i = 0; i < 96u * 64 * 3; ++i) {
        const std::uint8_t expected = frame.pixels[channels == 3 ? i : i / 3];
        total += std::abs(double(static_cast<unsigned char>(decoded[at++])) - expected);
      }
    }
    CHECK(total / double(at) < 5);
  }
}
