#include "restore/private_files.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>

#include "base/io.h"

namespace godwit::restore {
namespace {

namespace fs = std::filesystem;

class PrivateFilesTest : public testing::Test {
 protected:
  void SetUp() override {
    root_ = fs::temp_directory_path() / ("godwit-private-files-" + random_hex(8));
    fs::create_directories(root_ / "tmp");
    fs::create_directories(root_ / "dev/shm");
    root_fd_ = std::move(open_fd(root_, O_PATH | O_DIRECTORY)).value();
    files_ = std::make_unique<PrivateFiles>(root_fd_.get());
  }
  void TearDown() override { fs::remove_all(root_); }

  image::PrivateFile& add(std::uint32_t id, const std::string& path,
                          std::uint32_t mode = S_IFREG | 0640) {
    image::PrivateFile& f = *image_.add_private_files();
    f.set_id(id), f.set_path(path), f.set_mode(mode);
    f.set_uid(getuid()), f.set_gid(getgid());
    f.set_mtime_ns(1'600'000'000'123'456'789), f.set_atime_ns(1'600'000'000'000'000'000);
    return f;
  }
  void fill(std::uint32_t id, const std::string& text) {
    auto fd = files_->content_fd(id);
    ASSERT_TRUE(fd.ok()) << fd.error().what();
    ASSERT_EQ(pwrite(*fd, text.data(), text.size(), 0), static_cast<ssize_t>(text.size()));
  }
  std::string text(const char* path) {
    return read_file(root_ / path).ok() ? read_file(root_ / path).value() : "?";
  }
  std::vector<std::string> names() {
    std::vector<std::string> all;
    for (const auto& e : fs::recursive_directory_iterator(root_ / "tmp"))
      all.push_back(e.path().lexically_relative(root_));
    std::sort(all.begin(), all.end());
    return all;
  }

  fs::path root_;
  UniqueFd root_fd_;
  std::unique_ptr<PrivateFiles> files_;
  image::Capsule image_;
};

#define EXPECT_OK(call)                                  \
  do {                                                   \
    auto result_ = (call);                               \
    EXPECT_TRUE(result_.ok()) << result_.error().what(); \
  } while (false)

TEST_F(PrivateFilesTest, EveryKindIsMadeWithOwnerModeTimesAndContent) {
  add(1, "/tmp/d/file").set_size(5);
  add(2, "/tmp/d", S_IFDIR | 0750);
  add(3, "/tmp/link", S_IFLNK | 0777).set_symlink_target("d/file");
  add(4, "/tmp/fifo", S_IFIFO | 0600);
  add(5, "/tmp/hard").set_nlink_of(1);
  add(6, "/tmp/gone").set_kind(image::PrivateFile::UNLINKED);
  EXPECT_OK(files_->sync(image_));
  fill(1, "hello, and what is cut off");
  EXPECT_OK(files_->finish(image_));
  EXPECT_EQ(text("tmp/d/file"), "hello");
  EXPECT_EQ(text("tmp/hard"), "hello");
  EXPECT_EQ(fs::read_symlink(root_ / "tmp/link"), "d/file");
  struct stat st {};
  ASSERT_EQ(stat((root_ / "tmp/d/file").c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 07777, 0640u);
  EXPECT_EQ(st.st_nlink, 2u);
  EXPECT_EQ(st.st_mtim.tv_nsec, 123'456'789);
  ASSERT_EQ(stat((root_ / "tmp/d").c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 07777, 0750u);
  EXPECT_EQ(st.st_mtim.tv_sec, 1'600'000'000);
  EXPECT_EQ(names(),
            (std::vector<std::string>{"tmp/d", "tmp/d/file", "tmp/fifo", "tmp/hard", "tmp/link"}));
}

TEST_F(PrivateFilesTest, ExchangedNamesRenamedDirectoriesAndUnlinkedFilesKeepTheirContent) {
  add(1, "/tmp/a").set_size(1), add(2, "/tmp/b").set_size(1);
  add(3, "/tmp/d", S_IFDIR | 0700), add(4, "/tmp/d/x").set_size(1);
  add(5, "/tmp/u").set_size(1), add(6, "/tmp/removed").set_size(0);
  EXPECT_OK(files_->sync(image_));
  for (auto [id, content] : {std::pair{1, "1"}, {2, "2"}, {4, "4"}, {5, "5"}})
    fill(static_cast<std::uint32_t>(id), content);
  image_.Clear();
  add(1, "/tmp/b").set_size(1), add(2, "/tmp/a").set_size(1);
  add(3, "/tmp/e", S_IFDIR | 0700), add(4, "/tmp/e/x").set_size(1);
  image::PrivateFile& unlinked = add(5, "/tmp/u");
  unlinked.set_size(1), unlinked.set_kind(image::PrivateFile::UNLINKED);
  add(7, "/tmp/u", S_IFDIR | 0700);  // Another thing under the old name.
  EXPECT_OK(files_->finish(image_));
  EXPECT_EQ(text("tmp/a") + text("tmp/b") + text("tmp/e/x"), "214");
  char byte = 0;
  EXPECT_EQ(pread(files_->content_fd(5).value(), &byte, 1, 0), 1);
  EXPECT_EQ(byte, '5');
  EXPECT_EQ(names(), (std::vector<std::string>{"tmp/a", "tmp/b", "tmp/e", "tmp/e/x", "tmp/u"}));
}

TEST_F(PrivateFilesTest, NoSymbolicLinkLeadsOutOfTheNamedPlace) {
  fs::create_directory(root_ / "elsewhere");
  fs::create_symlink("../elsewhere", root_ / "tmp/trap");
  add(1, "/tmp/trap/file");
  EXPECT_FALSE(files_->sync(image_).ok());
  EXPECT_TRUE(fs::is_empty(root_ / "elsewhere"));
}

}  // namespace
}  // namespace godwit::restore
