#include <tstitch/base/write_file.hpp>

#include <dlfcn.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <vector>

#include "../skip.hpp"

using tstitch::require_writable;
using tstitch::write_file;

namespace {

std::vector<std::string> events;  ///< what the system was asked for, in order
int sync_error = 0;               ///< what fsync answers for files

std::string read(std::string const& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

std::string new_folder(std::string const& name) {
  const std::string path = TSTITCH_TEST_DATA "/write_file_test-" + std::to_string(getpid()) + "-" + name;
  std::filesystem::create_directories(path);
  return path;
}

std::ptrdiff_t files_in(std::string const& folder) {
  return std::distance(std::filesystem::directory_iterator(folder), {});
}

/// No file of this process may be longer while it lives.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) {
    getrlimit(RLIMIT_FSIZE, &before_);
    rlimit limit = before_;
    limit.rlim_cur = bytes;
    setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() { setrlimit(RLIMIT_FSIZE, &before_); }

 private:
  rlimit before_ = {};
};

}  // namespace

// In place of the C library's.
extern "C" int fsync(int file) {
  struct stat it = {};
  fstat(file, &it);
  events.push_back(S_ISDIR(it.st_mode) ? "sync folder" : "sync " + std::to_string(it.st_size) + " bytes");
  errno = sync_error;
  return sync_error && !S_ISDIR(it.st_mode) ? -1 : 0;
}

extern "C" int syncfs(int) noexcept {
  errno = sync_error;
  return sync_error ? -1 : 0;
}

extern "C" int rename(char const* from, char const* to) noexcept {
  events.push_back("rename");
  return reinterpret_cast<int (*)(char const*, char const*)>(dlsym(RTLD_NEXT, "rename"))(from, to);
}

TEST_CASE("a file is on the disk before it has its name, and then the name is") {
  const std::string folder = new_folder("sync");
  events.clear();
  write_file(folder + "/a", std::string(10000, 'a'));
  CHECK(events == std::vector<std::string>{"sync 10000 bytes", "rename", "sync folder"});
  write_file(folder + "/a", "");
  CHECK(read(folder + "/a").empty());
  // What is no file has nothing to wait for.
  events.clear();
  write_file("/dev/null", "text");
  CHECK(events.empty());
  // Of many files each need not wait.
  write_file(folder + "/a", "b", tstitch::Sync::later);
  CHECK(read(folder + "/a") == "b");
  CHECK(events == std::vector<std::string>{"rename"});
  CHECK_NOTHROW(tstitch::sync_disk(folder));
  CHECK_THAT(message_of<std::runtime_error>([&] { tstitch::sync_disk(folder + "/nowhere"); }),
             ContainsSubstring("/nowhere': must be a folder, got 'No such file or directory'"));
  // A disk that only notices then that it failed.
  write_file(folder + "/a", "old");
  sync_error = EIO;
  CHECK_THAT(message_of<std::runtime_error>([&] { write_file(folder + "/a", "new"); }),
             ContainsSubstring("/a': must fit on the disk, got 'Input/output error'"));
  CHECK(message_of<std::runtime_error>([&] { tstitch::sync_disk(folder); }) ==
        "tstitch::write_file: '" + folder +
            "': must be on a disk that keeps what is written, got 'Input/output error'");
  sync_error = 0;
  CHECK(read(folder + "/a") == "old");
  CHECK(files_in(folder) == 1);
}

TEST_CASE("a link that leads nowhere is not taken for the file") {
  const std::string folder = new_folder("loop");
  std::filesystem::create_symlink("b", folder + "/a");
  std::filesystem::create_symlink("a", folder + "/b");
  std::ofstream(folder + "/file") << "mine";
  for (auto const& action :
       {std::function<void(std::string const&)>([](auto const& path) { write_file(path, "x"); }),
        std::function<void(std::string const&)>([](auto const& path) { require_writable(path); })}) {
    const auto message = [&](std::string const& name) {
      return message_of<std::runtime_error>([&] { action(folder + name); });
    };
    CHECK_THAT(message("/a"), ContainsSubstring("/a': must be a file that can be written, got 'Too many levels of"));
    CHECK_THAT(message("/file/a"), ContainsSubstring("must be a file that can be written, got 'Not a directory'"));
    CHECK_THAT(message("/" + std::string(300, 'n')), ContainsSubstring("got 'File name too long'"));
    CHECK_THAT(message("/nowhere/\x1B[2J"), ContainsSubstring("/nowhere/\\x1b[2J': must be"));
  }
  CHECK(std::filesystem::is_symlink(folder + "/a"));
  CHECK(read(folder + "/file") == "mine");
  CHECK(files_in(folder) == 3);
}

