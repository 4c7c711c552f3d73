#include "migrate/file_identity.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>

namespace godwit::migrate {
namespace {

// Two roots stand for the two nodes' file systems.
class FileIdentityTest : public testing::Test {
 protected:
  FileIdentityTest() {
    char name[] = "/tmp/godwit-identity-XXXXXX";
    dir_ = ::mkdtemp(name);
    for (std::string root : {source_root(), target_root()})
      for (std::string sub : {"/usr", "/shared"}) std::filesystem::create_directories(root + sub);
  }
  ~FileIdentityTest() override { std::filesystem::remove_all(dir_); }

  std::string source_root() const { return dir_ + "/n1"; }
  std::string target_root() const { return dir_ + "/n2"; }
  void put(const std::string& path, const std::string& content) {
    std::ofstream(path, std::ios::trunc) << content;
  }

  static image::Capsule with_file(const std::string& path, bool written) {
    image::Capsule capsule;
    image::OpenFile* file = capsule.add_files();
    file->mutable_ref()->set_path(path);
    file->mutable_ref()->set_written(written);
    return capsule;
  }

  struct Verdict {
    std::vector<std::string> source, target;
  };
  Verdict judge(image::Capsule capsule) {
    Verdict v;
    FileIdentity here(source_root(), {"/shared"});
    EXPECT_TRUE(here.identify(capsule, v.source).ok());
    FileIdentity there(target_root(), {"/shared"});
    EXPECT_TRUE(there.compare(capsule, v.target).ok());
    return v;
  }

  std::string dir_;
};

TEST_F(FileIdentityTest, SameContentIsTheSameFile) {
  put(source_root() + "/usr/lib.so", "content");
  put(target_root() + "/usr/lib.so", "content");
  Verdict v = judge(with_file("/usr/lib.so", false));
  EXPECT_TRUE(v.source.empty());
  EXPECT_TRUE(v.target.empty());
}

TEST_F(FileIdentityTest, OtherContentOfTheSameSizeIsRefused) {
  put(source_root() + "/usr/lib.so", "content");
  put(target_root() + "/usr/lib.so", "c0ntent");
  Verdict v = judge(with_file("/usr/lib.so", false));
  ASSERT_EQ(v.target.size(), 1u);
  EXPECT_EQ(v.target[0], "/usr/lib.so has other content on the target");
}

TEST_F(FileIdentityTest, OtherSizeIsRefused) {
  put(source_root() + "/usr/lib.so", "content");
  put(target_root() + "/usr/lib.so", "contents");
  EXPECT_EQ(judge(with_file("/usr/lib.so", false)).target.size(), 1u);
}

TEST_F(FileIdentityTest, MissingFileIsRefused) {
  put(source_root() + "/usr/blastn", "binary");
  Verdict v = judge(with_file("/usr/blastn", false));
  ASSERT_EQ(v.target.size(), 1u);
  EXPECT_EQ(v.target[0], "/usr/blastn does not exist on the target");
}

TEST_F(FileIdentityTest, WritableFileOutsideSharedDirectoriesIsRefusedOnTheSource) {
  put(source_root() + "/usr/out", "x");
  put(target_root() + "/usr/out", "x");
  Verdict v = judge(with_file("/usr/out", true));
  ASSERT_EQ(v.source.size(), 1u);
  EXPECT_NE(v.source[0].find("open for writing"), std::string::npos);
}

TEST_F(FileIdentityTest, WritableFileBelowASharedDirectoryMoves) {
  put(source_root() + "/shared/out", "x");
  put(target_root() + "/shared/out", "x");
  Verdict v = judge(with_file("/shared/out", true));
  EXPECT_TRUE(v.source.empty());
  EXPECT_TRUE(v.target.empty());
}

TEST_F(FileIdentityTest, ASharedDirectorysNameIsNotAPrefixOfOthers) {
  FileIdentity identity("/", {"/shared"});
  EXPECT_TRUE(identity.shared("/shared"));
  EXPECT_TRUE(identity.shared("/shared/a"));
  EXPECT_FALSE(identity.shared("/shared2/a"));
}

TEST_F(FileIdentityTest, HashesAreKeptForLaterWorkersUnlessTheFileIsFresh) {
  const std::string kept = dir_ + "/hashes", old_file = "/usr/bin/env";  // Of some package.
  auto hash_of = [&](const std::string& root, const std::string& path) {
    image::Capsule capsule = with_file(path, false);
    std::vector<std::string> reasons;
    FileIdentity identity(root, {}, kept);
    EXPECT_TRUE(identity.identify(capsule, reasons).ok());
    return capsule.files(0).ref().content_hash();
  };
  auto count = [&] {
    return std::distance(std::filesystem::directory_iterator(kept),
                         std::filesystem::directory_iterator());
  };
  const std::uint64_t hash = hash_of("", old_file);
  EXPECT_EQ(count(), 1);
  EXPECT_EQ(hash_of("", old_file), hash);
  put(source_root() + "/usr/lib.so", "content");
  const std::uint64_t fresh = hash_of(source_root(), "/usr/lib.so");
  EXPECT_EQ(count(), 1);
  put(source_root() + "/usr/lib.so", "CONTENT");
  EXPECT_NE(hash_of(source_root(), "/usr/lib.so"), fresh);
  // It is what was kept that is believed.
  for (const auto& entry : std::filesystem::directory_iterator(kept)) put(entry.path(), "8 bytes.");
  EXPECT_NE(hash_of("", old_file), hash);
}

}  // namespace
}  // namespace godwit::migrate
