// Files of the private /tmp and /dev/shm are made, written, renamed and removed while the program is
// moved, with and without a descriptor on them. Whenever it looks, all is as it left it.
#include <map>

#include "tracee.h"
using namespace tracee;

// What we believe that a directory holds; every step changes one thing and looks at one other.
class Directory {
 public:
  Directory(std::string path, uint64_t seed) : path_(std::move(path)), seed_(seed) {
    need(mkdir(path_.c_str(), 0700) == 0, "mkdir(%s)", path_.c_str());
  }
  Directory(const Directory&) = delete;
  ~Directory() {
    for (auto& [name, file] : files_) unlink(at(name).c_str());
    for (auto& [fd, file] : nameless_) close(fd);
    rmdir(path_.c_str());
  }

  void step() {
    ++step_;
    const uint64_t dice = mix(seed_ + step_);
    if (files_.size() < 5) return create();
    auto it = files_.begin();
    std::advance(it, dice % files_.size());
    switch (dice / 64 % 6) {
      case 0:
        return create();
      case 1:
        return rename(it->first);
      case 2:
        return files_.size() > 20 ? remove(it->first) : create();
      case 3:
        return append(it->second);
      case 4:
        return unlink_but_keep(it->first);
      default:
        return look(it->first, it->second);
    }
  }
  void look_at_all() {
    for (auto& [name, file] : files_) look(name, file);
    for (auto& [fd, file] : nameless_) compare("a file without a name", fd, file);
    size_t entries = 0;
    std::string list;
    int fd = open(path_.c_str(), O_RDONLY | O_DIRECTORY);
    alignas(8) char buffer[4096];
    for (long n; (n = syscall(SYS_getdents64, fd, buffer, sizeof buffer)) > 0;)
      for (long at = 0; at < n; at += *reinterpret_cast<uint16_t*>(buffer + at + 16))
        if (buffer[at + 19] != '.') ++entries, list += std::string(buffer + at + 19) + " ";
    close(fd);
    check(entries == files_.size(), "%s has %zu entries, expected %zu: %s", path_.c_str(), entries,
          files_.size(), list.c_str());
  }

 private:
  struct File {
    size_t bytes = 0;
    uint64_t seed = 0;
    int fd = -1;  // Open for appending, or -1.
  };
  std::string at(const std::string& name) const { return path_ + "/" + name; }
  std::string fresh_name() { return "f" + std::to_string(++made_); }

  void write_more(int fd, File& file) {
    char block[4096];
    for (size_t i = 0; i < sizeof block; ++i)
      block[i] = static_cast<char>(mix(file.seed + file.bytes + i));
    check(pwrite(fd, block, sizeof block, static_cast<off_t>(file.bytes)) == sizeof block,
          "write: errno %d", errno);
    file.bytes += sizeof block;
  }
  void create() {
    const std::string name = fresh_name();
    File file;
    file.seed = mix(seed_ * 7 + step_);
    int fd = open(at(name).c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (!check(fd >= 0, "create %s: errno %d", name.c_str(), errno)) return;
    write_more(fd, file);
    if (step_ % 2 == 0)
      file.fd = fd;
    else
      close(fd);
    files_[name] = file;
  }
  void rename(const std::string& name) {
    const std::string now = fresh_name();
    check(::rename(at(name).c_str(), at(now).c_str()) == 0, "rename %s: errno %d", name.c_str(),
          errno);
    files_[now] = files_[name];
    files_.erase(name);
  }
  void remove(const std::string& name) {
    check(unlink(at(name).c_str()) == 0, "unlink %s: errno %d", name.c_str(), errno);
    if (files_[name].fd >= 0) close(files_[name].fd);
    files_.erase(name);
  }
  void append(File& file) {
    if (file.fd >= 0) write_more(file.fd, file);
  }
  void unlink_but_keep(const std::string& name) {
    const File file = files_[name];
    if (file.fd < 0) return;
    check(unlink(at(name).c_str()) == 0, "unlink %s: errno %d", name.c_str(), errno);
    files_.erase(name);
    nameless_[file.fd] = file;
    if (nameless_.size() <= 4) return;
    compare("a file without a name", nameless_.begin()->first, nameless_.begin()->second);
    close(nameless_.begin()->first);
    nameless_.erase(nameless_.begin());
  }
  void look(const std::string& name, const File& file) {
    int fd = open(at(name).c_str(), O_RDONLY | O_CLOEXEC);
    if (!check(fd >= 0, "open %s: errno %d", at(name).c_str(), errno)) return;
    compare(name.c_str(), fd, file);
    struct stat named = {}, opened = {};
    if (file.fd >= 0)
      check(fstat(fd, &named) == 0 && fstat(file.fd, &opened) == 0 && named.st_ino == opened.st_ino,
            "%s and the descriptor on it are two files now", name.c_str());
    close(fd);
  }
  void compare(const char* what, int fd, const File& file) {
    struct stat st = {};
    check(fstat(fd, &st) == 0, "fstat: errno %d", errno);
    if (!check(static_cast<size_t>(st.st_size) == file.bytes, "%s has %lld bytes, expected %zu",
               what, static_cast<long long>(st.st_size), file.bytes))
      return;
    std::string data(file.bytes, 0);
    check(pread(fd, data.data(), file.bytes, 0) == static_cast<ssize_t>(file.bytes),
          "read of %s: errno %d", what, errno);
    for (size_t i = 0; i < file.bytes; ++i)
      if (!check(data[i] == static_cast<char>(mix(file.seed + i)), "%s differs at byte %zu", what, i))
        return;
  }

  std::string path_;
  uint64_t seed_, step_ = 0, made_ = 0;
  std::map<std::string, File> files_;
  std::map<int, File> nameless_;
};

int main() {
  Scratch scratch;
  Directory tmp(scratch.dir() + "/dir", 1),
      shm("/dev/shm/tracee-" + std::to_string(getpid()), 1'000'000);
  for (int i = 0; i < 100; ++i) tmp.step(), shm.step();
  ready();
  while (!moved() && failures == 0) {
    for (int i = 0; i < 4; ++i) tmp.step(), shm.step();
    usleep(2000);
  }
  wait_moved();
  for (int i = 0; i < 100; ++i) tmp.step(), shm.step();
  tmp.look_at_all();
  shm.look_at_all();
  return ok();
}