TEST_CASE("a link to what is not there yet may say where from the root on") {
  const std::string folder = new_folder("absolute");
  std::filesystem::create_symlink(std::filesystem::absolute(folder + "/new"), folder + "/link");
  write_file(folder + "/link", "x");
  CHECK(std::filesystem::is_symlink(folder + "/link"));
  CHECK(read(folder + "/new") == "x");
}

TEST_CASE("a pipe that may not be written to is known before the work") {
  const std::string pipe = new_folder("pipe") + "/pipe";
  REQUIRE(mkfifo(pipe.c_str(), 0) == 0);
  const uid_t before = getuid();
  const bool root = before == 0;  // who may all; whether one may is asked for the real user
  if (root) REQUIRE(setreuid(65534, uid_t(-1)) == 0);
  const std::string message = message_of<std::runtime_error>([&] { require_writable(pipe); });
  if (root) REQUIRE(setreuid(before, uid_t(-1)) == 0);
  CHECK_THAT(message, ContainsSubstring("/pipe': must be a file that can be written, got 'Permission denied'"));
}

TEST_CASE("the system's link protection is not walked around") {
  std::string protection = read("/proc/sys/fs/protected_symlinks");
  if (geteuid() != 0 || protection.substr(0, 1) != "1") {
    return skip("needs root, and a system that protects links");
  }
  const std::string folder = new_folder("sticky");
  std::ofstream(folder + "-target") << "mine";
  std::filesystem::create_symlink(folder + "-target", folder + "/link");
  std::filesystem::create_symlink(folder + "-new", folder + "/dangling");
  for (char const* name : {"/link", "/dangling"}) REQUIRE(lchown((folder + name).c_str(), 65534, 65534) == 0);
  REQUIRE(chown(folder.c_str(), 65533, 65533) == 0);
  REQUIRE(chmod(folder.c_str(), 01777) == 0);
  for (char const* name : {"/link", "/dangling"}) {
    CHECK_THAT(message_of<std::runtime_error>([&] { write_file(folder + name, "x"); }),
               ContainsSubstring("must be a file that can be written, got 'Permission denied'"));
  }
  CHECK(read(folder + "-target") == "mine");
  CHECK_FALSE(std::filesystem::exists(folder + "-new"));
}

TEST_CASE("a limit on file sizes is a full disk, not the end of the program") {
  const std::string folder = new_folder("limit");
  std::signal(SIGXFSZ, SIG_DFL);
  {
    const FileSizeLimit limit(100);
    CHECK_THAT(message_of<std::runtime_error>([&] { write_file(folder + "/a", std::string(5000, 'a')); }),
               ContainsSubstring("/a': must fit on the disk, got 'File too large'"));
    CHECK_NOTHROW(write_file(folder + "/b", std::string(100, 'b')));
    // It is known before the work.
    CHECK_NOTHROW(require_writable(folder + "/a", 100));
    CHECK_THAT(message_of<std::runtime_error>([&] { require_writable(folder + "/a", 101); }),
               ContainsSubstring("/a': must fit on the disk, got '101 bytes, with room for 100'"));
    CHECK_NOTHROW(require_writable("/dev/null", 101));
  }
  CHECK(files_in(folder) == 1);
  // The signal is as it was for others.
  sigset_t now;
  sigemptyset(&now);
  pthread_sigmask(SIG_BLOCK, nullptr, &now);
  CHECK(sigismember(&now, SIGXFSZ) == 0);
  sigpending(&now);
  CHECK(sigismember(&now, SIGXFSZ) == 0);
}

TEST_CASE("a small disk is known before the work, and leaves no partial file") {
  const std::string folder = new_folder("small");
  if (mount("tmpfs", folder.c_str(), "tmpfs", 0, "size=64k") != 0) {
    return skip(std::string("a disk of 64 KiB cannot be mounted here: ") + std::strerror(errno));
  }
  const auto message = [&](auto action) { return message_of<std::runtime_error>(action); };
  CHECK_THAT(message([&] { write_file(folder + "/a", std::string(70000, 'a')); }),
             ContainsSubstring("must fit on the disk, got 'No space left on device'"));
  CHECK(files_in(folder) == 0);
  CHECK(message([&] { require_writable(folder + "/a", 65536); }) == "nothing was thrown");
  CHECK_THAT(message([&] { require_writable(folder + "/a", 65537); }),
             ContainsSubstring("/a': must fit on the disk, got '65537 bytes, with room for 65536'"));
  CHECK_THAT(message([&] { require_writable(folder + "/a", std::uint64_t(-1)); }), ContainsSubstring("with room for"));
  write_file(folder + "/a", std::string(60000, 'a'));
  CHECK_THAT(message([&] { write_file(folder + "/a", std::string(60001, 'b')); }), ContainsSubstring("must fit"));
  CHECK(read(folder + "/a") == std::string(60000, 'a'));
  umount(folder.c_str());
}
