/// @file
/// The folder of a data set: whose it is, and what it is to hold.
#pragma once

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <system_error>
#include <vector>

#include "sealed.hpp"

/// One run at a time has a folder: its workers share a lock, which the system takes back from who dies.
class Folder {
 public:
  explicit Folder(std::string path) : path_(std::move(path)) {}
  Folder(Folder const&) = delete;
  Folder& operator=(Folder const&) = delete;
  ~Folder() {
    if (lock_ >= 0) close(lock_);
  }

  std::string file(std::string const& name) const { return path_ + "/" + name; }
  std::string part(std::int64_t number, std::string const& ending) const {
    return file("parts/" + digits(number, 6) + ending);
  }
  std::string const& path() const { return path_; }

  static std::string digits(std::int64_t number, int width) {
    char text[32];
    std::snprintf(text, sizeof text, "%0*lld", width, static_cast<long long>(number));
    return text;
  }

  /// Of the first worker of a run: makes the folder what it is to be, or finds that it is.
  /// @param bytes that pictures take, as far as that is known
  /// @throws std::runtime_error for a folder that another run has, one of another data set, and too small a disk
  void begin(std::string const& run, Json const& description, std::uint64_t bytes) {
    std::error_code error;
    if (!is_there(file("data_set.json"))) require_empty();
    std::filesystem::create_directories(path_, error);
    if (error) fail("must be a folder that can be made, got '" + error.message() + "'");
    lock(LOCK_EX);
    if (ftruncate(lock_, 0) != 0 || pwrite(lock_, run.data(), run.size(), 0) != ssize_t(run.size())) {
      fail(std::string("must be on a disk with room, got '") + std::strerror(errno) + "'");
    }
    // Between the one kind of lock and the other there is none, and another run may come first.
    lock(LOCK_SH);
    require_run(run);
    remove_leftovers();
    if (!is_there(file("finished.json"))) std::filesystem::create_directory(file("parts"), error);
    if (error) fail("must be a folder that can be written to, got '" + error.message() + "'");
    if (is_there(file("data_set.json"))) {
      require_same(description);
    } else {
      if (bytes > 0) tstitch::require_writable(file("images.npz"), bytes);
      write_sealed(file("data_set.json"), description);
    }
    remember();
  }

  /// Of the others.
  void join(std::string const& run, Json const& description) {
    if (lock_ < 0) lock(LOCK_SH);
    require_run(run);
    require_same(description);
    remember();
  }

  /// Of the files that were being written where something died.
  void remove_leftovers() const {
    for (std::string const& each : entries(path_)) {
      if (is_leftover(each)) std::remove(file(each).c_str());
      if (each.find_first_not_of("0123456789") != std::string::npos) continue;  // else one of pictures
      for (std::string const& inside : entries(file(each))) {
        if (is_leftover(inside)) std::remove(file(each + "/" + inside).c_str());
      }
    }
  }

  /// Of what is assembled. Not std::filesystem::remove_all, of which torch brings one that calls nothing.
  void remove_parts() const {
    for (std::string const& each : entries(file("parts"))) std::remove(file("parts/" + each).c_str());
    if (std::remove(file("parts").c_str()) == 0) return;
    throw std::runtime_error("'" + file("parts") + "': must be removable, got '" + std::strerror(errno) + "'");
  }

  /// That it is still the folder that it was.
  /// @throws std::runtime_error
  void require_there() const {
    struct stat now = {};
    if (stat(path_.c_str(), &now) != 0) fail(std::string("must stay where it is, got '") + std::strerror(errno) + "'");
    if (now.st_ino != inode_ || now.st_dev != device_) fail("must stay where it is, got another folder in its place");
  }

 private:
  static std::vector<std::string> entries(std::string const& folder) {
    std::vector<std::string> names;
    std::error_code error;
    for (std::filesystem::directory_iterator each(folder, error), end; !error && each != end; each.increment(error)) {
      names.push_back(each->path().filename().string());
    }
    return names;
  }

  /// "images.npz.part", "manifest.jsonl.part3".
  static bool is_leftover(std::string const& name) {
    const std::string part = ".part";
    const std::size_t at = name.rfind(part);
    if (at == std::string::npos || name.find_first_not_of("0123456789", at + part.size()) != std::string::npos)
      return false;
    const std::string ending = std::filesystem::path(name.substr(0, at)).extension().string();
    return ending == ".npz" || ending == ".tar" || ending == ".png" || ending == ".json" || ending == ".jsonl";
  }

  [[noreturn]] void fail(std::string const& what) const { throw std::runtime_error("'" + path_ + "': " + what); }

  void lock(int kind) {
    if (lock_ < 0) lock_ = open(file(".lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (lock_ < 0) fail(std::string("must be a folder that can be written to, got '") + std::strerror(errno) + "'");
    if (flock(lock_, kind | LOCK_NB) == 0) return;
    fail(errno == EWOULDBLOCK ? "must be no other run's, got one that another run is drawing into"
                              : std::string("must be on a disk with locks, got '") + std::strerror(errno) + "'");
  }

  void require_run(std::string const& run) const {
    std::string found(run.size() + 1, '\0');
    const ssize_t size = pread(lock_, found.data(), found.size(), 0);
    found.resize(size > 0 ? std::size_t(size) : 0);
    if (found != run) fail("must be no other run's, got one that another run is drawing into");
  }

  void require_empty() const {
    for (std::string const& name : entries(path_)) {
      if (name == "parts" || name == ".lock" || is_leftover(name)) continue;
      fail("must be empty or have a data set that was begun, got one with '" + tstitch::words::printable(name, 60) +
           "'");
    }
  }

  void require_same(Json const& description) const {
    const std::string path = file("data_set.json");
    const Json there = read_sealed(path, "the description of a data set");
    const auto shown = [](Json const& of, std::string const& key) {
      return of.contains(key) ? tstitch::words::printable(text_of(of[key]), 100) : std::string("none");
    };
    std::vector<std::string> keys;
    for (auto const& [key, value] : description.items()) keys.push_back(key);
    for (auto const& [key, value] : there.items()) keys.push_back(key);
    for (std::string const& key : keys) {
      if (there.contains(key) && description.contains(key) && there[key] == description[key]) continue;
      throw std::runtime_error("'" + path + "': " + key + " must be what the data set was begun with, " +
                               shown(there, key) + ", got " + shown(description, key));
    }
  }

  void remember() {
    struct stat now = {};
    if (stat(path_.c_str(), &now) != 0) fail(std::string("must stay where it is, got '") + std::strerror(errno) + "'");
    inode_ = now.st_ino;
    device_ = now.st_dev;
  }

  std::string path_;
  int lock_ = -1;
  ino_t inode_ = 0;
  dev_t device_ = 0;
};
