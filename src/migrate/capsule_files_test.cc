#include "migrate/capsule_files.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "base/io.h"

namespace godwit::migrate {
namespace {

class CapsuleFilesTest : public testing::Test {
 protected:
  CapsuleFilesTest() {
    char name[] = "/tmp/godwit-files-XXXXXX";
    root_ = ::mkdtemp(name);
    std::filesystem::create_directories(root_ + "/tmp");
    std::filesystem::create_directories(root_ + "/dev/shm");
  }
  ~CapsuleFilesTest() override { std::filesystem::remove_all(root_); }
  void put(const std::string& path, const std::string& content) {
    std::ofstream(root_ + path, std::ios::trunc) << content;
  }
  static const image::PrivateFile* find(const image::Capsule& image, const std::string& path) {
    for (const image::PrivateFile& file : image.private_files())
      if (file.path() == path) return &file;
    return nullptr;
  }
  std::string root_;
};

TEST_F(CapsuleFilesTest, FindsFilesDirectoriesAndLinks) {
  put("/tmp/a", "content");
  std::filesystem::create_directory(root_ + "/tmp/sub");
  put("/tmp/sub/b", "");
  put("/dev/shm/c", "x");
  ASSERT_EQ(::symlink("/etc/passwd", (root_ + "/tmp/link").c_str()), 0);
  CapsuleFiles files(root_);
  image::Capsule image;
  ASSERT_TRUE(files.collect(image, {}).ok());
  EXPECT_EQ(image.private_files_size(), 5);
  ASSERT_NE(find(image, "/tmp/a"), nullptr);
  EXPECT_EQ(find(image, "/tmp/a")->space(), file_space_bit | find(image, "/tmp/a")->id());
  EXPECT_EQ(find(image, "/tmp/sub/b")->space(), 0u);  // Empty: no content to send.
  EXPECT_EQ(find(image, "/tmp/link")->symlink_target(), "/etc/passwd");
  EXPECT_TRUE(S_ISDIR(find(image, "/tmp/sub")->mode()));
  UniqueFd fd = files.open(find(image, "/tmp/a")->id()).value();
  char got[8] = {};
  EXPECT_EQ(::read(fd.get(), got, sizeof got), 7);
  EXPECT_STREQ(got, "content");
}

TEST_F(CapsuleFilesTest, NeverFollowsALinkOutOfTheCapsule) {
  ASSERT_EQ(::symlink("/", (root_ + "/tmp/out").c_str()), 0);
  CapsuleFiles files(root_);
  image::Capsule image;
  ASSERT_TRUE(files.collect(image, {}).ok());
  EXPECT_EQ(image.private_files_size(), 1);
}

TEST_F(CapsuleFilesTest, AnObjectKeepsItsIdWhenRenamed) {
  put("/tmp/a", "content");
  CapsuleFiles files(root_);
  image::Capsule before, after;
  ASSERT_TRUE(files.collect(before, {}).ok());
  std::filesystem::rename(root_ + "/tmp/a", root_ + "/tmp/z");
  ASSERT_TRUE(files.collect(after, {}).ok());
  ASSERT_NE(find(after, "/tmp/z"), nullptr);
  EXPECT_EQ(find(after, "/tmp/z")->id(), find(before, "/tmp/a")->id());
}

// The target has it without a name and can't give it one: there it begins anew.
TEST_F(CapsuleFilesTest, ANamelessFileThatGetsANameIsAnotherObject) {
  UniqueFd fd(::open((root_ + "/tmp").c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
  if (!fd) GTEST_SKIP() << "O_TMPFILE: errno " << errno;
  ASSERT_EQ(::write(fd.get(), "content", 7), 7);
  constexpr std::uint32_t captured_id = 7;
  auto captured = [&] {
    image::Capsule image;
    image::PrivateFile& file = *image.add_private_files();
    file.set_id(captured_id), file.set_kind(image::PrivateFile::UNLINKED);
    file.set_path("/tmp/#1");
    image::OpenFile& open = *image.add_files();
    open.set_id(1);
    open.mutable_ref()->set_where(image::FileRef::PRIVATE);
    open.mutable_ref()->set_private_file(captured_id);
    image::Process& process = *image.add_processes();
    process.set_pid(1);
    image::Fd& held = *process.add_fds();
    held.set_fd(fd.get()), held.set_file(1);
    return image;
  };
  const PidMap pids{{1, ::getpid()}};
  CapsuleFiles files(root_);
  image::Capsule before = captured(), still = captured(), after = captured();
  ASSERT_TRUE(files.collect(before, pids).ok());
  ASSERT_TRUE(files.collect(still, pids).ok());
  ASSERT_EQ(before.private_files_size(), 1);
  EXPECT_EQ(still.private_files(0).id(), before.private_files(0).id());
  const std::string way = "/proc/self/fd/" + std::to_string(fd.get());
  ASSERT_EQ(
      ::linkat(AT_FDCWD, way.c_str(), AT_FDCWD, (root_ + "/tmp/named").c_str(), AT_SYMLINK_FOLLOW),
      0);
  ASSERT_TRUE(files.collect(after, pids).ok());
  ASSERT_EQ(after.private_files_size(), 1);
  const image::PrivateFile& file = after.private_files(0);
  EXPECT_EQ(file.kind(), image::PrivateFile::PATH);
  EXPECT_NE(file.id(), before.private_files(0).id());
  EXPECT_EQ(file.space(), file_space_bit | file.id());
  EXPECT_EQ(after.files(0).ref().private_file(), file.id());
  char got[8] = {};
  EXPECT_EQ(::read(files.open(file.id()).value().get(), got, sizeof got), 7);
  EXPECT_STREQ(got, "content");
}

TEST_F(CapsuleFilesTest, HardLinksShareTheirContent) {
  put("/tmp/a", "content");
  std::filesystem::create_hard_link(root_ + "/tmp/a", root_ + "/tmp/b");
  CapsuleFiles files(root_);
  image::Capsule image;
  ASSERT_TRUE(files.collect(image, {}).ok());
  const image::PrivateFile *a = find(image, "/tmp/a"), *b = find(image, "/tmp/b");
  ASSERT_TRUE(a != nullptr && b != nullptr);
  EXPECT_NE(a->id(), b->id());
  EXPECT_TRUE((a->nlink_of() == b->id() && b->nlink_of() == 0) ||
              (b->nlink_of() == a->id() && a->nlink_of() == 0));
}

TEST_F(CapsuleFilesTest, OnlySettledFilesCountAsUnchanged) {
  put("/tmp/old", "content");
  put("/tmp/fresh", "content");
  timespec long_ago[2] = {{1'000'000'000, 0}, {1'000'000'000, 0}};
  CapsuleFiles files(root_);
  ASSERT_EQ(::utimensat(AT_FDCWD, (root_ + "/tmp/old").c_str(), long_ago, 0), 0);
  image::Capsule first, second;
  ASSERT_TRUE(files.collect(first, {}).ok());
  // ctime can't be set back, so both are fresh here: neither may count as unchanged.
  std::map<std::uint32_t, bool> unchanged = files.collect(second, {}).value();
  EXPECT_TRUE(unchanged.empty());
}

}  // namespace
}  // namespace godwit::migrate
