#include "sys/cpuid.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <set>
#include <sstream>

namespace godwit::sys {
namespace {

bool has(const std::vector<std::string>& names, const std::string& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

TEST(Cpuid, ThisMachineLacksNothingThatItHas) {
  std::string mine = cpu_features();
  Result<std::vector<std::string>> missing = missing_features(mine, mine);
  ASSERT_TRUE(missing.ok());
  EXPECT_TRUE(missing->empty());
  Result<std::vector<std::string>> names = feature_names(mine);
  ASSERT_TRUE(names.ok());
  EXPECT_TRUE(has(*names, "sse2"));
  EXPECT_TRUE(has(*names, "lm"));
}

// /proc/cpuinfo names what the kernel found by the same bits.
TEST(Cpuid, AgreesWithTheKernelOnVectorExtensions) {
  std::ifstream file("/proc/cpuinfo");
  std::string line;
  while (std::getline(file, line) && line.rfind("flags", 0) != 0) {
  }
  std::istringstream stream(line.substr(line.find(':') + 1));
  std::set<std::string> flags{std::istream_iterator<std::string>(stream), {}};
  ASSERT_FALSE(flags.empty());
  std::vector<std::string> names = *feature_names(cpu_features());
  for (const char* name :
       {"avx", "avx2", "avx512f", "avx512bw", "bmi1", "bmi2", "fma", "aes", "popcnt", "amx_tile",
        "avx_vnni", "fsrm", "erms", "rdrand", "xsavec", "movbe"})
    EXPECT_EQ(has(names, name), flags.count(name) == 1) << name;
}

TEST(Cpuid, NamesWhatATargetLacks) {
  std::string source = cpu_features();
  std::string target = source;
  // Clear SSE2 (leaf 1, edx, bit 26) in the record of leaf 1.
  for (std::size_t at = 2; at < target.size(); at += 24) {
    std::uint32_t leaf = 0;
    std::memcpy(&leaf, &target[at], 4);
    if (leaf == 1) target[at + 20 + 3] = static_cast<char>(target[at + 20 + 3] & ~(1 << 2));
  }
  Result<std::vector<std::string>> missing = missing_features(source, target);
  ASSERT_TRUE(missing.ok());
  EXPECT_EQ(*missing, std::vector<std::string>{"sse2"});
  EXPECT_TRUE(missing_features(target, source)->empty()) << "more on the target is fine";
}

TEST(Cpuid, ALeafThatTheTargetDoesNotHaveAtAllIsMissing) {
  std::string source = cpu_features();
  std::string target = source.substr(0, 2);
  target[1] = 0;
  Result<std::vector<std::string>> missing = missing_features(source, target);
  ASSERT_TRUE(missing.ok());
  EXPECT_EQ(*missing, *feature_names(source));
}

TEST(Cpuid, AHiddenFeatureIsOneThatATargetLacks) {
  const std::string source = cpu_features();
  Result<std::string> target = without_features(source, {"sse2", "sse3"});
  ASSERT_TRUE(target.ok()) << target.error().what();
  EXPECT_EQ(*missing_features(source, *target), (std::vector<std::string>{"sse3", "sse2"}));
  EXPECT_EQ(*without_features(source, {}), source);
  EXPECT_FALSE(without_features(source, {"sse9"}).ok());
}

// Intel has PKRU at 2688, AMD at 832 or 2432: signal frames of one make no sense to the other.
TEST(Cpuid, APartOfTheXsaveAreaAtAnotherPlaceIsMissing) {
  const std::string source = cpu_features();
  std::string target = source;
  bool moved = false;
  for (std::size_t at = 2; at < target.size(); at += 24) {
    std::uint32_t where[2] = {};
    std::memcpy(where, &target[at], sizeof where);
    if (where[0] != 0xd || where[1] != 2) continue;
    std::uint32_t offset = 0;
    std::memcpy(&offset, &target[at + 12], 4);
    EXPECT_EQ(offset, 576u) << "AVX follows FXSAVE and the header";
    target[at + 12] ^= 0x40;
    moved = true;
  }
  if (!moved) GTEST_SKIP() << "a processor without AVX";
  Result<std::vector<std::string>> missing = missing_features(source, target);
  ASSERT_TRUE(missing.ok());
  ASSERT_EQ(missing->size(), 1u);
  EXPECT_TRUE(missing->front().starts_with("xstate:avx of 256 bytes at 576")) << missing->front();
}

struct Parts {
  std::string features;      // Of this processor, without AVX.
  std::uint32_t offset = 0;  // Of AVX in the XSAVE area; 0: this processor has none.
};

Parts without_avx() {
  Parts parts{cpu_features(), 0};
  for (std::size_t at = 2; at < parts.features.size(); at += 24) {
    std::uint32_t record[6] = {};
    std::memcpy(record, &parts.features[at], sizeof record);
    if (record[0] == 0xd && record[1] == 2) parts.offset = record[3];
    if (record[0] == 0xffffffff) parts.features[at + 8] &= ~4;
  }
  return parts;
}

TEST(Cpuid, RegistersThatATargetLacksGoThereUnlessTheyAreInUse) {
  const Parts target = without_avx();
  if (target.offset == 0) GTEST_SKIP() << "a processor without AVX";
  std::string xstate(xsave_bytes(), '\0');
  xstate[512] = 7;  // In use: x87, SSE, AVX.
  std::string unused = xstate, used = xstate;
  used[target.offset + 100] = 1;
  EXPECT_TRUE(drop_unknown_xstate(unused, cpu_features(), target.features)->empty());
  EXPECT_EQ(unused[512], 3);
  EXPECT_EQ(*drop_unknown_xstate(used, cpu_features(), target.features),
            std::vector<std::string>{"xstate:avx"});
  EXPECT_EQ(used, unused) << "nothing of it is left";
  EXPECT_TRUE(drop_unknown_xstate(xstate, target.features, cpu_features())->empty());
  EXPECT_EQ(xstate[512], 7) << "what the target has stays";
}

TEST(Cpuid, RefusesBytesThatAreNotFeatures) {
  EXPECT_FALSE(missing_features("", cpu_features()).ok());
  EXPECT_FALSE(missing_features(cpu_features(), cpu_features() + "x").ok());
  EXPECT_FALSE(feature_names(std::string("\x02\x00", 2)).ok());
}

TEST(Cpuid, SignalFramesHoldNoMoreThanTheWholeArea) {
  const std::uint32_t bytes = signal_xsave_bytes(cpu_features()).value();
  EXPECT_GE(bytes, 576u);
  EXPECT_LE(bytes, xsave_bytes());
}

TEST(Cpuid, XsaveAreaHoldsAtLeastFxsaveAndHeader) { EXPECT_GE(xsave_bytes(), 512U + 64U); }

}  // namespace
}  // namespace godwit::sys
