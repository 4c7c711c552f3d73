// First: <signal.h>, which gtest includes, has a macro with the name of one of its fields.
// clang-format off
#include "image/image.pb.h"
// clang-format on

#include "memory/areas.h"

#include <gtest/gtest.h>

namespace godwit::memory {
namespace {

constexpr const char* sample =
    "00400000-00452000 r-xp 00001000 08:02 173521                             /usr/bin/a b\n"
    "00651000-00652000 r--p 00051000 08:02 173521                             /usr/bin/a b\n"
    "00e03000-00e24000 rw-p 00000000 00:00 0                                  [heap]\n"
    "7f0000000000-7f0000001000 ---p 00000000 00:00 0 \n"
    "7f0000002000-7f0000003000 rw-s 00000000 00:01 2049                       /dev/zero (deleted)\n"
    "7f0000003000-7f0000004000 rw-p 00000000 00:00 0                          [anon:x]\n"
    "7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0                          [stack]\n"
    "7ffc00100000-7ffc00104000 r--p 00000000 00:00 0                          [vvar]\n"
    "7ffc00104000-7ffc00106000 r-xp 00000000 00:00 0                          [vdso]\n"
    "ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]\n";

TEST(Areas, ArePrivateMappingsWithoutTheKernelsOwn) {
  Result<MapsView> maps = parse_maps(sample);
  ASSERT_TRUE(maps.ok()) << maps.error().what();
  EXPECT_EQ(maps->mappings, 10u);
  ASSERT_EQ(maps->content.size(), 6u);
  EXPECT_FALSE(maps->content[0].anonymous);
  EXPECT_EQ(maps->content[0].file_delta, 0x1000 - 0x400000ull);
  EXPECT_TRUE(maps->content[2].anonymous);
  EXPECT_EQ(maps->content[5].end, 0x7ffc00021000u);
  EXPECT_EQ(maps->ceiling[0], 0x651000u);
  EXPECT_EQ(maps->ceiling[3], 0x7f0000002000u);
  EXPECT_EQ(maps->ceiling[5], 0x7ffc00100000u);
}

TEST(Areas, GroupsEndAtOtherKindsAndOtherMappings) {
  Result<MapsView> maps = parse_maps(sample);
  ASSERT_TRUE(maps.ok());
  std::vector<AreaGroup> groups = group_areas(*maps);
  ASSERT_EQ(groups.size(), 3u);
  EXPECT_EQ(groups[0].end, 0x652000u);
  EXPECT_EQ(groups[1].start, 0xe03000u);
  EXPECT_EQ(groups[1].end, 0x7f0000001000u);
  EXPECT_EQ(groups[2].start, 0x7f0000003000u);
  EXPECT_EQ(groups[2].end, 0x7ffc00021000u);
}

// What a frozen process was described as stands for the text of its maps.
TEST(Areas, OfAnImageAreThoseOfTheText) {
  struct {
    std::uint64_t start, end, offset;
    image::Vma::Kind kind;
    bool shared;
  } const mappings[] = {{0x400000, 0x452000, 0x1000, image::Vma::FILE, false},
                        {0x651000, 0x652000, 0x51000, image::Vma::FILE, false},
                        {0xe03000, 0xe24000, 0, image::Vma::ANON, false},
                        {0x7f0000000000, 0x7f0000001000, 0, image::Vma::ANON, false},
                        {0x7f0000002000, 0x7f0000003000, 0, image::Vma::SHARED_ANON, true},
                        {0x7f0000003000, 0x7f0000004000, 0, image::Vma::ANON, false},
                        {0x7ffc00000000, 0x7ffc00021000, 0, image::Vma::ANON, false},
                        {0x7ffc00100000, 0x7ffc00104000, 0, image::Vma::VVAR, false},
                        {0x7ffc00104000, 0x7ffc00106000, 0, image::Vma::VDSO, false}};
  image::Mm mm;
  for (const auto& mapping : mappings) {
    image::Vma& vma = *mm.add_vmas();
    vma.set_start(mapping.start), vma.set_end(mapping.end);
    vma.set_pgoff_bytes(mapping.offset);
    vma.set_kind(mapping.kind);
    vma.set_shared(mapping.shared);
  }
  const MapsView text = parse_maps(sample).value();
  const MapsView image = maps_view(mm);
  ASSERT_EQ(image.content.size(), text.content.size());
  EXPECT_EQ(image.ceiling, text.ceiling);
  for (std::size_t i = 0; i < text.content.size(); ++i) {
    EXPECT_EQ(image.content[i].start, text.content[i].start) << i;
    EXPECT_EQ(image.content[i].end, text.content[i].end) << i;
    EXPECT_EQ(image.content[i].anonymous, text.content[i].anonymous) << i;
    EXPECT_EQ(image.content[i].file_delta, text.content[i].file_delta) << i;
  }
  EXPECT_EQ(group_areas(image).size(), group_areas(text).size());
}

TEST(Areas, NonsenseIsAnError) { EXPECT_FALSE(parse_maps("hello\n").ok()); }

TEST(Areas, OfAnImageLeaveSharedMemoryOut) {
  image::Mm mm;
  image::FileRef* ref = mm.add_mapped();
  ref->set_id(3);
  ref->set_path("/lib/x");
  image::Vma* anon = mm.add_vmas();
  anon->set_start(0x1000);
  anon->set_end(0x2000);
  image::Vma* file = mm.add_vmas();
  file->set_start(0x3000);
  file->set_end(0x4000);
  file->set_kind(image::Vma::FILE);
  file->set_file(3);
  file->set_pgoff_bytes(0x5000);
  image::Vma* shared = mm.add_vmas();
  *shared = *file;
  shared->set_shared(true);
  mm.add_vmas()->set_kind(image::Vma::VDSO);
  std::vector<Area> areas = content_areas(mm);
  ASSERT_EQ(areas.size(), 2u);
  EXPECT_TRUE(areas[0].anonymous);
  EXPECT_EQ(areas[1].file_delta, 0x2000u);
  EXPECT_NE(areas[1].file.find("/lib/x"), std::string::npos);
  EXPECT_FALSE(areas[0].same_content_as(areas[1]));
}

}  // namespace
}  // namespace godwit::memory
