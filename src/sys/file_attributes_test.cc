#include "sys/file_attributes.h"

#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <cerrno>
#include <map>

namespace godwit::sys {
namespace {

class FileAttributes : public ::testing::Test {
 protected:
  void SetUp() override {
    const int fd = ::mkstemp(path_.data());
    ASSERT_GE(fd, 0);
    ::close(fd);
  }
  void TearDown() override { ::unlink(path_.c_str()); }
  bool set(const char* name, const std::string& value) {
    return ::setxattr(path_.c_str(), name, value.data(), value.size(), 0) == 0;
  }
  std::string path_ = "/var/tmp/godwit-file-attributes-XXXXXX";
};

TEST_F(FileAttributes, AreReadWithTheirValues) {
  if (!set("user.first", "one") && errno == EOPNOTSUPP)
    GTEST_SKIP() << "this file system has no extended attributes of users";
  ASSERT_TRUE(set("user.empty", ""));
  ASSERT_TRUE(set("user.long", std::string(1000, 'v')));
  Result<std::vector<Xattr>> read = read_xattrs(path_);
  ASSERT_TRUE(read.ok()) << read.error().what();
  std::map<std::string, std::string> values;
  for (const Xattr& attribute : *read) values[attribute.name] = attribute.value;
  EXPECT_EQ(values,
            (std::map<std::string, std::string>{
                {"user.first", "one"}, {"user.empty", ""}, {"user.long", std::string(1000, 'v')}}));
}

TEST_F(FileAttributes, OverlayfsOwnNotesStayBehind) {
  if (!set("trusted.overlay.origin", "x")) GTEST_SKIP() << "trusted attributes need privilege";
  ASSERT_TRUE(set("trusted.mine", "y"));
  Result<std::vector<Xattr>> read = read_xattrs(path_);
  ASSERT_TRUE(read.ok()) << read.error().what();
  ASSERT_EQ(read->size(), 1u);
  EXPECT_EQ(read->front().name, "trusted.mine");
}

TEST_F(FileAttributes, AMissingFileIsAnError) {
  ASSERT_EQ(::unlink(path_.c_str()), 0);
  EXPECT_EQ(read_xattrs(path_).error().sys_errno(), ENOENT);
}

}  // namespace
}  // namespace godwit::sys
