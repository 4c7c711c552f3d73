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

TEST(Cpuid, RefusesBytesThatAreNotFeatures) {
  EXPECT_FALSE(missing_features("", cpu_features()).ok());
  EXPECT_FALSE(missing_features(cpu_features(), cpu_features() + "x").ok());
  EXPECT_FALSE(feature_names(std::string("\x02\x00", 2)).ok());
}

TEST(Cpuid, XsaveAreaHoldsAtLeastFxsaveAndHeader) { EXPECT_GE(xsave_bytes(), 512U + 64U); }

}  // namespace
}  // namespace godwit::sys
