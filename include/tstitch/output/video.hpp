/// @file
/// Tensors to videos: as PNG files of their frames, as animated PNG, or as MP4 by the program ffmpeg where that is
/// installed. Needs stb_image_write.
#pragma once

#include <ATen/core/Tensor.h>

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "../base/error.hpp"
#include "../base/write_file.hpp"
#include "animation.hpp"
#include "image.hpp"

extern "C" char** environ;  // which no header of POSIX declares

namespace tstitch {

/// Frames of one size, in their order.
using Video = std::vector<Picture>;

/// @param videos [n, C, F, H, W] in [-1, 1] on any device, C = 1 or 3; or what to_bytes gives, [n, F, H, W, C] uint8
/// @throws std::invalid_argument for other shapes and types
/// @throws std::runtime_error for values that are not finite, which a decoder in float16 may make
inline std::vector<Video> to_videos(at::Tensor const& videos) {
  if (!videos.defined() || videos.dim() != 5) {
    detail::refuse("to_videos", "videos must be [n, 1 or 3, F, H, W], or bytes [n, F, H, W, 1 or 3]",
                   videos.defined() ? detail::shape_text(videos.sizes()) : "an undefined tensor");
  }
  const bool are_bytes = videos.scalar_type() == at::kByte;
  const at::Tensor bytes = are_bytes ? videos : to_bytes(videos);
  if (!are_bytes) detail::require_finite("to_videos", detail::are_finite(videos).cpu());
  std::vector<Video> all;
  for (std::int64_t i = 0; i < bytes.size(0); ++i) all.push_back(to_pictures(bytes.select(0, i)));
  return all;
}

namespace detail {

/// @throws std::invalid_argument for what is no video, or cannot be encoded
inline void require_frames(char const* place, Video const& video) {
  if (video.empty()) refuse(place, "a video must have one frame at least", 0);
  for (Picture const& frame : video) {
    require_encodable(place, frame);
    Picture const& first = video.front();
    if (frame.width == first.width && frame.height == first.height && frame.channels == first.channels) continue;
    refuse(place, "all frames must have the size of the first", double(&frame - video.data()));
  }
}

/// @throws std::invalid_argument
inline void require_rate(char const* place, double frames_per_second) {
  if (!(frames_per_second >= 1 && frames_per_second <= 100)) {
    refuse(place, "frames_per_second must be in [1, 100]", frames_per_second);
  }
}

/// "out/000012.png"
inline std::string frame_path(std::string const& folder, std::size_t frame) {
  char name[32];
  std::snprintf(name, sizeof name, "/%06zu.png", frame);
  return folder + name;
}

}  // namespace detail

/// Writes each frame as a PNG file, 000000.png and so on, each of them whole or not at all.
/// @param folder is made where it is not there; frames of a longer video that are in it behind these are removed
/// @param text goes into the first frame
/// @throws std::invalid_argument for what is no video
/// @throws std::runtime_error where the folder cannot be made, and as write_file does
inline void write_frames(std::string const& folder, Video const& video, PngText const& text = {},
                         Sync sync = Sync::now) {
  detail::require_frames("write_frames", video);
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) {
    throw std::runtime_error("tstitch::write_frames: " + detail::quoted(folder) +
                             ": must be a folder that can be made, got '" + error.message() + "'");
  }
  for (std::size_t i = 0; i < video.size(); ++i) {
    write_file(detail::frame_path(folder, i), encode_png(video[i], i == 0 ? text : PngText{}), sync);
  }
  for (std::size_t i = video.size(); std::remove(detail::frame_path(folder, i).c_str()) == 0;) ++i;
}

/// Writes an animated PNG, as write_animation does.
/// @param frames_per_second in [1, 100]
inline void write_apng(std::string const& path, Video const& video, double frames_per_second,
                       PngText const& text = {}) {
  detail::require_frames("write_apng", video);
  detail::require_rate("write_apng", frames_per_second);
  write_animation(path, video, 1 / frames_per_second, text);
}

namespace detail {

/// A program that reads from a pipe. It is in a process group of its own, so that a Ctrl-C that this program outlives
/// does not end it. Signals are as a shell would give them.
class Child {
 public:
  /// @param command the program, looked for in PATH, and its arguments
  /// @throws std::runtime_error where it cannot be started
  Child(char const* place, std::vector<std::string> command) : place_(place), name_(command.at(0)) {
    errors_.reset(std::tmpfile());
    int ends[2] = {-1, -1};
#if defined(__linux__)
    const bool opened = errors_ && pipe2(ends, O_CLOEXEC) == 0;
#else
    const bool opened = errors_ && pipe(ends) == 0;
    for (int const end : ends) fcntl(end, F_SETFD, FD_CLOEXEC);
#endif
    if (!opened) fail("must be able to run " + name_, std::strerror(errno));
    to_ = ends[1];
    posix_spawn_file_actions_t files;
    posix_spawn_file_actions_init(&files);
    posix_spawn_file_actions_adddup2(&files, fileno(errors_.get()), STDERR_FILENO);
    posix_spawn_file_actions_adddup2(&files, ends[0], STDIN_FILENO);
    posix_spawn_file_actions_addopen(&files, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
    posix_spawnattr_t attributes;
    posix_spawnattr_init(&attributes);
    sigset_t none, usual;
    sigemptyset(&none);
    sigemptyset(&usual);
    for (int const number : {SIGPIPE, SIGXFSZ, SIGINT, SIGTERM}) sigaddset(&usual, number);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setsigdefault(&attributes, &usual);
    posix_spawnattr_setpgroup(&attributes, 0);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETPGROUP);
    std::vector<char*> words;
    for (std::string& word : command) words.push_back(word.data());
    words.push_back(nullptr);
    const int error = posix_spawnp(&id_, words[0], &files, &attributes, words.data(), environ);
    posix_spawn_file_actions_destroy(&files);
    posix_spawnattr_destroy(&attributes);
    close(ends[0]);
    if (error == 0) return;
    id_ = -1;
    close(std::exchange(to_, -1));
    if (error == ENOENT) fail("needs the program " + name_, "none in PATH");
    fail("must be able to run " + name_, std::strerror(error));
  }

  Child(Child const&) = delete;
  Child& operator=(Child const&) = delete;
  ~Child() {
    end();
  }

  /// @returns whether it took all of them; one that does not says why in `finish`
  bool write(void const* bytes, std::size_t size) {
    const WithoutSignal guard(SIGPIPE);
    took_all_ = false;
    for (auto const* at = static_cast<char const*>(bytes); size > 0;) {
      const ssize_t written = ::write(to_, at, size);
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) return false;
      at += written;
      size -= std::size_t(written);
    }
    took_all_ = true;
    return true;
  }

  /// Tells it that there is no more, and waits until it ends.
  /// @throws std::runtime_error with what it said, where it failed
  void finish() {
    const int status = end();
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0 && took_all_) return;
    std::rewind(errors_.get());
    char said[2000];
    std::string text(said, std::fread(said, 1, sizeof said, errors_.get()));
    while (!text.empty() && text.back() == '\n') text.pop_back();
    if (text.empty()) {
      text = WIFSIGNALED(status) ? "signal " + std::to_string(WTERMSIG(status))
                                 : "exit code " + std::to_string(WEXITSTATUS(status));
    }
    fail(name_ + " must succeed", printable(text, sizeof said));
  }

 private:
  struct Close {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };

  [[noreturn]] void fail(std::string const& rule, std::string const& got) const {
    throw std::runtime_error("tstitch::" + std::string(place_) + ": " + rule + ", got '" + got + "'");
  }

  /// @returns its status
  int end() {
    if (to_ >= 0) close(std::exchange(to_, -1));
    int status = 0;
    if (id_ < 0) return status;
    while (waitpid(id_, &status, 0) < 0 && errno == EINTR) {}
    id_ = -1;
    return status;
  }

  char const* place_;
  std::string name_;
  std::unique_ptr<std::FILE, Close> errors_ = {};
  int to_ = -1;
  pid_t id_ = -1;
  bool took_all_ = true;
};

}  // namespace detail

/// What write_mp4 would say of this computer, before the work whose result it is to take.
/// @throws std::runtime_error where there is no ffmpeg, or one that has no encoder of H.264
inline void require_ffmpeg() {
  // A frame of nothing into nowhere.
  detail::Child ffmpeg("write_mp4", {"ffmpeg", "-hide_banner", "-loglevel", "error", "-f", "lavfi", "-i",
                                     "color=size=64x64:duration=0.1", "-c:v", "libx264", "-f", "null", "-"});
  ffmpeg.finish();
}

/// Writes an MP4 file of H.264 (libx264, quality 17, 4:2:0, BT.709), which players and browsers show, by the program
/// ffmpeg. The whole file or none.
/// @param video of even width and height
/// @param frames_per_second in [1, 100]
/// @param text goes into the file's comment
/// @throws std::invalid_argument for others
/// @throws std::runtime_error where there is no ffmpeg, with what it says where it fails, and as write_file does
inline void write_mp4(std::string const& path, Video const& video, double frames_per_second, PngText const& text = {}) {
  constexpr auto place = "write_mp4";
  detail::require_frames(place, video);
  detail::require_rate(place, frames_per_second);
  Picture const& first = video.front();
  const std::string size = std::to_string(first.width) + "x" + std::to_string(first.height);
  if (first.width % 2 || first.height % 2) detail::refuse(place, "width and height must be even", size);
  const detail::Destination to(path);
  if (!to.is_replaced) detail::fail_to_write(path, detail::must_be_writable, "no file but a device or a pipe");
  std::string comment;
  for (auto const& [keyword, about] : text) comment += (comment.empty() ? "" : "\n") + keyword + ": " + about;
  std::string part;
  std::fclose(detail::open_part(path, to, part));
  try {
    detail::Child ffmpeg(
        place, {"ffmpeg", "-hide_banner", "-loglevel", "error", "-y",
                // what comes
                "-f", "rawvideo", "-pixel_format", first.channels == 1 ? "gray" : "rgb24", "-video_size", size,
                "-framerate", detail::text(frames_per_second), "-i", "pipe:0",
                // what it becomes
                "-c:v", "libx264", "-crf", "17", "-pix_fmt", "yuv420p", "-vf",
                "scale=out_color_matrix=bt709:out_range=tv,"
                "setparams=colorspace=bt709:color_primaries=bt709:color_trc=bt709",
                "-movflags", "+faststart", "-metadata", "comment=" + comment, "-f", "mp4", "file:" + part});
    for (Picture const& frame : video) {
      if (!ffmpeg.write(frame.pixels.data(), frame.pixels.size())) break;
    }
    ffmpeg.finish();
    const int written = open(part.c_str(), O_RDONLY | O_CLOEXEC);
    const bool synced = written >= 0 && fsync(written) == 0;
    const int error = errno;
    if (written >= 0) close(written);
    if (!synced) detail::fail_to_write(path, detail::must_fit, std::strerror(error));
  } catch (...) {
    std::remove(part.c_str());
    throw;
  }
  detail::place_part(path, to, part, /*wait=*/true);
}

}  // namespace tstitch
